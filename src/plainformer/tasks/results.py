"""What tasks answer with: one `Result` for an input, `Results` for a list of them; both are tables where one is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, TypeVar, overload

from plainformer.errors import MissingDependencyError, PlainformerError, UsageError, plural
from plainformer.tasks.html import blocks, table

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R")
_FEW = 5  # answers that the repr of a list of them shows
_LONG = 60  # characters of a text in a repr


@dataclass(frozen=True)
class Result:
    """A typed answer: `lines()` is what people read, `to_dict()` what JSON gets, `rows()` what a table gets."""

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "__repr__" not in vars(cls):  # before the dataclass writes its own, of any length
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        shown = (
            f"{f.name}={brief(value)}" for f in fields(self) if f.repr and _says((value := getattr(self, f.name)), f)
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the answer as lines of text, most important first."""
        return [str(self.to_dict())]

    def rows(self) -> list[dict[str, Any]]:
        """Return the answer as rows of a table, column → value: one row, and one for each further answer."""
        values = self.to_dict()
        values.pop("alternatives", None)
        return [values, *(row for other in getattr(self, "alternatives", ()) for row in other.rows())]

    def to_dataframe(self) -> pd.DataFrame:
        """Return the answer as a pandas DataFrame."""
        return pandas().DataFrame(self.rows())


@dataclass(frozen=True)
class Skipped(Result):
    """What is in the place of an answer where `on_error="skip"` left an input out.

    Attributes:
        place: of the input in the caller's list or iterator, from 0. error: why it has no answer.
    """

    place: int
    error: PlainformerError

    def to_dict(self) -> dict[str, Any]:
        """Return the place, and the reason as `skipped`."""
        return {"place": self.place, "skipped": self.error.what}

    def lines(self) -> list[str]:
        return [f"skipped: {self.error.what}"]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row: the reason as `skipped`."""
        return [{"skipped": self.error.what}]


@dataclass(frozen=True)
class LabelScore:
    """A class; `score` is its probability, 0 to 1, or of a regression the value itself."""

    label: str
    score: float

    def __repr__(self) -> str:
        return f"LabelScore({self.label!r}, {self.score:.4g})"


class Results(list[R]):
    """The answers to a list of inputs, in order: a list that notebooks show as a table.

    classify(texts).to_dataframe()
    df.join(classify(df.text).to_dataframe(index=df.index))
    """

    _place = "input"  # what the place of an answer in the list is called in a table

    @overload
    def __getitem__(self, place: SupportsIndex, /) -> R: ...
    @overload
    def __getitem__(self, place: slice, /) -> Self: ...
    def __getitem__(self, place: SupportsIndex | slice, /) -> R | Self:
        found: Any = super().__getitem__(place)
        return self._like(found) if isinstance(place, slice) else found

    def copy(self) -> Self:
        """Return a list of the same answers."""
        return self._like(self)

    def _like(self, answers: Iterable[R]) -> Self:
        """Return other answers in a list of this kind."""
        return type(self)(answers)

    def __add__(self, other: list[Any]) -> Any:
        return self._like([*self, *other]) if type(other) is type(self) else [*self, *other]

    def __repr__(self) -> str:
        more = [f"... {len(self) - _FEW} more"] if len(self) > _FEW else []
        return f"[{', '.join([*map(repr, self[:_FEW]), *more])}]"

    def to_dict(self) -> list[Any]:
        """Return plain values, as JSON gets them."""
        return [plain(one) for one in self]

    def to_dataframe(self, index: Sequence[Any] | None = None) -> pd.DataFrame:
        """Return the answers as a pandas DataFrame.

        Its index is the place of the input, from 0, or what `index` has for it (a column's own index). An input with
        several answers (entities, ranked documents, alternatives) has a row for each, with the same index.

        Raises:
            UsageError: `index` is not as long as the list. MissingDependencyError: pandas is not installed.
        """
        frame, own = pandas(), range(len(self)) if index is None else index
        check_index(own, len(self))
        pairs = [(place, row) for place, one in zip(own, self, strict=True) for row in rows_of(one)]
        name = self._place if index is None else getattr(index, "name", None)
        kept = frame.Index([place for place, _ in pairs], name=name)
        return frame.DataFrame([row for _, row in pairs], index=kept)

    def _repr_html_(self) -> str:
        if self and all(isinstance(one, tuple) and hasattr(one, "_repr_html_") for one in self):
            return blocks([one._repr_html_() for one in self])  # type: ignore[attr-defined]
        return table([{self._place: place, **row} for place, one in enumerate(self) for row in rows_of(one)])


def check_index(index: Sequence[Any] | None, count: int) -> None:
    """Refuse an index of a table that has not one entry for each result."""
    if index is not None and len(index) != count:
        what = f"the index has {plural(len(index), 'entry', 'entries')} for {plural(count, 'result')}"
        raise UsageError(what, "give one for each")


def rows_of(result: Any) -> list[dict[str, Any]]:
    """Return a result, or a tuple of them, as rows of a table."""
    if isinstance(result, tuple | list):
        return [row for part in result for row in rows_of(part)]
    return result.rows() if isinstance(result, Result) else [{"result": result}]


def plain(result: Any) -> Any:
    """Return a result, or a tuple of them, as JSON gets it."""
    if isinstance(result, tuple | list):
        return [plain(part) for part in result]
    return result.to_dict() if hasattr(result, "to_dict") else result


def pandas() -> Any:
    """Return pandas, imported when it is first needed."""
    try:
        import pandas
    except ImportError as error:
        raise MissingDependencyError("a DataFrame needs pandas", "pip install pandas") from error
    return pandas


def brief(value: Any) -> str:
    """Return a value for a repr, never longer than a part of a line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(value if len(value) <= _LONG else f"{value[: _LONG - 3]}...")
    if isinstance(value, tuple | list) and 0 < len(value) <= 3 and isinstance(value[0], float | int | str):
        return f"({', '.join(map(brief, value))})"
    if isinstance(value, tuple | list) and value:
        return f"({len(value)} x {type(value[0]).__name__})"
    return repr(value)


def listed(items: Iterable[Any], few: int = _FEW) -> str:
    """Return a tuple's items for a repr, the first few in words."""
    every = list(items)
    more = [f"... {len(every) - few} more"] if len(every) > few else []
    return ", ".join([*map(str, every[:few]), *more])


def _says(value: Any, field: Any) -> bool:
    """Whether a field's value says more than its default."""
    return field.default is MISSING or value not in (None, ())
