"""The run as the control plane measures it, on a real Redis: what alerts are made of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from redis.exceptions import OutOfMemoryError
from redis_process import RedisProcess

from services.control.vitals import Vitals


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


def shown(bench: Bench, name: str, **labels: str) -> float | None:
    return bench.control.registry.get_sample_value(f"tributary_{name}", labels)


async def test_memory_streams_and_the_end_of_a_run_are_measured(bench: Bench) -> None:
    redis: Any = bench.control.redis
    await redis.config_set("maxmemory", 300_000_000)
    await bench.process.delivery.issue([("g1", b"x"), ("", b"y")], b"state")
    await redis.hset(bench.control.keys.facts, "finished", "3")
    await Vitals(bench.control).take()
    used = shown(bench, "redis_memory_used_bytes") or 0
    assert 100_000 < used < 300_000_000
    assert [shown(bench, f"redis_{name}") for name in ("up", "append_only_ok")] == [1, 1]
    assert shown(bench, "redis_memory_limit_bytes") == 300_000_000
    assert [shown(bench, "stream_messages", stream=name) for name in ("requests", "groups", "quarantine")] == [2, 0, 0]
    assert (shown(bench, "run_finished"), shown(bench, "revision_asked")) == (1, 1)
    assert "tributary_redis_up 1.0" in (await bench.http.get("/metrics")).text


async def test_a_redis_without_an_append_only_file_is_not_durable(bench: Bench) -> None:
    redis: Any = bench.control.redis
    await redis.config_set("appendonly", "no")
    await Vitals(bench.control).take()
    assert (shown(bench, "redis_append_only_ok"), shown(bench, "redis_memory_limit_bytes")) == (0, 0)


async def test_a_redis_that_is_full_is_still_measured(bench: Bench) -> None:
    redis: Any = bench.control.redis
    await redis.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        await redis.set("more", "x")
    await Vitals(bench.control).take()
    assert (shown(bench, "redis_up"), shown(bench, "redis_memory_limit_bytes")) == (1, 1)
