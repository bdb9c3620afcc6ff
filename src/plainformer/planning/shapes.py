"""A decoder of about as many parameters as are asked for: the nearest published shape, with other sizes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plainformer.config import ModelConfig
from plainformer.errors import CheckpointError, UsageError, opt
from plainformer.plan.asked import ShapeOptions
from plainformer.plan.planned import count_parameters
from plainformer.plan.published import nearest, parse_count
from plainformer.plan.rules import said_count
from plainformer.planning.described import Described

_FAR = 0.1
_NEAR = 0.03  # a model by its number of parameters: how far that may be off before its layers are changed


def of_size(shape: ShapeOptions) -> Described:
    """Return a decoder with about this many parameters: the nearest published shape, changed where that was asked for."""
    from plainformer.families import config_from_dict

    count = parse_count(str(shape.params))
    found = nearest(count)
    config = config_from_dict(dict(found.config))
    changes = {name: getattr(shape, name) for name in sorted(shape.given - {"params"})}
    config = reshaped(config, changes)
    notes = [
        f"the shape is that of {found.name} ({found.parameters:,} parameters), the published one nearest to {shape.params}"
    ]
    if changes:
        notes.append("with " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changes.items()))

    def is_near(most: float) -> bool:
        return abs(count_parameters(config) / count - 1) <= most or called(found.name, count)

    if "layers" not in changes and not is_near(_NEAR):
        layers = fitting_layers(config, count)
        config = reshaped(config, {"layers": layers})
        notes.append(f"with {layers} layers in place of {found_layers(found.config)}, to come nearer to {shape.params}")
        if not changes and not is_near(_FAR):
            what = (
                f"{opt('params', shape.params)}: of that shape, the nearest has {said_count(count_parameters(config))}"
            )
            raise UsageError(what, f"give {opt('width', 256)} or other sizes as well, or another number")
    name = "model" if changes else f"{said_count(count)} as {found.name}"
    return Described(name, config, notes=("; ".join(notes),))


def called(name: str, count: int) -> bool:
    """Return whether people call this model by that number of parameters."""
    from plainformer.plan.published import size_in

    return size_in(name) == count


def found_layers(config: Mapping[str, Any]) -> int:
    return int(config.get("num_hidden_layers", config.get("n_layer", 0)))


def fitting_layers(config: ModelConfig, count: int) -> int:
    """Return the number of layers with which a model comes nearest to this many parameters."""
    one, two = (count_parameters(reshaped(config, {"layers": layers})) for layers in (1, 2))
    return max(round((count - one) / (two - one)) + 1, 1)


def reshaped(config: ModelConfig, changes: Mapping[str, int]) -> ModelConfig:
    """Return a decoder with other sizes; the width of a head stays, where it is not the heads that change."""
    if not changes:
        return config
    stack = config.decoder
    assert stack is not None
    layers, width = changes.get("layers", stack.num_layers), changes.get("width", stack.hidden_size)
    heads = changes.get("heads", max(width // stack.head_dim, 1) if "width" in changes else stack.num_heads)
    kv_heads = changes.get("kv_heads", max(heads * stack.num_kv_heads // stack.num_heads, 1))
    if "heads" not in changes and "width" not in changes:
        head_dim = stack.head_dim
    else:
        if width % heads:
            raise UsageError(f"{opt('width', width)} is not a multiple of {opt('heads', heads)}", "choose one that is")
        head_dim = width // heads
    if heads % kv_heads:
        raise UsageError(
            f"{opt('heads', heads)} cannot share {opt('kv_heads', kv_heads)} evenly", "let one divide the other"
        )
    ffn = changes.get("ffn_size", round(stack.ffn_size * width / stack.hidden_size))
    words = changes.get("vocabulary", config.vocab_size or 0)
    rope = tuple(None if r is None else replace(r, dim=r.dim * head_dim // stack.head_dim) for r in stack.rope)
    frontend: Any = replace(stack.frontend, vocab_size=words, embedding_size=width)  # type: ignore[arg-type]
    try:
        decoder = replace(
            stack,
            frontend=frontend,
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_size=ffn,
            windows=repeated(stack.windows, layers),
            rope=repeated(rope, layers),
            layer_ids=tuple(range(layers)),
        )
    except CheckpointError as error:
        raise UsageError(f"no such model: {error.what}", "give other sizes, such as the width") from None
    return replace(config, head=replace(config.head, out_size=words), decoder=decoder)


def repeated(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Return as many values, in the order in which they come."""
    return tuple(values[place % len(values)] for place in range(count))
