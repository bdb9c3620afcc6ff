"""The one transformer: an encoder, a decoder, or both, and a head, as its `ModelConfig` says.

Shapes: B batch, T positions, S positions in all (cached ones and T), D hidden size, W width of the token vectors,
V vocabulary, C classes or an image's channels, L layers, H heads, M mel channels, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from plainformer.config import HeadConfig, ModelConfig, TokenFrontend
from plainformer.config.local import Local
from plainformer.config.model import in_millions
from plainformer.config.shapes import shapes
from plainformer.errors import UsageError
from plainformer.model.call import (
    check_documents,
    check_inputs,
    check_names,
    check_options,
    decoder_input,
    main_input,
    stack_inputs,
)
from plainformer.model.flow import Cache
from plainformer.model.frontend import TokenEmbedding
from plainformer.model.heads import Head, pick
from plainformer.model.inputs import StackInput, check_ids, check_rows, check_tensor
from plainformer.model.stack import Stack, StackOutput
from plainformer.model.stages import Crossing, Pipe, crossings, run_stage


@dataclass
class ModelOutput:
    """The output of one forward pass; None where it was not asked for, or does not exist.

    Attributes:
        logits: (B, T, V) for language models, tagging, spans (V = 2) and CTC; (B, C) for classification; (B, choices).
        last_hidden_state: (B, T, D) of the stack that the head reads, after its final norm.
        pooler_output: (B, D) of a base model that has a pooler.
        hidden_states: L + 1 of (B, T, D): the embeddings, then every layer; the last after the final norm.
        attentions, cross_attentions: L of (B, H, T, S), probabilities.
        encoder: the encoder's side of an encoder-decoder; pass it back as `encoder_output` to decode without encoding again.
    """

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder: StackOutput | None = None


class Transformer(nn.Module):
    """Any model of the library. Parameters start on the meta device: an unfilled one cannot run.

    Args:
        config: of the whole model: what inputs are checked against, and tasks see.
        local: what of it is here, where several processes share it; None: all. See `config/local.py`.
    """

    def __init__(self, config: ModelConfig, local: Local | None = None) -> None:
        super().__init__()
        self.config, self.local = config, local
        self.pipe: Pipe | None = None  # how other stages are reached, where the layers are cut into several
        # What the first of several processes has decided; None where there is one.
        self.agreed: Callable[[Any], Any] | None = None
        with torch.device("meta"):
            self.encoder = self._stack("encoder")
            self.decoder = self._stack("decoder")
            head = config.head if local is None else local.model.head
            self.head = Head(head, config.main_stack.hidden_size) if local is None or local.is_last else _no_head()
        self.tie()
        for name, parameter in self.named_parameters():
            kept = name if local is None else local.parts[name].name
            if any(fnmatchcase(kept, pattern) for pattern in config.fixed):
                parameter.requires_grad_(False)
        mine = sum(parameter.numel() for parameter in self.parameters())
        self._parameters_in_all = mine if local is None else sum(map(math.prod, shapes(config).values()))

    def configure(self, config: ModelConfig) -> None:
        """Describe the model by another configuration, of which what is here has the same sizes."""
        self.config = config
        if self.local is not None:
            self.local = replace(self.local, config=config)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter in the whole model, by every name that it has there."""
        if self.local is None:
            return {name: tuple(p.shape) for name, p in self.named_parameters(remove_duplicate=False)}
        found = shapes(self.config)
        return {**found, **{name: found[source] for name, source in self.config.tied}}

    def _stack(self, name: str) -> Stack | None:
        config, local = getattr(self.config, name), self.local
        if config is None or local is None:
            return Stack(config) if config is not None else None
        return Stack(config, getattr(local.model, name), local.layers[name])

    @property
    def num_parameters(self) -> int:
        """Return how many numbers the model has, tied ones counted once, however they are stored."""
        return self._parameters_in_all

    def __repr__(self) -> str:
        size, kind = in_millions(self.num_parameters), str(self.dtype).removeprefix("torch.")
        return f"Transformer({self.config.summary}, {size}, {kind}, {self.device})"

    def tie(self) -> None:
        """Make the parameters that `config.tied` pairs up one and the same; of a part of a model, those that are here."""
        for name, source in self.config.tied if self.local is None else self.local.tied:
            module, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(module), leaf, self.get_parameter(source))

    def train(self, mode: bool = True) -> Transformer:
        """Set training or inference mode; training gives every linear its plain weight back, and ties what is tied."""
        super().train(mode)
        if mode:
            self.tie()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.tie()  # a packed weight was unpacked on the way
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def main(self) -> Stack:
        """The stack that the head reads."""
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None
        return stack

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Return the vectors that `inputs_embeds` takes in place of these ids: (B, T) → (B, T, W)."""
        stack = self.encoder if self.encoder is not None else self.main
        frontend = stack.config.frontend
        if not isinstance(frontend, TokenFrontend):
            raise UsageError("this model does not read tokens", "give it pixel_values, input_values or input_features")
        check_tensor("input_ids", input_ids)
        flat = input_ids.flatten(0, -2) if input_ids.dim() > 2 else input_ids
        check_ids(flat, frontend, 0, self.training)

        def embed() -> Tensor:
            assert isinstance(stack.frontend, TokenEmbedding)
            return stack.frontend.embed(input_ids)

        if self.pipe is None:
            return embed()
        name = "encoder" if stack is self.encoder else "decoder"
        return self.pipe.from_first(name, embed, (*input_ids.shape, frontend.embedding_size))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        cache: Cache | None = None,
        encoder_output: StackOutput | None = None,
        logits_to_keep: int = 0,
        only_logits: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **inputs: Tensor | None,
    ) -> ModelOutput:
        """Run the model.

        Args:
            input_ids: (B, T); the encoder's of an encoder-decoder. (B, choices, T) for multiple choice.
            attention_mask: (B, S), 1 real and 0 padding, on either side; with a cache it covers what is cached too.
            cache: a key-value cache of the decoder; its length grows by T.
            encoder_output: an earlier `ModelOutput.encoder`, to skip the encoder.
            logits_to_keep: score only this many of the last positions; 0 for all.
            only_logits: no `last_hidden_state`; if the head reads one position of each row (a classifier's first, a prompt's
                last), the last layer runs for that one only, which saves most of the layer.
            output_hidden_states, output_attentions: return them for every layer. With attentions, no fused kernel.
            inputs: inputs_embeds (B, T, W), token_type_ids, position_ids, head_mask (L, H), pixel_values (B, C, height,
                width), input_values (B, N), input_features (B, M, frames). document_ids (B, T), of rows that hold several
                documents: a number for each, -1 for padding; in place of attention_mask and position_ids, without a cache.
                Each document then gets the answer that it gets alone. For the decoder of an encoder-decoder:
                decoder_input_ids, decoder_inputs_embeds, decoder_attention_mask, decoder_position_ids,
                decoder_head_mask and cross_head_mask.
        Raises:
            UsageError: an unknown or ill-shaped input. InputError: ids, lengths or images that the model cannot take.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        check_options(self.config, cache, encoder_output, logits_to_keep)
        choices = check_inputs(self.config, inputs, self.training)
        if inputs.get("document_ids") is not None:
            check_documents(self.config, cache)
        only = self.head.reads(logits_to_keep) if only_logits else None
        options = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        main = {"only": only, "shared": not only_logits}
        output, encoder_output = self._run(inputs, encoder_output, cache, main, **options)
        result = self._finish(output, inputs["input_ids"], encoder_output, logits_to_keep, choices)
        if only_logits:
            result.last_hidden_state = None
        return result if output_hidden_states else replace(result, hidden_states=None)

    def by_layers(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: Cache
    ) -> Generator[None, None, Tensor]:
        """Run a decoder on a prompt, layer by layer: it yields after each, and returns the last positions' logits, (B, V).

        They are those of `forward(input_ids, attention_mask, cache=cache, logits_to_keep=1, only_logits=True)`. Something else
        may compute in between, also with this model, as long as nobody changes it.
        """
        assert self.decoder is not None and self.encoder is None and self.pipe is None
        inputs: dict[str, Tensor | None] = {"input_ids": input_ids, "attention_mask": attention_mask}
        check_options(self.config, cache, None, 1)
        choices = check_inputs(self.config, inputs, self.training)
        x_BTD, flow = self.decoder.begin(main_input(inputs), cache=cache, only=self.head.reads(1))
        flow.each, outputs = False, self.decoder.run_layers(x_BTD, flow)
        for output in outputs:
            x_BTD = output[0]
            yield
        logits = self._finish(self.decoder.end(x_BTD, flow), input_ids, None, 1, choices).logits
        assert logits is not None
        return logits[:, -1]

    def states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        encoder_output: StackOutput | None = None,
        **inputs: Tensor | None,
    ) -> StackOutput:
        """Run all but the head; the inputs are those of `forward`.

        Returns:
            What the head reads: `last_hidden_state`, (B, T, D), after the final norm, and `real_BT`, which of it is not
            padding. An encoder-decoder's are the decoder's. `score` makes logits of any of these vectors: in training, of
            those that have a label.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        check_options(self.config, None, encoder_output, 0)
        check_inputs(self.config, inputs, self.training)
        output, _ = self._run(inputs, encoder_output)
        return StackOutput(self._read(output), output.real_BT)

    def score(self, x: Tensor) -> Tensor:
        """Return the logits of vectors that `states` gave: (..., D) → (..., V), each by itself. Raises as `scoring_head`."""
        head = self.scoring_head
        if self.pipe is None:
            return head.score(x)
        return self.pipe.from_last(lambda: head.score(x), lambda: (*x.shape[:-1], self.config.head.out_size))

    def early_logits(self, x: Tensor) -> Tensor:
        """Return what the head's last product makes of any layer's output: (..., D) → (..., V). Raises as `scoring_head`."""
        head = self.scoring_head
        if self.pipe is None:
            return head.scores(x)
        return self.pipe.from_last(lambda: head.scores(x), lambda: (*x.shape[:-1], self.config.head.out_size))

    def stage(self, came: Crossing, **inputs: Tensor | None) -> Crossing:
        """Run the layers of a stage that is not the last on what the one before gave: a part of `states`, in training.

        The inputs are those of `forward`. Where the stage is the last, what has come goes into `pipe` instead.
        """
        return run_stage(self, came, stack_inputs(self.config, inputs, self.training))

    def crossings(self, **inputs: Tensor | None) -> list[Crossing]:
        """Return the sizes of what each stage but the last gives for the inputs of `forward`."""
        return crossings(self, stack_inputs(self.config, inputs, self.training))

    @property
    def scoring_head(self) -> Head:
        """The head, of a model whose head scores each position by itself.

        Raises:
            UsageError: the model has no head, or one that reads a row as a whole.
        """
        head = self.config.head
        if head.out_size == 0 or head.pick != "all":
            what = "has no head" if head.out_size == 0 else f"has a {head.kind} head, which reads each row as a whole"
            raise UsageError(f"this model {what}: it cannot score vectors one by one", "call the model itself")
        return self.head

    def encode(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Tensor
    ) -> StackOutput:
        """Run the encoder alone; pass the result on as `encoder_output`."""
        if self.encoder is None:
            raise UsageError("this model has no encoder", "call it directly")
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        check_names(self.config, given, self.training)
        return self._through("encoder", StackInput(**given))

    def _run(
        self,
        inputs: dict[str, Tensor | None],
        encoder_output: StackOutput | None,
        cache: Cache | None = None,
        main: dict[str, Any] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> tuple[StackOutput, StackOutput | None]:
        """Return the output of the stack that the head reads, and the encoder's side of an encoder-decoder.

        `main`: what is asked of the former alone: `only`, and whether it is `shared` with other stages.
        """
        main = main or {}
        first = main_input(inputs)
        states = output_hidden_states or self.config.head.mixed_states > 0
        options = {"output_hidden_states": states, "output_attentions": output_attentions}
        if self.encoder is None:
            return self._through("decoder", first, cache=cache, **main, **options), None
        if self.decoder is None:
            return self._through("encoder", first, **main, **options), None
        if encoder_output is None:
            encoder_output = self._through("encoder", first, **options)
        second = decoder_input(self.config, inputs)
        check_rows(second, len(encoder_output.last_hidden_state), cache.copies if cache is not None else 1)
        output = self._through("decoder", second, cache=cache, encoder_output=encoder_output, **main, **options)
        return output, encoder_output

    def _through(self, name: str, inputs: StackInput, *, shared: bool = True, **options: Any) -> StackOutput:
        """Return a stack's output. `shared`: on all stages; else on the last, and elsewhere only its sizes mean something."""
        stack: Stack = getattr(self, name)
        if self.pipe is not None:
            return self.pipe.through(stack, name, inputs, shared=shared, **options)
        output: StackOutput = stack(inputs, **options)
        return output

    def _read(self, output: StackOutput) -> Tensor:
        """Return the vectors that the head reads, (B, T, D)."""
        if self.config.head.mixed_states and output.hidden_states is not None:
            return self.head.mix(output.hidden_states)
        return output.last_hidden_state

    def _finish(
        self, output: StackOutput, input_ids: Tensor | None, encoder: StackOutput | None, keep: int, choices: int
    ) -> ModelOutput:
        x_BTD = self._read(output)
        if keep and self.config.head.pick == "all":
            x_BTD = x_BTD[:, -keep:]
        has_head = self.config.head.out_size > 0
        has_pooler = not has_head and self.config.head.transform_size > 0
        eos_id = self.config.eos_ids[0] if self.config.eos_ids else None
        scored = self._scored(x_BTD, output.real_BT, input_ids, eos_id) if has_head or has_pooler else None
        if choices and scored is not None:
            scored = scored.view(-1, choices)
        return ModelOutput(
            logits=scored if has_head else None,
            last_hidden_state=output.last_hidden_state,
            pooler_output=scored if has_pooler else None,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cross_attentions=output.cross_attentions,
            encoder=encoder,
        )

    def _scored(self, x_BTD: Tensor, real_BT: Tensor | None, input_ids: Tensor | None, eos_id: int | None) -> Tensor:
        """Return what the head makes of a stack's output."""
        if self.pipe is None:
            logits: Tensor = self.head(x_BTD, real_BT, input_ids, eos_id)
            return logits
        size, how = self.config.head.out_size or self.config.head.transform_size, self.config.head.pick
        how = "first" if how == "first_two" else how

        # Also where the head is not: what cannot be picked is an error on all stages.
        def sizes() -> tuple[int, ...]:
            return *pick(how, x_BTD, real_BT, input_ids, eos_id, self.training).shape[:-1], size

        return self.pipe.from_last(lambda: self.head(x_BTD, real_BT, input_ids, eos_id), sizes)


def _no_head() -> Head:
    """Return the head of a part of a model that has none."""
    return Head(HeadConfig(), 1)
