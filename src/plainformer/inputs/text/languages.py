"""The languages of a multilingual tokenizer: each is a token, which marks a text and begins a translation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from plainformer.config.tokenizer import TokenizerConvention, kind_of
from plainformer.errors import CheckpointError, UsageError, did_you_mean, opt
from plainformer.inputs.text.tokenizer_settings import Settings
from plainformer.inputs.text.vocabulary import fill_template, surround

if TYPE_CHECKING:
    import tokenizers

    from plainformer.config.tokenizer import Conventions
    from plainformer.inputs.text.encoding import Encoding

# In a tokenizer_config.json that we wrote: the class that knows the languages. As its tokenizer_class, it would make
# transformers 5.23 drop the normalisation in tokenizer.json.
ORIGINAL_CLASS = "original_tokenizer_class"


@dataclass(frozen=True)
class Languages:
    """What a multilingual tokenizer reads and writes; of any other, empty.

    Attributes:
        tokens: code ("deu_Latn", "de") → its token. ids: code → the token's id.
        source: the code that texts are marked with where none is given. target: the checkpoint's usual one, or None.
        starts: whether a target's token is the decoder's start token (mBART); otherwise it comes after that.
        marks: of a tokenizer whose texts begin with the target's token (Marian), which has nothing else of this: code → token.
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    ids: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    target: str | None = None
    starts: bool = False
    marks: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.ids)

    def code(self, name: str, given: str) -> str:
        """Return the code that the option `name` gives, as a code or as its token.

        Raises:
            UsageError: the tokenizer has no such language, or none at all.
        """
        if not self:
            raise UsageError(
                f"{opt(name, given)} has no effect on this model: its tokenizer has no languages",
                f"leave {opt(name)} out",
            )
        by_token = {token: code for code, token in self.tokens.items()}
        found = given if given in self.ids else by_token.get(given)
        if found is None:
            raise UsageError(f"{opt(name, given)} is not a language of this tokenizer", self._hint(given))
        return found

    def mark(self, name: str, given: str) -> str:
        """Return the token that a text begins with to be translated into a language, given as a code or as that token.

        Raises:
            UsageError: the tokenizer has no such token.
        """
        token = self.marks.get(given, given)
        if token not in self.marks.values():
            what = f"{opt(name, given)} is not a language of this model, which knows tokens such as {min(self.marks.values())}"
            raise UsageError(what, self._hint(given))
        return token

    def _hint(self, given: str) -> str:
        codes = self.ids or self.marks
        near = did_you_mean(given, codes)
        same = sorted(code for code in codes if code.lower().startswith(given[:2].lower()))
        if near or not same:
            return near or f"its {len(codes)} codes look like {', '.join(sorted(codes)[:5])}"
        return f"codes that begin alike: {', '.join(same[:8])}"

    def marked(self, row: Encoding, source: str) -> Encoding:
        """Return a row whose text is marked with another language than the usual one."""
        if source == self.source:
            return row
        old, new = self.ids[self.source], self.ids[source]
        places = [i for i, special in enumerate(row.special) if special and row.input_ids[i] == old]
        ids, tokens = list(row.input_ids), list(row.tokens)
        for place in places:
            ids[place], tokens[place] = new, self.tokens[source]
        return replace(row, input_ids=ids, tokens=tokens)


def languages_of(
    backend: tokenizers.Tokenizer,
    settings: Settings,
    convention: TokenizerConvention,
    roles: Mapping[str, str],
    id_of: Callable[[str], int | None] | None = None,
) -> Languages:
    """Return the languages that a convention says a vocabulary has.

    Args:
        roles: role → token. id_of: the id of a token, where it is not the backend's.
    Raises:
        CheckpointError: tokenizer_config.json names a source or target that is none of them.
    """
    if convention.language_marks is not None and not convention.language:
        begin, end = convention.language_marks
        marks = [token for token in backend.get_vocab() if token.startswith(begin) and token.endswith(end)]
        return Languages(marks={token.removeprefix(begin).removesuffix(end): token for token in sorted(marks)})
    if not convention.language:
        return Languages()
    named = convention.languages_named(settings.config.get("language_codes")) or _listed(backend, roles)
    tokens = {code: convention.language_token.format(code) for code in named}
    ids = {code: i for code, token in tokens.items() if (i := (id_of or backend.token_to_id)(token)) is not None}
    if not ids:
        return Languages()
    found = Languages({code: tokens[code] for code in ids}, ids, starts=convention.language_starts)
    stated = {name: settings.config.get(name) for name in ("src_lang", "tgt_lang")}
    for name, code in stated.items():
        if code is not None and code not in ids:
            what = f"{settings.folder / 'tokenizer_config.json'}: {name}={code!r} is not a language of this tokenizer"
            raise CheckpointError(what, found._hint(str(code)))
    return replace(found, source=stated["src_lang"] or convention.language, target=stated["tgt_lang"])


def follow_config(
    backend: tokenizers.Tokenizer, settings: Settings, conventions: Conventions | None, roles: Mapping[str, str]
) -> Languages:
    """Give a tokenizer.json the source language of tokenizer_config.json, as its class would; return its languages.

    The class says where the language goes, whatever the file does: NLLB's was published with an older place. A class that
    is not named, or is of no family with languages, leaves the file as it is.
    """
    named = settings.config.get(ORIGINAL_CLASS) or (settings.names_class and settings.config["tokenizer_class"])
    convention = conventions.known(kind_of(str(named))) if conventions is not None and named else None
    if convention is None:
        return Languages()
    found = languages_of(backend, settings, convention, roles)
    if found.marks:
        return found
    if found.source not in found.ids:
        return Languages()
    surround(backend, *fill_template(convention, roles, settings), f"{settings.kind} models")
    return found


def _listed(backend: tokenizers.Tokenizer, roles: Mapping[str, str]) -> list[str]:
    """Return the special tokens that play no role and are written like a code: the languages of a family whose releases
    differ in them."""
    special = (token.content for token in backend.get_added_tokens_decoder().values() if token.special)
    return [token for token in special if re.fullmatch(r"\w+", token) and token not in roles.values()]
