"""Orders in a real Redis: they stand until they are taken back, and giving one twice is giving it once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest_asyncio
from redis.asyncio import Redis

from common.keys import Keys
from common.orders import Order, Orders, Standing


@pytest_asyncio.fixture
async def orders(client: Callable[[], Redis]) -> Orders:
    return Orders(client(), Keys("test"))


async def test_without_orders_nothing_stands(orders: Orders) -> None:
    assert await orders.standing() == Standing(None, 0, {})


async def test_a_pause_stands_with_who_gave_it_first_until_it_is_taken_back(orders: Orders) -> None:
    assert await orders.pause("ada", at_s=1.5)
    assert not await orders.pause("bob", at_s=2.0)
    assert (await orders.standing()).pause == Order("ada", 1.5)
    assert await orders.resume()
    assert not await orders.resume()
    assert (await orders.standing()).pause is None


async def test_checkpoint_orders_are_counted_also_when_they_come_at_once(orders: Orders) -> None:
    numbers = await asyncio.gather(*(orders.checkpoint("ada", at_s=1.0) for _ in range(20)))
    assert sorted(numbers) == list(range(1, 21))
    assert (await orders.standing()).checkpoints == 20


async def test_generators_are_drained_and_admitted_one_by_one(orders: Orders) -> None:
    assert await orders.drain("generator-1", "ada", at_s=1.0)
    assert await orders.drain("pool:east:2", "bob", at_s=2.0)
    assert not await orders.drain("generator-1", "bob", at_s=3.0)
    standing = await orders.standing()
    assert standing.drained == {"generator-1": Order("ada", 1.0), "pool:east:2": Order("bob", 2.0)}
    assert await orders.is_drained("generator-1")
    assert await orders.admit("generator-1")
    assert not await orders.admit("generator-1")
    assert not await orders.is_drained("generator-1")
    assert await orders.is_drained("pool:east:2")


async def test_a_generator_called_like_an_order_is_none(orders: Orders) -> None:
    await orders.drain("pause", "ada", at_s=1.0)
    await orders.drain("checkpoint", "ada", at_s=1.0)
    standing = await orders.standing()
    assert (standing.pause, standing.checkpoints, set(standing.drained)) == (None, 0, {"pause", "checkpoint"})


async def test_times_keep_their_fractions(orders: Orders) -> None:
    await orders.checkpoint("ada", at_s=1_764_000_000.123456)
    await orders.pause('quoted "name" ü', at_s=1_764_000_000.123456)
    assert (await orders.standing()).pause == Order('quoted "name" ü', 1_764_000_000.123456)
