"""How text is generated, as options of the command line: all that can be said in words. Verbs that generate share it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from plainformer.cli.options import is_file, restored
from plainformer.errors import InputError, UsageError

_EARLY = {"true": True, "false": False, "never": "never"}
_FROM_FILE = ("json_schema", "grammar")


def _option(text: str) -> Any:
    return Parameter(help=text, negative="", show_default=False)


@Parameter(name="*", group="How text is generated")
@dataclass(frozen=True)
class GenerationFlags:
    """Options of tasks that generate; one that was not given is None (or False, or empty)."""

    # Length and end
    max_new_tokens: Annotated[int | None, _option("At most so many new tokens; 64 for texts.")] = None
    max_length: Annotated[int | None, _option("At most so many tokens with the prompt.")] = None
    min_new_tokens: Annotated[int | None, _option("No end before so many new tokens.")] = None
    min_length: Annotated[int | None, _option("No end before so many tokens with the prompt.")] = None
    stop: Annotated[list[str] | None, _option("Text that ends the answer, and is cut off; repeat it.")] = None
    max_time: Annotated[float | None, _option("Stop after so many seconds.")] = None
    # What the answer must be
    choices: Annotated[list[str] | None, _option("The answer is one of these; repeat it.")] = None
    regex: Annotated[str | None, _option("The answer matches this regular expression.")] = None
    json_schema: Annotated[str | None, _option("The answer is JSON of this schema: text, or @FILE.")] = None
    grammar: Annotated[str | None, _option("The answer is of this Lark grammar: text, or @FILE.")] = None
    answer_prefix: Annotated[str | None, _option("What the answer begins with (decoders).")] = None
    decoder_prefix: Annotated[str | None, _option("What the output begins with (encoder-decoders).")] = None
    heal: Annotated[bool, _option("Let the model rewrite the prompt's last tokens, which may be cut badly.")] = False
    # How tokens are searched for
    defaults: Annotated[str | None, _option("plain (greedy), or checkpoint: as its generation_config.json says.")] = (
        None
    )
    do_sample: Annotated[bool, _option("Draw tokens instead of taking the likeliest.")] = False
    seed: Annotated[int | None, _option("Of the draws: the same seed gives the same answer.")] = None
    num_return_sequences: Annotated[int | None, _option("So many answers, of samples or beams.")] = None
    num_alternatives: Annotated[int | None, _option("So many answers, each with another first token.")] = None
    num_beams: Annotated[int | None, _option("Beam search with so many beams.")] = None
    num_beam_groups: Annotated[int | None, _option("Diverse beam search with so many groups.")] = None
    diversity_penalty: Annotated[float | None, _option("How much a group avoids the other groups' tokens.")] = None
    length_penalty: Annotated[float | None, _option("Beams: above 0 favours long answers; 1.")] = None
    early_stopping: Annotated[str | None, _option("When beam search ends: true, false or never.")] = None
    patience: Annotated[float | None, _option("Beam search goes on until this times num-beams have ended.")] = None
    penalty_alpha: Annotated[float | None, _option("Contrastive search, with --top-k.")] = None
    prompt_lookup: Annotated[int | None, _option("Speculate with what followed the last N tokens before.")] = None
    draft_model: Annotated[str | None, _option("Speculate with this smaller checkpoint.")] = None
    num_draft_tokens: Annotated[int | None, _option("So many tokens at a time are speculated.")] = None
    dola_layers: Annotated[str | None, _option("Contrast with earlier layers: low, high, or numbers 1,3,5.")] = None
    guidance_scale: Annotated[float | None, _option("Classifier-free guidance.")] = None
    negative_prompt: Annotated[str | None, _option("What guidance leads away from.")] = None
    # Samplers
    temperature: Annotated[float | None, _option("Sampling: below 1 sharper, above 1 flatter.")] = None
    top_k: Annotated[int | None, _option("Sampling: among the k likeliest. Other tasks: so many answers.")] = None
    top_p: Annotated[float | None, _option("Sampling: the likeliest tokens that make up this probability.")] = None
    min_p: Annotated[float | None, _option("Sampling: at least this share of the likeliest's probability.")] = None
    typical_p: Annotated[float | None, _option("Sampling: locally typical tokens.")] = None
    epsilon_cutoff: Annotated[float | None, _option("Sampling: at least this probability.")] = None
    eta_cutoff: Annotated[float | None, _option("Sampling: a cutoff that follows the entropy.")] = None
    top_n_sigma: Annotated[float | None, _option("Sampling: logits within n standard deviations of the best.")] = None
    top_h: Annotated[float | None, _option("Sampling: a set of bounded entropy.")] = None
    xtc_probability: Annotated[float | None, _option("Sampling: how often top choices are left out.")] = None
    xtc_threshold: Annotated[float | None, _option("Sampling: probability of a top choice.")] = None
    mirostat_tau: Annotated[float | None, _option("Sampling: aim for this surprise, in bits.")] = None
    mirostat_eta: Annotated[float | None, _option("Sampling: how fast mirostat adapts.")] = None
    # Repetition
    repetition_penalty: Annotated[float | None, _option("Above 1: tokens that occurred are less likely.")] = None
    presence_penalty: Annotated[float | None, _option("Taken off the logits of tokens that occurred.")] = None
    frequency_penalty: Annotated[float | None, _option("The same, for each time they occurred.")] = None
    encoder_repetition_penalty: Annotated[float | None, _option("Above 1: tokens of the input are likelier.")] = None
    no_repeat_ngram_size: Annotated[int | None, _option("No sequence of so many tokens occurs twice.")] = None
    encoder_no_repeat_ngram_size: Annotated[int | None, _option("No such sequence of the input occurs.")] = None
    dry_multiplier: Annotated[float | None, _option("DRY: penalty on repeating what came before.")] = None
    dry_base: Annotated[float | None, _option("DRY: how the penalty grows with the length.")] = None
    dry_allowed_length: Annotated[int | None, _option("DRY: repetitions of so many tokens are free.")] = None
    # Running
    cache_kind: Annotated[str | None, _option("Keys and values: full, or int8.")] = None
    prefill_chunk: Annotated[int | None, _option("Run long prompts so many tokens at a time.")] = None
    output_scores: Annotated[bool, _option("Log-probability of each new token (--json).")] = False
    timestamps: Annotated[bool, _option("When each part was said (Whisper).")] = False

    def given(self) -> list[str]:
        """The names of those that were given."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [name for name, value in values if value is not None and value is not False]

    def options(self) -> dict[str, Any]:
        """Those that were given, as the tasks take them. A draft model is loaded.

        Raises:
            InputError, UsageError: a file is not there; a value is none of those it can be.
        """
        given = {name: _plain(getattr(self, name)) for name in self.given()}
        for name in _FROM_FILE:
            if name in given:
                given[name] = text_or_file(name, given[name])
        if "early_stopping" in given:
            if given["early_stopping"] not in _EARLY:
                raise UsageError(f"early_stopping={given['early_stopping']!r} is unknown", "true, false or never")
            given["early_stopping"] = _EARLY[given["early_stopping"]]
        if "dola_layers" in given:
            given["dola_layers"] = _layers(given["dola_layers"])
        if "draft_model" in given:
            from plainformer.loading import load

            given["draft_model"] = load(given["draft_model"], task="text-generation")
        return given


def _plain(value: Any) -> Any:
    """A value as it was typed: "-" is a hyphen."""
    if isinstance(value, list):
        return [restored(one) for one in value]
    return restored(value) if isinstance(value, str) else value


def text_or_file(name: str, value: str) -> str:
    """The text of an option, or that of @FILE."""
    if not value.startswith("@"):
        return value
    path = value[1:]
    if not is_file(path):
        raise InputError(f"{name}: there is no file {path!r}", "check the path behind the @")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.start}", "convert it, e.g. with iconv") from None


def _layers(value: str) -> str | list[int]:
    """ "low", "high", or numbers with commas."""
    if value in ("low", "high"):
        return value
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise UsageError(f"dola_layers={value!r} are no layers", "low, high, or numbers: 1,3,5") from None
