"""Text to token ids and back, with exact character positions.

The work is done by the `tokenizers` library; this file adds what it leaves to the caller: no silent truncation,
windows over long texts, padding to tensors, special-token roles, chat templates, saving. The ids are those of the
checkpoint's `tokenizer.json`, whatever its other files say; without one, the tokenizer is built from the vocabulary
files (`tokenizer_files.py`), or from a GGUF file's metadata (`gguf_vocabulary.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from plainformer.config.values import check_flag, check_whole, is_whole
from plainformer.errors import CheckpointError, InputError, UsageError, a_type, did_you_mean, nth, opt, placed
from plainformer.inputs.files import make_folder
from plainformer.inputs.listed import as_list
from plainformer.inputs.text.encoding import Encoding, TextBatch
from plainformer.inputs.text.windows import Side, truncated, windows

if TYPE_CHECKING:
    import tokenizers
    import torch

    from plainformer.config.tokenizer import Conventions

__all__ = ["Encoding", "Side", "TextBatch", "Tokenizer"]

Limit = int | Literal["own"] | None  # in tokens; "own" is the tokenizer's own limit, None checks no length

# A text this many times longer than the limit is first measured by its beginning, to fail before gigabytes are used.
_PROBE_CHARACTERS_PER_TOKEN = 64
_NAMES_WITH_TYPES = ["input_ids", "token_type_ids", "attention_mask"]


class EncodeOptions(TypedDict, total=False):
    """How texts become rows of tokens.

    add_special_tokens: put the model's special tokens around them; default True.
    truncate: cut what exceeds the limit (of a pair: from the longer one) instead of raising; the end, or with "left" the
        beginning. Default False.
    max_length: the limit in tokens; "own", the default, is the tokenizer's, and None allows any length.
    stride: split what exceeds the window into overlapping windows that share this many tokens; the first is the result,
        the others are its `overflow`. Of a pair, only the second text is split.
    window: the length of a window in tokens; by default the limit.
    """

    add_special_tokens: bool
    truncate: bool | Side
    max_length: Limit
    stride: int | None
    window: int | None


class Tokenizer:
    """A checkpoint's tokenizer.

    Args:
        backend: the `tokenizers.Tokenizer`; truncation and padding stored in it are switched off.
        special_tokens: role ("bos_token", "pad_token", ...) → token text. A role whose token the vocabulary lacks is
            None.
        padding_side: where `pad` puts padding.
        max_length: the most tokens a row may have (special ones included), or None when the model sets no limit.
        chat_template: name → jinja2 source; a plain text is the template named "default".
        piece_ids: the vocabulary, where ids are looked up by token text instead of taken from the backend (Marian and
            M2M100 publish a vocab.json whose ids are not those of their SentencePiece model).
        target: the tokenizer of what the model writes, where that has a vocabulary of its own: Marian's may. Texts are
            encoded by this one, ids decoded by `output`.
        source_files: name → content, of files that `save` writes unchanged because tokenizer.json cannot express them.
        settings: further entries for the saved tokenizer_config.json.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        padding_side: Side = "right",
        max_length: int | None = None,
        chat_template: str | Mapping[str, str] | None = None,
        piece_ids: Mapping[str, int] | None = None,
        target: Tokenizer | None = None,
        source_files: Mapping[str, bytes] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        _check_side(padding_side)
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.padding_side: Side = padding_side
        self.max_length = max_length
        self._piece_ids = dict(piece_ids) if piece_ids is not None else None
        self.output: Tokenizer = target or self
        self._pieces = {i: piece for piece, i in self._piece_ids.items()} if self._piece_ids is not None else None
        self._source_files = dict(source_files or {})
        self._settings = dict(settings or {})
        self.special_tokens = {role: t for role, t in (special_tokens or {}).items() if self.token_to_id(t) is not None}
        named = {"default": chat_template} if isinstance(chat_template, str) else chat_template
        self._chat_templates = dict(named or {})
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
        text: str,
        pair: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Encoding:
        """Return the tokens of a text, or of a pair of texts. An empty text gives the special tokens alone.

        Args:
            text, pair: the texts. options: see `EncodeOptions`.
        Raises:
            UsageError: an argument of the wrong type, or a combination that cannot work.
            InputError: the text is too long for the limit, or holds half a surrogate pair.
        """
        with placed(None):
            return self.encode_batch([(text, pair) if pair is not None else text], **options)[0]

    def encode_batch(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        add_special_tokens: bool = True,
        truncate: bool | Side = False,
        max_length: Limit = "own",
        stride: int | None = None,
        window: int | None = None,
    ) -> list[Encoding]:
        """`encode` for many texts or pairs, in parallel; each row is what `encode` gives for it alone."""
        texts = as_list(texts)
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
            raise UsageError(f"texts is {a_type(texts)}, not a list of texts", "use encode() for one text")
        check_flag("add_special_tokens", add_special_tokens)
        limit = self._limit(truncate, max_length, stride, window)
        for row, item in enumerate(texts):
            _check_row(item, nth(row))
            if limit is not None and not truncate and stride is None:
                self._fail_early(item, limit, nth(row))
        if len(texts) == 1:  # without waking the thread pool, which a later fork would not survive
            text, pair = (texts[0], None) if isinstance(texts[0], str) else texts[0]
            rows = [self.backend.encode(text, pair, add_special_tokens=add_special_tokens)]
        else:
            rows = self.backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [self._fit(self._row(row), limit, truncate, stride, nth(place)) for place, row in enumerate(rows)]

    def _limit(self, truncate: bool | Side, max_length: Limit, stride: int | None, window: int | None) -> int | None:
        """Check that the arguments agree, and return how many tokens a row may have; None where nothing limits it."""
        most = self.max_length if max_length == "own" else max_length
        for name, value, least in (("max_length", most, 1), ("window", window, 1), ("stride", stride, 0)):
            if value is not None:
                check_whole(name, value, least, fix=f"for example {opt(name, 128)}")
        if not isinstance(truncate, bool) and truncate not in ("left", "right"):
            raise UsageError(f"{opt('truncate', truncate)} is unknown", "pass True, False, or a side: 'left', 'right'")
        if truncate and stride is not None:
            raise UsageError(f"{opt('truncate')} drops what {opt('stride')} would keep", "pass one of the two")
        if window is not None and stride is None:
            fix = f"pass {opt('stride', 0)} for windows that do not overlap"
            raise UsageError(f"{opt('window')} has no effect without {opt('stride')}", fix)
        limit = window or most
        if limit is None and (truncate or stride is not None):
            raise UsageError("this model sets no length limit", "pass max_length (or window, with stride)")
        return limit

    def _fail_early(self, item: str | tuple[str, str], limit: int, name: str) -> None:
        """Raise for a text whose beginning alone is far beyond the limit, before all of it is tokenized."""
        for text in (item,) if isinstance(item, str) else item:
            beginning = text[: _PROBE_CHARACTERS_PER_TOKEN // 2 * limit]
            if len(text) > _PROBE_CHARACTERS_PER_TOKEN * limit:
                # Twice the limit, so that no merge across the cut could bring the whole text below it.
                count = len(self.backend.encode(beginning, add_special_tokens=False))
                if count > 2 * limit + 16:
                    raise _too_long(name, f"{len(text)} characters, more than {count} tokens", limit)

    def _row(self, row: tokenizers.Encoding) -> Encoding:
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

    def _fit(self, row: Encoding, limit: int | None, truncate: bool | Side, stride: int | None, name: str) -> Encoding:
        if limit is None or len(row) <= limit:
            return row
        if truncate:
            return row.select(truncated(row.sequence_ids, limit, "left" if truncate == "left" else "right"))
        if stride is None:
            raise _too_long(name, f"{len(row)} tokens", limit)
        first, *rest = [row.select(positions) for positions in windows(row.sequence_ids, limit, stride)]
        return replace(first, overflow=tuple(rest))

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
        known = ("side", "pad_to_multiple_of", *EncodeOptions.__annotations__)
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
        return bool(self._chat_templates)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt text for a conversation (see `ChatTemplate.render`); encode it with add_special_tokens=False.

        Raises:
            UsageError: the checkpoint has no chat template.
        """
        from plainformer.inputs.chat.template import ChatTemplate

        check_flag("add_generation_prompt", add_generation_prompt)
        if not self._chat_templates:
            raise UsageError("this checkpoint has no chat template", "it is not a chat model: pass a plain text prompt")
        return ChatTemplate(self._chat_templates, self.special_tokens).render(
            messages, add_generation_prompt=add_generation_prompt, template=template, **variables
        )

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
                chat_templates=self._chat_templates,
                settings=settings,
            )
        except OSError as error:
            what = f"cannot write the tokenizer to {folder}: {error.strerror}"
            raise CheckpointError(what, "free space, or choose another folder") from None


def _check_side(side: object) -> None:
    if side not in ("left", "right"):
        raise UsageError(f"padding side {side!r} is neither 'left' nor 'right'", "pass 'left' or 'right'")


def _check_row(item: object, name: str) -> None:
    """A row is a text or a pair of texts; each must be encodable as UTF-8."""
    parts: tuple[object, ...] = item if isinstance(item, tuple) and len(item) == 2 else (item,)
    for part in parts:
        if not isinstance(part, str):
            raise UsageError(f"{name} is {a_type(part)}, not a str", "pass text, or a (text, pair) tuple")
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"{name} holds half a surrogate pair, {part[error.start]!r}, at position {error.start}"
            raise InputError(what, "decode the text with the right encoding, or with errors='replace'") from None


def _too_long(name: str, length: str, limit: int) -> InputError:
    return InputError(
        f"{name} has {length}; the limit is {limit}",
        f"pass {opt('truncate', True)} to cut it, or split it into shorter ones",
    )
