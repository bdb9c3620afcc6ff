"""Every option refuses a value of another type than it declares, by its own name, before anything runs."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plainformer
from plainformer.cli.main import run_app
from plainformer.config.declared import described, fits
from plainformer.config.loading import LoadOptions
from plainformer.config.options import OptionSet
from plainformer.entities import Document, analyse
from plainformer.errors import PlainformerError, UsageError
from plainformer.explanation import Request, explain, what_if
from plainformer.tasks import option_classes
from plainformer.tasks.writing.chat import ChatSession
from tests.support.media import CLIPS

Folder = Callable[[str], Path]
KINDS: list[type[OptionSet]] = [*option_classes(), LoadOptions]
VALUES: list[Any] = [
    "yes", "", "five", 0, 1, -1, 2.5, True, False, None, [], {}, [1], ["a"], [None], [True], [[1]], (1, "a"), (1, 2.0),
    {1: 2}, {"a": "b"}, {(1,): 2.0}, float("nan"), b"x", object(), [object()], 1 + 2j, {1, 2}, [-1],
]  # fmt: skip

# What a part of an annotation takes, by its text alone: not how the library reads it.
PLAIN: dict[str, Callable[[Any], bool]] = {
    "int": lambda v: type(v) is int,
    "float": lambda v: type(v) in (int, float),
    "bool": lambda v: type(v) is bool,
    "str": lambda v: type(v) is str,
    "None": lambda v: v is None,
    "Any": lambda v: v is None,  # or a model
    "Literal['never']": lambda v: v == "never",
    "Words": lambda v: type(v) is str or PLAIN["Sequence[str]"](v),
    "Ngrams": lambda v: type(v) is str,
    "Sequence[str]": lambda v: type(v) in (list, tuple) and all(type(one) is str for one in v),
    "Sequence[str | os.PathLike[str]]": lambda v: PLAIN["Sequence[str]"](v),
    "Mapping[str, str | os.PathLike[str]]": lambda v: v == {"a": "b"},
    "Sequence[int]": lambda v: type(v) in (list, tuple, set) and all(type(one) is int for one in v),
    "Sequence[float]": lambda v: type(v) in (list, tuple, set) and all(type(one) in (int, float) for one in v),
    "Sequence[Sequence[int]]": lambda v: type(v) is list and all(PLAIN["Sequence[int]"](one) for one in v),
    "Sequence[Any]": lambda v: v == [],
    "Sequence[Mapping[str, Any]]": lambda v: v == [],
    "Sequence[Processor]": lambda v: type(v) is list and not v,
    "tuple[int, int]": lambda v: type(v) in (list, tuple) and len(v) == 2 and all(type(one) is int for one in v),
    "tuple[int, float]": lambda v: type(v) is tuple and v == (1, 2.0),
    "Mapping[tuple[int, ...], float]": lambda v: v in ({}, {(1,): 2.0}),
    "Mapping[int, int | None]": lambda v: v in ({}, {1: 2}),
    "Mapping[str, Any]": lambda v: v in ({}, {"a": "b"}),
}


def parts(annotation: str) -> Iterator[str]:
    """The members of a union, as they are written."""
    depth, start = 0, 0
    for place, character in enumerate(annotation + "|"):
        depth += (character == "[") - (character == "]")
        if character == "|" and depth == 0:
            yield annotation[start:place].strip()
            start = place + 1


def own_options() -> Iterator[Any]:
    """Each option of each class once, where several share it."""
    seen = set()
    for kind in KINDS:
        for field in fields(kind):
            spec = field.metadata.get("option")
            if spec is not None and id(spec) not in seen:
                seen.add(id(spec))
                yield pytest.param(kind, field.name, str(field.type), id=f"{kind.__name__}.{field.name}")


@pytest.mark.parametrize("kind, name, annotation", own_options())
def test_an_option_takes_its_declared_type_alone(kind: type[OptionSet], name: str, annotation: str) -> None:
    required = {"labels": ["a"]} if "labels" in kind.__dataclass_fields__ else {}  # type: ignore[attr-defined]
    declared = [PLAIN[part] for part in parts(annotation) if part in PLAIN]
    for value in VALUES:
        try:
            kind(**{**required, name: value})
        except UsageError as error:  # by its own name, or by its part in what goes together
            assert name in str(error) and error.fix, (value, str(error))
            continue
        assert any(takes(value) for takes in declared), f"{name}={value!r} passes for {annotation}"


def test_what_is_only_known_to_type_checkers() -> None:
    """A tensor, a cache and a processor are any object that is not plain data; `torch.dtype` is one, too."""
    kind = KINDS[-1]
    assert kind(dtype=torch.float16, device=torch.device("cpu")).given == {"dtype", "device"}
    for wrong in (3, object(), ["fp16"]):
        with pytest.raises(UsageError, match=r"dtype=.* is not supported"):
            kind(dtype=wrong)


@pytest.mark.parametrize(
    "name", ["num_beams", "max_new_tokens", "min_length", "repetition_penalty", "presence_penalty"]
)
def test_numbers_of_more_than_64_bits(name: str, tiny: Folder) -> None:
    task = plainformer.load(tiny("text-generation"))
    for wrong in (10**20, 10**400, 1 << 63):
        with pytest.raises(UsageError, match=f"{name} is far out of range"):
            task("a", **{name: wrong})


def test_what_is_no_processor(tiny: Folder) -> None:
    task = plainformer.load(tiny("text-generation"))
    for wrong in (np.float32(0.5), Path("x"), torch.tensor(1), len):
        with pytest.raises(UsageError, match=r"watermark=.* is not a processor of logits\n"):
            task("a", watermark=wrong)
    with pytest.raises(UsageError, match=r"grammar=.* is not a processor of logits\n"):
        task("a", grammar=len)


def test_numbers_and_arrays_of_numpy_and_torch_are_numbers_and_lists() -> None:
    from collections.abc import Sequence

    assert fits(np.int64(3), int) and fits(np.float32(0.5), float) and fits(3, float)
    assert (
        fits(np.array([1, 2]), Sequence[int])
        and fits(torch.tensor([1, 2]), Sequence[int])
        and fits(range(3), Sequence[int])
    )
    for wrong in (np.array([[1]]), np.array([0.5]), torch.ones(1, 1).long(), {1: 2}, "12", iter([1])):
        assert not fits(wrong, Sequence[int])
    assert described(Sequence[Sequence[int]] | None) == "a list of lists of whole numbers"
    assert described(bool | float) == "True or False or a number"


def wrong_calls(tiny: Folder) -> list[tuple[str, Callable[[], Any]]]:
    """Calls besides those of tasks, each with one wrong value, by the name that the error must say."""
    bert, chat = plainformer.load(tiny("embedding")), plainformer.load(tiny("chat"))
    tokenizer: Any = bert.tokenizer
    found = analyse
    return [
        ("truncate", lambda: tokenizer.encode("a", truncate="yes")),
        ("truncate", lambda: tokenizer.encode("a", truncate=1)),
        ("add_special_tokens", lambda: tokenizer.encode("a", add_special_tokens="no")),
        ("skip_special_tokens", lambda: tokenizer.decode([5], skip_special_tokens=0)),
        ("add_generation_prompt", lambda: chat.tokenizer.apply_chat_template([], add_generation_prompt="no")),
        ("max_length", lambda: tokenizer.encode("a", max_length="12")),
        ("truncate", lambda: explain(bert, "a", truncate="yes")),
        ("chat", lambda: explain(chat, "a", chat=1)),
        ("top_k", lambda: explain(chat, "a", top_k="3")),
        ("pair", lambda: explain(bert, "a", pair=3)),  # type: ignore[arg-type]
        ("truncate", lambda: Request("a", truncate="yes")),  # type: ignore[arg-type]
        ("width", lambda: what_if(chat, Request("a"), "no-cache", width=0)),
        ("system", lambda: ChatSession(chat, system=3)),  # type: ignore[arg-type]
        ("revision", lambda: plainformer.load_tokenizer(tiny("embedding"), revision=3)),  # type: ignore[arg-type]
        ("min_score", lambda: found(iter, [Document("a", "a")], min_score=2)),  # type: ignore[arg-type]
        ("within", lambda: found(iter, [], within="page")),  # type: ignore[arg-type]
        ("labels", lambda: found(iter, [], labels="PER")),  # type: ignore[arg-type]
        ("anywhere", lambda: found(iter, [], anywhere="yes")),  # type: ignore[arg-type]
    ]


def test_other_calls_check_their_options_too(tiny: Folder) -> None:
    for name, call in wrong_calls(tiny):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.option == name, (name, str(caught.value))


INPUTS: dict[str, Any] = {
    "embedding": "the cat",
    "token-classification": "the cat",
    "question-answering": ("the cat", "the mat"),
    "text-generation": "ab",
    "text2text": "ab",
    "speech": CLIPS[2],
}


@pytest.mark.parametrize("name", INPUTS)
def test_what_passes_the_type_ends_in_an_answer_or_an_error_of_ours(name: str, tiny: Folder) -> None:
    """Values that only the model can refuse: an id beyond its vocabulary, a layer that it lacks."""
    task: Any = plainformer.load(tiny(name), backend="plain")
    few = {"max_new_tokens": 1} if "max_new_tokens" in task.options() else {}
    for option, value in (
        (o, v) for o in task.options() for v in ([10**9], [-1], {10**9: 1}, 10**9, "x", (10**9, 2.0))
    ):
        if option in (
            "batch_size",
            "num_return_sequences",
            "num_beams",
            "num_alternatives",
            "beam_width",
            "max_length",
        ):
            continue  # a billion of these is memory, not a mistake
        try:
            task(INPUTS[name], **{**few, option: value} if option != "max_new_tokens" or value != 10**9 else few)
        except PlainformerError as error:
            assert error.fix, str(error)


def test_a_task_can_be_copied_after_a_grammar(tiny: Folder) -> None:
    task: Any = plainformer.load(tiny("text-generation"), backend="plain")
    asked = {"choices": ["ab", "ba"], "max_new_tokens": 4}
    answer = task("a", **asked)
    assert copy.deepcopy(task)("a", **asked) == answer
    assert pickle.loads(pickle.dumps(task))("a", **asked) == answer


def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights are read before the options are checked")

    monkeypatch.setattr("plainformer.loading.build_model", refuse)


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("text-generation", "run REF a --json-schema @nofile.json", "there is no file 'nofile.json'"),
        ("text-generation", "run REF a --json-schema {", "--json-schema '{' is not valid JSON"),
        ("text-generation", "run REF a --temperature 0 --do-sample", "--temperature 0.0 is not a number in (0, inf)"),
        ("text-generation", "run REF a --max-new-tokens 0", "--max-new-tokens 0 is not a whole number"),
        ("text-generation", "run REF a --dola-layers middle", "'middle' is not a list of layer numbers"),
        ("embedding", "run REF a --top-k 3", "--top-k has no effect in feature-extraction"),
        ("embedding", "run REF a --pooling meen", "did you mean 'mean'"),
        ("embedding", "run REF a --dtype fp8", "--dtype 'fp8' is not supported"),
        ("embedding", "run REF a --device gpu", "--device 'gpu' is unknown"),
        ("embedding", "chat REF", "cannot chat"),
        ("chat", "chat REF --top-p 3", "--top-p 3.0 is not a number in [0, 1]"),
        ("chat", "chat REF --regex @nofile --choices a", "exclude each other"),
        ("chat", "explain REF a --steps 2 --top-k 2", "--candidates 2 shows that many"),
        ("chat", "explain REF a --steps 2 --num-beams 0", "--num-beams 0 is not a whole number"),
        ("chat", "explain REF a --top-k 0", "--top-k 0 is not a whole number"),
        ("token-classification", "entities REF . --top -1", "--top -1 is not a whole number of at least 0"),
        ("token-classification", "entities REF . --min-score 2", "--min-score 2.0 is not a number in [0, 1]"),
        ("token-classification", "entities REF . --label LOC", "--label 'LOC' is not a label of this model"),
        ("token-classification", "entities REF . --within page", "--within 'page' is unknown"),
        ("text-generation", "entities REF .", "which finds no entities"),
    ],
)
def test_the_command_line_checks_options_before_it_reads_weights(
    name: str, line: str, says: str, tiny: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny(name)
    loads_nothing(monkeypatch)
    verb, *rest = line.split()
    assert run_app([verb, *(str(folder) if one == "REF" else one for one in rest)]) == 2
    error = capsys.readouterr().err
    assert re.search(re.escape(says).replace("'", "'?"), error), error
