"""Encoder-decoder text families against the reference, for each head and each value that changes the computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from plainformer.errors import InputError, UsageError
from plainformer.loading import load_model
from plainformer.model.inputs import shift_right
from plainformer.saving import save_model
from tests.support.cases.encoder_decoders import BART, EOS, GATED, LM, ONE_OF_EACH, SINUSOIDAL, T5, case, untie_head
from tests.support.parity import PAD, VOCABULARY, Case, build, check_everything, close, load_ours, make_inputs


@pytest.mark.parametrize("case", [*BART, *SINUSOIDAL, *T5], ids=str)
def test_encoder_decoder(case: Case, tmp_path: Path) -> None:
    check_everything(case, tmp_path)


one_of_each = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)


@one_of_each
@torch.no_grad()
def test_encoder_output_is_reused(case: Case, tmp_path: Path) -> None:
    """Decoding from an earlier encoder output is the whole run, also from `encode` and with padding on the left."""
    ours = load_ours(build(case), tmp_path)
    inputs = make_inputs(case)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, :3] = 0
    whole = ours(**inputs, attention_mask=mask)
    targets = {"decoder_input_ids": inputs["decoder_input_ids"]}
    again = ours(**targets, encoder_output=whole.encoder)
    alone = ours(**targets, encoder_output=ours.encode(inputs["input_ids"], mask))
    assert torch.equal(again.logits, whole.logits)
    assert torch.equal(alone.logits, whole.logits)


@one_of_each
@torch.no_grad()
def test_decoder_padding_on_the_left(case: Case, tmp_path: Path) -> None:
    """A target padded on the left gives what the reference gives for the target alone."""
    reference = build(case)
    ours = load_ours(reference, tmp_path)
    inputs = make_inputs(case, batch=1)
    targets = inputs["decoder_input_ids"]
    padded = torch.nn.functional.pad(targets, (4, 0), value=PAD)
    mask = torch.nn.functional.pad(torch.ones_like(targets), (4, 0))
    found = ours(inputs["input_ids"], decoder_input_ids=padded, decoder_attention_mask=mask)
    close(found.logits[:, 4:], reference(**inputs).logits, "target padded on the left")


@one_of_each
@torch.no_grad()
def test_vectors_in_place_of_ids(case: Case, tmp_path: Path) -> None:
    """`inputs_embeds` and `decoder_inputs_embeds` against the reference's.

    Marian's and Pegasus's decoders scale the vectors they are given and their encoders do not; all others scale none.
    Here vectors are what the ids stand for, scaled, on both sides: so for those two the reference gets unscaled ones.
    """
    reference = build(case)
    ours = load_ours(reference, tmp_path)
    inputs = make_inputs(case)
    sources = ours.embed_tokens(inputs["input_ids"])
    targets = ours.decoder.frontend.embed(inputs["decoder_input_ids"])
    expected = reference(**inputs).logits
    close(ours(inputs_embeds=sources, decoder_inputs_embeds=targets).logits, expected, "vectors for ids")
    factor = 32**0.5 if case.name in ("marian", "pegasus") else 1.0
    theirs = reference(inputs_embeds=sources, decoder_inputs_embeds=targets / factor).logits
    close(ours(inputs_embeds=sources, decoder_inputs_embeds=targets).logits, theirs, "vectors against the reference's")


@one_of_each
@torch.no_grad()
def test_cross_head_mask(case: Case, tmp_path: Path) -> None:
    """Silencing a head of the cross-attention is zeroing its columns of the output projection."""
    ours = load_ours(build(case), tmp_path)
    stack = ours.decoder.config
    inputs = make_inputs(case)
    mask = torch.ones(stack.num_layers, stack.num_heads)
    mask[1, 1] = 0
    masked = ours(**inputs, cross_head_mask=mask).logits
    assert not torch.equal(masked, ours(**inputs).logits)
    ours.decoder.layers[1].cross.out.weight[:, stack.head_dim : 2 * stack.head_dim] = 0
    close(masked, ours(**inputs).logits, "cross_head_mask")
    with pytest.raises(UsageError, match="cross_head_mask"):
        ours(**inputs, cross_head_mask=mask[:1])


SHIFTS = [
    case("bart", "BartModel", "BartConfig"),
    case(
        "mbart", "MBartModel", "MBartConfig", decoder_start_token_id=7
    ),  # which the reference's shift does not look at
    case("t5", "T5ForQuestionAnswering", "T5Config"),
]


@pytest.mark.parametrize("case", SHIFTS, ids=str)
@torch.no_grad()
def test_decoder_input_is_the_shifted_input(case: Case, tmp_path: Path) -> None:
    """Where a model makes its decoder's input from its own, so do we; padding on either side changes nothing."""
    reference = build(case)
    ours = load_ours(reference, tmp_path)
    ids = make_inputs(case)["input_ids"]
    expected = reference(input_ids=ids)
    found = ours(ids)
    expected = expected.start_logits if case.name == "t5" else expected.last_hidden_state
    close(found.logits[..., 0] if case.name == "t5" else found.last_hidden_state, expected, "default decoder input")
    for left, right in ((3, 0), (0, 3)):
        padded = torch.nn.functional.pad(ids[:1], (left, right), value=PAD)
        mask = torch.nn.functional.pad(torch.ones_like(ids[:1]), (left, right))
        together = ours(padded, mask).last_hidden_state
        close(together[:, left : left + ids.size(1)], found.last_hidden_state[:1], f"padded by {left}, {right}")


def test_shift_right(tmp_path: Path) -> None:
    """A target behind the start id (BART) or behind its own last token, the language code (mBART)."""
    targets = torch.tensor([[11, 12, EOS, 50], [21, EOS, 51, PAD]])
    mbart = load_ours(build(case("mbart", "MBartModel", "MBartConfig")), tmp_path / "mbart").config
    assert shift_right(targets, mbart).tolist() == [[50, 11, 12, EOS], [51, 21, EOS, 51]]
    left = torch.tensor([[11, 12, EOS, 50], [PAD, 21, EOS, 51]])
    found = shift_right(left, mbart, (left != PAD).long())
    assert found.tolist() == [[50, 11, 12, EOS], [PAD, 51, 21, EOS]]
    bart = load_ours(build(case("bart", "BartModel", "BartConfig")), tmp_path / "bart").config
    assert shift_right(targets, bart).tolist() == [[EOS, 11, 12, EOS], [EOS, 21, EOS, 51]]


@one_of_each
@torch.no_grad()
def test_longer_than_learned(case: Case, tmp_path: Path) -> None:
    """A learned table is a limit, and the error says what to do; sinusoids and distances have none."""
    ours = load_ours(build(case), tmp_path)
    long = torch.randint(5, VOCABULARY, (1, 65), generator=torch.Generator().manual_seed(0))
    short = long[:, :5]
    if case.name not in ("bart", "mbart"):
        assert torch.isfinite(ours(long, decoder_input_ids=long).logits).all()
        return
    ours(long[:, :64], decoder_input_ids=long[:, :64])
    for inputs in ({"input_ids": long, "decoder_input_ids": short}, {"input_ids": short, "decoder_input_ids": long}):
        with pytest.raises(InputError, match="65 tokens is longer than the 64") as caught:
            ours(**inputs)
        assert "truncate" in str(caught.value) and "stride" in str(caught.value)


def rewrite(folder: Path, weights: Any, **raw: Any) -> None:
    """Change a saved checkpoint: its tensors by a function, its config.json by fields; None takes a field out."""
    path = folder / "model.safetensors"
    save_file(weights(load_file(path)), path, {"format": "pt"})
    file = folder / "config.json"
    changed = {**json.loads(file.read_text()), **raw}
    file.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


@one_of_each
@torch.no_grad()
def test_extras_of_old_files(case: Case, tmp_path: Path) -> None:
    """Second copies of the words' table, stored sinusoids, fairseq's version numbers and T5's unused bias."""
    reference = build(case)
    expected = load_ours(reference, tmp_path)(**make_inputs(case)).logits
    base = "" if "t5" in case.name else "model."

    def add(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        table = weights[f"{base}shared.weight"]
        for name in ("lm_head.weight", f"{base}encoder.embed_tokens.weight", f"{base}decoder.embed_tokens.weight"):
            weights[name] = table.clone()
        if base:
            weights[f"{base}encoder.version"] = weights[f"{base}decoder.version"] = torch.tensor([3.0])
        else:
            bias = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
            weights[bias] = torch.zeros(8, 4)
        if case.name in ("marian", "pegasus", "m2m"):
            for side in ("encoder", "decoder"):
                weights[f"model.{side}.embed_positions.weight"] = torch.zeros(64, 32)
        return {name: tensor.clone() for name, tensor in weights.items()}

    rewrite(tmp_path, add)
    close(load_model(tmp_path, backend="plain")(**make_inputs(case)).logits, expected, "logits")

    def keep_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        copies = (f"{base}shared.weight", f"{base}encoder.embed_tokens.weight", f"{base}decoder.embed_tokens.weight")
        return {name: tensor for name, tensor in weights.items() if name not in copies}

    rewrite(tmp_path, keep_one)  # only the head's copy is left
    close(load_model(tmp_path, backend="plain")(**make_inputs(case)).logits, expected, "logits")


@torch.no_grad()
def test_published_t5_1_1(tmp_path: Path) -> None:
    """Flan-T5's own files untie the head by a false `tie_word_embeddings`, which stops the scaling too."""
    reference = build(case("t5", f"T5{LM}", "T5Config", change=untie_head, tie_word_embeddings=False, **GATED))
    reference.save_pretrained(tmp_path)
    rewrite(tmp_path, dict, tie_word_embeddings=False, scale_decoder_outputs=None, is_gated_act=None, dense_act_fn=None)
    ours = load_model(tmp_path, backend="plain")
    inputs = make_inputs(T5[1])
    assert ours.config.head.scale == 1.0 and ours.config.decoder.activation == "gelu_tanh"
    close(ours(**inputs).logits, reference(**inputs).logits, "logits")
    save_model(ours, tmp_path / "ours")
    loaded = type(reference).from_pretrained(tmp_path / "ours")
    close(loaded(**inputs).logits, reference(**inputs).logits, "logits of what was saved")


@torch.no_grad()
def test_untied_file_with_a_shared_table(tmp_path: Path) -> None:
    """Older savers stored one table for both stacks even where config.json unties the output."""
    reference = build(case("bart", f"Bart{LM}", "BartConfig", change=untie_head))
    reference.save_pretrained(tmp_path)
    rewrite(tmp_path, dict, tie_word_embeddings=False)
    inputs = make_inputs(BART[1])
    ours = load_model(tmp_path, backend="plain")
    close(ours(**inputs).logits, reference(**inputs).logits, "logits")
    save_model(ours, tmp_path / "ours")
    loaded, info = type(reference).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    close(loaded(**inputs).logits, reference(**inputs).logits, "logits of what was saved")


@torch.no_grad()
def test_other_heads_from_one_checkpoint(tmp_path: Path) -> None:
    """A base model's file gives a language model, whose head is tied; a language model's gives the base model."""
    inputs = make_inputs(BART[0])
    for name, config_class, start in (("Bart", "BartConfig", "bart"), ("T5", "T5Config", "t5")):
        base = build(case(start, f"{name}Model", config_class))
        base.save_pretrained(tmp_path / name)
        expected = getattr(transformers, f"{name}{LM}").from_pretrained(tmp_path / name)(**inputs).logits
        close(load_model(tmp_path / name, head="seq2seq_lm")(**inputs).logits, expected, "head over a base model")
        whole = build(case(start, f"{name}{LM}", config_class))
        whole.save_pretrained(tmp_path / f"{name}-lm")
        expected = getattr(transformers, f"{name}Model").from_pretrained(tmp_path / f"{name}-lm")(**inputs)
        found = load_model(tmp_path / f"{name}-lm", head="none")(**inputs)
        close(found.last_hidden_state, expected.last_hidden_state, "base model of a language model")


@torch.no_grad()
def test_t5_encoder_of_a_whole_checkpoint(tmp_path: Path) -> None:
    """`architectures` may ask for the encoder alone of a file that has both stacks."""
    reference = build(T5[1])
    reference.save_pretrained(tmp_path)
    rewrite(tmp_path, dict, architectures=["T5EncoderModel"])
    ours = load_model(tmp_path)
    assert ours.decoder is None
    ids = make_inputs(T5[1])["input_ids"]
    close(ours(ids).last_hidden_state, reference.encoder(ids).last_hidden_state, "encoder")


@one_of_each
def test_heads_that_a_family_lacks(case: Case, tmp_path: Path) -> None:
    build(case).save_pretrained(tmp_path)
    for head in ("causal_lm", "masked_lm", "choice"):
        with pytest.raises(UsageError, match=f"no '{head}' head"):
            load_model(tmp_path, head=head)
