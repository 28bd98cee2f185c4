"""Expert scores on a real Redis: asked for once, answered once, kept by content."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from common.expert_scores import ExpertScores, Score, score_key
from common.keys import Keys
from common.streams import Entry
from common.trajectory import ScoreTask
from common.wire import decode_score_task

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def scores(client: Callable[[], Redis]) -> ExpertScores:
    scores = ExpertScores(client(), Keys("test"))
    await scores.prepare()
    return scores


def task(number: int, expert: str = "expert") -> ScoreTask:
    prompt, tokens = np.array([number, 2], np.int32), np.array([3, 4, 5], np.int32)
    return ScoreTask(score_key(expert, prompt, tokens), prompt, tokens)


async def taken(scores: ExpertScores, count: int = 10) -> list[Entry]:
    return await scores.tasks.take("scorer", count, 1)


async def test_what_is_asked_for_comes_to_the_scorer_token_for_token(scores: ExpertScores) -> None:
    assert await scores.ask([task(1)]) == 1
    [entry] = await taken(scores)
    received = decode_score_task(entry.payload)
    assert (received.key, received.prompt_tokens.tolist(), received.tokens.tolist()) == (task(1).key, [1, 2], [3, 4, 5])


async def test_nothing_is_asked_for_twice_before_or_after_it_is_answered(scores: ExpertScores) -> None:
    assert await scores.ask([task(1), task(2), task(1)]) == 2
    assert await scores.ask([task(2), task(3)]) == 1
    for entry in await taken(scores):
        key = decode_score_task(entry.payload).key
        assert await scores.answer(entry, key, Score(np.array([-0.5, -1.0, -1.5], np.float32)))
    assert await scores.ask([task(number) for number in (1, 2, 3)]) == 0
    assert await scores.tasks.length() == 0


async def test_more_tasks_than_one_script_takes_are_all_asked_for(scores: ExpertScores) -> None:
    assert await scores.ask([task(number) for number in range(100)]) == 100
    assert await scores.tasks.length() == 100


async def test_log_probs_come_back_bit_for_bit_and_a_reason_as_it_was_said(scores: ExpertScores) -> None:
    logprobs = np.array([-1 / 3, -0.0, -123.456], np.float32)
    await scores.ask([task(1), task(2), task(3)])
    first, second, _ = await taken(scores)
    await scores.answer(first, task(1).key, Score(logprobs))
    await scores.answer(second, task(2).key, Score(None, "too long: π"))
    known = await scores.known([task(number).key for number in (1, 2, 3)])
    assert known.keys() == {task(1).key, task(2).key}
    found = known[task(1).key].logprobs
    assert found is not None
    assert found.tobytes() == logprobs.tobytes()
    assert known[task(1).key].reason == ""
    assert (known[task(2).key].logprobs, known[task(2).key].reason) == (None, "too long: π")
    assert await scores.known([]) == {}


async def test_a_second_answer_is_refused_and_changes_nothing(scores: ExpertScores) -> None:
    await scores.ask([task(1)])
    [entry] = await taken(scores)
    assert await scores.answer(entry, task(1).key, Score(np.array([-1.0], np.float32)))
    assert not await scores.answer(entry, task(1).key, Score(np.array([-2.0], np.float32)))
    assert not await scores.withdraw(entry, task(1).key)
    found = (await scores.known([task(1).key]))[task(1).key].logprobs
    assert found is not None
    assert found.tolist() == [-1.0]


async def test_a_withdrawn_task_can_be_asked_for_anew(scores: ExpertScores) -> None:
    await scores.ask([task(1)])
    [entry] = await taken(scores)
    assert await scores.withdraw(entry, task(1).key)
    assert await scores.known([task(1).key]) == {}
    assert await scores.ask([task(1)]) == 1


async def test_a_damaged_score_is_one_that_is_not_there_and_says_so(
    scores: ExpertScores, client: Callable[[], Redis]
) -> None:
    await client().hset(Keys("test").scores, "key", b"+123")  # type: ignore[misc]
    known = (await scores.known(["key"]))["key"]
    assert (known.logprobs, known.reason) == (None, "its stored score cannot be read (4 bytes)")


async def test_the_expert_is_known_once_a_scorer_has_said_who_it_is(scores: ExpertScores) -> None:
    assert await scores.identity() == ""
    await scores.identify("path@digest")
    assert await scores.identity() == "path@digest"


async def test_the_key_tells_experts_prompts_and_demonstrations_apart_wherever_they_are_cut() -> None:
    def key(expert: str, prompt: list[int], tokens: list[int]) -> str:
        return score_key(expert, np.array(prompt, np.int32), np.array(tokens, np.int32))

    different = [key("a", [1, 2], [3]), key("a", [1], [2, 3]), key("b", [1, 2], [3]), key("a", [1, 2], [4])]
    assert len(set(different)) == 4
    assert key("a", [1, 2], [3]) == score_key("a", np.array([1, 2], np.int64), np.array([3], np.int32))  # type: ignore[arg-type]
