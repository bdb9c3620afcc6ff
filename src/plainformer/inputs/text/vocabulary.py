"""What all tokenizers that are built from a vocabulary share: its files, and the special tokens in and around a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plainformer.errors import CheckpointError
from plainformer.inputs.text.tokenizer_settings import Settings, SpecialToken, library_errors, read_json, read_text

if TYPE_CHECKING:
    import tokenizers

    from plainformer.config.tokenizer import TokenizerConvention


def read_vocabulary(path: Path) -> dict[str, int]:
    """A vocab.json: token → id."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} is not an object of tokens and their ids", "download the file again")
    for token, index in content.items():
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise CheckpointError(f"{path}: the id of {token!r} is {index!r}", "ids are whole numbers from 0")
    return content


def read_merges(path: Path) -> list[tuple[str, str]]:
    """A merges.txt: two tokens a line, in order of priority; a first line "#version" is a heading."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise CheckpointError(
                f"{path}, line {number}: {line[:60]!r} is not two tokens separated by a space",
                "the file is damaged: download it again",
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
                "the files do not belong together: download all of them again",
            )
        if known is None:
            if index in by_id:
                del vocabulary[by_id[index]]
            vocabulary[token.content] = index
            by_id[index] = token.content


def register_special(
    backend: tokenizers.Tokenizer, settings: Settings, roles: Mapping[str, str], options: Mapping[str, SpecialToken]
) -> None:
    """Make the backend treat role tokens and added tokens as units. `options`: how to match one, unless files say."""
    chosen: dict[str, SpecialToken] = {}
    for token in roles.values():
        chosen[token] = options.get(token, SpecialToken(token))
    for stated in settings.roles.values():
        if stated is not None and (stated.lstrip or stated.rstrip or stated.single_word or stated.normalized):
            chosen[stated.content] = stated
    for stated in (*settings.listed, *settings.added.values()):
        chosen[stated.content] = stated
    listed = {stated.content for stated in settings.listed}
    order = {token: backend.token_to_id(token) for token in chosen}
    known = sorted((i, token) for token, i in order.items() if i is not None)
    tokens = [token for _, token in known] + [token for token, i in order.items() if i is None and token in listed]
    backend.add_tokens([chosen[token].to_added() for token in tokens])


def fill_template(
    convention: TokenizerConvention, roles: Mapping[str, str], settings: Settings
) -> tuple[list[str], list[str]]:
    """What goes around a text and around a pair, with the roles' tokens in their places."""
    words = {role.removesuffix("_token"): token for role, token in roles.items()}
    language = settings.config.get("src_lang") or convention.language
    words["lang"] = convention.language_token.format(language)
    try:
        return convention.single.format(**words).split(), convention.pair.format(**words).split()
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


def surround_bos_eos(
    backend: tokenizers.Tokenizer, settings: Settings, roles: Mapping[str, str], *, add_bos: bool, add_eos: bool
) -> None:
    """Begin and end every text with bos and eos, as add_bos_token and add_eos_token say (or the family's habit)."""
    bos = roles.get("bos_token") if settings.config.get("add_bos_token", add_bos) else None
    eos = roles.get("eos_token") if settings.config.get("add_eos_token", add_eos) else None
    if bos or eos:
        single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
        second = [item.replace("$A", "$B") + ":1" for item in single]
        surround(backend, single, [*single, *second])
