"""Weights on their way into an engine: verified first, newest only, and never under a wrong version."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from generator_bench import GeneratorBench, request, serving, until
from publications import weights
from redis.asyncio import Redis
from redis_process import RedisProcess

from common.events import EventKind
from common.metrics import GeneratorMetrics
from common.process import Process
from common.tasks import end
from common.tensor_file import TensorFile
from common.weights import ANCHOR_FILE, DELTA_FILE, Canary, Manifest, location_of
from services.generator.engine import EngineDead
from services.generator.refresh import Refresh
from services.generator.service import open_cache

pytestmark = pytest.mark.asyncio


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> GeneratorBench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return GeneratorBench(tmp_path, client())


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
    bench: GeneratorBench, engine: FakeEngine, clock: Callable[[], float], door: Door | None = None
) -> AsyncIterator[tuple[Process, asyncio.Task[None]]]:
    """A refresh that has caught up and follows."""
    process = bench.process()
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


async def announce_chain(bench: GeneratorBench, last: int, first: int = 1) -> Manifest:
    """Announce an anchor as version `first` and deltas up to `last`."""
    if first == 1:
        await bench.publish(1)
    for version in range(max(first, 2), last + 1):
        await bench.weights.announce(bench.publications.delta(version, version - 1))
    return bench.publications.manifests[last]


def assert_applied(engine: FakeEngine, version: int) -> None:
    """The file that the engine was given last is the version, bit by bit."""
    file = TensorFile(engine.updates[-1].path)
    for name, tensor in weights(version).items():
        assert file.raw(name).tobytes() == tensor.tobytes()


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


CANARY = Canary(
    tokens=((5, 6, 7, 8), (9, 10, 11, 12)),
    logprobs=((-0.06, -0.07, -0.08), (-0.10, -0.11, -0.12)),  # what the fake engine answers
    tolerance=1e-3,
    mean_tolerance=1e-4,
    dtype="float32",
)


async def test_an_update_is_proved_by_its_canary(bench: GeneratorBench) -> None:
    engine, door = FakeEngine(), Door()
    await bench.weights.announce(bench.publications.anchor(1, canary=CANARY))
    async with following(bench, engine, Clock(), door) as (process, _):
        assert process.version == 1
        assert engine.scored == [([5, 6, 7, 8], 1), ([9, 10, 11, 12], 1)]
        assert metric(process, "canary_failures_total") == 0
        difference = metric(process, "canary_difference")
        assert difference is not None
        assert difference < 1e-6
        assert door.shut_times == 0
    [update] = await bench.events(EventKind.UPDATE)
    assert update.data["canary"] == difference


async def test_refuted_weights_are_made_anew_and_nothing_is_taken_until_they_are_right(bench: GeneratorBench) -> None:
    engine, door = FakeEngine(), Door()
    await announce_chain(bench, 2)
    async with following(bench, engine, Clock(), door) as (process, _):
        engine.wrong_by = [0.5]
        await bench.weights.announce(bench.publications.delta(3, 2, canary=CANARY))
        await until_held(process, 3)
        assert engine.applied == [2, 3, 3]
        assert engine.updates[-1].changed is None
        assert_applied(engine, 3)
        assert (door.shut_times, door.is_open) == (1, True)
        assert (metric(process, "canary_failures_total"), metric(process, "weight_reseeds_total")) == (1, 1)
        assert process.trouble == ""
        [notice] = await bench.events(EventKind.NOTICE)
        assert "the canary refutes version 3: log-probs differ from the learner's by up to 0.5" in notice.data["text"]


async def test_weights_that_stay_wrong_make_the_generator_unhealthy_until_a_version_is_right(
    bench: GeneratorBench,
) -> None:
    engine, door = FakeEngine(), Door()
    await announce_chain(bench, 2)
    async with following(bench, engine, Clock(), door) as (process, _):
        engine.wrong_by = [0.5, 0.0, 0.25, 0.0]
        await bench.weights.announce(bench.publications.delta(3, 2, canary=CANARY))

        async def is_unhealthy() -> bool:
            return process.trouble != ""

        await until(is_unhealthy)
        assert "by up to 0.25 and by 0.125 in the mean; up to 0.001 and 0.0001" in process.why_unhealthy()
        assert not door.is_open
        assert process.version == 2
        assert metric(process, "canary_failures_total") == 2
        await bench.weights.announce(bench.publications.delta(4, 3, canary=CANARY))
        await until_held(process, 4)
        assert process.why_unhealthy() == ""
        assert door.is_open


async def test_what_refuted_weights_sampled_is_given_out_by_nobody(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    await announce_chain(bench, 2)
    async with serving(bench, engine) as process:
        await until_held(process, 2)
        engine.wrong_by = [0.5] * 40
        await bench.weights.announce(bench.publications.delta(3, 2, canary=CANARY))

        async def is_unhealthy() -> bool:
            return process.trouble != ""

        await until(is_unhealthy)
        await bench.issue(*(request(number) for number in range(3)))
        await asyncio.sleep(1.0)  # two rounds of taking
        assert await bench.groups() == []
        assert engine.calls == []
        engine.wrong_by = []
        await bench.weights.announce(bench.publications.delta(4, 3, canary=CANARY))

        async def three_groups() -> bool:
            return len(await bench.groups()) == 3

        await until(three_groups)
        assert {group.oldest_version for group in await bench.groups()} == {4}


async def test_requests_in_flight_are_given_back_when_their_weights_are_refuted(bench: GeneratorBench) -> None:
    engine = FakeEngine(token_s=0.05)
    await announce_chain(bench, 2)
    await bench.issue(request(1))
    async with serving(bench, engine) as process:

        async def is_sampling() -> bool:
            return engine.statistics.running > 0

        await until(is_sampling)
        engine.wrong_by = [0.5] * 2
        await bench.weights.announce(bench.publications.delta(3, 2, canary=CANARY))
        await until_held(process, 3)
        await until(bench.groups)
    [group] = await bench.groups()
    assert group.oldest_version == 3
    assert engine.applied == [2, 3, 3]
