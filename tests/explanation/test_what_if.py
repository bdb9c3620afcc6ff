"""What-ifs: what is changed is really changed, and the numbers that are shown are the models' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import plainformer
from plainformer.errors import InputError, UsageError
from plainformer.explanation import Request, explain_steps, parse_change, what_if
from tests.support import models as make
from tests.support.close import close

GENERATING = ("text-generation", "chat", "text2text")


@pytest.fixture(scope="module")
def tasks(tiny: Callable[[str], Path]) -> dict[str, Any]:
    names = (*GENERATING, "text-classification", "token-classification", "fill-mask", "embedding")
    more = ("question-answering", "multiple-choice", "image-classification")
    return {name: plainformer.load(tiny(name), backend="plain") for name in (*names, *more)}


def request(text: Any, **options: Any) -> Request:
    return Request(text, options=options)


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 2.0, "min_new_tokens": 4}]
)
def test_no_cache_changes_nothing(tasks: dict[str, Any], name: str, options: dict[str, Any]) -> None:
    found = what_if(tasks[name], request("the cat", max_new_tokens=8, **options), "no-cache")
    assert found.same and found.first_difference is None
    assert found.baseline.token_ids == found.changed.token_ids and len(found.baseline.token_ids) > 1
    close((found.logit_change, found.kl_divergence), (0, 0))


@pytest.mark.parametrize("name", ["text-generation", "chat"])
def test_padding_that_a_decoder_sees(tasks: dict[str, Any], name: str) -> None:
    task = tasks[name]
    found = what_if(task, request("the cat", max_new_tokens=5), "attend-to-padding")
    ids = make.encoded(task, ["the cat"]).input_ids
    with torch.inference_mode():
        alone = task.model(ids).logits[0, -1]
        seen = task.model(torch.cat((torch.zeros(1, 8, dtype=torch.long), ids), 1)).logits[0, -1]
    close(found.logit_change, (seen - alone).abs().max())
    assert found.logit_change > 0.01
    p, q = alone.double().log_softmax(-1), seen.double().log_softmax(-1)
    close(found.kl_divergence, (p.exp() * (p - q)).sum())
    assert [token.token_id for token in found.changed.next_tokens] == seen.topk(5).indices.tolist()
    close(found.baseline.next_tokens[0].probability, p.exp().max())
    masked = float(found.notes[0].split("logits by ")[1].split()[0])
    close(masked, 0)


def test_padding_that_an_encoder_sees(tasks: dict[str, Any]) -> None:
    found = what_if(tasks["text2text"], request("the cat", max_new_tokens=5), "attend-to-padding")
    assert found.logit_change > 0.01
    with pytest.raises(InputError, match="8 padding tokens are 48; the model learned 40 positions"):
        what_if(tasks["text-classification"], request("the " * 38), "attend-to-padding")


@pytest.mark.parametrize("name", GENERATING)
def test_a_forced_beginning(tasks: dict[str, Any], name: str) -> None:
    task = tasks[name]
    found = what_if(task, request("the cat", max_new_tokens=4), "decoder-prefix=dog")
    assert found.changed.text is not None and found.changed.text.startswith("dog") and not found.same
    prefix = task.tokenizer.encode("dog", add_special_tokens=False).input_ids
    assert list(found.changed.token_ids[:3]) == prefix and len(found.changed.token_ids) == 7
    option = "decoder_prefix" if name == "text2text" else "answer_prefix"
    assert found.changed.text == task("the cat", max_new_tokens=4, **{option: "dog"}).text
    # How likely the model finds the beginning, token by token.
    log_p = 0.0
    for count in range(len(prefix)):
        before = torch.tensor([prefix[:count]], dtype=torch.long)
        ids = make.encoded(task, ["the cat"]).input_ids
        start = torch.tensor([[2]])
        with torch.inference_mode():
            if name == "text2text":
                logits = task.model(ids, decoder_input_ids=torch.cat((start, before), 1)).logits[0, -1]
            else:
                logits = task.model(torch.cat((ids, before), 1)).logits[0, -1]
        log_p += float(logits.log_softmax(-1)[prefix[count]])
    said = float(found.notes[0].split()[-1])
    assert said == pytest.approx(float(torch.tensor(log_p).exp()), rel=0.05)


@pytest.mark.parametrize(("name", "which"), [("chat", "1.2"), ("text2text", "0.3"), ("text2text", "encoder.1.0")])
def test_a_head_that_gives_nothing(tasks: dict[str, Any], name: str, which: str) -> None:
    """As when its columns of the output projection were zero."""
    task = tasks[name]
    found = what_if(task, request("the cat", max_new_tokens=4), f"mask-head={which}")
    assert found.logit_change > 1e-4
    *side, layer, head = which.split(".")
    stack = task.model.encoder if side else task.model.decoder
    weight = stack.layers[int(layer)].attention.out.weight
    columns = slice(int(head) * 8, int(head) * 8 + 8)
    before = weight.detach().clone()
    try:
        weight.data[:, columns] = 0
        expected = task("the cat", max_new_tokens=4).text
        explained = explain_steps(task, request("the cat"), steps=1)
    finally:
        weight.data.copy_(before)
    assert found.changed.text == expected
    assert [t.token_id for t in found.changed.next_tokens] == list(explained.trace.steps[0].ladders[0].top_ids)
    again = what_if(task, request("the cat", max_new_tokens=4), "no-cache")
    assert again.baseline == found.baseline  # the mask is gone


def test_other_options(tasks: dict[str, Any]) -> None:
    task = tasks["chat"]
    sampling = request("the cat", max_new_tokens=6, do_sample=True, seed=3, temperature=1.0)
    found = what_if(task, sampling, "temperature=0.1")
    assert found.logit_change == 0 and found.probability_change is not None and found.probability_change > 0
    assert found.changed.text == task("the cat", max_new_tokens=6, do_sample=True, seed=3, temperature=0.1).text
    same = what_if(task, sampling, "temperature=none")
    assert same.same and same.kl_divergence == 0
    top = what_if(task, sampling, "top-k=1")
    assert top.kl_divergence is None and top.changed.next_tokens[0].probability == 1  # the rest is impossible
    beams = what_if(task, request("the cat", max_new_tokens=6), "num_beams=3")
    assert beams.changed.text == task("the cat", max_new_tokens=6, num_beams=3).text
    stop = what_if(task, request("the cat", max_new_tokens=6), "stop=zz")
    assert stop.same
    unseeded = what_if(task, request("the cat", max_new_tokens=6, do_sample=True), "no-cache")
    assert unseeded.same  # both draw alike


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("text-classification", "the cat"),
        ("token-classification", "the cat"),
        ("fill-mask", "the [MASK] sat"),
        ("embedding", "the cat"),
        ("question-answering", ("who", "the cat sat")),
        ("multiple-choice", ("the", ["cat", "dog"])),
    ],
)
def test_answers_in_one_pass(tasks: dict[str, Any], name: str, item: Any) -> None:
    task = tasks[name]
    for change in ("attend-to-padding", "mask-head=1.3"):
        found = what_if(task, request(item), change)
        answer = task(item)
        plain = [a.to_dict() for a in answer] if isinstance(answer, tuple) else answer.to_dict()
        assert found.baseline.answer == plain and not found.same
        assert found.logit_change > 1e-4
        assert (found.kl_divergence is not None) == (
            name in ("text-classification", "token-classification", "fill-mask")
        )
        if change == "attend-to-padding":
            close(float(found.notes[0].split(" by ")[1].split()[0]), 0)
    with pytest.raises(UsageError, match="answers in one pass"):
        what_if(task, request(item), "no-cache")


def test_the_numbers_of_a_classification(tasks: dict[str, Any]) -> None:
    task = tasks["text-classification"]
    found = what_if(task, request("the cat"), "attend-to-padding")
    batch = make.encoded(task, ["the cat"])
    ids = torch.cat((batch.input_ids, torch.zeros(1, 8, dtype=torch.long)), 1)
    with torch.inference_mode():
        alone, seen = task.model(batch.input_ids).logits[0], task.model(ids).logits[0]
    close(found.logit_change, (seen - alone).abs().max())
    scores = [part["score"] for part in found.changed.answer["scores"]]
    close(scores, seen.softmax(-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no-cash", "did you mean 'no-cache'"),
        ("temprature=1", "did you mean 'temperature'"),
        ("attend-to-padding=8", "takes no value"),
        ("mask-head", "needs a value"),
        ("mask-head=0", "layers are 0 to 1, heads 0 to 3"),
        ("mask-head=2.0", "no such head"),
        ("mask-head=a.b", "does not name a head"),
        ("mask-head=encoder.0.0", "it has decoder"),
        ("temperature=0.5", "do_sample=True takes it"),
        ("cache-kind=int9", "did you mean 'int8'"),
        ("num-beams=two", "num_beams='two' is not a whole number"),
    ],
)
def test_wrong_changes(tasks: dict[str, Any], change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        what_if(tasks["chat"], request("the cat"), change)


def test_values_as_they_are_written() -> None:
    assert parse_change("top_k=5").value == 5 and parse_change("temperature=0.5").value == 0.5
    assert parse_change("do-sample=true").value is True and parse_change("eos-ids=[1, 2]").value == [1, 2]
    assert parse_change("stop=a=b").value == ["a=b"] and parse_change("regex=[ab]+").value == "[ab]+"
    assert parse_change("decoder-prefix=5").value == "5"
    assert str(parse_change("no-cache")) == "no-cache" and str(parse_change("top_k=5")) == "top-k=5"


def test_images_have_no_padding(tasks: dict[str, Any], tmp_path: Path) -> None:
    from tests.support.media import write_png

    picture = str(write_png(tmp_path / "a.png"))
    with pytest.raises(UsageError, match="reads no text"):
        what_if(tasks["image-classification"], request(picture), "attend-to-padding")
    assert what_if(tasks["image-classification"], request(picture), "mask-head=0.0").logit_change > 1e-5


def test_speech_that_is_written(tmp_path: Path) -> None:
    from plainformer.explanation import Trace, replay_steps
    from tests.support.media import SECONDS
    from tests.support.models import whisper

    whisper(tmp_path)
    task = make.load(tmp_path)
    asked = request(SECONDS[0], max_new_tokens=6)
    explained = explain_steps(task, asked, steps=6)
    assert explained.texts[0].strip() == task(SECONDS[0], max_new_tokens=6).text
    trace = Trace.from_dict(explained.to_dict())
    assert list(trace.needs) == ["input_features"]
    assert replay_steps(task, trace, asked).generation.token_ids[0] == trace.answers[0].token_ids
    assert what_if(task, asked, "no-cache").same
    with pytest.raises(UsageError, match="reads no text"):
        what_if(task, asked, "attend-to-padding")
