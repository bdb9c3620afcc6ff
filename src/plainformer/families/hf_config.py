"""Reading a Hugging Face `config.json`: typed getters whose errors name the field, and what all families share."""

from __future__ import annotations

import math
from typing import Any

from plainformer.config import RopeConfig, RopeScaling
from plainformer.config.checks import (
    ACTIVATIONS,
    MAX_POSITIONS,
    is_number,
    require,
    require_choice,
    require_size,
    shown,
)
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


# Ids past every vocabulary, and classes that nobody has named: more of them is a lie or a typing error.
MAX_ID = 1 << 31
MAX_UNNAMED_LABELS = 1 << 18

PROBLEMS = {
    "": "",
    "regression": "regression",
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
}


class HfConfig:
    """A `config.json` read with care: wrong types and missing fields are errors that name them."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def with_defaults(self, **defaults: Any) -> HfConfig:
        """The same file, with these values where it is silent."""
        return HfConfig({**defaults, **{name: value for name, value in self.raw.items() if value is not None}})

    def get(self, *names: str, default: Any = None) -> Any:
        """The first field that is there and not null."""
        for name in names:
            if self.raw.get(name) is not None:
                return self.raw[name]
        return default

    def integer(self, *names: str, default: int | None = None) -> int:
        value = self.get(*names, default=default)
        require(value is not None, f"{names[0]!r} is missing")
        whole = isinstance(value, int) and is_number(value)
        require(whole, f"{names[0]}={shown(value)} is not a whole number, or far out of range")
        return int(value)

    def number(self, *names: str, default: float | None = None) -> float:
        value = self.get(*names, default=default)
        require(value is not None, f"{names[0]!r} is missing")
        require(is_number(value), f"{names[0]}={shown(value)} is not a number")
        return float(value)

    def positive(self, *names: str, default: float | None = None) -> float:
        """A number above zero."""
        value = self.number(*names, default=default)
        require(value > 0, f"{names[0]}={value} is not positive")
        return value

    def maybe_number(self, name: str) -> float | None:
        """A number, or None where the file has none."""
        return None if self.get(name) is None else self.number(name)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers; empty where the file has none."""
        value = self.get(name, default=[])
        good = isinstance(value, list | tuple) and all(is_number(v) for v in value)
        require(good, f"{name}={shown(value)} is not a list of numbers")
        return tuple(float(v) for v in value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty where the file has none."""
        value = self.get(name, default=[])
        good = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        require(good, f"{name}={shown(value)} is not a list of names")
        return tuple(value)

    def object(self, name: str) -> dict[str, Any]:
        """A nested object; empty where the file has none."""
        value = self.get(name, default={})
        require(isinstance(value, dict), f"{name}={shown(value)} is not an object")
        return dict(value)

    def flag(self, *names: str, default: bool) -> bool:
        value = self.get(*names, default=default)
        require(isinstance(value, bool), f"{names[0]}={shown(value)} is neither true nor false")
        return bool(value)

    def text(self, *names: str, default: str) -> str:
        value = self.get(*names, default=default)
        require(isinstance(value, str), f"{names[0]}={shown(value)} is not a text")
        return str(value)

    def sizes(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.get(name, default=list(default))
        good = isinstance(value, list | tuple) and all(isinstance(v, int) and is_number(v) for v in value)
        require(good, f"{name}={shown(value)} is not a list of whole numbers")
        return tuple(value)

    def pair(self, name: str, default: int) -> tuple[int, int]:
        """A size given as one number or as [height, width]."""
        value = self.get(name, default=default)
        both = value if isinstance(value, list | tuple) else (value, value)
        good = len(both) == 2 and all(isinstance(v, int) and is_number(v) for v in both)
        require(good, f"{name}={shown(value)} is not one or two whole numbers")
        return both[0], both[1]

    def activation(self, *names: str, default: str) -> str:
        """An activation under any of its published names."""
        name = self.text(*names, default=default)
        if name not in ACTIVATION_NAMES and name not in ACTIVATIONS:
            raise CheckpointError(
                f"{names[0]}={shown(name)} is not an activation that is supported",
                did_you_mean(name, ACTIVATION_NAMES),
            )
        return ACTIVATION_NAMES.get(name, name)

    def refuse(self, name: str, *harmless: Any, why: str) -> None:
        """A field whose value changes the computation in a way that is not supported is an error, not ignored."""
        value = self.raw.get(name)
        if value is not None and value not in harmless:
            raise CheckpointError(f"{name}={shown(value)} is not supported: {why}", "use another checkpoint")

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them."""
        value = self.raw.get(name)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        # Some files say -1 for none.
        good = all(isinstance(v, int) and not isinstance(v, bool) and -1 <= v < MAX_ID for v in values)
        require(good, f"{name}={shown(value)} is not a token id, or a list of them")
        return tuple(values)

    def id(self, name: str, default: int | None = None) -> int | None:
        """One token id, or None."""
        found = self.ids(name)
        return found[0] if found else default

    def trained_positions(self) -> int | None:
        """The longest sequence that the model was trained on; None where the file does not say."""
        stated = self.raw.get("max_position_embeddings")
        return stated if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0 else None

    def labels(self) -> tuple[str, ...]:
        """The names of classes 0, 1, ...; LABEL_0, ... where the checkpoint names none."""
        names = self.object("id2label")
        if self.get("id2label") is None:
            count = self.integer("num_labels", default=2)
            require_size("num_labels", count, MAX_UNNAMED_LABELS)
            return tuple(f"LABEL_{i}" for i in range(count))
        for key, value in names.items():
            require(key.isascii() and key.isdigit(), f"id2label has the key {shown(key)}, not a number")
            good = isinstance(value, str) or is_number(value) or isinstance(value, bool)
            require(good, f"id2label[{shown(key)}]={shown(value)} is not a name")
        numbers = [str(i) for i in range(len(names))]
        in_order = bool(names) and all(number in names for number in numbers)
        require(in_order, "id2label does not number its classes 0, 1, 2, ...")
        return tuple(str(names[number]) for number in numbers)


def problem(source: HfConfig) -> Any:
    """What kind of answer a classifier gives, in our words."""
    name = source.text("problem_type", default="")
    require_choice("problem_type", name, tuple(PROBLEMS))
    return PROBLEMS[name]


def rope_from(raw: dict[str, Any], head_dim: int, max_positions: int, theta: float | None = None) -> RopeConfig:
    """Rotary positions from `rope_parameters` (new files) or `rope_theta` with `rope_scaling` (older ones).

    `raw` holds those fields; `max_positions` is the published length limit, the original one unless the file says other.
    """
    whole = HfConfig(raw)
    # The newer spelling wins where a file has both.
    fields = HfConfig({**whole.object("rope_scaling"), **whole.object("rope_parameters")})
    base = theta if theta is not None else fields.number("rope_theta", default=raw.get("rope_theta") or 10000.0)
    fraction = fields.positive(
        "partial_rotary_factor", default=raw.get("partial_rotary_factor") or raw.get("rotary_pct") or 1.0
    )
    require(fraction <= 1, f"partial_rotary_factor={fraction} is more than all channels of a head")
    # A statement beside the rope's own fields counts before one inside them, as in the reference (transformers 5.23).
    inside = fields.get("original_max_position_embeddings", default=max_positions)
    original = whole.integer("original_max_position_embeddings", default=inside)
    kind = fields.text("rope_type", "type", default="default")
    return RopeConfig(base, int(head_dim * fraction), _scaling(kind, fields, original, max_positions))


def _scaling(kind: str, fields: HfConfig, original: int, max_positions: int) -> RopeScaling | None:
    if kind in ("default", "none"):
        return None
    for name, length in (("original_max_position_embeddings", original), ("max_position_embeddings", max_positions)):
        require_size(name, length, MAX_POSITIONS)
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
    raise CheckpointError(f"rope type {shown(kind)} is not supported", did_you_mean(kind, options))


def _yarn(fields: HfConfig, original: int, max_positions: int) -> RopeScaling:
    factor = fields.positive("factor", default=max_positions / original)
    amplitude = fields.maybe_number("attention_factor")
    if amplitude is None:
        mscale, all_dim = fields.maybe_number("mscale"), fields.maybe_number("mscale_all_dim")
        amplitude = _mscale(factor, mscale) / _mscale(factor, all_dim) if mscale and all_dim else _mscale(factor, 1.0)
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=fields.number("beta_fast", default=32.0),
        beta_slow=fields.number("beta_slow", default=1.0),
        attention_factor=amplitude,
        truncate=fields.flag("truncate", default=True),
    )


def _mscale(factor: float, mscale: float) -> float:
    value = 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
    require(value > 0, f"mscale={mscale} makes the rotation's amplitude {value}")
    return value


def _longrope(fields: HfConfig, original: int, max_positions: int) -> RopeScaling:
    factor = fields.positive("factor", default=max_positions / original)
    amplitude = fields.maybe_number("attention_factor")
    if amplitude is None:
        require(factor <= 1 or original > 1, "longrope's original length 1 gives no attention_factor")
        amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = fields.numbers("short_factor"), fields.numbers("long_factor")
    require(all(v > 0 for v in (*short, *long)), "short_factor and long_factor must be positive")
    return RopeScaling("longrope", factor, original, attention_factor=amplitude, short_factors=short, long_factors=long)
