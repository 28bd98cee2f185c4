"""The board of trials in a real Redis: asked, seen by the learner in order, answered once, forgotten after a while."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from common.config.live import LiveConfig, parse_live
from common.keys import Keys
from common.trials import KEPT_S, MOST_WAITING, Candidate, Trial, Trials

KEYS = Keys("test")
GAMMA = parse_live({"algorithm": {"kind": "luffy", "gamma": 0.3}, "hints": {"kind": "demonstration"}})


def trial(name: str, *lives: LiveConfig) -> Trial:
    return Trial(name, tuple(Candidate(f"γ {i}", live) for i, live in enumerate(lives or (GAMMA,))), asked_s=12.25)


async def test_a_trial_comes_out_as_it_went_in_oldest_first(client: Callable[[], Redis]) -> None:
    trials = Trials(client(), KEYS)
    first, second = trial("one", GAMMA, LiveConfig()), trial("two")
    assert await trials.ask(first)
    assert await trials.ask(second)
    assert [w.trial for w in await trials.waiting()] == [first, second]
    assert await trials.is_waiting("one")
    assert await trials.finding("one") is None


async def test_an_answer_takes_its_trial_off_the_board_and_expires(client: Callable[[], Redis]) -> None:
    redis = client()
    trials = Trials(redis, KEYS)
    await trials.ask(trial("one"))
    (waiting,) = await trials.waiting()
    for _ in range(2):  # a repeated call after a lost reply changes nothing
        await trials.answer(waiting, {"step": 3, "candidates": [{"label": "γ", "finding": None}]})
    assert await trials.waiting() == []
    assert not await trials.is_waiting("one")
    assert await trials.finding("one") == {"step": 3, "candidates": [{"label": "γ", "finding": None}]}
    assert 0 < await redis.ttl(KEYS.trial("one")) <= KEPT_S


async def test_numbers_that_json_has_not_are_refused(client: Callable[[], Redis]) -> None:
    trials = Trials(client(), KEYS)
    await trials.ask(trial("one"))
    (waiting,) = await trials.waiting()
    with pytest.raises(ValueError, match="not JSON compliant"):
        await trials.answer(waiting, {"loss": float("nan")})
    assert await trials.is_waiting("one")


async def test_a_trial_can_be_withdrawn_or_dropped(client: Callable[[], Redis]) -> None:
    trials = Trials(client(), KEYS)
    asked = [trial("one"), trial("two"), trial("three")]
    for each in asked:
        await trials.ask(each)
    await trials.withdraw(asked[1])
    (first, _) = await trials.waiting()
    await trials.drop(first)
    assert [w.trial for w in await trials.waiting()] == [asked[2]]
    assert await trials.finding("one") is None


async def test_only_so_many_trials_wait(client: Callable[[], Redis]) -> None:
    trials = Trials(client(), KEYS)
    assert [await trials.ask(trial(f"t{i}")) for i in range(MOST_WAITING + 1)] == [True] * MOST_WAITING + [False]


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b"null",
        b"[]",
        json.dumps({"id": "x", "asked_s": 1, "candidates": [{"label": "l"}]}).encode(),
        json.dumps({"id": "x", "asked_s": 1, "candidates": [{"label": "l", "config": {"gamma": 1}}]}).encode(),
    ],
)
async def test_what_cannot_be_read_waits_as_such_and_can_be_answered_away(
    client: Callable[[], Redis], text: bytes
) -> None:
    redis: Any = client()
    trials = Trials(redis, KEYS)
    await redis.rpush(KEYS.trials, text)
    await trials.ask(trial("one"))
    unreadable, readable = await trials.waiting()
    assert (unreadable.trial, readable.trial) == (None, trial("one"))
    await trials.answer(unreadable, {"problem": "it cannot be read"})
    assert [w.trial for w in await trials.waiting()] == [trial("one")]
