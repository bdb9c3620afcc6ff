"""Train a tokenizer on texts: byte-level BPE, WordPiece or Unigram, with the special tokens of the models that it is for.

The counting and merging is done by the `tokenizers` library; here is what goes around it: which special tokens there are,
where they stand, and what is said when the texts do not give what was asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plainformer.config.options import OptionSet, flag, one_of, option, whole
from plainformer.errors import InputError, UsageError, a_type, nth, opt, plural
from plainformer.inputs.text.encoding import check_encodable
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.inputs.text.tokenizer_settings import library_errors, special_token

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)
SENTINELS = 100  # T5's <extra_id_0> to <extra_id_99>, which stand for what is hidden


@dataclass(frozen=True)
class Layout:
    """The special tokens of a line of models.

    Attributes:
        roles: role → token, in the order of their ids.
        single, pair: what goes around one text, and around two; as the `tokenizers` library writes templates.
    """

    roles: dict[str, str]
    single: str
    pair: str = ""

    @property
    def tokens(self) -> list[str]:
        """Return each special token once."""
        return list(dict.fromkeys(self.roles.values()))


_END = "<|endoftext|>"
_FAIRSEQ = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
# As in GPT-2; Llama; BERT; RoBERTa and BART; T5.
LAYOUTS = {
    "none": Layout({"bos": _END, "eos": _END, "unk": _END, "pad": "<|pad|>"}, "$A", "$A $B"),
    "bos": Layout({"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}, "<s> $A", "<s> $A <s>:1 $B:1"),
    "cls-sep": Layout(
        {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B:1 [SEP]:1",
    ),
    "bos-eos": Layout(_FAIRSEQ, "<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "eos": Layout({"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}, "$A </s>", "$A </s> $B </s>"),
}
USUAL = {"bpe": "none", "wordpiece": "cls-sep", "unigram": "eos"}


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions(OptionSet):
    """What is trained."""

    kind: str = option("bpe", help="bpe (byte-level, the default), wordpiece or unigram.", check=one_of(*USUAL))
    vocab_size: int = option(8192, help="Tokens in all, special ones included; default: 8192.", check=whole(1, 1 << 24))
    layout: str | None = option(
        None,
        help="Special tokens around a text: none, bos, cls-sep, bos-eos or eos (with 100 sentinels); "
        "default: none for bpe, cls-sep for wordpiece, eos for unigram.",
        check=one_of(*LAYOUTS),
    )
    lowercase: bool = option(False, help="Write everything in lower case first.", check=flag())
    min_frequency: int = option(
        2, help="How often a pair must occur to become a token (not unigram); default: 2.", check=whole(1)
    )
    max_length: int | None = option(
        None, help="The longest input of the model that it is for, in tokens.", check=whole(1)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "unigram" and "min_frequency" in self.explicit:
            fix = f"leave out {opt('min_frequency', ...)}, or give {opt('kind', 'bpe')} or {opt('kind', 'wordpiece')}"
            raise UsageError(f"{opt('min_frequency', self.min_frequency)} has no effect on a unigram tokenizer", fix)

    @property
    def special(self) -> Layout:
        """Return the special tokens."""
        return LAYOUTS[self.layout or USUAL[self.kind]]


def train_tokenizer(texts: Iterable[str], **options: Any) -> Tokenizer:
    """Return a tokenizer of the pieces that are frequent in `texts`: `train_tokenizer(lines, kind="bpe", vocab_size=8192)`.

    `save(FOLDER)` writes it for this library and transformers; a model from scratch names that folder. Equal texts give equal
    tokenizers; of unigram ones the same pieces, but scores whose fourth digit may differ, since the library adds up in no
    fixed order: train once, and keep the files.

    Args:
        texts: any number of them; they are read once.
        kind: "bpe" merges frequent neighbours, from bytes up (Sennrich et al. 2016, Radford et al. 2019); "wordpiece" merges
            what is likelier together than apart (Schuster & Nakajima 2012); "unigram" prunes a large vocabulary to the
            pieces that explain the texts best (Kudo 2018).
        vocab_size: tokens in all. Fewer come out of texts that have no more pairs or pieces: a warning says so.
        layout, lowercase, min_frequency, max_length: see `TokenizerOptions`.
    Raises:
        UsageError: an option that cannot work. InputError: no text, or one that is not a str.
    """
    asked = TokenizerOptions.of(options, "train_tokenizer")
    layout = asked.special
    specials = [special_token(token) for token in _special_tokens(asked)]
    alphabet = _alphabet(asked)
    needed = len(specials) + len(alphabet)
    if asked.vocab_size <= needed:
        what = f"{opt('vocab_size', asked.vocab_size)} leaves no room: special tokens and bytes are {needed} tokens"
        raise UsageError(what, f"give more than {needed}; 8,000 is small")
    with library_errors("the tokenizer could not be trained", f"give more text, or a smaller {opt('vocab_size')}"):
        if asked.kind == "wordpiece":
            backend = _trained_wordpiece(list(_checked(texts)), asked, specials)
        else:
            backend = _backend(asked)
            backend.train_from_iterator(_checked(texts), _trainer(asked, specials, alphabet))
    backend.post_processor = _around(backend, layout)
    made = backend.get_vocab_size()
    if made < asked.vocab_size:
        log.warning("the texts give %s, fewer than the %s asked for", plural(made, "token"), f"{asked.vocab_size:,}")
    roles = {f"{role}_token": token for role, token in layout.roles.items()}
    return Tokenizer(backend, special_tokens=roles, max_length=asked.max_length)


def _special_tokens(asked: TokenizerOptions) -> list[str]:
    sentinels = [f"<extra_id_{number}>" for number in range(SENTINELS)]
    return [*asked.special.tokens, *(sentinels if asked.special is LAYOUTS["eos"] else [])]


def _alphabet(asked: TokenizerOptions) -> list[str]:
    """Return the characters that the vocabulary has in any case: those that stand for bytes."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet() if asked.kind == "bpe" else []


def _backend(asked: TokenizerOptions, vocabulary: dict[str, int] | None = None) -> tokenizers.Tokenizer:
    """Return a tokenizer that is not trained yet, or a WordPiece one of that vocabulary."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    lower = [normalizers.Lowercase()] if asked.lowercase else []
    if asked.kind == "bpe":
        backend = Backend(models.BPE())
        if lower:
            backend.normalizer = normalizers.Sequence(lower)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    elif asked.kind == "wordpiece":
        backend = Backend(models.WordPiece(vocabulary, unk_token=asked.special.roles["unk"]))
        backend.normalizer = normalizers.BertNormalizer(lowercase=asked.lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
    else:
        backend = Backend(models.Unigram())
        spaces = normalizers.Replace(_several_spaces(), " ")
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), spaces, *lower])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
    return backend


def _several_spaces() -> Any:
    from tokenizers import Regex

    return Regex(" {2,}")


def _trainer(asked: TokenizerOptions, specials: list[Any], alphabet: list[str]) -> Any:
    from tokenizers import trainers

    shared: dict[str, Any] = {"vocab_size": asked.vocab_size, "special_tokens": specials, "show_progress": False}
    if asked.kind == "unigram":
        return trainers.UnigramTrainer(unk_token=asked.special.roles["unk"], **shared)
    return trainers.BpeTrainer(initial_alphabet=alphabet, min_frequency=asked.min_frequency, **shared)


def _trained_wordpiece(texts: list[str], asked: TokenizerOptions, specials: list[Any]) -> tokenizers.Tokenizer:
    """Return a trained WordPiece tokenizer; equal texts give equal ones.

    Left to itself, the library numbers the characters inside words ("##a") in the order of a hash table, which differs from
    process to process, and with it the order of equally frequent merges. So a first pass finds these characters, the second
    has them numbered beforehand.
    """
    from tokenizers import trainers

    def trained(size: int, first: list[Any]) -> dict[str, int]:
        backend = _backend(asked)
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=first, min_frequency=asked.min_frequency, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return backend.get_vocab()

    inside = sorted(token for token in trained(1, specials) if len(token) == 3 and token.startswith("##"))
    made = _backend(asked, trained(asked.vocab_size, [*specials, *inside]))
    made.add_special_tokens(specials)
    return made


def _around(backend: tokenizers.Tokenizer, layout: Layout) -> Any:
    """Return what puts special tokens around a text."""
    from tokenizers import processors

    tokens = [(token, backend.token_to_id(token)) for token in layout.tokens]
    return processors.TemplateProcessing(single=layout.single, pair=layout.pair, special_tokens=tokens)


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts. Refuse anything that is not text, and input without any text."""
    if isinstance(texts, str | bytes):
        raise UsageError(f"texts is {a_type(texts)}, not several", "give a list of texts, or an iterator")
    characters = 0
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{nth(place)} is {a_type(text)}, not a str", "give texts")
        check_encodable(text, nth(place))
        characters += len(text.strip())
        yield text
    if not characters:
        raise InputError("there is no text to learn from", "are the files empty?")
