"""The options of generation: which mode they choose, which mode takes which, and the processors that they stand for.

An option that has no effect in the chosen mode is an error that says which mode takes it, not a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any, Literal

import torch

from plainformer.config import ModelConfig
from plainformer.errors import UsageError, did_you_mean
from plainformer.generation import processors as p
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.modes.beam import answers_kept
from plainformer.generation.processors.context import Processor
from plainformer.generation.processors.order import ORDER, sort_processors
from plainformer.generation.stopping import TextStop
from plainformer.model.transformer import Transformer

Mode = Literal["greedy", "sample", "beam", "beam-sample", "diverse beam", "contrastive", "speculative"]
BEAMS = ("beam", "beam-sample", "diverse beam")
TOKENS = ("greedy", "sample")


@dataclass(frozen=True)
class GenerationOptions:
    """All options; None (or the default shown) means "not given".

    Length and end
        max_new_tokens: at most so many for each row, 64 if neither this nor max_length is given.
        max_length: at most so many with the prompt; max_new_tokens goes first where both are given.
        min_length, min_new_tokens: no end token before.
        eos_ids: tokens that end a row; None takes the model's, () none.
        stop: looks for stop strings (`stop_strings.StopStrings`); stop_when: is given a row's new ids, True ends it.
        max_time: seconds.
    Mode
        do_sample: draw tokens instead of taking the likeliest. seed: an int, or one for each prompt.
        num_beams, num_beam_groups, diversity_penalty, length_penalty, early_stopping, patience: beam search.
        num_return_sequences: rows for each prompt, of samples or of beams.
        num_alternatives: that many answers for each prompt, which begin with the likeliest, the second likeliest, ... token.
        penalty_alpha (with top_k): contrastive search (Su et al. 2022).
        draft_model, prompt_lookup, num_draft_tokens: speculative decoding (Leviathan et al. 2023; Saxena 2023).
        dola_layers: "low", "high" or layer numbers: contrast with earlier layers' logits (Chuang et al. 2023), in any mode.
        guidance_scale, negative_ids (B, T): classifier-free guidance (Sanchez et al. 2023), in any mode but speculative.
    Processors (their classes in `generate.processors` have the formulas and sources)
        temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, top_n_sigma, top_h, xtc_probability,
        xtc_threshold, mirostat_tau, mirostat_eta: for sampling.
        repetition_penalty, presence_penalty, frequency_penalty, encoder_repetition_penalty, no_repeat_ngram_size,
        encoder_no_repeat_ngram_size, dry_multiplier, dry_base, dry_allowed_length, dry_breakers, bad_words_ids,
        sequence_bias, allowed_tokens, forced_bos_id, forced_eos_id, forced, suppress, suppress_first, exponential_decay
        (start, factor), remove_invalid, renormalize, watermark, grammar: for all modes.
        processors: more of your own. order: the names in the order they should run, in place of the documented one.
    Cache
        cache: of an earlier `Generation`, to go on from: only new tokens are run. cache_kind: "full", "int8", or "none".
        prefill_chunk: run long prompts so many tokens at a time.
    output_scores: log-probabilities of what was picked.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    eos_ids: Sequence[int] | None = None
    stop: TextStop | None = None
    stop_when: Callable[[list[int]], bool] | None = None
    max_time: float | None = None
    do_sample: bool = False
    seed: int | Sequence[int] | None = None
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    patience: float | None = None
    num_return_sequences: int = 1
    num_alternatives: int = 1
    penalty_alpha: float | None = None
    draft_model: Transformer | None = None
    prompt_lookup: int | None = None
    num_draft_tokens: int | None = None
    dola_layers: str | Sequence[int] | None = None
    guidance_scale: float | None = None
    negative_ids: torch.Tensor | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    top_n_sigma: float | None = None
    top_h: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    encoder_repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_breakers: Sequence[int] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    sequence_bias: Mapping[tuple[int, ...], float] | None = None
    allowed_tokens: Callable[[list[int]], Sequence[int]] | None = None
    forced_bos_id: int | None = None
    forced_eos_id: int | Sequence[int] | None = None
    forced: Mapping[int, int | None] | None = None
    suppress: Sequence[int] = ()
    suppress_first: Sequence[int] = ()
    exponential_decay: tuple[int, float] | None = None
    remove_invalid: bool = False
    renormalize: bool = False
    watermark: p.Watermark | None = None
    grammar: Processor | None = None
    processors: Sequence[Processor] = ()
    order: Sequence[str] = ORDER
    cache: KeyValueCache | None = None
    cache_kind: str = "full"
    prefill_chunk: int | None = None
    output_scores: bool = False
    given: frozenset[str] = field(default=frozenset(), init=False, repr=False)

    def __post_init__(self) -> None:
        given = {f.name for f in fields(self) if f.init and not _same(getattr(self, f.name), f.default)}
        object.__setattr__(self, "given", frozenset(given))
        self._check_numbers()
        self._check_objects()
        self._check_beams()
        self._check_mode()

    @property
    def mode(self) -> Mode:
        """What these options choose."""
        if self.draft_model is not None or self.prompt_lookup is not None:
            return "speculative"
        if self.penalty_alpha is not None:
            return "contrastive"
        if self.num_beams > 1:
            return "beam-sample" if self.do_sample else "diverse beam" if self.num_beam_groups > 1 else "beam"
        return "sample" if self.do_sample else "greedy"

    @property
    def copies(self) -> int:
        """Rows that each prompt is continued by."""
        return max(self.num_beams, self.num_alternatives, 1 if self.num_beams > 1 else self.num_return_sequences)

    def _check_numbers(self) -> None:
        counts = ("max_new_tokens", "max_length", "num_beams", "num_beam_groups", "num_return_sequences")
        for name in (*counts, "num_alternatives", "prefill_chunk", "prompt_lookup", "num_draft_tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                fix = "ask for at least 1"
                if name == "max_new_tokens":
                    raise UsageError(f"max_new_tokens={value!r} leaves nothing to generate", fix)
                raise UsageError(f"{name}={value!r} is not a count of at least 1", fix)
        for name, low in (("patience", 0), ("max_time", 0), ("diversity_penalty", None), ("length_penalty", None)):
            value = getattr(self, name)
            wrong = isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
            if value is not None and (wrong or (low is not None and value <= low)):
                raise UsageError(f"{name}={value!r} is not a number" + (" above 0" if low is not None else ""))
        if not isinstance(self.early_stopping, bool) and self.early_stopping not in (None, "never"):
            raise UsageError(f"early_stopping={self.early_stopping!r}", "give True, False or 'never'")
        for name in ("do_sample", "remove_invalid", "renormalize", "output_scores"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r}", "give True or False")

    def _check_objects(self) -> None:
        if self.stop is not None and not callable(getattr(self.stop, "find", None)):
            raise UsageError(f"stop={self.stop!r} finds no strings", "give StopStrings(tokenizer, [...])")
        if self.stop_when is not None and not callable(self.stop_when):
            raise UsageError(f"stop_when={self.stop_when!r} is no function", "give one: new ids → whether to end")
        if self.cache is not None and not isinstance(self.cache, KeyValueCache):
            raise UsageError(f"cache is a {type(self.cache).__name__}", "pass the .cache of an earlier generation")
        if self.cache is not None and "cache_kind" in self.given:
            raise UsageError("cache and cache_kind exclude each other", "leave one of them out")

    def _check_beams(self) -> None:
        if self.num_beams % self.num_beam_groups:
            raise UsageError(
                f"num_beam_groups={self.num_beam_groups} does not divide num_beams={self.num_beams}",
                "give each group the same number of beams",
            )
        if self.num_beam_groups > 1 and self.do_sample:
            raise UsageError("num_beam_groups and do_sample exclude each other", "leave one of them out")
        kept = self.num_beam_groups * answers_kept(self.num_beams // self.num_beam_groups, self.patience or 1.0)
        if self.num_beams > 1 and self.num_return_sequences > min(kept, self.num_beams):
            raise UsageError(
                f"num_return_sequences={self.num_return_sequences} of num_beams={self.num_beams}"
                + (f" with patience={self.patience}" if self.patience is not None else ""),
                "a search returns no more answers than it has beams, nor than its patience keeps",
            )

    def _check_mode(self) -> None:
        mode = self.mode
        for first, second in combinations([name for name in CHOOSERS if name in self.given], 2):
            if {first, second} not in TOGETHER:
                raise UsageError(f"{first} and {second} choose different modes", "leave one of them out")
        for name in sorted(self.given):
            takers = TAKEN_BY.get(name)
            if takers is not None and mode not in takers and not (name == "top_k" and mode == "contrastive"):
                raise UsageError(
                    f"{name}={getattr(self, name)!r} has no effect in {mode} mode", f"{_how(takers)} takes it"
                )
        if (
            mode == "speculative"
            and not self.do_sample
            and (found := sorted(self.given & {*SAMPLERS, "seed", "num_return_sequences"}))
        ):
            raise UsageError(
                f"{found[0]} has no effect in speculative mode without sampling", "do_sample=True takes it"
            )
        if self.num_alternatives > 1 and self.num_return_sequences > 1:
            raise UsageError("num_alternatives and num_return_sequences exclude each other", "leave one of them out")
        for name, needed in NEEDS.items():
            if name in self.given and needed not in self.given:
                raise UsageError(f"{name}={getattr(self, name)!r} has no effect without {needed}", f"give {needed} too")

    def ends(self, config: ModelConfig) -> tuple[int, ...]:
        """The tokens that end a row."""
        ids = config.eos_ids if self.eos_ids is None else self.eos_ids
        return p.as_token_ids("eos_ids", ids, least=0)

    def make_processors(self, config: ModelConfig) -> list[Processor]:
        """The processors that were asked for, in order."""
        ends = self.ends(config)
        names = self.given - ({"top_k"} if self.mode == "contrastive" else set())
        made = [make(self, ends) for name, make in MAKERS.items() if name in names]
        made += [processor for processor in (self.watermark, self.grammar) if processor is not None]
        return sort_processors([*made, *self.processors], self.order)


def _same(value: Any, default: Any) -> bool:
    """Whether an option was left at its default."""
    if isinstance(value, torch.Tensor) or callable(value):
        return False
    return value is default or (type(value) is type(default) and bool(value == default))


def _how(takers: tuple[str, ...]) -> str:
    for mode, option in (
        ("sample", "do_sample=True"),
        ("beam", "num_beams=2 or more"),
        ("greedy", "greedy or sampling mode"),
    ):
        if mode in takers:
            return option
    return {"contrastive": "penalty_alpha=...", "speculative": "draft_model=... or prompt_lookup=..."}.get(
        takers[0], "num_beam_groups=2 or more"
    )


_SAMPLE = ("sample", "beam-sample", "speculative")
SAMPLERS = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_n_sigma", "top_h",
    "xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
# Options that choose a mode, and those of them that choose one together.
CHOOSERS = ("draft_model", "prompt_lookup", "penalty_alpha", "num_beams", "do_sample")
TOGETHER = ({"draft_model", "do_sample"}, {"prompt_lookup", "do_sample"}, {"num_beams", "do_sample"})
# The modes in which an option has an effect; one that is not here has it in all.
TAKEN_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*SAMPLERS, "seed"), _SAMPLE),
    **dict.fromkeys(("length_penalty", "early_stopping", "patience"), BEAMS),
    "num_beam_groups": ("diverse beam",),
    "diversity_penalty": ("diverse beam",),
    "num_return_sequences": ("sample", *BEAMS, "speculative"),
    "num_alternatives": TOKENS,
    "output_scores": TOKENS,
    "num_draft_tokens": ("speculative",),
    "cache": TOKENS,
    "cache_kind": (*TOKENS, *BEAMS),
    "prefill_chunk": (*TOKENS, *BEAMS),
    "dola_layers": (*TOKENS, *BEAMS),
    "guidance_scale": (*TOKENS, *BEAMS),
    "mirostat_tau": ("sample",),
    "mirostat_eta": ("sample",),
}
# An option that only changes another one.
NEEDS = {
    "xtc_threshold": "xtc_probability",
    "mirostat_eta": "mirostat_tau",
    "dry_base": "dry_multiplier",
    "dry_allowed_length": "dry_multiplier",
    "dry_breakers": "dry_multiplier",
    "negative_ids": "guidance_scale",
    "num_beam_groups": "diversity_penalty",
}

Maker = Callable[[GenerationOptions, tuple[int, ...]], Processor]
MAKERS: dict[str, Maker] = {
    "temperature": lambda o, _: p.Temperature(_of(o.temperature)),
    "top_k": lambda o, ends: p.TopK(_of(o.top_k), _keep(o, ends)),
    "top_p": lambda o, ends: p.TopP(_of(o.top_p), _keep(o, ends)),
    "min_p": lambda o, ends: p.MinP(_of(o.min_p), _keep(o, ends)),
    "typical_p": lambda o, ends: p.Typical(_of(o.typical_p), _keep(o, ends)),
    "epsilon_cutoff": lambda o, ends: p.Epsilon(_of(o.epsilon_cutoff), _keep(o, ends)),
    "eta_cutoff": lambda o, ends: p.Eta(_of(o.eta_cutoff), _keep(o, ends)),
    "top_n_sigma": lambda o, _: p.TopNSigma(_of(o.top_n_sigma)),
    "top_h": lambda o, _: p.TopH(_of(o.top_h)),
    "xtc_probability": lambda o, ends: p.Xtc(
        0.1 if o.xtc_threshold is None else o.xtc_threshold, _of(o.xtc_probability), ends, _xtc_seed(o)
    ),
    "mirostat_tau": lambda o, _: p.Mirostat(_of(o.mirostat_tau), 0.1 if o.mirostat_eta is None else o.mirostat_eta),
    "repetition_penalty": lambda o, _: p.RepetitionPenalty(_of(o.repetition_penalty)),
    "presence_penalty": lambda o, _: p.PresencePenalty(_of(o.presence_penalty)),
    "frequency_penalty": lambda o, _: p.FrequencyPenalty(_of(o.frequency_penalty)),
    "encoder_repetition_penalty": lambda o, _: p.EncoderRepetitionPenalty(_of(o.encoder_repetition_penalty)),
    "no_repeat_ngram_size": lambda o, _: p.NoRepeatNgram(_of(o.no_repeat_ngram_size)),
    "encoder_no_repeat_ngram_size": lambda o, _: p.EncoderNoRepeatNgram(_of(o.encoder_no_repeat_ngram_size)),
    "dry_multiplier": lambda o, _: p.Dry(
        _of(o.dry_multiplier),
        1.75 if o.dry_base is None else o.dry_base,
        2 if o.dry_allowed_length is None else o.dry_allowed_length,
        frozenset(o.dry_breakers or ()),
    ),
    "bad_words_ids": lambda o, ends: p.BadWords(_of(o.bad_words_ids), ends),
    "sequence_bias": lambda o, _: p.SequenceBias(_of(o.sequence_bias)),
    "allowed_tokens": lambda o, _: p.AllowedTokens(_of(o.allowed_tokens), o.num_beams),
    "min_length": lambda o, ends: p.MinLength(_of(o.min_length), ends),
    "min_new_tokens": lambda o, ends: p.MinNewTokens(_of(o.min_new_tokens), ends),
    "forced_bos_id": lambda o, _: p.ForcedBos(_of(o.forced_bos_id)),
    "forced_eos_id": lambda o, _: p.ForcedEos(
        [o.forced_eos_id] if isinstance(o.forced_eos_id, int) else _of(o.forced_eos_id),
        None if o.max_new_tokens is not None else o.max_length,
        o.max_new_tokens if o.max_new_tokens is not None or o.max_length is not None else 64,
    ),
    "forced": lambda o, _: p.Forced(_of(o.forced)),
    "suppress": lambda o, _: p.Suppress(o.suppress),
    "suppress_first": lambda o, _: p.SuppressFirst(o.suppress_first),
    "exponential_decay": lambda o, ends: p.ExponentialDecay(
        _of(o.exponential_decay)[0], _of(o.exponential_decay)[1], ends
    ),
    "remove_invalid": lambda o, _: p.RemoveInvalid(),
    "renormalize": lambda o, _: p.Renormalize(),
}


def _of(value: Any) -> Any:
    """The value of an option that was given."""
    return value


def _keep(options: GenerationOptions, ends: tuple[int, ...]) -> int:
    """How many candidates each beam needs, so that one is left even where all ends are among them."""
    return max(2, 1 + len(ends)) if options.num_beams > 1 else 1


def _xtc_seed(options: GenerationOptions) -> int:
    return options.seed if isinstance(options.seed, int) and options.seed >= 0 else 0


def make_options(given: Mapping[str, Any]) -> GenerationOptions:
    """Options by name; an unknown name is an error that offers the nearest."""
    known = [f.name for f in fields(GenerationOptions) if f.init]
    for name in given:
        if name not in known:
            raise UsageError(f"generation has no option {name!r}", did_you_mean(name, known) or "see GenerationOptions")
    return GenerationOptions(**given)
