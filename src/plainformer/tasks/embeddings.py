"""Vectors as answers: one, many as one array, how alike they are, and which of many come nearest.

Shapes: N and M vectors of D numbers; P queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast, overload

import numpy as np
import torch
from torch import Tensor

from plainformer.config.values import check_whole
from plainformer.errors import InputError, UsageError, a_type, placed, plural
from plainformer.inputs.listed import as_list
from plainformer.tasks.base import Task
from plainformer.tasks.calls import Call, Given, MediaCall, called_with
from plainformer.tasks.options import TaskOptions
from plainformer.tasks.results import Result, Results, check_index, pandas
from plainformer.tasks.text.similarity import SIMILARITIES, Similarity

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

_SCORES = 2**24  # scores of a search that are in memory at once
_ROUNDING = 1e-4  # of the largest score: what fp32 may get wrong, with room to spare


@dataclass(frozen=True, eq=False)
class Embedding(Result):
    """An input's vector, (D,) fp32, and how it was pooled. `np.asarray(embedding)` is the vector, too."""

    vector: Tensor
    pooling: str
    normalized: bool

    def __repr__(self) -> str:
        return f"Embedding({self._numbers(3)}; {self.pooling}{', normalized' if self.normalized else ''})"

    def _numbers(self, count: int) -> str:
        first = ", ".join(f"{value:.2f}" for value in self.vector[:count].tolist())
        return f"{len(self)} numbers: {first}{', ...' if len(self) > count else ''}"

    def __len__(self) -> int:
        return self.vector.size(0)

    def __getitem__(self, place: Any) -> Tensor:
        return self.vector[place]

    def __iter__(self) -> Iterator[float]:
        return iter(self.vector.tolist())

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return _as_array(self.vector, dtype, copy)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let torch's functions take embeddings for their vectors: `torch.stack(embed(texts))`."""
        given = {name: _bare(value) for name, value in (kwargs or {}).items()}
        return function(*map(_bare, args), **given)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Embedding):
            return NotImplemented
        same = (self.pooling, self.normalized) == (other.pooling, other.normalized)
        return same and torch.equal(self.vector, other.vector)

    def __hash__(self) -> int:
        return hash((self.pooling, self.normalized, *self.vector[:8].tolist()))

    def to_dict(self) -> dict[str, Any]:
        return {"vector": self.vector.tolist(), "pooling": self.pooling, "normalized": self.normalized}

    def lines(self) -> list[str]:
        """Return how many numbers there are, and the first ones; `to_dict()` has all."""
        return [self._numbers(8)]

    def rows(self) -> list[dict[str, Any]]:
        return [{str(place): value for place, value in enumerate(self)}]


class Embeddings(Results[Embedding]):
    """The vectors of a list of inputs: a list, and by `vectors` or `np.asarray` one array, (N, D) fp32.

    width: D, for a list of none.
    """

    def __init__(self, answers: Iterable[Embedding] = (), width: int = 0) -> None:
        super().__init__(answers)
        self.width = len(self[0]) if self else width

    def _like(self, answers: Iterable[Embedding]) -> Self:
        return type(self)(answers, self.width)

    @property
    def vectors(self) -> Tensor:
        """Return all vectors, (N, D); made anew at each access."""
        return torch.stack([one.vector for one in self]) if self else torch.zeros(0, self.width)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return _as_array(self.vectors, dtype, copy)

    def __repr__(self) -> str:
        if not self:
            return "Embeddings(none)"
        first = self[0]
        size = f"{plural(len(self), 'vector')} of {plural(len(first), 'number')}"
        return f"Embeddings({size}; {first.pooling}{', normalized' if first.normalized else ''})"

    def to_dataframe(self, index: Sequence[Any] | None = None) -> pd.DataFrame:
        """Return the vectors as a pandas DataFrame: a row for each, a column for each of its D numbers.

        Raises:
            UsageError: `index` is not as long as the list.
        """
        check_index(index, len(self))
        return pandas().DataFrame(np.asarray(self), index=index)


@dataclass(frozen=True)
class Hit(Result):
    """What a search found: its place in the corpus, its score (higher is nearer), and the document where it was given."""

    index: int
    score: float
    document: Any = None

    def lines(self) -> list[str]:
        return [f"{self.score:.4f}  [{self.index}]  {'' if self.document is None else self.document}".rstrip()]


class Hits(Results[Hit]):
    """What a search found, best first."""

    _place = "rank"


def embeds_with(options: Callable[Given, TaskOptions]) -> Call[Given, Embedding, Embeddings]:
    """Return the `__call__` of a task whose answers are vectors of texts."""
    return called_with(options, Embedding, Embeddings)


def embeds_media_with(options: Callable[Given, TaskOptions]) -> MediaCall[Given, Embedding, Embeddings]:
    """Return the `__call__` of a task whose answers are vectors of images or recordings."""
    return cast(Any, called_with(options, Embedding, Embeddings))


class EmbeddingTask(Task):
    """A task whose answers are vectors, which it can compare and search.

    Attributes:
        measure: how, a name in `similarity.SIMILARITIES`.
        reads_arrays: whether an array is an input (a picture, a recording), and not a vector.
    """

    measure = "cosine"
    reads_arrays = True

    @overload
    def similarity(self, one: str | Embedding, other: str | Embedding, **options: Any) -> float: ...
    @overload
    def similarity(self, one: Any, other: Any = None, **options: Any) -> Tensor: ...
    def similarity(self, one: Any, other: Any = None, **options: Any) -> float | Tensor:
        """Return how alike two inputs are; of lists of N and M, all of them, (N, M). Without `other`, a list's with each other.

        By the measure that the checkpoint names, usually the cosine, -1 to 1; see `similarity.SIMILARITIES`. One beside a
        list of M gives (M,).

        Args:
            one, other: each an input or its embedding, or a list of them (`Embeddings`). Of text, also a vector, (D,), or
                a list of vectors, (N, D), as an array or tensor.
            options: of embedding what is not a vector yet.
        Raises:
            InputError: neither inputs nor vectors, or vectors of another length.
        """
        a_ND, is_one = self._vectors(one, options)
        if other is None and is_one:
            raise UsageError("one input alone has no similarity", "give two inputs, or a list of them")
        b_MD, is_other = (a_ND, False) if other is None else self._vectors(other, options)
        if not len(a_ND) or not len(b_MD):
            found = torch.zeros(len(a_ND), len(b_MD))
        else:
            found = self._compare(a_ND, b_MD)
        if is_one and is_other:
            return float(found[0, 0])
        return found[0] if is_one else found[:, 0] if is_other else found

    @overload
    def search(self, query: list[Any] | Embeddings, corpus: Any, top_k: int = 10, **options: Any) -> list[Hits]: ...
    @overload
    def search(self, query: Any, corpus: Any, top_k: int = 10, **options: Any) -> Hits: ...
    def search(self, query: Any, corpus: Any, top_k: int = 10, **options: Any) -> Hits | list[Hits]:
        """Return the `top_k` of a corpus that are most like a query, best first; a list of queries gives a list of these.

            corpus = embed(documents)                      # once
            embed.search("a question", corpus, top_k=3)    # many times

        Those of equal score are in the corpus's order. Texts that are given as texts begin with the checkpoint's prompts
        for queries ("query") and documents ("document", "passage" or "corpus"), where it has these, as in
        sentence-transformers (`encode_query`, `encode_document`); embed a corpus with the same `prompt_name`.

        Args:
            query: an input or a vector, or a list of them. corpus: a list of them; see `similarity`.
            top_k: how many; more than there are means all.
            options: of embedding what is not a vector yet.
        Returns:
            `Hits`, a list of `Hit`: index, score, and the document, where the corpus was not given as vectors.
        """
        check_whole("top_k", top_k, fix="give 1 or more")
        corpus = as_list(corpus)
        documents = None if self._are_vectors(corpus) else corpus
        corpus_ND, single = self._vectors(corpus, self.searching("document", options))
        if single:
            raise InputError("the corpus of a search is one input", "give a list of them")
        queries_PD, is_one = self._vectors(query, self.searching("query", options))
        if not len(corpus_ND) or not len(queries_PD):
            found = [Hits() for _ in range(len(queries_PD))]
        else:
            self._compare(queries_PD[:1], corpus_ND[:1])  # an error of lengths now
            ranked = _ranked(queries_PD, corpus_ND, top_k, SIMILARITIES[self.measure])
            found = [
                Hits(Hit(i, score, documents[i] if documents is not None else None) for i, score in pairs)
                for pairs in ranked
            ]
        return found[0] if is_one else found

    def collected(self, answers: list[Any], options: Any) -> Embeddings:
        return Embeddings(answers, self.width(options))

    def width(self, options: Any) -> int:
        """Return how many numbers a vector has."""
        stack = self.config.encoder or self.config.main_stack
        return stack.hidden_size

    def searching(self, kind: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options with which queries ("query") or documents ("document") are embedded for a search."""
        return options

    def _compare(self, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        if a_ND.size(1) != b_MD.size(1):
            what = f"vectors of {a_ND.size(1)} and of {b_MD.size(1)} numbers cannot be compared"
            raise InputError(what, "embed both with the same model")
        return SIMILARITIES[self.measure](a_ND, b_MD)

    def _are_vectors(self, given: Any) -> bool:
        if isinstance(given, Embedding | Embeddings):
            return True
        if isinstance(given, list | tuple) and given:
            first = given[0]
            return isinstance(first, Embedding) or (
                not self.reads_arrays and not isinstance(first, str | Mapping | None)
            )
        return not self.reads_arrays and hasattr(given, "ndim")

    def _vectors(self, given: Any, options: Mapping[str, Any]) -> tuple[Tensor, bool]:
        """Return vectors, (N, D) fp32 on the CPU, and whether they are of one input that is not in a list."""
        given = as_list(given)
        if self._are_vectors(given):
            return _read_vectors(given)
        if self.is_one(given):
            found = self(given, **options)  # of an array of pictures: several
            return (found.vector[None], True) if isinstance(found, Embedding) else (found.vectors, False)
        if not isinstance(given, list | tuple):
            raise InputError(f"cannot compare {a_type(given)}", f"give {self.reads()}, a vector, or a list of them")
        return self._embed(list(given), options), False

    def _embed(self, items: list[Any], options: Mapping[str, Any]) -> Tensor:
        """Return the vectors of inputs, (N, D); equal texts have the same, whichever batch they would be in."""
        if not all(isinstance(item, str) for item in items):
            return cast(Embeddings, self(items, **options)).vectors
        firsts = {text: place for place, text in reversed(list(enumerate(items)))}
        distinct = sorted(firsts, key=firsts.__getitem__)
        with placed([firsts[text] for text in distinct]):
            vectors = cast(Embeddings, self(distinct, **options)).vectors
        ranks = {text: rank for rank, text in enumerate(distinct)}
        return vectors[[ranks[text] for text in items]]


def _read_vectors(given: Any) -> tuple[Tensor, bool]:
    """Return vectors that were made before, (N, D), and whether they are one alone."""
    is_one = isinstance(given, Embedding)
    try:
        if is_one:
            found = given.vector
        elif isinstance(given, Embeddings):
            found = given.vectors
        elif isinstance(given, list | tuple) and hasattr(given[0], "__array__"):
            found = torch.stack([_as_tensor(one) for one in given])
        else:
            found = _as_tensor(given)
            is_one = found.dim() == 1  # a list of numbers, too
    except (TypeError, ValueError, RuntimeError):
        raise InputError("these are not vectors of one length", "give (N, D) numbers, or texts") from None
    found = found.detach().float().cpu()
    if found.dim() != 1 + (not is_one) or not found.size(-1):
        raise InputError(
            f"an array of shape {tuple(found.shape)} is not a list of vectors", "give (N, D), or (D,) for one"
        )
    if not found.isfinite().all():
        raise InputError("a vector has numbers that are not finite", "leave it out")
    return (found[None], True) if is_one else (found, False)


def _bare(given: Any) -> Any:
    """Return an argument of torch with vectors in place of embeddings."""
    if isinstance(given, Embedding):
        return given.vector
    return [_bare(one) for one in given] if isinstance(given, list) else given


def _as_tensor(given: Any) -> Tensor:
    if isinstance(given, Embedding):
        return given.vector
    return given if isinstance(given, Tensor) else torch.from_numpy(np.asarray(given, dtype=np.float32))


def _ranked(
    queries_PD: Tensor, corpus_ND: Tensor, top_k: int, measure: Similarity
) -> Iterator[list[tuple[int, float]]]:
    """Yield the places and scores of each query's best, those of equal score in order.

    Which row of a product a vector is may change its last bits, so what can be among the best is compared once more in
    double precision.
    """
    count = min(top_k, len(corpus_ND))
    for part_PD in queries_PD.split(max(1, _SCORES // len(corpus_ND))):
        for query_D, scores_N in zip(part_PD, measure(part_PD, corpus_ND), strict=True):
            least = scores_N.topk(count).values[-1] - _ROUNDING * scores_N.abs().max()
            near = (scores_N >= least).nonzero()[:, 0]
            exact = measure(query_D[None].double(), corpus_ND[near].double())[0].float()
            best = exact.argsort(descending=True, stable=True)[:count]
            yield list(zip(near[best].tolist(), exact[best].tolist(), strict=True))


def _as_array(vectors: Tensor, dtype: npt.DTypeLike | None, copy: bool | None) -> npt.NDArray[Any]:
    """Return a tensor as numpy's `__array__` is asked for it."""
    array: npt.NDArray[Any] = vectors.numpy()
    if copy is False and dtype is not None and array.dtype != dtype:
        raise ValueError(f"{array.dtype} becomes {np.dtype(dtype)} only by a copy")
    return np.array(array, dtype=dtype) if copy else array.astype(dtype or array.dtype, copy=False)
