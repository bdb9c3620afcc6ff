"""What if? An input is run twice, the second time with one thing changed, and the difference is shown.

Changes, as they are written on the command line:
    attend-to-padding        eight padding tokens in front of the text (behind it, for an encoder), and not masked
    decoder-prefix=TEXT      what the output is made to begin with
    no-cache                 every step runs the whole sequence again
    mask-head=L.H            head H of layer L gives nothing (the decoder's; encoder.L.H: the encoder's)
    OPTION=VALUE             any other option of generation: temperature=0.5, num_beams=4; none takes it away
"""

from __future__ import annotations

from plainformer.explain.changes import CHANGES, Change, Difference, Likely, Side, parse_change
from plainformer.explain.one_pass import Explanation, explain
from plainformer.explain.steps import ExplainedSteps, Request, explain_steps
from plainformer.explain.trace import ReplayError, record, replay
from plainformer.explain.trace_format import Trace
from plainformer.explain.what_if import what_if

__all__ = [
    "CHANGES",
    "Change",
    "Difference",
    "ExplainedSteps",
    "Explanation",
    "Likely",
    "ReplayError",
    "Request",
    "Side",
    "Trace",
    "explain",
    "explain_steps",
    "parse_change",
    "record",
    "replay",
    "what_if",
]
