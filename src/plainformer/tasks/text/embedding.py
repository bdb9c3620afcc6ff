"""Feature extraction: a text as a vector, pooled as its checkpoint says (Sentence-BERT, Reimers & Gurevych 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from plainformer.errors import UsageError, a_type, did_you_mean, opt
from plainformer.tasks.base import Result, Task, called_with
from plainformer.tasks.text.options import FeatureExtractionOptions, read_poolings
from plainformer.tasks.text.pooling import pool
from plainformer.tasks.text.sentence_files import SentenceFiles, read_sentence_files

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


@dataclass(frozen=True)
class Embedding(Result):
    """A text's vector, (D,) fp32, and how it was pooled."""

    vector: Tensor
    pooling: str
    normalized: bool

    def to_dict(self) -> dict[str, Any]:
        return {"vector": self.vector.tolist(), "pooling": self.pooling, "normalized": self.normalized}

    def lines(self) -> list[str]:
        return [" ".join(f"{value:.5f}" for value in self.vector.tolist())]


class FeatureExtraction(Task):
    """A text → its vector. Without sentence-transformers files: the mean over tokens, not normalised.

    Of an encoder-decoder, the encoder's vectors: they represent the text. See `FeatureExtractionOptions`.
    """

    __call__ = called_with(FeatureExtractionOptions, Embedding)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.files: SentenceFiles = read_sentence_files(self.folder)
        self.companions = self.files.names
        # A GGUF file names its pooling among its metadata.
        self.pooling = self.config.source.get("gguf_pooling", self.files.pooling)
        self.normalized = self.files.normalized
        self.max_tokens = self.files.max_tokens

    def checked(self, inputs: Any, options: FeatureExtractionOptions) -> Any:
        self.prompt_text(options.prompt)
        return inputs

    def encode(self, inputs: Sequence[str], options: FeatureExtractionOptions) -> TextBatch:
        before = self.prompt_text(options.prompt)
        texts = [before + text if isinstance(text, str) else text for text in inputs]
        return self.encode_texts(texts, truncate=options.truncate, limit=self.max_tokens)

    def predict(self, encoded: TextBatch, options: FeatureExtractionOptions) -> Tensor:
        """Vectors, (B, D)."""
        names = read_poolings(options.pooling or self.pooling)
        inputs = self.model_inputs(encoded)
        states, pooler_BD = self._run_model(inputs, "pooler" in names)
        real_BT = self._pooled(inputs["attention_mask"].bool(), self.prompt_text(options.prompt))
        vectors_BD = pool(names, states.float(), real_BT, pooler_BD)
        for dense in self.files.dense:
            if vectors_BD.size(-1) != dense.weight.size(1):
                sizes = f"gives {vectors_BD.size(-1)} numbers, and the checkpoint's dense layer takes {dense.weight.size(1)}"
                fix = f"leave {opt('pooling')} out: the checkpoint's own is {self.pooling!r}"
                raise UsageError(f"{opt('pooling', '+'.join(names))} {sizes}", fix)
            vectors_BD = dense(vectors_BD)
        return torch.nn.functional.normalize(vectors_BD, dim=-1) if self._normalizes(options) else vectors_BD

    def _run_model(self, inputs: dict[str, Tensor], with_pooler: bool) -> tuple[Tensor, Tensor | None]:
        """Return the last hidden states, (B, T, D), and the pooler's vectors, (B, D), where a model has one."""
        if self.config.encoder is not None and (self.config.decoder is not None or not with_pooler):
            return self.model.encode(**inputs).last_hidden_state, None
        output = self.model(**inputs)
        assert output.last_hidden_state is not None
        return output.last_hidden_state, output.pooler_output

    def decode(self, encoded: TextBatch, predicted: Tensor, options: FeatureExtractionOptions) -> list[Embedding]:
        pooling, normalized = options.pooling or self.pooling, self._normalizes(options)
        return [Embedding(vector, pooling, normalized) for vector in predicted.cpu()]

    def _normalizes(self, options: FeatureExtractionOptions) -> bool:
        return self.normalized if options.normalize is None else options.normalize

    def prompt_text(self, prompt: str | None) -> str:
        """Return what each text begins with: the prompt of that name, by default the checkpoint's default one."""
        name = self.files.default_prompt if prompt is None else prompt
        if not name:
            return ""
        if name not in self.files.prompts:
            hint = did_you_mean(name, self.files.prompts) if self.files.prompts else "this checkpoint has no prompts"
            raise UsageError(f"{opt('prompt', prompt)} is unknown", hint)
        return self.files.prompts[name]

    def _pooled(self, real_BT: Tensor, before: str) -> Tensor:
        """Return which positions are pooled: without those of the prompt where the checkpoint says so (INSTRUCTOR)."""
        if self.files.include_prompt or not before:
            return real_BT
        row = self.tokenizer.encode(before)
        ends = bool(row.special) and row.special[-1]  # a closing special token follows the text, not the prompt
        return real_BT & (real_BT.cumsum(1) > len(row) - ends)

    @overload
    def similarity(self, text: str, other: str) -> float: ...

    @overload
    def similarity(self, text: list[str], other: list[str] | None = None) -> Tensor: ...

    def similarity(self, text: str | list[str], other: str | list[str] | None = None) -> float | Tensor:
        """Return the cosine between two texts' vectors, -1 to 1; of lists of N and M texts, all of them, (N, M).

        Without `other`, a list's texts with each other.
        """
        if isinstance(text, str) and isinstance(other, str):
            return float(self.similarity([text], [other])[0, 0])
        if not isinstance(text, list) or not (other is None or isinstance(other, list)):
            what = f"similarity of {a_type(text)} and {a_type(other)}"
            raise UsageError(what, "give two texts, two lists of texts, or one list")
        if not text or other == []:
            return torch.zeros(len(text), len(text if other is None else other))
        a_ND = self._directions(text)
        return a_ND @ (a_ND if other is None else self._directions(other)).T

    def _directions(self, texts: list[str]) -> Tensor:
        """Return the texts' vectors at length 1, (N, D)."""
        return torch.nn.functional.normalize(torch.stack([result.vector for result in self(texts)]), dim=-1)
