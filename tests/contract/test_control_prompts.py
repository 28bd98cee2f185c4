"""Prompts over HTTP, on a real Redis: by solve rate, in pages, fifty thousand of them without holding anyone up."""

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


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


async def write(bench: Bench, records: dict[str, Any]) -> None:
    """Records as the curriculum writes them."""
    mapping = {name: json.dumps(record) for name, record in records.items()}
    await bench.process.redis.hset(bench.process.keys.prompts, mapping=mapping)  # pyright: ignore


async def ask(bench: Bench, **params: Any) -> Any:
    answer = await bench.http.get("/v1/prompts", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_prompt_tells_its_text_its_attempts_its_hints_and_its_anchor(bench: Bench) -> None:
    record = {"attempts": 8, "solved": 2, "last": 0.5, "hinted": {"attempts": 4, "solved": 3}, "anchor": 12}
    await write(bench, {"train:3": record})
    await bench.process.redis.hset(bench.process.keys.prompt_texts, "train:3", "1+2= é")  # pyright: ignore
    assert await ask(bench) == {
        "total": 1,
        "next": None,
        "prompts": [{"prompt_id": "train:3", "text": "1+2= é", "solve_rate": 0.25, **record}],
    }


async def test_prompts_are_ordered_by_solve_rate_then_row_and_paged_though_they_move(bench: Bench) -> None:
    rates = {0: (4, 4), 10: (8, 2), 2: (4, 1), 1: (4, 0), 7: (2, 0)}
    await write(bench, {f"train:{row}": {"attempts": a, "solved": s} for row, (a, s) in rates.items()})
    first = await ask(bench, limit=2)
    assert ([p["prompt_id"] for p in first["prompts"]], first["total"]) == (["train:1", "train:7"], 5)
    await write(bench, {"train:7": {"attempts": 4, "solved": 4}})
    second = await ask(bench, limit=2, after=first["next"])
    assert [p["prompt_id"] for p in second["prompts"]] == ["train:2", "train:10"]
    last = await ask(bench, limit=2, after=second["next"])
    assert ([p["prompt_id"] for p in last["prompts"]], last["next"]) == (["train:0", "train:7"], None)


async def test_prompts_are_chosen_by_rate_and_attempts(bench: Bench) -> None:
    records = {f"train:{row}": {"attempts": 10, "solved": row} for row in range(11)}
    await write(bench, records | {"train:50": {"attempts": 2, "solved": 0}, "train:51": {"attempts": 0, "solved": 0}})

    async def chosen(**params: Any) -> list[str]:
        return [p["prompt_id"] for p in (await ask(bench, **params))["prompts"]]

    assert await chosen(solve_rate=0) == ["train:0", "train:50"]
    assert await chosen(solve_rate=0, min_attempts=4) == ["train:0"]
    assert await chosen(solve_rate=0.3) == ["train:3"]
    assert await chosen(solve_rate_min=0.7, solve_rate_max=0.9) == ["train:7", "train:8", "train:9"]
    assert await chosen(solve_rate=0.55) == []


async def test_records_of_another_form_are_left_out(bench: Bench) -> None:
    await write(bench, {"train:1": {"attempts": 1, "solved": 1}, "train:2": [1], "odd": {"attempts": 1, "solved": 1}})
    await bench.process.redis.hset(bench.process.keys.prompts, "train:3", b"\xff")  # pyright: ignore
    assert [p["prompt_id"] for p in (await ask(bench))["prompts"]] == ["train:1"]


@pytest.mark.parametrize(
    "query", ["solve_rate=2", "solve_rate=nan", "after=x", "after=1/0:3", "min_attempts=0", "limit=100000"]
)
async def test_a_question_that_makes_no_sense_is_422(bench: Bench, query: str) -> None:
    assert (await bench.http.get(f"/v1/prompts?{query}")).status_code == 422


async def test_fifty_thousand_prompts_do_not_hold_up_those_who_ask_for_something_else(bench: Bench) -> None:
    for start in range(0, 50_000, 5_000):
        records = {
            f"train:{row}": {"attempts": 8, "solved": row % 9, "last": 0.5} for row in range(start, start + 5000)
        }
        await write(bench, records)
    asking = asyncio.create_task(ask(bench, solve_rate=0, limit=1000))
    longest_s = 0.0
    while not asking.done():
        start_s = time.perf_counter()
        await asyncio.sleep(0)
        longest_s = max(longest_s, time.perf_counter() - start_s)
    told = asking.result()
    assert (told["total"], len(told["prompts"])) == (5556, 1000)
    assert longest_s < 0.25, "the loop was held up"
    print(f"held up for {longest_s * 1000:.1f} ms at most")
