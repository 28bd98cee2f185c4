"""Generators as processes: killed, stopped, started on nonsense, and sharing one stream over a Redis that restarts."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from generator_bench import GeneratorBench, request, until
from redis.asyncio import Redis
from redis_process import RedisProcess

from common.trajectory import AnchorSearch

pytestmark = pytest.mark.asyncio
Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> GeneratorBench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return GeneratorBench(tmp_path, client(), reclaim_after_s=1.0)


@pytest_asyncio.fixture
async def spawn(bench: GeneratorBench) -> AsyncIterator[Spawn]:
    """Starts generators; whatever still runs at the end is killed."""
    spawned: list[subprocess.Popen[bytes]] = []

    def start(name: str, **environment: str) -> subprocess.Popen[bytes]:
        spawned.append(bench.spawn(name, **environment))
        return spawned[-1]

    yield start
    for process in spawned:
        process.kill()
        process.wait()


async def test_a_killed_generators_request_is_redone_by_another_none_lost_none_twice(
    bench: GeneratorBench, spawn: Spawn
) -> None:
    await bench.issue(*(request(i) for i in range(12)))
    victim = spawn("generator-1", FAKE_TOKEN_S="0.3")
    await until(lambda: _in_state(bench, "generator-1", requests=4), 60)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    spawn("generator-2", FAKE_TOKEN_S="0.01")
    await until(lambda: _answered(bench, 12), 60)
    await asyncio.sleep(1.0)  # time for a second answer to appear, if there were one
    groups = await bench.groups()
    assert sorted(group.group_id for group in groups) == sorted(f"r{i}" for i in range(12))
    assert {outcome.request_id for outcome in await bench.outcomes()} == {f"r{i}" for i in range(12)}
    assert len(await bench.outcomes()) == 12
    assert sum(group.generator == "generator-2" for group in groups) >= 4
    assert await bench.delivery.requests.length() == 0
    assert await bench.quarantined() == []


async def test_a_search_whose_generator_is_killed_between_its_probes_ends_in_one_group(
    bench: GeneratorBench, spawn: Spawn
) -> None:
    search = AnchorSearch(cuts=(1, 2, 3, 4, 5), members=3, probes=3, above=0.0, below=1.0, always=True)
    await bench.issue(*(request(i, search=search) for i in range(4)))  # all is right: the hint shrinks, probe by probe
    victim = spawn("generator-1", FAKE_TOKEN_S="0.3")

    async def in_its_second_probe() -> bool:
        return (await bench.heartbeat("generator-1")).get("generated_tokens", 0) > 4 * 3 * 6

    await until(in_its_second_probe, 60)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    assert await bench.groups() == []
    spawn("generator-2", FAKE_TOKEN_S="0.01")
    await until(lambda: _answered(bench, 4), 60)
    await asyncio.sleep(1.0)  # time for a second answer to appear, if there were one
    assert sorted(group.group_id for group in await bench.groups()) == [f"r{i}" for i in range(4)]
    assert [(o.probes, len(o.hinted_rewards), o.hint_length) for o in await bench.outcomes()] == [(2, 3, 1)] * 4
    assert await bench.delivery.requests.length() == 0
    assert await bench.quarantined() == []


async def test_two_generators_share_a_stream_over_a_redis_that_restarts(
    bench: GeneratorBench, spawn: Spawn, redis_server: RedisProcess
) -> None:
    await bench.issue(*(request(i) for i in range(40)))
    both = [spawn(f"generator-{i}", FAKE_TOKEN_S="0.05") for i in (1, 2)]
    await until(lambda: _answered(bench, 4), 60)
    redis_server.kill()
    await asyncio.sleep(1.0)
    redis_server.start()
    await until(lambda: _answered(bench, 40), 60)
    groups = await bench.groups()
    assert sorted(group.group_id for group in groups) == sorted(f"r{i}" for i in range(40))
    assert {group.generator for group in groups} == {"generator-1", "generator-2"}
    assert [process.poll() for process in both] == [None, None]


async def test_sigterm_ends_a_busy_generator_well_and_soon_and_its_requests_live_on(
    bench: GeneratorBench, spawn: Spawn
) -> None:
    await bench.issue(request(1), request(2))
    busy = spawn("generator-1", FAKE_TOKEN_S="10")
    await until(lambda: _in_state(bench, "generator-1", requests=2), 60)
    children = psutil.Process(busy.pid).children(recursive=True)
    began_s = time.monotonic()
    busy.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(busy.wait, 20) == 0
    assert time.monotonic() - began_s < 6
    assert children
    _, alive = psutil.wait_procs(children, timeout=2)
    assert alive == []
    assert len(await bench.delivery.requests.reclaim("another", 60_000, 10)) == 2
    assert (await bench.heartbeat("generator-1"))["state"] == "stopped"


async def test_sigterm_while_the_engine_starts_ends_the_generator_at_once(bench: GeneratorBench, spawn: Spawn) -> None:
    starting = spawn("generator-1", FAKE_START_S="60")
    await until(lambda: _in_state(bench, "generator-1", state="starting"), 60)
    await asyncio.sleep(0.5)
    began_s = time.monotonic()
    starting.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(starting.wait, 20) == 0
    assert time.monotonic() - began_s < 3


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda model: (model / "config.json").unlink(), "is not a model directory: it has no config.json"),
        (lambda model: model.rename(model.parent / "elsewhere"), "model is not a directory: correct the path"),
        (lambda model: (model / "model.safetensors").unlink(), "has no weights"),
        (lambda model: (model / "config.json").write_text("{"), "config.json is not JSON"),
    ],
)
async def test_a_model_that_is_none_is_one_sentence_and_exit_code_two(
    bench: GeneratorBench, spawn: Spawn, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(bench.directory / "model")
    assert await asyncio.to_thread(spawn("generator-1").wait, 30) == 2
    last = (bench.directory / "generator-1.log").read_text().strip().splitlines()
    assert any(line.startswith("generator-1: ") and said in line for line in last)


async def _in_state(bench: GeneratorBench, name: str, **wanted: object) -> bool:
    beat = await bench.heartbeat(name)
    return all(beat.get(key) == value for key, value in wanted.items())


async def _answered(bench: GeneratorBench, count: int) -> bool:
    return len(await bench.groups()) >= count and len(await bench.outcomes()) >= count
