"""Niceness where Linux groups processes by session (autogroup): between two sessions only the groups' values count.

A group begins with niceness 0, however nice the process is that begins it. So a program that stands back for others, in
a session of its own, has to say so for its group too.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_GROUP = "/proc/{pid}/autogroup"
_PATIENCE_S = 2.0
_LOOK_S = 0.02


def share_with_group(pid: int) -> None:
    """Give a session's group the niceness of the process that leads it; one that leads none changes nothing.

    Where there are no groups, nothing happens. Linux lets all ordinary users together do this ten times a second, so it
    is tried again for a moment.
    """
    with suppress(OSError):  # no groups here, or the process is gone
        if os.getsid(pid) != pid:
            return
        group, deadline_s = Path(_GROUP.format(pid=pid)), time.monotonic() + _PATIENCE_S
        while not _wrote(group, os.getpriority(os.PRIO_PROCESS, pid)) and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)


def _wrote(group: Path, niceness: int) -> bool:
    """Whether the kernel took the value, or else wants to be asked again."""
    try:
        with group.open("r+") as file:  # never makes the file
            file.write(str(niceness))
    except BlockingIOError:
        return False
    return True
