"""Where the seconds of a step went: by a clock where calls wait for their work, by marks in it where they do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from learner_cases import group, rollout
from tiny_policy import heed, live, tiny_model

from common.config.algorithm import GRPO, SRFT, PrefixRFT
from common.config.base import EntropyScope
from learner.packing.layout import Layout
from learner.timing import ClockStopwatch, EventStopwatch, Stage, StageTimes, stopwatch
from learner.trainer import Trainer


class Device:
    """A device that works for `seconds` at a time, and a host that is done with handing over long before it."""

    def __init__(self) -> None:
        self.now_s, self.made, self.waited = 0.0, 0, 0

    def work(self, seconds: float) -> None:
        self.now_s += seconds

    def event(self) -> Mark:
        self.made += 1
        return Mark(self)


class Mark:
    """A mark in the device's work."""

    def __init__(self, device: Device) -> None:
        self._device, self.at_s = device, 0.0

    def record(self) -> None:
        self.at_s = self._device.now_s

    def synchronize(self) -> None:
        self._device.waited += 1

    def elapsed_time(self, end_event: Mark, /) -> float:
        return 1000 * (end_event.at_s - self.at_s)


def ticking(*times_s: float) -> Callable[[], float]:
    ticks = iter(times_s)
    return lambda: next(ticks)


def test_every_lap_belongs_to_its_stage() -> None:
    watch = ClockStopwatch(ticking(10.0, 10.5, 11.5, 13.5, 14.5, 16.5))
    watch.start()
    for stage in (Stage.PACK, Stage.FORWARD, Stage.BACKWARD, Stage.FORWARD, Stage.BACKWARD):
        watch.lap(stage)
    assert watch.read() == StageTimes(pack_s=0.5, forward_s=2.0, backward_s=4.0)


def test_a_second_step_begins_at_zero() -> None:
    watch = ClockStopwatch(ticking(0.0, 1.0, 5.0, 7.0))
    for _ in range(2):
        watch.start()
        watch.lap(Stage.OPTIMIZER)
    assert watch.read() == StageTimes(optimizer_s=2.0)


def test_a_gpu_is_waited_for_once_a_step_and_its_marks_are_used_again() -> None:
    device = Device()
    watch = EventStopwatch(device.event)
    for step in (1, 2):
        watch.start()
        for stage, seconds in (
            (Stage.TRANSFER, 0.25),
            (Stage.FORWARD, 1.0),
            (Stage.BACKWARD, 2.0),
            (Stage.FORWARD, 0.5),
        ):
            device.work(seconds)
            watch.lap(stage)
        assert device.waited == step - 1
        assert watch.read() == StageTimes(transfer_s=0.25, forward_s=1.5, backward_s=2.0)
    assert (device.made, device.waited) == (5, 2)


def test_times_add_up_stage_by_stage() -> None:
    total = StageTimes(1, 2, 3, 4, 5) + StageTimes(pack_s=1, optimizer_s=1)
    assert total == StageTimes(2, 2, 3, 4, 6)
    assert total.total_s == 17
    assert list(total.by_stage()) == ["pack", "transfer", "forward", "backward", "optimizer"]


def test_the_host_has_a_clock_and_a_gpu_has_marks() -> None:
    assert isinstance(stopwatch(torch.device("cpu"), float), ClockStopwatch)
    assert isinstance(stopwatch(torch.device("cuda"), float), EventStopwatch)


@pytest.mark.parametrize(
    ("config", "forwards"), [(GRPO(), 3), (PrefixRFT(), 3), (SRFT(entropy_scope=EntropyScope.BATCH), 5)]
)
def test_all_of_a_step_belongs_to_some_stage(config: GRPO | PrefixRFT | SRFT, forwards: int) -> None:
    """Of a clock that moves by one second at each look: the first look is the beginning, each other ends a lap."""
    looks = iter(range(1000))
    trainer = Trainer(tiny_model(), Layout(1), clock=lambda: float(next(looks)))
    members = (rollout(4, 1.0, seed=1), rollout(3, 0.0, seed=2))
    times = trainer.step(live(config), [group(*members)], heed).times
    assert times.total_s == next(looks) - 1
    assert (times.pack_s, times.optimizer_s) == (1, 1)
    assert times.backward_s == 3, "two micro-batches, and the norm of their gradient"
    assert times.forward_s == forwards, "that of each micro-batch, and the survey before them"
