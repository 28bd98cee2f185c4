"""The clocks of the hint schedules: each follows the learner's steps while its policy is in force.

They are part of the curriculum's state, so a restart finds them where they were. Whatever is edited, a clock never
jumps: its phase is the share of the schedule that is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.config.hints import Hints, ScheduledHint

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Clock:
    """How far one schedule is: `steps` of `pace` after the phase `begun`.

    Steps are counted whole since the pace was set, so that T of them are exactly the schedule.
    """

    begun: float = 0.0
    steps: int = 0
    pace: int = 1

    @property
    def phase(self) -> float:
        """The share of the schedule that is done, from 0 to 1."""
        phase = self.begun + self.steps / self.pace
        return 1.0 if phase > 1.0 - _ROUNDING else phase

    def paced(self, pace: int) -> Clock:
        """The clock at the same phase, going at another pace from here."""
        return self if pace == self.pace else Clock(self.phase, 0, pace)


@dataclass(frozen=True, slots=True)
class Clocks:
    """All clocks of a run. running: the one whose policy is in force, or "". step: the learner's furthest step seen.

    Steps that a learner repeats after it was restored count once: until it is past the furthest, the clock stands.
    """

    by_name: Mapping[str, Clock] = field(default_factory=dict[str, Clock])
    running: str = ""
    step: int | None = None

    def at(self, hints: Hints, step: int) -> Clocks:
        """The clocks once the learner has reached `step`, with `hints` in force from here.

        The steps since the last look belong to the policy that was in force then.
        """
        clocks = dict(self.by_name)
        furthest = step if self.step is None else max(self.step, step)
        if self.running and self.step is not None:
            clock = clocks[self.running]
            clocks[self.running] = Clock(clock.begun, clock.steps + furthest - self.step, clock.pace)
        running = clock_name(hints)
        if isinstance(hints, ScheduledHint):
            clocks[running] = clocks.get(running, Clock(pace=hints.steps)).paced(hints.steps)
        return Clocks(clocks, running, furthest)

    def phase(self, hints: Hints) -> float:
        """Where the schedule of a hint policy is; 0 if it has none, or never was in force."""
        return self.by_name.get(clock_name(hints), Clock()).phase


def clock_name(hints: Hints) -> str:
    """The name of a policy's clock: a policy has one for every value of `restart`. "" if it has no schedule."""
    return f"{hints.kind}:{hints.restart}" if isinstance(hints, ScheduledHint) else ""


def decode_clocks(fields: Mapping[str, Any]) -> Clocks:
    """The clocks in a decoded JSON object; fresh ones if it is empty."""
    by_name = {name: Clock(**clock) for name, clock in fields.get("by_name", {}).items()}
    return Clocks(by_name, fields.get("running", ""), fields.get("step"))
