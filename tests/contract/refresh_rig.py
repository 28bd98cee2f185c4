"""A refresh that follows announced versions on a fake engine, and what is asked about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fake_engine import FakeEngine
from generator_bench import GeneratorBench, until
from publications import assert_holds

from common.metrics import GeneratorMetrics
from common.process import Process
from common.tasks import end
from common.weights import Manifest
from services.generator.refresh import Refresh
from services.generator.service import open_cache


@dataclass
class Door:
    """Where requests would come in."""

    is_open: bool = True
    shut_times: int = 0

    async def shut(self) -> None:
        self.is_open = False
        self.shut_times += 1

    def reopen(self) -> None:
        self.is_open = True


@asynccontextmanager
async def following(
    bench: GeneratorBench,
    engine: FakeEngine,
    clock: Callable[[], float],
    door: Door | None = None,
    name: str = "generator-1",
) -> AsyncIterator[tuple[Process, asyncio.Task[None]]]:
    """A refresh that has caught up and follows."""
    process = bench.process(name)
    cache = open_cache(process)
    refresh = Refresh(process, engine, GeneratorMetrics(process.registry), cache, door or Door(), clock)
    await refresh.catch_up()
    task = asyncio.create_task(refresh.follow())
    yield process, task
    process.stop.set()
    await end([task])
    cache.close()
    await process.redis.aclose()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def metric(process: Process, name: str) -> float | None:
    return process.registry.get_sample_value(f"tributary_{name}")


def failures(process: Process) -> float | None:
    return metric(process, "weight_update_failures_total")


async def until_failed(process: Process, times: int) -> None:
    async def failed() -> bool:
        return failures(process) == times

    await until(failed)


async def until_held(process: Process, version: int) -> None:
    async def held() -> bool:
        return process.version == version

    await until(held)


async def announce_chain(bench: GeneratorBench, last: int, first: int = 1) -> Manifest:
    """Announce an anchor as version `first` and deltas up to `last`."""
    if first == 1:
        await bench.publish(1)
    for version in range(max(first, 2), last + 1):
        await bench.weights.announce(bench.publications.delta(version, version - 1))
    return bench.publications.manifests[last]


def assert_applied(engine: FakeEngine, version: int) -> None:
    """The file that the engine was given last is the version, bit by bit."""
    assert_holds(engine.updates[-1].path, version)
