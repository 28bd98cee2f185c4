"""What the holding scheduler tells of each step, with a clock that moves when the rig says so; as JSON.

In a process of its own, as everything that imports vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from vllm.config import VllmConfig
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from services.generator import held_outputs
from services.generator.held_outputs import HoldingScheduler
from tests.system.scheduler_bench import SchedulerBench, engine_config

STEP_S = 1 / 16
LONG = 100


class Rig:
    """A scheduler that holds back, and the seconds of its clock."""

    def __init__(self, config: VllmConfig) -> None:
        self.now_s = 1000.0
        self._clock = SimpleNamespace(monotonic=lambda: self.now_s)
        with mock.patch.object(held_outputs, "time", self._clock):
            self.bench = SchedulerBench(config, HoldingScheduler)
        self.scheduler = self.bench.scheduler

    def step(self, seconds: float = 0.0) -> dict[str, Any]:
        """One step after these seconds. tokens, logprobs: by sequence; running: what it says is, None if nothing."""
        self.now_s += seconds
        with mock.patch.object(held_outputs, "time", self._clock):
            told = list(self.bench.step()[1].values())
        outputs = [output for one in told for output in one.outputs]
        assert len({output.request_id for output in outputs}) == len(outputs)
        running = [one.scheduler_stats.num_running_reqs for one in told if one.scheduler_stats is not None]
        return {
            "tokens": {o.request_id: list(o.new_token_ids) for o in outputs},
            "logprobs": {o.request_id: o.new_logprobs.logprobs[:, 0].tolist() for o in outputs if o.new_logprobs},
            "ended": [o.request_id for o in outputs if o.finish_reason is not None],
            "running": next(iter(running), None),
        }

    def cancel(self, name: str) -> None:
        """End a sequence from outside, and make the step that follows."""
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        self.step()

    def pause(self, state: PauseState) -> None:
        """Pause, or go on."""
        self.scheduler.set_pause_state(state)


def _long(rig: Rig) -> list[dict[str, Any]]:
    """A long sequence and one that begins a little later, step by step."""
    rig.bench.begin("long", prompt=5, length=LONG)
    steps = [rig.step(STEP_S) for _ in range(3)]
    rig.bench.begin("late", prompt=3, length=LONG - 20)
    return steps + [rig.step(STEP_S) for _ in range(LONG - 3)]


def _from_the_start(rig: Rig) -> None:
    """Nothing came before."""


def _after_an_end(rig: Rig) -> None:
    rig.bench.begin("before", prompt=5, length=5)
    for _ in range(5):
        rig.step()


def _after_an_end_when_all_was_told_anyway(rig: Rig) -> None:
    rig.bench.begin("before", prompt=5, length=5)
    for _ in range(4):
        rig.step()
    assert rig.step(1000.0)["ended"] == ["before"]


def _after_a_cancellation(rig: Rig) -> None:
    rig.bench.begin("before", prompt=5, length=50)
    for _ in range(5):
        rig.step()
    rig.cancel("before")


def _after_a_cancellation_in_a_pause(rig: Rig) -> None:
    rig.bench.begin("before", prompt=5, length=50)
    for _ in range(5):
        rig.step()
    rig.pause(PauseState.PAUSED_ALL)
    rig.step()
    rig.cancel("before")
    rig.pause(PauseState.UNPAUSED)


IDLE = (
    _from_the_start,
    _after_an_end,
    _after_an_end_when_all_was_told_anyway,
    _after_a_cancellation,
    _after_a_cancellation_in_a_pause,
)


def _woken(rig: Rig, idle: Callable[[Rig], None]) -> list[dict[str, Any]]:
    """A short sequence after idleness of some kind, all of it within one instant."""
    idle(rig)
    while rig.scheduler.has_requests():  # the worker is told of what has ended
        rig.step()
    rig.bench.begin("short", prompt=5, length=4)
    return [rig.step() for _ in range(4)]


def _paused(rig: Rig) -> list[Any]:
    """A pause in the midst of a sequence: whether a step is due, and what is told in it; then both once more."""
    rig.bench.begin("long", prompt=5, length=LONG)
    for _ in range(5):
        rig.step()
    rig.pause(PauseState.PAUSED_ALL)
    return [rig.scheduler.has_requests(), rig.step(), rig.scheduler.has_requests()]


if __name__ == "__main__":
    config = engine_config()
    found = {
        "step_s": STEP_S,
        "long": _long(Rig(config)),
        "woken": {idle.__name__: _woken(Rig(config), idle) for idle in IDLE},
        "paused": _paused(Rig(config)),
    }
    print(json.dumps(found))
