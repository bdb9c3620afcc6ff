"""How an input becomes an answer: in one pass, step by step, and with one thing changed.

    explain(task, "text")                        tokens, the shape after every step, the answer
    explain_steps(task, Request("text"), steps=5)    every step of a generation, as a `Trace`; `replay_steps` runs it again
    what_if(task, Request("text"), "no-cache")   an input is run twice, the second time with one thing changed
    record(model, input_ids), replay(model, trace)   the same for a model alone; a `Recorder` watches any generation

Changes, as they are written on the command line:
    attend-to-padding        eight padding tokens before the text (after it, for an encoder), and not masked
    decoder-prefix=TEXT      what the output is made to begin with
    no-cache                 every step runs the whole sequence again
    mask-head=L.H            mask head H of layer L (the decoder's; encoder.L.H: the encoder's)
    OPTION=VALUE             any other option of generation: temperature=0.5, num_beams=4; none removes it
"""

from __future__ import annotations

from plainformer.explanation.changes import CHANGES as CHANGES
from plainformer.explanation.changes import Change as Change
from plainformer.explanation.changes import Difference as Difference
from plainformer.explanation.changes import LikelyToken as LikelyToken
from plainformer.explanation.changes import Run as Run
from plainformer.explanation.changes import parse_change as parse_change
from plainformer.explanation.one_pass import Explanation as Explanation
from plainformer.explanation.one_pass import NextToken as NextToken
from plainformer.explanation.one_pass import Piece as Piece
from plainformer.explanation.one_pass import StepShape as StepShape
from plainformer.explanation.one_pass import explain as explain
from plainformer.explanation.recorder import Recorder as Recorder
from plainformer.explanation.request import Request as Request
from plainformer.explanation.steps import ExplainedSteps as ExplainedSteps
from plainformer.explanation.steps import explain_steps as explain_steps
from plainformer.explanation.steps import replay_steps as replay_steps
from plainformer.explanation.trace import Recorded as Recorded
from plainformer.explanation.trace import Replayed as Replayed
from plainformer.explanation.trace import ReplayError as ReplayError
from plainformer.explanation.trace import record as record
from plainformer.explanation.trace import replay as replay
from plainformer.explanation.trace_format import Trace as Trace
from plainformer.explanation.what_if import what_if as what_if
