"""The audit of a revision on a real Redis: where it came into force, and what the steps around it were like."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from pretended_run import PretendedRun
from redis_process import RedisProcess

from common.events import EventKind


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


async def step(bench: Bench, number: int, revision: int, **figures: Any) -> None:
    await bench.process.events.append(
        EventKind.STEP, {"step": number, "revision": revision, **figures}, at_s=time.time()
    )


async def evaluation(bench: Bench, number: int, accuracy: float | None, dataset: str = "hard") -> None:
    told = {"dataset": dataset, "version": number, "step": number, "accuracy": accuracy}
    await bench.process.events.append(EventKind.EVALUATION, told, at_s=time.time())


async def in_force(bench: Bench, revision: int, at_step: int, learner: str = "learner") -> None:
    await bench.process.config.mark_in_force(learner, revision, step=at_step, at_s=time.time())


async def audit(bench: Bench, revision: int) -> Any:
    answer = await bench.http.get(f"/v1/config/revisions/{revision}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_revision_that_is_not_in_force_yet_has_no_surroundings(bench: Bench) -> None:
    await bench.patch({"publish_every": 2})
    told = await audit(bench, 2)
    assert (told["revision"], told["author"], told["in_force"], told["step"]) == (2, "operator", {}, None)
    assert told["changes"] == [{"path": "publish_every", "before": 1, "after": 2}]
    assert (told["steps_before"], told["steps_after"]) == (0, 0)
    assert told["before"] == told["after"]
    assert told["before"]["reward"] is None


async def test_the_means_are_those_of_ten_steps_before_and_ten_after(bench: Bench) -> None:
    await in_force(bench, 1, 0)
    for number in range(1, 31):
        await step(bench, number, 1, reward=number / 100, loss=None, effective_sample_size={"policy": 0.5, "hint": 9})
    await bench.patch({"publish_every": 2})
    await in_force(bench, 2, 30)
    for number in range(31, 61):
        await step(bench, number, 2, reward=number / 100, loss=2.0, effective_sample_size={"hint": 9})
    told = await audit(bench, 2)
    assert (told["step"], told["steps_before"], told["steps_after"]) == (30, 10, 10)
    before, after = told["before"], told["after"]
    assert before["reward"] == pytest.approx(sum(range(21, 31)) / 1000)
    assert after["reward"] == pytest.approx(sum(range(31, 41)) / 1000)
    assert (before["effective_sample_size"], after["effective_sample_size"]) == (0.5, None)
    assert (before["loss"], after["loss"]) == (None, 2.0)
    first = await audit(bench, 1)
    assert (first["step"], first["steps_before"], first["steps_after"]) == (0, 0, 10)


async def test_what_a_later_revision_did_is_not_told_of_this_one(bench: Bench) -> None:
    for revision in (2, 3):
        await bench.patch({"publish_every": revision})
        await in_force(bench, revision, 5 * (revision - 1))
        for number in range(5 * (revision - 1) + 1, 5 * revision + 1):
            await step(bench, number, revision, reward=float(revision))
    second, third = await audit(bench, 2), await audit(bench, 3)
    assert (second["steps_before"], second["steps_after"], second["after"]["reward"]) == (0, 5, 2.0)
    assert (third["steps_before"], third["before"]["reward"], third["after"]["reward"]) == (5, 2.0, 3.0)


async def test_accuracies_are_those_of_weights_made_before_and_after(bench: Bench) -> None:
    await in_force(bench, 1, 0)
    for number in range(1, 11):
        await step(bench, number, 1)
        await evaluation(bench, number, number / 100)
    await evaluation(bench, 4, 0.9, "easy")
    await bench.patch({"publish_every": 2})
    await in_force(bench, 2, 10)
    await evaluation(bench, 10, 0.11, "late")
    await evaluation(bench, 10, None, "broken")
    for number in range(11, 21):
        await step(bench, number, 2)
        await evaluation(bench, number, number / 100)
    told = await audit(bench, 2)
    assert told["before"]["accuracy"] == {"hard": 0.1, "easy": 0.9, "late": 0.11}
    assert told["after"]["accuracy"] == {"hard": 0.11}


async def test_steps_that_a_restored_learner_made_again_count_once_and_as_they_were_last(bench: Bench) -> None:
    await in_force(bench, 1, 0)
    for number, reward in ((1, 0.0), (2, 9.0), (2, 1.0)):
        await step(bench, number, 1, reward=reward)
    await bench.patch({"publish_every": 2})
    await in_force(bench, 2, 2)
    for number, reward in ((3, 9.0), (4, 9.0), (3, 2.0), (4, 3.0)):
        await step(bench, number, 2, reward=reward)
    told = await audit(bench, 2)
    assert (told["steps_before"], told["before"]["reward"]) == (2, 0.5)
    assert (told["steps_after"], told["after"]["reward"]) == (2, 2.5)


async def test_the_learner_is_known_by_its_role_and_other_processes_do_not_count(bench: Bench) -> None:
    await in_force(bench, 1, 7, "the-learner")
    await in_force(bench, 1, 3, "generator-1")
    beat = json.dumps({"role": "learner", "state": "running", "at_s": time.time()})
    await bench.process.redis.hset(bench.process.keys.processes, "the-learner", beat)  # pyright: ignore
    assert (await audit(bench, 1))["step"] == 7
    (listed,) = (await bench.http.get("/v1/config/revisions")).json()["revisions"]
    assert (listed["step"], set(listed["in_force"])) == (7, {"the-learner", "generator-1"})


async def test_events_that_are_not_as_we_write_them_do_not_disturb_an_audit(bench: Bench) -> None:
    await in_force(bench, 1, 0)
    for data in ({}, {"step": "x", "revision": []}, {"step": {}}, {"revision": True}, {"step": [1], "revision": 1}):
        for kind in (EventKind.STEP, EventKind.EVALUATION):
            await bench.process.events.append(kind, data, at_s=1.0)
    assert (await bench.http.get("/v1/config/revisions/1")).status_code == 200


async def test_a_live_run_is_audited_as_it_goes(bench: Bench) -> None:
    pretended = PretendedRun(bench.process.redis, "test")
    for _ in range(15):
        await pretended.advance(time.time())
    await bench.patch({"algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}})
    for _ in range(15):
        await pretended.advance(time.time())
    told = await audit(bench, 2)
    assert (told["step"], told["steps_before"], told["steps_after"]) == (15, 10, 10)
    assert set(told["before"]["accuracy"]) == set(told["after"]["accuracy"]) == {"easy", "hard"}
    assert all(told[side][name] is not None for side in ("before", "after") for name in ("entropy", "tokens_per_s"))


@pytest.mark.parametrize(("revision", "status"), [("2", 404), ("0", 422), ("-1", 422), ("x", 422), ("9" * 30, 422)])
async def test_a_revision_that_there_is_not_is_a_problem(bench: Bench, revision: str, status: int) -> None:
    answer = await bench.http.get(f"/v1/config/revisions/{revision}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
