"""The order of processors: the reference library's, one's own, and where unknown ones go."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, WatermarkingConfig

from plainformer.errors import UsageError
from plainformer.generation.options import ORDER, GenerationOptions, stages
from plainformer.generation.order import sort_processors
from plainformer.generation.processors import control, penalties, sampling, timestamps, watermark
from plainformer.generation.processors.context import Context
from plainformer.generation.processors.control import Suppress
from plainformer.generation.processors.sampling import Temperature, TopK, TopP

THEIRS = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance",
    "SequenceBiasLogitsProcessor": "sequence_bias",
    "EncoderRepetitionPenaltyLogitsProcessor": "encoder_repetition_penalty",
    "RepetitionPenaltyLogitsProcessor": "repetition_penalty",
    "NoRepeatNGramLogitsProcessor": "no_repeat_ngram_size",
    "EncoderNoRepeatNGramLogitsProcessor": "encoder_no_repeat_ngram_size",
    "NoBadWordsLogitsProcessor": "bad_words_ids",
    "MinLengthLogitsProcessor": "min_length",
    "MinNewTokensLengthLogitsProcessor": "min_new_tokens",
    "PrefixConstrainedLogitsProcessor": "allowed_tokens",
    "ForcedBOSTokenLogitsProcessor": "forced_bos_id",
    "ForcedEOSTokenLogitsProcessor": "forced_eos_id",
    "InfNanRemoveLogitsProcessor": "remove_invalid",
    "ExponentialDecayLengthPenalty": "exponential_decay",
    "SuppressTokensLogitsProcessor": "suppress",
    "SuppressTokensAtBeginLogitsProcessor": "suppress_first",
    "TemperatureLogitsWarper": "temperature",
    "TopHLogitsWarper": "top_h",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
    "MinPLogitsWarper": "min_p",
    "TypicalLogitsWarper": "typical_p",
    "EpsilonLogitsWarper": "epsilon_cutoff",
    "EtaLogitsWarper": "eta_cutoff",
    "WatermarkLogitsProcessor": "watermark",
    "LogitNormalization": "renormalize",
}


CONTROLS, SAMPLERS, LAST = DOCUMENTED = stages(GenerationOptions)


@dataclass
class Named:
    name: str

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        return logits_RV.clone()


def test_the_reference_librarys_order() -> None:
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16))
    everything = GenerationConfig(
        guidance_scale=1.5,
        sequence_bias=[[[1], 1.0]],
        encoder_repetition_penalty=1.5,
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        encoder_no_repeat_ngram_size=2,
        bad_words_ids=[[1]],
        min_length=5,
        min_new_tokens=5,
        forced_bos_token_id=1,
        forced_eos_token_id=2,
        max_length=9,
        remove_invalid_values=True,
        exponential_decay_length_penalty=(1, 1.1),
        suppress_tokens=[3],
        begin_suppress_tokens=[4],
        do_sample=True,
        temperature=0.5,
        top_h=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.5,
        epsilon_cutoff=0.1,
        eta_cutoff=0.1,
        watermarking_config=WatermarkingConfig(),
        renormalize_logits=True,
    )
    everything._eos_token_tensor = torch.tensor([2])
    made = model._get_logits_processor(
        everything,
        input_ids_seq_length=3,
        encoder_input_ids=torch.ones(1, 3, dtype=torch.long),
        prefix_allowed_tokens_fn=lambda batch, row: [1],
        device="cpu",
    )
    names = [THEIRS[type(processor).__name__] for processor in made]
    assert len(names) == len(THEIRS)
    assert [
        processor.name for processor in sort_processors([Named(name) for name in sorted(names)], None, DOCUMENTED)
    ] == names


def test_every_processor_has_its_place() -> None:
    parts = (control, penalties, sampling, timestamps, watermark)
    things = [thing for part in parts for thing in vars(part).values() if isinstance(thing, type)]
    found = {thing.name for thing in things if isinstance(getattr(thing, "name", None), str)}
    assert found | {"guidance", "token_healing", "grammar"} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))
    assert all(re.fullmatch("[a-z_]+", name) for name in ORDER)


def test_ones_own_go_right_before_the_samplers() -> None:
    mine, other = Named("mine"), Named("other")
    first, second = Suppress([1]), Suppress([2])
    given = [mine, TopK(3), first, other, Temperature(0.5), second, Named(SAMPLERS[-1]), Named(CONTROLS[-1])]
    names = [p.name for p in sort_processors(given, None, DOCUMENTED)]
    assert names == ["suppress", "suppress", "forced", "mine", "other", "temperature", "top_k", "mirostat"]
    assert sort_processors(given, None, DOCUMENTED)[:2] == [first, second]
    assert sort_processors([], None, DOCUMENTED) == []


def test_an_order_of_ones_own() -> None:
    given = [Temperature(0.5), TopK(3), Named("mine")]
    own = ["mine", "top_k", "top_p", "temperature"]
    assert [p.name for p in sort_processors(given, own, DOCUMENTED)] == ["mine", "top_k", "temperature"]
    with pytest.raises(UsageError, match="where 'top_p' runs"):
        sort_processors([TopP(0.5)], ["temperature", "top_k"], DOCUMENTED)
    with pytest.raises(UsageError, match=r"where 'top_k' runs\n.*did you mean 'topk'"):
        sort_processors(given, ["mine", "temperature", "topk"], DOCUMENTED)
    with pytest.raises(UsageError, match="names 'top_k' twice"):
        sort_processors(given, ["mine", "top_k", "temperature", "top_k"], DOCUMENTED)
    with pytest.raises(UsageError, match="not a list of names"):
        sort_processors(given, "top_k", DOCUMENTED)
