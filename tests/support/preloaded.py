"""What the server imports last, from which ranks are forked: modules that the library imports when it first needs them.

All that is there then is left out of garbage collections: a rank's first would read, and so copy, the server's whole memory.
"""

from __future__ import annotations

import gc
from importlib import import_module
from pkgutil import iter_modules

PACKAGES = ("families", "generation.modes", "inputs.text", "train.objectives")

for package in PACKAGES:
    for module in iter_modules(import_module(f"plainformer.{package}").__path__):
        import_module(f"plainformer.{package}.{module.name}")
gc.collect()
gc.freeze()
