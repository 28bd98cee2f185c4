"""The pulse of a generator: how fast it samples, told in its heartbeat, its metrics and the event log."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from common.events import EventKind
from common.metrics import GeneratorMetrics
from common.process import Process
from services.generator.rollouts import SamplingEngine

TICK_S = 0.5
TICKS_PER_EVENT = 4
WINDOW_S = 5.0


class Rate:
    """Tokens per second over the last few seconds, from a growing count."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._readings: deque[tuple[float, int]] = deque()

    def read(self, count: int, now_s: float) -> float:
        """Take a reading; the mean rate over the window that ends with it."""
        self._readings.append((now_s, count))
        while len(self._readings) > 2 and self._readings[1][0] <= now_s - self._window_s:
            self._readings.popleft()
        first_s, first = self._readings[0]
        return (count - first) / (now_s - first_s) if now_s > first_s else 0.0


class Pulse:
    """Reads an engine's counts regularly. in_flight, progress: how many requests, and a number that grows with work."""

    def __init__(
        self,
        process: Process,
        engine: SamplingEngine,
        metrics: GeneratorMetrics,
        *,
        in_flight: Callable[[], int],
        progress: Callable[[], int],
    ) -> None:
        self._process = process
        self._engine = engine
        self._metrics = metrics
        self._in_flight = in_flight
        self._progress = progress
        self._rate = Rate(WINDOW_S)
        self._counted = engine.statistics.tokens_generated
        self._moved = -1
        self._was_active = False

    async def follow(self) -> None:
        """Report for ever."""
        ticks = 0
        while True:
            active = self.tick(time.monotonic())
            ticks += 1
            if ticks % TICKS_PER_EVENT == 0:
                if active or self._was_active:  # one more when work ends, so that plots come back to zero
                    await self._tell()
                self._was_active = active
            await asyncio.sleep(TICK_S)

    def tick(self, now_s: float) -> bool:
        """Take one reading; whether there is work."""
        counts, requests = self._engine.statistics, self._in_flight()
        self._metrics.tokens.inc(max(0, counts.tokens_generated - self._counted))
        self._metrics.running.set(counts.running)
        self._counted = counts.tokens_generated
        self._process.details |= {
            "tokens_per_s": round(self._rate.read(counts.tokens_generated, now_s), 1),
            "running": counts.running,
            "requests": requests,
            "generated_tokens": counts.tokens_generated,
        }
        moved = counts.tokens_generated + self._progress()
        if requests == 0 or moved != self._moved:  # an engine that has work and makes no tokens is not well
            self._process.beat()
        self._moved = moved
        return requests > 0

    async def _tell(self) -> None:
        told = {name: self._process.details[name] for name in ("tokens_per_s", "running", "requests")}
        await self._process.tell(EventKind.GENERATION, {"generator": self._process.name, **told})
