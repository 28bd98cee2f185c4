"""What `up` writes in Redis: a run that is alive there is not erased, and its end can be forgotten."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis_process import RedisProcess

from common.errors import SettingsError
from common.keys import Keys
from services.cli.up.ledger import Ledger

KEYS = Keys("ours")


async def beat(redis: Any, state: str, age_s: float) -> None:
    told = {"name": "learner", "pid": 1, "state": state, "at_s": time.time() - age_s}
    await redis.hset(KEYS.processes, "learner", json.dumps(told))


async def test_a_run_that_is_alive_is_not_erased(client: Callable[[], Redis]) -> None:
    redis = client()
    await beat(redis, "running", 2)
    with pytest.raises(SettingsError, match=r"alive in this Redis: stop it, or change \[run\] name"):
        await Ledger(redis, KEYS).erase()
    assert await redis.exists(KEYS.processes)


@pytest.mark.parametrize(("state", "age_s"), [("running", 60), ("stopped", 0), ("failed", 0)])
async def test_a_run_that_has_stopped_or_died_is_erased(client: Callable[[], Redis], state: str, age_s: float) -> None:
    redis = client()
    await beat(redis, state, age_s)
    assert await Ledger(redis, KEYS).erase() == 1


async def test_a_new_session_knows_nothing_of_the_last_ones_expert_and_end(client: Callable[[], Redis]) -> None:
    ledger = Ledger(redis := client(), KEYS)
    earlier = {"finished": "9", "evaluated": "9", "dashboard": "here", "expert_identity": "old", "train_prompts": "5"}
    await redis.hset(KEYS.facts, mapping=earlier)  # pyright: ignore
    await ledger.begin()
    assert await ledger.facts() == {"train_prompts": "5"}


async def test_facts_are_unknown_while_redis_is_away(client: Callable[[], Redis], redis_server: RedisProcess) -> None:
    ledger = Ledger(redis := client(), KEYS)
    await redis.hset(KEYS.facts, mapping={"finished": "9", "evaluated": "9", "dashboard": "here"})  # pyright: ignore
    await ledger.forget_end()
    assert await ledger.facts() == {"dashboard": "here"}
    redis_server.kill()
    await ledger.forget_end()
    assert await ledger.facts() is None
    redis_server.start()
    assert await ledger.facts() is not None
