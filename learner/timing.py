"""The timing of a step: where its seconds went, on the clock of whatever computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import torch


class Stage(StrEnum):
    """A part of a step, in the order of their first turn. transfer: waiting for a micro-batch to reach the device."""

    PACK = "pack"
    TRANSFER = "transfer"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


@dataclass(frozen=True, slots=True)
class StageTimes:
    """The seconds of a step by stage. forward: the loss, a survey and the reference included."""

    pack_s: float = 0.0
    transfer_s: float = 0.0
    forward_s: float = 0.0
    backward_s: float = 0.0
    optimizer_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All of them."""
        return sum(self.by_stage().values())

    def by_stage(self) -> dict[Stage, float]:
        """Stage → seconds."""
        return {
            Stage.PACK: self.pack_s,
            Stage.TRANSFER: self.transfer_s,
            Stage.FORWARD: self.forward_s,
            Stage.BACKWARD: self.backward_s,
            Stage.OPTIMIZER: self.optimizer_s,
        }

    def __add__(self, other: StageTimes) -> StageTimes:
        ours, theirs = self.by_stage(), other.by_stage()
        return _times({stage: ours[stage] + theirs[stage] for stage in Stage})


class Stopwatch(Protocol):
    """Measures one step at a time."""

    def start(self) -> None:
        """A step begins."""
        ...

    def lap(self, stage: Stage) -> None:
        """What happened since the last call was `stage`. It waits for nothing."""
        ...

    def read(self) -> StageTimes:
        """The times of the step. This waits until the device has done what it was given."""
        ...


def stopwatch(device: torch.device, clock: Callable[[], float]) -> Stopwatch:
    """The stopwatch for work on `device`."""
    return EventStopwatch(_cuda_event) if device.type == "cuda" else ClockStopwatch(clock)


class ClockStopwatch:
    """Reads `clock` at every lap: right where a call returns when its work is done."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spent_s = dict.fromkeys(Stage, 0.0)
        self._last_s = 0.0

    def start(self) -> None:
        """A step begins."""
        self._spent_s = dict.fromkeys(Stage, 0.0)
        self._last_s = self._clock()

    def lap(self, stage: Stage) -> None:
        """What happened since the last call was `stage`."""
        now_s = self._clock()
        self._spent_s[stage] += now_s - self._last_s
        self._last_s = now_s

    def read(self) -> StageTimes:
        """The times of the step."""
        return _times(self._spent_s)


class TimedEvent(Protocol):
    """A mark in a stream of work, as torch.cuda.Event is one."""

    def record(self) -> None:
        """Set the mark behind all the work that was given so far."""
        ...

    def synchronize(self) -> None:
        """Wait until the work before the mark is done."""
        ...

    def elapsed_time(self, end_event: Any, /) -> float:
        """The milliseconds between this mark and a later one."""
        ...


class EventStopwatch:
    """Sets a mark at every lap and reads the clock of the device once, at the end: until then the host runs ahead.

    Before a step the device is idle, so what the host does first counts as it does on the host's own clock.
    """

    def __init__(self, new_event: Callable[[], TimedEvent]) -> None:
        self._new_event = new_event
        self._events: list[TimedEvent] = []  # used again in every step
        self._stages: list[Stage] = []

    def start(self) -> None:
        """A step begins."""
        self._stages = []
        self._mark(0)

    def lap(self, stage: Stage) -> None:
        """What was given to the device since the last call was `stage`."""
        self._stages.append(stage)
        self._mark(len(self._stages))

    def read(self) -> StageTimes:
        """The times of the step, once the device is done with it."""
        self._events[len(self._stages)].synchronize()
        spent_s = dict.fromkeys(Stage, 0.0)
        for i, stage in enumerate(self._stages):
            spent_s[stage] += self._events[i].elapsed_time(self._events[i + 1]) / 1000
        return _times(spent_s)

    def _mark(self, index: int) -> None:
        if index == len(self._events):
            self._events.append(self._new_event())
        self._events[index].record()


def _cuda_event() -> TimedEvent:
    return torch.cuda.Event(enable_timing=True)  # pyright: ignore[reportReturnType]


def _times(spent_s: Mapping[Stage, float]) -> StageTimes:
    return StageTimes(*(spent_s[stage] for stage in Stage))
