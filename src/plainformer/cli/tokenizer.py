"""`plainformer tokenizer train PATH... --output FOLDER`: a tokenizer of one's own texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from plainformer.cli.flags import Flags
from plainformer.cli.options import Json, restored, write_json
from plainformer.config.training import FORMATS, SourceConfig
from plainformer.errors import InputError, UsageError, a_type, opt, plural
from plainformer.inputs.text.tokenizer_training import TokenizerOptions

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer

SAMPLE = 200  # characters of the first text that are shown in tokens


class TokenizerFlags(Flags, kinds=[TokenizerOptions]):
    """What is trained."""


def tokenizer(
    action: Annotated[Literal["train"], Parameter(help="What to do.")],
    /,
    *paths: Annotated[str, Parameter(help="Files or folders of texts.")],
    output: Annotated[Path, Parameter(help="Folder to write the tokenizer to.")],
    format: Annotated[str | None, Parameter(help=f"{', '.join(FORMATS)}; default: by the name.")] = None,
    column: Annotated[str, Parameter(help="Column that holds the text.")] = "text",
    flags: TokenizerFlags = TokenizerFlags(),  # noqa: B008
    json: Json = False,
) -> None:
    """Train a tokenizer on texts, for a model from scratch.

    The folder can be named as `model.tokenizer` of a training run; this library
    and transformers load it to the same ids.

    Example: plainformer tokenizer train docs/*.md --output tokenizer --vocab-size 2000
    """
    from plainformer.inputs.text.tokenizer_training import train_tokenizer

    if not paths:
        raise UsageError("tokenizer train needs at least one PATH", "give files or folders of texts")
    if output.is_file():
        raise UsageError(f"{opt('output', str(output))} is a file", "give a folder")
    options = flags.checked(TokenizerOptions, "tokenizer train")
    sources = [SourceConfig(path=restored(path), format=format) for path in paths]
    read = _Read(sources, column)
    made = train_tokenizer(read, **options)
    made.save(output)
    if json:
        write_json(
            [{"folder": str(output), "tokens": made.vocab_size, "texts": read.count, "characters": read.characters}]
        )
        return
    print(f"{made.vocab_size:,} tokens of {plural(read.count, 'text')} ({read.characters:,} characters), in {output}")
    _show(made, read.first[:SAMPLE])


class _Read:
    """The texts of sources, one after the other; counts what it has given."""

    def __init__(self, sources: Sequence[SourceConfig], column: str) -> None:
        self.sources, self.column = sources, column
        self.count = self.characters = 0
        self.first = ""

    def __iter__(self) -> Iterator[str]:
        from plainformer.data.read import read

        for source in self.sources:
            for row in read(source):
                if self.column not in row:
                    what = f"a row of {source.path} has no {self.column!r}; it has {', '.join(map(repr, row))}"
                    raise InputError(what, f"name the column that holds the text: {opt('column', ...)}")
                text = row[self.column]
                if not isinstance(text, str):
                    what = f"{row.place}: {self.column!r} is {a_type(text)}, not text"
                    raise InputError(what, f"correct the file, or name another column: {opt('column', ...)}")
                self.first = self.first or text
                self.count, self.characters = self.count + 1, self.characters + len(text)
                yield text


def _show(made: Tokenizer, text: str) -> None:
    """Print the beginning of a text in tokens."""
    row = made.encode(text, add_special_tokens=False)
    pieces = [text[start:end] for start, end in row.offsets]
    print(f"{len(text) / max(1, len(pieces)):.1f} characters a token: {'|'.join(pieces)!r}")
