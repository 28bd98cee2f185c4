"""Structured logs: one JSON object a line on standard error, each with run, process, revision and weight version."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object. `context` supplies the fields that every line carries."""

    def __init__(self, context: Callable[[], Mapping[str, Any]]) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "at_s": round(record.created, 3),
            "level": record.levelname.lower(),
            **self._context(),
            "message": record.getMessage(),
            "logger": record.name,
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, default=str)


def configure(context: Callable[[], Mapping[str, Any]], level: str = "INFO") -> None:
    """Send every log record of this process to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(context))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    for chatty in ("httpx", "httpcore", "filelock", "datasets", "urllib3", "fsspec"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
