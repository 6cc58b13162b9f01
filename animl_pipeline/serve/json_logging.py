"""The program's log: one JSON object per line on standard output, never an image."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime

log = logging.getLogger("animl_pipeline.serve")

MAX_TRACEBACK = 2000
"""Characters of a traceback that a log line keeps, counted from its end."""


class JsonFormatter(logging.Formatter):
    """Formats a log record as one JSON line, with the end of its traceback if it has one."""

    def format(self, record: logging.LogRecord) -> str:
        """The JSON line."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {name: value for name, value in getattr(record, "facts", {}).items() if value is not None}
        if record.exc_info and record.exc_info[1]:
            line["exception"] = self.formatException(record.exc_info)[-MAX_TRACEBACK:]
        return json.dumps(line, default=str)


def start_json_log() -> None:
    """Send all logs of this process to standard output as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every malformed body, which gets status 400 anyway


def log_event(event: str, *, level: int = logging.INFO, **facts: object) -> None:
    """Log one line: an event and its facts by name."""
    log.log(level, event, extra={"facts": facts})


def milliseconds_since(started: float) -> float:
    """Milliseconds since a ``time.monotonic()``."""
    return round((time.monotonic() - started) * 1000, 1)
