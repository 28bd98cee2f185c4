"""Vitals: what the control plane measures of the whole run: Redis, what waits where, who lives, who is behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import Gauge
from redis.exceptions import RedisError

from common.metrics import RunMetrics
from services.control.deps import Control
from services.control.overview import ENDED, FOLLOWERS, ProcessView, read_processes

FORGOTTEN_S = 3600.0

Labels = tuple[str, ...]


class Series:
    """A labelled gauge that shows what is there now: labels that are gone leave it."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._shown: set[Labels] = set()

    def show(self, values: Mapping[Labels, float]) -> None:
        """Show these values and no others."""
        for labels in self._shown - values.keys():
            self._gauge.remove(*labels)
        for labels, value in values.items():
            self._gauge.labels(*labels).set(value)
        self._shown = set(values)


class Vitals:
    """Reads a run's state from Redis into metrics. It only reads: a Redis that refuses writes is still measured."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._metrics = RunMetrics(control.registry)
        self._alive = Series(self._metrics.alive)
        self._ages = Series(self._metrics.heartbeat_age)
        self._unwell = Series(self._metrics.unwell)
        self._behind = Series(self._metrics.behind)

    async def take(self) -> list[ProcessView]:
        """Measure once; the processes that were seen. RedisError or OSError if Redis does not answer."""
        try:
            processes = await read_processes(self._control)
            await self._measure_redis()
        except (RedisError, OSError):
            self._metrics.redis_up.set(0)
            raise
        self._metrics.redis_up.set(1)
        self.count(processes)
        return processes

    def count(self, processes: Sequence[ProcessView]) -> None:
        """Who lives, who is silent, who is unwell, and which generator is how far behind."""
        living = [p for p in processes if p.alive]
        counts = Counter(p.role for p in living)
        watched = [p for p in processes if p.state not in ENDED and p.age_s <= FORGOTTEN_S]
        published = max((p.version for p in processes if p.role == "learner"), default=0)
        self._alive.show({(role,): counts[role] for role in {*FOLLOWERS, "control", *counts}})
        self._ages.show({(p.name, p.role): p.age_s for p in watched})
        self._unwell.show({(p.name, p.role): bool(p.trouble) for p in watched})
        self._behind.show({(p.name,): max(0, published - p.version) for p in living if p.role == "generator"})

    async def _measure_redis(self) -> None:
        keys, metrics = self._control.keys, self._metrics
        streams = (keys.requests, keys.groups, keys.outcomes, keys.quarantine)
        async with self._control.redis.pipeline(transaction=False) as pipe:
            pipe.info()
            pipe.hexists(keys.facts, "finished")
            for stream in streams:
                pipe.xlen(stream)
            info, finished, *lengths = await pipe.execute()
        figures: dict[str, Any] = info
        metrics.redis_used.set(figures["used_memory"])
        metrics.redis_limit.set(figures.get("maxmemory", 0))
        metrics.redis_durable.set(bool(figures.get("aof_enabled")) and figures.get("aof_last_write_status") == "ok")
        metrics.finished.set(finished)
        metrics.revision_asked.set(await self._control.config.number())
        for stream, length in zip(streams, lengths, strict=True):
            metrics.messages.labels(stream.rpartition(":")[2]).set(length)
