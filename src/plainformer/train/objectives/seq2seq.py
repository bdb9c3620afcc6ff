"""Sequence to sequence: a text is to become another: a summary, a translation (Sutskever et al. 2014)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plainformer.errors import UsageError, opt
from plainformer.inputs.text.languages import Languages
from plainformer.train.objectives.base import Arrays, Batch, Column, Encoded
from plainformer.train.objectives.causal import end_of_text
from plainformer.train.objectives.collate import as_ids
from plainformer.train.objectives.pairs import PairObjective, pair_length
from plainformer.train.objectives.words import longest, shortened, text_of

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig
    from plainformer.inputs.text.encoding import Encoding


class SequenceToSequence(PairObjective):
    """Write the target of a source. Both are encoded as the tokenizer does it, special tokens included.

    `data.prefix` comes before each source, as T5 is used; `data.source_language` and `data.target_language` mark the texts of
    a multilingual model. Of a target that is cut, the end is not a label: it does not end there.

    An example is `input_ids`, `target_ids`, and `labelled`: how many of the target's first tokens are labels.
    """

    name = "seq2seq"
    head = "seq2seq_lm"
    columns = (
        Column(
            "source", ("text", "document", "article", "input", "src", "input_text", "dialogue"), help="What is read."
        ),
        Column(
            "target",
            ("summary", "highlights", "labels", "label", "output", "tgt", "target_text", "translation"),
            help="What is written.",
            target=True,
        ),
    )

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: Any) -> None:
        super().__init__(config, model, processor)
        if self.too_long == "window":
            what = f"{opt('data.too_long', 'window')} would give each window of a source the whole target"
            raise UsageError(what, f"give {opt('data.too_long', 'cut')} or {opt('data.too_long', 'drop')}")
        asked, output = config.data.max_target_length, processor.output
        self.target_limit = longest(asked, model, output, of_target=True, option="data.max_target_length")
        self.end_id = end_of_text(output, model)
        self.source_language, self.target_language, self.before = self._marks(processor.languages)

    def _marks(self, languages: Languages) -> tuple[str | None, str | None, str]:
        """Return the languages that texts are marked with, and what each source begins with.

        Raises:
            UsageError: a language that the tokenizer does not have; a multilingual one of which the target is not known.
        """
        data = self.config.data
        source, target, prefix = data.source_language, data.target_language, data.prefix or ""
        if languages.marks and target is not None:  # Marian's texts begin with the language that is to be written
            prefix, target = f"{languages.mark('data.target_language', target)} {prefix}", None
        if source is not None:
            source = languages.code("data.source_language", source)
        if target is not None:
            target = languages.code("data.target_language", target)
        if languages and target is None:
            target = languages.target
            if target is None:
                what = "this model writes several languages, and nothing names the one of the targets"
                raise UsageError(what, f"give {opt('data.target_language', ...)}")
        return source, target, prefix

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a source and its target; longer ones are cut or dropped as `data.too_long` says."""
        source, target = text_of(row, "source"), text_of(row, "target")
        read, lost = shortened(
            self.processor.encode(self.before + source, max_length=None, src_lang=self.source_language),
            self.limit,
            self.too_long,
            self.processor,
        )
        whole = self.processor.output.encode(target, max_length=None, src_lang=self.target_language)
        ids, labelled, cut = self._target(whole)
        example = {
            "input_ids": self.known(as_ids(read.input_ids)),
            "target_ids": self.known(as_ids(ids), of_target=True),
            "labelled": as_ids([labelled]),
        }
        return Encoded([example], lost + cut)

    def _target(self, whole: Encoding) -> tuple[list[int], int, int]:
        """Return a target's ids, how many of the first are labels, and how many are left out."""
        ends = any(special and i == self.end_id for special, i in zip(whole.special, whole.input_ids, strict=True))
        limit = self.target_limit if self.target_limit is None or ends else self.target_limit - 1
        row, cut = shortened(whole, limit, self.too_long, self.processor, "max_target_length")
        if cut:
            after = next(n for n, special in enumerate(reversed(row.special)) if not special)
            return row.input_ids, len(row) - after, cut
        ids = row.input_ids if ends else [*row.input_ids, self.end_id]
        return ids, len(ids), 0

    def length(self, example: Arrays) -> int:
        """Return how many positions an example takes in encoder and decoder."""
        return pair_length(example)

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """Return rows of one example each."""
        examples = [example for (example,) in rows]
        return self.pair_batch(
            [as_ids(one["input_ids"]) for one in examples],
            [as_ids(one["target_ids"]) for one in examples],
            [int(one["labelled"][0]) for one in examples],
        )

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return the source, then what the decoder reads with what it is to write."""
        return self.shown_pair(as_ids(example["input_ids"]), as_ids(example["target_ids"]), int(example["labelled"][0]))
