"""A model and its gradients, as a layout divides them.

The order is that of what wraps what: a pipeline cuts the model, tensor parallel is installed inside its layers, then comes what
runs a layer again for its gradient, then what compiles it, and data parallel is outermost: `cut`, `parallelize`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plainformer.config.local import local
from plainformer.model.recompute import set_checkpointing
from plainformer.model.transformer import Transformer
from plainformer.parallel.data import Gradients, Replicated, Sharded, make_sharded
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.pipeline import connect


@torch.no_grad()
def cut(model: Transformer, mesh: Mesh) -> Transformer:
    """Return what a rank has of a whole model, copied out of it, in training mode; the model itself where that is all.

    Tensor parallel is installed in it: adapters may follow.
    """
    if mesh.tp is None and mesh.pp is None:
        return model
    here = local(model.config, mesh.layout, mesh.rank)
    part = Transformer(model.config, here).to_empty(device=model.device).to(model.dtype)
    whole: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in part.named_parameters():
        about = here.parts[name]
        value: Tensor = whole[about.name]
        if about.dim is not None:
            value = value.narrow(about.dim, about.start, about.stop - about.start)
        parameter.copy_(value)
        parameter.requires_grad_(whole[about.name].requires_grad)
    return connect(_with_tensor_parallel(part.train(), mesh), mesh)


def _with_tensor_parallel(model: Transformer, mesh: Mesh) -> Transformer:
    if mesh.tp is None:
        return model
    from plainformer.parallel.tensor import make_tensor_parallel

    return make_tensor_parallel(model, mesh)


def parallelize(
    model: Transformer,
    mesh: Mesh,
    *,
    checkpointing: str | int = "none",
    compiled: Callable[[Transformer], None] | None = None,
) -> Gradients:
    """Divide a model in place, as `mesh.layout` says, and return what brings the ranks' gradients together.

    Args:
        model: on its device; what `cut` gave, or built from this rank's `Local`.
        checkpointing: as `set_checkpointing` takes it. compiled: compiles the layers, in place; None: nothing does.
    Raises:
        UsageError: the layout cannot train this model.
    """
    _with_tensor_parallel(model, mesh)
    set_checkpointing(model, checkpointing)  # type: ignore[arg-type]  # checked by the configuration
    if compiled is not None:
        compiled(model)
    if mesh.world is None:
        return Gradients()
    if mesh.dp is None:
        return Gradients(model, mesh)
    if mesh.layout.zero >= 2:
        return Sharded(make_sharded(model, mesh), mesh)
    return Replicated(model, mesh)
