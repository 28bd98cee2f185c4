"""Demonstrations over HTTP, on a real Redis: added, judged as the curriculum judges them, and told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from redis_process import RedisProcess

from common.additions import LONGEST_TEXT, MOST_BYTES, Additions, AdditionState, AdditionVerdict
from common.events import EventKind

PATH = "/v1/demonstrations"


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        await bench.process.redis.hset(bench.process.keys.facts, "train_prompts", 10)  # pyright: ignore
        yield bench


async def add(bench: Bench, prompt_id: Any, text: Any) -> Any:
    body = json.dumps({"prompt_id": prompt_id, "text": text})
    headers = {"Content-Type": "application/json", "X-Tributary-Author": "ada"}
    return await bench.http.post(PATH, content=body, headers=headers)


async def test_a_demonstration_waits_is_judged_and_tells_what_became_of_it(bench: Bench) -> None:
    answer = await add(bench, "train:9", "1 + 2 = 3 ✓")
    assert answer.status_code == 202
    told = answer.json()
    assert (told["state"], told["by"], told["characters"], told["reward"]) == ("waiting", "ada", 11, None)
    assert answer.headers["location"] == f"{PATH}/{told['id']}"
    assert (await bench.http.get(answer.headers["location"])).json() == told
    additions = Additions(bench.process.redis, bench.process.keys)
    (waiting,) = await additions.after()
    assert (waiting.prompt_id, waiting.text, waiting.by) == ("train:9", "1 + 2 = 3 ✓", "ada")
    await additions.judge(waiting.addition_id, AdditionVerdict(AdditionState.IN_USE, reward=1.0))
    judged = (await bench.http.get(f"{PATH}/{told['id']}")).json()
    assert (judged["state"], judged["reward"]) == ("in use", 1.0)
    (event,) = [e.data for e in await bench.process.events.read() if e.kind is EventKind.ADDITION]
    assert event == {"id": told["id"], "prompt_id": "train:9", "by": "ada", "state": "waiting", "reason": ""}


async def test_they_are_listed_newest_first_with_the_beginning_of_each(bench: Bench) -> None:
    ids = [(await add(bench, f"train:{n}", f"{n}" * 300)).json()["id"] for n in range(3)]
    additions = Additions(bench.process.redis, bench.process.keys)
    refused = AdditionVerdict(AdditionState.REFUSED, "graded 0: it is not the answer", 0.0)
    await additions.judge(ids[0], refused)
    rows = (await bench.http.get(PATH)).json()["demonstrations"]
    assert [row["id"] for row in rows] == ids[::-1]
    assert rows[0]["text"] == "2" * 200
    assert rows[0]["characters"] == 300
    assert (rows[2]["state"], rows[2]["reason"]) == ("refused", "graded 0: it is not the answer")
    assert len((await bench.http.get(PATH, params={"limit": 1})).json()["demonstrations"]) == 1


@pytest.mark.parametrize("prompt_id", ["train:10", "train:-1", "train:01", "train:٣", "heldout:1", "", "train:1\n"])
async def test_a_prompt_that_the_data_does_not_have_is_404(bench: Bench, prompt_id: str) -> None:
    answer = await add(bench, prompt_id, "3")
    assert answer.status_code == 404
    assert "train:0 to train:9" in answer.json()["detail"]


async def test_before_the_data_is_known_the_curriculum_is_left_to_judge(bench: Bench) -> None:
    await bench.process.redis.delete(bench.process.keys.facts)
    assert (await add(bench, "train:123456", "3")).status_code == 202
    assert (await add(bench, "heldout:1", "3")).status_code == 404


@pytest.mark.parametrize(
    ("prompt_id", "text"),
    [
        ("train:1", ""),
        ("train:1", " \n"),
        ("train:1", "x" * (LONGEST_TEXT + 1)),
        ("train:1", "\ud800"),
        ("train:1", 3),
        (1, "3"),
        ("train:\udfff", "3"),
    ],
)
async def test_what_is_no_text_is_422_and_nothing_is_added(bench: Bench, prompt_id: Any, text: Any) -> None:
    answer = await add(bench, prompt_id, text)
    assert answer.status_code == 422
    assert await bench.process.redis.exists(bench.process.keys.additions) == 0


async def test_the_longest_text_fits_into_a_body(bench: Bench) -> None:
    assert (await add(bench, "train:1", "x" * LONGEST_TEXT)).status_code == 202


async def test_one_that_was_never_added_is_404(bench: Bench) -> None:
    assert (await bench.http.get(f"{PATH}/1-1")).status_code == 404
    assert (await bench.http.get(f"{PATH}/x")).status_code == 422


async def test_more_than_is_kept_of_them_is_refused_with_a_sentence(bench: Bench) -> None:
    await bench.process.redis.set(bench.process.keys.additions_bytes, MOST_BYTES)
    answer = await add(bench, "train:1", "3")
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:tributary:problem:no-room")
