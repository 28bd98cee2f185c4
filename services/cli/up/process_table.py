"""The kernel's process table, as far as it concerns a run: who is left of a session, and how much memory is in use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_DEAD = ("Z", "X")


@dataclass(frozen=True, slots=True)
class Entry:
    """One live process: its id, its parent's id, and the session it belongs to."""

    pid: int
    parent: int
    session: int


def entries() -> list[Entry]:
    """Every live process of this machine. One that ends while we look is left out."""
    found: list[Entry] = []
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # The name, in parentheses, may hold anything; what follows it is regular: state parent group session.
                state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if state not in _DEAD:
                    found.append(Entry(int(folder.name), int(parent), int(session)))
    return found


def members(sessions: Iterable[int]) -> list[int]:
    """The ids of the live processes that belong to one of these sessions, or to one that was begun from there."""
    wanted, table = set(sessions), entries()
    while True:
        found = [entry.pid for entry in table if entry.session in wanted]
        begun = {entry.session for entry in table if entry.parent in found} - wanted
        if not begun:
            return found
        wanted |= begun


def living(pids: Iterable[int]) -> set[int]:
    """Those of these processes that live."""
    return {entry.pid for entry in entries()} & set(pids)


def marked(variable: str, value: str) -> list[int]:
    """The ids of the live processes that were started with this environment variable, whatever session they are in."""
    mark = f"{variable}={value}".encode()
    found: list[int] = []
    for entry in entries():
        with suppress(OSError):
            if mark in (_PROC / str(entry.pid) / "environ").read_bytes().split(b"\0"):
                found.append(entry.pid)
    return found


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to processes; those that are gone already are no trouble."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory that these processes use together, shared pages counted once (PSS)."""
    return sum(_memory_bytes(pid) for pid in pids)


def _memory_bytes(pid: int) -> int:
    with suppress(OSError, ValueError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, IndexError):
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
