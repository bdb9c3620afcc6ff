"""Generation: the cache, picking the next token, and when to stop.

`plainformer.generate` is both this package and the function `plainformer.generate.search.generate`: Python puts a package's
name on its parent once anything in it is imported, so the package itself answers a call.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """`plainformer.generate.search.generate`."""
        # By name: an import statement here would make everything in the package depend on search, and search on that.
        return import_module("plainformer.generate.search").generate(*args, **options)


sys.modules[__name__].__class__ = _Callable
