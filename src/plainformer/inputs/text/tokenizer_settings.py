"""What a checkpoint folder says about its tokenizer besides the vocabulary: special tokens, limits, chat templates.

Read from tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat_template.jinja and the model's
config.json.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.config.tokenizer import kind_of
from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError, PlainformerError, a_type
from plainformer.inputs.files import read_object, read_text

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import AddedToken

    from plainformer.config.tokenizer import TokenizerConvention

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_UNLIMITED = 10**9  # a model_max_length of 1e30 means "unknown"
_MAX_ID = 1 << 31  # past every vocabulary
_WELL_KNOWN = {
    "[CLS]": "cls_token",
    "[SEP]": "sep_token",
    "[MASK]": "mask_token",
    "<mask>": "mask_token",
    "[PAD]": "pad_token",
    "<pad>": "pad_token",
    "[UNK]": "unk_token",
    "<unk>": "unk_token",
}


@dataclass(frozen=True)
class Settings:
    """A folder's settings, checked.

    Attributes:
        folder: where they come from.
        config: tokenizer_config.json, or {}.
        model: the model's config.json, or {}.
        roles: role ("bos_token", ...) → token; one that the files set to null is None, which differs from unset.
        added: id → token, of added_tokens.json and added_tokens_decoder. states_flags: whether the latter is there, which
            says of each token how it is matched.
        listed: additional special tokens without an id.
        chat_templates: name → source.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, AddedToken | None] = field(default_factory=dict)
    added: dict[int, AddedToken] = field(default_factory=dict)
    states_flags: bool = False
    listed: tuple[AddedToken, ...] = ()
    chat_templates: dict[str, str] = field(default_factory=dict)

    @property
    def names_class(self) -> bool:
        """Return whether tokenizer_class says more than that there is a tokenizer.json."""
        return isinstance(self.config.get("tokenizer_class"), str) and not self.is_generic

    @property
    def is_generic(self) -> bool:
        """Return whether tokenizer_class says that there is a tokenizer.json, and no more."""
        generic = ("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")
        return self.config.get("tokenizer_class") in generic

    @property
    def kind(self) -> str:
        """Return the tokenizer's family as one word (`kind_of`), by tokenizer_class or the model_type; "" where neither is."""
        name = self.config["tokenizer_class"] if self.names_class else self.model.get("model_type")
        return kind_of(name) if isinstance(name, str) else ""

    def role(self, name: str, default: str | None) -> str | None:
        """Return the token that plays a role, as the files say, or else `default`."""
        if name not in self.roles:
            return default
        token = self.roles[name]
        return token.content if token is not None else None

    def ends(self, roles: Mapping[str, str], convention: TokenizerConvention) -> tuple[str | None, str | None]:
        """Return the tokens that begin and end a text, as add_bos_token and add_eos_token say (or the family's habit)."""
        bos = roles.get("bos_token") if self.config.get("add_bos_token", convention.add_bos) else None
        return bos, roles.get("eos_token") if self.config.get("add_eos_token", False) else None

    def max_length(self, convention: TokenizerConvention) -> int | None:
        """Return the most tokens that a model of that convention takes, or None where nothing says so."""
        stated = self.config.get("model_max_length")
        if isinstance(stated, bool) or not isinstance(stated, int | float | None):
            where = self.folder / "tokenizer_config.json"
            raise CheckpointError(f"{where}: model_max_length is {stated!r}", "it must be a number, without quotes")
        if stated is not None and 1 <= stated < _UNLIMITED:
            return int(stated)
        positions = next((self.model[name] for name in convention.limit_fields if name in self.model), None)
        return max(1, positions - convention.unused_positions) if is_whole(positions, 1) else None


@contextmanager
def library_errors(what: str, fix: str) -> Iterator[None]:
    """Turn whatever the tokenizers library raises into a CheckpointError; its Rust panics are not even `Exception`s."""
    try:
        yield
    except PlainformerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what}: {error}", fix) from error


def special_token(content: str, **flags: bool) -> AddedToken:
    """Return a token that is never split, and is matched in the text as given before anything else."""
    from tokenizers import AddedToken

    return AddedToken(content, **{"normalized": False, "special": True, **flags})


def stated_token(value: Any, where: str) -> AddedToken:
    """Return a token written as a text or as an AddedToken object."""
    if isinstance(value, str):
        return special_token(value)
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        flags = {k: bool(value[k]) for k in ("lstrip", "rstrip", "single_word", "normalized", "special") if k in value}
        return special_token(value["content"], **flags)
    raise CheckpointError(
        f"{where} is {value!r}, neither a token's text nor an object with its content", "correct the entry"
    )


def read_settings(folder: Path, model: Mapping[str, Any] | None = None) -> Settings:
    """Return all settings of `folder`; `model` is the model's config.json, by default the folder's own."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", "pass the checkpoint's folder")
    path = folder / "tokenizer_config.json"
    config = read_object(path)
    roles: dict[str, AddedToken | None] = {}
    states_flags = "added_tokens_decoder" in config
    # As in transformers: a file that lists its added tokens is of the newer format, and wins; or else the map does.
    sources = (folder / "special_tokens_map.json", path)
    for source in sources if states_flags else reversed(sources):
        entries = read_object(source)
        for role in ROLES:
            if role in entries:
                value = entries[role]
                roles[role] = None if value is None else stated_token(value, f"{source}: {role}")
    listed = _listed_tokens(folder, config)
    named = {token.content for token in (*roles.values(), *listed) if token is not None}
    return Settings(
        folder=folder,
        config=config,
        model=dict(model) if model is not None else read_object(folder / "config.json"),
        roles=roles,
        added=_added_tokens(folder, config, named),
        states_flags=states_flags,
        listed=listed,
        chat_templates=_chat_templates(folder, config),
    )


def _added_tokens(folder: Path, config: Mapping[str, Any], special: Container[str]) -> dict[int, AddedToken]:
    """Return id → token; of those in added_tokens.json, which says no more, the ones named elsewhere are special."""
    added: dict[int, AddedToken] = {}
    path = folder / "added_tokens.json"
    for content, index in read_object(path).items():
        if not is_whole(index, 0) or index >= _MAX_ID:
            raise CheckpointError(f"{path}: the id of {content!r} is {index!r}", "ids are whole numbers from 0")
        added[index] = special_token(content, special=content in special, normalized=content not in special)
    decoder = config.get("added_tokens_decoder") or {}
    where = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
    if not isinstance(decoder, Mapping):
        raise CheckpointError(f"{where} is {a_type(decoder)}, not an object", "correct the entry")
    for key, value in decoder.items():
        if not (key.isascii() and key.isdigit()) or len(key) > 10 or int(key) >= _MAX_ID:
            raise CheckpointError(f"{where} has the id {key!r}", "ids are whole numbers from 0")
        added[int(key)] = stated_token(value, f"{where}[{key}]")
    return added


def _listed_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """Return the additional special tokens; those that an object names come first, as in transformers."""
    named: dict[str, AddedToken] = {}
    listed: dict[str, AddedToken] = {}
    for source in (read_object(folder / "special_tokens_map.json"), config):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            values = source.get(key) or []
            if not isinstance(values, dict | list):
                raise CheckpointError(f"{folder}: {key} is {a_type(values)}, not a list of tokens", "correct the entry")
            for value in values.values() if isinstance(values, dict) else values:
                token = stated_token(value, f"{folder}: {key}")
                (named if isinstance(values, dict) else listed)[token.content] = token
    return tuple({**named, **listed}.values())


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    from plainformer.inputs.chat.template import read_templates

    templates: dict[str, str] = {}
    if config.get("chat_template") is not None:
        templates |= read_templates(config["chat_template"], str(folder / "tokenizer_config.json"))
    legacy = read_object(folder / "chat_template.json").get("chat_template")
    if legacy is not None:
        templates |= read_templates(legacy, str(folder / "chat_template.json"))
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = read_text(folder / "chat_template.jinja")
    extra = folder / "additional_chat_templates"
    for path in sorted(extra.glob("*.jinja")) if extra.is_dir() else ():
        templates[path.stem] = read_text(path)
    return templates


def find_roles(settings: Settings, backend: tokenizers.Tokenizer) -> dict[str, str]:
    """Return role → token for a ready-made tokenizer.

    From its files; where they say nothing, from the model's config.json (bos_token_id, ...), from the tokenizer's own
    post-processor (cls and sep), and from special tokens of well-known names.
    """
    found: dict[str, str] = {}
    for role in ROLES:
        index = settings.model.get(f"{role}_id")
        if is_whole(index, 0) and (token := backend.id_to_token(index)) is not None:
            found[role] = token
    state = json.loads(backend.post_processor.__getstate__()) if backend.post_processor is not None else {}
    for role in ("cls", "sep"):
        if isinstance(state.get(role), list):
            found.setdefault(f"{role}_token", state[role][0])
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    for content, role in _WELL_KNOWN.items():
        if content in special:
            found.setdefault(role, content)
    return {role: t for role in ROLES if (t := settings.role(role, found.get(role))) is not None}


def write_folder(
    folder: Path,
    *,
    backend: tokenizers.Tokenizer | None,
    source_files: Mapping[str, bytes],
    special_tokens: Mapping[str, str],
    chat_templates: Mapping[str, str],
    settings: Mapping[str, Any],
) -> None:
    """Write a tokenizer's files into `folder`, which exists; see `Tokenizer.save`."""
    for name, content in source_files.items():
        (folder / name).write_bytes(content)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **settings, **special_tokens}
    if backend is not None:
        (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
        config["added_tokens_decoder"] = {
            str(index): token.__getstate__() for index, token in sorted(backend.get_added_tokens_decoder().items())
        }
    if set(chat_templates) == {"default"}:
        config["chat_template"] = chat_templates["default"]
    elif chat_templates:
        config["chat_template"] = [{"name": n, "template": t} for n, t in chat_templates.items()]
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
