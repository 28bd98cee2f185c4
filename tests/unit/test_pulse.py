"""The pulse of a generator: rates over a window, and when it may say that it is well."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from common.metrics import GeneratorMetrics
from services.generator.engine import EngineStatistics
from services.generator.pulse import Pulse, Rate


def test_a_rate_is_the_mean_over_the_window_that_ends_now() -> None:
    rate = Rate(window_s=5.0)
    counts = [0, 100, 200, 300, 400, 500, 500, 500]
    assert [rate.read(count, float(second)) for second, count in enumerate(counts)] == [
        0.0,
        *[100.0] * 5,
        80.0,
        60.0,
    ]


def test_a_rate_falls_to_zero_when_nothing_is_sampled_for_a_window() -> None:
    rate = Rate(window_s=5.0)
    rate.read(0, 0.0)
    rate.read(700, 7.0)
    assert rate.read(700, 12.0) == 0.0


class Scene:
    """A generator whose engine and requests are set by hand. `beats` counts how often it said that it is well."""

    def __init__(self) -> None:
        self.beats = self.requests = self.finished = 0
        self.statistics = EngineStatistics(0, 0, 10, 0, 0.0)
        self.details: dict[str, Any] = {}
        self.registry = CollectorRegistry()
        process: Any = SimpleNamespace(details=self.details, beat=self._beat)
        engine: Any = self
        self.pulse = Pulse(
            process,
            engine,
            GeneratorMetrics(self.registry),
            in_flight=lambda: self.requests,
            progress=lambda: self.finished,
        )

    def _beat(self) -> None:
        self.beats += 1

    def tick(self, now_s: float, tokens: int, running: int = 0) -> bool:
        self.statistics = EngineStatistics(running, 0, tokens, 0, 0.0)
        return self.pulse.tick(now_s)


def test_an_idle_generator_is_well() -> None:
    scene = Scene()
    assert [scene.tick(float(second), 10) for second in range(3)] == [False] * 3
    assert scene.beats == 3


def test_a_generator_with_work_is_well_only_while_something_moves() -> None:
    scene = Scene()
    scene.requests = 2
    assert scene.tick(0.0, 10)
    scene.tick(1.0, 10)
    scene.tick(2.0, 10)
    assert scene.beats == 1, "requests in flight, and not one token"
    scene.tick(3.0, 11)
    scene.finished = 1
    scene.tick(4.0, 11)
    assert scene.beats == 3


def test_what_was_sampled_is_counted_once_and_told() -> None:
    scene = Scene()
    scene.requests = 1
    scene.tick(0.0, 10)
    scene.tick(2.0, 50, running=8)
    assert scene.details == {"tokens_per_s": 20.0, "running": 8, "requests": 1, "generated_tokens": 50}
    assert scene.registry.get_sample_value("tributary_generated_tokens_total") == pytest.approx(40)
    assert scene.registry.get_sample_value("tributary_running_sequences") == 8
