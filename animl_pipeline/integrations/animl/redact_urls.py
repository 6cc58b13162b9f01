"""Signed addresses stay out of other libraries' logs."""

from __future__ import annotations

import logging


def hide_signatures() -> None:
    """Cut the query off every address that urllib3 logs from now on: with it, anyone could read the export for an hour."""
    log = logging.getLogger("urllib3.connectionpool")
    if not any(isinstance(f, _WithoutQuery) for f in log.filters):
        log.addFilter(_WithoutQuery())


class _WithoutQuery(logging.Filter):
    """Changes records, keeps all of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
        return True
