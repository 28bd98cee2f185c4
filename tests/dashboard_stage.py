"""A stage for browser tests: a run that obeys, its real control plane, and a page of a real browser that shows it."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest
from control_process import ROOT, ControlProcess
from operated_run import OperatedRun
from redis.asyncio import Redis
from redis_process import RedisProcess
from tokenizers import Tokenizer

from common import connection
from common.tasks import end

if TYPE_CHECKING:
    from playwright.async_api import Page  # pyright: ignore[reportMissingImports]

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
MARKS = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        CHROMIUM is None, reason="the browser test needs Chromium: install it, or set CHROMIUM to its path"
    ),
]
LUFFY = {"algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}}
WAIT_S = 30
REWARDS = "(document.querySelector('#chart-reward .plot')?.data?.at(-1)?.x.length ?? 0)"  # points of the reward chart
Scheme = Literal["light", "dark"]
_TOKENIZER = ROOT / "examples" / "addition" / "base"


@dataclass
class Watched:
    """A page that shows the dashboard at `url`. complaints: what the browser's console said."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    async def api(self, method: str, path: str, **options: Any) -> Any:
        """What the control plane answers to a call beside the page."""
        async with httpx.AsyncClient(base_url=self.url) as http:
            answer = await http.request(method, path, **options)
            return answer.raise_for_status().json()

    async def until(self, expression: str, limit_s: float = WAIT_S) -> None:
        """Wait until a JavaScript expression is true on the page, whose policy forbids waiting for it inside."""
        deadline_s = time.monotonic() + limit_s
        while not await self.page.evaluate(expression):
            assert time.monotonic() < deadline_s, f"not within {limit_s} s: {expression}; console: {self.complaints}"
            await asyncio.sleep(0.1)

    async def twice(self, name: str) -> None:
        """Press a button that asks whether one is sure."""
        button = self.page.get_by_role("button", name=name)
        await button.click()
        await button.click()

    def serious(self, *expected: str) -> list[str]:
        """What the console said that it should not have, beside the answers of these statuses."""
        bad = (c for c in self.complaints if c.startswith(("error", "warning", "asked elsewhere")))
        return [c for c in bad if not any(status in c for status in expected)]


@dataclass(kw_only=True)
class Stage(Watched):
    """A page that shows a run that obeys."""

    directory: Path
    redis: Redis
    redis_url: str
    control: ControlProcess
    run: OperatedRun

    async def steps(self, count: int = 1) -> None:
        """So many steps of the run, now."""
        for _ in range(count):
            await self.run.advance(time.time())

    async def points(self, chart: str) -> int:
        """How many points the chart's longest line has."""
        lines = f"(document.querySelector('#chart-{chart} .plot').data || [])"
        return int(await self.page.evaluate(f"Math.max(0, ...{lines}.map((line) => line.x.length))"))


@asynccontextmanager
async def browser_page(width: int, scheme: Scheme) -> AsyncIterator[Page]:
    """A page of a browser of its own."""
    from playwright.async_api import async_playwright  # pyright: ignore[reportMissingImports]

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield await browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        await browser.close()


def listen(watched: Watched) -> None:
    """Note what the browser complains about, and every request that leaves the machine."""
    page, complaints = watched.page, watched.complaints

    def on_request(request: Any) -> None:
        if not request.url.startswith((watched.url, "data:")):
            complaints.append(f"asked elsewhere: {request.url}")

    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
    page.on("request", on_request)


async def _beats(run: OperatedRun) -> None:
    """The heartbeats of a run that has begun, for ever."""
    while True:
        if run.step > 0:
            await run.beat(time.time())
        await asyncio.sleep(1)


@asynccontextmanager
async def staged(
    directory: Path, *, width: int = 1280, scheme: Scheme = "light", token: str = "", more: Sequence[str] = ()
) -> AsyncIterator[Stage]:
    """A stage. more: lines of the run file's [control] table."""
    model = directory / "control" / "m"
    model.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_TOKENIZER / name, model)
    server = RedisProcess(directory / "redis")
    server.start()
    started = ControlProcess(directory / "control", server.url, token=token, more="\n".join(more))
    control = await asyncio.to_thread(started.wait_until_up)
    redis = connection.connect(server.url)
    run = OperatedRun(redis, "test", Tokenizer.from_file(str(model / "tokenizer.json")))
    beats = asyncio.create_task(_beats(run))
    try:
        async with browser_page(width, scheme) as page:
            stage = Stage(
                page, control.url, directory=directory, redis=redis, redis_url=server.url, control=control, run=run
            )
            listen(stage)
            yield stage
    finally:
        await end([beats])
        await redis.aclose()
        await asyncio.to_thread(control.stop)
        server.kill()
