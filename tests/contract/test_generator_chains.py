"""Chains of deltas on their way into an engine, and the ways around a broken one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from generator_bench import GeneratorBench, serving
from redis.asyncio import Redis
from redis_process import RedisProcess
from refresh_rig import Clock, announce_chain, assert_applied, failures, following, metric, until_failed, until_held

from common.events import EventKind
from common.tensor_file import TensorFile
from common.weights import DELTA_FILE, location_of

pytestmark = pytest.mark.asyncio


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> GeneratorBench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return GeneratorBench(tmp_path, client())


async def test_a_delta_is_applied_to_what_is_held_and_the_engine_told_what_changed(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    await announce_chain(bench, 2)
    async with following(bench, engine, Clock()) as (process, _):
        assert engine.applied == [2]
        assert engine.updates[-1].changed is None  # the engine's first: all of it
        await announce_chain(bench, 3, first=3)
        await until_held(process, 3)
        assert_applied(engine, 3)
        assert engine.updates[-1].changed == {"model.first", "model.second"}
        (delta,) = engine.updates[-1].deltas
        assert delta.name == DELTA_FILE
        assert metric(process, "weight_fetched_bytes_total") == sum(
            manifest.bytes for manifest in bench.publications.manifests.values()
        )


async def test_a_generator_that_sleeps_through_thirty_versions_wakes_up_on_the_newest(bench: GeneratorBench) -> None:
    engine, asleep = FakeEngine(), FakeEngine()
    await announce_chain(bench, 2)
    async with following(bench, asleep, Clock()):
        assert asleep.applied == [2]
    async with following(bench, engine, Clock()) as (process, _):
        await announce_chain(bench, 32, first=3)
        await until_held(process, 32)
        assert_applied(engine, 32)
    async with following(bench, asleep, Clock()) as (process, _):
        assert asleep.applied == [2, 32]
        assert_applied(asleep, 32)
        assert failures(process) == 0


async def test_a_missing_link_is_gone_around_by_the_anchor(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    await announce_chain(bench, 2)
    async with following(bench, engine, Clock()) as (process, _):
        bench.publications.delta(3, 2)
        shutil.rmtree(bench.settings.weights_directory / location_of(3))
        bench.publications.anchor(4)
        await bench.weights.announce(bench.publications.delta(5, 4))
        await until_held(process, 5)
        assert_applied(engine, 5)
        assert failures(process) == 0  # the way back from 5 ends at the anchor


async def test_what_cannot_be_reached_is_told_and_the_next_anchor_repairs_it(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    await announce_chain(bench, 2)
    async with following(bench, engine, Clock()) as (process, _):
        bench.publications.delta(3, 2)
        manifest = bench.publications.delta(4, 3)
        shutil.rmtree(bench.settings.weights_directory / location_of(3))
        await bench.weights.announce(manifest)
        await until_failed(process, 2)  # by the chain, and anew
        assert metric(process, "weight_reseeds_total") == 1
        assert (engine.version, process.version) == (2, 2)
        notice, _ = await bench.events(EventKind.NOTICE)
        assert "version 4 builds upon 3, which is missing" in notice.data["text"]
        await bench.publish(5)
        await until_held(process, 5)
        assert_applied(engine, 5)


async def test_a_late_joiner_whose_chain_is_broken_serves_the_anchor_at_least(bench: GeneratorBench) -> None:
    await announce_chain(bench, 6)
    shutil.rmtree(bench.settings.weights_directory / location_of(2))
    engine = FakeEngine()
    async with following(bench, engine, Clock()) as (process, _):
        assert (engine.version, process.version) == (1, 1)
        assert_applied(engine, 1)


async def test_a_delta_that_leads_elsewhere_is_never_served_and_made_good_by_the_anchor(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    await announce_chain(bench, 2)
    async with following(bench, engine, Clock()) as (process, _):
        held = engine.updates[-1].path
        TensorFile(held, writable=True).patterns("model.first")[5] ^= 1  # a fault of this machine's disk or memory
        await announce_chain(bench, 3, first=3)
        await until_held(process, 3)
        assert_applied(engine, 3)
        assert (failures(process), metric(process, "weight_reseeds_total")) == (1, 1)
        assert engine.applied == [2, 3]


async def test_two_generators_hold_different_versions_at_once(bench: GeneratorBench) -> None:
    fast, slow = FakeEngine(), FakeEngine()
    await announce_chain(bench, 2)
    async with serving(bench, slow, "generator-2") as slow_process:
        await until_held(slow_process, 2)
        slow.broken_updates = 2
        async with serving(bench, fast, "generator-1") as process:
            await announce_chain(bench, 4, first=3)
            await until_held(process, 4)
            await until_held(slow_process, 4)
            assert fast.updates[-1].path != slow.updates[-1].path
            assert_applied(fast, 4)
            assert_applied(slow, 4)


async def test_the_heartbeat_tells_which_version_is_being_fetched(bench: GeneratorBench) -> None:
    engine, seen = FakeEngine(), []
    await announce_chain(bench, 2)

    async def apply(update: object) -> float:
        seen.append(process.details["fetching"])
        return await FakeEngine.apply(engine, update)  # type: ignore[arg-type]

    async with following(bench, engine, Clock()) as (process, _):
        assert process.details["fetching"] == 0
        engine.apply = apply  # type: ignore[method-assign]
        await announce_chain(bench, 3, first=3)
        await until_held(process, 3)
    assert seen == [3]
