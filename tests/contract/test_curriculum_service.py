"""The curriculum on a real Redis: paces by credit, resumes without a gap, evaluates and reports once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis_process import RedisProcess
from tiny_tokenizer import EOS

from common.config.live import parse_live
from common.streams import Entry
from common.trajectory import Purpose, Request
from services.curriculum.__main__ import load
from tests.contract.curriculum_rig import LIVE, LUFFY, TEST, Bench, running, until, write_run

pytestmark = pytest.mark.asyncio


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> Bench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return Bench(client(), write_run(tmp_path))


async def test_outstanding_groups_never_exceed_the_credit_and_follow_what_is_settled(bench: Bench) -> None:
    await bench.config.replace(parse_live(LIVE), 0, TEST, at_s=0.0)

    async def outstanding_is_four() -> bool:
        return await bench.delivery.outstanding() == 4

    async with running(bench):
        await until(outstanding_is_four)
        first = await bench.take()
        assert len(first) == 4
        await bench.delivery.settle([first[0][1].request_id])
        await until(outstanding_is_four)
        assert len(await bench.take()) == 1


async def test_after_a_restart_the_order_goes_on_without_gap_or_repetition(bench: Bench) -> None:
    await bench.config.replace(parse_live(LIVE), 0, TEST, at_s=0.0)
    seen: list[str] = []
    for _ in range(6):
        async with running(bench):
            count = len(seen) + 3

            async def enough(count: int = count) -> bool:
                for entry, request in await bench.take(1):
                    seen.append(request.prompt_id)
                    await bench.answer(entry, request, 0.0)
                    await bench.delivery.settle([request.request_id])
                return len(seen) >= count

            await until(enough)
    assert sorted(seen[:9]) == sorted(f"train:{i}" for i in range(9))
    assert sorted(seen[9:18]) == sorted(seen[:9])


async def test_a_revision_changes_the_next_request(bench: Bench) -> None:
    await bench.config.replace(parse_live(LIVE), 0, TEST, at_s=0.0)
    async with running(bench):

        async def request_of_revision(revision: int) -> Request:
            async with asyncio.timeout(10):
                while True:
                    for _, request in await bench.take():
                        await bench.delivery.settle([request.request_id])
                        if request.revision == revision:
                            return request
                    await asyncio.sleep(0.02)

        assert (await request_of_revision(1)).demonstrations == ()
        await bench.config.replace(parse_live(LUFFY), 1, TEST, at_s=0.0)
        request = await request_of_revision(2)
        assert (request.plan.plain, request.plan.demonstrations) == (7, 1)
        assert request.demonstrations[0].tokens[-1] == EOS
        assert request.demonstrations[0].boundaries == (2,)


async def test_an_evaluation_is_reported_once_even_if_the_curriculum_dies_in_the_middle(bench: Bench) -> None:
    await bench.config.replace(parse_live({**LIVE, "max_staleness": 0}), 0, TEST, at_s=0.0)
    await bench.generator_beats(0)
    waiting: list[tuple[Entry, Request]] = []

    async def three_evaluations_wait() -> bool:
        await bench.generator_beats(0)
        waiting.extend(item for item in await bench.take() if item[1].purpose is Purpose.EVALUATE)
        return len(waiting) == 3

    async with running(bench):
        await until(three_evaluations_wait)
        assert all(r.plan.plain == 3 and r.score_demonstration for _, r in waiting)
        await bench.answer(*waiting[0], reward=1.0)
        await bench.answer(*waiting[1], reward=0.0)
        await asyncio.sleep(0.3)
    assert await bench.evaluations() == []

    async def reported() -> bool:
        return bool(await bench.evaluations())

    async with running(bench):
        await bench.answer(*waiting[2], reward=0.0)
        await until(reported)
        await asyncio.sleep(0.3)
    [event] = await bench.evaluations()
    assert (event.data["dataset"], event.data["version"], event.data["prompts"]) == ("heldout", 0, 3)
    assert event.data["accuracy"] == pytest.approx(1 / 3)
    assert event.data["nll"] == pytest.approx(0.5)
    assert await bench.delivery.outcomes.length() == 0


async def test_the_end_of_training_brings_a_last_evaluation_and_says_so(bench: Bench) -> None:
    await bench.config.replace(parse_live(LIVE), 0, TEST, at_s=0.0)
    await bench.redis.hset(bench.keys.facts, "finished", 0)

    async def evaluated() -> bool:
        await bench.generator_beats(0)
        for entry, request in await bench.take():
            await bench.answer(entry, request, 1.0)
        return await bench.redis.hget(bench.keys.facts, "evaluated") == b"0"

    async with running(bench):
        await until(evaluated)
    assert [e.data["accuracy"] for e in await bench.evaluations()] == [1.0]
    assert await bench.delivery.outstanding() == 0


async def test_data_is_checked_before_anything_starts(bench: Bench) -> None:
    training, heldout, tokeniser = load(bench.settings)
    assert (len(training), training.with_demonstrations, len(heldout[0]), tokeniser.context) == (9, 9, 3, 64)


async def test_answers_that_redis_lost_are_asked_for_again_and_then_done_without(bench: Bench) -> None:
    await bench.config.replace(parse_live(LIVE), 0, TEST, at_s=0.0)
    await bench.redis.hset(bench.keys.facts, "finished", 0)
    asked: dict[str, int] = {}

    async def reported() -> bool:
        await bench.generator_beats(0)
        for entry, request in await bench.take():
            asked[request.prompt_id] = asked.get(request.prompt_id, 0) + 1
            if (request.prompt_id, asked[request.prompt_id]) in {("heldout:0", 1), ("heldout:1", 2)}:
                await bench.answer(entry, request, 1.0)
            else:
                await bench.delivery.requests.acknowledge([entry.entry_id])
        return bool(await bench.evaluations())

    async with running(bench):
        await until(reported)
    [event] = await bench.evaluations()
    assert asked == {"heldout:0": 1, "heldout:1": 2, "heldout:2": 3}
    assert (event.data["prompts"], event.data["failures"], event.data["accuracy"]) == (2, 1, 1.0)


async def test_outcomes_whose_reply_was_lost_are_read_again(bench: Bench) -> None:
    await bench.config.replace(parse_live(LIVE), 0, TEST, at_s=0.0)
    lost: list[Entry] = []

    async def solve_rates() -> bool:
        return bool(await bench.redis.hlen(bench.keys.prompts))

    async with running(bench) as process:
        take = process.delivery.outcomes.take

        async def take_and_lose_the_first_reply(consumer: str, count: int, block_ms: int) -> list[Entry]:
            entries = await take(consumer, count, block_ms)
            if entries and not lost:
                lost.extend(entries)
                raise ConnectionError("the reply was lost")
            return entries

        process.delivery.outcomes.take = take_and_lose_the_first_reply
        async with asyncio.timeout(10):
            while not (waiting := await bench.take(1)):
                await asyncio.sleep(0.02)
        await bench.answer(*waiting[0], reward=1.0)
        await until(solve_rates)
    assert len(lost) == 1


async def test_it_stops_at_once_while_there_is_no_revision(bench: Bench) -> None:
    async with running(bench):
        await asyncio.sleep(0.2)


async def test_a_configuration_that_no_prompt_fits_is_said(bench: Bench) -> None:
    short = {**LIVE, "algorithm": {"kind": "sft"}, "hints": {"kind": "demonstration"}}
    await bench.config.replace(parse_live({**short, "sampling": {"max_response_tokens": 2}}), 0, TEST, at_s=0.0)

    async def said() -> bool:
        return any("no prompt fits revision 1" in str(e.data.get("text")) for e in await bench.events.read())

    async with running(bench):
        await until(said)
