"""What a fresh interpreter does."""

from __future__ import annotations

import subprocess
import sys


def modules_after(code: str) -> set[str]:
    """Top-level modules that are loaded once `code` has run in a fresh interpreter."""
    shown = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())
