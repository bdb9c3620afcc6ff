"""From plain data to nested dataclasses: every mistake is named with its key, its line and what to write instead.

    config = read_config("train.yaml", [("optimizer.learning_rate", "3e-5")])

An override changes one value; mappings are merged, so that a key beside it stays.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from plainformer.config.declared import declared, described, fits
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Keys, Written, parse_yaml, read_yaml, write_yaml
from plainformer.errors import InputError, PlainformerError, UsageError, did_you_mean_these, opt, opt_text

T = TypeVar("T")
# What other libraries call some options.
_ELSEWHERE = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "batch_size": "size",
    "micro_batch_size": "micro",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "grad_clip": "max_grad_norm",
    "model_name_or_path": "ref",
    "output_dir": "folder",
    "dtype": "precision",
}


def read_config(path: str | Path, overrides: Iterable[tuple[str, str]] = ()) -> TrainConfig:
    """Return the configuration of a run from a YAML file and overrides, of which later ones win.

    Raises:
        InputError: the file cannot be read or is not YAML. UsageError: an unknown key, a value that cannot be.
    """
    return build(TrainConfig, read_yaml(path), overrides)


def as_config(config: TrainConfig | Mapping[str, Any] | str | Path) -> TrainConfig:
    """Return a configuration as it is, of a mapping (values may be sections already), or of a YAML file."""
    if isinstance(config, TrainConfig):
        return config
    if isinstance(config, Mapping):
        return build(TrainConfig, Written(config))
    if not isinstance(config, str | Path):
        fix = "give a TrainConfig, a mapping, or the path of a YAML file"
        raise UsageError(f"a configuration is not of type {type(config).__name__}", fix)
    return read_config(config)


def as_data(config: Any) -> dict[str, Any]:
    """Return a configuration as plain data, every default written out: what `build` makes it of."""
    return {f.name: as_plain(getattr(config, f.name)) for f in fields(config)}


def as_plain(value: Any) -> Any:
    """Return a value of an option as plain data: sections as mappings, tuples as lists."""
    if is_dataclass(value):
        return as_data(value)
    if isinstance(value, Mapping):
        return {key: as_plain(one) for key, one in value.items()}
    return [as_plain(one) for one in value] if isinstance(value, list | tuple) else value


def flat(data: Any, name: str = "") -> dict[str, Any]:
    """Return nested mappings as one, by dotted names: {"optimizer": {"eps": 1}} → {"optimizer.eps": 1}."""
    if not isinstance(data, Mapping) or not data:
        return {name: data}
    found: dict[str, Any] = {}
    for key, value in data.items():
        found.update(flat(value, f"{name}.{key}" if name else str(key)))
    return found


def helps(kind: type, keys: Keys = ()) -> dict[Keys, str]:
    """Return what each option does, by its keys; those of sections and of what is in them."""
    found = {}
    for f in fields(kind):
        section = section_of(kind, f.name)
        found[(*keys, f.name)] = f.metadata["option"].help
        if section is not None:
            found.update(helps(section, (*keys, f.name)))
    return found


def table_of(kind: type, keys: Keys = ()) -> str:
    """Return the options as Markdown, as the documentation shows them: a table for each section, with dotted names."""
    rows, sections = [], []
    for f in fields(kind):
        here, help, section = (*keys, f.name), f.metadata["option"].help, section_of(kind, f.name)
        if section is not None:
            sections.append(f"**{_dotted(here)}**: {help}\n\n{table_of(section, here)}")
        else:
            default = "" if f.default in (None, MISSING) else f"`{_shown(f.default)}`"
            rows.append(f"| `{_dotted(here)}` | {default} | {help} |")
    table = "\n".join(["| option | default | what it does |", "|---|---|---|", *rows])
    return "\n\n".join([table, *sections])


def _shown(value: Any) -> str:
    return write_yaml({"x": value}).removeprefix("x: ").strip()


@cache
def section_of(kind: type, name: str) -> type | None:
    """Return the dataclass that a field holds; None for a field that is a value."""
    found = declared(kind, name)
    kinds = [one for one in (get_args(found) or (found,)) if isinstance(one, type) and is_dataclass(one)]
    return kinds[0] if kinds else None


# ---- building -----------------------------------------------------------------------------------------------------------


def build(kind: type[T], written: Written, overrides: Iterable[tuple[str, str]] = ()) -> T:
    """Return a dataclass, and those in it, of plain data."""
    builder = _Builder(Written(written.data, written.name, dict(written.lines)))
    for name, text in overrides:
        builder.written.data = builder.overridden(kind, builder.written.data, (), tuple(name.split(".")), text)
    made: T = builder.made(kind, builder.written.data, ())
    return made


@dataclass
class _Builder:
    written: Written
    typed: set[Keys] = field(default_factory=set)  # what overrides gave

    def made(self, kind: type, data: Any, keys: Keys) -> Any:
        """Return the dataclass `kind` of a mapping."""
        if isinstance(data, kind):
            return data
        if not isinstance(data, Mapping):
            raise self.error(
                f"{self.named(keys, data)} is not a mapping",
                keys,
                "write its keys below it, indented: " + ", ".join(f.name for f in fields(kind)),
            )
        known = {f.name: f for f in fields(kind)}
        for key in data:
            if key not in known:
                where = f" in {_dotted(keys)}" if keys else ""
                raise self.error(f"unknown key {key!r}{where}", (*keys, key), _nearest(str(key), kind, keys))
        for f in known.values():
            if f.default is MISSING and f.default_factory is MISSING and data.get(f.name) is None:
                help = f.metadata["option"].help
                raise self.error(f"{_dotted((*keys, f.name))} is missing", keys, f"give it: {help}")
        values = {name: self.value(kind, name, value, keys) for name, value in data.items()}
        given = {name: value for name, value in values.items() if value is not MISSING}
        try:
            kind(**given)  # checks values as they are written
        except UsageError as error:
            raise self.located(error, kind, keys) from None
        return kind(**{name: _exact(value, declared(kind, name)) for name, value in given.items()})

    def value(self, kind: type, name: str, value: Any, keys: Keys) -> Any:
        """Return the value of a field; MISSING for a section, or a mapping, of which nothing is written."""
        wanted, section = declared(kind, name), section_of(kind, name)
        if value is None and not fits(None, wanted) and (section is not None or get_origin(wanted) is Mapping):
            return MISSING
        if section is not None:
            return None if value is None else self.made(section, value, (*keys, name))
        if not fits(value, wanted) and _holds_text(wanted) and _holds_numbers(value):
            what = f"{self.named((*keys, name), value)} is not {described(wanted)}"
            raise self.error(what, (*keys, name), "quote texts that look like numbers or true and false")
        return value

    def overridden(self, kind: type | None, data: Any, keys: Keys, path: Keys, text: str) -> Any:
        """Return data with the value at `path`, below `keys`, changed; mappings on the way there are made."""
        name = str(path[0])
        if kind is not None:
            name = name.replace("-", "_")
            if name not in {f.name for f in fields(kind)}:
                full = _dotted((*keys, *path))
                raise UsageError(f"there is no option {opt(full)}", _nearest(full, kind, keys, typed=True))
        here = (*keys, name)
        section = section_of(kind, name) if kind is not None else None
        wanted = declared(kind, name) if kind is not None else Any
        before = data.get(name) if isinstance(data, Mapping) else None
        if len(path) == 1:
            after = _merged(before, self.read(wanted, section, here, text))
            self.typed.add(here)
        else:
            if section is None and kind is not None and not _holds_mapping(wanted):
                raise UsageError(f"{opt(_dotted((*here, *path[1:])))} is unknown", f"{opt(_dotted(here))} is one value")
            if before is not None and not isinstance(before, Mapping):
                what = f"{opt(_dotted((*here, *path[1:])))} cannot be set: {_dotted(here)} is {before!r}"
                raise UsageError(what, f"give all of {opt(_dotted(here))}")
            after = self.overridden(section, before or {}, here, path[1:], text)
        return {**(data or {}), name: after}

    def read(self, wanted: Any, section: type | None, keys: Keys, text: str) -> Any:
        """Return the value that is typed: YAML, or the text itself where a text is wanted and YAML is not quoted."""
        takes_text = section is None and wanted is not Any and fits("", wanted)
        if not text.strip() and not takes_text:
            raise UsageError(f"{opt(_dotted(keys))} is given without a value", "give one; null takes a value back")
        try:
            value = parse_yaml(text).data
        except InputError as error:
            if takes_text:
                return text
            what = f"{opt(_dotted(keys), text)} is not YAML: {error.reason()}"
            raise UsageError(what, error.fix) from None
        if takes_text and (isinstance(value, str) or not fits(value, wanted)):
            return value if text[:1] in "'\"" and isinstance(value, str) else text
        return value

    # ---- errors

    def named(self, keys: Keys, value: Any) -> str:
        return (
            opt(_dotted(keys), value) if self.is_typed(keys) or not self.written.name else f"{_dotted(keys)}: {value!r}"
        )

    def is_typed(self, keys: Keys) -> bool:
        """Return whether an override gave a value, or what it is in."""
        return any(keys[:n] in self.typed for n in range(1, len(keys) + 1))

    def error(self, what: str, keys: Keys, fix: str) -> UsageError:
        place = "" if self.is_typed(keys) else self.written.place(keys)
        return UsageError(f"{what} ({place})" if place else what, fix)

    def located(self, error: UsageError, kind: type, keys: Keys) -> UsageError:
        """Return the error of a section's checks with the dotted names of its options, and their line."""
        own = {f.name for f in fields(kind)}

        def full(name: str) -> Keys:
            return (*keys, *name.split(".")) if name.partition(".")[0] in own else tuple(name.split("."))

        def spelling(name: str, value: str | None) -> str:
            path = full(name)
            if self.is_typed(path) or not self.written.name:
                return opt_text(_dotted(path), value)
            return _dotted(path) if value is None else f"{_dotted(path)}: {value}"

        lines = [path for path in map(full, error.options) if path in self.written.lines and not self.is_typed(path)]
        return error.respelt(spelling, f" ({self.written.place(lines[0])})" if lines else "")  # type: ignore[return-value]


def _dotted(keys: Iterable[str | int]) -> str:
    return ".".join(map(str, keys))


def _merged(before: Any, after: Any) -> Any:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return {**before, **{key: _merged(before.get(key), value) for key, value in after.items()}}
    return after


def _exact(value: Any, wanted: Any) -> Any:
    """Return a value as the type that is declared: 1 as 1.0, a list as a tuple."""
    kinds = get_args(wanted) or (wanted,)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
    return tuple(value) if isinstance(value, list) else value


def _holds_mapping(wanted: Any) -> bool:
    return any(get_origin(one) is Mapping for one in (wanted, *get_args(wanted)))


def _holds_text(wanted: Any) -> bool:
    return str in (wanted, *get_args(wanted)) or any(_holds_text(one) for one in get_args(wanted))


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_numbers, value.values()))
    return any(map(_holds_numbers, value)) if isinstance(value, list | tuple) else isinstance(value, bool | int | float)


@contextmanager
def dotted_options() -> Iterator[None]:
    """Where an error names an option of a section by its own name, name the section, too: "data.max_length".

    What reads and encodes knows options by their own names; a configuration has them in sections.
    """
    try:
        yield
    except PlainformerError as error:
        known = _sections()
        if not any(name in known for name in error.options):
            raise
        raise error.respelt(lambda name, value: opt_text(known.get(name, name), value)) from error.__cause__


@cache
def _sections() -> dict[str, str]:
    """Return the dotted name of each option in a section that has its own name to itself."""
    every = list(all_names(TrainConfig))
    own = [name.rpartition(".")[2] for name in every]
    return {last: name for last, name in zip(own, every, strict=True) if own.count(last) == 1 and "." in name}


# ---- suggestions --------------------------------------------------------------------------------------------------------


def all_names(kind: type, keys: Keys = ()) -> Iterator[str]:
    """Yield the dotted names of all options, sections included."""
    for f in fields(kind):
        yield _dotted((*keys, f.name))
        section = section_of(kind, f.name)
        if section is not None:
            yield from all_names(section, (*keys, f.name))


def _nearest(given: str, kind: type, keys: Keys, *, typed: bool = False) -> str:
    """Return what may be meant by an unknown key of a section, or by an unknown dotted option."""
    leaf = given.rpartition(".")[2].replace("-", "_")[:80]
    inside = [f.name for f in fields(kind)]
    near = _close(leaf, inside)
    found = [_dotted((*keys, name)) for name in near]
    if not found:
        everywhere = list(all_names(TrainConfig))
        leaves = {name: name.rpartition(".")[2] for name in everywhere}
        nearest = _close(leaf, list(leaves.values()), cutoff=0.75)
        found = [name for name in everywhere if leaves[name] in nearest][:3]
    if typed and found:
        return f"did you mean {' or '.join(opt(name) for name in found)}?"
    return did_you_mean_these(near or found) or "known: " + ", ".join(inside)


def _close(given: str, names: list[str], cutoff: float = 0.6) -> list[str]:
    """Return the names nearest to a misspelt one, which may also be what other libraries call it."""
    if given in names:
        return [given]
    spellings = {name: name for name in names} | {also: name for also, name in _ELSEWHERE.items() if name in names}
    if given in spellings:
        return [spellings[given]]
    close = difflib.get_close_matches(given.lower(), spellings, n=2, cutoff=cutoff)
    return list(dict.fromkeys(spellings[one] for one in close))
