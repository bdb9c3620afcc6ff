"""What all tokenizers that are built from a vocabulary share: its files, how a text is cut, its special tokens."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.errors import CheckpointError
from plainformer.inputs.files import read_object, read_text
from plainformer.inputs.text.pre_tokenizers import BUILT_IN
from plainformer.inputs.text.sentencepiece_model import SPACE
from plainformer.inputs.text.tokenizer_settings import Settings, library_errors, special_token

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import AddedToken

    from plainformer.config.tokenizer import TokenizerConvention


def read_vocabulary(path: Path) -> dict[str, int]:
    """Return a vocab.json: token → id."""
    content = read_object(path)
    if not content:
        raise CheckpointError(f"{path} has no tokens", 'it is an object of tokens and their ids: {"hello": 0, ...}')
    for token, index in content.items():
        if type(index) is not int or index < 0:
            raise CheckpointError(f"{path}: the id of {token!r} is {index!r}", "ids are whole numbers from 0")
    return content


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Return a merges.txt: two tokens a line, in order of priority; a first line "#version" is a heading."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise CheckpointError(
                f"{path}, line {number}: {line[:60]!r} is not two tokens separated by a space",
                "correct that line if you have edited the file, or else download it again",
            )
        merges.append((pair[0], pair[1]))
    return merges


def assign_added(vocabulary: dict[str, int], settings: Settings) -> None:
    """Put the tokens that have an id of their own into `vocabulary`; a placeholder at that id is replaced."""
    by_id = {index: token for token, index in vocabulary.items()}
    for index, token in sorted(settings.added.items()):
        known = vocabulary.get(token.content)
        if known is not None and known != index:
            raise CheckpointError(
                f"{settings.folder}: {token.content!r} has id {known} in the vocabulary, {index} in the added tokens",
                "the files are of different checkpoints, or edited: take all of them from one",
            )
        if known is None:
            if index in by_id:
                del vocabulary[by_id[index]]
            vocabulary[token.content] = index
            by_id[index] = token.content


def register_special(
    backend: tokenizers.Tokenizer, settings: Settings, roles: Mapping[str, str], *, mask_lstrip: bool = False
) -> None:
    """Make the backend treat role tokens and added tokens as units; `mask_lstrip` gives the mask the space before it."""
    chosen = {token: special_token(token) for token in roles.values()}
    if mask_lstrip and (mask := roles.get("mask_token")) is not None:
        chosen[mask] = special_token(mask, lstrip=True)
    for stated in settings.roles.values():
        if stated is not None and (stated.lstrip or stated.rstrip or stated.single_word or stated.normalized):
            chosen[stated.content] = stated
    for stated in (*settings.listed, *settings.added.values()):
        chosen[stated.content] = _as_matched(stated, backend, named=stated.content in roles.values())
    listed = {stated.content for stated in settings.listed}
    order = {token: backend.token_to_id(token) for token in chosen}
    known = sorted((i, token) for token, i in order.items() if i is not None)
    tokens = [token for _, token in known] + [token for token, i in order.items() if i is None and token in listed]
    backend.add_tokens([chosen[token] for token in tokens])


def _as_matched(token: AddedToken, backend: tokenizers.Tokenizer, *, named: bool) -> AddedToken:
    """Return an added token with the flags by which the backend finds it wherever a text holds it.

    Where normalisation puts a space before a text, it puts one before the token, too, which would then be found at the
    beginning of words alone: such a token is searched for in the text as given.
    """
    flags = {**token.__getstate__(), "special": token.special or named}
    if backend.normalizer is not None and backend.normalizer.normalize_str("A").startswith(SPACE):
        flags["normalized"] = False
    return special_token(flags.pop("content"), **flags)


def known_roles(settings: Settings, usual: Mapping[str, str], vocabulary: Container[str]) -> dict[str, str]:
    """Return the family's usual special tokens, overridden by what the files say, as far as the vocabulary has them.

    They have one order in every process, since it is that of the file that `save` writes.
    """
    stated = {role: settings.role(role, usual.get(role)) for role in {**usual, **settings.roles}}
    return {role: token for role, token in stated.items() if token is not None and token in vocabulary}


def fill_template(
    convention: TokenizerConvention, roles: Mapping[str, str], settings: Settings
) -> tuple[list[str], list[str]]:
    """Return what goes around a text and around a pair, with the roles' tokens in their places."""
    words = {role.removesuffix("_token"): token for role, token in roles.items()}
    words["lang"] = convention.language_token.format(settings.config.get("src_lang") or convention.language)
    old = bool(convention.legacy_single) and settings.config.get("legacy_behaviour") is True
    single = convention.legacy_single if old else convention.single
    try:
        pair = convention.pair or single.replace("$A", "$A $B")
        return single.format(**words).split(), pair.format(**words).split()
    except KeyError as error:
        raise CheckpointError(
            f"{settings.folder}: the vocabulary lacks the {error.args[0]} token that this family puts around a text",
            f"name {error.args[0]}_token in tokenizer_config.json",
        ) from None


def surround(
    backend: tokenizers.Tokenizer, single: list[str], pair: list[str], post: str = "the special tokens"
) -> None:
    """Set which special tokens go around a text and a pair: items such as "[CLS]", "$A", "[SEP]", "$B:1", "[SEP]:1"."""
    from tokenizers.processors import TemplateProcessing

    names = sorted({item.rsplit(":", 1)[0] if item[-2:] in (":0", ":1", ":2") else item for item in [*single, *pair]})
    special = []
    for name in names:
        if name in ("$A", "$B"):
            continue
        index = backend.token_to_id(name)
        if index is None:
            raise CheckpointError(
                f"the vocabulary lacks {name!r}, which {post} need", "name the right token in tokenizer_config.json"
            )
        special.append((name, index))
    with library_errors("the special tokens make no template", "check their names in tokenizer_config.json"):
        backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)


def begin_and_end(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Begin every text with `bos` and end it with `eos`, where there is one."""
    if bos or eos:
        single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
        surround(backend, single, [*single, *(item.replace("$A", "$B") + ":1" for item in single)])


def cut_to_bytes(backend: tokenizers.Tokenizer, patterns: Sequence[str], prefix_space: bool = False) -> None:
    """Cut a text into words by regular expressions, and write its bytes as characters (Radford et al. 2019)."""
    from tokenizers import Regex, decoders, pre_tokenizers

    if tuple(patterns) == (BUILT_IN,):  # the library's own, faster than the same expression
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(prefix_space)
    else:
        split = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        to_bytes = pre_tokenizers.ByteLevel(prefix_space, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes])
    backend.decoder = decoders.ByteLevel()


def lower_first(backend: tokenizers.Tokenizer) -> None:
    """Lower-case texts before the backend's own normalisation, if that does not do so already."""
    from tokenizers import normalizers

    own: Any = backend.normalizer
    several = isinstance(own, normalizers.Sequence)
    steps = list(own) if several else [] if own is None else [own]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def wordpiece(vocabulary: Mapping[str, int], unknown: str, **normalizer: Any) -> tokenizers.Tokenizer:
    """Return BERT's tokenizer (Schuster and Nakajima 2012; Devlin et al. 2019), without special tokens."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    backend = Backend(models.WordPiece(dict(vocabulary), unk_token=unknown, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(**normalizer)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend
