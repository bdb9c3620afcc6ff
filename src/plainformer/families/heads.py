"""A family's table of heads: for each kind of head its values and its weight rows, and the heads that many families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plainformer.checkpoint.rows import Row, linear, row
from plainformer.config import HeadConfig, ModelConfig, StackConfig, TokenFrontend
from plainformer.config.scaling import TARGETS, Scaling
from plainformer.families.hf_config import HfConfig, problem

Kind = Literal["sequence", "token", "span", "choice", "image", "audio"]
Rate = Callable[[HfConfig], float]


@dataclass(frozen=True)
class Head:
    """One entry of `HEADS`.

    Attributes:
        config: config.json and the stack that the head reads → the head's values; by default those of no head.
        rows: its weight rows, or a function that makes them of the whole configuration.
    """

    config: Callable[[HfConfig, StackConfig], HeadConfig] = lambda source, stack: HeadConfig()
    rows: Sequence[Row] | Callable[[ModelConfig], Sequence[Row]] = ()

    def rows_of(self, config: ModelConfig) -> Sequence[Row]:
        """Return the weight rows for a model with this head."""
        return self.rows(config) if callable(self.rows) else self.rows


def classifier(source: HfConfig, kind: Kind, pick: str, **fields: Any) -> HeadConfig:
    """Return a head with one output for each label (one for multiple choice, start and end for spans)."""
    count = 1 if kind == "choice" else 2 if kind == "span" else len(source.labels())
    scaled = source.object(TARGETS) if kind in ("sequence", "image") else {}
    answers = {"problem": problem(source), "scaling": Scaling.from_dict(scaled) if scaled else None}
    return HeadConfig(kind=kind, pick=pick, out_size=count, **answers, **fields)  # type: ignore[arg-type]


def rate(*names: str, default: float = 0.1) -> Rate:
    """Return how a head's dropout is read: from the first of these fields that config.json states."""
    return lambda source: source.probability(*names, default=default)


def no_dropout(source: HfConfig) -> float:
    return 0.0


def scores(
    kind: Kind,
    pick: str,
    theirs: str = "classifier",
    dense: str = "",
    *,
    dropout: Rate = no_dropout,
    dense_dropout: Rate = no_dropout,
    **fields: Any,
) -> Head:
    """Return a classifying head that is stored as `theirs`; `dense` names a layer before it, as wide as the stack."""

    def config(source: HfConfig, stack: StackConfig) -> HeadConfig:
        transform = {"transform_size": stack.hidden_size} if dense else {}
        rates = {"dropout": dropout(source), "dense_dropout": dense_dropout(source)}
        return classifier(source, kind, pick, **transform, **rates, **fields)

    return Head(config, [*(linear(dense, "head.dense") if dense else ()), *linear(theirs, "head.out")])


def words(kind: str, rows: Sequence[Row] | Callable[[ModelConfig], Sequence[Row]], **fields: Any) -> Head:
    """Return a head that scores every word of the stack's vocabulary."""
    return Head(lambda source, stack: HeadConfig(kind, out_size=vocabulary(stack), **fields), rows)


def pooler(theirs: str) -> Head:
    """Return the head of a base model that transforms its first vector."""
    return Head(
        lambda source, stack: HeadConfig(pick="first", transform_size=stack.hidden_size), linear(theirs, "head.dense")
    )


def vocabulary(stack: StackConfig) -> int:
    """Return how many words a stack of text reads or writes."""
    assert isinstance(stack.frontend, TokenFrontend)
    return stack.frontend.vocab_size


def _mixed(source: HfConfig, stack: StackConfig) -> int:
    """Return how many hidden states the head mixes. The last one counts after the final norm, where there is one.

    So did the heads' training (s3prl) and transformers 4; transformers 5.23 takes it before the norm in the large
    layout, and scores published classifiers of that layout (such as hubert-large-superb-er) differently.
    """
    return stack.num_layers + 1 if source.flag("use_weighted_layer_sum", default=False) else 0


def _audio(source: HfConfig, stack: StackConfig) -> HeadConfig:
    """Project, take the mean over real frames, classify. Here the mean comes first: the linear steps commute."""
    return classifier(
        source,
        "audio",
        "mean",
        mixed_states=_mixed(source, stack),
        transform_size=source.integer("classifier_proj_size", default=256),
        transform_activation="identity",
    )


BASE = Head()
SPAN = scores("span", "all", "qa_outputs")
_FRAME_ROWS = [*linear("classifier", "head.out"), row("layer_weights", "head.layer_weights")]
AUDIO = Head(_audio, [*linear("projector", "head.dense"), *_FRAME_ROWS])
FRAME = Head(lambda source, stack: classifier(source, "token", "all", mixed_states=_mixed(source, stack)), _FRAME_ROWS)
