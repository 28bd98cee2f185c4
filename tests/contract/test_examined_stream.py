"""Examined groups in a real Redis: newest first, within a number of bytes; a broken one is passed over."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from redis.asyncio import Redis

from common import examined as module
from common.errors import WireError
from common.examined import Examined, ExaminedGroup, ExaminedTrajectory, decode_examined, encode_examined
from common.keys import Keys

KEYS = Keys("test")
NAN = float("nan")


def examined_group(number: int, *, prompt: str = "train:1", length: int = 4) -> ExaminedGroup:
    """A group of one trajectory; its tokens are random, so that they do not compress away."""
    random = np.random.default_rng(number)

    def floats() -> Any:
        return random.normal(size=length).astype(np.float32)

    member = ExaminedTrajectory(
        tokens=random.integers(0, 2**31 - 1, length, dtype=np.int32),
        sources=random.integers(0, 4, length, dtype=np.uint8),
        versions=np.full(length, -1, dtype=np.int32),
        behaviour_logprobs=floats(),
        expert_logprobs=np.full(length, NAN, dtype=np.float32),
        policy_logprobs=floats(),
        ratios=floats(),
        advantage=None if number % 2 else -0.5,
        reward=1.0,
        reward_parts={"form": 0.25},
    )
    return ExaminedGroup(f"g{number}", prompt, "generator-1", number, 2, 3, "luffy", 12.5, (member,))


def fields_of(group: ExaminedGroup) -> dict[str, Any]:
    """What the bytes of a group hold."""
    return msgpack.unpackb(zlib.decompress(encode_examined(group)))


def damaged_members() -> Iterator[list[Any]]:
    """The columns and figures of a trajectory, one of them of another form each time."""
    (member,) = fields_of(examined_group(0))["trajectories"]
    damages = {0: member[0][:-4], 1: b"\4" * 4, 2: "text", 6: None, 7: "x", 8: None, 9: {"form": "x"}}
    for place, damage in damages.items():
        yield [*member[:place], damage, *member[place + 1 :]]


def names(kept: list[module.Kept]) -> list[str]:
    return [k.group.group_id for k in kept]


@pytest.mark.parametrize("number", [0, 1])
def test_a_group_comes_back_from_bytes_as_it_was(number: int) -> None:
    group = examined_group(number)
    back = decode_examined(encode_examined(group))
    for name in ("group_id", "prompt_id", "generator", "step", "revision", "version", "algorithm", "at_s"):
        assert getattr(back, name) == getattr(group, name)
    ((mine,), (theirs,)) = group.trajectories, back.trajectories
    for name in ("tokens", "sources", "versions", "behaviour_logprobs", "expert_logprobs", "policy_logprobs", "ratios"):
        np.testing.assert_array_equal(getattr(theirs, name), getattr(mine, name))
    assert (theirs.advantage, theirs.reward, theirs.reward_parts) == (mine.advantage, 1.0, {"form": 0.25})


@pytest.mark.parametrize("payload", [b"", b"nothing", encode_examined(examined_group(0))[:-9]])
def test_broken_bytes_are_a_typed_error(payload: bytes) -> None:
    with pytest.raises(WireError, match="not an examined group"):
        decode_examined(payload)


@pytest.mark.parametrize(
    "damage",
    [
        {"ids": [1, 2, 3]},
        {"ids": ["g", "p"]},
        {"at": ["1", 1, 1, 1.0]},
        {"at": [1, 1, 1, NAN]},
        {"at": [1, 1, True, 1.0]},
        {"algorithm": None},
        {"trajectories": 5},
        {"trajectories": [[b"", b"", b""]]},
        *({"trajectories": [member]} for member in damaged_members()),
    ],
)
def test_fields_of_another_form_are_a_typed_error(damage: dict[str, Any]) -> None:
    packed: Any = msgpack.packb(fields_of(examined_group(0)) | damage)
    with pytest.raises(WireError, match="not an examined group"):
        decode_examined(zlib.compress(packed))


async def test_the_newest_come_first_page_by_page(client: Callable[[], Redis]) -> None:
    examined = Examined(client(), KEYS)
    for number in range(5):
        assert await examined.keep(examined_group(number))
    page = await examined.newest(2)
    assert names(page) == ["g4", "g3"]
    page = await examined.newest(2, before=page[-1].entry_id)
    assert names(page) == ["g2", "g1"]
    assert names(await examined.newest(9, before=page[-1].entry_id)) == ["g0"]
    assert await examined.newest(0) == []


async def test_groups_are_found_by_prompt_and_by_id(client: Callable[[], Redis]) -> None:
    examined = Examined(client(), KEYS)
    for number in range(60):  # more than are read at once
        await examined.keep(examined_group(number, prompt=f"train:{number % 30}"))
    assert names(await examined.newest(9, prompt_id="train:7")) == ["g37", "g7"]
    assert names(await examined.newest(1, prompt_id="train:7")) == ["g37"]
    assert names(await examined.newest(9, group_id="g3")) == ["g3"]
    assert await examined.newest(9, group_id="g3", prompt_id="train:4") == []


async def test_the_oldest_leave_beyond_a_number_of_bytes(client: Callable[[], Redis]) -> None:
    redis: Any = client()
    examined = Examined(redis, KEYS)
    size = len(encode_examined(examined_group(0, length=1000)))
    for number in range(6):
        assert await examined.keep(examined_group(number, length=1000), limit_bytes=int(3.5 * size))
    assert names(await examined.newest(9)) == ["g5", "g4", "g3"]
    kept = sum(int(fields[b"bytes"]) for _, fields in await redis.xrange(KEYS.examined))
    assert int(await redis.get(KEYS.examined_bytes)) == kept <= 3.5 * size


async def test_a_size_that_went_wrong_rights_itself(client: Callable[[], Redis]) -> None:
    redis: Any = client()
    examined = Examined(redis, KEYS)
    await redis.set(KEYS.examined_bytes, 10**9)
    assert await examined.keep(examined_group(0))
    assert int(await redis.get(KEYS.examined_bytes)) == 0
    assert await examined.keep(examined_group(1))
    assert names(await examined.newest(9)) == ["g1"]


async def test_a_group_that_alone_is_too_large_is_not_kept(
    client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_BYTES", 1000)
    examined = Examined(client(), KEYS)
    assert not await examined.keep(examined_group(0, length=1000))
    assert await examined.newest(9) == []


async def test_an_entry_that_cannot_be_read_is_passed_over(client: Callable[[], Redis]) -> None:
    redis: Any = client()
    examined = Examined(redis, KEYS)
    await examined.keep(examined_group(0))
    await redis.xadd(KEYS.examined, {"payload": b"broken", "bytes": 6, "group": "g1", "prompt": "train:1"})
    await examined.keep(examined_group(2))
    assert names(await examined.newest(9)) == ["g2", "g0"]
