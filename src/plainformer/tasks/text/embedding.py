"""Feature extraction: a text as a vector, pooled as its checkpoint says (Sentence-BERT, Reimers & Gurevych 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plainformer.errors import UsageError, did_you_mean, opt
from plainformer.inputs.text.vocabulary import lower_first
from plainformer.tasks.embeddings import Embedding, EmbeddingTask, embeds_with
from plainformer.tasks.rows import by_tokens
from plainformer.tasks.text.options import FeatureExtractionOptions, read_poolings
from plainformer.tasks.text.pooling import pool
from plainformer.tasks.text.sentence_files import LayerNorm, SentenceFiles, read_sentence_files

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import TextBatch


class FeatureExtraction(EmbeddingTask):
    """A text → its vector. Without sentence-transformers files: the mean over tokens, not normalised.

    Of an encoder-decoder, the encoder's vectors: they represent the text. See `FeatureExtractionOptions`.
    """

    __call__ = embeds_with(FeatureExtractionOptions)
    reads_arrays = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.files: SentenceFiles = read_sentence_files(self.checkpoint)
        self.companions = self.files.names
        # A GGUF file names its pooling among its metadata.
        self.pooling = self.config.source.get("gguf_pooling", self.files.pooling)
        self.normalized = self.files.normalized
        self.max_tokens = self.files.max_tokens
        self.measure = self.files.similarity
        if self.files.lower_case:
            lower_first(self.tokenizer.backend)

    def checked(self, inputs: Any, options: FeatureExtractionOptions) -> Any:
        self.prompt_text(options)
        return inputs

    def encode(self, inputs: Sequence[str], options: FeatureExtractionOptions) -> TextBatch:
        before = self.prompt_text(options)
        texts = [before + text if isinstance(text, str) else text for text in inputs]
        return self.encode_texts(
            texts, truncate=options.truncate, max_length=options.max_length, made_for=self.max_tokens
        )

    def predict(self, encoded: TextBatch, options: FeatureExtractionOptions) -> Tensor:
        """Vectors, (B, D)."""
        return by_tokens(self.model_inputs(encoded), lambda rows: self._embedded(rows, options))

    def _embedded(self, inputs: dict[str, Tensor], options: FeatureExtractionOptions) -> Tensor:
        """Return the vectors, (B, D), of rows that run at once."""
        names = read_poolings(options.pooling or self.pooling)
        states, pooler_BD = self._run_model(inputs, "pooler" in names)
        real_BT = inputs["attention_mask"].bool()
        pooled_BT = self._pooled(real_BT, self.prompt_text(options))
        vectors_BD = pool(names, states.float(), real_BT, pooler_BD, pooled_BT)
        for dense in self.files.dense:
            if vectors_BD.size(-1) != dense.sizes[0]:
                name = "norm" if isinstance(dense, LayerNorm) else "dense layer"
                sizes = f"gives {vectors_BD.size(-1)} numbers, and the checkpoint's {name} takes {dense.sizes[0]}"
                fix = f"leave {opt('pooling')} out: the checkpoint's own is {self.pooling!r}"
                raise UsageError(f"{opt('pooling', '+'.join(names))} {sizes}", fix)
            vectors_BD = dense(vectors_BD)
        vectors_BD = self._cut(vectors_BD, options.truncate_dim)
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

    def width(self, options: FeatureExtractionOptions) -> int:
        pooled = super().width(options) * len(read_poolings(options.pooling or self.pooling))
        whole = self.files.dense[-1].sizes[1] if self.files.dense else pooled
        return min(whole, options.truncate_dim or self.files.truncate_dim or whole)

    def _normalizes(self, options: FeatureExtractionOptions) -> bool:
        return self.normalized if options.normalize is None else options.normalize

    def _cut(self, vectors_BD: Tensor, truncate_dim: int | None) -> Tensor:
        """Return the first numbers of each vector, as many as the option asks for, or else the checkpoint."""
        size = vectors_BD.size(-1)
        if truncate_dim is not None and truncate_dim > size:
            raise UsageError(f"{opt('truncate_dim', truncate_dim)}: the vectors have {size} numbers", "give fewer")
        return vectors_BD[:, : truncate_dim or self.files.truncate_dim]

    def prompt_text(self, options: FeatureExtractionOptions) -> str:
        """Return what each text begins with: the prompt, the one of that name, or else the checkpoint's default one."""
        prompts, text, name = self.files.prompts, options.prompt, options.prompt_name
        if text is not None:
            if text in prompts:  # the name and the text of a prompt are easily mistaken for each other
                fix = f"give {opt('prompt_name', text)}"
                raise UsageError(f"{opt('prompt', text)} is the name of a prompt, not its text", fix)
            return text
        if name is not None and name not in prompts:
            hint = (
                did_you_mean(name, prompts) if prompts else f"this checkpoint has no prompts: give {opt('prompt', ...)}"
            )
            raise UsageError(f"{opt('prompt_name', name)} is unknown", hint)
        chosen = self.files.default_prompt if name is None else name
        return "" if chosen is None else prompts[chosen]

    def _pooled(self, real_BT: Tensor, before: str) -> Tensor:
        """Return which positions are pooled: without those of the prompt where the checkpoint says so (INSTRUCTOR)."""
        if self.files.include_prompt or not before:
            return real_BT
        row = self.tokenizer.encode(before)
        ends = bool(row.special) and row.special[-1]  # a closing special token follows the text, not the prompt
        return real_BT & (real_BT.cumsum(1) > len(row) - ends)

    def searching(self, kind: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        names = ("query",) if kind == "query" else ("document", "passage", "corpus")
        name = next((name for name in names if name in self.files.prompts), None)
        said = name is None or {"prompt", "prompt_name"} & options.keys()
        return options if said else {"prompt_name": name, **options}
