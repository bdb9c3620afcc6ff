"""Checks of some options of generation, how the command line reads them, and what makes their processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from plainformer.config.declared import fits
from plainformer.config.values import is_whole
from plainformer.errors import UsageError, a_type, opt

Options = Any  # `GenerationOptions`, whose fields are made of what is here


def text_stop(name: str, value: object) -> None:
    """Refuse what does not find stop strings."""
    if isinstance(value, str) or not callable(getattr(value, "find", None)):  # a str finds characters
        raise UsageError(f"{opt(name, value)} does not look for stop strings in ids", "give StopStrings([...], decode)")


def reusable_cache(name: str, value: object) -> None:
    """Refuse what is not a cache."""
    from plainformer.generation.cache.cache import KeyValueCache

    if not isinstance(value, KeyValueCache):
        raise UsageError(f"{opt(name)} is {a_type(value)}", f"pass the .{name} of an earlier result")


def function(signature: str) -> Callable[[str, object], None]:
    """Refuse what cannot be called."""

    def check(name: str, value: object) -> None:
        if not callable(value):
            raise UsageError(f"{opt(name, value)} is not callable", f"give a function: {signature}")

    return check


def processor(made_by: str) -> Callable[[str, object], None]:
    """Refuse what is not a processor of logits: callable, with a name."""

    def check(name: str, value: object) -> None:
        if not callable(value) or not isinstance(getattr(value, "name", None), str):
            raise UsageError(f"{opt(name, value)} is not a processor of logits", f"give one: {made_by}")

    return check


def early_stopping(name: str, value: object) -> None:
    """Refuse what is neither True, False nor "never"."""
    if not isinstance(value, bool) and value != "never":
        raise UsageError(f"{opt(name, value)} is unknown", "give True, False or 'never'")


def read_early_stopping(text: str) -> bool | str:
    words: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}
    if text not in words:
        raise UsageError(f"{opt('early_stopping', text)} is unknown", "give true, false or never")
    return words[text]


def token_ids(name: str, value: object) -> None:
    """Refuse what is not a list, or an array of one dimension, of token ids."""
    if not fits(value, Sequence[int]) or any(i < 0 for i in value):  # type: ignore[attr-defined]
        raise UsageError(f"{opt(name, value)} is not a list of token ids", "give whole numbers from 0: [50256]")


WITH_IDS = ("sequence_bias", "bad_words_ids", "forced_bos_id", "forced_eos_id", "suppress", "suppress_first", "forced")


def ids_in(name: str, value: object) -> Iterator[int]:
    """Yield the token ids in the value of an option of `WITH_IDS`, as far as it is what it should be."""
    if name in ("sequence_bias", "forced"):
        pairs = value if isinstance(value, Mapping) else {}
        value = list(pairs.values() if name == "forced" else pairs)
    if is_whole(value):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from ids_in("", one)


def no_negative(name: str, value: object) -> None:
    """Refuse ids below 0, wherever they are in the value."""
    wrong = next((one for one in ids_in(name, value) if one < 0), None)
    if wrong is not None:
        raise UsageError(f"{opt(name, value)} holds {wrong}, which is not a token id", "give whole numbers from 0")


def a_model(name: str, value: object) -> None:
    """Refuse what is neither a model nor a task."""
    if not hasattr(value, "config"):
        raise UsageError(f"{opt(name, value)} is not a model", "give what `load` or `load_model` returned")


def layers(name: str, value: object) -> None:
    """Refuse a word that names no layers; numbers are checked against the model."""
    if isinstance(value, str) and value not in ("low", "high"):
        raise UsageError(f"{opt(name, value)} is unknown", "give low, high, or a list of layer numbers")


def read_layers(text: str) -> str | list[int]:
    if text in ("low", "high"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{opt('dola_layers', text)} is not a list of layer numbers", "low, high, or 1,3,5") from None


def keep(options: Options, ends: tuple[int, ...]) -> int:
    """Return how many candidates each beam needs, so that one is left even where all ends are among them."""
    return max(2, 1 + len(ends)) if options.num_beams > 1 else 1


def dry(p: Any, options: Options, ends: tuple[int, ...]) -> Any:
    """Return what `dry_multiplier` asks for."""
    own = _given(base=options.dry_base, allowed_length=options.dry_allowed_length)
    return p.Dry(options.dry_multiplier, sequence_breakers=options.dry_breakers or (), **own)


def xtc(p: Any, options: Options, ends: tuple[int, ...]) -> Any:
    """Return what `xtc_probability` asks for."""
    seed = options.seed if isinstance(options.seed, int) and options.seed >= 0 else 0
    own = _given(threshold=options.xtc_threshold)
    return p.Xtc(probability=options.xtc_probability, protected_ids=ends, seed=seed, **own)


def mirostat(p: Any, options: Options, ends: tuple[int, ...]) -> Any:
    """Return what `mirostat_tau` asks for."""
    return p.Mirostat(options.mirostat_tau, **_given(eta=options.mirostat_eta))


def forced_eos(p: Any, options: Options, ends: tuple[int, ...]) -> Any:
    """Return what `forced_eos_id` asks for, at the limit that holds."""
    ids = [options.forced_eos_id] if isinstance(options.forced_eos_id, int) else options.forced_eos_id
    limit = options.new_token_limit
    return p.ForcedEos(ids, options.max_length if limit is None else None, limit)


def _given(**values: Any) -> dict[str, Any]:
    """Return those that are not None: a processor has its own defaults for the others."""
    return {name: value for name, value in values.items() if value is not None}
