"""Whisper's timestamps: the rules that make its tokens <|0.00|>, <|0.02|>, … enclose what was said.

Shapes: R rows, N generated tokens, or timestamps, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plainformer.config.options import whole
from plainformer.generation.processors.base import Configured, parameter
from plainformer.generation.processors.context import Context
from plainformer.generation.processors.id_tensors import check_inside


class WhisperTimestamps(Configured, name="whisper_timestamps"):
    """What may follow in a transcript with timestamps (Radford et al. 2022, arXiv 2212.04356, and OpenAI's code).

    Timestamp tokens are all those after <|notimestamps|>, which itself is banned. Then, of what was generated:
      - pairs: after a timestamp that ends a segment come another, or the end; after two of them, text;
      - order: no timestamp before the last; and none equal to it, unless it begins the segment after;
      - the first token is a timestamp, at most `max_initial_timestamp_index` steps of 0.02 s in;
      - where timestamps are together likelier than the likeliest text token, one of them is picked.

    Args:
        no_timestamps_id: <|notimestamps|>.
        eos_id: <|endoftext|>, the first token that is not text.
        max_initial_timestamp_index: None (if not given) sets no limit; OpenAI's code has 50, one second.
        skip: how many generated tokens come before the transcript, where they are forced ones and no prompt; 0 if not given.
    """

    no_timestamps_id: int = parameter(whole(0))
    eos_id: int = parameter(whole(0))
    max_initial_timestamp_index: int | None = parameter(whole(0), default=None)
    skip: int = parameter(whole(0), default=0)

    def __call__(self, logits_RV: Tensor, context: Context) -> Tensor:
        vocabulary, begin, never = logits_RV.size(-1), self.no_timestamps_id + 1, float("-inf")
        check_inside("no_timestamps_id", (self.no_timestamps_id,), vocabulary)
        kept_RV = logits_RV.clone()
        text_RV, times_RN = (
            kept_RV[:, :begin],
            kept_RV[:, begin:],
        )  # few are times: what is forbidden by row, is so in slices
        text_RV[:, self.no_timestamps_id] = never
        if context.step > self.skip:
            ended_R1, opened_R1, least_R1 = self._turns(context)
            kept_RV[:, : self.eos_id].masked_fill_(ended_R1 & ~opened_R1, never)
            early_RN = torch.arange(begin, vocabulary, device=logits_RV.device) < least_R1
            times_RN.masked_fill_(early_RN | (ended_R1 & opened_R1), never)
        if context.step == self.skip:
            text_RV.fill_(never)
            if self.max_initial_timestamp_index is not None:
                times_RN[:, self.max_initial_timestamp_index + 1 :] = never
        likelier_R1 = times_RN.float().logsumexp(-1, keepdim=True) > text_RV.float().amax(-1, keepdim=True)
        text_RV.masked_fill_(likelier_R1, never)
        return kept_RV

    def _turns(self, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Return of each row, (R, 1): whether it ends with a timestamp, and what comes before is one; the first that may follow."""
        begin = self.no_timestamps_id + 1
        new_RN = context.ids[:, context.prompt_columns + self.skip :]
        count = new_RN.size(1)
        is_time_RN = new_RN >= begin
        ended_R1 = is_time_RN[:, -1:]
        opened_R1 = is_time_RN[:, -2:-1] if count > 1 else torch.ones_like(ended_R1)
        # The last timestamp: its place, counted from 1; 0 where there is none, and then nothing is too early.
        last_R1 = (is_time_RN * torch.arange(1, count + 1, device=new_RN.device)).amax(-1, keepdim=True)
        newest_R1 = new_RN.gather(1, (last_R1 - 1).clamp(min=0))
        least_R1 = torch.where(ended_R1 & ~opened_R1, newest_R1, newest_R1 + 1).where(last_R1 > 0, begin)
        return ended_R1, opened_R1, least_R1
