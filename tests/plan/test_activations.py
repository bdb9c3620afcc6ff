"""What autograd keeps: the bytes of every storage equal those that `saved_tensors_hooks` sees."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from plainformer.config import (
    Dropout,
    HeadConfig,
    MelFrontend,
    ModelConfig,
    NormConfig,
    PatchFrontend,
    StackConfig,
    TokenFrontend,
    WaveFrontend,
)
from plainformer.model.initial import initialise
from plainformer.model.linear import Linear
from plainformer.model.lora import Adapter, LowRank
from plainformer.model.transformer import Transformer
from plainformer.plan.activations import Learning, saved_bytes
from plainformer.plan.frontends import Sizes
from plainformer.plan.heads import LossSizes
from plainformer.plan.operations import Adapters
from plainformer.train.losses import (
    binary_losses,
    huber_losses,
    label_losses,
    squared_losses,
    wide,
    word_losses,
)
from plainformer.train.robust import Robust
from tests.support.memory import saved_for_backward
from tests.support.planned import LENGTH, ROWS, TARGET, any_model, inputs_of

COMBINATIONS, PORTIONS = 320, 4
B, T, D, V = 3, 9, 24, 50
NORM = NormConfig(eps=1e-5)


def model_of(config: ModelConfig) -> Transformer:
    return initialise(Transformer(config)).train()


def difference(config: ModelConfig, how: Learning, run: Callable[[Transformer], Any], model: Any = None) -> str:
    """Return what is planned and not kept, and the other way round; "" where they are equal."""
    model = model or model_of(config)
    with torch.autocast("cpu", torch.bfloat16, enabled=how.autocast):
        kept = saved_for_backward(lambda: run(model), model)
    planned = Counter(size for size in saved_bytes(config, how) if size)
    return "" if planned == kept else f"planned: {dict(planned - kept)}, kept: {dict(kept - planned)}"


def adapt(model: Transformer, adapters: Adapters) -> None:
    """Add adapters, and learn these alone."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, Linear) and adapters.has(name):
            a, b = torch.zeros(adapters.rank, linear.in_size), torch.zeros(linear.sizes[0], adapters.rank)
            linear.adapter = Adapter(LowRank(a, b, 1.0, adapters.dropout, lambda b: [b]), 0)


@pytest.mark.parametrize("portion", range(PORTIONS))
def test_layers_of_every_kind(portion: int) -> None:
    failed = {}
    for seed in range(portion, COMBINATIONS, PORTIONS):
        draw = random.Random(seed)
        config = any_model(draw)
        model, adapters = model_of(config), None
        if draw.random() < 0.2:
            targets = draw.choice((("attention.qkv.q", "attention.qkv.v"), ("ffn.down", "up"), ("attention", "cross")))
            adapters = Adapters(targets, draw.choice((2, 4)), draw.choice((0.0, 0.1)))
            adapt(model, adapters)
        padded, padded_target, attentions = (draw.random() < share for share in (0.5, 0.3, 0.15))
        both = config.kind == "encoder-decoder"
        how = Learning(
            Sizes(ROWS, LENGTH, padded=padded),
            Sizes(ROWS, TARGET, padded=padded_target) if both else None,
            adapters=adapters,
            attentions=attentions,
            autocast=draw.random() < 0.4,
        )
        given: dict[str, Any] = inputs_of(config, padded, padded_target)
        found = difference(config, how, lambda m: m(output_attentions=attentions, **given), model)  # noqa: B023
        if found:
            failed[seed] = found
    assert not failed


# ---- frontends -----------------------------------------------------------------------------------------------------


def stack_of(frontend: Any, **changes: Any) -> StackConfig:
    usual: dict[str, Any] = dict(norm=NORM, norm_place="pre", final_norm="norm")
    return StackConfig(frontend=frontend, hidden_size=D, num_layers=2, num_heads=4, ffn_size=48, **{**usual, **changes})


def patches(class_tokens: int, **head: Any) -> ModelConfig:
    frontend = PatchFrontend(image_size=(12, 8), patch_size=(4, 4), class_tokens=class_tokens)
    return ModelConfig(
        "vit", encoder=stack_of(frontend, dropout=Dropout(embedding=0.1)), head=HeadConfig("image", **head)
    )


def wave(norm: Any = "group", kernel: int = 16, head: HeadConfig | None = None, **changes: Any) -> ModelConfig:
    stable = norm == "layer"
    frontend = WaveFrontend(
        channels=(16, 16, 20), kernels=(10, 3, 2), strides=(5, 2, 2), conv_norm=norm, conv_bias=stable, hidden_vector=True,
        position_kernel=kernel, position_groups=4, norm=None if stable else NORM, **changes,
    )  # fmt: skip
    places: dict[str, Any] = {} if stable else dict(norm_place="post", final_norm="none")
    stack = stack_of(frontend, dropout=Dropout(embedding=0.1, projection=0.1), **places)
    return ModelConfig("wav2vec2", encoder=stack, head=head or HeadConfig("ctc", out_size=11))


def mel(activation: str) -> ModelConfig:
    encoder = stack_of(MelFrontend(mels=8, max_positions=30, activation=activation))
    tokens = TokenFrontend(vocab_size=V, embedding_size=D, positions="learned", max_positions=20)
    decoder = stack_of(tokens, direction="causal", cross_attention=True)
    head = HeadConfig("seq2seq_lm", out_size=V, out_bias=False)
    tied = (("head.out.weight", "decoder.frontend.tokens.weight"),)
    return ModelConfig("whisper", encoder=encoder, decoder=decoder, head=head, tied=tied, decoder_start_id=1)


@pytest.mark.parametrize("autocast", [False, True])
def test_images(autocast: bool) -> None:
    for class_tokens in (1, 2):
        for size in ((12, 8), (16, 12)):
            config, pixels = patches(class_tokens, pick="first", out_size=5), torch.randn(B, 3, *size)
            how = Learning(Sizes(B, pixels=size), autocast=autocast)
            assert not difference(config, how, lambda m: m.states(pixel_values=pixels))  # noqa: B023


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_waves(norm: str, autocast: bool) -> None:
    for padded in (False, True):
        for hidden in (False, True):
            changes = {"projection_norm": None} if padded and hidden else {}
            config = wave(norm, 15 if hidden else 16, **changes)
            sizes = Sizes(B, samples=400, padded=padded, hidden_frames=hidden, hidden_features=hidden)
            given = {"input_values": torch.randn(B, 400)}
            if padded:
                given["attention_mask"] = torch.ones(B, 400, dtype=torch.long)
                given["attention_mask"][1, 300:] = 0
            if hidden:
                given["hidden_frames"] = torch.zeros(B, sizes.positions(config.input_stack), dtype=torch.bool)
                given["hidden_features"] = torch.zeros(B, D, dtype=torch.bool)
            how = Learning(sizes, autocast=autocast)
            assert not difference(config, how, lambda m: m.states(**given))  # noqa: B023


@pytest.mark.parametrize("autocast", [False, True])
def test_spectrograms(autocast: bool) -> None:
    for activation, frames in (("gelu", 60), ("relu", 41)):
        given = {"input_features": torch.randn(B, 8, frames), "decoder_input_ids": torch.randint(1, V, (B, T))}
        how = Learning(Sizes(B, frames=frames), Sizes(B, T), autocast=autocast)
        assert not difference(mel(activation), how, lambda m: m.states(**given))  # noqa: B023


@pytest.mark.parametrize("projection", ["none", "affine", "linear"])
@pytest.mark.parametrize("place", ["before_norm", "after_norm"])
def test_tokens_of_another_width(projection: Any, place: Any) -> None:
    frontend = TokenFrontend(
        vocab_size=V, embedding_size=D if projection == "none" else 16, projection=projection, projection_place=place,
        norm=NORM, token_types=2, padding="zeroed", positions="learned", max_positions=30,
    )  # fmt: skip
    config = ModelConfig("tokens", encoder=stack_of(frontend, dropout=Dropout(embedding=0.1)))
    given = {"input_ids": torch.randint(1, V, (B, T)), "token_type_ids": torch.zeros(B, T, dtype=torch.long)}
    for autocast in (False, True):
        how = Learning(Sizes(B, T, token_types=True), autocast=autocast)
        assert not difference(config, how, lambda m: m.states(**given))


# ---- heads and losses ----------------------------------------------------------------------------------------------

IDS = torch.randint(8, V, (B, T), generator=torch.Generator().manual_seed(0))
IDS[:, -1] = 7
MASK = torch.ones(B, T, dtype=torch.long)
MASK[1, -3:] = 0
PADDED = IDS.clone()
PADDED[1, 5] = 7
LOSSES = [(0.0, None), (0.1, None), (0.0, Robust("focal", 2.0))]


def text(head: HeadConfig, causal: bool = False, kv_heads: int = 0, **changes: Any) -> ModelConfig:
    name = "decoder" if causal else "encoder"
    direction = "causal" if causal else "both"
    stack = stack_of(TokenFrontend(vocab_size=V, embedding_size=D), direction=direction, num_kv_heads=kv_heads)
    return ModelConfig("text", **{name: stack}, head=head, eos_ids=(7,), **changes)


def inputs(padded: bool) -> dict[str, torch.Tensor]:
    return {"input_ids": PADDED, "attention_mask": MASK} if padded else {"input_ids": IDS}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "head",
    [
        HeadConfig("causal_lm", out_size=V, out_bias=False),
        HeadConfig("causal_lm", out_size=V, softcap=30.0, scale=0.5),
        HeadConfig("masked_lm", out_size=V, transform_size=20, transform_activation="gelu", transform_norm=NORM),
        HeadConfig("masked_lm", out_size=V, transform_size=D, dropout=0.1, dense_dropout=0.1),
    ],
)
def test_losses_of_words(head: HeadConfig, autocast: bool) -> None:
    places, labels = torch.arange(20), torch.randint(0, V, (20,))
    tied = (("head.out.weight", "encoder.frontend.tokens.weight"),) if head.transform_size in (0, D) else ()
    for chunk in (0, 7, None):
        for smoothing, robust in LOSSES:
            for fixed in ((), ("head.out.*",), ("encoder.*",)):

                def run(m: Transformer) -> torch.Tensor:
                    states = m.states(**inputs(True)).last_hidden_state.flatten(0, 1)[places]
                    return word_losses(m, states, labels, smoothing, chunk, robust)  # noqa: B023

                loss = LossSizes("words", 20, smoothing=smoothing > 0, robust=robust is not None, chunk=chunk)
                how = Learning(Sizes(B, T, padded=True), loss=loss, autocast=autocast)
                assert not difference(text(head, tied=tied, fixed=fixed), how, run)


@pytest.mark.parametrize("autocast", [False, True])
def test_losses_of_tagged_words(autocast: bool) -> None:
    places, labels = torch.arange(20), torch.randint(0, 5, (20,))
    for smoothing, robust in LOSSES:

        def run(m: Transformer) -> torch.Tensor:
            scores = wide(m.score(m.states(**inputs(True)).last_hidden_state.flatten(0, 1)[places]))
            return label_losses(scores, labels, smoothing, robust)  # noqa: B023

        loss = LossSizes("token", 20, smoothing=smoothing > 0, robust=robust is not None)
        how = Learning(Sizes(B, T, padded=True), loss=loss, autocast=autocast)
        assert not difference(text(HeadConfig("token", out_size=5)), how, run)


FORMS: dict[str, Callable[..., torch.Tensor]] = {
    "single_label": label_losses,
    "multi_label": lambda scores, answers, smoothing, robust: binary_losses(scores, answers, robust),
    "regression": lambda scores, answers, smoothing, robust: squared_losses(scores, answers),
    "huber": lambda scores, answers, smoothing, robust: huber_losses(scores, answers, 1.0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("pick", "causal"),
    [("first", False), ("last", True), ("mean", False), ("eos", False), ("last", False), ("first", True)],
)
def test_losses_of_rows(pick: Any, causal: bool, form: str) -> None:
    answers = torch.randint(0, 4, (B,)) if form == "single_label" else torch.rand(B, 4)
    for padded in (False, True):
        for transform, (smoothing, robust) in zip((0, 20, 20), LOSSES, strict=True):
            head = HeadConfig("sequence", pick=pick, out_size=4, transform_size=transform, dropout=0.1)
            config = text(head, causal, 2 if causal else 0, fixed=("*layers*", "*tokens*") if form == "huber" else ())

            def run(m: Transformer) -> torch.Tensor:
                logits = m(**inputs(padded), only_logits=True).logits  # noqa: B023
                return FORMS[form](wide(logits), answers, smoothing, robust)  # noqa: B023

            softened = smoothing > 0 and form == "single_label"
            robustly = robust is not None and form in ("single_label", "multi_label")
            loss = LossSizes("labels", form=form, smoothing=softened, robust=robustly)
            how = Learning(Sizes(B, T, padded=padded), loss=loss, autocast=bool(transform))
            assert not difference(config, how, run)


@pytest.mark.parametrize("autocast", [False, True])
def test_losses_of_spans(autocast: bool) -> None:
    ends = torch.randint(0, T, (2 * B,))
    for padded in (False, True):

        def run(m: Transformer) -> torch.Tensor:
            scores = wide(m(**inputs(padded)).logits).transpose(1, 2)  # noqa: B023
            if padded:  # noqa: B023
                scores = scores.masked_fill(MASK[:, None] == 0, torch.finfo(torch.float32).min)
            return label_losses(scores.flatten(0, 1), ends).view(-1, 2).mean(-1)

        how = Learning(Sizes(B, T, padded=padded), loss=LossSizes("span"), autocast=autocast)
        assert not difference(text(HeadConfig("span", out_size=2)), how, run)


@pytest.mark.parametrize("autocast", [False, True])
def test_two_heads_and_heads_that_mix_layers(autocast: bool) -> None:
    labels, pixels, samples = torch.randint(0, 5, (B,)), torch.randn(B, 3, 12, 8), torch.randn(B, 400)
    distilled = patches(2, pick="first_two", out_size=5)
    how = Learning(Sizes(B), loss=LossSizes("labels"), autocast=autocast)
    assert not difference(distilled, how, lambda m: label_losses(wide(m(pixel_values=pixels).logits), labels))
    head = HeadConfig(
        "audio", pick="mean", transform_size=12, transform_activation="identity", out_size=5, mixed_states=3
    )
    how = replace(how, inputs=Sizes(B, samples=400))
    assert not difference(wave(head=head), how, lambda m: label_losses(wide(m(input_values=samples).logits), labels))


@pytest.mark.parametrize("autocast", [False, True])
def test_losses_of_clips(autocast: bool) -> None:
    config, samples = wave(), torch.randn(B, 400)
    sizes = Sizes(B, samples=400)
    frames = sizes.positions(config.input_stack)
    texts = [torch.randint(1, 11, (count,)) for count in (3, 5, 4)]

    def run(m: Transformer) -> torch.Tensor:
        logs = wide(m(input_values=samples, only_logits=True).logits).log_softmax(-1).transpose(0, 1)
        counts = torch.tensor([len(one) for one in texts])
        lengths = torch.full((B,), frames)
        return torch.stack(list(F.ctc_loss(logs, torch.cat(texts), lengths, counts, blank=0, reduction="none")))

    loss = LossSizes("ctc", labels=12, most_letters=5)
    assert not difference(config, Learning(sizes, loss=loss, autocast=autocast), run)
