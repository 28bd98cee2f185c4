"""Additions in a real Redis: kept in the order in which they were added, and no more of them than Redis can bear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from common.additions import Additions, TooManyAdditions
from common.keys import Keys

pytestmark = pytest.mark.asyncio


async def test_additions_are_bounded_in_bytes(client: Callable[[], Redis]) -> None:
    additions = Additions(client(), Keys("test"))
    for text in ("é" * 5, "b" * 10):
        await additions.add("train:1", text, "alice", at_s=1.0, limit_bytes=20)
    with pytest.raises(TooManyAdditions, match="put further ones into the data set"):
        await additions.add("train:1", "c", "alice", at_s=1.0, limit_bytes=20)
    assert [a.text for a in await additions.after()] == ["é" * 5, "b" * 10]
    await additions.add("train:1", "c", "alice", at_s=2.5)
    [newest] = await additions.newest(1)
    assert (newest.prompt_id, newest.text, newest.by, newest.at_s) == ("train:1", "c", "alice", 2.5)
