"""Revisions on a real Redis: compare-and-set, no lost update, no skipped number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from common.config.live import dump_live, merge_patch, parse_live
from common.config.store import Author, Change, ConfigStore
from common.errors import LostRace
from common.keys import Keys

pytestmark = pytest.mark.asyncio
OPERATOR = Author("operator", "127.0.0.1")


NewClient = Callable[[], Redis]


def store_at(client: NewClient) -> ConfigStore:
    return ConfigStore(client(), Keys("test"))


async def test_there_is_no_revision_before_the_first(client: NewClient) -> None:
    store = store_at(client)
    assert (await store.number(), await store.current(), await store.history()) == (0, None, [])


async def test_a_revision_says_who_when_and_what_changed(client: NewClient) -> None:
    store = store_at(client)
    await store.replace(parse_live({}), 0, OPERATOR, at_s=1.0)
    await store.replace(parse_live({"groups_per_step": 3}), 1, OPERATOR, at_s=2.0, reason="smaller")
    current = await store.current()
    assert current is not None
    assert (current.number, current.author, current.at_s, current.reason) == (2, OPERATOR, 2.0, "smaller")
    assert current.changes == (Change("groups_per_step", 16, 3),)
    assert [r.number for r in await store.history()] == [1, 2]
    assert [r.number for r in await store.history(2, 2)] == [2]


async def test_a_lost_race_is_said_with_both_numbers(client: NewClient) -> None:
    store = store_at(client)
    await store.replace(parse_live({}), 0, OPERATOR, at_s=1.0)
    with pytest.raises(LostRace, match="revision 0 was expected but revision 1 is current"):
        await store.replace(parse_live({}), 0, OPERATOR, at_s=1.0)


async def test_a_hundred_concurrent_changes_lose_nothing(client: NewClient) -> None:
    await store_at(client).replace(parse_live({"max_staleness": 0}), 0, OPERATOR, at_s=0.0)

    async def increment() -> None:
        store = store_at(client)
        while True:
            current = await store.current()
            assert current is not None
            patch = {"max_staleness": current.live.max_staleness + 1}
            try:
                live = parse_live(merge_patch(dump_live(current.live), patch))
                await store.replace(live, current.number, OPERATOR, at_s=0.0)
            except LostRace:
                continue
            return

    for _ in range(10):
        await asyncio.gather(*(increment() for _ in range(10)))
    history = await store_at(client).history()
    assert [r.number for r in history] == list(range(1, 102))
    assert [r.live.max_staleness for r in history] == list(range(101))


async def test_the_first_moment_in_force_is_kept(client: NewClient) -> None:
    store = store_at(client)
    await store.mark_in_force("learner", 2, step=7, at_s=1.0)
    await store.mark_in_force("learner", 2, step=9, at_s=2.0)
    assert await store.in_force() == {2: {"learner": {"step": 7, "at_s": 1.0}}}
