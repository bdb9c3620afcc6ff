"""A run's configuration: built of YAML and overrides, refused with the line, written out so that it builds the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plainformer
from plainformer.config.building import all_names, as_config, as_data, build, read_config, section_of, table_of
from plainformer.config.effects import PACKING
from plainformer.config.resolved import resolved, resolved_yaml
from plainformer.config.training import OBJECTIVES, OptimizerConfig, TrainConfig
from plainformer.config.yaml import parse_yaml
from plainformer.errors import InputError, UsageError
from plainformer.train.objectives import objective_class

BASE = """objective: text-classification
folder: runs/a
model:
  ref: all-minilm-l6-v2
data:
  train:
    path: rows.jsonl
"""
OBJECTIVE_FILES = Path(plainformer.__file__).parent / "train" / "objectives"
VALIDATION = "  validation: {path: dev.jsonl}\n"
SCRATCH = """objective: causal-lm
folder: runs/a
model: {config: {model_type: llama, sizes: {hidden_size: 320, num_layers: 6}}, tokenizer: gpt2}
data: {train: {path: x.txt}}
"""


def built(text: str, *overrides: tuple[str, str]) -> TrainConfig:
    return build(TrainConfig, parse_yaml(text, "run.yaml"), overrides)


def refused(text: str, what: str, fix: str = "", *overrides: tuple[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        built(text, *overrides)
    assert caught.value.what == what
    assert fix in caught.value.fix


def test_a_configuration_of_a_file_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BASE + "optimizer:\n  learning_rate: 1e-4\n  weight_decay: 0\nlength:\n  epochs: 1\n")
    overrides = [("optimizer.learning-rate", "1"), ("optimizer.learning_rate", "3e-5"), ("compile", "true")]
    found = read_config(path, overrides)
    assert found.optimizer == OptimizerConfig(learning_rate=3e-5, weight_decay=0.0)
    assert type(found.optimizer.weight_decay) is float
    assert found.compile and found.length.epochs == 1 and found.batches.size == 32


# ---- the traps of dotted overrides and YAML


def test_an_override_leaves_its_neighbours_in_a_mapping() -> None:
    found = built(SCRATCH, ("model.config.sizes.num_layers", "4"), ("data.columns.text", "sentence"))
    assert found.model.config == {"model_type": "llama", "sizes": {"hidden_size": 320, "num_layers": 4}}
    assert found.data.columns == {"text": "sentence"}
    merged = built(SCRATCH, ("model.config", "{sizes: {num_layers: 4, new_key: 1e-6}}"))
    assert merged.model.config is not None
    assert merged.model.config["sizes"] == {"hidden_size": 320, "num_layers": 4, "new_key": 1e-6}


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"run.yaml line 10: the key 'epochs' is there already, in line 9"):
        built(BASE + "length:\n  epochs: 1\n  epochs: 3\n")


def test_values_are_those_of_yaml_1_2() -> None:
    found = built(BASE + "  columns: {language: no, time: 12:30}\noptimizer: {eps: 1e-4}\n")
    assert found.data.columns == {"language": "no", "time": "12:30"} and found.optimizer.eps == 1e-4
    refused(BASE + "compile: on\n", "compile: 'on' is neither True nor False (run.yaml line 8)")


def test_lists_are_given_whole() -> None:
    assert built(BASE, ("data.labels", "[a, no]")).data.labels == ("a", "no")
    refused(BASE + "  labels: [a, b]\n", "data.labels.0 is unknown", "data.labels is one value", ("data.labels.0", "c"))


# ---- what an override's text means


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("folder", "2024", "2024"),
        ("folder", "a: b # c", "a: b # c"),
        ("folder", "*.txt", "*.txt"),
        ("folder", "'2024'", "2024"),
        ("folder", "true", "true"),
        ("model.revision", "null", None),
        ("model.revision", "1e3", "1e3"),
        ("model.checkpointing", "2", 2),
        ("model.checkpointing", "all", "all"),
        ("model.lora", "null", None),
        ("optimizer.max_grad_norm", "~", None),
        ("optimizer.max-grad-norm", "3", 3.0),
        ("seed", "0x10", 16),
        ("data.labels", "null", None),
        ("model.lora.targets", "[q_proj, v_proj]", ("q_proj", "v_proj")),
    ],
)
def test_texts_need_no_quotes_where_texts_are_wanted(name: str, text: str, value: Any) -> None:
    found: Any = built(BASE, (name, text))
    for part in name.replace("-", "_").split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


# ---- errors


@pytest.mark.parametrize(
    ("more", "what", "fix"),
    [
        ("optimizer:\n  lrr: 1\n", "unknown key 'lrr' in optimizer (run.yaml line 9)", "did you mean 'learning_rate'?"),
        ("optimiser: {}\n", "unknown key 'optimiser' (run.yaml line 8)", "did you mean 'optimizer'?"),
        ("epochs: 3\n", "unknown key 'epochs' (run.yaml line 8)", "did you mean 'length.epochs'?"),
        (
            "learning_rat: 3\n",
            "unknown key 'learning_rat' (run.yaml line 8)",
            "did you mean 'optimizer.learning_rate'?",
        ),
        ("  trian: {}\n", "unknown key 'trian' in data (run.yaml line 8)", "did you mean 'train'?"),
        ("optimizer: 3\n", "optimizer: 3 is not a mapping (run.yaml line 8)", "learning_rate"),
        ("seed: 1.5\n", "seed: 1.5 is not a whole number of at least 0 (run.yaml line 8)", "0 or more"),
        ("evaluate:\n  every: x\n", "evaluate.every: 'x' is not a whole number of at least 1 (run.yaml line 9)", ""),
        ("  labels: [0, 1]\n", "data.labels: [0, 1] is not a list of texts (run.yaml line 8)", "quote"),
        ("  cache: 12\n", "data.cache: 12 is not a text (run.yaml line 8)", "quote"),
        ("  columns: [a]\n", "data.columns: ['a'] is not a dictionary (run.yaml line 8)", ""),
        ("schedule:\n  kind: cosin\n", "schedule.kind: 'cosin' is unknown (run.yaml line 9)", "did you mean 'cosine'?"),
        (
            "length:\n  epochs: 1\n  steps: 4\n",
            "length.epochs: 1 and length.steps: 4 are given (run.yaml line 9)",
            "one of the three",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(more: str, what: str, fix: str) -> None:
    refused(BASE + more, what, fix)


def test_what_is_missing_is_named() -> None:
    refused("folder: x\n", "objective is missing (run.yaml)", "give it")
    refused(BASE.replace("    path: rows.jsonl\n", ""), "data.train is missing (run.yaml line 5)", "give it")
    refused(BASE.replace("path: rows.jsonl", "format: csv"), "data.train.path is missing (run.yaml line 6)", "give it")


@pytest.mark.parametrize(
    ("name", "text", "what", "fix"),
    [
        ("optimizer.lrr", "1", "there is no option optimizer.lrr", "did you mean optimizer.learning_rate?"),
        ("lr", "1", "there is no option lr", "did you mean optimizer.learning_rate?"),
        ("modl.ref", "x", "there is no option modl.ref", "did you mean model"),
        ("seed.x", "1", "seed.x is unknown", "seed is one value"),
        ("seed", "[1", "seed='[1' is not YAML", ""),
        (
            "optimizer.learning-rate",
            "fast",
            "optimizer.learning_rate='fast' is not a number in (0, inf)",
            "give a number",
        ),
        ("model.config.layers", "3", "both model.ref and model.config are given (run.yaml line 4)", "give model.ref"),
        ("model.ref.x", "3", "model.ref.x is unknown", "model.ref is one value"),
    ],
)
def test_a_mistake_in_an_override_is_named_as_it_is_typed(name: str, text: str, what: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        built(BASE, (name, text))
    assert caught.value.what.startswith(what)
    assert fix in caught.value.fix
    if "line" not in what:
        assert f"--{name.replace('-', '_')}" in caught.value.message(lambda option, value: f"--{option}")


def test_a_mistake_in_python_has_no_line() -> None:
    data = {"objective": "ctc", "folder": "x", "model": {"ref": "x"}, "data": {"train": {"path": "x"}}}
    assert as_config({**data, "optimizer": OptimizerConfig(beta1=0.5)}).optimizer.beta1 == 0.5
    with pytest.raises(UsageError, match=r"^optimizer.beta1=2 is not a number in \[0, 1\)"):
        as_config({**data, "optimizer": {"beta1": 2}})
    with pytest.raises(UsageError, match=r"model=\{'ref': 'x'\} is not a StartConfig"):
        TrainConfig(objective="ctc", folder="x", model={"ref": "x"}, data={})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not of type int"):
        as_config(3)  # type: ignore[arg-type]


# ---- options that cannot work together, or have no effect


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("loss: {mask_share: 0.3}\n", "loss.mask_share has no effect with objective: 'text-classification'"),
        ("loss: {whole_words: true}\n", "loss.whole_words has no effect"),
        ("loss: {mean_span: 2}\n", "loss.mean_span has no effect"),
        ("loss: {chunk: 8}\n", "loss.chunk has no effect"),
        ("loss: {temperature: 1}\n", "loss.temperature has no effect without loss.teacher"),
        ("batches: {packed: false}\n", "batches.packed has no effect"),
        ("batches: {row_length: 64}\n", "batches.row_length has no effect"),
        ("batches: {size: 4, micro: 8}\n", "batches.micro: 8 is more than batches.size: 4"),
        ("evaluate: {every: 4}\n", "evaluate.every has no effect without data.validation or data.split"),
        ("evaluate: {patience: 4}\n", "evaluate.patience has no effect"),
        ("  duplicates: allow\n", "data.duplicates has no effect without"),
        (VALIDATION + "  duplicates: group\n", "data.duplicates has no effect as 'group' without data.split"),
        (VALIDATION + "  split: {}\n", "both data.split and data.validation are given"),
        ("  test: {path: x}\n  split: {test: 0.1}\n", "both data.split.test and data.test are given"),
        (
            "  split: {validation: 0.6, test: 0.4}\n",
            "data.split.validation: 0.6 and data.split.test: 0.4 leave nothing",
        ),
        ("  split: {by: grouped}\n", "data.split.by: 'grouped' needs data.split.group"),
        ("  split: {group: a}\n", "data.split.group has no effect without data.split.by: 'grouped'"),
        ("  stride: 3\n", "data.stride has no effect without data.too_long: 'window'"),
        ("  stride: 8\n  too_long: window\n  max_length: 8\n", "data.stride: 8 would never reach the end of a text"),
        ("schedule: {decay: 0.1}\n", "schedule.decay has no effect without schedule.kind: 'wsd'"),
        ("schedule: {kind: constant, final: 0.1}\n", "schedule.final has no effect"),
        ("schedule: {warmup: 1.5}\n", "schedule.warmup: 1.5 is neither a share nor a number of steps"),
        ("precision: fp16\n", "precision: 'fp16' needs its loss scaled, or small gradients become 0"),
        ("precision: bf16\n", "precision: 'bf16' is for a GPU"),
        ("precision: fp8\n", "precision: 'fp8' is unknown"),
        ("objective: question-answering\nloss: {label_smoothing: 0.1}\n", "loss.label_smoothing has no effect"),
        ("objective: image-classification\n  max_length: 9\n", "data.max_length has no effect"),
        ("  prefix: x\n", "data.prefix has no effect"),
        ("device: gpu\n", "device: 'gpu' is unknown"),
        ("device: cuda\nthreads: 2\n", "threads has no effect with device: 'cuda'"),
    ],
)
def test_no_option_is_without_effect(more: str, reason: str) -> None:
    text = BASE + more
    if more.startswith("objective: "):
        objective, _, rest = more.partition("\n")
        text = BASE.replace("objective: text-classification", objective) + rest
    with pytest.raises(UsageError) as caught:
        built(text)
    assert caught.value.what.startswith(reason)
    assert "(run.yaml line " in caught.value.what


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("{}", "neither model.ref nor model.config is given"),
        ("{ref: a, config: {}}", "both model.ref and model.config are given"),
        ("{ref: a, tokenizer: b}", "model.tokenizer has no effect with model.ref"),
        ("{config: {}, revision: b}", "model.revision has no effect without model.ref"),
        ("{ref: a, lora: {}, train: head}", "model.train has no effect with model.lora"),
        ("{ref: a, checkpointing: some}", "model.checkpointing: 'some' is unknown"),
        ("{ref: a, checkpointing: 0}", "model.checkpointing: 0 is unknown"),
    ],
)
def test_what_a_run_starts_from_is_one_thing(model: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        built(BASE.replace("\n  ref: all-minilm-l6-v2", f" {model}"))
    assert caught.value.what.startswith(reason)


# ---- the resolved configuration


def test_defaults_by_objective_are_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    fine = resolved(built(BASE + VALIDATION))
    assert fine.length.epochs == 3 and fine.evaluate.patience == 2 and fine.optimizer.learning_rate == 5e-5
    assert fine.folder == str(tmp_path / "runs/a") and fine.data.train.path == str(tmp_path / "rows.jsonl")
    assert fine.model.ref == "all-minilm-l6-v2" and fine.data.validation is not None
    assert fine.data.validation.path == "dev.jsonl"  # not there: it may be a data set on the Hub
    scratch = resolved(built(SCRATCH))
    assert scratch.length.epochs == 1 and scratch.evaluate.patience is None and scratch.optimizer.learning_rate == 5e-4
    assert resolved(built(SCRATCH, ("length.tokens", "1000"))).length.epochs is None
    for name, value in (("length.epochs", "1"), ("length.steps", "9"), ("evaluate.every", "9")):
        assert resolved(built(BASE + VALIDATION, (name, value))).evaluate.patience is None, name
    assert resolved(built(BASE + VALIDATION, ("evaluate.patience", "0"))).evaluate.patience == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_resolved_configuration_builds_itself(objective: str) -> None:
    """Every value is written out, which no check may take for given."""
    found = resolved(built(BASE.replace("text-classification", objective) + VALIDATION))
    text = resolved_yaml(found)
    assert build(TrainConfig, parse_yaml(text)) == found == resolved(found)
    assert resolved_yaml(build(TrainConfig, parse_yaml(text))) == text
    assert build(TrainConfig, parse_yaml(resolved_yaml(found, comments=False))) == found
    assert (
        all(f"# {line}" in text for line in ("Peak rate", "Rank of A")) if found.model.lora else "# Peak rate" in text
    )


@settings(max_examples=40, deadline=None)
@given(
    st.floats(min_value=1e-300, max_value=1e300),
    st.text(min_size=1),
    st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.lists(st.integers())),
    st.lists(st.text(), min_size=1),
)
def test_values_come_back_exactly(rate: float, name: str, fragment: dict[str, Any], labels: list[str]) -> None:
    data = as_data(built(BASE))
    data["model"] = {"config": fragment, "tokenizer": name}
    data["optimizer"]["learning_rate"] = rate
    data["data"]["labels"] = labels
    found = as_config(data)
    assert build(TrainConfig, parse_yaml(resolved_yaml(found))) == found
    assert found.optimizer.learning_rate == rate and found.data.labels == tuple(labels)


def test_the_table_has_every_option() -> None:
    table = table_of(TrainConfig)
    leaves = [name for name in all_names(TrainConfig) if f"**{name}**" not in table]
    assert len(leaves) > 60 and all(f"| `{name}` |" in table for name in leaves)
    assert "| `optimizer.eps` | `1e-08` | Added to" in table and "**model.lora**: " in table


def test_every_option_says_what_it_is() -> None:
    for name in all_names(TrainConfig):
        kind: Any = TrainConfig
        *sections, last = name.split(".")
        for section in sections:
            kind = section_of(kind, section)
        (found,) = [f for f in dataclasses.fields(kind) if f.name == last]
        assert found.metadata["option"].help.endswith("."), name


def test_the_objectives_that_pack_are_known() -> None:
    """The list is there because the configuration is checked before torch is loaded."""
    there = [
        name for name, place in OBJECTIVES.items() if (OBJECTIVE_FILES / f"{place.partition(':')[0]}.py").is_file()
    ]
    assert [name for name in there if objective_class(name).packs] == [name for name in there if name in PACKING]


def test_what_is_learnt_is_known_to_the_search_for_copies() -> None:
    """Equal inputs with other labels are copies, too; what has no target is read as a whole."""
    targets = {name: [c.name for c in objective_class(name).columns if c.target] for name in OBJECTIVES}
    for name in ("causal-lm", "masked-lm", "denoising"):
        assert targets.pop(name) == []
    assert all(len(found) == 1 for found in targets.values()), targets
