"""Fixtures for tests against a real Redis."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from common import connection

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from redis_process import RedisProcess


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisProcess]:
    """A fresh Redis, killed afterwards."""
    server = RedisProcess(tmp_path / "redis")
    server.start()
    yield server
    server.thaw()
    server.kill()


@pytest_asyncio.fixture
async def client(redis_server: RedisProcess) -> AsyncIterator[Callable[[], Redis]]:
    """Makes connected clients, which are closed afterwards."""
    made: list[Redis] = []

    def make() -> Redis:
        made.append(connection.connect(redis_server.url))
        return made[-1]

    yield make
    for redis in made:
        await redis.aclose()
