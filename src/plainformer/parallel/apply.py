"""A model and its gradients, as a layout divides them: `parallelize`.

The order is that of what wraps what: tensor parallel inside a layer, then what runs it again for its gradient, then what
compiles it, and data parallel outermost. A pipeline has cut the model before.
"""

from __future__ import annotations

from collections.abc import Callable

from plainformer.model.transformer import Transformer
from plainformer.parallel.data import Gradients, Replicated, Sharded, make_sharded
from plainformer.parallel.mesh import Mesh


def parallelize(
    model: Transformer,
    mesh: Mesh,
    *,
    checkpointing: str | int = "none",
    compiled: Callable[[Transformer], None] | None = None,
) -> Gradients:
    """Divide a model in place, as `mesh.layout` says, and return what brings the ranks' gradients together.

    Args:
        model: on its device, built from this rank's `Local` where the layout has tensor or pipeline parallel.
        checkpointing: as `set_checkpointing` takes it. compiled: compiles the layers, in place; None: nothing does.
    Raises:
        UsageError: the layout cannot train this model.
    """
    from plainformer.model.recompute import set_checkpointing

    if mesh.tp is not None:
        from plainformer.parallel.tensor import make_tensor_parallel

        make_tensor_parallel(model, mesh)
    set_checkpointing(model, checkpointing)  # type: ignore[arg-type]  # checked by the configuration
    if compiled is not None:
        compiled(model)
    if mesh.dp is None:
        return Gradients(model, mesh)
    if mesh.layout.zero >= 2:
        return Sharded(make_sharded(model, mesh), mesh)
    return Replicated(model, mesh)
