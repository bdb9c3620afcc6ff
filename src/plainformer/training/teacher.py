"""The teacher of a run: loaded once, asked at every label, never saved with the student."""

from __future__ import annotations

from plainformer.checkpoint.opened import open_checkpoint
from plainformer.config import ModelConfig
from plainformer.errors import UsageError, opt
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.loading import load_model
from plainformer.train.objectives.base import Objective
from plainformer.train.objectives.distil import Distilled, check_teacher


def check_taught(objective: Objective, student: ModelConfig) -> None:
    """Refuse a teacher that cannot teach this, before anything is encoded: its configuration and tokenizer tell.

    Raises:
        UsageError: the teacher's head, tokens or labels are not the student's.
    """
    ref = objective.config.loss.teacher
    if ref is None:
        return
    try:
        with open_checkpoint(ref) as checkpoint:
            teacher = checkpoint.config(objective.head)
            processor = checkpoint.tokenizer() if isinstance(objective.processor, Tokenizer) else objective.processor
    except UsageError as error:
        what = f"{opt('loss.teacher', ref)} cannot teach {objective.config.objective}: {error.what}"
        raise UsageError(what, "choose a teacher that was trained for the same") from None
    check_teacher(objective, student, teacher, processor)


def taught(objective: Objective, student: ModelConfig) -> Objective:
    """Return the objective as `loss.teacher` changes it; itself where there is no teacher. `check_taught` has passed."""
    config = objective.config
    ref = config.loss.teacher
    if ref is None:
        return objective
    teacher = load_model(ref, head=objective.head, backend="plain", dtype="fp32", device=config.device, prepare=False)
    return Distilled(objective, teacher)
