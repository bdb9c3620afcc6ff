"""The log on stderr: a line for each request, as text or JSON. No prompt, answer, key or address of a client is in it."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

logger = logging.getLogger("plainformer.serve")


class JsonLines(logging.Formatter):
    """Each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": _clock(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        said.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0] is not None:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


class TextLines(logging.Formatter):
    """Each record as a line for people."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_clock(record.created)} {record.levelname.lower()} {record.getMessage()}"
        return (
            f"{line}\n{self.formatException(record.exc_info)}"
            if record.exc_info and record.exc_info[0] is not None
            else line
        )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


def set_up(kind: str) -> None:
    """Write the log to stderr, "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers[:] = [handler]
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).propagate = False


def answered(passed: Any, model: str) -> None:
    """Log a request that has ended. Other paths are not repeated: they may hold anything."""
    fields = {
        "request": passed.id,
        "method": passed.method if passed.method.isalpha() else "?",
        "route": passed.route or "unknown",
        "status": passed.status,
        "ms": round(passed.seconds * 1000, 1),
        **({"model": model} if model else {}),
    }
    logger.info("%s", " ".join(f"{name}={value}" for name, value in fields.items()), extra={"fields": fields})
