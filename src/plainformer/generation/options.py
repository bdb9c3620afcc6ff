"""The options of generation, each said once: its field carries help, modes, checks, processor and checkpoint name.

An option that has no effect in the chosen mode is an error that says which mode takes it, not a warning. What is known of
all options together (`TAKEN_BY`, `ORDER`, ...) derives from the fields. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from plainformer.config.options import NotTyped, OptionSet, at_file, cached, flag, number, one_of, option, specs, whole
from plainformer.errors import UsageError, opt
from plainformer.generation.option_values import (
    a_model,
    dry,
    early_stopping,
    forced_eos,
    function,
    keep,
    layers,
    mirostat,
    no_negative,
    processor,
    read_early_stopping,
    read_layers,
    reusable_cache,
    text_stop,
    token_ids,
    xtc,
)

if TYPE_CHECKING:
    from torch import Tensor

    from plainformer.generation.cache.cache import KeyValueCache
    from plainformer.generation.processors.context import Processor
    from plainformer.generation.stopping import TextStop

Mode = Literal["greedy", "sample", "beam", "beam-sample", "diverse beam", "contrastive", "speculative"]
TOKENS = ("greedy", "sample")
BEAMS = ("beam", "beam-sample", "diverse beam")
SAMPLING = ("sample", "beam-sample", "speculative")
DEFAULT_NEW_TOKENS = 64

# Headings of the options.
LENGTH, SEARCH, RUNNING = "Length and end", "How tokens are searched for", "Running"
CONTENT, REPETITION, SHAPING = "What the answer may be", "Repetition", "Samplers"


def _sampler(help: str, **more: Any) -> Any:
    more = {"modes": SAMPLING, **more}
    return option(None, help=f"Sampling: {help}", group=SHAPING, **more)


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(OptionSet):
    """All options of generation; None (or the default shown) means "not given". Each field's `help` says what it does.

    Besides what every option has (`config.options.option`), a field may say:
        modes: in which modes the option has an effect; all where it does not say. needs: the option that it changes.
        chooses: it chooses a mode, together with no other option that does so but these. excludes: an option that cannot
            be given with it.
        make: the processor that it asks for: a class that is given the option's value, or a function of the processors'
            package, the options and the end ids. These fields are in the order in which processors run, see `ORDER`.
            runs: the processors' names, where they are not the option's own. last: it runs after the samplers.
        checkpoint: its name in generation_config.json. neutral: what says "as if it were not there" in that file.
        engine: a check of what the engine takes, where tasks take more: stop strings and grammars as text.

    Modes: greedy, sampling (`do_sample`), beam search (`num_beams`; diverse with `num_beam_groups`, Vijayakumar et al. 2016),
    contrastive search (`penalty_alpha` with `top_k`, Su et al. 2022), speculative decoding (`draft_model`, Leviathan et al.
    2023; `prompt_lookup`, Saxena 2023). DoLa (Chuang et al. 2023) and classifier-free guidance (Sanchez et al. 2023) change
    the logits of any mode that runs token by token. The processors' classes have their formulas and sources.
    """

    # fmt: off
    max_new_tokens: int | None = option(
        help="Maximum number of new tokens for each prompt; 64 if neither this nor a maximum length is given.",
        group=LENGTH, check=whole(1, fix="ask for at least 1"), checkpoint="max_new_tokens")
    max_length: int | None = option(
        help="Maximum number of tokens including the prompt; the number of new tokens takes precedence where both are given.",
        group=LENGTH, check=whole(1), checkpoint="max_length")
    eos_ids: Sequence[int] | None = option(
        help="Token ids that end an answer; by default the model's own, an empty list for none.", group=LENGTH,
        typed=NotTyped, check=token_ids)
    stop: TextStop | str | Sequence[str] | None = option(
        help="Text that ends the answer and is not part of it; may be given several times.", group=LENGTH,
        typed=list[str], engine=text_stop, checkpoint="stop_strings")
    stop_when: Callable[[list[int]], bool] | None = option(
        help="A function of a row's new token ids; True ends the row.", group=LENGTH, typed=NotTyped,
        check=function("new ids → whether to end"))
    max_time: float | None = option(help="Stop after this many seconds.", group=LENGTH, check=number("(0, inf)"),
        checkpoint="max_time")

    do_sample: bool = option(False, help="Sample tokens instead of taking the likeliest.", group=SEARCH, check=flag(),
        chooses=("draft_model", "prompt_lookup", "num_beams"), checkpoint="do_sample", neutral=False)
    seed: int | Sequence[int] | None = option(
        help="Random seed: the same seed gives the same answer; in Python also one for each prompt.",
        group=SEARCH, typed=int, modes=SAMPLING)
    num_return_sequences: int = option(1, help="Number of answers for each prompt (sampling or beam search).", group=SEARCH,
        check=whole(1), modes=("sample", *BEAMS, "speculative"), checkpoint="num_return_sequences", neutral=1)
    num_alternatives: int = option(1,
        help="Answers for each prompt that begin with the likeliest, the second likeliest, ... token.", group=SEARCH,
        check=whole(1), modes=TOKENS, excludes="num_return_sequences")
    num_beams: int = option(1, help="Beam search with this many beams.", group=SEARCH, check=whole(1),
        chooses=("do_sample",), checkpoint="num_beams", neutral=1)
    num_beam_groups: int = option(1, help="Diverse beam search: groups that the beams are divided into.", group=SEARCH,
        check=whole(1), modes=("diverse beam",), needs="diversity_penalty", excludes="do_sample",
        checkpoint="num_beam_groups", neutral=1)
    diversity_penalty: float | None = option(
        help="Diverse beam search: what a token loses for each earlier group that has just chosen it.", group=SEARCH,
        check=number(), modes=("diverse beam",), checkpoint="diversity_penalty", neutral=0)
    length_penalty: float | None = option(
        help="Beam search: scores are divided by length to this power; above 0 favours long answers. Default: 1.",
        group=SEARCH, check=number(), modes=BEAMS, checkpoint="length_penalty", neutral=1)
    early_stopping: bool | Literal["never"] | None = option(
        help="Beam search: end once enough answers are finished (true), no better one is likely (false) or possible (never).",
        group=SEARCH, typed=str, read=read_early_stopping, check=early_stopping, modes=BEAMS,
        checkpoint="early_stopping", neutral=False)
    patience: float | None = option(
        help="Beam search: wait for this times the number of beams of finished answers. Default: 1.", group=SEARCH,
        check=number("(0, inf)"), modes=BEAMS)
    penalty_alpha: float | None = option(
        help="Contrastive search: weight of the penalty on resembling the text so far.", group=SEARCH,
        check=number("[0, 1]", fix="0.6 is the paper's choice"), chooses=(), checkpoint="penalty_alpha", neutral=0)
    draft_model: Any = option(help="Speculative decoding: a smaller model that drafts tokens.", group=SEARCH, typed=str,
        check=a_model, chooses=("do_sample",))
    prompt_lookup: int | None = option(
        help="Speculative decoding: draft what followed the last N tokens earlier in the text.", group=SEARCH,
        check=whole(1), chooses=("do_sample",), checkpoint="prompt_lookup_num_tokens")
    num_draft_tokens: int | None = option(help="Speculative decoding: tokens drafted at a time.", group=SEARCH,
        check=whole(1), modes=("speculative",), checkpoint="num_assistant_tokens")
    dola_layers: str | Sequence[int] | None = option(
        help="DoLa: contrast the last layer with earlier ones: low, high, or layer numbers such as 1,3,5.",
        group=SEARCH, typed=str, read=read_layers, check=layers, modes=(*TOKENS, *BEAMS), excludes="guidance_scale",
        checkpoint="dola_layers")
    guidance_scale: float | None = option(help="Classifier-free guidance: above 1 follows the prompt more closely.",
        group=SEARCH, check=number(), modes=(*TOKENS, *BEAMS), runs=("guidance",), checkpoint="guidance_scale",
        neutral=1)
    negative_ids: Tensor | None = option(help="Classifier-free guidance: (B, T) ids of what to lead away from.",
        group=SEARCH, typed=NotTyped, needs="guidance_scale")

    # From here on in the order in which processors run.
    sequence_bias: Mapping[tuple[int, ...], float] | None = option(
        help="Add to the logits of the last token of each sequence of ids: {(5, 8): -1.5}.", group=CONTENT,
        typed=NotTyped, check=no_negative, make="SequenceBias", checkpoint="sequence_bias")
    encoder_repetition_penalty: float | None = option(help="Above 1: tokens of the input are likelier.",
        group=REPETITION, check=number("(0, inf)"), make="EncoderRepetitionPenalty",
        checkpoint="encoder_repetition_penalty", neutral=1)
    repetition_penalty: float | None = option(help="Above 1: tokens that have occurred are less likely.",
        group=REPETITION, check=number("(0, inf)", fix="give more than 0; 1 changes nothing"), make="RepetitionPenalty",
        checkpoint="repetition_penalty", neutral=1)
    presence_penalty: float | None = option(help="Subtract this from the logits of generated tokens.", group=REPETITION,
        check=number(), make="PresencePenalty")
    frequency_penalty: float | None = option(
        help="Subtract this from the logits of generated tokens for each time they occurred.", group=REPETITION,
        check=number(), make="FrequencyPenalty")
    dry_multiplier: float | None = option(help="DRY: penalty on continuing a repetition of earlier text.",
        group=REPETITION, check=number("(0, inf)"), runs=("dry",), make=dry)
    dry_base: float | None = option(
        help="DRY: factor by which the penalty grows with each repeated token. Default: 1.75.", group=REPETITION,
        check=number("[1, inf)"), needs="dry_multiplier")
    dry_allowed_length: int | None = option(help="DRY: repetitions of this many tokens are free. Default: 2.",
        group=REPETITION, check=whole(1), needs="dry_multiplier")
    dry_breakers: Sequence[int] | None = option(help="DRY: token ids that a repetition does not extend across.",
        group=REPETITION, typed=NotTyped, check=token_ids, needs="dry_multiplier")
    no_repeat_ngram_size: int | None = option(help="Never repeat an n-gram of this size.", group=REPETITION,
        check=whole(1), make="NoRepeatNgram", checkpoint="no_repeat_ngram_size", neutral=0)
    encoder_no_repeat_ngram_size: int | None = option(help="Never repeat an n-gram of this size that is in the input.",
        group=REPETITION, check=whole(1), make="EncoderNoRepeatNgram", checkpoint="encoder_no_repeat_ngram_size",
        neutral=0)
    bad_words_ids: Sequence[Sequence[int]] | None = option(help="Sequences of token ids that may not occur.",
        group=CONTENT, typed=NotTyped, check=no_negative, make=lambda p, o, ends: p.BadWords(o.bad_words_ids, ends))
    min_length: int | None = option(help="No end before this many tokens including the prompt.", group=LENGTH,
        check=whole(0), make=lambda p, o, ends: p.MinLength(o.min_length, ends), checkpoint="min_length", neutral=0)
    min_new_tokens: int | None = option(help="No end before this many new tokens.", group=LENGTH, check=whole(0),
        make=lambda p, o, ends: p.MinNewTokens(o.min_new_tokens, ends), checkpoint="min_new_tokens", neutral=0)
    allowed_tokens: Callable[[list[int]], Iterable[int]] | None = option(
        help="A function of a row's token ids: the ids that may come next.", group=CONTENT, typed=NotTyped,
        check=function("a row's ids → the ids that may follow"),
        make=lambda p, o, ends: p.AllowedTokens(o.allowed_tokens, o.num_beams))
    grammar: Processor | str | None = option(help="The answer is of this Lark grammar: text, or @FILE.", group=CONTENT,
        typed=str, read=at_file, engine=processor("generation.constraints.grammar.Grammar"), runs=("token_healing", "grammar"),
        make=lambda p, o, ends: o.grammar)
    forced_bos_id: int | None = option(
        help="Token id forced after an encoder-decoder's start token, such as mBART's language.", group=CONTENT,
        typed=NotTyped, check=whole(0), make="ForcedBos")
    forced_eos_id: int | Sequence[int] | None = option(
        help="Token id (in Python also several) forced where the length limit is reached.", group=CONTENT, typed=int,
        check=no_negative, make=forced_eos, checkpoint="forced_eos_token_id")
    remove_invalid: bool = option(False, help="Replace logits that are not finite.", group=RUNNING, check=flag(),
        make=lambda p, o, ends: p.RemoveInvalid(), checkpoint="remove_invalid_values", neutral=False)
    exponential_decay: tuple[int, float] | None = option(
        help="(start, factor): after `start` new tokens the end grows likelier by powers of `factor`.", group=LENGTH,
        typed=NotTyped, make=lambda p, o, ends: p.ExponentialDecay(*o.exponential_decay, ends),
        checkpoint="exponential_decay_length_penalty")
    suppress: Sequence[int] = option((), help="Token ids that are never generated.", group=CONTENT, typed=NotTyped,
        check=token_ids, make="Suppress")
    suppress_first: Sequence[int] = option((), help="Token ids that are not generated first.", group=CONTENT,
        typed=NotTyped, check=token_ids, make="SuppressFirst")
    forced: Mapping[int, int | None] | None = option(help="Token ids forced at positions of a row: {1: 50259}.",
        group=CONTENT, typed=NotTyped, check=no_negative, runs=("whisper_timestamps", "forced"), make="Forced")

    temperature: float | Sequence[float] | None = _sampler("below 1 sharpens the distribution, above 1 flattens it.",
        typed=float, check=number("(0, inf)", fix="give more than 0; greedy decoding is what 0 would be"),
        make="Temperature", checkpoint="temperature", neutral=1)
    top_n_sigma: float | None = _sampler("keep tokens whose logit is within n standard deviations of the highest.",
        check=number("(0, inf)"), make="TopNSigma", checkpoint="top_n_sigma")
    top_h: float | None = _sampler("keep the likeliest tokens up to this share of the distribution's entropy.",
        check=number("(0, 1]"), make="TopH", checkpoint="top_h")
    top_k: int | None = _sampler("keep the k likeliest tokens. Contrastive search: candidates.", check=whole(1),
        modes=(*SAMPLING, "contrastive"), make=lambda p, o, ends: p.TopK(o.top_k, keep(o, ends)), checkpoint="top_k",
        neutral=0)
    top_p: float | None = _sampler("keep the likeliest tokens that together have this probability.",
        check=number("[0, 1]"), make=lambda p, o, ends: p.TopP(o.top_p, keep(o, ends)), checkpoint="top_p", neutral=1)
    min_p: float | None = _sampler("keep tokens of at least this share of the likeliest's probability.",
        check=number("[0, 1]"), make=lambda p, o, ends: p.MinP(o.min_p, keep(o, ends)), checkpoint="min_p")
    typical_p: float | None = _sampler("keep locally typical tokens that together have this probability.",
        check=number("(0, 1)"), make=lambda p, o, ends: p.Typical(o.typical_p, keep(o, ends)), checkpoint="typical_p",
        neutral=1)
    epsilon_cutoff: float | None = _sampler("keep tokens of at least this probability.", check=number("(0, 1)"),
        make=lambda p, o, ends: p.Epsilon(o.epsilon_cutoff, keep(o, ends)), checkpoint="epsilon_cutoff", neutral=0)
    eta_cutoff: float | None = _sampler("keep tokens above a cutoff that falls with the distribution's entropy.",
        check=number("(0, 1)"), make=lambda p, o, ends: p.Eta(o.eta_cutoff, keep(o, ends)), checkpoint="eta_cutoff",
        neutral=0)
    xtc_probability: float | None = _sampler(
        "XTC: how often the top choices but the least likely of them are excluded.", check=number("[0, 1]"),
        runs=("xtc",), make=xtc, checkpoint="xtc_probability")
    xtc_threshold: float | None = _sampler("XTC: from which probability on a token is a top choice. Default: 0.1.",
        check=number("[0, 1]"), needs="xtc_probability", checkpoint="xtc_threshold")
    mirostat_tau: float | None = _sampler("Mirostat: the surprise to aim for, in bits.", check=number("(0, inf)"),
        modes=("sample",), runs=("mirostat",), make=mirostat, checkpoint="mirostat_tau")
    mirostat_eta: float | None = _sampler("Mirostat: how fast it adapts. Default: 0.1.", check=number("(0, inf)"),
        modes=("sample",), needs="mirostat_tau", checkpoint="mirostat_eta")

    watermark: Processor | None = option(help="A watermark that a detector with its key finds in the text.",
        group=CONTENT, typed=NotTyped, check=processor("generation.processors.Watermark"), last=True,
        make=lambda p, o, ends: o.watermark)
    renormalize: bool = option(False, help="Make log-probabilities of the processed logits.", group=RUNNING,
        check=flag(), last=True, make=lambda p, o, ends: p.Renormalize(), checkpoint="renormalize_logits",
        neutral=False)

    processors: Sequence[Processor] = option((), help="Custom processors; they run before the samplers.", group=RUNNING,
        typed=NotTyped)
    order: Sequence[str] | None = option(
        help="Names of processors in the order to run them in; by default the documented one.", group=RUNNING,
        typed=NotTyped)
    cache: KeyValueCache | None = option(
        help="The cache of an earlier result to continue from: only new tokens are run.", group=RUNNING, typed=NotTyped,
        check=reusable_cache, modes=TOKENS, excludes="cache_kind")
    cache_kind: str = option("full",
        help="How keys and values are kept: full, int8 (a quarter of the memory), or none (computed again).",
        group=RUNNING, check=one_of("full", "int8", "none"), modes=(*TOKENS, *BEAMS))
    prefill_chunk: int | None = option(help="Run long prompts this many tokens at a time.", group=RUNNING,
        check=whole(1), modes=(*TOKENS, *BEAMS))
    output_scores: bool = option(False, help="Return the log-probability of each new token.", group=RUNNING,
        check=flag())
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate()

    # ---- what they choose -----------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """The mode that these options choose."""
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

    @property
    def new_token_limit(self) -> int | None:
        """New tokens at most, whatever the prompt's length; None where `max_length` counts the prompt too."""
        return self.max_new_tokens or (None if self.max_length else DEFAULT_NEW_TOKENS)

    @property
    def group_size(self) -> int:
        """Beams of each group."""
        return self.num_beams // self.num_beam_groups

    @property
    def answers_kept(self) -> int:
        """Finished answers that each group of beams waits for, and keeps."""
        return max(1, round(self.group_size * (self.patience or 1.0)))

    def takes(self, name: str) -> bool:
        """Whether an option has an effect in the mode that these options choose."""
        modes = said(type(self), "modes").get(name)
        if modes is None:
            return True
        only_drawn = "sample" in modes and "greedy" not in modes
        return self.mode in modes and (self.do_sample or self.mode != "speculative" or not only_drawn)

    # ---- for the engine -------------------------------------------------------------------------------------------

    def engine(self, **changes: Any) -> GenerationOptions:
        """Return plain options of generation, as `generate` takes them: these, with changes."""
        values = {f.name: getattr(self, f.name) for f in fields(GenerationOptions)}
        return GenerationOptions(**{**values, **changes})

    # ---- checks ---------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Check what no field says alone: that options go together, and are what the engine takes.

        Called when the options are made; a subclass whose mode is not known by then overrides this, and the options that
        its `engine()` returns are checked.
        """
        for name, check in said(type(self), "engine").items():
            if getattr(self, name) is not None:
                check(name, getattr(self, name))
        self._check_beams()
        self._check_modes()

    def _check_beams(self) -> None:
        groups, beams = opt("num_beam_groups", self.num_beam_groups), opt("num_beams", self.num_beams)
        if self.num_beams % self.num_beam_groups:
            raise UsageError(f"{groups} does not divide {beams}", "give each group the same number of beams")
        if self.num_beams > 1 and self.num_return_sequences > min(
            self.num_beam_groups * self.answers_kept, self.num_beams
        ):
            patience = f" with {opt('patience', self.patience)}" if self.patience is not None else ""
            raise UsageError(
                f"{opt('num_return_sequences', self.num_return_sequences)} of {beams}{patience}",
                "a search returns no more answers than it has beams, nor than its patience keeps",
            )

    def _check_modes(self) -> None:
        kind, given = type(self), self.given
        for name, other in said(kind, "excludes").items():
            if name in given and other in given:
                raise UsageError(f"{opt(name)} and {opt(other)} exclude each other", "leave one of them out")
        chooses = {name: others for name, others in said(kind, "chooses").items() if name in given}
        for first, second in combinations(chooses, 2):
            if second not in chooses[first] and first not in chooses[second]:
                raise UsageError(f"{opt(first)} and {opt(second)} choose different modes", "leave one of them out")
        for name in sorted(given):
            if not self.takes(name):
                modes = said(kind, "modes")[name]
                drawn = self.mode in modes
                raise UsageError(
                    f"{opt(name, getattr(self, name))} has no effect in {self.mode} mode"
                    + (" without sampling" if drawn else ""),
                    f"{opt('do_sample', True) if drawn else _how(modes)} takes it",
                )
        for name, needed in said(kind, "needs").items():
            if name in given and needed not in given:
                value = opt(name, getattr(self, name))
                raise UsageError(f"{value} has no effect without {opt(needed)}", f"give {opt(needed)} too")


def _how(modes: Sequence[str]) -> str:
    """Return what chooses one of the modes that take an option."""
    ways = {
        "sample": opt("do_sample", True),
        "beam": f"{opt('num_beams', 2)} or more",
        "greedy": "greedy or sampling mode",
        "diverse beam": f"{opt('num_beam_groups', 2)} or more",
        "contrastive": opt("penalty_alpha", ...),
        "speculative": f"{opt('draft_model', ...)} or {opt('prompt_lookup', ...)}",
    }
    return next(way for mode, way in ways.items() if mode in modes)


# ---- what derives from the fields ---------------------------------------------------------------------------------


@cached
def said(kind: type[OptionSet], what: str) -> dict[str, Any]:
    """Return what the fields say of one thing, by option."""
    return {name: spec.more[what] for name, spec in specs(kind).items() if what in spec.more}


@cached
def stages(kind: type[OptionSet]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return names of processors in the order they run: before custom ones, samplers, and last."""
    names: tuple[list[str], list[str], list[str]] = ([], [], [])
    for name, spec in specs(kind).items():
        if "make" in spec.more or "runs" in spec.more:
            stage = 2 if spec.more.get("last") else int(spec.group == SHAPING)
            names[stage].extend(spec.more.get("runs", (name,)))
    return tuple(names[0]), tuple(names[1]), tuple(names[2])


TAKEN_BY: dict[str, tuple[str, ...]] = said(GenerationOptions, "modes")
"""The modes in which an option has an effect; one that is not here has it in all."""
NEEDS: dict[str, str] = said(GenerationOptions, "needs")
"""The option that an option changes."""
SAMPLERS = tuple(name for name, spec in specs(GenerationOptions).items() if spec.group == SHAPING)
"""Options that shape what is drawn from."""
ORDER: tuple[str, ...] = sum(stages(GenerationOptions), ())
"""Names of processors in the order they run; `order` says why."""
