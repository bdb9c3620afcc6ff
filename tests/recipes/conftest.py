"""The scripts beside the recipes import each other as scripts do: their folder is on the path."""

import sys

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "recipes"))
