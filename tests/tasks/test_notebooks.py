"""What a notebook or a prompt shows of objects: a line of text each, and pages on which everything is escaped."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plainformer as pf
from plainformer.entities.analysis import analyse
from plainformer.entities.documents import Document
from plainformer.info import inspect_checkpoint
from plainformer.tasks.html import blocks, continued, table
from plainformer.tasks.results import Results, brief
from plainformer.tasks.text.classification import Classification, LabelScore
from plainformer.tasks.text.token_classification import Entity, Spans
from tests.support import models as make

EVIL = "<script>alert('x')</script>"


def test_everything_has_a_line(tiny: Callable[[str], Path]) -> None:
    task = make.load(tiny("text-generation"))
    stack = task.config.main_stack
    shown = {
        repr(task.tokenizer): "Tokenizer(BPE, 260 tokens, at most 48 a text, padding on the right)",
        repr(task.config): f"ModelConfig(gpt2, decoder of {stack.summary}, ",
        repr(task.model): "Transformer(gpt2, decoder of ",
        repr(stack): f"StackConfig(tokens; {stack.num_layers} layers, ",
        repr(task.Options(max_new_tokens=5, stop="x")): "TextGenerationOptions(max_new_tokens=5, stop='x')",
        repr(task.checkpoint): f"FolderCheckpoint({task.ref!r})",
        repr(task.tokenizer.encode("the cat")): "Encoding(7 tokens: t, h, e, ",
        repr(task.tokenizer.encode("the cat sat on it")): "Encoding(17 tokens: t, h, e, ",
        repr(task.tokenizer(["the", "a"])): "TextBatch(2 rows of 3 tokens, 4 of them not padding)",
        repr(task.stream("a", max_new_tokens=1)): "AnswerStream(",
        repr(inspect_checkpoint(task.ref)): f"CheckpointInfo({task.ref!r}, gpt2, decoder, text-generation, ",
        repr(task("a", max_new_tokens=2)): "GeneratedText(text=",
        repr(
            task.prepare("abc", max_new_tokens=2)
        ): "Prepared(input_ids, attention_mask of 3 tokens, GenerationOptions(",
        repr(pf.KeyValueCache(task.config, 2)): "KeyValueCache(0 positions, 2 rows)",
        repr(pf.explain(task, "abc")): f"Explanation({task.ref!r}, text-generation, 3 pieces",
        repr(
            pf.explain_steps(task, pf.Request("a"), steps=2)
        ): f"ExplainedSteps({task.ref!r}, Trace(greedy, 2 steps, gpt2",
    }
    for found, beginning in shown.items():
        assert found.startswith(beginning) and "\n" not in found and len(found) < 250
    assert task.model.num_parameters == sum(
        p.numel() for p in make.load(tiny("text-generation"), prepare=False).model.parameters()
    )


def test_long_values_are_short_in_a_line() -> None:
    many = Classification("a", 0.75, tuple(LabelScore(str(place), 0.001) for place in range(1000)))
    assert repr(many) == "Classification(label='a', score=0.75, scores=(1000 x LabelScore))"
    assert (
        brief("x" * 200) == repr("x" * 57 + "...") and brief((0.123456, 1.0)) == "(0.1235, 1)" and brief(None) == "None"
    )
    found = Results([many] * 50)
    assert repr(found).endswith("... 45 more]") and repr(Results([1, 2])) == "[1, 2]" and repr(Results()) == "[]"
    spans = repr(Spans.of("a b", [Entity("PER", 0.9, "a", 0, 1)] * 7))
    assert spans.startswith("Spans('a' PER 0.90, ") and spans.endswith(", ... 2 more)")


def test_pages_are_escaped() -> None:
    analysis = analyse(lambda texts: ((Entity("PER", 0.9, EVIL, 0, len(EVIL)),) for _ in texts), [Document("a", EVIL)])
    answers = Results([Classification(EVIL, 0.5, (LabelScore(EVIL, 0.5),))])
    spans = Results([Spans.of(EVIL, [Entity(EVIL, 0.5, "alert", 8, 13)])])
    for page in (table([{EVIL: EVIL, "n": 0.5}]), continued(EVIL, EVIL), answers._repr_html_(), spans._repr_html_()):
        assert "<script" not in page and "alert" in unescape(page)
    assert repr(analysis) == "Analysis(1 document, 1 phrase, 0 pairs)"
    framed = analysis._repr_html_()
    assert framed.startswith("<iframe srcdoc='") and "<script" not in unescape(framed) and framed.count("'") == 4


def test_long_tables_are_cut() -> None:
    rows = [{f"c{column}": "x" * 1000 for column in range(20)} for _ in range(100)]
    page = table(rows)
    assert page.count("<tr>") == 61 and page.count("<th") == 11 and "… 40 more" in page and len(page) < 300_000
    assert (
        "… 40 more" in blocks(["a"] * 100) and blocks(["a"]).count("<li>") == 1 and "<td style" in table([{"a": None}])
    )


def test_parts_of_inputs_are_columns_too(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Documents, choices, questions and labels: whatever is a list of texts."""
    pd = pytest.importorskip("pandas")
    words = ["the cat", "a dog", "paris"]
    choose, ask = make.load(tiny("multiple-choice")), make.load(tiny("question-answering"))
    nli = {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}}
    label = make.load(make.save("text-classification", tmp_path / "nli", **nli), task="zero-shot-classification")
    rank = make.load(make.save("text-classification", tmp_path / "one", id2label={"0": "score"}), task="text-ranking")
    for column in (pd.Series(words), np.array(words), dict.fromkeys(words).keys(), tuple(words)):
        assert choose(("who", column)) == choose(("who", words))
        assert rank({"query": "who", "documents": column}) == rank(("who", words))
        assert label("the cat", labels=column) == label("the cat", labels=words)
        assert label(column, labels=words) == label(words, labels=words)
    assert ask({"question": np.array(["who?", "where?"]), "context": "the cat"}) == ask((["who?", "where?"], "the cat"))
    score = make.load(tiny("text-generation")).score
    assert score(pd.Series(words)) == score(words) and type(score(words)) is Results
    assert len(score(words).to_dataframe()) == sum(map(len, words))


def test_completion_of_the_package_and_of_results(tiny: Callable[[str], Path]) -> None:
    assert set(dir(pf)) == set(pf.__all__) and {"load", "TASKS", "explain"} <= set(dir(pf))
    own: dict[Any, set[str]] = {
        Classification("a", 0.5, ()): {"label", "score", "scores"},
        make.load(tiny("embedding"))("a"): {"vector", "pooling", "normalized"},
    }
    for result, fields in own.items():
        shared = {"to_dict", "to_dataframe", "lines", "rows"}
        assert {name for name in dir(result) if not name.startswith("_")} == fields | shared


def test_rows_of_a_table_are_inputs(tiny: Callable[[str], Path]) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"question": ["who?", "where?"], "context": ["the cat sat", "in paris"]})
    ask = make.load(tiny("question-answering"))
    with pytest.raises(pf.InputError, match="the columns question, context") as caught:
        ask(frame)
    assert "table.to_dict('records')" in caught.value.fix
    assert ask(frame.to_dict("records")) == ask(list(zip(frame.question, frame.context, strict=True)))
