"""What every test shares: a Redis of its own, and patience with busy machines where a property is tested."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Modules that several tests share lie here; there are no packages below tests/.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from redis_process import RedisProcess

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisProcess]:
    """A fresh Redis, killed afterwards."""
    server = RedisProcess(tmp_path / "redis")
    server.start()
    yield server
    server.thaw()
    server.kill()
