"""The program's log: JSON lines on standard output, one fact a line, never a picture."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime

log = logging.getLogger("animl_pipeline.serve")


class JsonLines(logging.Formatter):
    """A log record as one JSON line; a traceback becomes its last line and where it was raised."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {name: value for name, value in getattr(record, "facts", {}).items() if value is not None}
        if record.exc_info and record.exc_info[1]:
            line["exception"] = self.formatException(record.exc_info)[-2000:]
        return json.dumps(line, default=str)


def note(event: str, *, level: int = logging.INFO, **facts: object) -> None:
    """Write one line: what happened, and its facts by name."""
    log.log(level, event, extra={"facts": facts})


def milliseconds_since(started: float) -> float:
    """Milliseconds since a ``time.monotonic()``."""
    return round((time.monotonic() - started) * 1000, 1)


def begin_journal() -> None:
    """Send this process's whole log to standard output as JSON lines (called once, by the program's main)."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
