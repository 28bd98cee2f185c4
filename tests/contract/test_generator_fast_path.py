"""The fast path of a generator: a broadcast when all are there, the store whenever that is not so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from generator_bench import RUN, GeneratorBench, until
from redis.asyncio import Redis
from redis_process import RedisProcess
from refresh_rig import Clock, Door, assert_applied, failures, following, metric, until_failed, until_held

from common.events import EventKind
from common.muster import Muster, Word
from services.generator.engine import WeightUpdateFailed
from services.generator.weight_update import AnyUpdate, BroadcastUpdate, WeightUpdate

pytestmark = pytest.mark.asyncio
MEMBERS = ("generator-1", "generator-2")
GROUP = json.dumps({"unique_id": "aWQ=", "tensors": [["model.first", "float32", [64, 32]]]})
FAST = (
    RUN
    + """
tensor_parallel_size = 2
[weights]
transfer = "nccl"
members = ["generator-1", "generator-2"]
muster_s = 0.5
broadcast_s = 7.0
"""
)


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> GeneratorBench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return GeneratorBench(tmp_path, client(), run=FAST)


class Receiving(FakeEngine):
    """An engine that takes part in broadcasts. `failing`: it breaks half-way in the next one."""

    failing = False

    async def apply(self, update: AnyUpdate) -> float:
        if isinstance(update, BroadcastUpdate):
            self.updates.append(update)  # type: ignore[arg-type]
            if self.failing:
                self.failing, self.healthy = False, False
                raise WeightUpdateFailed("loading version 2 failed: the broadcast took longer than 7.0 s")
            self.version = update.version
            self.applied.append(update.version)
            return 0.01
        return await super().apply(update)


async def publish_and_call(bench: GeneratorBench, version: int, *others: str) -> Word:
    """The learner's side, with other members that are ready."""
    muster = Muster(bench.redis, bench.keys)
    await bench.publish(version)
    others_ready = [asyncio.create_task(muster.answer(version, name, 1.0)) for name in others]
    word = await muster.call(version, GROUP, MEMBERS, 0.5)
    await asyncio.gather(*others_ready)
    return word


async def test_when_all_are_there_the_version_is_broadcast(bench: GeneratorBench) -> None:
    engine = Receiving()
    async with following(bench, engine, Clock()) as (process, _):
        assert await publish_and_call(bench, 1, "generator-2") is Word.GO
        await until_held(process, 1)
        assert metric(process, "weight_fetched_bytes_total") == 0
    (update,) = engine.updates
    assert update == BroadcastUpdate(
        version=1,
        unique_id="aWQ=",
        rank=1,
        world_size=5,
        tensors=(("model.first", "float32", (64, 32)),),
        limit_s=7.0,
    )


async def test_when_a_member_is_missing_the_version_comes_from_the_store(bench: GeneratorBench) -> None:
    engine = Receiving()
    async with following(bench, engine, Clock()) as (process, _):
        assert await publish_and_call(bench, 1) is Word.STORE
        await until_held(process, 1)
        assert_applied(engine, 1)
        assert failures(process) == 0


async def test_when_nobody_calls_the_version_comes_from_the_store(bench: GeneratorBench) -> None:
    engine = Receiving()
    async with following(bench, engine, Clock()) as (process, _):
        await bench.publish(1)
        await until_held(process, 1)
        assert_applied(engine, 1)


async def test_a_broadcast_that_breaks_is_made_good_by_the_store(bench: GeneratorBench) -> None:
    engine = Receiving()
    async with following(bench, engine, Clock()) as (process, _):
        assert await publish_and_call(bench, 1, "generator-2") is Word.GO
        await until_held(process, 1)
        engine.failing = True
        assert await publish_and_call(bench, 2, "generator-2") is Word.GO
        await until_held(process, 2)
        assert engine.healthy
        assert engine.updates[-1].changed is None  # mixed weights: all of them are loaded
        assert_applied(engine, 2)
        assert failures(process) == 1


async def test_after_a_broadcast_the_store_brings_what_has_changed_since(bench: GeneratorBench) -> None:
    engine = Receiving()
    async with following(bench, engine, Clock()) as (process, _):
        assert await publish_and_call(bench, 1, "generator-2") is Word.GO
        await until_held(process, 1)
        await bench.weights.announce(bench.publications.delta(2, 1))
        await until_held(process, 2)
        assert_applied(engine, 2)
        assert engine.updates[-1].changed == {"model.first", "model.second"}
        assert engine.updates[-1].deltas == ()


async def test_who_is_no_member_takes_everything_from_the_store(bench: GeneratorBench) -> None:
    engine = Receiving()
    async with following(bench, engine, Clock(), name="generator-3") as (process, _):
        await bench.publish(1)
        await until_held(process, 1)
        assert_applied(engine, 1)


async def test_mixed_weights_that_the_store_cannot_replace_put_a_generator_out_of_service(
    bench: GeneratorBench,
) -> None:
    engine, clock, door = Receiving(), Clock(), Door()
    async with following(bench, engine, clock, door) as (process, _):
        assert await publish_and_call(bench, 1, "generator-2") is Word.GO
        await until_held(process, 1)
        engine.failing = True
        store = bench.settings.weights_directory
        bench.publications.anchor(2)
        store.rename(store.with_name("away"))
        muster = Muster(bench.redis, bench.keys)
        await bench.weights.announce(bench.publications.manifests[2])
        await asyncio.gather(muster.answer(2, "generator-2", 1.0), muster.call(2, GROUP, MEMBERS, 0.5))
        await until_failed(process, 2)
        await until(lambda: _is(lambda: not door.is_open))
        assert "version 2 broke half-way" in process.why_unhealthy()
        assert not engine.healthy
        *_, notice = await bench.events(EventKind.NOTICE)
        assert notice.data["text"].endswith("it serves nothing")
        store.with_name("away").rename(store)
        clock.now_s = 100.0
        await until_held(process, 2)
        assert_applied(engine, 2)
        assert (door.is_open, process.why_unhealthy()) == (True, "")


async def test_a_version_is_not_waited_for_in_a_broadcast_twice(bench: GeneratorBench) -> None:
    engine, clock = Receiving(), Clock()
    engine.failing = True
    async with following(bench, engine, clock) as (process, _):
        store = bench.settings.weights_directory
        bench.publications.anchor(1)
        store.rename(store.with_name("away"))
        muster = Muster(bench.redis, bench.keys)
        await bench.weights.announce(bench.publications.manifests[1])
        await asyncio.gather(muster.answer(1, "generator-2", 1.0), muster.call(1, GROUP, MEMBERS, 0.5))
        await until_failed(process, 2)
        store.with_name("away").rename(store)
        clock.now_s = 100.0
        await until_held(process, 1)
    assert [type(update) for update in engine.updates] == [BroadcastUpdate, WeightUpdate]


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()
