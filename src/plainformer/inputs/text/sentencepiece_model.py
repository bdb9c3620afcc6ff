"""A SentencePiece model (Kudo and Richardson 2018) as a `tokenizers` backend that cuts text just as SentencePiece does.

Both file formats that carry such a model, SentencePiece's protobuf and GGUF, are read into `SpmModel`; `to_backend`
builds from it. Ids are positions in `pieces`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from plainformer.errors import CheckpointError
from plainformer.inputs.text.tokenizer_settings import library_errors

if TYPE_CHECKING:
    import tokenizers

SPACE = "▁"
# sentencepiece_model.proto, ModelProto.SentencePiece.Type; GGUF uses the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_MERGEABLE = frozenset({NORMAL, USER_DEFINED, UNUSED})


class Piece(NamedTuple):
    """A vocabulary entry."""

    text: str
    score: float
    type: int = NORMAL


@dataclass(frozen=True)
class SpmModel:
    """What a SentencePiece model says.

    Attributes:
        kind: "unigram" (Kudo 2018) or "bpe" (Sennrich et al. 2016, merges ordered by score).
        pieces: the vocabulary.
        charsmap: the compiled normalisation rules, or empty.
        add_prefix: put a space before the text.
        collapse_spaces: strip spaces and reduce runs of them to one.
        byte_fallback: spell unknown characters in bytes.
        where: the file, for messages.
    """

    kind: Literal["unigram", "bpe"]
    pieces: tuple[Piece, ...]
    charsmap: bytes
    add_prefix: bool
    collapse_spaces: bool
    byte_fallback: bool
    where: str

    @property
    def unknown(self) -> int:
        """Return the position of the unknown piece."""
        found = next((i for i, piece in enumerate(self.pieces) if piece.type == UNKNOWN), None)
        if found is None:
            raise CheckpointError(f"{self.where} has no unknown token", "the file is damaged: download it again")
        return found


def read_proto(path: Path) -> SpmModel:
    """Read a SentencePiece .model file."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as proto

    fix = "if its maker's library is another one, provide a tokenizer.json; if not, it is damaged: download it again"
    try:
        content = path.read_bytes()
        model = proto.ModelProto.FromString(content)
    except (DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a SentencePiece model: {error}", fix) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "check the path and its permissions") from error
    if not content:
        raise CheckpointError(f"{path} is empty (0 bytes)", "an interrupted download? fetch the file again")
    if not model.pieces:
        raise CheckpointError(f"{path} is a SentencePiece model without pieces", fix)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kinds: dict[int, Literal["unigram", "bpe"]] = {1: "unigram", 2: "bpe"}
    if trainer.model_type not in kinds:
        raise CheckpointError(
            f"{path} is a SentencePiece model of words or characters", "only unigram and BPE are known"
        )
    if trainer.treat_whitespace_as_suffix:
        raise CheckpointError(f"{path} marks spaces at the end of words", "provide a tokenizer.json instead")
    return SpmModel(
        kind=kinds[trainer.model_type],
        pieces=tuple(Piece(p.piece, p.score, p.type) for p in model.pieces),
        charsmap=normalizer.precompiled_charsmap,
        add_prefix=normalizer.add_dummy_prefix,
        collapse_spaces=normalizer.remove_extra_whitespaces,
        byte_fallback=trainer.byte_fallback,
        where=str(path),
    )


def to_backend(
    model: SpmModel, *, cleanup: Iterable[Any] = (), prefix: Literal["always", "first"] = "always"
) -> tokenizers.Tokenizer:
    """Return the backend of a model.

    Args:
        model: the SentencePiece model.
        cleanup: normalizers that a family runs before SentencePiece's own.
        prefix: where a space is added: before every stretch of text, or only at the beginning and not after
            special tokens.
    """
    from tokenizers import Tokenizer as Backend

    with library_errors(f"{model.where} makes no tokenizer", "the file is damaged: download it again"):
        backend = Backend(_bpe(model) if model.kind == "bpe" else _unigram(model))
        _set_spaces(backend, model, list(cleanup), prefix)
    marked = [piece for piece in model.pieces if piece.type in (CONTROL, UNKNOWN)]
    # Unigram segments user-defined pieces itself, see `_scores`; BPE needs them cut out beforehand.
    # That happens after spaces are collapsed, or else the text on either side would lose those next to them. One case
    # differs from SentencePiece: a text that begins with such a piece gets no ▁ before it.
    marked += [p for p in model.pieces if p.type == USER_DEFINED and model.kind == "bpe"]
    register_pieces(backend, marked, normalized=model.collapse_spaces)
    return backend


def register_pieces(backend: tokenizers.Tokenizer, pieces: Iterable[Piece], *, normalized: bool = False) -> None:
    """Make the backend match these pieces as units: in the text as given, or (unless special) as normalized."""
    from tokenizers import AddedToken

    def added(piece: Piece) -> AddedToken:
        special = piece.type in (CONTROL, UNKNOWN)
        return AddedToken(piece.text, normalized=normalized and not special, special=special)

    backend.add_tokens([added(piece) for piece in pieces if piece.text])


def _unigram(model: SpmModel) -> Any:
    from tokenizers.models import Unigram

    return Unigram(
        list(zip(unique([piece.text for piece in model.pieces]), _scores(model), strict=True)),
        unk_id=model.unknown,
        byte_fallback=model.byte_fallback,
    )


def _scores(model: SpmModel) -> list[float]:
    """Scores with which a plain Viterbi search treats every type of piece as SentencePiece does.

    A user-defined piece always wins (unigram_model.cc: its score is length x the best score - 0.1). Bytes and unused
    pieces never do: they score below any ordinary piece.
    """
    normal = [piece.score for piece in model.pieces if piece.type == NORMAL] or [0.0]
    best, never = max(normal), min(normal) - 5.0
    by_type = {BYTE: never, UNUSED: never}
    return [
        len(p.text.encode("utf-8")) * best - 0.1 if p.type == USER_DEFINED else by_type.get(p.type, p.score)
        for p in model.pieces
    ]


def _bpe(model: SpmModel) -> Any:
    from tokenizers.models import BPE

    vocabulary = {text: i for i, text in enumerate(unique([piece.text for piece in model.pieces]))}
    merges = merges_from_scores(model.pieces)
    # A character may occur in pieces only ("\t" in Gemma's "\t\t"); merging has to start from something.
    for left, right in merges:
        for part in (left, right):
            if part not in vocabulary:
                vocabulary[part] = vocabulary[f"<0x{ord(part):02X}>"]
    return BPE(
        vocabulary, merges, unk_token=model.pieces[model.unknown].text, fuse_unk=True, byte_fallback=model.byte_fallback
    )


def merges_from_scores(pieces: Iterable[Piece]) -> list[tuple[str, str]]:
    """Return the merges that SentencePiece's BPE tries, best first: all pairs that make a third piece, by its score."""
    ranked = [(piece.text, -piece.score, i) for i, piece in enumerate(pieces) if piece.type in _MERGEABLE]
    ids = {text: i for text, _, i in ranked}
    byte_ids = {piece.text: i for i, piece in enumerate(pieces) if piece.type == BYTE}
    for text, _, _ in list(ranked):
        for character in text if len(text) > 1 else ():
            if character not in ids and (byte := byte_ids.get(f"<0x{ord(character):02X}>")) is not None:
                ids[character] = byte
    merges = []
    for text, _, _ in sorted(ranked, key=lambda item: item[1:]):
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [(left, right) for left, right in halves if left in ids and right in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def unique(texts: list[str]) -> list[str]:
    """Texts with repetitions renamed: an id must not be lost because another one has the same text."""
    seen: set[str] = set()
    result = []
    for position, text in enumerate(texts):
        name = text if text not in seen else f"{text}<duplicate {position}>"
        seen.add(name)
        result.append(name)
    return result


def _set_spaces(backend: tokenizers.Tokenizer, model: SpmModel, steps: list[Any], prefix: str) -> None:
    """The normalizer, pre-tokenizer and decoder: spaces become ▁, as normalizer_spec says, and back."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.collapse_spaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(" +$"), "")]
    # Cutting at every space is faster and takes less memory; it is the same as long as no piece goes across one.
    split = all(SPACE not in piece.text[1:] for piece in model.pieces if piece.type in _MERGEABLE)
    scheme: Literal["always", "first", "never"] = "never"
    if model.add_prefix and (model.collapse_spaces or prefix == "first"):
        scheme = "first" if prefix == "first" else "always"  # Metaspace adds no second ▁ where the text has one already
    elif model.add_prefix:
        steps.append(normalizers.Prepend(SPACE))
    elif model.collapse_spaces:
        steps.append(normalizers.Replace(Regex("^ +"), ""))
    if scheme == "never":
        steps.append(normalizers.Replace(" ", SPACE))
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    if split or scheme != "never":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split)
    backend.decoder = pieces_to_text(*([decoders.Strip(" ", 1, 0)] if model.add_prefix else ()))


def pieces_to_text(*ending: Any) -> Any:
    """Return the decoder of pieces: ▁ becomes a space and <0x41> the byte; then what `ending` does."""
    from tokenizers import decoders

    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ending])
