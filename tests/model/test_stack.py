"""Encoder outputs that grow, masked heads, images of any size: models built from a configuration alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plainformer.config import (
    HeadConfig,
    MelFrontend,
    ModelConfig,
    PatchFrontend,
    RopeConfig,
    StackConfig,
    TokenFrontend,
    WaveFrontend,
)
from plainformer.errors import InputError, UsageError
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.search import generate
from plainformer.model.initial import initialise
from plainformer.model.inputs import READS, StackInput
from plainformer.model.stack import StackOutput, join_outputs
from plainformer.model.transformer import Transformer
from tests.support.close import apart, close

VOCABULARY = 50


def stack(layers: int = 2, **values: object) -> StackConfig:
    given = {"num_heads": 4, "ffn_size": 48, **values}
    tokens = TokenFrontend(vocab_size=VOCABULARY, embedding_size=32)
    return StackConfig(frontend=given.pop("frontend", tokens), hidden_size=32, num_layers=layers, **given)  # type: ignore[arg-type]


def seq2seq(layers: int = 2) -> Transformer:
    rope = (RopeConfig(theta=10000.0, dim=8),)
    config = ModelConfig(
        "test",
        encoder=stack(rope=rope * 2),
        decoder=stack(layers, direction="causal", cross_attention=True, rope=rope * layers),
        head=HeadConfig("seq2seq_lm", out_size=VOCABULARY, out_bias=False),
        decoder_start_id=0,
    )
    return initialise(Transformer(config), std=0.3).eval()


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_joined_outputs_are_concatenated() -> None:
    model = seq2seq()
    first, more = model.encode(ids(2, 5)), model.encode(ids(2, 3, seed=1), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    joined = join_outputs(first, more)
    assert torch.equal(joined.last_hidden_state, torch.cat((first.last_hidden_state, more.last_hidden_state), dim=1))
    assert joined.real_BT is not None
    assert joined.real_BT.tolist() == [[True] * 8, [True] * 7 + [False]]
    assert join_outputs(more, first).real_BT.tolist()[1] == [True, True, False, *[True] * 5]  # type: ignore[union-attr]
    assert join_outputs(first, first).real_BT is None
    both = StackOutput(torch.cat((first.last_hidden_state, more.last_hidden_state), dim=1), joined.real_BT)
    decoder_ids = ids(2, 4, seed=2)
    logits = [model(decoder_input_ids=decoder_ids, encoder_output=encoded).logits for encoded in (joined, both)]
    assert torch.equal(*logits)


@torch.no_grad()
def test_masked_positions_of_a_joined_output_are_not_seen() -> None:
    model = seq2seq()
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    padded, real = model.encode(ids(1, 5), mask), model.encode(ids(1, 5)[:, :3])
    more = model.encode(ids(1, 4, seed=1))
    logits = [
        model(decoder_input_ids=ids(1, 3, seed=2), encoder_output=join_outputs(part, more)).logits
        for part in (padded, real)
    ]
    close(*logits)


@torch.no_grad()
def test_positions_may_go_on() -> None:
    """A part that attends to itself alone, at the positions that it has in the whole: equal to a row padded up to there."""
    learned = TokenFrontend(vocab_size=VOCABULARY, embedding_size=32, positions="learned", max_positions=16)
    model = initialise(Transformer(ModelConfig("test", encoder=stack(frontend=learned))), std=0.3).eval()
    whole = ids(1, 8)
    continued = model.encode(whole[:, 5:], position_ids=torch.arange(5, 8)[None]).last_hidden_state
    assert apart(continued, model.encode(whole[:, 5:]).last_hidden_state) > 1e-2
    # By hand: a position's vector is added to its token's, so tokens that carry the difference start at position 0.
    table = model.main.frontend.positions.weight
    moved = model.embed_tokens(whole[:, 5:]) + table[5:8] - table[:3]
    expected = model.encode(inputs_embeds=moved).last_hidden_state
    close(continued, expected)


@torch.no_grad()
def test_a_decoder_reads_parts_whose_positions_go_on() -> None:
    """Rope sees distances alone: within a part, the start does not matter."""
    model = seq2seq()
    whole = ids(1, 8)
    first, again = model.encode(whole[:, :5]), model.encode(whole[:, 5:])
    continued = model.encode(whole[:, 5:], position_ids=torch.arange(5, 8)[None])
    close(continued.last_hidden_state, again.last_hidden_state)
    found = [generate(model, encoder_output=join_outputs(first, part), max_new_tokens=3) for part in (continued, again)]
    assert found[0].token_ids == found[1].token_ids and len(found[0].token_ids[0]) == 3


@torch.no_grad()
def test_layers_run_in_parts_as_in_one_go() -> None:
    """As the stages of a pipeline would: what the first part gave is all that the second needs."""
    model = seq2seq(layers=4)
    inputs = StackInput(input_ids=ids(2, 6))
    encoded = model.encode(ids(2, 5, seed=1), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    expected = model.decoder(inputs, encoder_output=encoded, output_attentions=True)
    x_BTD, flow = model.decoder.begin(inputs, encoder_output=encoded, output_attentions=True)
    seen = []
    for first, last in ((0, 1), (1, 3), (3, None)):
        for x_BTD, attentions in list(model.decoder.run_layers(x_BTD, flow, first, last)):  # noqa: B007, B020
            seen.append(attentions)
    assert torch.equal(model.decoder.end(x_BTD, flow).last_hidden_state, expected.last_hidden_state)
    for layer in range(4):
        assert torch.equal(seen[layer].own, expected.attentions[layer])
        assert torch.equal(seen[layer].cross, expected.cross_attentions[layer])


@torch.no_grad()
def test_a_layer_that_runs_twice_gives_the_same() -> None:
    """As activation checkpointing does it: a layer leaves nothing behind in the flow."""
    model = seq2seq()
    decoder, encoded = model.decoder, model.encode(ids(2, 5, seed=1))
    assert decoder is not None
    x_BTD, flow = decoder.begin(StackInput(input_ids=ids(2, 6)), encoder_output=encoded, output_attentions=True)
    before = dict(vars(flow))
    one, again = (decoder.layers[0](x_BTD, 0, flow) for _ in range(2))
    assert torch.equal(one[0], again[0]) and torch.equal(one[1].own, again[1].own)
    assert all(vars(flow)[name] is value for name, value in before.items())


def test_outputs_that_cannot_be_joined() -> None:
    a = StackOutput(torch.zeros(2, 3, 8), None)
    for other in (torch.zeros(1, 3, 8), torch.zeros(2, 3, 4)):
        with pytest.raises(UsageError, match="cannot be joined"):
            join_outputs(a, StackOutput(other, None))


def test_hidden_states_are_joined_where_both_have_them() -> None:
    states = (torch.zeros(1, 2, 4), torch.ones(1, 2, 4))
    full = StackOutput(states[1], None, states)
    assert [state.shape[1] for state in join_outputs(full, full).hidden_states or ()] == [4, 4]
    assert join_outputs(full, replace(full, hidden_states=None)).hidden_states is None


@torch.no_grad()
def test_a_cache_follows_an_encoder_output_that_grows() -> None:
    """With one layer, what a step sees does not depend on what earlier steps saw, so cached and uncached must agree."""
    model = seq2seq(layers=1)
    first, more = model.encode(ids(1, 5)), model.encode(ids(1, 3, seed=1))
    grown = join_outputs(first, more)
    tokens = ids(1, 4, seed=2)
    cache = KeyValueCache(model.config, 1)
    before = model(decoder_input_ids=tokens[:, :3], encoder_output=first, cache=cache).logits
    after = model(decoder_input_ids=tokens[:, 3:], encoder_output=grown, cache=cache).logits
    close(before, model(decoder_input_ids=tokens[:, :3], encoder_output=first).logits)
    expected = model(decoder_input_ids=tokens, encoder_output=grown).logits[:, -1:]
    close(after, expected)
    stale = model(decoder_input_ids=tokens, encoder_output=first).logits[:, -1:]
    assert apart(after, stale) > 1e-3
    with pytest.raises(UsageError, match="holds 8 positions"):
        model(decoder_input_ids=tokens[:, :1], encoder_output=first, cache=cache)


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (0, 3), (1, 2)])
@torch.no_grad()
def test_a_masked_head_is_zeroed_columns(layer: int, head: int) -> None:
    model = initialise(Transformer(ModelConfig("test", encoder=stack())), std=0.3).eval()
    mask = torch.ones(2, 4)
    mask[layer, head] = 0
    full = model(ids(2, 6)).last_hidden_state
    masked = model(ids(2, 6), head_mask=mask).last_hidden_state
    assert apart(masked, full) > 1e-3
    out = model.main.layers[layer].attention.out
    out.weight[:, head * 8 : (head + 1) * 8] = 0
    close(masked, model(ids(2, 6)).last_hidden_state)
    with pytest.raises(UsageError, match=r"not \(layers, heads\)"):
        model(ids(2, 6), head_mask=mask.T)


FRONTENDS = {
    "tokens": TokenFrontend(vocab_size=VOCABULARY, embedding_size=32),
    "patches": PatchFrontend(image_size=(32, 32), patch_size=(8, 8)),
    "wave": WaveFrontend(channels=(8,), kernels=(4,), strides=(2,), position_kernel=4, position_groups=2),
    "mel": MelFrontend(mels=8, max_positions=20),
}


@pytest.mark.parametrize("kind", FRONTENDS)
def test_inputs_of_other_frontends_are_refused(kind: str) -> None:
    """Nothing that a model does not look at is taken without a word; None is nothing."""
    model = Transformer(ModelConfig("test", encoder=stack(frontend=FRONTENDS[kind])))
    for name in {name for names in READS.values() for name in names} - set(READS[kind]):
        for call in (model, model.encode):
            with pytest.raises(UsageError, match=f"'{name}' is not an input of this model") as caught:
                call(**{name: torch.zeros(1, 1)})
            assert all(read in caught.value.fix for read in READS[kind])
            with pytest.raises(UsageError, match=r"none was given|exactly one of input_ids"):
                call(**{name: None})


def test_a_decoder_refuses_what_it_does_not_read() -> None:
    rope = (RopeConfig(theta=10000.0, dim=8),) * 2
    model = Transformer(ModelConfig("test", decoder=stack(direction="causal", rope=rope)))
    for name in ("pixel_values", "input_values", "input_features", "decoder_input_ids", "cross_head_mask"):
        with pytest.raises(UsageError, match=f"'{name}' is not an input of this model"):
            model(ids(1, 3), **{name: torch.zeros(1, 1)})
    for cache in ("x", 5, []):
        with pytest.raises(UsageError, match="cache is a"):
            model(ids(1, 3), cache=cache)


@torch.no_grad()
def test_images_of_any_size() -> None:
    model = initialise(Transformer(ModelConfig("test", encoder=stack(frontend=FRONTENDS["patches"]))), std=0.3).eval()
    for height, width in ((32, 32), (64, 64), (8, 8), (40, 24), (47, 33)):
        output = model(pixel_values=torch.zeros(1, 3, height, width))
        assert output.last_hidden_state.shape == (1, 1 + (height // 8) * (width // 8), 32)
        assert torch.isfinite(output.last_hidden_state).all()
    with pytest.raises(InputError, match="smaller than a patch"):
        model(pixel_values=torch.zeros(1, 3, 7, 32))
