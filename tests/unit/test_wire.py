"""The wire format is pinned byte by byte, and everything malformed is a typed error."""

from __future__ import annotations

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NewerSchemaError, WireError
from common.trajectory import (
    Demonstration,
    Finish,
    Group,
    GroupPlan,
    Outcome,
    Purpose,
    Request,
    Sampling,
    Source,
    Trajectory,
    VersionSpan,
)
from common.wire import (
    decode_group,
    decode_outcome,
    decode_request,
    encode_group,
    encode_outcome,
    encode_request,
    identity,
)


def a_group() -> Group:
    return Group(
        group_id="train:0:train:7",
        prompt_id="train:7",
        revision=3,
        generator="generator-1",
        trajectories=(
            Trajectory(
                tokens=np.array([5, 6, 7], np.int32),
                sources=np.array([Source.PROMPT, Source.HINT, Source.POLICY], np.uint8),
                behaviour_logprobs=np.array([0.0, 0.0, -0.5], np.float32),
                expert_logprobs=np.array([0.0, -0.25, 0.0], np.float32),
                versions=(VersionSpan(4, 2, 3),),
                reward=1.0,
                reward_parts={"exact": 1.0},
                finish=Finish.STOP,
            ),
        ),
    )


def a_request() -> Request:
    return Request(
        request_id="train:0:train:7",
        prompt_id="train:7",
        purpose=Purpose.TRAIN,
        revision=3,
        prompt_tokens=np.array([5], np.int32),
        answer="#12",
        plan=GroupPlan(plain=7, branched=1, hint_length=2, demonstrations=1),
        sampling=Sampling(1.0, 64),
        demonstrations=(Demonstration(np.array([1, 2, 3], np.int32), (1, 2), np.array([-1, -2, -3], np.float32)),),
    )


GROUP_BYTES = bytes.fromhex(
    "87a16ba567726f7570a17601a26964af747261696e3a303a747261696e3a37a970726f6d70745f6964a7747261696e3a37a87265766973696f6e03"
    "a967656e657261746f72ab67656e657261746f722d31ac7472616a6563746f726965739188a6746f6b656e7392a33c6934c40c050000000600000007"
    "000000a7736f757263657392a33c7531c403000201a96265686176696f757292a33c6634c40c0000000000000000000000bfa665787065727492a33c"
    "6634c40c00000000000080be00000000a876657273696f6e739193040203a6726577617264cb3ff0000000000000a5706172747381a56578616374cb"
    "3ff0000000000000a666696e697368a473746f70"
)


def test_a_group_has_exactly_these_bytes() -> None:
    assert encode_group(a_group()) == GROUP_BYTES


def test_the_golden_bytes_decode_to_the_group() -> None:
    group = decode_group(GROUP_BYTES)
    assert group.group_id == "train:0:train:7"
    assert group.oldest_version == 4
    trajectory = group.trajectories[0]
    assert trajectory.tokens.tolist() == [5, 6, 7]
    assert trajectory.behaviour_logprobs.tolist() == [0.0, 0.0, -0.5]
    assert trajectory.expert_logprobs is not None
    assert trajectory.expert_logprobs.tolist() == [0.0, -0.25, 0.0]
    assert (trajectory.prompt_length, trajectory.hint_length, trajectory.response_length) == (1, 1, 2)
    assert not trajectory.is_demonstration


def test_a_request_survives_the_wire() -> None:
    request = decode_request(encode_request(a_request()))
    assert request.plan == GroupPlan(7, 1, 2, 1)
    assert request.sampling == Sampling(1.0, 64)
    assert request.demonstrations[0].tokens.tolist() == [1, 2, 3]
    assert request.demonstrations[0].boundaries == (1, 2)
    assert request.purpose is Purpose.TRAIN


def test_an_outcome_survives_the_wire() -> None:
    outcome = Outcome("r", "p", Purpose.EVALUATE, 2, "hard", (1.0, 0.0), 5, 5, 40, 3, -12.5, 20, "")
    assert decode_outcome(encode_outcome(outcome)) == outcome


def test_a_newer_schema_is_an_error_of_its_own() -> None:
    fields = msgpack.unpackb(GROUP_BYTES)
    fields["v"] = 2
    with pytest.raises(NewerSchemaError, match="schema 2"):
        decode_group(msgpack.packb(fields) or b"")


def test_a_message_of_another_kind_is_refused() -> None:
    with pytest.raises(WireError, match="expected a request, got 'group'"):
        decode_request(GROUP_BYTES)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("reward", float("nan"), "a number is nan"),
        ("reward", 1e300, "the reward is 1e"),
        ("finish", "exploded", "exploded"),
        ("sources", ["<u1", b"\0"], "differ in length"),
        ("behaviour", ["<f4", np.array([0, 0, np.nan], "<f4").tobytes()], "NaN or infinity"),
        ("tokens", ["<f4", b"\0\0\0\0"], "expected an array of <i4"),
        ("tokens", None, "malformed group"),
    ],
)
def test_what_could_poison_the_loss_never_passes_the_wire(key: str, value: object, said: str) -> None:
    fields = msgpack.unpackb(GROUP_BYTES)
    fields["trajectories"][0][key] = value
    with pytest.raises(WireError, match=said):
        decode_group(msgpack.packb(fields) or b"")


MESSAGES = {
    "group": (encode_group(a_group()), decode_group),
    "request": (encode_request(a_request()), decode_request),
    "outcome": (encode_outcome(Outcome("r", "p", Purpose.EVALUATE, 2, "hard", (1.0,), 5)), decode_outcome),
}
HOSTILE = [float("inf"), float("nan"), [], {}, None, "", 2**63, -1, b"", True, [[]], 1e300]


def leaves(node: object) -> list[tuple[object, object]]:
    """Every (container, key) below a node."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in items for place in [(node, key), *leaves(value)]]


@pytest.mark.parametrize("kind", MESSAGES)
def test_any_hostile_value_anywhere_is_decoded_or_a_wire_error(kind: str) -> None:
    payload, decode = MESSAGES[kind]
    for index in range(len(leaves(msgpack.unpackb(payload)))):
        for value in HOSTILE:
            message = msgpack.unpackb(payload)
            container, key = leaves(message)[index]
            container[key] = value  # type: ignore[index]
            with contextlib.suppress(WireError):
                decode(msgpack.packb(message))


def test_the_id_of_a_message_that_cannot_be_decoded_is_still_found() -> None:
    fields = msgpack.unpackb(GROUP_BYTES)
    fields["v"] = 2
    assert identity(msgpack.packb(fields) or b"") == "train:0:train:7"
    for payload in (b"junk", msgpack.packb([1]), msgpack.packb({"id": 3})):
        assert identity(payload or b"") == ""


@given(st.binary(max_size=64))
def test_random_bytes_are_a_wire_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_group(payload)


@given(st.data())
def test_a_damaged_message_is_either_decoded_or_a_wire_error(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(GROUP_BYTES) - 1))
    value = data.draw(st.integers(0, 255))
    damaged = GROUP_BYTES[:position] + bytes([value]) + GROUP_BYTES[position + 1 :]
    try:
        decode_group(damaged)
    except WireError:
        return
