"""Text ranking: which documents answer a query best, by a cross-encoder that reads both at once (Nogueira & Cho 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plainformer.errors import CheckpointError, InputError, UsageError, nth
from plainformer.tasks.base import TwoPartTask
from plainformer.tasks.calls import called_with
from plainformer.tasks.html import table
from plainformer.tasks.results import Result
from plainformer.tasks.text.options import TextRankingOptions
from plainformer.tasks.text.pairs import pair_batch, pair_logits

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch

SENTENCE_FILE = "config_sentence_transformers.json"
_ACTIVATIONS = {"Sigmoid": "probabilities", "Identity": "logits"}


@dataclass(frozen=True)
class RankedDocument(Result):
    """A document and its place in the list that was given.

    score: the higher, the better it answers: a probability, 0 to 1 (sigmoid of the logit), or with `scores="logits"` the logit.
    """

    index: int
    text: str
    score: float


@dataclass(frozen=True)
class Ranking(Result):
    """A query's documents, best first."""

    query: str
    documents: tuple[RankedDocument, ...]

    def lines(self) -> list[str]:
        return [f"{one.score:.4f}  [{one.index}]  {one.text}" for one in self.documents]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each document, best first."""
        return [{"query": self.query, **one.to_dict()} for one in self.documents]

    def _repr_html_(self) -> str:
        return table([one.to_dict() for one in self.documents])


@dataclass(frozen=True)
class Queries:
    """Encoded queries: their texts, the documents of each, and a row for each of these."""

    queries: tuple[str, ...]
    documents: tuple[tuple[str, ...], ...]
    batch: TextBatch


class TextRanking(TwoPartTask):
    """A (query, [documents]) tuple, or a dict with these two → the documents in order; see `TextRankingOptions`."""

    parts = ("query", "documents")
    __call__ = called_with(TextRankingOptions, Ranking)
    companions = (SENTENCE_FILE,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.config.labels) != 1:
            raise UsageError(
                f"{self.ref} has the labels {', '.join(self.config.labels)}: it gives no single score",
                "take a cross-encoder for ranking, which has one; or load it for text-classification",
            )
        self.scores = read_scores(self.config.source, self.checkpoint.json(SENTENCE_FILE) or {})

    def fits(self, first: Any, second: Any) -> bool:
        return isinstance(first, str) and isinstance(second, list | tuple)

    def encode(self, inputs: Sequence[Any], options: TextRankingOptions) -> Queries:
        items = [self._query(item, place) for place, item in enumerate(inputs)]
        pairs = [(query, document) for query, documents in items for document in documents]
        places = [place for place, (_, documents) in enumerate(items) for _ in documents]
        batch = pair_batch(self, pairs, options, places, shortened=1)
        queries, documents = zip(*items, strict=True)
        return Queries(queries, documents, batch)

    def _query(self, item: Any, place: int) -> tuple[str, tuple[str, ...]]:
        query, documents = self.parts_of(item, place)
        if not query.strip():
            raise InputError(f"the query of {nth(place)} is empty", "give a query with words")
        if not documents:
            raise InputError(f"{nth(place)}, {query[:60]!r}, has no documents to rank", "give at least one")
        return query, tuple(documents)

    def predict(self, encoded: Queries, options: TextRankingOptions) -> Tensor:
        """A logit for each document of each query, (documents in all,)."""
        return pair_logits(self, encoded.batch)[:, 0]

    def decode(self, encoded: Queries, predicted: Tensor, options: TextRankingOptions) -> list[Ranking]:
        kind = options.scores or self.scores
        results = []
        counts = [len(documents) for documents in encoded.documents]
        for query, documents, logits in zip(encoded.queries, encoded.documents, predicted.split(counts), strict=True):
            values = (logits.sigmoid() if kind == "probabilities" else logits).tolist()
            # By logit: the sigmoid of large ones is 1.0 for all.
            order = logits.argsort(descending=True, stable=True).tolist()[: options.top_k]
            results.append(Ranking(query, tuple(RankedDocument(i, documents[i], values[i]) for i in order)))
        return results


def read_scores(source: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return what a cross-encoder's scores are, "probabilities" or "logits", by the activation that its files name.

    sentence-transformers wrote it into `config_sentence_transformers.json` (version 6), under "sentence_transformers" in
    config.json (4), and as "sbert_ce_default_activation_function" there before. Probabilities where none says it.
    """
    section = source.get("sentence_transformers")
    older = section.get("activation_fn") if isinstance(section, Mapping) else None
    named = (own.get("activation_fn"), older, source.get("sbert_ce_default_activation_function"))
    stated = next((name for name in named if name is not None), "Sigmoid")
    kind = _ACTIVATIONS.get(str(stated).rpartition(".")[2])
    if kind is None:
        what = f"the scores' activation {stated!r} is not supported"
        raise CheckpointError(what, f"supported: {', '.join(_ACTIVATIONS)}")
    return kind
