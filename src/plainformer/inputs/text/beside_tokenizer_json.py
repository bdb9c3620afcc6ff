"""What a checkpoint's other files add to its tokenizer.json, and where they win over it: as in transformers 5.23.

Tokens that only they name, the source language, case and spaces. Where following them would give other ids to tokens that
there are, it is an error; what has no effect in transformers either is said in the log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError
from plainformer.inputs.text.sentencepiece_model import SPACE
from plainformer.inputs.text.tokenizer_settings import ROLES, Settings, library_errors, special_token, stated_token
from plainformer.inputs.text.vocabulary import fill_template, surround

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import AddedToken

    from plainformer.config.tokenizer import Conventions, TokenizerConvention

log = logging.getLogger(__name__)
# Fields of BertNormalizer by those of tokenizer_config.json.
_CASES = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
# Fields that are not followed: the part of tokenizer.json that shows its own value, and the value with which that step is there.
_SHOWN_BY = {
    "keep_accents": ("normalizer", "StripAccents", False),
    "split_by_punct": ("pre_tokenizer", "Punctuation", True),
}
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def follow(backend: tokenizers.Tokenizer, settings: Settings, conventions: Conventions | None) -> None:
    """Make the tokenizer of a tokenizer.json what the whole folder says.

    Raises:
        CheckpointError: the files give different ids to a token, or name a language that the vocabulary lacks.
    """
    convention = _convention(settings, conventions)
    add_tokens(backend, settings)
    own = conventions.of_model(str(settings.model.get("model_type"))) if conventions is not None else None
    _follow_text(backend, settings, convention, own)
    _follow_language(backend, settings, convention)
    _compare_ends(backend, settings)
    _compare_roles(backend, settings, convention)


def _convention(settings: Settings, conventions: Conventions | None) -> TokenizerConvention | None:
    """Return what the families say of tokenizers of this class; None where it is not one of theirs."""
    return conventions.known(settings.kind) if conventions is not None and settings.kind else None


# ---- tokens -------------------------------------------------------------------------------------------------------


def add_tokens(backend: tokenizers.Tokenizer, settings: Settings) -> None:
    """Add the tokens that only the other files name, in the order of transformers: by id, then roles, then the others."""
    there = {token.content for token in backend.get_added_tokens_decoder().values()}
    wanted: dict[str, AddedToken] = {}
    roles = {token.content: token for role in ROLES if (token := settings.roles.get(role)) is not None}
    for _, token in sorted(settings.added.items()):
        if settings.states_flags or token.content not in there:
            flags = {**token.__getstate__(), "special": token.special or token.content in roles}
            wanted[token.content] = special_token(flags.pop("content"), **flags)
    for token in (*roles.values(), *_named_tokens(settings), *settings.listed):
        if token.content not in there:
            wanted.setdefault(token.content, token)
    with library_errors(f"{settings.folder}: the added tokens cannot be added", "correct tokenizer_config.json"):
        backend.add_tokens(list(wanted.values()))
    for index, token in settings.added.items():
        _check_id(backend, settings, index, token.content)


def _named_tokens(settings: Settings) -> Iterator[AddedToken]:
    """Yield tokens with a role that one model alone has, such as `image_token`."""
    for key, value in settings.config.items():
        if key.endswith("_token") and key not in ROLES and "delimiter" not in key and isinstance(value, str | dict):
            yield stated_token(value, f"{settings.folder / 'tokenizer_config.json'}: {key}")


def _check_id(backend: tokenizers.Tokenizer, settings: Settings, index: int, content: str) -> None:
    found, other = backend.token_to_id(content), backend.id_to_token(index)
    if found != index:
        there = f"which is {other!r}" if other is not None else f"and the next free one is {found}"
        raise CheckpointError(
            f"{settings.folder}: the added tokens give {content!r} the id {index}, {there} in tokenizer.json"
            + (f"; {content!r} is {found} there" if other is not None else ""),
            "the files are of different checkpoints, or edited: take all of them from one",
        )


# ---- text ---------------------------------------------------------------------------------------------------------


def _follow_text(
    backend: tokenizers.Tokenizer,
    settings: Settings,
    convention: TokenizerConvention | None,
    own: TokenizerConvention | None,
) -> None:
    """Normalise and cut a text as tokenizer_config.json says, where tokenizers of its class do that."""
    keys = (*_CASES, "add_prefix_space", "legacy")
    stated = {key: value for key in keys if isinstance(value := settings.config.get(key), bool)}
    parts = {name: _state(getattr(backend, name)) for name in _PARTS}
    obeyed = (
        () if _counts_alone(settings, parts, convention, own) else keys if convention is None else convention.obeyed
    )
    for key, value in stated.items():
        changed: dict[str, Any] = json.loads(json.dumps(parts))
        if key == "legacy":
            _set_legacy(changed, value, "legacy" in obeyed)
        elif key == "add_prefix_space":
            _set_prefix(changed, value)
        else:
            _set_case(changed, key, value, key in obeyed)
        if changed == parts:
            continue
        if key in obeyed:
            parts = changed
            _set_parts(backend, parts)
        else:
            _say_ignored(settings, key, "tokenizers of this class take tokenizer.json as it is")
    for key, (part, kind, present) in _SHOWN_BY.items():
        value = settings.config.get(key)
        if isinstance(value, bool) and any(n["type"] == kind for n in _nodes(parts[part])) != (value is present):
            _say_ignored(settings, key, "tokenizer.json says otherwise, and is taken as it is")


def _counts_alone(
    settings: Settings,
    parts: dict[str, Any],
    convention: TokenizerConvention | None,
    own: TokenizerConvention | None,
) -> bool:
    """Return whether tokenizer.json is taken as it is.

    So it is where its class does no more or is not named, where the model's family says so (`own`), and where it cuts into
    bytes, which a class of SentencePiece models cannot do.
    """
    if settings.is_generic or (own is not None and own.json_alone):
        return True
    if convention is None or (convention.legacy_prefix and not settings.names_class):
        return not settings.names_class
    to_bytes = any(node["type"] == "ByteLevel" for node in _nodes(parts["pre_tokenizer"]))
    return convention.algorithm == "SentencePiece" and to_bytes


def _set_case(parts: dict[str, Any], key: str, value: bool, everywhere: bool) -> None:
    """Set a field of BertNormalizer; `everywhere`: or lower-case, or not, in a normalizer that has no such fields."""
    nodes = list(_nodes(parts["normalizer"]))
    for node in nodes:
        if node["type"] == "BertNormalizer":
            node[_CASES[key]] = value
    steps = (parts["normalizer"] or {}).get("normalizers")
    lowers = [node for node in nodes if node["type"] == "Lowercase" or node.get("lowercase")]
    if key != "do_lower_case" or not everywhere or steps is None or bool(lowers) == value:
        return
    if not value:
        steps[:] = [step for step in steps if step["type"] != "Lowercase"]
    else:
        first = next((place for place, step in enumerate(steps) if step["type"] == "Precompiled"), 0)
        steps.insert(first, {"type": "Lowercase"})


def _set_prefix(parts: dict[str, Any], prefix: bool) -> None:
    """Put a space before a text, or not, in whichever part does that."""
    for node in (node for part in parts.values() for node in _nodes(part)):
        if node["type"] in ("ByteLevel", "RobertaProcessing") and "add_prefix_space" in node:
            node["add_prefix_space"] = prefix
        elif node["type"] == "Metaspace" and prefix != (node.get("prepend_scheme") != "never"):
            node["prepend_scheme"] = "always" if prefix else "never"
    steps = (parts["normalizer"] or {}).get("normalizers", [])
    if not prefix and any(step["type"] == "Prepend" for step in steps):
        steps[:] = [step for step in steps if step["type"] != "Prepend"]
        ending = (parts["decoder"] or {}).get("decoders", [])
        ending[:] = [step for step in ending if step["type"] != "Strip"]


def _set_legacy(parts: dict[str, Any], legacy: bool, heeded: bool) -> None:
    """Put a space after special tokens, too (`legacy`), or not, where a class heeds that."""
    cut, steps = parts["pre_tokenizer"], list(_nodes(parts["normalizer"]))
    if not heeded:
        return
    if (
        cut is not None
        and cut["type"] == "Metaspace"
        and cut.get("prepend_scheme") == ("first" if legacy else "always")
    ):
        cut["prepend_scheme"] = "always" if legacy else "first"
    elif not legacy and cut is None and {step["type"] for step in steps} == {"Sequence", "Prepend", "Replace"}:
        parts["normalizer"] = None
        parts["pre_tokenizer"] = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}


def _say_ignored(settings: Settings, key: str, why: str, value: str | None = None) -> None:
    what = f"{key}={json.dumps(settings.config[key] if value is None else value)}"
    log.warning("%s: %s in tokenizer_config.json has no effect: %s", settings.folder, what, why)


def _state(part: Any) -> Any:
    return json.loads(part.__getstate__()) if part is not None else None


def _nodes(state: Any) -> Iterator[dict[str, Any]]:
    """Yield a part of a tokenizer and the parts that it is made of, as JSON."""
    if isinstance(state, dict) and "type" in state:
        yield state
        for key in ("normalizers", "pretokenizers", "decoders", "processors"):
            for inner in state.get(key, ()):
                yield from _nodes(inner)


def _set_parts(backend: tokenizers.Tokenizer, parts: dict[str, Any]) -> None:
    """Give a tokenizer other parts, which are written as JSON."""
    from tokenizers import Tokenizer as Backend

    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    made = Backend.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model, **parts}))
    for name in _PARTS:
        setattr(backend, name, getattr(made, name))


# ---- around a text ------------------------------------------------------------------------------------------------


def _follow_language(backend: tokenizers.Tokenizer, settings: Settings, convention: TokenizerConvention | None) -> None:
    """Put the source language's token to a text where tokenizer_config.json names one.

    Where the tokenizer's class is named, and knows languages, `languages.follow_config` does that.
    """
    if settings.names_class and convention is not None and convention.language:
        return
    language = settings.config.get("src_lang")
    if not isinstance(language, str) or backend.token_to_id(language) in backend.encode("a").ids:
        return
    if convention is None or "{lang}" not in convention.single:
        return _say_ignored(settings, "src_lang", "it is not known where such models have the token of a language")
    roles = {**convention.usual_roles(), **{role: t.content for role, t in settings.roles.items() if t is not None}}
    surround(backend, *fill_template(convention, roles, settings), f"{settings.kind} models")


def _compare_ends(backend: tokenizers.Tokenizer, settings: Settings) -> None:
    """Say where add_bos_token and add_eos_token disagree with tokenizer.json, which wins in transformers."""
    for place, role in ((0, "bos"), (-1, "eos")):
        stated, token = settings.config.get(f"add_{role}_token"), settings.role(f"{role}_token", None)
        index = backend.token_to_id(token) if token is not None else None
        if not isinstance(stated, bool) or index is None:
            continue
        ids = backend.encode("a").ids
        if stated != (bool(ids) and ids[place] == index):
            _say_ignored(settings, f"add_{role}_token", "tokenizer.json says otherwise of what goes around a text")


def _compare_roles(backend: tokenizers.Tokenizer, settings: Settings, convention: TokenizerConvention | None) -> None:
    """Say where a role's token is another one than tokenizer.json puts around a text."""
    around = backend.encode("").ids
    usual = convention.usual_roles("cls_token=[CLS] sep_token=[SEP]") if convention is not None else {}
    for role in ("bos_token", "eos_token", "cls_token", "sep_token"):
        stated, own = settings.role(role, None), usual.get(role)
        if stated is None or own is None or convention is None or convention.language:
            continue
        if backend.token_to_id(own) in around and backend.token_to_id(stated) not in around:
            _say_ignored(settings, role, f"tokenizer.json puts {own!r} around a text", stated)


def check_padding(backend: tokenizers.Tokenizer, settings: Settings, roles: dict[str, str]) -> dict[str, str]:
    """Return roles without a padding token that is beyond the model's vocabulary, where any other id will do."""
    rows, pad = settings.model.get("vocab_size"), roles.get("pad_token")
    index = backend.token_to_id(pad) if pad is not None else None
    if not is_whole(rows, 1) or index is None or index < rows:
        return roles
    log.warning("%s: pad_token %r has id %d, and the model's vocabulary has %d rows: another id is used for padding",
                settings.folder, pad, index, rows)  # fmt: skip
    return {role: token for role, token in roles.items() if role != "pad_token"}
