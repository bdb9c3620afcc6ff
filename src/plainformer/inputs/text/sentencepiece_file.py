"""Tokenizers whose checkpoint publishes a SentencePiece model: how ids differ from its piece numbers, and what goes around
a text, as the family's convention says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plainformer.config.checks import reading
from plainformer.config.fields import Fields
from plainformer.errors import CheckpointError
from plainformer.inputs.text.languages import ORIGINAL_CLASS, languages_of
from plainformer.inputs.text.sentencepiece_model import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SpmModel,
    read_proto,
    register_pieces,
    to_backend,
)
from plainformer.inputs.text.tokenizer_settings import Settings
from plainformer.inputs.text.vocabulary import (
    begin_and_end,
    fill_template,
    known_roles,
    read_vocabulary,
    register_special,
    surround,
)

if TYPE_CHECKING:
    from plainformer.config.tokenizer import TokenizerConvention


def read_sentencepiece(path: Path, settings: Settings, convention: TokenizerConvention) -> dict[str, Any]:
    """Return the arguments of `Tokenizer` for a folder whose vocabulary is the SentencePiece model at `path`."""
    if convention.pieces == "vocab.json":
        return _looked_up(path, settings, convention)
    model = read_proto(path)
    model = replace(model, pieces=tuple(_with_added(_arranged(model, settings, convention), settings)))
    known = {piece.text for piece in model.pieces}
    roles = known_roles(settings, convention.usual_roles(), known)
    backend = to_backend(model, cleanup=_cleanup(settings, convention), prefix=_prefix(model, settings, convention))
    register_special(backend, settings, roles, mask_lstrip=True)
    languages = languages_of(backend, settings, convention, roles)
    if convention.single:
        surround(backend, *fill_template(convention, roles, settings), f"{settings.kind} models")
    else:
        begin_and_end(backend, *settings.ends(roles, convention))
    own = {ORIGINAL_CLASS: convention.saved_as} if languages else {}
    return {"backend": backend, "special_tokens": roles, "languages": languages, "settings": own}


def _prefix(model: SpmModel, settings: Settings, convention: TokenizerConvention) -> Literal["always", "first"]:
    """`legacy: false` asks for no space after special tokens; BPE with user-defined pieces needs that to be exact."""
    legacy = settings.config.get("legacy")
    if convention.legacy_prefix and legacy is False:
        return "first"
    own = {token.content for token in settings.added.values()} if legacy is True else ()
    cut_out = any(piece.type == USER_DEFINED and piece.text not in own for piece in model.pieces)
    return "first" if model.kind == "bpe" and cut_out else "always"


def _cleanup(settings: Settings, convention: TokenizerConvention) -> list[Any]:
    from tokenizers import normalizers

    config = settings.config
    steps: list[Any] = []
    if convention.strip_accents:
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        if not config.get("keep_accents", False):
            steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if convention.lowercase is not None and config.get("do_lower_case", convention.lowercase):
        steps.append(normalizers.Lowercase())
    return steps


# ---- vocabularies -------------------------------------------------------------------------------------------------


def _control(*names: str) -> list[Piece]:
    return [Piece(name, 0.0, UNKNOWN if name == "<unk>" else CONTROL) for name in names]


def _arranged(model: SpmModel, settings: Settings, convention: TokenizerConvention) -> list[Piece]:
    """Return the vocabulary from the model's pieces."""
    if convention.pieces == "fairseq":
        return _fairseq(model, settings, convention)
    if convention.pieces == "fairseq-before":
        _check_first(model, settings)
        before = _control("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
        return [*before, *model.pieces[1:], *_control("<mask>")]
    arrange = {"sentinels": _with_sentinels, "reserved": _with_reserved, "bracketed": _with_mask}.get(convention.pieces)
    return arrange(model, settings) if arrange is not None else list(model.pieces)


def _fairseq(model: SpmModel, settings: Settings, convention: TokenizerConvention) -> list[Piece]:
    """fairseq's dictionary comes first: <s>, <pad>, </s>, <unk>; languages and <mask> come last.

    The languages of a family may differ between releases: the checkpoint has to list them then.
    """
    _check_first(model, settings)
    pieces = [*_control("<s>", "<pad>", "</s>", "<unk>"), *model.pieces[3:]]
    languages = list(convention.languages)
    if convention.language and not languages:
        languages = [token.content for token in settings.listed if token.content != "<mask>"]
        if not languages and settings.added:
            return pieces
        if not languages:
            raise CheckpointError(
                f"{settings.folder} does not list its languages",
                "additional_special_tokens in special_tokens_map.json holds them: download that file too",
            )
    return [*pieces, *_control(*languages, "<mask>")]


def _check_first(model: SpmModel, settings: Settings) -> None:
    if {piece.text for piece in model.pieces[:3]} != {"<unk>", "<s>", "</s>"}:
        raise CheckpointError(
            f"{model.where}: the first three pieces are not <unk>, <s> and </s>, as a {settings.kind!r} model has them",
            "the file belongs to another family: correct tokenizer_class, or provide a tokenizer.json",
        )


def _with_sentinels(model: SpmModel, settings: Settings) -> list[Piece]:
    """Sentinels come last, counted down (Raffel et al. 2020)."""
    count = _count(settings, "extra_ids", 100, 0, 100_000)
    known = {piece.text for piece in model.pieces}
    sentinels = [f"<extra_id_{i}>" for i in range(count - 1, -1, -1)]
    return [*model.pieces, *_control(*(name for name in sentinels if name not in known))]


def _with_reserved(model: SpmModel, settings: Settings) -> list[Piece]:
    """103 ids of pre-training come before the pieces (Zhang et al. 2020)."""
    offset = _count(settings, "offset", 103, 2, 10_000)
    reserved = ("<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, offset))) if offset > 2 else ()
    pieces = [piece._replace(type=CONTROL) if piece.text == "</s>" else piece for piece in model.pieces]
    if [piece.text for piece in pieces[:2]] != ["<pad>", "</s>"]:
        raise CheckpointError(
            f"{model.where}: the first pieces are not <pad> and </s>, as a {settings.kind!r} model has them",
            "the file belongs to another family: correct tokenizer_class, or provide a tokenizer.json",
        )
    return [*pieces[:2], *_control(*reserved), *pieces[2:]]


def _count(settings: Settings, name: str, usual: int, lower: int, upper: int) -> int:
    with reading(str(settings.folder / "tokenizer_config.json")):
        return Fields(settings.config).bounded(name, upper, lower, default=usual)


def _with_mask(model: SpmModel, settings: Settings) -> list[Piece]:
    """Return the pieces, and a mask at the end where they have none."""
    mask = settings.role("mask_token", "[MASK]") or "[MASK]"
    known = {piece.text for piece in model.pieces}
    special = {"[CLS]", "[SEP]", "[PAD]", "[MASK]", "<pad>", "<s>", "</s>"}
    pieces = [p._replace(type=CONTROL) if p.text in special and p.type == NORMAL else p for p in model.pieces]
    return pieces if mask in known else [*pieces, *_control(mask)]


def _with_added(pieces: list[Piece], settings: Settings) -> list[Piece]:
    """Put tokens that have an id of their own at that id; gaps are filled with unused names."""
    places = {piece.text: i for i, piece in enumerate(pieces)}
    for index, token in sorted(settings.added.items()):
        if places.get(token.content, index) != index:
            raise CheckpointError(
                f"{settings.folder}: {token.content!r} is piece {places[token.content]}, but its added id is {index}",
                "the files are of different checkpoints, or edited: take all of them from one",
            )
        if index > len(pieces) + 100_000:
            raise CheckpointError(
                f"{settings.folder}: the id {index} of {token.content!r} is out of range",
                f"ids of added tokens follow those of the {len(pieces)} pieces",
            )
        while len(pieces) <= index:
            pieces.append(Piece(f"<unused {len(pieces)}>", 0.0, CONTROL))
        if pieces[index].text != token.content:
            pieces[index] = Piece(token.content, 0.0, CONTROL if token.special else USER_DEFINED)
            places[token.content] = index
    return pieces


# ---- pieces that are looked up in a vocab.json --------------------------------------------------------------------


def _looked_up(path: Path, settings: Settings, convention: TokenizerConvention) -> dict[str, Any]:
    """SentencePiece cuts the text, and a vocab.json gives the ids of the pieces. A target may have both of its own.

    The punctuation normalisation of some (Moses) is not applied, as in transformers without sacremoses.
    """
    names = [path.name, "vocab.json", "target.spm", "target_vocab.json"]
    kept = ("source_lang", "target_lang", "src_lang", "tgt_lang", "language_codes", "separate_vocabs")
    return {
        **_side(path, "vocab.json", settings, convention),
        "target": _target(settings, convention) if _is_separate(settings) else None,
        "source_files": {n: (settings.folder / n).read_bytes() for n in names if (settings.folder / n).is_file()},
        "settings": {
            **{key: settings.config[key] for key in kept if key in settings.config},
            "tokenizer_class": convention.saved_as,
        },
    }


def _is_separate(settings: Settings) -> bool:
    """Whether what is written has a vocabulary of its own (Marian)."""
    stated = settings.config.get("separate_vocabs")
    own = settings.model.get("share_encoder_decoder_embeddings") is False
    return bool(stated) or (stated is None and own and (settings.folder / "target_vocab.json").is_file())


def _target(settings: Settings, convention: TokenizerConvention) -> dict[str, Any]:
    missing = [name for name in ("target.spm", "target_vocab.json") if not (settings.folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{settings.folder}: source and target have a vocabulary each (separate_vocabs), and {missing[0]} is missing",
            "download that file too",
        )
    return _side(settings.folder / "target.spm", "target_vocab.json", settings, convention)


def _side(path: Path, ids: str, settings: Settings, convention: TokenizerConvention) -> dict[str, Any]:
    """Return the arguments of `Tokenizer` for a SentencePiece model and the file that has the ids of its pieces."""
    vocabulary, languages = _ids_and_languages(settings.folder / ids, settings, convention)
    usual = convention.usual_roles()
    roles = known_roles(settings, usual, vocabulary)
    for role in ("eos_token", "unk_token"):
        if role not in roles:
            name = settings.role(role, usual[role])
            what = (
                f"{settings.folder / ids} has no {name!r}, the {role}"
                if name
                else f"{settings.folder} sets {role} to null"
            )
            raise CheckpointError(what, f"name a token of that file as {role} in tokenizer_config.json")
    backend = to_backend(read_proto(path))
    register_pieces(backend, _control(*roles.values()))
    kind = USER_DEFINED if convention.language_marks else CONTROL
    register_pieces(backend, [Piece(name, 0.0, kind) for name in languages])
    spoken = languages_of(backend, settings, convention, roles, vocabulary.get)
    surround(backend, *fill_template(convention, roles, settings), f"{settings.kind} models")
    return {"backend": backend, "special_tokens": roles, "piece_ids": vocabulary, "languages": spoken}


def _ids_and_languages(
    path: Path, settings: Settings, convention: TokenizerConvention
) -> tuple[dict[str, int], list[str]]:
    """Return the vocabulary with its language tokens: those that it marks, or the convention's, numbered after all else."""
    vocabulary = dict(read_vocabulary(path))
    if convention.language_marks is not None:
        begin, end = convention.language_marks
        languages = [token for token in vocabulary if token.startswith(begin) and token.endswith(end)]
    else:
        named = convention.languages_named(settings.config.get("language_codes"))
        languages = [convention.language_token.format(code) for code in named]
        size = len(vocabulary)
        vocabulary |= {name: size + i for i, name in enumerate(languages)}
    vocabulary |= {token.content: i for i, token in settings.added.items() if token.content not in vocabulary}
    return vocabulary, languages
