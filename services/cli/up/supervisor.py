"""The supervisor: starts programs, starts those again that die, gives up when that is pointless, and stops them all.

It never waits: `tick` looks once and acts. Only `stop` takes time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from common.errors import TributaryError
from services.cli.up import process_table
from services.cli.up.program import Child, Program, describe_exit

DEATHS_ALLOWED = 5
DEATHS_WINDOW_S = 60.0
FALSE_STARTS_ALLOWED = 3
LONGEST_WAIT_S = 8.0
UNUSABLE_SETTINGS = 2

STOP_S = 5.0
STOP_LAST_S = 2.0
_STRAY_S = 0.5
_KILLED_S = 5.0
_LOOK_S = 0.05

log = logging.getLogger(__name__)


class State(StrEnum):
    """What became of a program."""

    STARTED = "started"
    DIED = "died"
    RESTARTED = "restarted"
    ENDED = "ended"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to a program, for the terminal and the event log."""

    program: Program
    state: State
    detail: str


class GaveUp(TributaryError):
    """A program cannot be kept running. Its last words stand in its log after byte `log_start`."""

    def __init__(self, child: Child, sentence: str, *, unusable: bool = False) -> None:
        self.program = child.program
        self.log_start = child.log_start
        self.unusable = unusable
        super().__init__(sentence)


@dataclass(slots=True)
class Deaths:
    """When one program died lately, and how often in a row it did so before it was ready."""

    recent_s: deque[float] = field(default_factory=deque[float])
    false_starts: int = 0

    def record(self, now_s: float, was_ready: bool) -> None:
        """Note a death."""
        self.recent_s.append(now_s)
        while self.recent_s[0] <= now_s - DEATHS_WINDOW_S:
            self.recent_s.popleft()
        self.false_starts = 0 if was_ready else self.false_starts + 1

    @property
    def verdict(self) -> str:
        """Why starting it once more is pointless; "" while it is not."""
        if len(self.recent_s) > DEATHS_ALLOWED:
            return f"it died {len(self.recent_s)} times within {DEATHS_WINDOW_S:.0f} s"
        if self.false_starts >= FALSE_STARTS_ALLOWED:
            return f"it died {self.false_starts} times in a row before it was ready"
        return ""

    @property
    def wait_s(self) -> float:
        """How long to wait before it is started again: longer with every recent death."""
        return min(0.5 * 2.0 ** (len(self.recent_s) - 1), LONGEST_WAIT_S)


Tell = Callable[[Change], None]


class Supervisor:
    """Keeps programs running. `tell` hears of every change; `clock` gives seconds; `mark` finds strays at the end.

    mark: an environment variable and value that every child inherits.
    """

    def __init__(self, tell: Tell, clock: Callable[[], float], mark: tuple[str, str]) -> None:
        self._tell = tell
        self._clock = clock
        self._mark = mark
        self._children: dict[str, Child] = {}
        self._deaths: dict[str, Deaths] = {}
        self._due_s: dict[str, float] = {}
        self._ended: set[str] = set()
        self.restarts = 0

    def add(self, program: Program) -> None:
        """Start a program and keep it running from now on. One that has ended can be added anew."""
        self._ended.discard(program.name)
        self._deaths[program.name] = Deaths()
        self._children[program.name] = Child(program, self._clock())
        self._tell(Change(program, State.STARTED, f"process {self._children[program.name].pid}"))

    def pid(self, name: str) -> int:
        """The process id that a program has now, or had last."""
        return self._children[name].pid

    def mark_ready(self, name: str, pid: int) -> bool:
        """Note that a program works. True if that is news; a process of earlier days is not believed."""
        child = self._children.get(name)
        if child is None or child.ready or not _is_of(child, pid):
            return False
        child.ready = True
        return True

    def confirm(self, name: str) -> None:
        """Note that a program works whose process id nobody tells, if it is one of ours."""
        if name in self._children:
            self.mark_ready(name, self._children[name].pid)

    def waiting_for(self) -> list[str]:
        """The programs that are not ready yet."""
        return [name for name, child in self._children.items() if not child.ready and name not in self._ended]

    def ended(self, name: str) -> bool:
        """Whether a program that may end has ended."""
        return name in self._ended

    def revive(self, name: str) -> None:
        """Start a program again that ended before its time."""
        self._ended.discard(name)
        self._due_s[name] = self._clock()

    def sessions(self) -> list[int]:
        """The ids of the sessions of all programs."""
        return [child.pid for child in self._children.values()]

    def tick(self) -> None:
        """Look at every program once: note deaths, start what is due. GaveUp if one cannot be kept running."""
        for name, child in list(self._children.items()):
            if name in self._ended:
                continue
            if name in self._due_s:
                self._restart_if_due(name, child.program)
            elif (code := child.exit_code(self._clock())) is not None:
                process_table.kill(process_table.members([child.pid]))
                self._bury(child, code)

    def _bury(self, child: Child, code: int) -> None:
        """Decide what follows from the end of a program."""
        program = child.program
        if code == 0 and program.may_end:
            self._ended.add(program.name)
            self._tell(Change(program, State.ENDED, describe_exit(code)))
            return
        deaths = self._deaths[program.name]
        deaths.record(self._clock(), child.ready)
        self._tell(Change(program, State.DIED, describe_exit(code)))
        if code == UNUSABLE_SETTINGS:
            raise GaveUp(child, f"{program.name} cannot use its settings", unusable=True)
        if deaths.verdict:
            raise GaveUp(child, f"{program.name} is given up: {deaths.verdict} (last: {describe_exit(code)})")
        self._due_s[program.name] = self._clock() + deaths.wait_s

    def _restart_if_due(self, name: str, program: Program) -> None:
        if self._clock() < self._due_s[name]:
            return
        del self._due_s[name]
        self._children[name] = Child(program, self._clock())
        self.restarts += 1
        self._tell(Change(program, State.RESTARTED, f"process {self._children[name].pid}"))

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop every program, those marked `last` after the others. Nothing of them is left when this returns.

        Programs get STOP_S seconds to end by themselves, the last ones STOP_LAST_S; `hurry` cuts that short. Only what
        is killed and still there _KILLED_S later (the kernel holds it, or it is not ours to kill) is left, and named in
        a warning.
        """
        children = list(self._children.values())
        await self._end([child for child in children if not child.program.last], STOP_S, hurry)
        await self._end([child for child in children if child.program.last], STOP_LAST_S, hurry)
        await self._kill(lambda: process_table.marked(*self._mark))

    async def _end(self, children: list[Child], patience_s: float, hurry: asyncio.Event) -> None:
        """Ask children to stop, and kill what is left of their sessions when patience is at its end."""
        sessions = [child.pid for child in children]
        for child in children:
            if child.exit_code(self._clock()) is None:
                child.terminate()
        deadline_s = self._clock() + patience_s
        while self._clock() < deadline_s and not hurry.is_set():
            codes = [child.exit_code(self._clock()) for child in children]
            left = process_table.members(sessions)
            if not left and None not in codes:
                return
            orphaned = [c.pid for c in children if c.died_s is not None and self._clock() - c.died_s > _STRAY_S]
            process_table.kill(process_table.members(orphaned))
            await asyncio.sleep(_LOOK_S)
        for child in children:
            if child.exit_code(self._clock()) is None:
                self._tell(Change(child.program, State.KILLED, f"it did not stop within {patience_s:.0f} s"))
        await self._kill(lambda: process_table.members(sessions))
        for child in children:
            child.exit_code(self._clock())

    async def _kill(self, find: Callable[[], list[int]]) -> None:
        """Kill what is found until nothing is, and wait until all of it has gone: killed, it may still be on its way.

        Who loses its parent on that way would not be found again, hence the memory. After _KILLED_S seconds what is
        still there is given up, with a warning.
        """
        deadline_s, doomed = self._clock() + _KILLED_S, set[int]()
        while (doomed := process_table.living(doomed) | set(find())) and self._clock() < deadline_s:
            process_table.kill(doomed)
            await asyncio.sleep(_LOOK_S)
        if doomed:
            pids = ", ".join(map(str, sorted(doomed)))
            log.warning("still there %g s after it was first killed, and left: process %s", _KILLED_S, pids)


def _is_of(child: Child, pid: int) -> bool:
    """Whether a process is a child of ours, or one that it started and speaks through."""
    return pid == child.pid or pid in process_table.members([child.pid])
