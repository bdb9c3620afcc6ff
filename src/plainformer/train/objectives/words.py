"""What objectives share whose labels are tokens: the loss at labelled positions, perplexity, lengths of texts.

Shapes: B batch, T positions, N labels, D hidden size, V vocabulary, M numbers that a metric is made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plainformer.config import TokenFrontend
from plainformer.errors import CheckpointError, UsageError, a_type, opt
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.inputs.text.windows import truncated, windows
from plainformer.train.losses import label_losses, word_losses
from plainformer.train.objectives.base import Batch, Column, Dropped, Loss, Metric, Objective
from plainformer.train.objectives.collate import NONE, Ids, count_of, label_targets, row_sums, token_inputs

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.inputs.text.encoding import Encoding
    from plainformer.model.transformer import Transformer

TEXT = Column("text", ("content", "document", "sentence"), help="A text.")
_SCORES_AT_A_TIME = 2**24  # numbers, in evaluation: 64 MB


class WordObjective(Objective):
    """An objective whose labels are tokens. `collate` gives the targets of `label_targets`.

    Attributes:
        processor: the tokenizer. filler: the id that padding has; see `filler_of`.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "lower"),
        Metric("perplexity", "lower"),
        Metric("token_accuracy", "higher"),
    )
    distils = True
    processor: Tokenizer

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        self.filler = filler_of(model, processor)
        self.limit = longest(config.data.max_length, model, processor)

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        """Score the labelled positions alone: the head sees one position at a time, so the others would change nothing."""
        losses_N = self.losses(model, labelled_states(model, batch), batch.targets["labels"])
        return Loss(losses_N, batch.targets["per_row"])

    def losses(self, model: Transformer, states_ND: Tensor, labels_N: Tensor) -> Tensor:
        """Return the loss of each label, (N,)."""
        how = self.config.loss
        return word_losses(model, states_ND, labels_N, how.label_smoothing, how.chunk, self.robust)

    def scored(self, model: Transformer, batch: Batch) -> Tensor:
        """Return the scores of each label's position, (N, V)."""
        return model.score(labelled_states(model, batch))

    def scored_losses(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each label, (N,)."""
        return label_losses(scores, batch.targets["labels"], self.config.loss.label_smoothing, self.robust)

    @torch.no_grad()
    def statistics(self, model: Transformer, batch: Batch) -> npt.NDArray[np.float64]:
        """Return each row's loss without label smoothing, labels, and how many of them the model finds likeliest, (B, 3)."""
        states_ND, labels_N = labelled_states(model, batch), batch.targets["labels"]
        size = max(1, _SCORES_AT_A_TIME // max(1, self.model_config.head.out_size))
        losses, right = [], []
        for some_states, some_labels in zip(states_ND.split(size), labels_N.split(size), strict=True):
            logits = model.score(some_states).float()
            losses.append(label_losses(logits, some_labels).double())
            right.append((logits.argmax(-1) == some_labels).double())
        per_row_B = batch.targets["per_row"]
        columns = (row_sums(torch.cat(losses), per_row_B), per_row_B.double(), row_sums(torch.cat(right), per_row_B))
        return torch.stack(columns, -1).cpu().numpy()

    def measured(self, sums: npt.NDArray[np.float64]) -> dict[str, float]:
        """Return mean loss in nats, its exponential, and the share of labels that the model finds likeliest."""
        loss, labels, right = (float(value) for value in sums)
        mean = loss / labels if labels else math.nan
        perplexity = math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan
        return {"loss": mean, "perplexity": perplexity, "token_accuracy": right / labels if labels else math.nan}

    def fitted(self, row: Encoding) -> tuple[list[Encoding], int]:
        """Return a row that may be too long as `data.too_long` asks, and how many of its tokens are left out.

        Raises:
            Dropped: it is longer than `limit`, and such rows are to be dropped.
        """
        if self.too_long == "window" and self.limit is not None and len(row) > self.limit:
            return [row.select(places) for places in windows(row.sequence_ids, self.limit, self.config.data.stride)], 0
        fitting, cut = shortened(row, self.limit, self.too_long, self.processor)
        return [fitting], cut

    def known(self, ids: Ids, *, of_target: bool = False) -> Ids:
        """Return ids that the model's embeddings have; see `known_ids`."""
        stack = self.model_config.main_stack if of_target else self.model_config.input_stack
        return known_ids(ids, stack.frontend, self.processor)

    def said(self, token_id: int) -> str:
        """Return a token for people; "" for NONE."""
        return "" if token_id == NONE else self.processor.id_to_token(int(token_id)) or f"[{token_id}]"

    def pairs(self, ids: Ids, labels: Ids) -> list[tuple[str, str]]:
        """Return tokens with their labels, for `shown`."""
        return [(self.said(i), self.said(label)) for i, label in zip(ids, labels, strict=True)]


def labelled_states(model: Transformer, batch: Batch) -> Tensor:
    """Return the hidden states that have a label, (N, D)."""
    inputs: dict[str, Any] = dict(batch.inputs)
    return model.states(**inputs).last_hidden_state.flatten(0, 1)[batch.targets["places"]]


def batch_of(ids: Sequence[Sequence[Ids]], labels: Sequence[Sequence[Ids]], filler: int) -> Batch:
    """Return rows of pieces of texts, and of their labels, as tensors; each piece attends to itself alone."""
    targets = label_targets([np.concatenate(row) for row in labels])
    return Batch(token_inputs(ids, filler), targets, len(targets["labels"]), count_of(ids))


def filler_of(model: ModelConfig, tokenizer: Tokenizer) -> int:
    """Return the id that padding has: it is never seen and never a label, but the embeddings look it up."""
    size = model.vocab_size
    usual = (tokenizer.pad_id, model.pad_id, tokenizer.eos_id)
    # A pad token that was added to the tokenizer alone has no row of the embeddings, and needs none.
    return next((i for i in usual if i is not None and (size is None or i < size)), 0)


def known_ids(ids: Ids, frontend: object, tokenizer: Tokenizer) -> Ids:
    """Return ids that the embeddings have: a training step on a GPU does not look at their values.

    Raises:
        CheckpointError: the tokenizer has tokens that the model lacks.
    """
    size = frontend.vocab_size if isinstance(frontend, TokenFrontend) else None
    if size is not None and len(ids) and (worst := int(ids.max())) >= size:
        what = f"the tokenizer's token {tokenizer.id_to_token(worst)!r} has the id {worst}, and the model {size} tokens"
        raise CheckpointError(what, "is the tokenizer that of another model, or were tokens added to it alone?")
    return ids


def shortened(
    row: Encoding, limit: int | None, too_long: str, tokenizer: Tokenizer, name: str = "max_length"
) -> tuple[Encoding, int]:
    """Return a row cut to a limit, which `name` is called, and how many tokens that leaves out.

    Raises:
        Dropped: it is longer, and `too_long` is "drop".
    """
    if limit is None or len(row) <= limit:
        return row, 0
    if too_long == "drop":
        raise Dropped(f"longer than {name}")
    kept = truncated(row.sequence_ids, limit, tokenizer.truncation_side)
    return row.select(kept), len(row) - len(kept)


def text_of(row: Mapping[str, Any], name: str = "text") -> str:
    """Return a row's text. Raises Dropped where there is none."""
    text = row.get(name)
    if text is None or text == "":
        raise Dropped(f"no {name}")
    if not isinstance(text, str):
        raise UsageError(
            f"the column {name!r} holds {a_type(text)}, not text", f"map another column: {opt('data.columns')}"
        )
    return text


def longest(
    asked: int | None,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    of_target: bool = False,
    option: str = "data.max_length",
) -> int | None:
    """Return how many tokens of an example a model reads: what `option` asks, or what model and tokenizer state; None: any.

    `of_target`: of the decoder of an encoder-decoder.

    Raises:
        UsageError: more is asked for than the model has positions.
    """
    hard = most_positions(config, of_target)
    if asked is not None and hard is not None and asked > hard:
        what = f"{opt(option, asked)} is more than this model's limit of {hard} tokens"
        raise UsageError(what, f"give {hard} or less")
    if asked is not None:
        return asked
    stated = (hard, config.trained_positions, tokenizer.max_length)
    return min((limit for limit in stated if limit is not None), default=None)


def most_positions(config: ModelConfig, of_target: bool = False) -> int | None:
    """Return how many tokens a model's table of positions allows; None where there is no table."""
    stack = config.main_stack if of_target else config.input_stack
    limits = [stack.max_positions]
    if isinstance(stack.frontend, TokenFrontend) and stack.frontend.positions == "sinusoidal":
        limits.append(config.trained_positions)
    return min((limit for limit in limits if limit is not None), default=None)


def spans(length: int, size: int, shared: int) -> Iterator[tuple[int, int]]:
    """Yield windows of `size` positions over `length`, of which neighbours share some, as (start, stop)."""
    if shared >= size:
        what = f"windows of {size} tokens that share {opt('data.stride', shared)} make no progress"
        raise UsageError(what, f"give less than {size}")
    start = 0
    while True:
        yield start, min(start + size, length)
        if start + size >= length:
            return
        start += size - shared
