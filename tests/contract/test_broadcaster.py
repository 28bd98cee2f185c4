"""The learner's part in a broadcast: to all members or to none, and never a wait without an end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from threading import Event
from typing import cast

import pytest
import pytest_asyncio
import torch
from redis.asyncio import Redis
from redis_process import RedisProcess
from torch import Tensor

from common.events import EventKind
from common.muster import Muster
from common.process import Process
from common.settings import load_run
from learner.publication.broadcaster import Broadcaster
from learner.publication.nccl import BroadcastFailed, NcclGroup, within
from learner.publication.snapshot import Origin, Snapshot

pytestmark = pytest.mark.asyncio
RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "./model"
[data]
path = "train.jsonl"
[grader]
name = "numeric"
[generator]
tensor_parallel_size = 2
[weights]
transfer = "{transfer}"
members = ["generator-1", "generator-2"]
muster_s = 0.3
broadcast_s = 7.0
"""
TENSORS = {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.zeros(4)}


class Sent:
    """A group that notes what was sent in it, and breaks if it is told to."""

    made: list[Sent]

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.unique_id = f"group-{len(Sent.made)}"
        self.sent: list[tuple[list[Tensor], float]] = []
        self.breaks = False
        self.is_left = False
        Sent.made.append(self)

    def broadcast(self, tensors: Sequence[Tensor], limit_s: float) -> None:
        if self.breaks:
            raise BroadcastFailed("the broadcast took longer than 7.0 s")
        self.sent.append((list(tensors), limit_s))

    def abort(self) -> None:
        self.is_left = True


@pytest_asyncio.fixture
async def make(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[str], Process]]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    Sent.made = []
    processes: list[Process] = []

    def made(transfer: str = "nccl") -> Process:
        (tmp_path / "run.toml").write_text(RUN.format(transfer=transfer))
        processes.append(Process("learner", "learner", load_run(tmp_path / "run.toml")))
        return processes[-1]

    yield made
    for process in processes:
        await process.redis.aclose()


def snapshot(version: int) -> Snapshot:
    return Snapshot(version, Origin(version, 1), TENSORS)


async def send(broadcaster: Broadcaster, process: Process, version: int, *ready: str) -> list[str | None]:
    """Send a version while some members are ready; what they are told."""
    muster = Muster(process.redis, process.keys)
    answers = [asyncio.create_task(muster.answer(version, name, 5.0)) for name in ready]
    await broadcaster.send(snapshot(version))
    return list(await asyncio.gather(*answers))


async def notices(process: Process) -> list[str]:
    return [event.data["text"] for event in await process.events.read() if event.kind is EventKind.NOTICE]


async def test_all_members_meet_in_one_group_and_stay_there(make: Callable[..., Process]) -> None:
    process = make()
    broadcaster = Broadcaster(process, Sent)
    told = await send(broadcaster, process, 1, "generator-1", "generator-2")
    await send(broadcaster, process, 2, "generator-1", "generator-2")
    (group,) = Sent.made
    assert group.world_size == 5
    assert [json.loads(text or "") for text in told] == [
        {"unique_id": "group-0", "tensors": [["a", "bfloat16", [2, 3]], ["b", "float32", [4]]]}
    ] * 2
    assert group.sent == [(list(TENSORS.values()), 7.0)] * 2
    assert await notices(process) == []


async def test_a_missing_member_keeps_nobody_waiting(make: Callable[..., Process]) -> None:
    process = make()
    broadcaster = Broadcaster(process, Sent)
    assert await send(broadcaster, process, 1, "generator-1") == [None]
    assert await send(broadcaster, process, 2, "generator-1") == [None]
    (group,) = Sent.made  # each listens: one for every version would be many in an hour
    assert group.sent == []
    assert await notices(process) == [
        "learner: version 1 is not broadcast: not every member was ready in time; the store serves all"
    ]
    await send(broadcaster, process, 3, "generator-1", "generator-2")
    assert (await notices(process))[1:] == ["learner: version 3 is broadcast again"]


async def test_after_a_broadcast_that_broke_the_members_meet_in_a_new_group(make: Callable[..., Process]) -> None:
    process = make()
    broadcaster = Broadcaster(process, Sent)
    await send(broadcaster, process, 1, "generator-1", "generator-2")
    Sent.made[0].breaks = True
    await send(broadcaster, process, 2, "generator-1", "generator-2")
    assert Sent.made[0].is_left
    (told, _) = await send(broadcaster, process, 3, "generator-1", "generator-2")
    assert json.loads(told or "")["unique_id"] == "group-1"
    assert len(Sent.made[1].sent) == 1


async def test_without_nccl_the_members_are_sent_to_the_store_at_once(make: Callable[..., Process]) -> None:
    process = make()

    def none(_: int) -> NcclGroup:
        raise BroadcastFailed("no NCCL: libnccl.so.2 is not there")

    began_s = time.monotonic()
    assert await send(Broadcaster(process, none), process, 1, "generator-1", "generator-2") == [None, None]
    assert time.monotonic() - began_s < 3.0
    assert "no NCCL" in (await notices(process))[0]


async def test_a_run_that_does_not_ask_for_it_broadcasts_nothing(make: Callable[..., Process]) -> None:
    process = make("store")
    await Broadcaster(process, Sent).send(snapshot(1))
    assert Sent.made == []
    assert await process.redis.exists(process.keys.muster(1)) == 0


async def test_work_that_cannot_be_interrupted_is_left_behind_in_time() -> None:
    over = Event()
    with pytest.raises(BroadcastFailed, match=r"coming together took longer than 0.05 s"):
        within(0.05, "coming together", lambda: cast(None, over.wait(20.0)))
    over.set()
    within(5.0, "coming together", lambda: None)
