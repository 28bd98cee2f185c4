"""The end of a program's log, as a person wants to read it."""

from __future__ import annotations

import json
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_LONGEST = 600
_ERROR = "error: "


def last_lines(path: Path, count: int, start: int = 0) -> list[str]:
    """The last lines of a log that were written after byte `start`; JSON records are shown as their message."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [shown for line in text.splitlines() if (shown := _readable(line))]
    return lines[-count:]


def reason(path: Path, start: int = 0) -> str:
    """Why a program says that it ended, in what it wrote after byte `start`: its last error, or else its last line."""
    lines = last_lines(path, _TAIL_BYTES, start)
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return [*lines[-1:], *errors[-1:]][-1] if lines else ""


def _readable(line: str) -> str:
    try:
        record = json.loads(line)
        message = str(record["message"])
    except (ValueError, KeyError, TypeError):
        return line.rstrip()[:_LONGEST]
    level = record.get("level", "info")
    error = record.get("exception") or record.get("error")
    reason = f" ({str(error).strip().splitlines()[-1]})" if error else ""
    return f"{'' if level == 'info' else level + ': '}{message}{reason}"[:_LONGEST]
