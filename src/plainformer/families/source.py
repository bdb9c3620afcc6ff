"""Reading a Hugging Face `config.json`: typed getters whose errors name the field, and what all families share."""

from __future__ import annotations

import math
from typing import Any

from plainformer.config import ACTIVATIONS, HeadConfig, RopeConfig, RopeScaling, require
from plainformer.errors import CheckpointError, did_you_mean

# The names that config.json files use for activations → ours.
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "linear": "identity",
}


class Source:
    """A `config.json` read with care: wrong types and missing fields are errors that name them."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def with_defaults(self, **defaults: Any) -> Source:
        """The same file, with these values where it is silent."""
        return Source({**defaults, **{name: value for name, value in self.raw.items() if value is not None}})

    def get(self, *names: str, default: Any = None) -> Any:
        """The first field that is there and not null."""
        for name in names:
            if self.raw.get(name) is not None:
                return self.raw[name]
        return default

    def integer(self, *names: str, default: int | None = None) -> int:
        value = self.get(*names, default=default)
        require(value is not None, f"{names[0]!r} is missing")
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole, f"{names[0]}={value!r} is not a whole number")
        return int(value)

    def number(self, *names: str, default: float | None = None) -> float:
        value = self.get(*names, default=default)
        require(value is not None, f"{names[0]!r} is missing")
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        require(good, f"{names[0]}={value!r} is not a number")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        value = self.get(*names, default=default)
        require(isinstance(value, bool), f"{names[0]}={value!r} is neither true nor false")
        return bool(value)

    def text(self, *names: str, default: str) -> str:
        value = self.get(*names, default=default)
        require(isinstance(value, str), f"{names[0]}={value!r} is not a text")
        return str(value)

    def sizes(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.get(name, default=list(default))
        good = isinstance(value, list | tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        require(good, f"{name}={value!r} is not a list of whole numbers")
        return tuple(value)

    def pair(self, name: str, default: int) -> tuple[int, int]:
        """A size given as one number or as [height, width]."""
        value = self.get(name, default=default)
        if isinstance(value, int):
            return value, value
        require(isinstance(value, list | tuple) and len(value) == 2, f"{name}={value!r} is not one or two numbers")
        return tuple(value)  # type: ignore[return-value]

    def activation(self, *names: str, default: str) -> str:
        """An activation under any of its published names."""
        name = self.text(*names, default=default)
        if name not in ACTIVATION_NAMES and name not in ACTIVATIONS:
            raise CheckpointError(
                f"config.json: {names[0]}={name!r} is not an activation that is supported",
                did_you_mean(name, ACTIVATION_NAMES),
            )
        return ACTIVATION_NAMES.get(name, name)

    def refuse(self, name: str, *harmless: Any, why: str) -> None:
        """A field whose value changes the computation in a way that is not supported is an error, not ignored."""
        value = self.raw.get(name)
        if value is not None and value not in harmless:
            raise CheckpointError(f"config.json: {name}={value!r} is not supported: {why}", "use another checkpoint")

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them."""
        value = self.raw.get(name)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        require(all(isinstance(v, int) and not isinstance(v, bool) for v in values), f"{name}={value!r} is not an id")
        return tuple(values)

    def id(self, name: str, default: int | None = None) -> int | None:
        """One token id, or None."""
        found = self.ids(name)
        return found[0] if found else default

    def labels(self) -> tuple[str, ...]:
        """The names of classes 0, 1, ...; LABEL_0, ... where the checkpoint names none."""
        names = self.get("id2label")
        if not isinstance(names, dict):
            count = self.integer("num_labels", default=2)
            require(0 < count < 1 << 24, f"num_labels={count} is out of range")
            return tuple(f"LABEL_{i}" for i in range(count))
        try:
            table = {int(key): str(value) for key, value in names.items()}
        except ValueError:
            raise CheckpointError(
                "config.json: id2label has a key that is not a number", "number the classes"
            ) from None
        require(sorted(table) == list(range(len(table))), "id2label does not number its classes 0, 1, 2, ...")
        return tuple(table[i] for i in range(len(table)))


def classifier(source: Source, kind: str, pick: str, **fields: Any) -> HeadConfig:
    """A head with one output for each label (one for multiple choice)."""
    count = 1 if kind == "choice" else 2 if kind == "span" else len(source.labels())
    return HeadConfig(kind=kind, pick=pick, out_size=count, problem=problem(source), **fields)  # type: ignore[arg-type]


def problem(source: Source) -> Any:
    """What kind of answer a classifier gives, in our words."""
    name = source.text("problem_type", default="")
    names = {"single_label_classification": "single_label", "multi_label_classification": "multi_label"}
    return names.get(name, "regression" if name == "regression" else "")


def rope_from(raw: dict[str, Any], head_dim: int, max_positions: int, theta: float | None = None) -> RopeConfig:
    """Rotary positions from `rope_parameters` (new files) or `rope_theta` with `rope_scaling` (older ones).

    `raw` holds those fields; `max_positions` is the published length limit, the original one unless the file says other.
    """
    given = raw.get("rope_parameters") or {}
    old = raw.get("rope_scaling") or {}
    require(isinstance(given, dict) and isinstance(old, dict), "rope_parameters or rope_scaling is not an object")
    fields = Source({**old, **given})
    base = theta if theta is not None else fields.number("rope_theta", default=raw.get("rope_theta") or 10000.0)
    fraction = fields.number(
        "partial_rotary_factor", default=raw.get("partial_rotary_factor") or raw.get("rotary_pct") or 1.0
    )
    dim = int(head_dim * fraction)
    original = fields.integer(
        "original_max_position_embeddings", default=raw.get("original_max_position_embeddings") or max_positions
    )
    kind = fields.text("rope_type", "type", default="default")
    return RopeConfig(float(base), dim, _scaling(kind, fields, original, max_positions))


def _scaling(kind: str, fields: Source, original: int, max_positions: int) -> RopeScaling | None:
    if kind in ("default", "none"):
        return None
    if kind == "linear":
        return RopeScaling("linear", fields.number("factor"))
    if kind == "dynamic":
        return RopeScaling("dynamic", fields.number("factor"), original_max_positions=max_positions)
    if kind == "llama3":
        low, high = fields.number("low_freq_factor", default=1.0), fields.number("high_freq_factor", default=4.0)
        require(high > low, "high_freq_factor must be greater than low_freq_factor")
        return RopeScaling("llama3", fields.number("factor"), original, low, high)
    if kind == "yarn":
        return _yarn(fields, original, max_positions)
    if kind in ("longrope", "su"):
        return _longrope(fields, original, max_positions)
    options = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
    raise CheckpointError(f"config.json: rope type {kind!r} is not supported", did_you_mean(kind, options))


def _yarn(fields: Source, original: int, max_positions: int) -> RopeScaling:
    factor = fields.number("factor", default=max_positions / original)
    amplitude = fields.get("attention_factor")
    if amplitude is None:
        mscale, all_dim = fields.get("mscale"), fields.get("mscale_all_dim")
        both = mscale and all_dim
        amplitude = _mscale(factor, mscale) / _mscale(factor, all_dim) if both else _mscale(factor, 1.0)
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=fields.number("beta_fast", default=32.0),
        beta_slow=fields.number("beta_slow", default=1.0),
        attention_factor=float(amplitude),
        truncate=fields.flag("truncate", default=True),
    )


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(fields: Source, original: int, max_positions: int) -> RopeScaling:
    factor = fields.number("factor", default=max_positions / original)
    amplitude = fields.get("attention_factor")
    if amplitude is None:
        amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = fields.get("short_factor", default=()), fields.get("long_factor", default=())
    numbers = all(isinstance(v, int | float) and v > 0 for v in (*short, *long))
    require(numbers, "short_factor and long_factor must be positive numbers")
    return RopeScaling(
        "longrope",
        factor,
        original,
        attention_factor=float(amplitude),
        short_factors=tuple(float(v) for v in short),
        long_factors=tuple(float(v) for v in long),
    )
