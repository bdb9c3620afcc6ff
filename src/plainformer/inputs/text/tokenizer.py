"""Text to token ids and back, with exact character positions.

The work is done by the `tokenizers` library; this file adds what it leaves to the caller: no silent truncation,
windows over long texts (`lengths.py`), padding to tensors, special-token roles, languages, chat templates, saving.
The ids are those of the checkpoint's `tokenizer.json` with what its other files add to it; without one, the tokenizer is
built from the vocabulary files (`tokenizer_files.py`), or from a GGUF file's metadata (`gguf_vocabulary.py`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from plainformer.config.values import check_flag, check_whole, is_whole, no_effect
from plainformer.errors import CheckpointError, InputError, UsageError, a_type, did_you_mean, nth, opt, placed
from plainformer.inputs.chat.prompt import ChatPrompt, encode_pieces
from plainformer.inputs.chat.template import ChatTemplate
from plainformer.inputs.files import make_folder
from plainformer.inputs.listed import as_list
from plainformer.inputs.text.encoding import Encoding, TextBatch, check_encodable
from plainformer.inputs.text.languages import Languages
from plainformer.inputs.text.lengths import EncodeOptions, LengthOptions, Lengths
from plainformer.inputs.text.windows import Side

if TYPE_CHECKING:
    import tokenizers
    import torch

    from plainformer.config.tokenizer import Conventions

__all__ = ["Encoding", "Side", "TextBatch", "Tokenizer"]

log = logging.getLogger(__name__)
_NAMES_WITH_TYPES = ["input_ids", "token_type_ids", "attention_mask"]


class Tokenizer:
    """A checkpoint's tokenizer.

    Args:
        backend: the `tokenizers.Tokenizer`; truncation and padding stored in it are switched off.
        special_tokens: role ("bos_token", "pad_token", ...) → token text. A role whose token the vocabulary lacks is
            None.
        padding_side: where `pad` puts padding. truncation_side: what `truncate=True` cuts.
        max_length: the length in tokens, special ones included, that the tokenizer's files state; None where they do not. It
            binds nobody by itself: see `lengths`.
        chat_template: name → jinja2 source; a plain text is the template named "default".
        piece_ids: the vocabulary, where ids are looked up by token text instead of taken from the backend (Marian and
            M2M100 publish a vocab.json whose ids are not those of their SentencePiece model).
        target: the tokenizer of what the model writes, where that has a vocabulary of its own: Marian's may. Texts are
            encoded by this one, ids decoded by `output`.
        source_files: name → content, of files that `save` writes unchanged because tokenizer.json cannot express them.
        settings: further entries for the saved tokenizer_config.json.
        languages: those of a multilingual tokenizer.
    Attributes:
        in_pool: whether one text is encoded by the backend's pool of threads, too: other threads of Python go on meanwhile,
            which matters to a server, and a later fork would not survive it.
    """

    in_pool = False

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        padding_side: Side = "right",
        truncation_side: Side = "right",
        max_length: int | None = None,
        chat_template: str | Mapping[str, str] | None = None,
        piece_ids: Mapping[str, int] | None = None,
        target: Tokenizer | None = None,
        source_files: Mapping[str, bytes] | None = None,
        settings: Mapping[str, Any] | None = None,
        languages: Languages | None = None,
    ) -> None:
        for side in (padding_side, truncation_side):
            _check_side(side)
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.padding_side: Side = padding_side
        self.truncation_side: Side = truncation_side
        self.max_length = max_length
        self.languages = Languages() if languages is None else languages
        self._said_long = False
        self._piece_ids = dict(piece_ids) if piece_ids is not None else None
        self.output: Tokenizer = target or self
        self._pieces = {i: piece for piece, i in self._piece_ids.items()} if self._piece_ids is not None else None
        self._source_files = dict(source_files or {})
        self._settings = dict(settings or {})
        self.special_tokens = {role: t for role, t in (special_tokens or {}).items() if self.token_to_id(t) is not None}
        named = {"default": chat_template} if isinstance(chat_template, str) else chat_template
        self.chat_template = ChatTemplate(named or {}, self.special_tokens)
        self._set_special_ids()

    def _set_special_ids(self) -> None:
        role_ids = {role: self.token_to_id(token) for role, token in self.special_tokens.items()}
        self.bos_id, self.eos_id, self.pad_id, self.unk_id, self.mask_id, self.cls_id, self.sep_id = (
            role_ids.get(f"{name}_token") for name in ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
        )
        added = self.backend.get_added_tokens_decoder().items()
        marked = {self.token_to_id(token.content) if self._piece_ids else i for i, token in added if token.special}
        self.special_ids: frozenset[int] = frozenset(i for i in {*marked, *role_ids.values()} if i is not None)

    def __repr__(self) -> str:
        kind = type(self.backend.model).__name__
        limit = "no limit" if self.max_length is None else f"at most {self.max_length:,} a text"
        return f"Tokenizer({kind}, {self.vocab_size:,} tokens, {limit}, padding on the {self.padding_side})"

    # ---- where tokenizers come from -------------------------------------------------------------------------------

    @classmethod
    def from_folder(
        cls, folder: Path, config: Mapping[str, Any] | None = None, conventions: Conventions | None = None
    ) -> Tokenizer:
        """Return the tokenizer of a checkpoint folder.

        Args:
            folder: holds tokenizer.json, or vocab.txt, vocab.json (+ merges.txt), or a SentencePiece model.
            config: the model's config.json (model_type, max_position_embeddings, ...); by default the folder's own.
            conventions: what the families say of vocabulary files: `families.CONVENTIONS`, as `load_tokenizer` passes.

        Raises:
            CheckpointError: a file is missing, corrupt, or of a kind that needs more information than the folder has.
        """
        from plainformer.inputs.text.tokenizer_files import read_folder

        parts = read_folder(Path(folder), config, conventions)
        target = parts.pop("target", None)
        return cls(**parts, target=cls(**target) if target is not None else None)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer described by a GGUF file's metadata ("tokenizer.ggml.model", ...), plain Python values.

        Raises:
            CheckpointError: an entry is missing, of the wrong type or length, or names an unknown tokenizer.
        """
        from plainformer.inputs.text.gguf_vocabulary import read_metadata

        return cls(**read_metadata(metadata))

    # ---- text to ids ----------------------------------------------------------------------------------------------

    def encode(
        self,
        text: str | ChatPrompt,
        pair: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Encoding:
        """Return the tokens of a text, or of a pair of texts. An empty text gives the special tokens alone; to the prompt
        of a chat (`chat_prompt`), which has its own, none are added.

        Args:
            text, pair: the texts. options: see `EncodeOptions`.
        Raises:
            UsageError: an argument of the wrong type, or a combination that cannot work.
            InputError: the text is too long for the limit, or holds half a surrogate pair.
        """
        no_effect(pair is not None and isinstance(text, ChatPrompt), "pair", "with the prompt of a chat")
        with placed(None):
            return self.encode_batch(
                [text if pair is None or isinstance(text, ChatPrompt) else (text, pair)], **options
            )[0]

    def encode_batch(
        self,
        texts: Sequence[str | tuple[str, str] | ChatPrompt],
        *,
        add_special_tokens: bool = True,
        src_lang: str | None = None,
        **options: Unpack[LengthOptions],
    ) -> list[Encoding]:
        """`encode` for many texts or pairs, in parallel; each row is what `encode` gives for it alone."""
        texts = as_list(texts)
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
            raise UsageError(f"texts is {a_type(texts)}, not a list of texts", "use encode() for one text")
        check_flag("add_special_tokens", add_special_tokens)
        lengths = Lengths.of(self.max_length, self.truncation_side, **options)
        source = self.languages.code("src_lang", src_lang) if src_lang is not None else self.languages.source
        for row, item in enumerate(texts):
            lengths.fail_early(_checked_row(item, nth(row)), self._count, nth(row))
        plain: list[Any] = [item for item in texts if not isinstance(item, ChatPrompt)]
        if len(plain) == 1:
            text, pair = (plain[0], None) if isinstance(plain[0], str) else plain[0]
            rows = iter([self.encoded(text, pair, add_special_tokens=add_special_tokens)])
        else:
            rows = iter(self.backend.encode_batch(plain, add_special_tokens=add_special_tokens))
        each = (encode_pieces(self, one) if isinstance(one, ChatPrompt) else self.row(next(rows)) for one in texts)
        encodings = [lengths.fit(self.languages.marked(row, source), place) for place, row in enumerate(each)]
        if options.get("max_length", "own") == "own":
            self._say_long(max(map(len, encodings), default=0))
        return encodings

    def encoded(self, text: str, pair: str | None = None, *, add_special_tokens: bool) -> tokenizers.Encoding:
        """Return what the backend makes of one text: without waking its pool of threads, unless that is wanted."""
        if self.in_pool:
            one = text if pair is None else (text, pair)
            return self.backend.encode_batch([one], add_special_tokens=add_special_tokens)[0]
        return self.backend.encode(text, pair, add_special_tokens=add_special_tokens)

    def _count(self, text: str) -> int:
        return len(self.encoded(text, add_special_tokens=False))

    def _say_long(self, length: int) -> None:
        """Say once that a row is longer than the length that the tokenizer's files state."""
        if self.max_length is not None and length > self.max_length and not self._said_long:
            self._said_long = True
            log.warning("a text has %d tokens; this tokenizer's files state %d", length, self.max_length)

    def row(self, row: tokenizers.Encoding) -> Encoding:
        """Return a row of the backend's as ours."""
        tokens = row.tokens
        ids = row.ids
        if self._piece_ids is not None:
            unknown = self.unk_id if self.unk_id is not None else 0
            ids = [self._piece_ids.get(token, unknown) for token in tokens]
        return Encoding(
            input_ids=ids,
            token_type_ids=row.type_ids,
            offsets=row.offsets,
            tokens=tokens,
            special=[bool(flag) for flag in row.special_tokens_mask],
            sequence_ids=row.sequence_ids,
            word_ids=row.word_ids,
        )

    # ---- rows to tensors ------------------------------------------------------------------------------------------

    def pad(self, encodings: Iterable[Encoding], *, side: Side | None = None, pad_to_multiple_of: int = 1) -> TextBatch:
        """Return rows as tensors of the longest row's length.

        Windows of a row (`Encoding.overflow`) become rows of their own, in text order; `TextBatch.encodings` says
        which row is which. Padding has attention_mask 0; its id is the pad token's, or the end token's where a model
        has no pad token (GPT-2), or 0: the mask keeps the model from seeing it.

        Args:
            encodings: rows, from `encode` or `encode_batch`.
            side: "left" or "right"; by default the tokenizer's own.
            pad_to_multiple_of: make T a multiple of this.
        """
        import torch

        side = self.padding_side if side is None else side
        _check_side(side)
        check_whole("pad_to_multiple_of", pad_to_multiple_of, fix="for example 8")
        each = [encoding.windows() for encoding in encodings]
        rows = tuple(window for windows_of in each for window in windows_of)
        if not rows:
            raise UsageError("there is nothing to pad", "pass at least one encoding")
        width = max(len(row) for row in rows)
        width += -width % pad_to_multiple_of
        filler = next((i for i in (self.pad_id, self.eos_id) if i is not None), 0)
        input_ids = torch.full((len(rows), width), filler, dtype=torch.int64)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
        token_type_ids = torch.zeros((len(rows), width), dtype=torch.int64)
        for i, row in enumerate(rows):
            place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            input_ids[i, place] = torch.tensor(row.input_ids, dtype=torch.int64)
            token_type_ids[i, place] = torch.tensor(row.token_type_ids, dtype=torch.int64)
            attention_mask[i, place] = 1
        return TextBatch(input_ids, attention_mask, token_type_ids, rows, tuple(map(len, each)))

    def __call__(
        self,
        text: str | Sequence[str | tuple[str, str]],
        pair: str | None = None,
        *,
        side: Side | None = None,
        pad_to_multiple_of: int = 1,
        **options: Unpack[EncodeOptions],
    ) -> TextBatch:
        """`encode` or `encode_batch`, then `pad`: one text (B = 1, more with stride) or a list of texts or pairs."""
        known = ("side", "pad_to_multiple_of", *EncodeOptions.__required_keys__, *EncodeOptions.__optional_keys__)
        for name in options.keys() - set(known):
            raise UsageError(f"a tokenizer has no option {name!r}", did_you_mean(name, known))
        text = as_list(text)
        one = isinstance(text, str)
        if pair is not None and not one:
            raise UsageError(f"{opt('pair')} goes with a single text", "pass a list of (text, pair) tuples")
        texts: Any = [text if pair is None else (text, pair)] if one else text
        with placed(None) if one else nullcontext():
            rows = self.encode_batch(texts, **options)
        return self.pad(rows, side=side, pad_to_multiple_of=pad_to_multiple_of)

    # ---- ids to text ----------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int] | torch.Tensor, *, skip_special_tokens: bool = False) -> str:
        """Return the text of `ids` (a sequence, or a tensor of one dimension).

        Raises:
            UsageError, InputError: not a row of ids, or an id that no token has; see `known`.
        """
        check_flag("skip_special_tokens", skip_special_tokens)
        plain: Any = ids.tolist() if hasattr(ids, "tolist") else ids
        if not isinstance(plain, Sequence):
            raise UsageError(f"ids is {a_type(ids)}, not a row of ids", "for example [5]")
        for position, i in enumerate(plain):
            if not is_whole(i):
                what = f"ids[{position}] is {a_type(i)}, not an integer"
                raise UsageError(what, "pass one row of token ids")
            if self.id_to_token(i) is None:
                what = f"ids[{position}] is {i}, which none of the vocabulary's {self.vocab_size} tokens has"
                raise InputError(what, "are they another tokenizer's ids? mask out labels such as -100 first")
        if self.output is not self:
            return self.output.decode(plain, skip_special_tokens=skip_special_tokens)
        if self._piece_ids is None:
            return self.backend.decode(list(plain), skip_special_tokens=skip_special_tokens)
        skipped = self.special_ids if skip_special_tokens else frozenset()
        pieces = [str(self.id_to_token(i)) for i in plain if i not in skipped]
        decoder = self.backend.decoder
        return decoder.decode(pieces) if decoder is not None else "".join(pieces)

    def known(self, ids: Iterable[int]) -> list[int]:
        """Return those of a model's `ids` that a token has: an embedding that is padded to a round size gives others, too."""
        return [i for i in ids if self.id_to_token(i) is not None]

    def id_to_token(self, index: int) -> str | None:
        """Return the vocabulary's text of an id, or None: that of `output`."""
        if self.output is not self:
            return self.output.id_to_token(index)
        if self._pieces is not None:
            return self._pieces.get(index)
        return self.backend.id_to_token(index) if 0 <= index < 2**32 else None

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a vocabulary entry, or None."""
        return self._piece_ids.get(token) if self._piece_ids is not None else self.backend.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        if self._piece_ids is not None:
            return len(self._piece_ids)
        return self.backend.get_vocab_size(with_added_tokens=True)

    # ---- chat -----------------------------------------------------------------------------------------------------

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint says how to lay out a conversation."""
        return bool(self.chat_template.templates)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt text for a conversation (see `ChatTemplate.render`); encode it with add_special_tokens=False.

        A control token inside a message cannot be told from the template's own then: see `chat_prompt`.

        Raises:
            UsageError: the checkpoint has no chat template.
        """
        check_flag("add_generation_prompt", add_generation_prompt)
        self._need_chat_template()
        return self.chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, template=template, **variables
        )

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> ChatPrompt:
        """`apply_chat_template` for messages that others wrote: `encode` reads control tokens inside them as text.

        `options` are those of `apply_chat_template`.
        """
        self._need_chat_template()
        return self.chat_template.prompt(self, messages, **options)

    def _need_chat_template(self) -> None:
        if not self.has_chat_template:
            raise UsageError("this checkpoint has no chat template", "it is not a chat model: pass a plain text prompt")

    def _uses_types(self) -> bool:
        return self._piece_ids is None and 1 in self.backend.encode("", "").type_ids

    # ---- saving ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers loads to the same ids.

        Marian and M2M100 tokenizers are saved as the files that they came from, which transformers reads.
        """
        from plainformer.inputs.text.tokenizer_settings import write_folder

        settings = {
            **self._settings,
            "padding_side": self.padding_side,
            **({"truncation_side": self.truncation_side} if self.truncation_side != "right" else {}),
            **({"model_input_names": _NAMES_WITH_TYPES} if self._uses_types() else {}),
            **({"model_max_length": self.max_length} if self.max_length is not None else {}),
        }
        target = make_folder(folder)
        try:
            write_folder(
                target,
                backend=self.backend if self._piece_ids is None else None,
                source_files=self._source_files,
                special_tokens=self.special_tokens,
                chat_templates=self.chat_template.templates,
                settings=settings,
            )
        except OSError as error:
            what = f"cannot write the tokenizer to {folder}: {error.strerror}"
            raise CheckpointError(what, "free space, or choose another folder") from None


def _check_side(side: object) -> None:
    if side not in ("left", "right"):
        raise UsageError(f"padding side {side!r} is neither 'left' nor 'right'", "pass 'left' or 'right'")


def _checked_row(item: object, name: str) -> tuple[str, ...]:
    """Return the texts of a row, one or two; each must be encodable as UTF-8."""
    text = item.text if isinstance(item, ChatPrompt) else item
    parts: tuple[Any, ...] = text if isinstance(text, tuple) and len(text) == 2 else (text,)
    for part in parts:
        if not isinstance(part, str):
            raise UsageError(f"{name} is {a_type(part)}, not a str", "pass text, or a (text, pair) tuple")
        check_encodable(part, name)
    return parts
