"""What memory a model needs, counted from its configuration alone, by device and phase. No torch.

`plainformer.plan(ref)` plans: Python gives the name `plan` to this package as soon as a part of it is imported, so the package
itself is what is called. See `plainformer.planning.plan`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plainformer.plan.fitted import Fitted
    from plainformer.plan.planned import Plan


class _Called(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Plan | Fitted:
        """Return what a model needs, or what fits: `plainformer.planning.plan`."""
        from plainformer.planning import plan

        return plan(*arguments, **options)


sys.modules[__name__].__class__ = _Called
