"""Updates are proved by their canary, and what a refuted engine samples is given out by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from generator_bench import GeneratorBench, request, serving, until
from redis.asyncio import Redis
from redis_process import RedisProcess
from refresh_rig import (
    Clock,
    Door,
    announce_chain,
    assert_applied,
    following,
    metric,
    until_failed,
    until_held,
)

from common.events import EventKind
from common.weights import Canary, location_of

pytestmark = pytest.mark.asyncio


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> GeneratorBench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return GeneratorBench(tmp_path, client())


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


async def test_refuted_weights_that_cannot_be_made_anew_leave_a_generator_visibly_out_of_service(
    bench: GeneratorBench,
) -> None:
    engine, door, clock = FakeEngine(), Door(), Clock()
    await announce_chain(bench, 2)
    async with following(bench, engine, clock, door) as (process, _):
        manifest = bench.publications.delta(3, 2, canary=CANARY)
        anchor = bench.settings.weights_directory / location_of(1)
        anchor.rename(anchor.with_name("away"))
        engine.wrong_by = [0.5]
        await bench.weights.announce(manifest)
        await until_failed(process, 1)

        async def is_unhealthy() -> bool:
            return process.why_unhealthy().startswith("the canary refutes version 3")

        await until(is_unhealthy)
        assert not door.is_open
        assert process.version == 2
        *_, notice = await bench.events(EventKind.NOTICE)
        assert "version 3 is not applied" in notice.data["text"]
        assert notice.data["text"].endswith("it serves nothing")
        difference = metric(process, "canary_difference")
        assert difference == pytest.approx(0.5), "what is measured is told, also when it is wrong"
        assert metric(process, "weight_pause_seconds_count") == 2, "so is the pause of an update that is refuted"
        anchor.with_name("away").rename(anchor)
        clock.now_s = 100.0
        await until_held(process, 3)
        assert (door.is_open, process.why_unhealthy()) == (True, "")
