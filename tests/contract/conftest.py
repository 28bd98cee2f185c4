"""Fixtures for tests against a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest_asyncio
from redis.asyncio import Redis
from redis_process import RedisProcess

from common import connection


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
