"""Options of the tasks that read text and answer in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plainformer.config.options import MISSING, flag, one_of, opt, option, text, whole
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, a_type, did_you_mean
from plainformer.inputs.listed import as_list
from plainformer.tasks.options import BATCH_SIZE, TextOptions, WindowOptions

# The order in which older checkpoints of sentence-transformers, which name theirs by flags, concatenate several.
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last", "pooler")
AGGREGATIONS = ("none", "simple", "first", "average", "max")
SCHEMES = ("IOB1", "IOB2", "IOBES", "BILOU")
TEMPLATE = "This example is {}."


@dataclass(frozen=True, kw_only=True)
class FillMaskOptions(TextOptions):
    """Options of fill-mask; few texts at once, for the model scores every word at every position."""

    batch_size: int = option(BATCH_SIZE, help="Inputs that run at once; 1 answers each as it is read.", check=whole(1))
    top_k: int = option(5, help="Fill-mask: candidates for each gap.", check=whole(1))


@dataclass(frozen=True, kw_only=True)
class TokenClassificationOptions(WindowOptions):
    """Options of token classification.

    window: default: the model's limit. stride: default: a quarter of the window.
    aggregation: "none" labels each token. The others find entities, by the label of each token ("simple"), or of each word:
        that of its first token ("first"), of the mean over its tokens ("average"), or of its most certain token ("max").
        Default: "first", as such models are trained; "none" where labels have no B- or I-.
    scheme: how the labels mark entities, strictly. Default: by their prefixes, and whatever has a type is part of an entity.
    """

    aggregation: str | None = option(None, help=f"Entities: {', '.join(AGGREGATIONS)}.", check=one_of(*AGGREGATIONS))
    scheme: str | None = option(None, help=f"Entities: {', '.join(SCHEMES)}, strictly.", check=one_of(*SCHEMES))

    def __post_init__(self) -> None:
        super().__post_init__()
        idle = self.scheme is not None and self.aggregation == "none"
        no_effect(idle, "scheme", f"with {opt('aggregation', 'none')}", "leave one of them out")


def read_poolings(pooling: object) -> tuple[str, ...]:
    """The poolings that an option names: "mean", or several whose vectors are side by side, "cls+mean"."""
    names = tuple(pooling.split("+")) if isinstance(pooling, str) else ()
    unknown = next((name for name in names if name not in POOLINGS), None)
    if not names or unknown is not None:
        hint = did_you_mean(unknown or str(pooling), POOLINGS)
        raise UsageError(f"{opt('pooling', pooling)} is unknown", hint or f"known: {', '.join(POOLINGS)}")
    return names


def _pooling(name: str, value: Any) -> None:
    read_poolings(value)


@dataclass(frozen=True, kw_only=True)
class FeatureExtractionOptions(TextOptions):
    """Options of feature extraction; what is not given is as the checkpoint says.

    pooling: cls, max, mean, mean_sqrt_len, weightedmean, last or pooler; several side by side as "cls+mean". A dense layer
        of the checkpoint follows in any case.
    prompt_name: a prompt of the checkpoint, such as "query", that each text begins with. prompt: the same as a text, such as
        "query: "; "" for none. Default: the checkpoint's default prompt, usually none.
    truncate_dim: keep the first numbers of a vector, as far as it was trained for that (Matryoshka, Kusupati et al. 2022).
        Where vectors are normalised, the shorter ones are.
    """

    pooling: str | None = option(None, help="Vectors: mean, cls, max, last, pooler, ..., or cls+mean.", check=_pooling)
    normalize: bool | None = option(None, help="Vectors of length 1.", check=flag())
    prompt_name: str | None = option(None, help="Vectors: a prompt of the checkpoint, by its name.", check=text())
    prompt: str | None = option(None, help="Vectors: a text that each input begins with.", check=text())
    truncate_dim: int | None = option(None, help="Vectors: how many numbers to keep.", check=whole(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.prompt is not None and self.prompt_name is not None
        no_effect(both, "prompt_name", f"with {opt('prompt', self.prompt)}", "leave one of them out")


def _labels(name: str, labels: Any) -> None:
    """Refuse labels that are not a list of different texts."""
    listed = isinstance(labels, Sequence) and not isinstance(labels, str)
    if not listed or not labels:
        kind = "an empty list" if listed else f"{a_type(labels)}, not a list"
        fix = f"for example {opt(name, ['politics', 'sports'])}"
        raise UsageError(f"{opt(name)} is {kind}: there is nothing to choose from", fix)
    for place, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise UsageError(f"{opt(name)}[{place}] is {label!r}, not a text with words", "give words for each label")
        if label in labels[:place]:
            raise UsageError(f"{opt(name)} has {label!r} twice", "give each label once")


def _template(name: str, value: Any) -> None:
    if not isinstance(value, str) or "{}" not in value:
        raise UsageError(f"{opt(name, value)} has no place for a label", f"put {{}} into it: {TEMPLATE!r}")


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(TextOptions):
    """Options of zero-shot classification.

    template: the hypothesis; a label replaces its `{}`.
    multi_label: False: the labels exclude each other, and their probabilities sum to 1 (a softmax over the labels'
        entailment logits). True: each holds or not by itself (entailment against contradiction); so does a single label.
    entailment_label: the label that says "it follows"; default: the one that begins with "entail".
    truncate: cuts the end of the text; the hypothesis stays whole.
    """

    labels: Sequence[str] = option(
        MISSING, help="Zero-shot: a label to choose from.", check=_labels, flag="label", typed=list[str]
    )
    template: str = option(TEMPLATE, help="Zero-shot: the sentence with {}.", check=_template)
    multi_label: bool = option(False, help="Zero-shot: several labels may hold.", check=flag())
    entailment_label: str | None = option(
        None, help='Zero-shot: the checkpoint\'s label for "it follows".', check=text()
    )

    def __post_init__(self) -> None:
        if not isinstance(self.labels, set | frozenset):  # which the check refuses
            object.__setattr__(self, "labels", as_list(self.labels))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TextRankingOptions(TextOptions):
    """Options of text ranking.

    top_k: None keeps all documents; of equal ones the first given comes first.
    scores: "probabilities" (sigmoid) or "logits"; None takes what the checkpoint says.
    truncate: cuts the end of a document; the query stays whole.
    """

    top_k: int | None = option(None, help="Ranking: documents to keep.", check=whole(1))
    scores: str | None = option(None, help="Ranking: probabilities or logits.", check=one_of("probabilities", "logits"))
