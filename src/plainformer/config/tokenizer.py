"""What a family's vocabulary files do not say: which special tokens there are, where they go, how ids are laid out.

A family file declares it; `inputs` builds a tokenizer with it where a checkpoint has no tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Algorithm = Literal["wordpiece", "byte-level BPE", "SentencePiece", "characters"]


def names(text: str) -> tuple[str, ...]:
    """Return the words of a text: for lists too long to quote each."""
    return tuple(text.split())


def kind_of(name: str) -> str:
    """Return a tokenizer_class or a model_type in the one form in which both are compared: "xlmroberta"."""
    return name.removesuffix("Fast").removesuffix("Tokenizer").lower().replace("-", "").replace("_", "")


@dataclass(frozen=True)
class TokenizerConvention:
    """A family's use of its vocabulary files.

    Attributes:
        algorithm: what the files hold.
        roles: the usual special tokens, as "role=token" words; "" takes those usual for the algorithm.
        single, pair: what goes around a text and around a pair, as words; `{bos}` and the like mean role tokens, `{lang}`
            the source language. A BPE vocabulary may lack a token that is written out: it is then left out. "" leaves
            it to add_bos_token and add_eos_token, or to what is usual for the algorithm; a `pair` of "" is `single` with "$A $B"
            for "$A". legacy_single: around a text where the files say `legacy_behaviour: true`.
        add_bos: whether a text begins with bos, where neither `single` nor the files say.
        unicode: normalisation before byte-level BPE. words: how it cuts a text into words, by its name in
            `inputs.text.pre_tokenizers`. trim_offsets: whether a token's offsets leave out the space before it.
        pieces: how ids follow from a SentencePiece model's pieces. "plain": as they come; "fairseq": <s>, <pad>, </s>,
            <unk> first, languages and <mask> last; "fairseq-before": five of fairseq's, some never used, then the model's
            own but for its <unk>, <mask> last; "sentinels": <extra_id_99> to <extra_id_0> last; "reserved": ids of
            pre-training after the first two; "bracketed": a [MASK] last; "vocab.json": looked up in that file.
        lowercase: the default of do_lower_case; None where the files' word does not count. strip_accents: whether quotation
            marks and accents are simplified first, unless keep_accents says no.
        prefix_switch: whether add_prefix_space says if a text begins with a space, of a family of SentencePiece models.
        legacy_prefix: whether `legacy: false` asks for no space after special tokens.
        json_alone: whether models of the family take a tokenizer.json as it is, whatever class their files name.
        languages: tokens of languages, numbered after the pieces. language_sets: others, by the name that
            `language_codes` in tokenizer_config.json gives. language_marks: how tokens of languages begin and end in a
            vocabulary that lists them itself.
        language: the usual source language; where `languages` is empty the checkpoint has to list them.
        language_token: how a language's code is written as a token. language_starts: whether a translation begins with its
            language's token in place of the decoder's start token, and not after it.
        saved_as: the tokenizer_class to save, where tokenizer.json cannot express the tokenizer, or its class knows its
            languages.
        unused_positions: rows of the position table that no token may use. limit_fields: config.json's fields for the
            longest input, the first that is there.
    """

    algorithm: Algorithm
    roles: str = ""
    single: str = ""
    pair: str = ""
    legacy_single: str = ""
    add_bos: bool = False
    unicode: Literal["", "NFC"] = ""
    words: str = "gpt-2"
    trim_offsets: bool = False
    pieces: Literal["plain", "fairseq", "fairseq-before", "sentinels", "reserved", "bracketed", "vocab.json"] = "plain"
    lowercase: bool | None = None
    strip_accents: bool = False
    prefix_switch: bool = False
    legacy_prefix: bool = False
    json_alone: bool = False
    languages: tuple[str, ...] = ()
    language_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    language_marks: tuple[str, str] | None = None
    language: str = ""
    language_token: str = "{}"
    language_starts: bool = False
    saved_as: str = ""
    unused_positions: int = 0
    limit_fields: tuple[str, ...] = ("max_position_embeddings", "n_positions")

    def languages_named(self, release: object) -> tuple[str, ...]:
        """Return the codes of a release of the family, which `language_codes` in the files names."""
        return self.language_sets.get(str(release), self.languages)

    def usual_roles(self, usual: str = "") -> dict[str, str]:
        """Return role → token; `usual` are the algorithm's."""
        return dict(word.split("=", 1) for word in (self.roles or usual).split())

    @property
    def obeyed(self) -> tuple[str, ...]:
        """Return the fields of tokenizer_config.json that win over what tokenizer.json does with a text."""
        if self.algorithm == "wordpiece":
            return ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
        lower = ("do_lower_case",) if self.lowercase is not None else ()
        if self.legacy_prefix:
            lower = (*lower, "legacy")
        return (*lower, "add_prefix_space") if self.prefix_switch or self.algorithm == "byte-level BPE" else lower


class Conventions(Protocol):
    """Where a reader of vocabulary files finds what the families say."""

    def of_model(self, model_type: str) -> TokenizerConvention | None:
        """Return the convention of a family's own tokenizer; None where it has no such files, or is not known."""

    def known(self, kind: str) -> TokenizerConvention | None:
        """Return the convention of a kind of tokenizer; None where no family has it."""

    def named(self, kind: str) -> TokenizerConvention:
        """Return the convention of a kind of tokenizer, or raise a CheckpointError that lists those that there are."""


FAIRSEQ_ROLES = (
    "bos_token=<s> eos_token=</s> cls_token=<s> sep_token=</s> unk_token=<unk> pad_token=<pad> mask_token=<mask>"
)
