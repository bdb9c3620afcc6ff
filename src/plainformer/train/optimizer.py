"""AdamW over groups of parameters, the norm of gradients, and an average of the weights.

Whatever must outlive the process is tensors by the names of parameters: no pickle, and nothing that depends on their order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from plainformer.config.training import OptimizerConfig
from plainformer.config.values import no_effect
from plainformer.errors import CheckpointError, UsageError, opt
from plainformer.model.empty import Embedding
from plainformer.model.linear import Linear
from plainformer.model.lora import LowRank
from plainformer.model.transformer import Transformer
from plainformer.parallel.gather import Share, local_of
from plainformer.parallel.sync import is_divided

STATE = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of each parameter
_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are not frozen, by name; tied ones once, by the first of their names."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def decays(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is pulled towards zero: matrices and tables are, biases (of attention too) and norms not."""
    return parameter.ndim > 1 and "bias" not in name.split(".")


def depth(model: Transformer, name: str) -> int:
    """Return how many levels a parameter is below the head: 0 for the head, 1 for the last layer, most for embeddings.

    The encoder of an encoder-decoder is below its decoder. What several layers share, such as a table of relative
    positions, is as deep as the embeddings of its stack; a final norm goes with what reads it.
    """
    encoder = len(model.encoder.layers) if model.encoder is not None else 0
    decoder = len(model.decoder.layers) if model.decoder is not None else 0
    found = _LAYER.search(name)
    if found is not None:
        level = 1 + int(found[2]) + (encoder if found[1] == "decoder" else 0)
    elif name.startswith("encoder.norm."):
        level = encoder + 1
    elif name.startswith("encoder."):
        level = 0
    elif name.startswith("decoder.") and not name.startswith("decoder.norm."):
        level = encoder
    else:
        level = encoder + decoder + 1
    return encoder + decoder + 1 - level


def shrinks(model: nn.Module) -> set[str]:
    """Return the names of trained parameters that `optimizer.l1` makes sparse.

    They are the matrices of linear layers, convolutions and adapters. Tables of embeddings are none of them, nor is an output
    layer that is one: an L1 penalty would take away the vectors of rare words, whose gradients are nearly always 0.
    """
    modules = list(model.modules())
    tables = {id(module.weight) for module in modules if isinstance(module, Embedding)}
    made = (Linear, nn.Conv1d, nn.Conv2d, LowRank)
    inside = {id(p) for module in modules if isinstance(module, made) for p in module.parameters(recurse=False)}
    found = trained(model).items()
    return {name for name, p in found if decays(name, p) and id(p) in inside and id(p) not in tables}


def make_optimizer(
    model: Transformer,
    config: OptimizerConfig,
    learning_rate: float,
    *,
    fused: bool = True,
    keeps: Callable[[str], bool] = lambda name: True,
) -> AdamW:
    """Return AdamW over what is trained, in one group for each pair of decay and rate.

    Each group has `share`, its rate as a share of the peak: `layer_decay` to the power of its depth; and `sparse`, those of
    its parameters that `shrink` makes so, by `l1`. `keeps`: whether a parameter's states are kept here, by its name; other
    processes take the steps of the others. A stage of a pipeline may have nothing to train, and then has an empty group.
    Raises UsageError if everything is frozen, or nothing is for `l1`.
    """
    groups: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    sparse = shrinks(model) if config.l1 else set()
    for name, parameter in trained(model).items():
        share = 1.0 if config.layer_decay is None else config.layer_decay ** depth(model, name)
        decay = config.weight_decay if decays(name, parameter) else 0.0
        group = groups.setdefault((decay, share), {})
        if keeps(name):
            group[name] = parameter
    staged = model.local is not None and model.local.layout.pp > 1
    if not groups and not staged:
        raise UsageError("every parameter is frozen, so there is nothing to train", f"give {opt('model.train', 'all')}")
    no_effect(config.l1 > 0 and not sparse and not staged, "optimizer.l1", ": what is trained has no matrix of its own")
    groups = groups or {(0.0, 1.0): {}}
    listed = [
        {
            "params": list(members.values()),
            "weight_decay": decay,
            "share": share,
            "lr": learning_rate * share,
            "l1": config.l1,
            "sparse": [members[name] for name in members if name in sparse],
        }
        for (decay, share), members in groups.items()
    ]
    return AdamW(listed, lr=learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)


def set_learning_rate(optimizer: AdamW, learning_rate: float) -> None:
    """Set the rate of the step to come; groups of lower layers get their share."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["share"]


@torch.no_grad()
def shrink(optimizer: AdamW, skipped: Tensor) -> None:
    """Take the proximal step of the L1 penalty, after the optimizer's own: move each number towards 0, at most to 0.

    The threshold is rate times λ, as the decoupled decay of AdamW is rate times decay: |w| ≤ threshold becomes exactly 0,
    which the gradient of a penalty never gives (Tibshirani 1996; Parikh & Boyd 2014, section 6.5.2). `skipped`, (), is 1
    where the optimizer has skipped its step.
    """
    for group in optimizer.param_groups:
        if group["sparse"]:
            threshold = (group["lr"] * group["l1"] * (1 - skipped.double())).float()
            for parameter in map(local_of, group["sparse"]):
                parameter.sub_(parameter.clamp(-threshold, threshold))


def clip_gradients(optimizer: AdamW, limit: float | None) -> Tensor:
    """Scale all gradients together so that their norm is at most `limit` (None: as they are); return the norm before, ().

    The norm is a tensor: on a GPU nobody waits for it. (Pascanu et al. 2013)
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters])
    if limit is None or (norm.device.type == "cpu" and bool(norm <= limit)):  # on a CPU asking costs less than scaling
        return norm
    clip_grads_with_norm_(parameters, limit, norm)
    return norm


def optimizer_tensors(optimizer: AdamW, model: nn.Module) -> dict[str, Tensor]:
    """Return what the optimizer remembers, as "PARAMETER:exp_avg" and so on; parameters that had no gradient yet have none."""
    return {
        f"{name}:{key}": optimizer.state[parameter][key]
        for name, parameter in trained(model).items()
        if parameter in optimizer.state
        for key in STATE
    }


def load_optimizer_tensors(
    optimizer: AdamW, model: nn.Module, tensors: Mapping[str, Tensor], of: Mapping[str, Share] | None = None
) -> None:
    """Give back what `optimizer_tensors` returned. Raises CheckpointError for a name, a shape or a part that does not fit.

    `of`: what this process has of each parameter; of the states it takes the same. None: all.
    """
    parameters = trained(model)
    names = {of[name].name if of else name: name for name in parameters}
    states: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(":")
        if key not in STATE or (name not in names and of is None):
            raise CheckpointError(f"optimizer state {full!r} is of a parameter that is not trained here", _OTHER)
        if name not in names:  # another process has it
            continue
        own = names[name]
        whole = of[own].shape if of else tuple(parameters[own].shape)
        shape = whole if key != "step" else ()
        if tensor.shape != shape:
            raise CheckpointError(f"optimizer state {full!r} has the shape {tuple(tensor.shape)}, not {shape}", _OTHER)
        states.setdefault(own, {})[key] = of[own].of(tensor) if of and shape else tensor
    for name, state in states.items():
        missing = [key for key in STATE if key not in state]
        if missing:
            raise CheckpointError(f"optimizer state of {name!r} lacks {', '.join(missing)}", _OTHER)
    optimizer.state.clear()
    kept = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    fused = bool(optimizer.defaults["fused"])
    for name, state in states.items():
        parameter = parameters[name]
        if id(parameter) not in kept:  # another process takes its steps (ZeRO-1)
            continue
        # Fused kernels read the number of steps where the parameter is, the others on the CPU.
        device = parameter.device if fused else torch.device("cpu")
        moments = {key: torch.empty_like(parameter, requires_grad=False) for key in STATE[1:]}
        for key, moment in moments.items():
            local_of(moment).copy_(state[key])
        optimizer.state[parameter] = {"step": state["step"].to(device, torch.float32, copy=True), **moments}


_OTHER = "it was saved by a run of another model or other options"


class Average:
    """An exponential moving average of what is trained, in fp32 (Polyak & Juditsky 1992).

    After step n, counted from 1, a weight's average moves by 1 - min(decay, (1 + n) / (10 + n)) of the way to the weight:
    the first steps, which are far from where training ends, are soon forgotten.

    Args:
        sparse: names of parameters whose average is 0 wherever they are: those of `shrinks`.
    """

    def __init__(self, model: nn.Module, decay: float, sparse: Iterable[str] = ()) -> None:
        self.decay = decay
        self.parameters = trained(model)
        self.sparse = sorted(sparse)
        self.averages = {name: p.detach().to(torch.float32, copy=True) for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Move the average towards the weights as they are after this many steps."""
        weight = 1 - min(self.decay, (1 + steps) / (10 + steps))
        weights = [local_of(p.detach()).float() for p in self.parameters.values()]
        torch._foreach_lerp_([local_of(average) for average in self.averages.values()], weights, weight)
        for name in self.sparse:
            local_of(self.averages[name]).mul_(local_of(self.parameters[name]) != 0)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the averages as its weights; afterwards its own again, bit for bit."""
        own = {name: p.data for name, p in self.parameters.items()}
        if any(is_divided(tensor) for tensor in own.values()):
            with self._copied_in():
                yield
            return
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.averages[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]

    @contextmanager
    def _copied_in(self) -> Iterator[None]:
        """The same for weights that FSDP has divided: it remembers where its shards are."""
        shards = {name: local_of(p.detach()) for name, p in self.parameters.items()}
        own = {name: shard.clone() for name, shard in shards.items()}
        try:
            for name, shard in shards.items():
                shard.copy_(local_of(self.averages[name]))
            yield
        finally:
            for name, shard in shards.items():
                shard.copy_(own[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by the names of parameters."""
        return dict(self.averages)

    def load(self, tensors: Mapping[str, Tensor], of: Mapping[str, Share] | None = None) -> None:
        """Give back what `tensors` returned; `of` is as for `load_optimizer_tensors`. Raises CheckpointError."""
        if of is not None:
            found = {name: tensors[of[name].name] for name in self.averages if of[name].name in tensors}
            _check_names(found, {name: torch.empty(of[name].shape, device="meta") for name in self.averages})
            tensors = {name: of[name].of(tensor) for name, tensor in found.items()}
        else:
            _check_names(tensors, self.averages)
        for name, average in self.averages.items():
            local_of(average).copy_(tensors[name])


def _check_names(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in _first(given.keys() ^ wanted.keys()):
        what = "is missing" if name in wanted else "is of a parameter that is not trained here"
        raise CheckpointError(f"the average of {name!r} {what}", _OTHER)
    for name in _first(name for name in wanted if given[name].shape != wanted[name].shape):
        found, shape = tuple(given[name].shape), tuple(wanted[name].shape)
        raise CheckpointError(f"the average of {name!r} has the shape {found}, not {shape}", _OTHER)


def _first(names: Iterable[str]) -> list[str]:
    return sorted(names)[:1]
