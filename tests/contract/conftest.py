"""Fixtures for tests against a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_process import ControlProcess
from redis.asyncio import Redis
from redis_process import RedisProcess

from common import connection

Start = Callable[..., ControlProcess]


@pytest.fixture
def start(redis_server: RedisProcess, tmp_path: Path) -> Iterator[Start]:
    """Starts control planes, which are stopped afterwards."""
    started: list[ControlProcess] = []

    def make(**options: Any) -> ControlProcess:
        started.append(ControlProcess(tmp_path / "control", redis_server.url, **options))
        return started[-1]

    yield make
    for control in started:
        control.stop()


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
