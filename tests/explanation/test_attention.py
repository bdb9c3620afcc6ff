"""Attention, the lens and the nearest words: every number is the reference's, or a plain formula of the model's own tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import plainformer
from plainformer.errors import InputError, UsageError
from plainformer.explanation import Attention, explain, explain_steps, nearest_tokens
from plainformer.explanation.one_pass import signal_inputs
from plainformer.explanation.request import Request
from tests.support import media
from tests.support import models as make
from tests.support.close import close
from tests.support.vocabularies import save_bytes

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def tasks(tiny: Callable[[str], Path]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def task(name: str) -> Any:
        if name not in made:
            made[name] = plainformer.load(tiny(name), backend="plain")
        return made[name]

    return task


def maps(attention: Attention | None, side: str) -> torch.Tensor:
    """All maps of a side, (L, H, T, S)."""
    assert attention is not None
    found = [torch.tensor(one.weights) for one in attention.maps if one.side == side]
    return torch.stack(found).unflatten(0, (attention.side(side).layers, -1))


def read_by(task: Any, item: Any, found: Any) -> dict[str, torch.Tensor]:
    """What the reference's model is given: the pieces' ids, or what the task makes of a picture or a recording."""
    inputs = signal_inputs(task, item) if not isinstance(item, str) or item.endswith(".wav") else {}
    if not inputs:
        inputs = {"input_ids": torch.tensor([[piece.token_id for piece in found.pieces]])}
    if task.config.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = task.prepare(item).inputs["decoder_input_ids"]
    return inputs


def eagerly(name: str, folder: Path) -> Any:
    return getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bart", "t5", "llama", "gemma2", "vit", "wav2vec2", "whisper"])
def test_maps_are_the_weights_of_the_reference(kind: str, tmp_path: Path) -> None:
    item: Any = TEXT
    if kind == "bert":
        make.bert(tmp_path, "BertForMaskedLM")
        model = eagerly("BertForMaskedLM", tmp_path)
        item = "the [MASK] sat"
    elif kind in ("gpt2", "bart", "t5"):
        getattr(make, kind)(tmp_path)
        name = {"gpt2": "GPT2LMHeadModel", "bart": "BartForConditionalGeneration", "t5": "T5ForConditionalGeneration"}
        model = eagerly(name[kind], tmp_path)
    elif kind in ("llama", "gemma2"):  # shared keys; a soft cap and windows shorter than the text
        config: dict[str, Any] = dict(make.TINY, **make.BYTE_IDS, num_key_value_heads=2, max_position_embeddings=64)
        more: dict[str, Any] = {} if kind == "llama" else dict(head_dim=8, sliding_window=5, query_pre_attn_scalar=8)
        family = kind.capitalize()
        made = getattr(transformers, f"{family}Config")(**config, **more)
        make.save_model(tmp_path, f"{family}ForCausalLM", made)
        save_bytes(tmp_path)
        model = eagerly(f"{family}ForCausalLM", tmp_path)
    elif kind == "vit":
        sizes = dict(make.TINY, image_size=32, patch_size=8, num_channels=3)
        make.save_model(tmp_path, "ViTForImageClassification", transformers.ViTConfig(**sizes))
        make.save_image(tmp_path)
        model, item = eagerly("ViTForImageClassification", tmp_path), torch.rand(3, 32, 32)
    elif kind == "wav2vec2":
        make.wav2vec2(tmp_path, "Wav2Vec2ForCTC")
        model, item = eagerly("Wav2Vec2ForCTC", tmp_path), str(media.write_wav(tmp_path / "a.wav"))
    else:
        make.whisper(tmp_path)
        model, item = eagerly("WhisperForConditionalGeneration", tmp_path), str(media.write_wav(tmp_path / "a.wav"))
    task: Any = make.load(tmp_path)
    found = explain(task, item, attention="all")
    assert found.attention is not None
    with torch.inference_mode():
        expected = model(**read_by(task, item, found), output_attentions=True)
    names = {"encoder": "encoder_attentions", "decoder": "decoder_attentions", "cross": "cross_attentions"}
    for side in found.attention.sides:
        theirs = getattr(expected, names[side.name] if len(found.attention.sides) == 3 else "attentions")
        ours = maps(found.attention, side.name)
        close(ours, torch.stack([layer[0] for layer in theirs]), f"{kind} {side.name}")
        close(ours.sum(-1), torch.ones(ours.shape[:-1]))
        assert ours.shape == (side.layers, side.heads, len(side.queries), len(side.keys))


def test_shared_layers_are_told_apart(tmp_path: Path) -> None:
    """ALBERT's layers are one module: each pass through it is a layer of its own."""
    sizes = dict(make.TINY, embedding_size=16, vocab_size=len(make.WORDPIECE), max_position_embeddings=40)
    make.save_model(tmp_path, "AlbertModel", transformers.AlbertConfig(**sizes))
    make.save_wordpiece(tmp_path)
    task = make.load(tmp_path)
    found = explain(task, "the cat", attention="all", nearest="last")
    ids = torch.tensor([[piece.token_id for piece in found.pieces]])
    with torch.inference_mode():
        output = eagerly("AlbertModel", tmp_path)(ids, output_attentions=True)
    close(maps(found.attention, "encoder"), torch.cat(output.attentions))
    # Hidden states are compared with the token vectors as they are projected to the hidden size.
    with torch.inference_mode():
        table = task.model.encoder.frontend.after_norm(task.model.encoder.frontend.tokens.weight)
    cosines = torch.nn.functional.cosine_similarity(output.last_hidden_state[0, 1], table, dim=-1)
    assert [word.token_id for word in found.nearest[1].neighbours] == cosines.topk(4).indices.tolist()


def test_the_summary_is_plain_arithmetic(tasks: Callable[[str], Any]) -> None:
    found = explain(tasks("chat"), TEXT, attention="all").attention
    assert found is not None
    w = maps(found, "decoder")[..., 1:, :].double()  # the first token has no choice
    for one in found.heads:
        own = w[one.layer, one.head]
        close(one.entropy, -(own.clamp_min(1e-300).log() * own).sum(-1).mean())
        close(one.first, own[:, 0].mean())
        rows = range(1, own.size(1))
        close(one.itself, sum(own[row - 1, row] for row in rows) / len(rows))
        close(one.previous, sum(own[row - 1, row - 1] for row in rows) / len(rows))
        assert one.next == 0
        best = max((float(own[q - 1, k]), q, k) for q in rows for k in range(own.size(1)))
        assert (one.strongest[0].query, one.strongest[0].key) == best[1:]
    shares = {"first": [head.first for head in found.heads], "itself": [head.itself for head in found.heads]}
    for place, one in enumerate(found.heads):
        assert (one.kind == "spread") == (max(one.first, one.special, one.itself or 0, one.previous or 0) < 0.5)
        if one.kind in shares:
            assert shares[one.kind][place] >= 0.5  # type: ignore[operator]


def test_special_tokens_and_neighbours_of_an_encoder(tasks: Callable[[str], Any]) -> None:
    found = explain(tasks("embedding"), "the cat sat", attention="all").attention
    assert found is not None and found.side("encoder").queries == ("[CLS]", "the", "cat", "sat", "[SEP]")
    w = maps(found, "encoder")
    for one in found.heads:
        own = w[one.layer, one.head]
        close(one.special, own[:, 4].mean())  # [SEP]; [CLS] is the first
        close(one.next, own.diagonal(1).mean())
        close(one.previous, own.diagonal(-1).mean())


def test_two_sequences(tasks: Callable[[str], Any]) -> None:
    task = tasks("text2text")
    steps = explain_steps(task, Request("the cat"), steps=4)
    ids = (*steps.trace.prompt_ids, *steps.trace.answers[0].token_ids)
    found = explain(task, "the cat", attention=["cross.1.2", "encoder.0.1", "0.3"], ids=ids)
    attention = found.attention
    assert attention is not None and [one.name for one in attention.maps] == ["encoder.0.1", "decoder.0.3", "cross.1.2"]
    side = attention.side("cross")
    assert len(side.queries) == len(ids) and len(side.keys) == len(found.pieces)
    cross = [one for one in attention.heads if one.side == "cross"]
    assert all(one.itself is None and one.previous is None and one.next is None for one in cross)
    encoder_ids = torch.tensor([[piece.token_id for piece in found.pieces]])
    output = task.model(encoder_ids, decoder_input_ids=torch.tensor([ids]), output_attentions=True)
    close(attention.map("cross.1.2").weights, output.cross_attentions[1][0, 2])
    assert attention.map("1.2") == attention.map("cross.1.2")
    with pytest.raises(UsageError, match=r"no maps are called 'cross\.0\.0'"):
        attention.map("cross.0.0")


@pytest.mark.parametrize("name", ["BartForSequenceClassification", "BartModel"])
def test_a_decoder_that_does_not_write_reads_the_input(tmp_path: Path, name: str) -> None:
    """Its last position is the one that is classified: the start token alone would not be what the task runs."""
    ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2)
    config = transformers.BartConfig(
        **make.SEQ2SEQ, vocab_size=make.BYTE_VOCABULARY, max_position_embeddings=64, num_labels=3, **ids
    )
    make.save_model(tmp_path, name, config)
    save_bytes(tmp_path, end=True)
    task = make.load(tmp_path)
    found = explain(task, "the cat", attention="all")
    input_ids = torch.tensor([[piece.token_id for piece in found.pieces]])
    with torch.inference_mode():
        output = eagerly(name, tmp_path)(input_ids, output_attentions=True)
    assert found.attention is not None and found.attention.side("decoder").queries[1:] == tuple(
        piece.text for piece in found.pieces[:-1]
    )
    for side, theirs in (("decoder", output.decoder_attentions), ("cross", output.cross_attentions)):
        close(maps(found.attention, side), torch.cat(theirs))


def test_a_generation_is_seen_whole(tasks: Callable[[str], Any]) -> None:
    """The pieces of a prompt keep their places in the text; what was written follows."""
    task = tasks("text-generation")
    steps = explain_steps(task, Request("the cat"), steps=3)
    ids = (*steps.trace.prompt_ids, *steps.trace.answers[0].token_ids)
    found = explain(task, "the cat", ids=ids, attention="1.3", lens=True)
    alone = explain(task, "the cat")
    assert found.pieces[: len(alone.pieces)] == alone.pieces
    assert [piece.token_id for piece in found.pieces] == list(ids) and found.pieces[-1].start is None
    logits = task.model(torch.tensor([ids])).logits[0, -1]
    assert found.next_tokens[0].token_id == int(logits.argmax())
    other = explain(task, "dog", ids=ids)
    assert all(piece.start is None for piece in other.pieces)


def test_only_what_is_asked_for(tasks: Callable[[str], Any]) -> None:
    task = tasks("chat")
    plain, seen = explain(task, TEXT), explain(task, TEXT, attention=True, lens=True, nearest=1)
    assert plain.next_tokens == seen.next_tokens and plain.steps == seen.steps and plain.pieces == seen.pieces
    assert not {"attention", "lens", "nearest"} & set(plain.to_dict())
    assert {"attention", "lens", "nearest"} <= set(seen.to_dict())
    assert seen.attention is not None and seen.attention.maps == () and len(seen.attention.heads) == 8
    part = explain(task, TEXT, attention="1.0", map_size=3).attention
    whole = explain(task, TEXT, attention="1.0").attention
    assert part is not None and whole is not None and part.heads == whole.heads
    assert part.maps[0].weights == tuple(row[:3] for row in whole.maps[0].weights[:3])
    assert not any(module._forward_hooks for module in task.model.modules())


@pytest.mark.parametrize("name", ["chat", "text-generation", "text2text", "fill-mask"])
def test_the_lens_ends_with_the_prediction(tasks: Callable[[str], Any], name: str) -> None:
    task = tasks(name)
    found = explain(task, "the [MASK] sat [MASK]" if name == "fill-mask" else TEXT, lens=True, top_k=6)
    if name == "fill-mask":
        answers = task("the [MASK] sat [MASK]", top_k=6)
        assert len(found.lens) == 2
        for reading, answer in zip(found.lens, answers, strict=True):
            last = reading.layers[-1].tokens
            assert [one.token_id for one in last] == [one.token_id for one in answer.candidates]
            assert [one.probability for one in last] == [one.score for one in answer.candidates]
    else:
        (reading,) = found.lens
        assert reading.layers[-1].tokens == found.next_tokens and reading.predicted == found.next_tokens[0]
    for reading in found.lens:
        assert [layer.layer for layer in reading.layers] == [None, 0, 1]
        assert reading.layers[-1].rank == 1


def test_the_lens_reads_each_layer_by_norm_and_head(tmp_path: Path) -> None:
    """As with the reference's modules: of a decoder its final norm and matrix, of BERT its head's transform."""
    make.gpt2(tmp_path / "gpt2", n_layer=3)
    model = eagerly("GPT2LMHeadModel", tmp_path / "gpt2")
    found = explain(make.load(tmp_path / "gpt2"), TEXT, lens=True, top_k=4)
    ids = torch.tensor([[piece.token_id for piece in found.pieces]])
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
        for layer, state in zip(found.lens[0].layers[:-1], states[:-1], strict=True):
            p = model.lm_head(model.transformer.ln_f(state[0, -1])).softmax(-1)
            best = p.topk(4)
            assert [one.token_id for one in layer.tokens] == best.indices.tolist()
            close([one.probability for one in layer.tokens], best.values)
            final = found.lens[0].predicted.token_id
            close(layer.probability, p[final])
            assert layer.rank == 1 + int((p > p[final]).sum())
    make.bert(tmp_path / "bert", "BertForMaskedLM")
    bert = eagerly("BertForMaskedLM", tmp_path / "bert")
    found = explain(make.load(tmp_path / "bert"), "the [MASK] sat", lens=True, top_k=4)
    ids = torch.tensor([[piece.token_id for piece in found.pieces]])
    with torch.inference_mode():
        states = bert(ids, output_hidden_states=True).hidden_states
        for layer, state in zip(found.lens[0].layers, states, strict=True):
            best = bert.cls(state[0, found.lens[0].position]).softmax(-1).topk(4)
            assert [one.token_id for one in layer.tokens] == best.indices.tolist()
            close([one.probability for one in layer.tokens], best.values)


def test_nearest_words(tasks: Callable[[str], Any]) -> None:
    task = tasks("embedding")
    table = task.model.encoder.frontend.tokens.weight.detach()
    states = task.model(make.encoded(task, ["the cat"]).input_ids, output_hidden_states=True).hidden_states
    for place, vectors in (("embedding", None), (0, states[1][0]), (1, states[2][0]), ("last", states[-1][0])):
        found = explain(task, "the cat", nearest=place).nearest
        for one, piece in zip(found, explain(task, "the cat").pieces, strict=True):
            vector = table[piece.token_id] if vectors is None else vectors[one.index]
            cosines = torch.nn.functional.cosine_similarity(vector, table, dim=-1)
            if vectors is None:
                cosines[piece.token_id] = -1  # the token itself does not count
            best = cosines.topk(4)
            assert [word.token_id for word in one.neighbours] == best.indices.tolist()
            close([word.cosine for word in one.neighbours], best.values)
            assert one.neighbours[0].token == task.tokenizer.id_to_token(one.neighbours[0].token_id)
    (words,) = nearest_tokens(task, table[7], top_k=3)
    assert words[0].token_id == 7 and words[0].cosine == pytest.approx(1)
    assert [row[0].token_id for row in nearest_tokens(task, table[6:9].numpy(), top_k=1)] == [6, 7, 8]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chat", {"attention": "2.0"}, "there is no such head"),
        ("chat", {"attention": "0.4"}, "layers are 0 to 1, heads 0 to 3"),
        ("chat", {"attention": "encoder.0.0"}, "this model has no 'encoder'\n  → it has decoder"),
        ("chat", {"attention": "first"}, "does not name a head"),
        ("text2text", {"attention": "middle.0.0"}, "it has encoder and decoder and cross"),
        ("embedding", {"lens": True}, "lens has no effect in feature-extraction"),
        ("text-classification", {"lens": True}, "which predicts no tokens"),
        ("chat", {"nearest": 2}, "nearest=2 names no layer"),
        ("chat", {"nearest": "first"}, "give 0 to 1"),
        ("chat", {"map_size": 3}, "map_size has no effect"),
        ("chat", {"map_size": 3, "attention": True}, "map_size has no effect"),
        ("chat", {"map_size": 0, "attention": "all"}, "map_size=0 is not a whole number"),
        ("embedding", {"ids": [3]}, "ids has no effect in feature-extraction, which generates no text"),
        ("fill-mask", {"lens": True}, "no mask token in the input"),
    ],
)
def test_what_has_no_effect(tasks: Callable[[str], Any], name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        explain(tasks(name), "the cat", **options)
    assert message in str(error.value)


def test_vectors_that_do_not_fit(tasks: Callable[[str], Any]) -> None:
    with pytest.raises(UsageError, match="this model's have width 32"):
        nearest_tokens(tasks("embedding"), torch.zeros(31))
    with pytest.raises(UsageError, match="reads no tokens"):
        nearest_tokens(tasks("image-embedding"), torch.zeros(32))
    with pytest.raises(UsageError, match="nearest has no effect on images"):
        explain(tasks("image-embedding"), torch.rand(3, 32, 32), nearest="last")
    with pytest.raises(InputError):
        explain(tasks("chat"), "", attention=True)


def test_too_many_numbers_are_refused_before_anything_runs(
    tasks: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plainformer.explanation.attention.MAX_WEIGHTS", 100)
    with pytest.raises(UsageError, match="name fewer heads"):
        explain(tasks("chat"), TEXT, attention="all")
    assert explain(tasks("chat"), TEXT, attention=True).attention is not None
    monkeypatch.setattr("plainformer.explanation.attention.MAX_LAYER", 4 * 5 * 5)
    with pytest.raises(InputError, match=r"4 heads x 22 x 22 weights, takes .* GiB\n  → give a shorter text"):
        explain(tasks("chat"), TEXT, attention=True)
    monkeypatch.undo()
    assert explain(tasks("chat"), TEXT, attention="all", map_size=3).attention is not None
