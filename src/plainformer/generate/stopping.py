"""When generation ends, and why."""

from __future__ import annotations

from typing import Literal

StopReason = Literal["eos", "length"]
