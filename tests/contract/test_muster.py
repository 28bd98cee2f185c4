"""The muster before a broadcast: all of them, or none, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from common.keys import Keys
from common.muster import Muster, Word

pytestmark = pytest.mark.asyncio
MEMBERS = ("generator-1", "generator-2")


@pytest.fixture
def muster(client: Callable[[], Redis]) -> Muster:
    return Muster(client(), Keys("test"))


async def test_when_all_are_ready_all_are_told_where_to_meet(muster: Muster) -> None:
    word, *groups = await asyncio.gather(
        muster.call(7, "group-a", MEMBERS, 5.0), *(muster.answer(7, name, 5.0) for name in MEMBERS)
    )
    assert word is Word.GO
    assert groups == ["group-a", "group-a"]


async def test_a_missing_member_sends_everybody_to_the_store(muster: Muster) -> None:
    word, group = await asyncio.gather(muster.call(7, "group-a", MEMBERS, 0.1), muster.answer(7, "generator-1", 5.0))
    assert (word, group) == (Word.STORE, None)
    assert await muster.answer(7, "generator-2", 5.0) is None  # who comes late does not wait


async def test_a_member_without_patience_calls_it_off_for_all(muster: Muster) -> None:
    assert await muster.answer(7, "generator-1", 0.05) is None
    assert await muster.call(7, "group-a", MEMBERS, 5.0) is Word.STORE
    assert await muster.answer(7, "generator-2", 5.0) is None


async def test_the_word_is_given_once(muster: Muster) -> None:
    await asyncio.gather(muster.call(7, "group-a", MEMBERS, 5.0), *(muster.answer(7, name, 5.0) for name in MEMBERS))
    assert await muster.call_off(7) is Word.GO
    assert await muster.call_off(8) is Word.STORE
    assert await muster.call(8, "group-a", (), 5.0) is Word.STORE


async def test_each_version_has_a_muster_of_its_own(muster: Muster) -> None:
    assert await muster.answer(6, "generator-1", 0.05) is None
    word, *groups = await asyncio.gather(
        muster.call(7, "group-b", MEMBERS, 5.0), *(muster.answer(7, name, 5.0) for name in MEMBERS)
    )
    assert (word, groups) == (Word.GO, ["group-b", "group-b"])


async def test_a_muster_is_forgotten(muster: Muster, client: Callable[[], Redis]) -> None:
    await muster.answer(7, "generator-1", 0.0)
    lives_ms = await client().pttl(Keys("test").muster(7))
    assert 0 < lives_ms <= 600_000


async def test_who_was_ready_in_a_former_life_is_not_sent_to_a_broadcast_that_is_over(
    muster: Muster, client: Callable[[], Redis]
) -> None:
    await asyncio.gather(muster.call(7, "group-a", MEMBERS, 5.0), *(muster.answer(7, name, 5.0) for name in MEMBERS))
    assert await Muster(client(), Keys("test")).answer(7, "generator-1", 5.0) is None


async def test_a_broadcast_is_called_off_when_a_member_that_was_ready_has_died(
    muster: Muster, client: Callable[[], Redis]
) -> None:
    ready = asyncio.create_task(muster.answer(7, "generator-1", 5.0))
    while not await client().hexists(Keys("test").muster(7), "ready:generator-1"):
        await asyncio.sleep(0.01)
    async with asyncio.timeout(2.0):  # long before anybody's patience ends
        assert await Muster(client(), Keys("test")).answer(7, "generator-1", 5.0) is None
        assert await ready is None
    assert await muster.call(7, "group-a", ("generator-1",), 5.0) is Word.STORE
