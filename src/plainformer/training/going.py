"""What a run needs besides the saved model to go on as if it had not been stopped."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from plainformer.model.transformer import Transformer
from plainformer.parallel.gather import Holding, Team, held, shares
from plainformer.train.checkpoint import Saved, Tensors
from plainformer.train.history import History
from plainformer.train.optimizer import Average, load_optimizer_tensors, optimizer_tensors
from plainformer.training.models import fill, saved_whole, weights_of


@dataclass
class Going:
    """The tensors of a run, by kind, on their way into a checkpoint and out of it."""

    model: Transformer
    optimizer: torch.optim.AdamW
    average: Average | None
    history: History
    team: Team | None = None

    def tensors(self) -> dict[str, Tensors | Holding]:
        """Return what a checkpoint has besides the model's folder; weights of their own where that has not every bit of them.

        Of several processes, each gives its shares of what belongs to parameters, by the names of the whole model.
        """
        found = {"optimizer": optimizer_tensors(self.optimizer, self.model), "examples": self.history.tensors()}
        if self.average is not None:
            found["ema"] = self.average.tensors()
        if self.average is not None or not saved_whole(self.model):
            found["weights"] = weights_of(self.model)
        if self.team is None:
            return {kind: tensors for kind, tensors in found.items() if tensors}
        of = shares(self.model)
        whole = {"examples": found.pop("examples")} if found["examples"] else {}
        return {**whole, **{kind: held(tensors, of) for kind, tensors in found.items() if kind != "examples"}}

    def load(self, saved: Saved) -> None:
        """Take them out of a checkpoint."""
        of = None if self.team is None else shares(self.model)
        fill(self.model, saved.tensors("weights"), of)
        load_optimizer_tensors(self.optimizer, self.model, saved.tensors("optimizer"), of)
        if self.average is not None:
            self.average.load(saved.tensors("ema"), of)
        self.history.load(saved.tensors("examples"))
