"""Orders over HTTP, on a real Redis: pause, resume, checkpoint, drain, admit, and who gave them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from redis_process import RedisProcess

from common.events import EventKind


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


async def beat(bench: Bench, name: str, role: str, **details: Any) -> None:
    told = {"role": role, "state": "running", "at_s": time.time(), "revision": 1, "version": 3, **details}
    await bench.process.redis.hset(bench.process.keys.processes, name, json.dumps(told))  # pyright: ignore


async def order(bench: Bench, path: str, author: str = "ada", **ask: Any) -> Any:
    return await bench.http.post(path, headers={"X-Tributary-Author": author}, params=ask)


async def told(bench: Bench) -> list[dict[str, Any]]:
    """The ORDER events."""
    return [e.data for e in await bench.process.events.read() if e.kind is EventKind.ORDER]


async def test_a_pause_stands_until_it_is_taken_back_and_says_who_gave_it(bench: Bench) -> None:
    await beat(bench, "learner", "learner", step=7)
    given = (await order(bench, "/v1/learner/pause")).json()
    assert (given["changed"], given["paused"]["by"], given["resting"], given["step"]) == (True, "ada", False, 7)
    again = (await order(bench, "/v1/learner/pause", "bob")).json()
    assert (again["changed"], again["paused"]["by"]) == (False, "ada")
    assert (await bench.status())["learner"]["paused"] == given["paused"]
    standing = await bench.process.orders.standing()
    assert standing.pause is not None
    await beat(bench, "learner", "learner", step=7, paused=True)
    assert (await bench.http.get("/v1/learner")).json()["resting"] is True
    resumed = (await order(bench, "/v1/learner/resume", "bob")).json()
    assert (resumed["changed"], resumed["paused"]) == (True, None)
    assert (await order(bench, "/v1/learner/resume")).json()["changed"] is False
    assert (await bench.process.orders.standing()).pause is None
    assert await told(bench) == [
        {"order": "pause", "target": "learner", "by": "ada"},
        {"order": "resume", "target": "learner", "by": "bob"},
    ]


async def test_a_run_without_a_learner_can_be_paused_before_it_starts(bench: Bench) -> None:
    learner = (await order(bench, "/v1/learner/pause")).json()
    assert (learner["state"], learner["alive"], learner["paused"]["by"]) == ("absent", False, "ada")


async def test_a_checkpoint_is_waited_for_until_the_learner_says_that_it_is_done(bench: Bench) -> None:
    await beat(bench, "learner", "learner", step=7, checkpoint_step=5, checkpoint_order=0)

    async def carry_out() -> None:
        while (await bench.process.orders.standing()).checkpoints == 0:
            await asyncio.sleep(0.01)
        await beat(bench, "learner", "learner", step=7, checkpoint_step=7, checkpoint_order=1)

    answer, _ = await asyncio.gather(order(bench, "/v1/learner/checkpoint"), carry_out())
    assert answer.status_code == 200
    assert answer.json() == {"order": 1, "done": True, "step": 7, "notice": ""}
    late = await order(bench, "/v1/learner/checkpoint", wait_s=0.1)
    assert late.status_code == 202
    assert (late.json()["order"], late.json()["done"], late.json()["step"]) == (2, False, 7)
    learner = (await bench.http.get(late.headers["location"])).json()
    assert (learner["checkpoints_ordered"], learner["checkpoints_done"]) == (2, 1)
    assert [(e["order"], e["by"]) for e in await told(bench)] == [("checkpoint", "ada")] * 2


async def test_a_checkpoint_without_a_learner_is_ordered_and_not_waited_for(bench: Bench) -> None:
    start_s = time.monotonic()
    answer = await order(bench, "/v1/learner/checkpoint", wait_s=100)
    assert time.monotonic() - start_s < 20
    assert (answer.status_code, answer.json()["notice"]) == (202, "no learner is alive to make it now")


async def test_a_generator_is_drained_and_admitted_and_tells_how_far_it_is(bench: Bench) -> None:
    await beat(bench, "generator-1", "generator", requests=3)
    given = (await order(bench, "/v1/generators/generator-1/drain")).json()
    assert (given["drain"], given["requests"], given["changed"]) == ("draining", 3, True)
    assert await bench.process.orders.is_drained("generator-1")
    assert (await bench.status())["drained"]["generator-1"]["by"] == "ada"
    await beat(bench, "generator-1", "generator", requests=0, draining=True, drained=True)
    (generator,) = (await bench.http.get("/v1/generators")).json()["generators"]
    assert (generator["drain"], generator["drained"]["by"], generator["requests"]) == ("drained", "ada", 0)
    assert (await order(bench, "/v1/generators/generator-1/drain", "bob")).json()["changed"] is False
    admitted = (await order(bench, "/v1/generators/generator-1/admit")).json()
    assert (admitted["drain"], admitted["drained"], admitted["changed"]) == ("admitted", None, True)
    assert (await order(bench, "/v1/generators/generator-1/admit")).json()["changed"] is False
    assert [(e["order"], e["target"]) for e in await told(bench)] == [
        ("drain", "generator-1"),
        ("admit", "generator-1"),
    ]


async def test_only_generators_can_be_drained_and_the_answer_names_them(bench: Bench) -> None:
    nobody = await order(bench, "/v1/generators/generator-1/drain")
    assert (nobody.status_code, "none has started" in nobody.json()["detail"]) == (404, True)
    await beat(bench, "generator-1", "generator")
    await beat(bench, "learner", "learner")
    for name in ("learner", "generator-2", "%2e%2e", "x" * 300):
        answer = await order(bench, f"/v1/generators/{name}/drain")
        assert answer.status_code in (404, 422), name
    assert "there are generator-1" in (await order(bench, "/v1/generators/learner/drain")).json()["detail"]
    assert (await bench.process.orders.standing()).drained == {}


async def test_the_order_to_a_generator_that_is_gone_can_be_taken_back(bench: Bench) -> None:
    await bench.process.orders.drain("long-gone", "ada", at_s=1.0)
    admitted = (await order(bench, "/v1/generators/long-gone/admit")).json()
    assert (admitted["drain"], admitted["changed"]) == ("admitted", True)
