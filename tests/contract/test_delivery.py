"""Delivery on a real Redis: nothing is lost, nothing comes twice, whoever dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis_process import RedisProcess

from common import connection
from common.errors import RedisUnavailable
from common.keys import Keys
from common.streams import Delivery, Entry, UnusableRecord

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def delivery(client: Callable[[], Redis]) -> Delivery:
    delivery = Delivery(client(), Keys("test"))
    await delivery.prepare()
    return delivery


async def test_a_request_is_answered_once_however_often_it_is_tried(delivery: Delivery) -> None:
    await delivery.issue([("r1", b"request")], b"state")
    [entry] = await delivery.requests.take("g1", 10, 10)
    assert entry.payload == b"request"
    assert await delivery.emit(entry.entry_id, b"group", b"outcome")
    assert not await delivery.emit(entry.entry_id, b"group", b"outcome")
    assert [e.payload for e in await delivery.groups.take("learner", 10, 10)] == [b"group"]
    assert [e.payload for e in await delivery.outcomes.take("curriculum", 10, 10)] == [b"outcome"]
    assert await delivery.requests.length() == 0


async def test_a_silent_generators_request_is_taken_over_and_its_late_answer_refused(delivery: Delivery) -> None:
    await delivery.issue([("r1", b"request")], b"")
    [entry] = await delivery.requests.take("dead", 10, 10)
    await asyncio.sleep(0.05)
    assert await delivery.requests.reclaim("alive", 10_000, 10) == []
    assert await delivery.requests.reclaim("alive", 20, 10) == [entry]
    assert await delivery.emit(entry.entry_id, b"from alive", b"o")
    assert not await delivery.emit(entry.entry_id, b"from dead", b"o")
    assert [e.payload for e in await delivery.groups.take("learner", 10, 10)] == [b"from alive"]


async def test_a_kept_request_is_not_taken_over_and_a_released_one_is(delivery: Delivery) -> None:
    await delivery.issue([("r1", b"request")], b"")
    [entry] = await delivery.requests.take("slow", 10, 10)
    await asyncio.sleep(0.1)
    await delivery.requests.keep("slow", [entry.entry_id])
    assert await delivery.requests.reclaim("other", 90, 10) == []
    await delivery.requests.release("slow", [entry.entry_id], 60_000)
    assert await delivery.requests.reclaim("other", 50_000, 10) == [entry]


async def test_an_evaluation_makes_an_outcome_and_no_group_and_uses_no_credit(delivery: Delivery) -> None:
    await delivery.issue([("", b"evaluate")], b"")
    assert await delivery.outstanding() == 0
    [entry] = await delivery.requests.take("g", 10, 10)
    await delivery.emit(entry.entry_id, b"", b"outcome")
    assert await delivery.groups.take("learner", 10, 10) == []


async def test_the_texts_of_prompts_come_with_their_requests_and_a_repetition_changes_nothing(
    delivery: Delivery, client: Callable[[], Redis]
) -> None:
    redis: Any = client()
    await delivery.issue([("a", b"A"), ("", b"B")], b"1", {"p1": "one", "p2": "zwei ²"})
    await delivery.issue([("a", b"A")], b"1", {"p1": "another"})
    await delivery.issue([], b"2", {"p3": "three"})
    assert await delivery.requests.length() == 2
    assert await redis.hgetall(Keys("test").prompt_texts) == {b"p1": b"one", b"p2": "zwei ²".encode(), b"p3": b"three"}


async def test_oldest_and_newest_are_of_what_is_not_acknowledged(delivery: Delivery) -> None:
    assert (await delivery.requests.oldest(), await delivery.requests.newest()) == (None, None)
    await delivery.issue([("", bytes([i])) for i in range(3)], b"")
    first, second, third = await delivery.requests.take("g", 10, 10)
    oldest, newest = await delivery.requests.oldest(), await delivery.requests.newest()
    assert oldest is not None
    assert newest is not None
    assert (oldest < newest, f"{oldest[0]}-{oldest[1]}") == (True, first.entry_id)
    await delivery.requests.acknowledge([first.entry_id, second.entry_id])
    assert await delivery.requests.oldest() == await delivery.requests.newest() == newest
    assert f"{newest[0]}-{newest[1]}" == third.entry_id


async def test_credit_returns_once_however_often_a_group_is_settled(delivery: Delivery) -> None:
    await delivery.issue([("a", b""), ("b", b"")], b"")
    assert await delivery.outstanding() == 2
    await delivery.settle(["a"])
    await delivery.settle(["a"])
    assert await delivery.outstanding() == 1


async def test_unacknowledged_groups_are_read_again_in_order(delivery: Delivery) -> None:
    await delivery.issue([(str(i), b"") for i in range(5)], b"")
    for i, entry in enumerate(await delivery.requests.take("g", 10, 10)):
        await delivery.emit(entry.entry_id, str(i).encode(), b"")
    taken = await delivery.groups.take("learner", 10, 10)
    await delivery.groups.acknowledge([taken[0].entry_id, taken[2].entry_id])
    again = await delivery.groups.pending("learner")
    assert [e.payload for e in again] == [b"1", b"3", b"4"]
    assert await delivery.groups.pending("learner", after=again[1].entry_id) == again[2:]
    assert await delivery.groups.length() == 3


async def test_quarantine_keeps_the_message_says_why_and_returns_the_credit(
    delivery: Delivery, client: Callable[[], Redis]
) -> None:
    await delivery.issue([("r1", b"broken")], b"")
    [entry] = await delivery.requests.take("g", 10, 10)
    assert await delivery.quarantine(delivery.requests, entry, "bad", by="g", group_id="r1", outcome=b"failed")
    assert not await delivery.quarantine(delivery.requests, entry, "bad", by="g", group_id="r1", outcome=b"failed")
    [(_, kept)] = await client().xrange(Keys("test").quarantine) or []
    assert kept is not None
    assert (kept[b"payload"], kept[b"reason"], kept[b"stream"]) == (b"broken", b"bad", b"requests")
    assert await delivery.outstanding() == 0
    assert [e.payload for e in await delivery.outcomes.take("curriculum", 10, 10)] == [b"failed"]


async def test_what_cannot_be_used_is_kept_in_quarantine_once(delivery: Delivery, client: Callable[[], Redis]) -> None:
    first, second = UnusableRecord("train:1#0: empty", "it is empty", b"{}"), UnusableRecord("b", "too long", b"text")
    assert await delivery.record_unusable([first], by="curriculum") == 1
    assert await delivery.record_unusable([first, second, second], by="curriculum") == 1
    assert await delivery.record_unusable([], by="curriculum") == 0
    kept = [fields for _, fields in await client().xrange(Keys("test").quarantine) or [] if fields is not None]
    assert [(f[b"stream"], f[b"id"], f[b"reason"], f[b"by"], f[b"payload"]) for f in kept] == [
        (b"demonstrations", b"train:1#0: empty", b"it is empty", b"curriculum", b"{}"),
        (b"demonstrations", b"b", b"too long", b"curriculum", b"text"),
    ]


async def test_absorbing_outcomes_writes_records_and_acknowledges_in_one_go(
    delivery: Delivery, client: Callable[[], Redis]
) -> None:
    await delivery.issue([("r1", b"")], b"")
    [entry] = await delivery.requests.take("g", 10, 10)
    await delivery.emit(entry.entry_id, b"", b"o")
    [outcome] = await delivery.outcomes.take("curriculum", 10, 10)
    await delivery.absorb([outcome.entry_id], {"p": "1", "q": "2"})
    assert await client().hgetall(Keys("test").prompts) == {b"p": b"1", b"q": b"2"}  # type: ignore[misc]
    assert await delivery.outcomes.length() == 0
    assert await delivery.outcomes.pending("curriculum") == []


async def test_everything_survives_kill_9_of_redis(delivery: Delivery, redis_server: RedisProcess) -> None:
    stop = asyncio.Event()
    patiently = connection.Patience(stop, delivery.prepare)
    await delivery.issue([("a", b"1"), ("b", b"2")], b"state")
    [first, _] = await delivery.requests.take("g", 10, 10)
    redis_server.kill()

    async def back() -> None:
        await asyncio.sleep(0.3)
        redis_server.start()

    restart = asyncio.create_task(back())
    assert await patiently("emit", lambda: delivery.emit(first.entry_id, b"group", b"outcome"))
    await restart
    assert [e.payload for e in await delivery.requests.pending("g")] == [b"2"]
    assert await delivery.outstanding() == 2


async def test_a_frozen_redis_is_noticed_in_seconds_and_a_stop_is_honoured(
    delivery: Delivery, redis_server: RedisProcess
) -> None:
    stop = asyncio.Event()
    patiently = connection.Patience(stop, delivery.prepare)
    redis_server.freeze()
    waiting = asyncio.create_task(patiently("count", delivery.outstanding))
    asyncio.get_running_loop().call_later(0.5, stop.set)
    with pytest.raises(RedisUnavailable, match="count was not done"):
        await asyncio.wait_for(waiting, connection.SOCKET_TIMEOUT_S + 3)


async def test_an_entry_without_a_payload_is_still_an_entry(delivery: Delivery, client: Callable[[], Redis]) -> None:
    await client().xadd(delivery.requests.key, {"junk": "1"})
    [entry] = await delivery.requests.take("g", 10, 10)
    assert entry == Entry(entry.entry_id, b"")


async def test_redis_that_cannot_be_used_is_one_sentence() -> None:
    url = "redis://:secret@127.0.0.1:1/0"
    redis = connection.connect(url)
    with pytest.raises(RedisUnavailable, match="cannot be reached") as refused:
        await connection.check(redis, url)
    await redis.aclose()
    assert "secret" not in str(refused.value)
