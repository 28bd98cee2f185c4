"""Dry runs over HTTP, on a real Redis, with a learner that answers as the real one does: through common/trials.py."""

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
from dry_run_findings import ACTIVE
from redis_process import RedisProcess

from common.config.live import dump_live
from common.trials import KEPT_S, MOST_WAITING, Trials

GAMMA = {"label": "γ = 0.3", "patch": {"algorithm": {"gamma": 0.3}}}
LUFFY = {"algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}}
FINDING: dict[str, Any] = ACTIVE | {
    "pull": {"policy": 0.5, "demonstration": 0.25},
    "cosine": 0.93,
    "missing_trajectories": 2,
    "notes": ["2 trajectories are not in this batch"],
}


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


async def beat(bench: Bench) -> None:
    told = {"role": "learner", "state": "running", "at_s": time.time(), "revision": 1, "version": 3, "step": 3}
    await bench.process.redis.hset(bench.process.keys.processes, "learner", json.dumps(told))  # pyright: ignore


async def answer_next(bench: Bench, **changes: Any) -> list[Any]:
    """Answer the next trial as the learner does; the configurations that it was asked to try."""
    trials = Trials(bench.process.redis, bench.process.keys)
    while not (waiting := await trials.waiting()):
        await asyncio.sleep(0.01)
    (asked,) = waiting
    assert asked.trial is not None
    candidates = [{"label": c.label, "finding": FINDING, "problem": ""} for c in asked.trial.candidates]
    told = {"step": 4, "revision": 1, "seconds": 0.02, "active": {**FINDING, "cosine": 1.0}, "candidates": candidates}
    await trials.answer(asked, told | changes)
    return [dump_live(c.live) for c in asked.trial.candidates]


async def ask(bench: Bench, *candidates: Any, wait_s: float = 10) -> Any:
    return await bench.http.post("/v1/config/dry-run", params={"wait_s": wait_s}, json={"candidates": list(candidates)})


async def test_a_dry_run_tells_what_the_learner_found_and_changes_nothing(bench: Bench) -> None:
    await bench.patch(LUFFY)
    await beat(bench)
    answer, asked = await asyncio.gather(ask(bench, GAMMA, {"patch": {"groups_per_step": 4}}), answer_next(bench))
    assert answer.status_code == 200
    told = answer.json()
    assert (told["state"], told["step"], told["revision"], told["notice"]) == ("answered", 4, 1, "")
    assert told["active"]["cosine"] == 1.0
    first, second = told["candidates"]
    assert (first["label"], second["label"]) == ("γ = 0.3", "candidate 2")
    assert first["changes"] == [{"path": "algorithm.gamma", "before": 0.1, "after": 0.3}]
    assert first["finding"] == FINDING
    assert [c["config"] for c in told["candidates"]] == asked
    assert asked[0]["algorithm"]["gamma"] == 0.3
    assert asked[1]["groups_per_step"] == 4
    assert await bench.process.config.number() == 2
    again = await bench.http.get(f"/v1/config/dry-run/{told['id']}")
    assert again.json() == told


async def test_what_is_not_answered_in_time_is_202_and_can_be_asked_for_later(bench: Bench) -> None:
    await beat(bench)
    answer = await ask(bench, {"patch": {"groups_per_step": 4}}, wait_s=0.1)
    assert answer.status_code == 202
    assert answer.json()["state"] == "waiting"
    assert "within 0.1 s" in answer.json()["notice"]
    place = answer.headers["location"]
    assert (await bench.http.get(place)).json()["state"] == "waiting"
    await answer_next(bench)
    later = (await bench.http.get(place)).json()
    assert (later["state"], later["candidates"][0]["finding"]["loss"]) == ("answered", -0.25)


async def test_without_a_learner_or_with_a_paused_one_nobody_waits(bench: Bench) -> None:
    start_s = time.monotonic()
    absent = await ask(bench, {"patch": {}}, wait_s=60)
    await beat(bench)
    await bench.http.post("/v1/learner/pause")
    paused = await ask(bench, {"patch": {}}, wait_s=60)
    assert time.monotonic() - start_s < 20
    assert (absent.status_code, paused.status_code) == (202, 202)
    assert "no learner is alive" in absent.json()["notice"]
    assert "the learner is paused" in paused.json()["notice"]


async def test_a_candidate_that_the_learner_could_not_evaluate_says_why(bench: Bench) -> None:
    await beat(bench)
    failed = [{"label": "x", "finding": None, "problem": "the reference model is not held"}]
    answer, _ = await asyncio.gather(ask(bench, {"patch": {}}), answer_next(bench, candidates=failed))
    (candidate,) = answer.json()["candidates"]
    assert (candidate["finding"], candidate["problem"]) == (None, "the reference model is not held")


async def test_an_answer_that_cannot_be_read_is_said_and_not_raised(bench: Bench) -> None:
    await beat(bench)
    odd = [{"label": "x", "finding": {"of": "tomorrow"}, "problem": ""}]
    answer, _ = await asyncio.gather(ask(bench, {"patch": {}}), answer_next(bench, candidates=odd, active=None))
    assert answer.status_code == 200
    assert "of another version" in answer.json()["candidates"][0]["problem"]


@pytest.mark.parametrize(
    ("body", "path", "sentence"),
    [
        ({"candidates": [GAMMA]}, "candidates.0.patch.algorithm.gamma", "not known here"),
        ({"candidates": [{"patch": {}}, {"patch": {"groups_per_step": 0}}]}, "candidates.1.patch.groups_per_step", ""),
        (
            {"candidates": [{"patch": {"algorithm": {"kind": "luffy"}}}]},
            "candidates.0.patch",
            "in the same change",
        ),
        ({"candidates": []}, "candidates", "at least 1"),
        ({"candidates": [{"patch": {}}] * 9}, "candidates", "at most 8"),
        ({"candidates": [{"patch": {}, "name": "x"}]}, "candidates.0.name", ""),
        ({"candidates": [{"label": "\ud800", "patch": {}}]}, "candidates.0.label", ""),
        ({}, "candidates", "required"),
    ],
)
async def test_a_candidate_that_would_be_refused_is_refused_with_its_path(
    bench: Bench, body: Any, path: str, sentence: str
) -> None:
    answer = await bench.http.post(
        "/v1/config/dry-run", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == path
    assert sentence in answer.json()["errors"][0]["message"]
    assert await Trials(bench.process.redis, bench.process.keys).waiting() == []


async def test_data_without_demonstrations_refuse_a_candidate_that_needs_them(bench: Bench) -> None:
    await bench.process.redis.hset(bench.process.keys.facts, "train_demonstrations", "0")  # pyright: ignore
    answer = await ask(bench, {"patch": LUFFY})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "candidates.0.patch.algorithm.kind"


async def test_too_many_that_wait_are_429_and_leave_nothing_behind(bench: Bench) -> None:
    for _ in range(MOST_WAITING):
        assert (await ask(bench, {"patch": {}})).status_code == 202
    keys = await bench.process.redis.keys("*")
    refused = await ask(bench, {"patch": {}})
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "5"
    assert sorted(await bench.process.redis.keys("*")) == sorted(keys)


async def test_those_that_expired_while_no_learner_was_there_make_room(bench: Bench) -> None:
    current = await bench.process.config.current()
    assert current is not None
    long_ago_s = time.time() - KEPT_S - 1
    for _ in range(MOST_WAITING):
        assert await bench.control.dry_runs.ask(current, [("old", current.live)], long_ago_s)
    assert (await ask(bench, {"patch": {}})).status_code == 202
    (left,) = await Trials(bench.process.redis, bench.process.keys).waiting()
    assert left.trial is not None
    assert left.trial.candidates[0].label == "candidate 1"


async def test_one_that_expired_or_never_was_is_404(bench: Bench) -> None:
    assert (await bench.http.get("/v1/config/dry-run/0123456789abcdef")).status_code == 404
    assert (await bench.http.get("/v1/config/dry-run/nonsense")).status_code == 422
    place = (await ask(bench, {"patch": {}})).headers["location"]
    dry_runs = bench.control.dry_runs
    assert await dry_runs.find(place.rpartition("/")[2], time.time() + KEPT_S - 5) is not None
    assert await dry_runs.find(place.rpartition("/")[2], time.time() + KEPT_S + 5) is None
