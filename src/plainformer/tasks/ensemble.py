"""Several models that answer as one: those of the folds of a cross validation.

    vote      what of the members' is combined
    mean      classification, multiple choice: the mean of their probabilities (of a regression, of their values); tokens:
              the mean of each token's probabilities, of which entities are made; questions: the mean of the start and end
              logits of each window
    majority  how many members chose each label, as a share; of labels with equally many, the one with the highest mean
              probability

What models write (text, speech) and vectors are not combined: members do not agree on what comes next, or on axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plainformer.config import ModelConfig
from plainformer.errors import CheckpointError, UsageError, opt
from plainformer.tasks.answering.extractive import QuestionAnswering
from plainformer.tasks.base import Task
from plainformer.tasks.results import LabelScore
from plainformer.tasks.speech.audio_classification import AudioClassification
from plainformer.tasks.text.classification import Classification, TextClassification
from plainformer.tasks.text.multiple_choice import Choice, MultipleChoice
from plainformer.tasks.text.token_classification import TokenClassification
from plainformer.tasks.vision.classification import ImageClassification

LABELS = (TextClassification, ImageClassification, AudioClassification)
VOTING = (*LABELS, MultipleChoice, TokenClassification, QuestionAnswering)


class Ensemble(Task):
    """A task whose models answer together; `ensemble` makes it, of the class of its members as well.

    Attributes:
        members: tasks, of which the first reads the inputs for all. vote: "mean" or "majority". folder_ref: the reference.
    """

    members: tuple[Task, ...]
    vote: str
    folder_ref: str

    @property
    def ref(self) -> str:
        return self.folder_ref

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ref!r}, {len(self.members)} models, vote {self.vote!r})"

    def predict(self, encoded: Any, options: Any) -> list[Any]:
        """What each member gives."""
        return [member.predict(encoded, options) for member in self.members]

    def decode(self, encoded: Any, predicted: list[Any], options: Any) -> list[Any]:
        """The members' answer to each input."""
        if isinstance(self, TokenClassification):
            scores = mean_of(predicted) if self.vote == "mean" else votes_of(predicted)
            return TokenClassification.decode(self, encoded, scores, options)
        if isinstance(self, QuestionAnswering):
            return QuestionAnswering.decode(self, encoded, mean_of(predicted), options)
        answers = [member.decode(encoded, one, options) for member, one in zip(self.members, predicted, strict=True)]
        if isinstance(self, MultipleChoice):
            return [
                choice_of(own, each, self.vote)
                for own, each in zip(zip(*answers, strict=True), encoded[0], strict=True)
            ]
        problem = self.config.head.problem
        independent = problem == "multi_label" or (problem != "regression" and len(self.config.labels) == 1)
        return [label_of(own, self.vote, independent) for own in zip(*answers, strict=True)]


def ensemble(members: Sequence[Task], vote: str, ref: str) -> Task:
    """Return one task of several of a class, with equal labels; options and inputs are those of one of them.

    Raises:
        UsageError: what this task gives cannot be combined. CheckpointError: the members' labels differ.
    """
    first = members[0]
    check_vote(type(first), first.name, first.config, vote)
    for member in members[1:]:
        if type(member) is not type(first) or member.config.labels != first.config.labels:
            what = f"{member.ref} and {first.ref} do not answer the same: {member.config.labels}, {first.config.labels}"
            raise CheckpointError(what, "combine models that were trained for the same labels")
    kind = type(f"{type(first).__name__}Ensemble", (Ensemble, type(first)), {})
    made: Ensemble = object.__new__(kind)
    made.__dict__.update(first.__dict__)
    made.members, made.vote, made.folder_ref = tuple(members), vote, ref
    return made


def check_vote(kind: type[Task], name: str, config: ModelConfig, vote: str) -> None:
    """Refuse a task whose answers cannot be combined, or not in this way."""
    alone = "load one of the folds, such as RUN/fold-1"
    if not issubclass(kind, VOTING):
        what = f"several models cannot answer {name} as one: texts that they write, or vectors, have no mean"
        raise UsageError(what, alone)
    numbers = issubclass(kind, LABELS) and config.head.problem == "regression"
    if vote == "majority" and (numbers or issubclass(kind, QuestionAnswering)):
        what = f"{opt('folds.vote', 'majority')}: answers of {name} are hardly ever equal"
        raise UsageError(what, f"give {opt('folds.vote', 'mean')}")


def refuse_ensemble(task: Any, what: str) -> None:
    """Refuse to do with several models at once what looks into a single one."""
    if isinstance(task, Ensemble):
        first = task.members[0].ref
        raise UsageError(
            f"{what} is of one model, and {task.ref} has {len(task.members)}", f"load one, such as {first!r}"
        )


# ---- what the members give, combined ------------------------------------------------------------------------------------


def mean_of(predicted: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape."""
    return torch.stack([one.double() for one in predicted]).mean(0).float()


def votes_of(predicted: Sequence[Tensor]) -> Tensor:
    """Return the share of members that chose each label, (..., C), of their probabilities, each (..., C).

    Of labels with equally many votes, the one with the highest mean is raised to the next larger number, so that it is
    chosen.
    """
    mean = mean_of(predicted)
    size = mean.size(-1)
    chosen = torch.stack([torch.nn.functional.one_hot(one.argmax(-1), size) for one in predicted])
    votes = chosen.sum(0)
    most = votes == votes.max(-1, keepdim=True).values
    winner = torch.nn.functional.one_hot(mean.masked_fill(~most, -1).argmax(-1), size).bool()
    shares = votes.float() / len(predicted)
    raised = torch.nextafter(shares, torch.full_like(shares, 2.0))
    return torch.where(winner & (most.sum(-1, keepdim=True) > 1), raised, shares)


def shares(scores: Sequence[Sequence[float]], vote: str, independent: bool) -> tuple[list[float], int]:
    """Return a score for each label, of each member's scores, and the place of the best.

    `independent`: several labels may hold, and a member votes for each that it holds likelier than not.
    """
    size, count = len(scores[0]), len(scores)
    mean = [sum(own[place] for own in scores) / count for place in range(size)]
    if vote == "mean":
        return mean, max(range(size), key=mean.__getitem__)
    if independent:
        votes = [sum(own[place] >= 0.5 for own in scores) for place in range(size)]
    else:
        best = [max(range(size), key=own.__getitem__) for own in scores]
        votes = [best.count(place) for place in range(size)]
    winner = max(range(size), key=lambda place: (votes[place], mean[place]))
    return [number / count for number in votes], winner


def label_of(own: Sequence[Classification], vote: str, independent: bool) -> Classification:
    """Return the members' classifications of one input as one."""
    scores, winner = shares([[one.score for one in each.scores] for each in own], vote, independent)
    named = tuple(LabelScore(one.label, score) for one, score in zip(own[0].scores, scores, strict=True))
    return Classification(named[winner].label, named[winner].score, named)


def choice_of(own: Sequence[Choice], choices: Sequence[str], vote: str) -> Choice:
    """Return the members' choices among the same texts as one."""
    scores, winner = shares([each.scores for each in own], vote, False)
    return Choice(winner, choices[winner], scores[winner], tuple(scores))
