"""Reading a Hugging Face `config.json`: what all families share."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from plainformer.config.fields import Fields
from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError, spelling_of
from plainformer.families.quantised import refuse_quantised

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


class HfConfig(Fields):
    """A `config.json`, with what all families read in it alike."""

    def with_defaults(self, **defaults: Any) -> HfConfig:
        """Return the same file with these values where it has none."""
        return HfConfig({**self.raw, **{n: value for n, value in defaults.items() if self.raw.get(n) is None}})

    def renamed(self, aliases: Mapping[str, str]) -> HfConfig:
        """Return the same file with its fields under the names that `aliases` give them; as in transformers, these win."""
        given = {name: self.raw[other] for other, name in aliases.items() if self.raw.get(other) is not None}
        return HfConfig({**self.raw, **given})

    def refuse_variants(self) -> None:
        """Refuse what any family's file may say and none here computes."""
        inner = self.raw.get("text_config")
        for raw in (self.raw, inner if isinstance(inner, dict) else {}):
            HfConfig(raw).refuse("per_layer_config", {}, why="layers of different sizes are not known here")
            refuse_quantised(raw)

    def stack_sizes(self, activation: str = "hidden_act") -> dict[str, Any]:
        """Return a stack's sizes and activation under the names that most families use; the defaults are BERT's."""
        return {
            "hidden_size": self.integer("hidden_size", default=768),
            "num_layers": self.integer("num_hidden_layers", default=12),
            "num_heads": self.integer("num_attention_heads", default=12),
            "ffn_size": self.integer("intermediate_size", default=3072),
            "activation": self.activation(activation, default="gelu"),
        }

    def activation(self, *names: str, default: str) -> str:
        """Return an activation under any of its published names."""
        name = self.text(*names, default=default)
        if name not in ACTIVATION_NAMES and name not in ACTIVATIONS:
            raise CheckpointError(
                f"{names[0]}={shown(name)} is not an activation that is supported",
                spelling_of(name, ACTIVATION_NAMES) or "supported: " + ", ".join(ACTIVATION_NAMES),
            )
        return ACTIVATION_NAMES.get(name, name)

    def refuse(self, name: str, *harmless: Any, why: str) -> None:
        """A field whose value changes the computation in a way that is not supported is an error, not ignored."""
        value = self.raw.get(name)
        if value is not None and value not in harmless:
            raise CheckpointError(f"{name}={shown(value)} is not supported: {why}", "use another checkpoint")

    def ids(self, name: str) -> tuple[int, ...]:
        """Return a token id or a list of them."""
        value = self.raw.get(name)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        # Some files say -1 for none.
        good = all(is_whole(v, -1) and v < MAX_ID for v in values)
        require(good, f"{name}={shown(value)} is not a token id, or a list of them")
        return tuple(values)

    def id(self, name: str, default: int | None = None) -> int | None:
        """Return one token id, or None."""
        found = self.ids(name)
        return found[0] if found else default

    def trained_positions(self) -> int | None:
        """Return the longest sequence that the model was trained on; None where the file does not say."""
        stated = self.raw.get("max_position_embeddings")
        return stated if is_whole(stated, 1) else None

    def labels(self) -> tuple[str, ...]:
        """Return the names of classes 0, 1, ...; LABEL_0, ... where the checkpoint names none, or another number of them.

        As in transformers 5.23, `num_labels` wins over an `id2label` of another length.
        """
        names = self.object("id2label")
        if self.get("id2label") is None or self.integer("num_labels", default=len(names)) != len(names):
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
    """Return what kind of answer a classifier gives, in our words."""
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
    # A statement beside the rope's own fields counts before one inside them, as in transformers 5.23.
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
    raise CheckpointError(
        f"rope type {shown(kind)} is not supported", spelling_of(kind, options) or "supported: " + ", ".join(options)
    )


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
