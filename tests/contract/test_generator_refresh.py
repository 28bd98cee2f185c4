"""Weights on their way into an engine: verified first, newest only, and never under a wrong version."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from generator_bench import GeneratorBench, request, serving, until
from redis.asyncio import Redis
from redis_process import RedisProcess
from refresh_rig import Clock, Door, assert_applied, failures, following, metric, until_failed, until_held

from common.events import EventKind
from common.stores.directory import DirectoryStorage
from common.tasks import end
from common.weights import ANCHOR_FILE
from services.generator.engine import EngineDead, WeightUpdateFailed
from services.generator.weight_update import AnyUpdate

pytestmark = pytest.mark.asyncio


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> GeneratorBench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return GeneratorBench(tmp_path, client())


async def test_the_newest_version_is_applied_before_the_first_request(bench: GeneratorBench) -> None:
    for version in (1, 2, 3):
        await bench.publish(version)
    await bench.issue(request(1))
    engine = FakeEngine()
    async with serving(bench, engine) as process:
        await until(bench.groups)
        assert engine.applied == [3]
        assert process.version == 3
    [group] = await bench.groups()
    assert group.oldest_version == 3
    [update] = await bench.events(EventKind.UPDATE)
    assert update.data.keys() == {
        *("generator", "version", "bytes", "canary"),
        *("pause_s", "apply_s", "fetch_s", "canary_s"),
    }
    assert (update.data["generator"], update.data["version"], update.data["pause_s"]) == ("generator-1", 3, 0.01)
    assert process.registry.get_sample_value("tributary_weight_pause_seconds_count") == 1


async def test_without_a_publication_the_base_model_is_served_as_version_zero(bench: GeneratorBench) -> None:
    await bench.issue(request(1))
    async with serving(bench, FakeEngine()):
        await until(bench.groups)
    assert [outcome.version for outcome in await bench.outcomes()] == [0]


async def test_versions_in_between_are_skipped(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    async with following(bench, engine, Clock()) as (process, _):
        await bench.publish(1)
        await until_held(process, 1)
        pipeline = [bench.publish(version) for version in (2, 3, 4)]
        await asyncio.gather(*pipeline)
        await until_held(process, 4)
        assert engine.applied[-1] == 4
        assert len(engine.applied) <= 4


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "foreign"])
async def test_a_version_that_is_not_whole_is_refused_and_the_old_one_goes_on(
    bench: GeneratorBench, damage: str
) -> None:
    engine = FakeEngine()
    await bench.publish(1)
    async with following(bench, engine, Clock()) as (process, _):
        match damage:
            case "changed":
                manifest = bench.publications.anchor(2)
                path = bench.settings.weights_directory / manifest.location / ANCHOR_FILE
                path.write_bytes(path.read_bytes()[:-1] + b"\xff")
                await bench.weights.announce(manifest)
            case "cut":
                await bench.publish(2, damaged=True)
            case "foreign":
                await bench.publish(2, {"foreign": np.zeros(3, np.float32)})
            case _:
                manifest = bench.publications.anchor(2)
                shutil.move(bench.settings.weights_directory / manifest.location, bench.directory / "elsewhere")
                await bench.weights.announce(manifest)
        await until_failed(process, 1)
        assert (engine.version, process.version, engine.applied) == (1, 1, [1])
        [notice] = await bench.events(EventKind.NOTICE)
        assert notice.data["text"].startswith("generator-1: version 2 is not applied: ")
        assert notice.data["text"].endswith("it goes on with version 1")
        await bench.publish(3)
        await until_held(process, 3)


async def test_a_failed_version_is_tried_again_after_a_growing_wait(bench: GeneratorBench) -> None:
    clock, engine = Clock(), FakeEngine()
    async with following(bench, engine, clock) as (process, _):
        directory = await bench.publish(1, damaged=True)
        await until_failed(process, 1)
        clock.now_s = 0.9
        await asyncio.sleep(1.2)  # a whole round of waiting for announcements, in which nothing may happen
        assert failures(process) == 1
        clock.now_s = 1.1
        await until_failed(process, 2)
        clock.now_s = 3.2
        shutil.rmtree(directory)
        bench.publications.anchor(1)
        await until_held(process, 1)
        assert failures(process) == 2


async def test_at_start_an_older_version_that_is_whole_does_instead(bench: GeneratorBench) -> None:
    await bench.publish(1)
    await bench.publish(2)
    await bench.publish(3, damaged=True)
    engine = FakeEngine()
    async with following(bench, engine, Clock()) as (process, _):
        assert (engine.version, process.version) == (2, 2)


async def test_an_update_that_breaks_half_way_is_repeated_at_once(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    engine.broken_updates = 2
    async with following(bench, engine, Clock()) as (process, _):
        await bench.publish(1)
        await until_held(process, 1)
        assert engine.healthy
        assert failures(process) == 0


async def test_an_engine_left_with_mixed_weights_serves_nothing_any_more(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    engine.broken_updates = 99
    async with following(bench, engine, Clock()) as (_, task):
        await bench.publish(1)
        with pytest.raises(EngineDead, match="mixed weights"):
            await asyncio.wait_for(task, 10)


async def test_entries_that_announce_nothing_are_passed_over(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    async with following(bench, engine, Clock()) as (process, _):
        await bench.redis.xadd(bench.keys.weights, {"payload": b"{}"})
        await bench.redis.xadd(bench.keys.weights, {"junk": b"1"})
        await bench.publish(2)
        await until_held(process, 2)
        await bench.redis.xadd(bench.keys.weights, {"payload": b"\xff"})
        await bench.publish(3)
        await until_held(process, 3)


async def test_what_cannot_be_prepared_is_loaded_completely(bench: GeneratorBench) -> None:
    class Unprepared(FakeEngine):
        async def apply(self, update: AnyUpdate) -> float:
            if update.changed is not None:
                raise WeightUpdateFailed(f"preparing version {update.version} failed")
            return await super().apply(update)

    engine = Unprepared()
    await bench.publish(1)
    async with following(bench, engine, Clock()) as (process, _):
        await bench.publish(2)  # an anchor: there is none before it to begin with
        await until_held(process, 2)
        assert_applied(engine, 2)
        assert failures(process) == 0


async def test_the_pause_of_an_update_that_broke_lasts_until_it_is_repaired(bench: GeneratorBench) -> None:
    clock = Clock()

    class Slow(FakeEngine):
        async def apply(self, update: AnyUpdate) -> float:
            clock.now_s += 5.0
            return await super().apply(update)

    engine = Slow()
    async with following(bench, engine, clock) as (process, _):
        engine.broken_updates = 1
        await bench.publish(1)
        await until_held(process, 1)
        assert metric(process, "weight_pause_seconds_sum") == 10.0
    [update] = await bench.events(EventKind.UPDATE)
    assert update.data["pause_s"] == 10.0


async def test_a_generator_that_starts_while_the_store_is_away_serves_what_its_former_life_left(
    bench: GeneratorBench,
) -> None:
    for version in range(1, 6):
        await bench.publish(version)
    async with following(bench, FakeEngine(), Clock()):
        pass
    store, engine = bench.settings.weights_directory, FakeEngine()
    for version in range(6, 11):
        await bench.publish(version)
    store.rename(store.with_name("away"))
    async with following(bench, engine, clock := Clock()) as (process, _):
        assert (process.version, engine.applied) == (5, [5])
        assert_applied(engine, 5)
        store.with_name("away").rename(store)
        clock.now_s = 100.0
        await until_held(process, 10)


async def test_what_another_run_of_that_name_left_is_served_by_nobody(bench: GeneratorBench) -> None:
    await bench.publish(1)
    async with following(bench, FakeEngine(), Clock()) as (process, _):
        assert process.version == 1
    store, engine = bench.settings.weights_directory, FakeEngine()
    await bench.redis.flushall()
    await bench.publish(1, {"model.first": np.zeros(3, np.float32)})
    await bench.publish(2)
    store.rename(store.with_name("away"))
    async with following(bench, engine, Clock()) as (process, _):
        assert (process.version, engine.applied) == (0, [])


async def test_a_run_that_begins_again_is_followed_and_nothing_of_the_old_one_given_out(
    bench: GeneratorBench,
) -> None:
    engine, door = FakeEngine(), Door()
    for version in (7, 8, 9):
        await bench.publish(version)
    async with following(bench, engine, Clock(), door) as (process, _):
        assert process.version == 9
        await bench.redis.delete(bench.keys.weights, bench.keys.newest_version)
        manifest = replace(bench.publications.anchor(1), at_s=1.0)
        await bench.weights.announce(manifest)
        await until_held(process, 1)
        assert_applied(engine, 1)
        assert engine.updates[-1].changed is None
        assert (door.shut_times, door.is_open, process.why_unhealthy()) == (1, True, "")
        [notice] = await bench.events(EventKind.NOTICE)
        assert "version 1 was announced after version 9, which is served: the run began again" in notice.data["text"]


async def test_an_announcement_of_a_newer_schema_is_told_once(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    await bench.publish(1)
    async with following(bench, engine, Clock()) as (process, _):
        newer = json.loads(bench.publications.anchor(2).encode()) | {"schema": 3}
        for _ in range(2):
            await bench.redis.xadd(bench.keys.weights, {"payload": json.dumps(newer)})
        await until_failed(process, 1)
        await asyncio.sleep(1.2)  # it is met again
        [notice] = await bench.events(EventKind.NOTICE)
        assert "written by a newer version of this project: upgrade this process" in notice.data["text"]
        assert notice.data["text"].endswith("it goes on with version 1")
        await bench.publish(3)
        await until_held(process, 3)
        assert failures(process) == 1


@pytest.mark.parametrize("how", ["told to stop", "ended by an error elsewhere"])
async def test_a_generator_that_ends_breaks_its_fetch_off_and_complains_of_nothing(
    bench: GeneratorBench, how: str
) -> None:
    class Endless(DirectoryStorage):
        def size(self, location: str, name: str) -> int:
            began.set()
            while not over.wait(0.01):
                try:
                    heed()
                finally:
                    if sys.exception() is not None:
                        broken_off.set()
            raise AssertionError("it was not broken off")

    began, broken_off, over, engine = threading.Event(), threading.Event(), threading.Event(), FakeEngine()
    async with following(bench, engine, Clock()) as (process, task):
        await bench.publish(1)
        await until_held(process, 1)
        refresh = task.get_coro().cr_frame.f_locals["self"]  # type: ignore[union-attr]
        heed, cache = refresh._heed, refresh._cache
        cache._storage = Endless(bench.settings.weights_directory)
        await bench.publish(2)
        await until(lambda: _is(began.is_set))
        try:
            if how == "told to stop":
                process.stop.set()
                await until(lambda: _is(lambda: process.details["fetching"] == 0))
            await end([task])
            await until(lambda: _is(broken_off.is_set), 5)
        finally:
            over.set()
        await until(lambda: _is(lambda: cache._lock is None))
        assert failures(process) == 0
        assert await bench.events(EventKind.NOTICE) == []


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()
