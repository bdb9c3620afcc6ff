"""How an input becomes an answer: in one pass, step by step, and with one thing changed.

    explain(task, "text")                        tokens, the shape after every step, the answer; with attention=True (or the maps
                                                 of "3.5"), lens=True, nearest="embedding" also what is inside
    nearest_tokens(task, vectors)                the words whose embeddings are nearest to a vector
    explain_steps(task, Request("text"), steps=5)    every step of a generation, as a `Trace`; `replay_steps` runs it again
    what_if(task, Request("text"), "no-cache")   an input is run twice, the second time with one thing changed
    plot_attention(found, "3.5"), plot_lens, plot_embeddings, plot_step, plot_beams    pictures; to_html(found, steps): a page
    record(model, input_ids), replay(model, trace)   the same for a model alone; a `Recorder` watches any generation

Changes, as they are written on the command line:
    attend-to-padding        eight padding tokens before the text (after it, for an encoder), and not masked
    decoder-prefix=TEXT      forced beginning of the output
    no-cache                 every step runs the whole sequence again
    mask-head=L.H            mask head H of layer L (the decoder's; encoder.L.H: the encoder's)
    OPTION=VALUE             any other option of generation: num-beams=4, repetition-penalty=1.2; none removes it
"""

from __future__ import annotations

from plainformer.explanation.attention import Attention, AttentionMap, AttentionSide, HeadSummary, Link
from plainformer.explanation.candidates import NextToken
from plainformer.explanation.changes import CHANGES, Change, Difference, LikelyToken, Run, parse_change
from plainformer.explanation.lens import Lens, LensLayer
from plainformer.explanation.nearest import Nearest, Neighbour, nearest_tokens
from plainformer.explanation.one_pass import Explanation, Piece, StepShape, explain
from plainformer.explanation.page import to_html
from plainformer.explanation.plots import plot_attention, plot_beams, plot_embeddings, plot_lens, plot_step
from plainformer.explanation.recorder import Recorder
from plainformer.explanation.request import Request
from plainformer.explanation.steps import ExplainedSteps, explain_steps, replay_steps
from plainformer.explanation.trace import Recorded, Replayed, ReplayError, record, replay
from plainformer.explanation.trace_format import Trace
from plainformer.explanation.what_if import what_if

__all__ = [
    "CHANGES",
    "Attention",
    "AttentionMap",
    "AttentionSide",
    "Change",
    "Difference",
    "ExplainedSteps",
    "Explanation",
    "HeadSummary",
    "Lens",
    "LensLayer",
    "LikelyToken",
    "Link",
    "Nearest",
    "Neighbour",
    "NextToken",
    "Piece",
    "Recorded",
    "Recorder",
    "ReplayError",
    "Replayed",
    "Request",
    "Run",
    "StepShape",
    "Trace",
    "explain",
    "explain_steps",
    "nearest_tokens",
    "parse_change",
    "plot_attention",
    "plot_beams",
    "plot_embeddings",
    "plot_lens",
    "plot_step",
    "record",
    "replay",
    "replay_steps",
    "to_html",
    "what_if",
]
