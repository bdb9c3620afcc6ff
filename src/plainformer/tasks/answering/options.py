"""Options of the tasks that answer questions about a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from plainformer.config.options import one_of, opt, option, whole
from plainformer.errors import UsageError
from plainformer.tasks.options import WindowOptions

MAX_ANSWER_TOKENS = {"probability": 15, "squad": 30}  # of the pipeline, and of run_squad.py
ALIGN = {"probability": "words", "squad": "tokens"}


def _threshold(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or math.isnan(value):
        what = f"{opt(name, value)} is neither True nor False nor a threshold"
        raise UsageError(what, f"for example {opt(name, True)}, or 0.5")


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringOptions(WindowOptions):
    """Options of question answering.

    window: default: 384, or the model's limit if that is less. A shorter context is one window.
    stride: default: 128, at most half a window, and half the room that a long question leaves. (`doc_stride` of run_squad.py
        is the distance between windows: room less stride.)
    top_k: an answer names fewer spans where there are fewer.
    max_answer_tokens: the longest span; default: 15 with scoring="probability", 30 with "squad".
    scoring: what a span's score is. "probability": P(start) * P(end) within its window, where the context's tokens and the
        class token share the probability; spans of the same text in any case are one, and their scores add up, over windows
        too, so that the sum may exceed 1. What adds up are the best spans of each window: 2 * top_k + 10 of them with
        align="words", else top_k; so `top_k` may change a score. "squad": the probability within the list of the 20 best
        spans by start + end logit over all windows, each token counting in the window where it has most context; its
        `top_k` names at most these.
    align: "words" extends an answer to whole words, as the tokenizer cuts them; "tokens" does not. Default: "words" with
        scoring="probability", "tokens" with "squad".
    no_answer: whether the answer may be that there is none: text "", start 0, end 0. True: where "no answer", the class
        token's span, scores higher than the best span. A number: by more than that, in the unit of `Answer.no_answer_score`
        (`null_score_diff_threshold` of run_squad.py); negative ones favour "no answer".
    """

    top_k: int = option(1, help="Extracted answers: spans to name.", check=whole(1))
    max_answer_tokens: int | None = option(None, help="Extracted answers: the longest.", check=whole(1))
    scoring: str = option("probability", help="Extracted answers: probability or squad.", check=one_of(*ALIGN))
    align: str | None = option(None, help="Extracted answers: whole words, or tokens.", check=one_of("words", "tokens"))
    no_answer: bool | float = option(
        False, help="Extracted answers: there may be none.", check=_threshold, typed=bool,
        also={"no_answer_threshold": (float, "The same, where that is likelier by this much.")},
    )  # fmt: skip

    @property
    def longest(self) -> int:
        """The longest span in tokens."""
        return MAX_ANSWER_TOKENS[self.scoring] if self.max_answer_tokens is None else self.max_answer_tokens

    @property
    def alignment(self) -> str:
        """What a span's ends are aligned to."""
        return ALIGN[self.scoring] if self.align is None else self.align

    @property
    def threshold(self) -> float | None:
        """By how much "no answer" has to outscore the best span; None: whatever it scores, it is not an answer."""
        return None if self.no_answer is False else 0.0 if self.no_answer is True else float(self.no_answer)
