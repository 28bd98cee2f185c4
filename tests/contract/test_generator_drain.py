"""A drained generator on a real Redis: it finishes what it holds, takes nothing more, stays well, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from generator_bench import GeneratorBench, request, serving, until
from redis.asyncio import Redis
from redis_process import RedisProcess

from common.orders import Orders
from common.process import Process
from common.streams import Entry
from common.trajectory import GroupPlan, Purpose

pytestmark = pytest.mark.asyncio


class DrainBench(GeneratorBench):
    """A run whose generators an operator drains."""

    def __init__(self, directory: Path, redis: Redis) -> None:
        super().__init__(directory, redis, reclaim_after_s=0.3)
        self.orders = Orders(redis, self.keys)

    async def drain(self, process: Process) -> None:
        """Drain a generator as the control plane does, and wait until it knows."""
        await self.orders.drain(process.name, "alice", at_s=1.0)
        await until(lambda: _holds(lambda: process.details.get("draining")))

    async def at_work(self, engine: FakeEngine, count: int) -> None:
        await until(lambda: _holds(lambda: len(engine.calls) >= count))

    async def answered(self, count: int) -> None:
        async def all_are() -> bool:
            return len(await self.groups()) >= count

        await until(all_are)


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> DrainBench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return DrainBench(tmp_path, client())


async def test_what_is_in_flight_is_finished_and_nothing_more_is_taken_until_it_is_admitted(bench: DrainBench) -> None:
    engine = FakeEngine()
    engine.pause()
    async with serving(bench, engine) as process:
        assert not process.details.get("draining")
        await bench.issue(*(request(i) for i in range(6)))
        await bench.at_work(engine, 4)
        await bench.drain(process)
        assert not process.details.get("drained")
        engine.resume()
        await bench.answered(4)
        await until(lambda: _holds(lambda: process.details.get("drained")))
        await bench.issue(request(6))
        await asyncio.sleep(1.0)
        assert len(await bench.groups()) == 4
        assert process.details.get("drained")
        assert (process.state, process.why_not_ready()) == ("running", "")
        await until(lambda: _beat(bench, drained=True, draining=True, requests=0))
        await bench.orders.admit(process.name)
        await bench.answered(7)
        await until(lambda: _holds(lambda: not process.details.get("drained")))
    assert len(await bench.outcomes()) == 7
    assert await bench.quarantined() == []


async def test_what_it_had_not_begun_goes_to_the_others_at_once(bench: DrainBench) -> None:
    first, second = FakeEngine(), FakeEngine()
    async with serving(bench, first) as process:
        stream = process.delivery.requests
        take = stream.take

        asked = asyncio.Event()

        async def take_as_it_is_drained(consumer: str, count: int, block_ms: int) -> list[Entry]:
            asked.set()
            entries = await take(consumer, count, block_ms)
            if entries:
                await bench.drain(process)
            return entries

        stream.take = take_as_it_is_drained
        await asked.wait()  # until no read is on its way but with it
        await bench.issue(request(1), request(2))
        await until(lambda: _holds(lambda: process.details.get("drained")))
        assert first.calls == []
        async with serving(bench, second, "generator-2") as other:
            await bench.answered(2)
            assert other.registry.get_sample_value("tributary_requests_reclaimed_total") == 2
    assert {group.generator for group in await bench.groups()} == {"generator-2"}


async def test_what_it_reclaims_as_it_is_drained_goes_to_the_others_at_once(bench: DrainBench) -> None:
    first, second = FakeEngine(), FakeEngine()
    await bench.issue(request(1))
    assert await bench.delivery.requests.take("dead", 1, 100), "one took it and died"
    async with serving(bench, first) as process:
        stream = process.delivery.requests
        deliveries = stream.deliveries

        async def count_as_it_is_drained(entry_id: str) -> int:
            await bench.drain(process)
            return await deliveries(entry_id)

        stream.deliveries = count_as_it_is_drained
        await until(lambda: _holds(lambda: process.details.get("drained")))
        assert first.calls == []
        async with serving(bench, second, "generator-2"):
            await bench.answered(1)
    assert [group.generator for group in await bench.groups()] == ["generator-2"]
    assert await bench.quarantined() == []


async def test_it_reclaims_nothing_and_what_it_holds_is_not_taken_from_it(bench: DrainBench) -> None:
    slow, idle = FakeEngine(), FakeEngine()
    slow.pause()
    async with serving(bench, slow) as process, serving(bench, idle, "generator-2") as other:
        await bench.drain(other)
        await bench.issue(request(1))
        await bench.at_work(slow, 1)
        await bench.drain(process)
        await asyncio.sleep(0.6)  # until no read is on its way
        await bench.issue(request(2))
        assert await bench.delivery.requests.take("dead", 1, 100), "a third one took it and died"
        await asyncio.sleep(1.0)  # three times what makes a request reclaimable
        assert (idle.calls, len(slow.calls)) == ([], 1)
        assert (process.details["drained"], other.details["drained"]) == (False, True)
        slow.resume()
        await bench.answered(1)
        await bench.orders.admit(other.name)
        await bench.answered(2)
    assert {group.group_id: group.generator for group in await bench.groups()} == {
        "r1": "generator-1",
        "r2": "generator-2",
    }


async def test_one_that_starts_while_it_is_drained_takes_nothing(bench: DrainBench) -> None:
    await bench.orders.drain("generator-1", "alice", at_s=1.0)
    await bench.issue(request(1))
    async with serving(bench, FakeEngine()) as process:
        await until(lambda: _holds(lambda: process.details.get("drained")))
        await asyncio.sleep(1.0)
        assert await bench.groups() == []
        await bench.orders.admit("generator-1")
        await bench.answered(1)


async def test_it_refreshes_its_weights_and_evaluates_with_them_when_it_is_back(bench: DrainBench) -> None:
    engine = FakeEngine()
    async with serving(bench, engine) as process:
        await bench.drain(process)
        await bench.publish(1)
        await until(lambda: _holds(lambda: engine.applied == [1]))
        await until(lambda: _beat(bench, version=1, drained=True))
        await bench.issue(request(1, purpose=Purpose.EVALUATE, plan=GroupPlan(plain=1)))
        await bench.orders.admit(process.name)
        await until(bench.outcomes)
        assert [outcome.version for outcome in await bench.outcomes()] == [1]


async def test_a_drained_generator_is_stopped_at_once_and_well(bench: DrainBench) -> None:
    engine = FakeEngine()
    async with serving(bench, engine) as process:
        await bench.drain(process)
        await until(lambda: _holds(lambda: process.details["drained"]))
        await bench.issue(request(1))
    assert engine.closed
    assert await bench.delivery.requests.length() == 1
    assert await bench.redis.xinfo_consumers(bench.keys.requests, "generators") == []


async def test_orders_are_obeyed_over_a_redis_that_restarts(bench: DrainBench, redis_server: RedisProcess) -> None:
    async with serving(bench, FakeEngine()) as process:
        await bench.drain(process)
        await asyncio.sleep(1.2)  # the append-only file is written every second
        redis_server.kill()
        await asyncio.sleep(0.6)
        redis_server.start()
        await bench.issue(request(1))
        await asyncio.sleep(1.0)
        assert await bench.groups() == []
        await bench.orders.admit(process.name)
        await bench.answered(1)


async def _beat(bench: DrainBench, **wanted: object) -> bool:
    beat = await bench.heartbeat("generator-1")
    return all(beat.get(key) == value for key, value in wanted.items())


async def _holds(condition: Callable[[], object]) -> bool:
    return bool(condition())
