"""Speech of any length with Whisper, a window of 30 s at a time: the sequential algorithm of Radford et al. 2022, section 3.8.

The model decodes a window with timestamps. Text before their last pair is final, and the next window begins there; a window
that ends with a single timestamp, or has no pair, is final as a whole. Results equal transformers (5.23,
`generation_whisper.py`) for a single clip, and do not depend on the batch.

Times are counted in frames of the spectrogram, of 10 ms; a timestamp is two. Shapes: B clips, M mel bands, T frames.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plainformer.generation.search import generate
from plainformer.model.stack import StackOutput
from plainformer.model.transformer import Transformer
from plainformer.tasks.speech.alignment import Aligner
from plainformer.tasks.speech.fallback import LOW_TEMPERATURE, Attempt, Attempted, LogProbabilities, Thresholds, seed_of

_progress = logging.getLogger("plainformer.progress")
FRAMES_A_TIMESTAMP = 2  # the second of the encoder's convolutions takes every other frame


@dataclass(frozen=True)
class TokenSegment:
    """Tokens, timestamps among them, between two frames of the clip; `times`: the frame of each, where words' are wanted."""

    start: int
    end: int
    ids: tuple[int, ...]
    times: tuple[int, ...] = ()


@dataclass
class LongClip:
    """The state of a clip that is being transcribed.

    Attributes:
        spectrogram: (M, T), the whole, padded to a window. sound: frames of it that are not padding.
        start: start tokens of every window's decoder prompt; known after the first.
        seek: the frame that the next window begins at. windows: how many are done.
        conditioned: whether the next window is written after the text before it.
        segments, log_probabilities, reasons: final ones, and why each window ended.
    """

    spectrogram: Tensor
    sound: int
    seed: int | None = None
    conditioned: bool = False
    start: list[int] = field(default_factory=list)
    seek: int = 0
    windows: int = 0
    segments: list[TokenSegment] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def ids(self) -> tuple[int, ...]:
        """All final tokens."""
        return tuple(i for segment in self.segments for i in segment.ids)

    @property
    def reason(self) -> str:
        """Why the first window that was cut off ended; "eos" where none was."""
        return next((reason for reason in self.reasons if reason != "eos"), "eos")

    def left(self, frames: int) -> int:
        """Return how many frames the next window has of its own."""
        return min(frames, self.spectrogram.size(1) - self.seek)

    def window(self, frames: int) -> Tensor:
        """Return (M, frames), padded with zeros as in transformers: not silence, but the mean volume."""
        own = self.spectrogram[:, self.seek : self.seek + frames]
        return torch.nn.functional.pad(own, (0, frames - own.size(1)))


@dataclass(frozen=True)
class LongSpeech:
    """What is the same for all clips of a call.

    Attributes:
        model: with its vocabulary's size and the decoder's positions.
        frames: of a window. first_timestamp: the id of <|0.00|>; all from there on are timestamps.
        attempts: ways to write a window, each tried where the one before was bad by the `thresholds`.
        conditioned: whether a window is written after the text before it, if that was sampled at less than 0.5.
        previous_id: <|startofprev|>, before such text; None where the vocabulary has no such token.
        eos_ids: tokens that end a text.
        aligner: finds when each token was said; None where nobody asks.
    """

    model: Transformer
    frames: int
    first_timestamp: int
    attempts: Sequence[Attempt]
    thresholds: Thresholds
    eos_ids: tuple[int, ...]
    conditioned: bool = False
    previous_id: int | None = None
    aligner: Aligner | None = None

    @property
    def positions(self) -> int:
        """Tokens that the decoder has positions for, prompt included."""
        return self.model.config.main_stack.max_positions or 448

    def read(self, clips: Sequence[LongClip], begin: Callable[[StackOutput], list[list[int]]]) -> None:
        """Transcribe clips in place; `begin`: encoder output of their first windows → start tokens of each."""
        for clip in clips:
            clip.conditioned = self.conditioned
        total = sum(clip.spectrogram.size(1) for clip in clips)
        while active := [clip for clip in clips if clip.left(self.frames) > 0]:
            share = sum(clip.seek for clip in clips) / total
            _progress.info("listening", extra={"share": share})
            features_BMT = torch.stack([clip.window(self.frames) for clip in active]).to(self.model.device)
            encoder_output = self.model.encode(input_features=features_BMT)
            encoder_output.kept = {}  # a window may be written several times, and be read again for its times
            if not active[0].windows:
                for clip, start in zip(active, begin(encoder_output), strict=True):
                    clip.start = start
            prompts = [self._prompt(clip) for clip in active]
            silences, texts = self._write(active, prompts, encoder_output)
            times = self._times(active, prompts, texts, encoder_output)
            for clip, silence, written, own in zip(active, silences, texts, times, strict=True):
                self._settle(clip, written, own, self.thresholds.is_silence(written, silence))

    def _times(
        self,
        clips: Sequence[LongClip],
        prompts: Sequence[list[int]],
        texts: Sequence[Attempted],
        encoder_output: StackOutput,
    ) -> list[tuple[int, ...]]:
        """Return for each window the frame of the clip at which each of its tokens begins, where they are wanted."""
        if self.aligner is None:
            return [()] * len(clips)
        heard = [(clip.sound - clip.seek) // FRAMES_A_TIMESTAMP for clip in clips]
        found = self.aligner.positions(encoder_output, prompts, [written.ids for written in texts], heard)
        rows = zip(clips, found, strict=True)
        return [tuple(clip.seek + FRAMES_A_TIMESTAMP * place for place in own) for clip, own in rows]

    def _settle(self, clip: LongClip, written: Attempted, times: tuple[int, ...], is_silent: bool) -> None:
        """Add a window's final segments to its clip, and move to the next window."""
        left = clip.left(self.frames)
        clip.windows += 1
        clip.conditioned = self.conditioned and written.temperature < LOW_TEMPERATURE
        if is_silent:
            clip.seek += left
            return
        ids = written.ids[:-1] if written.ids and written.ids[-1] in self.eos_ids else written.ids
        segments, advance = cut_window(ids, self.first_timestamp, left)
        settled = 0
        for segment in segments:
            own = times[settled : settled + len(segment.ids)]
            clip.segments.append(TokenSegment(clip.seek + segment.start, clip.seek + segment.end, segment.ids, own))
            settled += len(segment.ids)
        clip.log_probabilities += (written.log_probabilities or ())[:settled]
        clip.reasons.append(written.reason)
        clip.seek += advance

    # ---- one window of each clip ----------------------------------------------------------------------------------

    def _write(
        self, clips: Sequence[LongClip], prompts: list[list[int]], encoder_output: StackOutput
    ) -> tuple[list[float], list[Attempted]]:
        """Return for each clip's window the probability of silence, and the last attempt."""
        silences = self._silences(clips, prompts, encoder_output)
        texts: dict[int, Attempted] = {}
        left = list(range(len(clips)))
        for number, attempt in enumerate(self.attempts):
            # The engine takes prompts of one length; those with earlier text are of many.
            for length in sorted({len(prompts[row]) for row in left}):
                rows = [row for row in left if len(prompts[row]) == length]
                seeds = [None if (c := clips[row]).seed is None else seed_of(c.seed, c.windows, number) for row in rows]
                written = self._attempt(attempt, [prompts[row] for row in rows], rows_of(encoder_output, rows), seeds)
                texts.update(zip(rows, written, strict=True))
            vocabulary = self.model.config.head.out_size
            left = [row for row in left if self.thresholds.is_bad(texts[row], silences[row], vocabulary)]
        return silences, [texts[row] for row in range(len(clips))]

    def _prompt(self, clip: LongClip) -> list[int]:
        """Return the decoder prompt of a window: previous text, where it is conditioned, then the start tokens."""
        if not clip.conditioned or not clip.segments:
            return clip.start
        before: list[int] = []
        for ids in (segment.ids for segment in clip.segments):
            doubled = len(ids) > 2 and ids[-2] >= self.first_timestamp
            before += ids[:-1] if doubled else ids  # the second of a pair begins the next text
        kept = before[max(0, len(before) - (self.positions // 2 - 1)) :]
        return [*([self.previous_id] if self.previous_id is not None else []), *kept, *clip.start]

    def _silences(
        self, clips: Sequence[LongClip], prompts: list[list[int]], encoder_output: StackOutput
    ) -> list[float]:
        """Return the probability of <|nospeech|>, the token before <|notimestamps|>, after the start token."""
        if self.thresholds.no_speech is None:
            return [0.0] * len(clips)
        found = []
        for row, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
            ids = prompt[: len(prompt) - len(clip.start) + 1]
            ids_1T = torch.tensor([ids], device=self.model.device)
            own = rows_of(encoder_output, [row])
            output = self.model(decoder_input_ids=ids_1T, encoder_output=own, logits_to_keep=1)
            found.append(float(output.logits[0, -1].float().softmax(-1)[self.first_timestamp - 2]))
        return found

    def _attempt(
        self, attempt: Attempt, prompts: list[list[int]], encoder_output: StackOutput, seeds: list[int | None]
    ) -> list[Attempted]:
        """Make one attempt at windows whose prompts are of one length."""
        options, changes = attempt.options, dict[str, Any]()
        judged = self.thresholds.logprob is not None
        watcher = LogProbabilities(attempt.temperature) if judged and attempt.temperature > 0 else None
        if judged:
            changes["output_scores"] = True
        if options.max_new_tokens is None and options.max_length is None:
            changes["max_new_tokens"] = self.positions - len(prompts[0])
        if options.seed is not None:
            changes["seed"] = seeds
        inputs: dict[str, Any] = {
            "encoder_output": encoder_output,
            "decoder_input_ids": torch.tensor(prompts, device=self.model.device),
        }
        found = generate(self.model, **inputs, watcher=watcher, options=options.changed(**changes))
        texts = []
        for row, (ids, reason) in enumerate(zip(found.token_ids, found.stop_reasons, strict=True)):
            scores = found.log_probabilities[row] if found.log_probabilities is not None else None
            values = watcher.of_row(row, len(ids)) if watcher is not None else scores or ()
            own = scores if options.output_scores else None
            texts.append(Attempted(ids, reason, attempt.temperature, own, sum(values) / max(1, len(values))))
        return texts


def cut_window(ids: tuple[int, ...], first_timestamp: int, frames: int) -> tuple[list[TokenSegment], int]:
    """Return a window's final segments, and by how many frames to move on.

    Args:
        ids: the text, without its end token. frames: that the window has of its own.

    A pair of timestamps ends a segment and begins the next. What follows the last pair is dropped and decoded again in the
    next window, unless it ends with a single timestamp: then it is a segment, followed by silence. The last pair stays
    whole in its segment.
    """
    stamped = [i >= first_timestamp for i in ids]
    cuts = [place for place in range(1, len(ids)) if stamped[place - 1] and stamped[place]]
    if not cuts:
        last = next((i - first_timestamp for i in reversed(ids) if i >= first_timestamp), 0)
        return [TokenSegment(0, FRAMES_A_TIMESTAMP * (last or frames // FRAMES_A_TIMESTAMP), ids)], frames
    is_finished = stamped[-2:] == [False, True]
    cuts = [*cuts, len(ids)] if is_finished else [*cuts[:-1], cuts[-1] + 1]
    segments = []
    for start, stop in zip([0, *cuts], cuts, strict=False):
        end = stop - (1 if is_finished or stop < cuts[-1] else 2)
        first, last = (FRAMES_A_TIMESTAMP * (ids[place] - first_timestamp) for place in (start, end))
        segments.append(TokenSegment(first, last, ids[start:stop]))
    # A pair at the very beginning, which a caller's processor may force, would not move on.
    return segments, frames if is_finished else segments[-1].end or frames


def rows_of(encoder_output: StackOutput, rows: Sequence[int]) -> StackOutput:
    """Return some rows of an encoder's output."""
    if list(rows) == list(range(len(encoder_output.last_hidden_state))):
        return encoder_output
    real_BT = encoder_output.real_BT[rows] if encoder_output.real_BT is not None else None
    return StackOutput(encoder_output.last_hidden_state[rows], real_BT)
