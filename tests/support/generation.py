"""Tiny random models of every generating family, as pairs of the reference's and ours, and runs of both side by side."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor

from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.draw import draw_tokens, draw_without_replacement
from plainformer.model.transformer import Transformer
from tests.support import ids
from tests.support.cases import decoders, encoder_decoders, vision_and_speech
from tests.support.parity import PAD, VOCABULARY, Case, build, load_ours

LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")
# Also the variants that change what a cache or a position is.
VARIANTS = ("qwen2-window", "smollm3-window", "mistral-global", "phi3-long", "marian-two-vocabularies", "llama-dynamic")


def _cases() -> dict[str, Case]:
    everything = [*decoders.LLAMA, *decoders.OTHERS, *encoder_decoders.ONE_OF_EACH, *encoder_decoders.SINUSOIDAL]
    everything += vision_and_speech.MELS
    made: dict[str, Case] = {}
    for case in everything:
        if case.model_class.endswith(LANGUAGE_MODELS) and ("-" not in case.name or case.name in VARIANTS):
            made.setdefault(case.name.lower().replace("m2m100", "m2m"), case)
    return made


CASES = _cases()
# Several, so that random models do come to an end. Not 2: a BART's start token is no sign of its end.
ENDS = [11, 23, 37, 58, 71, 84]


@dataclass(frozen=True)
class Pair:
    """A reference model and ours with the same weights."""

    reference: Any
    ours: Transformer
    case: Case

    @property
    def encodes(self) -> bool:
        return bool(self.reference.config.is_encoder_decoder)

    @property
    def vocabulary(self) -> int:
        return int(self.ours.config.vocab_size or 0)


@cache
def pair(name: str, seed: int = 0) -> Pair:
    """The pair of a name in CASES; the reference's generation settings say nothing but ids."""
    reference = build(CASES[name], seed)
    start = getattr(reference.config, "decoder_start_token_id", None)
    with TemporaryDirectory() as folder:
        ours = load_ours(reference, Path(folder))
    reference.generation_config = transformers.GenerationConfig(
        pad_token_id=PAD, eos_token_id=ENDS, decoder_start_token_id=start, _from_model_config=False
    )
    return Pair(reference, ours, CASES[name])


def prompts(pair: Pair, lengths: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """(1, T) ids each; mel frames (1, C, T) where that is what the model takes."""
    if pair.case.kind == "mel":
        generator = torch.Generator().manual_seed(seed)
        shape = pair.case.extra.get("shape", (8, 40))
        return [torch.randn(1, *shape, generator=generator) for _ in lengths]
    return ids.prompts(lengths, seed, VOCABULARY)


def batch(pair: Pair, rows: list[Tensor], side: str = "right", extra: int = 0) -> dict[str, Tensor]:
    """The rows together, padded on one side."""
    if pair.case.kind == "mel":
        return {"input_features": torch.cat(rows)}
    input_ids, mask = ids.pad(rows, side, extra, PAD)
    return {"input_ids": input_ids, "attention_mask": mask}


Streams = list[random.Random]


def our_multinomial(seed: int) -> Callable[..., Tensor]:
    """In place of torch.multinomial: draws as we do, each row from the stream that ours has for it."""
    streams: Streams = []

    def draw(weights_RN: Tensor, num_samples: int, replacement: bool = False, **_: Any) -> Tensor:
        streams.extend(random.Random(f"{seed}/{copy}") for copy in range(len(streams), len(weights_RN)))
        if num_samples == 1:
            uniform = torch.tensor([stream.random() for stream in streams], dtype=torch.float64)
            return draw_tokens(weights_RN.log(), uniform)[:, None]
        assert len(weights_RN) == 1
        drawn = draw_without_replacement(weights_RN[0].log(), num_samples, streams[0]).tolist()
        rest = [place for place in range(weights_RN.size(1)) if place not in set(drawn)]
        return torch.tensor([[*drawn, *rest][:num_samples]])

    return draw


@dataclass(frozen=True)
class Expected:
    """What the reference gives for one prompt alone: rows, the end token included, and what beams scored."""

    rows: list[tuple[int, ...]]
    scores: list[float] | None


@torch.no_grad()
def reference_run(pair: Pair, row: Tensor, prefix: Tensor | None = None, **options: Any) -> Expected:
    """The reference's answer to one prompt; whisper's through the general `generate`, as all others'."""
    inputs: dict[str, Any] = {"input_features": row} if pair.case.kind == "mel" else {"input_ids": row}
    if prefix is not None:
        inputs["decoder_input_ids"] = prefix
    found: Any = transformers.GenerationMixin.generate(
        pair.reference, **inputs, **options, return_dict_in_generate=True
    )
    before = (1 if prefix is None else prefix.size(1)) if pair.encodes else row.size(1)
    scores = getattr(found, "sequences_scores", None)
    return Expected(
        [ended(tuple(ids[before:].tolist())) for ids in found.sequences],
        scores.tolist() if scores is not None else None,
    )


def ended(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Without the padding behind an end token."""
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in ENDS), ids)


class Margins:
    """A watcher: how clearly each token was picked, the least of all steps.

    Greedy: how far the best logit is from the next, beside the largest. Drawn: how far the number is from a border of
    the probabilities summed. Another computation of the same moves both by about 1e-6: tokens that were picked by less
    say nothing about who is right.
    """

    def __init__(self) -> None:
        self.least = 1.0

    def processed(self, *_: object) -> None: ...

    def beams(self, *_: object) -> None: ...

    def searched(self, *_: object) -> None: ...

    def picked(self, logits_RV: Tensor, _: Tensor, draws_R: Tensor | None, __: object) -> None:
        exact_RV = logits_RV.double()
        if draws_R is None:
            best_R2 = exact_RV.topk(2).values
            scale = exact_RV[exact_RV.isfinite()].abs().max().clamp(min=1)
            apart = (best_R2[:, 0] - best_R2[:, 1]).min() / scale
        else:
            apart = (exact_RV.softmax(-1).cumsum(-1) - draws_R[:, None]).abs().min()
        self.least = min(self.least, float(apart))


# A value that each option takes.
VALUES: dict[str, Any] = {
    **dict.fromkeys(("top_k", "num_draft_tokens", "prefill_chunk", "num_return_sequences", "num_alternatives"), 2),
    "seed": 1,
    "num_beam_groups": 2,
    "early_stopping": True,
    "output_scores": True,
    "dola_layers": "low",
    "cache_kind": "int8",
    "dry_base": 1.5,
    "dry_breakers": [5],
}


def value_of(name: str) -> Any:
    """A value that an option of generation takes."""
    if name == "cache":
        return KeyValueCache(pair("gpt2").ours.config, 1)
    return VALUES.get(name, 0.5)
