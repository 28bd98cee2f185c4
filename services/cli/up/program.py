"""A program of a run: what to start, and the running child that comes of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import TributaryError
from common.niceness import share_with_group


@dataclass(frozen=True, slots=True)
class Program:
    """What to start. may_end: a clean exit is its end, not its death. last: stopped only after everything else.

    nice: by how much it stands back for others where processors are short.
    """

    name: str
    role: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    may_end: bool = False
    last: bool = False
    nice: int = 0


class Child:
    """One running program, in a session of its own: the terminal's Ctrl-C passes it by, and all of it can be found."""

    def __init__(self, program: Program, now_s: float) -> None:
        self.program = program
        self.started_s = now_s
        self.died_s: float | None = None
        self.ready = False
        program.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with program.log.open("ab") as log:
                self.log_start = log.tell()
                self._process = subprocess.Popen(
                    program.command,
                    env=dict(program.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise TributaryError(f"{program.name} cannot be started: {program.command[0]}: {error.strerror}") from error
        if program.nice:
            _stand_back(self.pid, program.nice)

    @property
    def pid(self) -> int:
        """Its process id, which is the id of its session and process group too."""
        return self._process.pid

    def exit_code(self, now_s: float) -> int | None:
        """How it ended (negative: by that signal); None while it runs."""
        code = self._process.poll()
        if code is not None and self.died_s is None:
            self.died_s = now_s
        return code

    def terminate(self) -> None:
        """Ask it to stop. Only itself: an engine core that is asked beside it would drop the requests it works on."""
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGTERM)


def _stand_back(pid: int, nice: int) -> None:
    """Have a process that was just started, and all that it will start, stand back where processors are short."""
    with suppress(OSError):  # it ended, or the system does not let us: then it competes like anyone else
        os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice))
        share_with_group(pid)


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
