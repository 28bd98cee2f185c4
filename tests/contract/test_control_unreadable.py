"""What others left in Redis and nobody can read: it is passed over, and no route answers with a 5xx because of it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from redis_process import RedisProcess

from common.orders import Order

ROUTES = (
    *("status", "learner", "generators", "groups", "prompts", "demonstrations", "quarantine", "weights", "series"),
    *("config/revisions", "config/revisions/1"),
)
LEARNER = {"role": "learner", "state": "running", "at_s": time.time(), "step": 3, "max_steps": 9}
JUNK = [
    b"\x00\xff\xfe",
    b"",
    b"null",
    b"[]",
    b"7",
    b"{}",
    b"[" * 100_000,
    b"9" * 5000,
    b'{"by": 1, "at_s": 1e999, "number": "x", "step": 1e999, "state": 5, "reason": [], "reward": "x"}',
    b'{"state": "in use", "reason": "\\ud800", "reward": 1, "trouble": "\\ud800", "by": "\\ud800", "at_s": 1}',
    b'{"role": "learner", "state": "running", "at_s": 1e999, "step": 1e999, "version": 1e400, "max_steps": [], '
    b'"waiting": 7, "checkpoint_step": "x", "staleness": "x", "trouble": 5, "hint_schedule": 3}',
    b'{"role": "curriculum", "state": "running", "at_s": 1, "credit": "x", "revision": ' + b"9" * 400 + b"}",
    b'{"role": "generator", "state": "running", "at_s": 1, "requests": "x", "drained": 3, "tokens_per_s": []}',
    b'{"attempts": 1e999, "solved": 1}',
    b'{"attempts": ' + b"9" * 400 + b', "solved": 1, "last": ' + b"9" * 400 + b"}",
    b'{"attempts": 2, "solved": 3}',
    b'{"step": "x", "at_s": 1.0}',
    b'{"step": 1, "at_s": 1e30}',
]


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


async def answers(bench: Bench, *more: str) -> dict[str, Any]:
    """What every route answers, by its path; each answer is 200."""
    found: dict[str, Any] = {}
    for path in (*ROUTES, *more):
        answer = await bench.http.get(f"/v1/{path}")
        assert answer.status_code == 200, (path, answer.text)
        found[path] = answer.json()
    return found


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
async def test_a_value_that_cannot_be_read_spoils_no_answer(bench: Bench, junk: bytes) -> None:
    redis: Any = bench.process.redis
    keys = bench.process.keys
    posted = await bench.http.post("/v1/demonstrations", json={"prompt_id": "train:1", "text": "x"})
    addition = posted.json()["id"]
    await redis.hset(keys.verdicts, addition, junk)
    await redis.hset(keys.processes, mapping={b"\xff": junk, "learner": junk, "generator-1": json.dumps(LEARNER)})
    await redis.hset(keys.orders, mapping={"pause": junk, "checkpoint": junk, "drain:g": junk, b"\xff": junk})
    await redis.hset(keys.in_force, mapping={"1:learner": junk, "1:\u00ff": junk, b"\xff:\xff": junk, "x": junk})
    await redis.hset(keys.prompts, mapping={"train:1": junk, b"\xff": junk})
    await redis.hset(keys.prompts, "train:2", '{"attempts": 4, "solved": 1}')
    await redis.xadd(keys.weights, {"payload": junk})
    await redis.xadd(keys.examined, {"payload": junk, "group": "g", "prompt": "train:1"})
    await redis.xadd(keys.quarantine, {"stream": junk, "reason": junk})
    found = await answers(bench, f"demonstrations/{addition}")
    assert found["prompts"]["total"] == 1
    assert found["status"]["learner"]["paused"] is not None
    ordered = await bench.http.post("/v1/learner/checkpoint?wait_s=0")
    assert (ordered.status_code, ordered.json()["order"]) == (202, 1)


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
async def test_an_answer_of_the_learner_that_cannot_be_read_is_a_problem_of_each_candidate(
    bench: Bench, junk: bytes
) -> None:
    redis: Any = bench.process.redis
    asked = await bench.http.post("/v1/config/dry-run?wait_s=0", json={"candidates": [{"patch": {}}]})
    trial = asked.json()["id"]
    await redis.set(bench.process.keys.trial(trial), junk)
    found = (await bench.http.get(f"/v1/config/dry-run/{trial}")).json()
    assert (found["state"], found["candidates"][0]["finding"]) == ("answered", None)
    assert found["candidates"][0]["problem"]
    await redis.set(bench.process.keys.trial(f"{trial}:asked"), junk)
    assert (await bench.http.get(f"/v1/config/dry-run/{trial}")).status_code == 404


async def test_an_order_that_cannot_be_read_stands_until_it_is_taken_back(bench: Bench) -> None:
    redis: Any = bench.process.redis
    await redis.hset(bench.process.keys.orders, "pause", b"\xff")
    assert (await bench.control.orders.standing()).pause == Order("", 0.0)
    assert (await bench.http.post("/v1/learner/resume")).json()["paused"] is None


async def test_what_a_process_tells_of_itself_in_other_forms_is_read_as_not_told(bench: Bench) -> None:
    redis: Any = bench.process.redis
    told = {**LEARNER, "max_steps": "many", "waiting": "no", "staleness": [1], "trouble": None, "tokens_per_s": "fast"}
    await redis.hset(bench.process.keys.processes, "learner", json.dumps(told))
    learner = (await bench.http.get("/v1/status")).json()["learner"]
    assert (learner["step"], learner["max_steps"], learner["waiting"], learner["staleness"]) == (3, None, None, None)


async def test_a_data_set_size_that_is_none_refuses_nothing(bench: Bench) -> None:
    redis: Any = bench.process.redis
    luffy = {"algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}}
    await redis.hset(bench.process.keys.facts, mapping={"train_demonstrations": "x", "train_prompts": "x"})
    assert (await bench.patch(luffy)).status_code == 200
    for count in ("x", "9" * 5000):
        await redis.hset(bench.process.keys.facts, "train_prompts", count)
        added = await bench.http.post("/v1/demonstrations", json={"prompt_id": "train:1", "text": "x"})
        assert added.status_code == 202


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
async def test_a_revision_that_cannot_be_read_keeps_its_place_and_nobody_returns_to_it(
    bench: Bench, junk: bytes
) -> None:
    redis: Any = bench.process.redis
    await bench.http.patch("/v1/config", json={"publish_every": 2})
    await redis.lset(bench.process.keys.config_history, 0, junk)
    history = (await bench.http.get("/v1/config/revisions")).json()["revisions"]
    assert [(r["revision"], r["author"]) for r in history] == [(2, "operator"), (1, "unknown")]
    assert (await bench.http.get("/v1/config/revisions/1")).status_code == 200
    assert (await bench.http.post("/v1/config/rollback", json={"revision": 1})).status_code == 422
