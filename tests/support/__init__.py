"""What several test modules share: makers of tiny models, tokenizers and inputs, the parity harness, the command line."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
