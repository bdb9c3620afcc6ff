"""Text ranking: which documents answer a query best, by a cross-encoder that reads both at once (Nogueira & Cho 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from plainformer.errors import CheckpointError, InputError, UsageError, did_you_mean
from plainformer.tasks.base import Result, check_top_k
from plainformer.tasks.legacy import LegacyTask
from plainformer.tasks.text.pairs import encode_pairs, pair_logits

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch

SCORES = ("probabilities", "logits")
SENTENCE_FILE = "config_sentence_transformers.json"
_ACTIVATIONS = {"Sigmoid": "probabilities", "Identity": "logits"}


@dataclass(frozen=True)
class RankedDocument(Result):
    """A document, its place in the list that was given, and its score: the higher, the better it answers."""

    index: int
    text: str
    score: float


@dataclass(frozen=True)
class Ranking(Result):
    """A query's documents, best first."""

    query: str
    documents: tuple[RankedDocument, ...]


@dataclass(frozen=True)
class Queries:
    """Encoded queries: their texts, the documents of each, and a row for each of these."""

    queries: tuple[str, ...]
    documents: tuple[tuple[str, ...], ...]
    batch: TextBatch


class TextRanking(LegacyTask):
    """A (query, [documents]) tuple, or a dict with these two → the documents in order.

    Options:
        top_k: how many documents to keep; None for all. Of equal ones the first given comes first.
        scores: "probabilities" (sigmoid) or "logits". None: what the checkpoint says (`read_scores`).
        truncate: cut the end of a document that is too long; the query stays whole.
    """

    companions = (SENTENCE_FILE,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.config.labels) != 1:
            raise UsageError(
                f"{self.ref or 'this checkpoint'} has the labels {', '.join(self.config.labels)}: it gives no single score",
                "take a cross-encoder for ranking, which has one; or load it for text-classification",
            )
        self.scores = read_scores(self.config.source, self.checkpoint.json(SENTENCE_FILE) or {})

    def is_one(self, inputs: Any) -> bool:
        if isinstance(inputs, Mapping):
            return True
        shape = isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], str)
        return shape and isinstance(inputs[1], list | tuple)

    def encode(self, inputs: Sequence[Any], *, truncate: bool = False) -> Queries:
        items = [self._query(item) for item in inputs]
        pairs = [(query, document) for query, documents in items for document in documents]
        batch = encode_pairs(self, pairs, truncate=truncate, shortened=1)
        return Queries(tuple(query for query, _ in items), tuple(documents for _, documents in items), batch)

    def _query(self, item: Any) -> tuple[str, tuple[str, ...]]:
        if isinstance(item, Mapping) and set(item) == {"query", "documents"}:
            item = (item["query"], item["documents"])
        if isinstance(item, Mapping) or not self.is_one(item) or not all(isinstance(d, str) for d in item[1]):
            raise InputError(
                f"{str(item)[:60]!r} is not a query with documents",
                'give a (query, [document, ...]) tuple, or {"query": ..., "documents": [...]}',
            )
        if not item[0].strip():
            raise InputError("the query is empty", "give a query with words")
        if not item[1]:
            raise InputError(f"{item[0][:60]!r} has no documents to rank", "give at least one")
        return item[0], tuple(item[1])

    def predict(self, encoded: Queries) -> Tensor:
        """A logit for each document of each query, (documents in all,)."""
        return pair_logits(self, encoded.batch)[:, 0]

    def decode(
        self, encoded: Queries, predicted: Tensor, *, top_k: int | None = None, scores: str | None = None
    ) -> list[Ranking]:
        kind = self.scores if scores is None else scores
        if kind not in SCORES:
            raise UsageError(f"scores={scores!r} is unknown", did_you_mean(str(scores), SCORES))
        results = []
        counts = [len(documents) for documents in encoded.documents]
        for query, documents, logits in zip(encoded.queries, encoded.documents, predicted.split(counts), strict=True):
            count = len(documents) if top_k is None else check_top_k(top_k, len(documents))
            values = (logits.sigmoid() if kind == "probabilities" else logits).tolist()
            # By logit: the sigmoid of large ones is 1.0 for all.
            order = logits.argsort(descending=True, stable=True).tolist()[:count]
            results.append(Ranking(query, tuple(RankedDocument(i, documents[i], values[i]) for i in order)))
        return results


def read_scores(source: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What a cross-encoder's scores are, "probabilities" or "logits", by the activation that its files name.

    sentence-transformers wrote it into `config_sentence_transformers.json` (version 6), under "sentence_transformers" in
    config.json (4), and as "sbert_ce_default_activation_function" there before. Probabilities where none says it.
    """
    section = source.get("sentence_transformers")
    older = section.get("activation_fn") if isinstance(section, Mapping) else None
    named = (own.get("activation_fn"), older, source.get("sbert_ce_default_activation_function"))
    stated = next((name for name in named if name is not None), "Sigmoid")
    kind = _ACTIVATIONS.get(str(stated).rpartition(".")[2])
    if kind is None:
        raise CheckpointError(
            f"the scores' activation {stated!r} is not supported", f"supported: {', '.join(_ACTIVATIONS)}"
        )
    return kind
