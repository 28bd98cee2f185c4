"""The control plane against what others send and do: unreadable events, odd ids, silent listeners, a frozen Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from redis_process import RedisProcess

from common.config.store import ConfigStore
from common.events import EventKind
from services.control.app import create_app


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        {"kind": "nonsense", "at": "1", "data": "{}"},
        {"kind": "step", "at": "soon", "data": "{}"},
        {"kind": "step", "at": "1", "data": "{"},
        {"kind": "step", "at": "1", "data": "[1]"},
        {"kind": "evaluation", "at": "1", "data": '{"accuracy": NaN}'},
        {"kind": "step", "at": "1", "data": '{"a": "\\ud800"}'},
        {"kind": "step", "at": "1", "data": b"\xff"},
    ],
)
async def test_an_event_that_cannot_be_read_is_a_notice_and_ends_no_reader(bench: Bench, fields: Any) -> None:
    await bench.process.redis.xadd(bench.process.keys.events, fields)
    await bench.process.events.append(EventKind.STEP, {"step": 7}, at_s=2.0)
    following = asyncio.create_task(bench.control.chronicle.follow())
    while bench.control.chronicle.step is None and not following.done():
        await asyncio.sleep(0)
    assert not following.done()
    following.cancel()
    for newest in (False, True):
        rows = (await bench.http.get("/v1/series", params={"newest": newest})).json()["events"]
        assert [(row["kind"], row["at_s"]) for row in rows[-2:]] == [("notice", 0.0), ("step", 2.0)]
        assert rows[-2]["data"] == {"text": "an event that cannot be read"}


@pytest.mark.parametrize("place", ["0-0", "00-0", "0-000"])
async def test_nothing_comes_before_the_first_place_of_a_log(bench: Bench, place: str) -> None:
    series = await bench.http.get("/v1/series", params={"newest": True, "before": place})
    assert (series.json()["events"], series.json()["previous"]) == ([], None)
    assert (await bench.http.get("/v1/quarantine", params={"before": place})).json()["messages"] == []


async def test_a_hundred_clients_may_follow_the_events_and_every_place_is_given_back(bench: Bench) -> None:
    calls = [asyncio.create_task(bench.http.get("/v1/events")) for _ in range(130)]
    while sum(call.done() for call in calls) < 30:
        await asyncio.sleep(0)
    for refused in ("/v1/events", "/v1/events?after=x"):
        assert (await bench.http.get(refused)).headers["retry-after"] == "10"
    assert len(await bench.process.redis.client_list()) < 50
    bench.process.stop.set()
    bench.control.chronicle.wake()
    statuses = [answer.status_code for answer in await asyncio.gather(*calls)]
    assert (statuses.count(200), statuses.count(503)) == (100, 30)
    assert (await bench.http.get("/v1/events?after=x")).status_code == 422
    assert bench.control.chronicle.listeners == 0


async def test_a_client_that_does_not_read_its_events_loses_its_place(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            assert bench.control.chronicle.listeners == 1
            await asyncio.Event().wait()

    monkeypatch.setattr("services.control.feed.UNREAD_S", 0.01)
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/v1/events", "query_string": b""}
    await create_app(bench.control, None)({**scope, "headers": [(b"host", b"127.0.0.1")]}, receive, send)
    assert bench.control.chronicle.listeners == 0


async def test_a_change_that_waits_too_long_for_the_ones_before_it_is_503_with_retry_after(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, asked, current = asyncio.Event(), asyncio.Event(), ConfigStore.current

    async def slow(store: ConfigStore) -> Any:
        asked.set()
        await frozen.wait()
        return await current(store)

    monkeypatch.setattr(ConfigStore, "current", slow)
    monkeypatch.setattr("services.control.steering.QUEUE_S", 0.01)
    first = asyncio.create_task(bench.patch({"publish_every": 2}))
    await asked.wait()
    second = await bench.patch({"publish_every": 3})
    assert (second.status_code, second.headers["retry-after"]) == (503, "5")
    frozen.set()
    assert (await first).json()["revision"] == 2
    assert (await bench.patch({"publish_every": 3})).json()["revision"] == 3


@pytest.mark.parametrize("path", ["/", "/static/app.js"])
@pytest.mark.parametrize("wanted", ["bytes=zz", "bytes=0-3", "bytes=99999999-", "lines=1"])
async def test_a_range_is_ignored_and_a_page_comes_whole(bench: Bench, path: str, wanted: str) -> None:
    answer = await bench.http.get(path, headers={"Range": wanted})
    assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "none")
    assert answer.content == (await bench.http.get(path)).content
