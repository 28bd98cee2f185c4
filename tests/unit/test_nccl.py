"""A group of NCCL with a pretended library: all of it on a stream of its own, and nothing that waits without end."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from learner.publication.nccl import BroadcastFailed, NcclGroup

OURS, COMM = 77, 5
TENSORS = [torch.ones(3), torch.zeros(2, dtype=torch.bfloat16)]


class Library:
    """NCCL, of which any call can be made to stand still until the group is left."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int | None]] = []
        self.stands_still = ""
        self.aborted = threading.Event()
        self.others_come = threading.Event()
        self.ncclGetErrorString = lambda _: b"invalid argument"

    def ncclGetUniqueId(self, _: Any) -> int:
        return 0

    def ncclCommInitRank(self, comm: Any, *_: Any) -> int:
        if self.stands_still == "joining":
            assert self.others_come.wait(20.0)
        comm._obj.value = COMM
        return 0

    def ncclAllReduce(self, *args: Any) -> int:
        return self._queue("sum", args[-1])

    def ncclBroadcast(self, *args: Any) -> int:
        return self._queue("broadcast", args[-1])

    def ncclCommAbort(self, comm: ctypes.c_void_p) -> int:
        self.calls.append(("abort", comm.value))
        self.aborted.set()
        return 0

    def _queue(self, what: str, stream: ctypes.c_void_p) -> int:
        self.calls.append((what, stream.value))
        return 0


class Stream:
    cuda_stream = OURS
    breaks_at = ""

    def __init__(self, library: Library) -> None:
        self._library = library

    def synchronize(self) -> None:
        if self._library.calls[-1][0] == self.breaks_at:
            raise RuntimeError("CUDA error")
        if self._library.calls[-1][0] == self._library.stands_still:
            assert self._library.aborted.wait(20.0)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream(library))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    yield library
    library.aborted.set()
    library.others_come.set()
    end_joining()


def end_joining() -> None:
    """Wait until no thread joins a group any more."""
    for thread in threading.enumerate():
        if thread.name.startswith("broadcast"):
            thread.join(20.0)
            assert not thread.is_alive()


def test_everything_goes_through_a_stream_of_its_own_and_members_meet_once(library: Library) -> None:
    group = NcclGroup(2)
    group.broadcast(TENSORS, 5.0)
    group.broadcast(TENSORS, 5.0)
    assert library.calls == [("sum", OURS), *[("broadcast", OURS)] * 4]


@pytest.mark.parametrize("where", ["sum", "broadcast"])
def test_a_member_that_is_gone_ends_it_in_time_and_what_waits_for_it_is_left(library: Library, where: str) -> None:
    library.stands_still = where
    group = NcclGroup(2)
    with pytest.raises(BroadcastFailed, match=r"took longer than 0.2 s"):
        group.broadcast(TENSORS, 0.2)
    group.abort()  # as the broadcaster does; once is enough
    assert [call for call in library.calls if call[0] == "abort"] == [("abort", COMM)]


def test_a_group_that_does_not_come_together_is_given_up(library: Library) -> None:
    library.stands_still = "joining"
    with pytest.raises(BroadcastFailed, match=r"coming together took longer than 0.05 s"):
        NcclGroup(2).broadcast(TENSORS, 0.05)
    assert library.calls == []


def test_a_join_that_is_late_leaves_what_it_brought_about_and_sends_nothing(library: Library) -> None:
    library.stands_still = "joining"
    group = NcclGroup(2)
    with pytest.raises(BroadcastFailed, match="coming together took longer"):
        group.broadcast(TENSORS, 0.05)
    group.abort()  # as the broadcaster does: there is nothing yet that it could abort
    library.others_come.set()
    end_joining()
    assert library.calls == [("abort", COMM)]


def test_joins_that_stand_still_do_not_pile_up(library: Library) -> None:
    library.stands_still = "joining"
    for _ in range(4):
        with pytest.raises(BroadcastFailed, match="coming together took longer"):
            NcclGroup(2).broadcast(TENSORS, 0.05)
    with pytest.raises(BroadcastFailed, match=r"4 groups before this one are still coming together: .* to store"):
        NcclGroup(2)
    library.others_come.set()
    end_joining()
    NcclGroup(2).broadcast(TENSORS, 5.0)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("set_device", RuntimeError("CUDA error")),
        ("set_device", ValueError("Expected a torch.device with a specified index or an integer, but got:cpu")),
        ("zeros", torch.OutOfMemoryError("out of memory")),
    ],
)
def test_a_device_that_is_no_use_for_joining_is_no_more_than_a_broadcast_that_failed(
    library: Library, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.cuda if where == "set_device" else torch, where, broken)
    group = NcclGroup(2)
    with pytest.raises(BroadcastFailed, match=f"coming together broke: {error}"):
        group.broadcast(TENSORS, 5.0)
    group.abort()
    assert library.calls == ([("abort", COMM)] if where == "zeros" else [])


@pytest.mark.parametrize(
    ("where", "complaint"), [("sum", "coming together broke"), ("broadcast", "the broadcast broke")]
)
def test_an_error_of_the_device_at_either_wait_is_a_broadcast_that_failed(
    library: Library, monkeypatch: pytest.MonkeyPatch, where: str, complaint: str
) -> None:
    monkeypatch.setattr(Stream, "breaks_at", where)
    group = NcclGroup(2)
    with pytest.raises(BroadcastFailed, match=f"{complaint}: CUDA error"):
        group.broadcast(TENSORS, 5.0)
    group.abort()
    assert [call for call in library.calls if call[0] == "abort"] == [("abort", COMM)]


def test_a_thread_that_cannot_be_started_is_a_broadcast_that_failed(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = NcclGroup(2)
    group.broadcast(TENSORS, 5.0)

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with pytest.raises(BroadcastFailed, match="can't start new thread"):
        group.broadcast(TENSORS, 5.0)
    with pytest.raises(BroadcastFailed, match="can't start new thread"):
        NcclGroup(2).broadcast(TENSORS, 5.0)


def test_weights_that_it_cannot_send_are_said(library: Library) -> None:
    with pytest.raises(BroadcastFailed, match=r"weights of torch\.int8 cannot be broadcast"):
        NcclGroup(2).broadcast([torch.ones(1, dtype=torch.int8)], 5.0)
