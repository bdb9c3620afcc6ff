"""What went wrong without an error in somebody's tensor parallelism: each is a function of a rank's mesh that must pass.

They run in one launch (`tests/parallel/test_tensor.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from plainformer.checkpoint.low_rank import add_adapters
from plainformer.config.training import LoraConfig
from plainformer.families import table_for
from plainformer.generation.search import generate
from plainformer.model.block import set_ffn_chunk_size
from plainformer.model.dropout import set_dropout
from plainformer.model.fast import step
from plainformer.model.fast.packed import Int8Weight
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.linear import Linear, outermost
from plainformer.model.lora import Adapter, adapted, merge_adapters
from plainformer.model.recompute import set_checkpointing
from plainformer.model.transformer import Transformer
from plainformer.parallel import tensor
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.tensor import add_up_gradients
from plainformer.train.losses import word_losses
from tests.support.shares import config_of, inputs_of, loss_of, own_part, rows_of, whole

CLOSE = 1e-5


def pair(name: str, mesh: Mesh, **changes: Any) -> tuple[Transformer, Transformer]:
    """Return a whole model and this rank's part of it, neither of which drops anything."""
    alone = whole(config_of(name, **changes)).eval()
    return alone, own_part(alone, mesh)


def near(ours: Tensor, theirs: Tensor, within: float = CLOSE) -> bool:
    """Return whether two tensors are equal but for rounding."""
    return bool((ours - theirs).detach().abs().max() <= within * theirs.detach().abs().max().clamp_min(1e-3))


def same_everywhere(x: Tensor, mesh: Mesh) -> bool:
    """Return whether all ranks have the same bits."""
    found = [torch.empty_like(x) for _ in range(mesh.layout.tp)]
    dist.all_gather(found, x.detach().contiguous(), group=mesh.tp)
    return all(torch.equal(other, found[0]) for other in found)


def gradients(model: Transformer, mesh: Mesh | None, name: str) -> dict[str, Tensor]:
    """Return the gradients of one backward pass."""
    model.zero_grad()
    loss_of(model, inputs_of(config_of(name))).backward()
    if mesh is not None:
        add_up_gradients(model, mesh)
    return {own: p.grad.clone() for own, p in model.named_parameters() if p.grad is not None}


def _wrong(name: str, mesh: Mesh, part: str) -> bool:
    """Return whether this rank's gradient of a parameter is not that of one process."""
    alone, model = pair(name, mesh)
    theirs, ours = gradients(alone, None, name), gradients(model, mesh, name)
    assert model.local is not None
    return not near(ours[part], rows_of(theirs[part], model.local.part(part)), 1e-3)


def the_comparison_sees_what_is_forgotten(mesh: Mesh) -> None:
    """Each of these is silent: the loss falls all the same. The comparison of gradients must tell."""
    norm = "decoder.layers.0.attention.q_norm.weight"
    assert not _wrong("qwen3", mesh, norm)
    with mock.patch(f"{__name__}.add_up_gradients"):
        assert _wrong("qwen3", mesh, norm)

    def forward_only(ranks: Any, mean: Tensor) -> Tensor:
        total: Tensor = ranks(mean)
        return total / ranks.count

    weight = "decoder.layers.0.attention.qkv.q.weight"
    assert not _wrong("olmo2", mesh, weight)
    with mock.patch.object(tensor.Ranks, "across", forward_only):
        assert _wrong("olmo2", mesh, weight)
    with mock.patch.object(tensor.Ranks, "enter", lambda ranks, x: x):
        assert _wrong("gpt2", mesh, "decoder.layers.0.attention_norm.weight")


def whole_layers_never_run_compiled(mesh: Mesh) -> None:
    """One compiled call for a layer adds nothing up: wrong tokens without an error, or a crash."""
    alone, model = pair("llama", mesh)
    for each in (alone, model):
        prepare_for_inference(each, "compiled")
    kinds = [[type(module) for module in each.modules()] for each in (alone, model)]
    assert step.FastStack in kinds[0] and step.FastStack not in kinds[1]
    # Even if a stack was made a fast one by someone else.
    assert model.decoder is not None
    model.decoder.__class__ = step.FastStack
    inputs: Any = inputs_of(model.config)
    ours, theirs = (generate(each, **inputs, max_new_tokens=5, eos_ids=[]) for each in (model, alone))
    assert ours.token_ids == theirs.token_ids
    fast = model.decoder
    assert isinstance(fast, step.FastStack) and all(layer.arrays is None for layer in fast.steps)


def rounded_weights_have_one_scale(mesh: Mesh) -> None:
    """A row's scale is that of the whole row, where ranks have some of its columns each."""
    alone, model = pair("t5", mesh)
    for each in (alone, model):
        prepare_for_inference(each, "int8")
    theirs = {name: module for name, module in alone.named_modules() if module in outermost(alone)}
    found = 0
    for name, module in model.named_modules():
        packed, whole_packed = getattr(module, "packed", None), getattr(theirs.get(name), "packed", None)
        if (
            isinstance(module, Linear)
            and isinstance(packed, Int8Weight)
            and module.cut is not None
            and module.cut[0] == 1
        ):
            assert isinstance(whole_packed, Int8Weight) and packed.scales_O is not None
            _, start, stop = module.cut
            assert torch.equal(packed.stored_OI, whole_packed.stored_OI[:, start:stop])
            assert torch.equal(packed.scales_O, whole_packed.scales_O)  # type: ignore[arg-type]
            assert packed.bias_O is None
            found += 1
    assert found == 10  # attention's and the FFN's outputs of two stacks, and cross-attention's


def copies_talk_in_the_same_group(mesh: Mesh) -> None:
    import copy

    alone, model = pair("bert", mesh)
    inputs = inputs_of(model.config)
    assert near(copy.deepcopy(model)(**inputs).logits, alone(**inputs).logits)


def attentions_and_head_masks_are_of_all_heads(mesh: Mesh) -> None:
    for name in ("llama", "t5", "deberta", "whisper"):
        alone, model = pair(name, mesh)
        inputs, stack = inputs_of(model.config), alone.config.main_stack
        mask = torch.tensor([[1.0, 0.0, 1.0, 0.5], [0.0, 1.0, 1.0, 1.0]])
        heads = {"decoder_head_mask": mask, "cross_head_mask": mask.flip(1)} if alone.encoder and alone.decoder else {}
        ours, theirs = (each(**inputs, head_mask=mask, **heads, output_attentions=True) for each in (model, alone))
        assert near(ours.logits, theirs.logits), name
        for kind in ("attentions", "cross_attentions"):
            pairs = zip(getattr(ours, kind) or (), getattr(theirs, kind) or (), strict=True)
            for own, other in pairs:
                assert own.size(1) == stack.num_heads and near(own, other), (name, kind)


def ids_are_checked_against_all_words(mesh: Mesh) -> None:
    from plainformer.errors import InputError

    alone, model = pair("llama", mesh)
    ids = torch.tensor([[102, 51, 52, 0]])
    assert near(model(ids).logits, alone(ids).logits)
    assert torch.equal(model.embed_tokens(ids), alone.embed_tokens(ids))
    try:
        model(torch.tensor([[103]]))
    except InputError as error:
        assert "0 to 102" in str(error)
    else:
        raise AssertionError("103 is not a word")


def losses_in_chunks_read_all_words(mesh: Mesh) -> None:
    """The fused loss multiplies by `head.out.weight` itself, which is some rows of it here."""
    alone, model = pair("llama", mesh)
    states = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40, 47)
    for chunk in (0, 3):
        found = []
        for each in (model, alone):
            x = states.clone().requires_grad_()
            losses = word_losses(each, x, labels, chunk=chunk)
            losses.sum().backward()
            found.append((losses, x.grad))
        for ours, theirs in zip(*found, strict=True):
            assert ours is not None and theirs is not None and near(ours, theirs), chunk


def feed_forward_chunks_and_recomputed_layers(mesh: Mesh) -> None:
    alone, model = pair("gpt2", mesh)
    theirs = gradients(alone, None, "gpt2")
    set_ffn_chunk_size(model, 2)
    for layers in ("none", "all"):
        set_checkpointing(model, layers)  # type: ignore[arg-type]
        set_dropout(model, 0.0)
        model.train()
        for own, ours in gradients(model, mesh, "gpt2").items():
            assert model.local is not None
            assert near(ours, rows_of(theirs[own], model.local.part(own)), 1e-4), (layers, own)


@contextmanager
def _masks() -> Iterator[list[Tensor]]:
    """Record what dropout leaves of ones of the shapes that it is given."""
    found: list[Tensor] = []
    plain = torch.nn.functional.dropout

    def recorded(x: Tensor, p: float = 0.5, *args: Any, **named: Any) -> Tensor:
        mask = plain(torch.ones_like(x), p)
        found.append(mask.detach())
        return x * mask

    with mock.patch("torch.nn.functional.dropout", recorded):
        yield found


def own_units_are_dropped_apart_and_all_else_alike(mesh: Mesh) -> None:
    for name in ("gemma2", "whisper", "deberta"):
        _, model = pair(name, mesh, drops=True)
        set_dropout(model, 0.4)
        model.train()
        torch.manual_seed(7)
        with _masks() as masks:  # attentions are asked for because a fused kernel draws inside
            output = model(**inputs_of(model.config), output_attentions=True)
        assert same_everywhere(output.last_hidden_state, mesh), name
        width, units = model.config.main_stack.hidden_size, model.config.main_stack.ffn_size // mesh.layout.tp
        assert sum(mask.dim() == 4 for mask in masks) == (6 if name == "whisper" else 2), name
        for mask in masks:
            if mask.dim() == 3 and mask.size(-1) == width:
                assert same_everywhere(mask, mesh), (name, mask.shape)
            elif mask.dim() == 4 or mask.size(-1) == units:
                assert not same_everywhere(mask, mesh), (name, mask.shape)
        assert same_everywhere(torch.rand(3), mesh), "what is drawn afterwards"
        # A layer that runs again for its gradient drops what it has dropped.
        found = []
        for layers in ("none", "all"):
            set_checkpointing(model, layers)  # type: ignore[arg-type]
            torch.manual_seed(7)
            found.append(gradients(model, mesh, name))
        for own, ours in found[0].items():
            assert near(found[1][own], ours), (name, own)


def adapters_are_those_of_one_process(mesh: Mesh) -> None:
    for name in ("llama", "gpt2", "t5"):
        alone, model = pair(name, mesh)
        table = table_for(alone.config)
        for each in (alone, model):
            add_adapters(each, table, LoraConfig(rank=4, targets=["all-linear"]))
        _fill(alone)
        _fill(model)
        inputs = inputs_of(alone.config)
        assert near(model(**inputs).logits, alone(**inputs).logits), name
        theirs, ours = gradients(alone, None, name), gradients(model, mesh, name)
        assert ours.keys() == theirs.keys() and ours
        largest = max(float(g.abs().max()) for g in theirs.values())
        for own in theirs:
            assert float((ours[own] - theirs[own]).abs().max()) <= CLOSE * largest, (name, own)
        merge_adapters(alone)
        merge_adapters(model)
        assert model.local is not None
        values = dict(alone.named_parameters())
        for own, parameter in model.named_parameters():
            part = model.local.part(own)
            assert near(parameter, rows_of(values[part.name], part)), (name, own)
        _rows_draw_apart(name, mesh, table)


def _fill(model: Transformer) -> None:
    generator = torch.Generator().manual_seed(5)
    adapters = [linear.adapter for _, linear in adapted(model)]
    for low in dict.fromkeys(each.low for each in adapters if isinstance(each, Adapter)):
        low.b.data.normal_(0, 0.1, generator=generator)


def _rows_draw_apart(name: str, mesh: Mesh, table: Any) -> None:
    """An adapter's dropout is of its input: a rank's own units before a linear of some columns, else common."""
    _, model = pair(name, mesh)
    add_adapters(model, table, LoraConfig(rank=4, dropout=0.5, targets=["all-linear"]))
    for own, linear in adapted(model):
        assert isinstance(linear.adapter, Adapter)
        assert (linear.adapter.draws is not None) == (own.endswith((".out", ".down"))), own


def documents_in_rows(mesh: Mesh) -> None:
    ids = torch.randint(3, 103, (2, 9), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, -1], [0, 0, 0, 0, 0, 1, 1, 1, 1]])
    for name in ("llama", "bert", "gemma2"):
        alone, model = pair(name, mesh)
        ours, theirs = (each(ids, document_ids=documents).logits for each in (model, alone))
        real = documents >= 0
        assert near(ours[real], theirs[real]), name


TRAPS: list[Callable[[Mesh], None]] = [
    the_comparison_sees_what_is_forgotten,
    whole_layers_never_run_compiled,
    rounded_weights_have_one_scale,
    copies_talk_in_the_same_group,
    attentions_and_head_masks_are_of_all_heads,
    ids_are_checked_against_all_words,
    losses_in_chunks_read_all_words,
    feed_forward_chunks_and_recomputed_layers,
    own_units_are_dropped_apart_and_all_else_alike,
    adapters_are_those_of_one_process,
    documents_in_rows,
]
