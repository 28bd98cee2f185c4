"""The rehearsal buffer: one demonstration a prompt, in order, bounded, and the same after a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learner_cases import asked, demonstration, group, rollout

from common.config.algorithm import ReLIFT
from common.errors import WireError
from common.trajectory import Group
from learner.rehearsal import RehearsalBuffer
from learner.terms import Rehearsal


def failed(prompt: str, *, length: int = 2) -> Group:
    """A group whose only rollout failed, with a demonstration of `length` tokens."""
    members = group(rollout(2, 0.0), demonstration(length, seed=length))
    return replace(members, group_id=f"group of {prompt}", prompt_id=prompt)


def rehearsal(limit: int = 10) -> Rehearsal:
    found = asked(ReLIFT(buffer_size=1, buffer_limit=limit)).rehearsal
    assert found is not None
    return found


def waiting(buffer: RehearsalBuffer) -> list[str]:
    return [entry.prompt_id for entry in buffer.oldest(99)]


def test_demonstrations_of_failed_prompts_wait_in_order() -> None:
    buffer = RehearsalBuffer()
    solved = replace(group(rollout(2, 1.0), demonstration(2)), prompt_id="solved")
    buffer.collect([failed("a"), solved, failed("b"), failed("c")], rehearsal())
    assert waiting(buffer) == ["a", "b", "c"]
    assert [len(entry.trajectories) for entry in buffer.oldest(2)] == [1, 1]
    assert all(entry.trajectories[0].is_demonstration for entry in buffer.oldest(3))


def test_a_prompt_waits_once_and_keeps_its_place() -> None:
    buffer = RehearsalBuffer()
    buffer.collect([failed("a"), failed("b")], rehearsal())
    buffer.collect([failed("a", length=5), failed("c")], rehearsal())
    assert waiting(buffer) == ["a", "b", "c"]
    assert buffer.oldest(1)[0].trajectories[0].response_length == 2


def test_the_oldest_leave_a_full_buffer() -> None:
    buffer = RehearsalBuffer()
    for prompt in "abcde":
        buffer.collect([failed(prompt)], rehearsal(limit=3))
    assert waiting(buffer) == ["c", "d", "e"]
    buffer.collect([], rehearsal(limit=1))
    assert waiting(buffer) == ["e"]


def test_what_was_rehearsed_is_gone_and_may_come_back() -> None:
    buffer = RehearsalBuffer()
    buffer.collect([failed(p) for p in "abc"], rehearsal())
    buffer.remove(buffer.oldest(2))
    assert waiting(buffer) == ["c"]
    buffer.collect([failed("a")], rehearsal())
    assert waiting(buffer) == ["c", "a"]


@pytest.mark.parametrize("owed", [True, False])
def test_a_restored_buffer_is_the_same_to_the_bit(owed: bool) -> None:
    buffer, other = RehearsalBuffer(), RehearsalBuffer()
    buffer.collect([failed("β", length=7), failed("a"), failed("c", length=1)], rehearsal())
    buffer.owed = owed
    saved = buffer.tensors()
    assert {name: str(tensor.dtype) for name, tensor in saved.items()} == {
        "entries": "torch.uint8",
        "lengths": "torch.int64",
        "owed": "torch.uint8",
    }
    other.restore(saved)
    assert (waiting(other), other.owed) == (["β", "a", "c"], owed)
    assert all(other.tensors()[name].equal(tensor) for name, tensor in saved.items())


def test_an_empty_buffer_leaves_nothing_in_a_checkpoint_and_is_restored_from_nothing() -> None:
    buffer = RehearsalBuffer()
    assert not buffer.tensors()
    buffer.collect([failed("a")], rehearsal())
    buffer.restore({})
    assert len(buffer) == 0


def test_a_damaged_content_is_refused() -> None:
    buffer = RehearsalBuffer()
    buffer.collect([failed("a")], rehearsal())
    saved = buffer.tensors()
    with pytest.raises(ValueError, match="bytes instead of"):
        RehearsalBuffer().restore({**saved, "entries": saved["entries"][:-1]})
    with pytest.raises(WireError):
        RehearsalBuffer().restore({**saved, "entries": torch.zeros_like(saved["entries"])})
