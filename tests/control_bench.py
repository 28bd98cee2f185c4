"""The control plane's application in process, on the Redis of REDIS_URL, with a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from common.process import Process
from common.settings import load_run
from services.control.app import create_app
from services.control.deps import Control

RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "m"
[data]
path = "d.jsonl"
[control]
reads_per_s = 0
writes_per_s = 0
"""


@dataclass
class Bench:
    """The application in process, what it works with, and a client of it."""

    process: Process
    control: Control
    http: httpx.AsyncClient

    async def patch(self, document: Any, **headers: str) -> httpx.Response:
        return await self.http.patch("/v1/config", json=document, headers=headers)

    async def status(self) -> Any:
        return (await self.http.get("/v1/status")).json()


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Bench]:
    """A bench whose run file lies in `directory`."""
    (directory / "run.toml").write_text(RUN)
    process = Process("control", "control", load_run(directory / "run.toml"))
    await process.delivery.prepare()
    control = Control.of(process)
    await control.steering.seed(process.settings.live)
    transport = httpx.ASGITransport(create_app(control, None), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield Bench(process, control, http)
    await process.redis.aclose()
