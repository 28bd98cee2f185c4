"""Credit on a real Redis: what would be sampled with old weights and dropped is asked for a little later."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis_process import RedisProcess

from common.config.live import parse_live
from common.process import Process
from services.curriculum.credit import STALLED_S, Credit
from tests.contract.curriculum_rig import LIVE, Bench, running, until, write_run

pytestmark = pytest.mark.asyncio
CONFIG = parse_live(LIVE)  # two groups a step, max_staleness 1: four groups at most


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> Bench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return Bench(client(), write_run(tmp_path))


@pytest_asyncio.fixture
async def process(bench: Bench) -> AsyncIterator[Process]:
    process = Process("curriculum", "curriculum", bench.settings)
    yield process
    await process.redis.aclose()


async def test_the_last_step_of_the_credit_waits_until_a_generator_has_the_newest_version(bench: Bench) -> None:
    await bench.ask(LIVE, 0)
    await bench.generator_beats(0)
    async with running(bench):
        await until(lambda: _outstanding(bench, 4))
        taken = await bench.take()
        trained = [request.request_id for _, request in taken[:3]]
        await bench.delivery.settle(trained, made=1)
        await until(lambda: _outstanding(bench, 2))
        await asyncio.sleep(0.5)  # five of its turns
        assert await bench.delivery.outstanding() == 2
        await bench.generator_beats(1)
        await until(lambda: _outstanding(bench, 4))
    assert len(await bench.take()) == 3


async def test_the_generator_that_is_farthest_counts_and_who_is_gone_does_not(bench: Bench, process: Process) -> None:
    credit = Credit(process)
    await bench.delivery.settle([], made=7)
    assert await credit.read(CONFIG, 0) == 4, "nobody could begin anything too early"
    await _beat(bench, "generator-1", version=5)
    assert await credit.read(CONFIG, 0) == 0, "whatever it began would be dropped"
    assert await credit.read(CONFIG, 4) == 4, "no more can be asked for anyway"
    await _beat(bench, "generator-2", version=6)
    assert await credit.read(CONFIG, 0) == 2
    await _beat(bench, "learner", version=7)
    assert await credit.read(CONFIG, 0) == 2
    await _beat(bench, "generator-3", version=7)
    assert await credit.read(CONFIG, 0) == 4
    await _beat(bench, "generator-3", version=7, age_s=60.0)
    assert await credit.read(CONFIG, 0) == 2
    await _beat(bench, "generator-2", version=9)
    assert await credit.read(CONFIG, 0) == 4, "the learner was restarted and has not told a version yet"


async def test_a_version_that_never_comes_holds_back_nothing_for_ever(bench: Bench, process: Process) -> None:
    now_s = 0.0
    credit = Credit(process, lambda: now_s)
    await bench.delivery.settle([], made=3)
    await _beat(bench, "generator-1", version=1)
    assert await credit.read(CONFIG, 0) == 0
    now_s = STALLED_S - 1
    await _beat(bench, "generator-1", version=2)
    assert await credit.read(CONFIG, 0) == 2
    now_s = 2 * STALLED_S - 2
    await _beat(bench, "generator-1", version=2)
    assert await credit.read(CONFIG, 0) == 2
    now_s = 2 * STALLED_S
    assert await credit.read(CONFIG, 0) == 4


async def _outstanding(bench: Bench, groups: int) -> bool:
    return await bench.delivery.outstanding() == groups


async def _beat(bench: Bench, name: str, *, version: int, age_s: float = 0.0) -> None:
    beat = {"role": name.partition("-")[0], "at_s": time.time() - age_s, "version": version}
    await bench.redis.hset(bench.keys.processes, name, json.dumps(beat))
