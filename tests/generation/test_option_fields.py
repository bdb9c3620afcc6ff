"""An option is said once: what its field says is validated, ordered, applied, and found in all that derives from the fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from plainformer.config.options import NotTyped, number, option, specs, table
from plainformer.errors import UsageError
from plainformer.generation import processors
from plainformer.generation.cache.cache import KINDS
from plainformer.generation.constraints.stop_strings import StopStrings
from plainformer.generation.options import (
    NEEDS,
    ORDER,
    SAMPLERS,
    SAMPLING,
    SHAPING,
    TAKEN_BY,
    GenerationOptions,
    stages,
)
from plainformer.generation.order import make_processors
from plainformer.generation.processors.context import Context
from plainformer.generation.search import generate, stream
from plainformer.tasks.writing.checkpoint_defaults import with_checkpoint_defaults
from tests.support.generation import pair

OPTIONS = specs(GenerationOptions)


@dataclass(frozen=True)
class Only:
    """A made-up sampler: keeps one token."""

    name: ClassVar[str] = "only"
    token: int

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        kept_RV = torch.full_like(logits_RV, float("-inf"))
        kept_RV[:, self.token] = 0
        return kept_RV


@dataclass(frozen=True, kw_only=True)
class MoreOptions(GenerationOptions):
    only: int | None = option(None, help="Sampling: keep one token.", group=SHAPING, modes=SAMPLING, check=number("[0, 99)"), make=lambda p, o, ends: Only(o.only))  # fmt: skip  # noqa: E501


def test_a_sampler_is_a_class_and_a_line() -> None:
    model, row = pair("gpt2").ours, torch.tensor([[5, 6]])
    with pytest.raises(UsageError, match=r"only=99 is not a number in \[0, 99\)"):
        MoreOptions(do_sample=True, only=99)
    with pytest.raises(UsageError, match=r"only=7 has no effect in greedy mode\n.*do_sample=True takes it"):
        MoreOptions(only=7)
    assert stages(MoreOptions)[1] == (*stages(GenerationOptions)[1], "only")
    options = MoreOptions(do_sample=True, only=7, temperature=0.5, renormalize=True, repetition_penalty=1.5)
    names = [processor.name for processor in make_processors(options, model.config)]
    assert names == ["repetition_penalty", "temperature", "only", "renormalize"]
    assert generate(model, row, options=options.changed(max_new_tokens=3, eos_ids=())).token_ids == ((7, 7, 7),)
    assert "| `only` |  | Sampling: keep one token. |" in table(MoreOptions)


def test_every_processor_that_an_option_makes_has_its_place() -> None:
    """What `make` makes bears a name of the place that the field says."""
    ends, config = (1,), pair("gpt2").ours.config
    values: dict[str, Any] = {
        **dict.fromkeys(("suppress", "suppress_first"), (3,)),
        "sequence_bias": {(3,): 1.0},
        "bad_words_ids": [[3]],
        "allowed_tokens": lambda ids: [3],
        "forced": {1: 3},
        "exponential_decay": (1, 1.5),
        "watermark": processors.Watermark(99),
        **dict.fromkeys(("remove_invalid", "renormalize"), True),
        **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 2),
        **dict.fromkeys(("min_new_tokens", "top_k", "forced_bos_id", "forced_eos_id"), 2),
    }
    seen = set()
    for name, spec in OPTIONS.items():
        if "make" not in spec.more or name == "grammar":
            continue
        options = GenerationOptions(eos_ids=ends, do_sample=name in SAMPLERS, **{name: values.get(name, 0.5)})
        (made,) = make_processors(options, config)
        assert made.name in spec.more.get("runs", (name,)) and made.name in ORDER
        seen.add(made.name)
    assert seen | {"guidance", "token_healing", "grammar", "whisper_timestamps"} == set(ORDER)


def test_what_derives_from_the_fields() -> None:
    assert set(TAKEN_BY) > set(SAMPLERS) and set(NEEDS) | set(NEEDS.values()) < set(OPTIONS)
    known = {"modes", "needs", "chooses", "excludes", "make", "runs", "last", "checkpoint", "neutral", "engine"}
    for name, spec in OPTIONS.items():
        assert set(spec.more) <= known, name
        assert spec.group and re.fullmatch(r"[A-Z(].*[.)]", spec.help), name
        assert "neutral" not in spec.more or "checkpoint" in spec.more, name
        for other in (*spec.more.get("chooses", ()), *(spec.more.get(key, name) for key in ("needs", "excludes"))):
            assert other in OPTIONS
    assert {name for name, spec in OPTIONS.items() if spec.typed is NotTyped} >= {"cache", "processors", "stop_when"}


def test_the_kinds_of_cache_are_those_there_are() -> None:
    for kind in (*KINDS, "none"):
        GenerationOptions(cache_kind=kind)
    with pytest.raises(UsageError, match="cache_kind='zzz' is unknown") as caught:
        GenerationOptions(cache_kind="zzz")
    assert sorted(caught.value.fix.removeprefix("known: ").split(", ")) == sorted((*KINDS, "none"))


def test_the_documentation_has_the_options() -> None:
    """On failure, put what `table` returns between the page's comments."""
    page = (Path(__file__).parents[2] / "docs" / "how-to-generate.md").read_text(encoding="utf-8")
    shown = page.split("<!-- options of generation -->\n")[1].split("\n<!-- end -->")[0]
    assert shown == table(GenerationOptions)


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        *(("early_stopping", text, value) for text, value in (("true", True), ("false", False), ("never", "never"))),
        ("dola_layers", "low", "low"),
        ("dola_layers", "1,3,5", [1, 3, 5]),
        ("grammar", "start: /a/", "start: /a/"),
    ],
)
def test_values_as_they_are_typed(name: str, typed: str, value: Any) -> None:
    read = OPTIONS[name].read
    assert read is not None and read(typed) == value


def test_values_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("start: /é/", encoding="utf-8")
    (tmp_path / "bad").write_bytes(b"\xff")
    read = OPTIONS["grammar"].read
    assert read is not None and read(f"@{tmp_path / 'good'}") == "start: /é/"
    for text, message in ((f"@{tmp_path / 'bad'}", "is not UTF-8"), (f"@{tmp_path}", "no file"), ("@a\0", "no file")):
        with pytest.raises(UsageError, match=message):
            read(text)
    for name, text in (("early_stopping", "yes"), ("dola_layers", "middle")):
        read = OPTIONS[name].read
        with pytest.raises(UsageError, match=f"{name}='{text}'"):
            read(text)  # type: ignore[misc]


# ---- options as objects -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Postponed(GenerationOptions):
    """Options of a task: their mode is known once the checkpoint's defaults are, and stop strings are texts."""

    truncate: bool = option(False, help="Of the task.")

    def validate(self) -> None:
        pass


def test_options_that_are_made_already() -> None:
    model, row = pair("gpt2").ours, torch.tensor([[5, 6]])
    options = GenerationOptions(num_beams=2, max_new_tokens=4)
    by_name = generate(model, row, num_beams=2, max_new_tokens=4)
    assert generate(model, row, options=options) == by_name
    with pytest.raises(UsageError, match="both made and by name: top_k"):
        generate(model, row, options=options, top_k=3)
    with pytest.raises(UsageError, match="both made and by name: seed"):
        next(stream(model, row, options=options, seed=3))


def test_what_a_task_postpones_the_engine_checks() -> None:
    options = Postponed(stop="end", temperature=0.5, truncate=True)
    assert options.explicit == {"stop", "temperature", "truncate"} and options.mode == "greedy"
    stop = StopStrings(["end"], str)
    with pytest.raises(UsageError, match=r"temperature=0\.5 has no effect in greedy mode"):
        options.engine(stop=stop)
    with pytest.raises(UsageError, match="stop='end' does not look for stop strings"):
        options.engine(do_sample=True)
    engine = options.engine(do_sample=True, stop=stop)
    assert type(engine) is GenerationOptions and engine.given == {"stop", "temperature", "do_sample"}
    with pytest.raises(UsageError, match="grammar='start: /a/' is not a processor"):
        GenerationOptions(grammar="start: /a/")
    with pytest.raises(UsageError, match=r"temperature=\[0.0, 0.5\] is not a number"):
        GenerationOptions(do_sample=True, temperature=[0.0, 0.5])
    assert Postponed(grammar="start: /a/").given == {"grammar"}


def test_what_was_given_explicitly_overrides_the_checkpoint() -> None:
    in_the_file = {"num_beams": 4, "length_penalty": 2.0, "temperature": 0.6, "max_length": 142}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"num_beams": 4, "length_penalty": 2.0, "max_length": 142}),
        ({"num_beams": 1, "max_new_tokens": 20}, {}),
        ({"num_beams": 1, "do_sample": True}, {"temperature": 0.6, "max_length": 142, "top_k": 50}),
        ({"truncate": True, "max_length": None}, {"num_beams": 4, "length_penalty": 2.0}),
    ]
    for given, added in cases:
        assert with_defaults(in_the_file, given) == {**given, **added}
        with_checkpoint_defaults(in_the_file, Postponed(**given)).engine()


def with_defaults(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return what is explicit once a checkpoint's settings have been added to what was given."""
    merged = with_checkpoint_defaults(values, Postponed(**given))
    assert type(merged) is Postponed and merged == Postponed(
        **{name: getattr(merged, name) for name in merged.explicit}
    )
    return {name: getattr(merged, name) for name in merged.explicit}


def test_settings_of_other_modes_are_left_out() -> None:
    many = {"num_beams": 4, "diversity_penalty": 0.5, "temperature": 0.7, "penalty_alpha": 0, "top_k": 0}
    assert with_defaults(many, {}) == {"num_beams": 4}
    assert with_defaults({**many, "num_beam_groups": 2}, {}) == {
        "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5
    }  # fmt: skip
    assert with_defaults({"do_sample": True, "xtc_threshold": 0.2, "top_k": 5}, {}) == {"do_sample": True, "top_k": 5}
    speculative = {"prompt_lookup_num_tokens": 3, "temperature": 0.7, "num_return_sequences": 2}
    assert with_defaults(speculative, {}) == {"prompt_lookup": 3}


def test_changes_keep_what_was_explicit() -> None:
    options = GenerationOptions(num_beams=1, max_new_tokens=4)
    changed = options.changed(max_new_tokens=5)
    assert changed.explicit == {"num_beams", "max_new_tokens"} and changed.given == {"max_new_tokens"}
    assert GenerationOptions.of({"num_beams": 1}, "generation").explicit == {"num_beams"}


OTHERS: dict[str, Any] = {"dola_layers": "low", "cache_kind": "int8", "early_stopping": True}


@pytest.mark.parametrize("name", sorted(set(TAKEN_BY) - {"cache"}))
def test_takes_is_what_the_check_says(name: str) -> None:
    value = OTHERS.get(name, 2 if "int" in str(GenerationOptions.__annotations__[name]) else 0.5)
    for chosen in (
        {},
        {"do_sample": True},
        {"num_beams": 2},
        {"prompt_lookup": 2},
        {"prompt_lookup": 2, "do_sample": True},
    ):
        options = Postponed(**chosen, **{name: value})  # type: ignore[arg-type]
        if not options.takes(name):
            with pytest.raises(UsageError, match=name):
                options.engine()
