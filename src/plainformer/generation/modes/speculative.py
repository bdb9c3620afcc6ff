"""Speculative decoding: something cheap drafts several tokens, the model judges all of them in one forward pass.

What is drafted changes how fast the tokens come, never which: greedy tokens are those of greedy decoding, and sampled ones
have exactly the model's distribution (Leviathan et al. 2023, Chen et al. 2023): with p what the model would draw from and q
what the draft drew from, a drafted x stays with probability min(1, p(x) / q(x)); the first that does not is replaced by a
draw from max(p - q, 0), normalised; a draft that is accepted whole is followed by one more token of the model's own. Processors
change p and q alike, each at its own position. Drafts come from a smaller model, or from what followed the last few
tokens earlier in the text (prompt lookup: Saxena 2023), for which q is 1.

Shapes: one row; N drafted tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plainformer.config import TokenFrontend
from plainformer.errors import UsageError, a_type, opt
from plainformer.generation.cache.cache import SLACK
from plainformer.generation.draw import Draws, draw_tokens
from plainformer.generation.modes.token_loop import Rows, Watcher, all_banned, likeliest, log_probability_of, process
from plainformer.generation.options import GenerationOptions
from plainformer.generation.processors.context import Processor
from plainformer.generation.prompt import Prompt
from plainformer.generation.result import Search
from plainformer.generation.sessions.session import Session
from plainformer.generation.stopping import Stops
from plainformer.model.transformer import Transformer

DRAFTED, LOOKED_UP = 5, 10  # tokens a round, where num_draft_tokens is not given: as in transformers, and Saxena's


class Row(Session):
    """A session of one row, which can take tokens back; the cache may hold fewer than `length`."""

    def append(self, tokens: Sequence[int]) -> None:
        end = self.length + len(tokens)
        self.ids[0, self.length : end] = torch.tensor(tokens, dtype=self.ids.dtype)
        self.length = end

    def catch_up(self, keep: int) -> Tensor:
        """Run what the cache lacks; return the logits after each of the last `keep` tokens, (keep, V)."""
        logits = self.forward(self.ids[:, self.cache.length : self.length], None, keep).logits
        assert logits is not None
        return logits[0]

    def back_to(self, length: int) -> Row:
        """Return the row without its tokens from `length` on; the last one left is run again: its logits are wanted.

        Where a window has moved past it, that is a new row whose cache is empty.
        """
        row = self
        if self.cache.length >= length:
            if self.cache.can_crop(length - 1):
                self.cache.crop(length - 1)
            else:
                row = Row(self.model, self.prompt, budget=self.ids.size(1) - self.prompt_columns)
                row.ids[:, :length] = self.ids[:, :length]
        row.length = length
        return row


@dataclass(frozen=True)
class Draft:
    """Drafted tokens, and the logits (N, V) they were drawn with; None where they were not drawn (q is 1)."""

    tokens: list[int]
    logits_NV: Tensor | None = None


class ModelDrafter:
    """Drafts with a smaller model of the same vocabulary, under the same processors."""

    def __init__(
        self, model: Transformer, prompt: Prompt, budget: int, processors: Sequence[Processor], ends: frozenset[int]
    ) -> None:
        self.row, self.processors, self.ends = Row(model, prompt, budget=budget), processors, ends
        stack = model.config.decoder
        assert stack is not None
        self.max_positions = stack.max_positions

    def propose(self, row: Row, count: int, stream: random.Random | None) -> Draft:
        """Return at most `count` tokens to follow the row's: drawn from the stream, or the likeliest where there is none."""
        length = row.length
        if self.max_positions is not None:  # the last drafted token is not run
            count = min(count, self.max_positions - length + 1)
        if count < 1:
            return Draft([])
        self.row = own = self.row.back_to(length)  # of what it drafted, its cache keeps what stayed
        own.ids[:, :length], own.length = row.ids[:, :length], length
        logits_1V = own.catch_up(1)
        picked, scores = [], []
        for number in range(count):
            scores.append(process(logits_1V, own.context, self.processors))
            picked.append(_pick(scores[-1], stream))
            if number + 1 < count:
                logits_1V = own.decode_step(picked[-1])
        tokens: list[int] = torch.cat(picked).tolist()
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.ends), count)
        return Draft(tokens[:end], torch.cat(scores[:end]))


class PromptLookup:
    """Drafts what followed the row's last tokens earlier in the row, or in an encoder's input.

    Args:
        size: of the n-gram to look for; shorter ones are tried where it is not found.
        encoder_row: an encoder's input of the same vocabulary, or None.
    """

    def __init__(self, size: int, encoder_row: Tensor | None) -> None:
        self.size, self.encoder_row = size, encoder_row

    def propose(self, row: Row, count: int, stream: random.Random | None) -> Draft:
        own = row.ids[0, : row.length]
        texts = [own] if self.encoder_row is None else [own, self.encoder_row]
        for size in range(min(self.size, row.length), 0, -1):
            for text in texts:
                found = _followers(text, own[-size:], count)
                if found:
                    return Draft(found)
        return Draft([])


def _followers(text_T: Tensor, key_N: Tensor, count: int) -> list[int]:
    """Return up to `count` tokens after the last place of the key that this many follow, else after its first place."""
    if len(text_T) <= len(key_N):
        return []
    same_W = (text_T[:-1].unfold(0, len(key_N), 1) == key_N).all(-1)  # without the last token: something must follow
    starts = [start + len(key_N) for start in same_W.nonzero()[:, 0].tolist()]
    if not starts:
        return []
    full = [start for start in starts if start + count <= len(text_T)]
    start = full[-1] if full else starts[0]
    found: list[int] = text_T[start : start + count].tolist()
    return found


@dataclass
class _Judge:
    """Judges drafts by the model; counts how many tokens were proposed."""

    row: Row
    processors: Sequence[Processor]
    watcher: Watcher | None
    output_scores: bool = False
    stream: random.Random | None = None
    proposed: int = 0

    def run(self, draft: Draft) -> list[tuple[int, float | None]]:
        """Return the accepted draft tokens and one of the model's own, which the row then ends with, with log-probabilities.

        Position by position, and none after a rejected token: processors never see what cannot happen.
        """
        row, start = self.row, self.row.length
        row.append(draft.tokens)
        logits_NV = row.catch_up(len(draft.tokens) + 1)
        self.proposed += len(draft.tokens)
        tokens: list[int] = []
        chances: list[float | None] = []
        for place in range(len(draft.tokens) + 1):
            row.length = start + place
            scores_1V = process(logits_NV[place : place + 1], row.context, self.processors, self.watcher)
            if self.processors and bool(scores_1V.isneginf().all()):
                raise all_banned(row.length - row.prompt_columns, 0)
            token_1, stays = self._judge(scores_1V, draft, place)
            if self.watcher is not None:
                self.watcher.picked(scores_1V, token_1, None, row)
            tokens.append(int(token_1))
            chances.append(float(log_probability_of(scores_1V, token_1)) if self.output_scores else None)
            if not stays:
                break
        row.length = start
        row.append(tokens)
        self.row = row.back_to(row.length)
        return list(zip(tokens, chances, strict=True))

    def _judge(self, scores_1V: Tensor, draft: Draft, place: int) -> tuple[Tensor, bool]:
        """Return the token of one position, and whether it is the drafted one."""
        drafted = draft.tokens[place] if place < len(draft.tokens) else None
        if drafted is None or self.stream is None:
            token_1 = _pick(scores_1V, self.stream)
            return token_1, drafted is not None and int(token_1) == drafted
        p_1V = scores_1V.double().softmax(-1)
        if draft.logits_NV is None:
            q_1V = torch.zeros_like(p_1V)
            q_1V[0, drafted] = 1.0
        else:
            q_1V = draft.logits_NV[place : place + 1].to(p_1V).softmax(-1).nan_to_num(0.0)  # 0 where all was banned
        chance = float(q_1V[0, drafted])
        if self.stream.random() * chance < float(p_1V[0, drafted]) and chance > 0:
            return torch.tensor([drafted], device=scores_1V.device), True
        rest_1V = (p_1V - q_1V).clamp_min(0)
        # Nothing is left only where rounding refused one of two equal distributions' tokens.
        return _pick(rest_1V.log() if bool(rest_1V.any()) else scores_1V, self.stream), False


def search_speculatively(
    model: Transformer,
    prompt: Prompt,
    options: GenerationOptions,
    stops: Stops,
    processors: Sequence[Processor],
    *,
    watcher: Watcher | None = None,
) -> Search:
    """Continue one prompt by `num_return_sequences` rows, one after the other; yields one token per step.

    Raises:
        UsageError: the draft model cannot draft for this one; more drafted tokens than a window's cache can take back.
    """
    assert len(prompt) == 1 and prompt.real is None  # `search` runs a batch one by one
    drafter = _make_drafter(model, prompt, options, stops, processors)
    count, rows = _draft_count(model, options), options.num_return_sequences
    judge = _Judge(Row(model, prompt, budget=stops.limits[0]), processors, watcher, options.output_scores)
    streams = Draws(options.seed, 1, rows).streams if options.do_sample else [None] * rows
    found, accepted = Rows(stops, 1, rows), 0
    for index, stream in enumerate(streams):
        judge.stream, judge.row = stream, judge.row.back_to(prompt.ids.size(1))
        for token, chance, stayed in _tokens(judge, drafter, count, stops.limits[0]):
            accepted += stayed
            found.add(index, token, chance)
            yield [token if i == index else None for i in range(rows)], list(found.reasons)
            if found.reasons[index] is not None:
                break
    row = judge.row.back_to(prompt.ids.size(1) + len(found.tokens[-1]))
    whole = found.generation(row.finished_cache() if rows == 1 else None, output_scores=options.output_scores)
    return replace(whole, accepted=(accepted, judge.proposed))


def _tokens(
    judge: _Judge, drafter: ModelDrafter | PromptLookup, count: int, limit: int
) -> Iterator[tuple[int, float | None, bool]]:
    """Yield a row's tokens, their log-probabilities, and whether they were drafted, until the limit or the caller has enough."""
    emitted = 0
    while emitted < limit:
        most = min(count, limit - emitted - 1)  # one more comes with them
        draft = drafter.propose(judge.row, most, judge.stream) if most > 0 else Draft([])
        run = judge.run(draft)
        for place, (token, chance) in enumerate(run):
            yield token, chance, place < len(run) - 1
        emitted += len(run)


def _pick(scores_1V: Tensor, stream: random.Random | None) -> Tensor:
    """Return the likeliest token, or a drawn one: (1,)."""
    if stream is None:
        return likeliest(scores_1V)
    return draw_tokens(scores_1V, torch.tensor([stream.random()], dtype=torch.float64, device=scores_1V.device))


def _draft_count(model: Transformer, options: GenerationOptions) -> int:
    count = options.num_draft_tokens or (DRAFTED if options.prompt_lookup is None else LOOKED_UP)
    models = [model] if options.draft_model is None else [model, options.draft_model]
    stacks = [m.config.decoder for m in models]
    if count > SLACK and any(window is not None for stack in stacks if stack is not None for window in stack.windows):
        raise UsageError(
            f"{opt('num_draft_tokens', count)}: a cache of sliding windows can take back at most {SLACK}", "draft fewer"
        )
    return count


def _make_drafter(
    model: Transformer, prompt: Prompt, options: GenerationOptions, stops: Stops, processors: Sequence[Processor]
) -> ModelDrafter | PromptLookup:
    draft = options.draft_model
    if draft is None:
        assert options.prompt_lookup is not None
        return PromptLookup(options.prompt_lookup, _encoder_row(model, prompt))
    if not isinstance(draft, Transformer):
        raise UsageError(f"{opt('draft_model')} is {a_type(draft)}", "pass a model, as `load_model` gives")
    if draft.config.decoder is None or draft.config.head.kind not in ("causal_lm", "seq2seq_lm"):
        raise UsageError(f"{opt('draft_model')} has a {draft.config.head.kind!r} head and cannot generate")
    own, other = model.config.head.out_size, draft.config.head.out_size
    if own != other:
        raise UsageError(
            f"{opt('draft_model')} has a vocabulary of {other} tokens, the model one of {own}",
            "both must have the same",
        )
    drafts_from = replace(prompt, encoder_output=None) if draft.encoder is None else _encoded(draft, prompt)
    return ModelDrafter(draft, drafts_from, stops.limits[0], processors, stops.eos_ids)


def _encoded(draft: Transformer, prompt: Prompt) -> Prompt:
    """Return the same input, read by the draft's own encoder.

    Where it is not of tokens, or was encoded before, the draft reads the model's own states, if they are as wide as its
    own: they are the same where the draft was distilled with the same encoder (distil-whisper).
    """
    if prompt.encoder_output is None:
        raise UsageError(f"{opt('draft_model')} is an encoder-decoder, the model is not", "draft with a decoder")
    if prompt.encoder_ids is not None:
        return replace(prompt, encoder_output=draft.encode(prompt.encoder_ids, prompt.encoder_real))
    width, own = prompt.encoder_output.last_hidden_state.size(-1), draft.config.encoder
    if own is None or own.hidden_size != width:
        raise UsageError(
            f"{opt('draft_model')} cannot read encoder states of width {width}, and there are no input_ids",
            "use a draft with the same encoder, or a decoder",
        )
    return prompt


def _encoder_row(model: Transformer, prompt: Prompt) -> Tensor | None:
    """Return the encoder's real tokens, (S,), where they mean the same as the decoder's."""
    if prompt.encoder_ids is None or model.config.encoder is None:
        return None
    frontend = model.config.encoder.frontend
    if not isinstance(frontend, TokenFrontend) or frontend.vocab_size != model.config.head.out_size:
        return None
    row = prompt.encoder_ids[0]
    return row if prompt.encoder_real is None else row[prompt.encoder_real[0]]
