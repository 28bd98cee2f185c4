"""The wire format is pinned byte by byte, and everything malformed is a typed error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NewerSchemaError, WireError
from common.trajectory import (
    AnchorSearch,
    Demonstration,
    Finish,
    Group,
    GroupPlan,
    Outcome,
    Purpose,
    Request,
    Sampling,
    ScoreTask,
    Source,
    Trajectory,
    VersionSpan,
)
from common.wire import (
    SCHEMA,
    decode_group,
    decode_outcome,
    decode_request,
    decode_score_task,
    encode_group,
    encode_outcome,
    encode_request,
    encode_score_task,
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
        plan=GroupPlan(plain=7, branched=1, hint_length=2, demonstrations=1, gate=3),
        sampling=Sampling(1.0, 64),
        demonstrations=(Demonstration(np.array([1, 2, 3], np.int32), (1, 2), np.array([-1, -2, -3], np.float32)),),
        search=AnchorSearch((1, 2), members=8, probes=4, above=0.0, below=0.75, always=True, anchor=2),
    )


def an_outcome() -> Outcome:
    return Outcome(
        request_id="train:0:train:7",
        prompt_id="train:7",
        purpose=Purpose.TRAIN,
        revision=3,
        dataset="train",
        rewards=(0.0, 0.0),
        version=4,
        response_tokens=40,
        hint_length=2,
        hinted_rewards=(1.0, 0.0),
        probes=3,
        anchor=2,
    )


def a_request_to_grade() -> Request:
    return Request(
        request_id="grade:1-0",
        prompt_id="train:7",
        purpose=Purpose.GRADE,
        revision=3,
        prompt_tokens=np.array([5], np.int32),
        answer="#12",
        plan=GroupPlan(plain=0, demonstrations=1),
        sampling=Sampling(1.0, 64),
        demonstrations=(Demonstration(np.array([1, 2, 3], np.int32)),),
    )


def a_grade() -> Outcome:
    return Outcome("grade:1-0", "train:7", Purpose.GRADE, 3, "train", (0.5,), 4)


def a_score_task() -> ScoreTask:
    return ScoreTask("0f", np.array([5], np.int32), np.array([6, 7], np.int32))


# Schema 2, byte by byte.
GROUP_BYTES = bytes.fromhex(
    "87a16ba567726f7570a17602a26964af747261696e3a303a747261696e3a37a970726f6d70745f6964a7747261696e3a37a8726576697369"
    "6f6e03a967656e657261746f72ab67656e657261746f722d31ac7472616a6563746f726965739188a6746f6b656e7392a33c6934c40c0500"
    "00000600000007000000a7736f757263657392a33c7531c403000201a96265686176696f757292a33c6634c40c0000000000000000000000"
    "bfa665787065727492a33c6634c40c00000000000080be00000000a876657273696f6e739193040203a6726577617264cb3ff00000000000"
    "00a5706172747381a56578616374cb3ff0000000000000a666696e697368a473746f70"
)
REQUEST_BYTES = bytes.fromhex(
    "8fa16ba772657175657374a17602a26964af747261696e3a303a747261696e3a37a970726f6d70745f6964a7747261696e3a37a770757270"
    "6f7365a5747261696ea87265766973696f6e03a670726f6d707492a33c6934c40405000000a6616e73776572a3233132a4706c616e950701"
    "020103a873616d706c696e6792cb3ff000000000000040ae64656d6f6e7374726174696f6e739183a6746f6b656e7392a33c6934c40c0100"
    "00000200000003000000aa626f756e646172696573920102a665787065727492a33c6634c40c000080bf000000c0000040c0a76461746173"
    "6574a5747261696eab666f725f76657273696f6e00a573636f7265c2a673656172636886a463757473920102a76d656d6265727308a67072"
    "6f62657304a462616e6492cb0000000000000000cb3fe8000000000000a6616c77617973c3a6616e63686f7202"
)
OUTCOME_BYTES = bytes.fromhex(
    "de0012a16ba76f7574636f6d65a17602a26964af747261696e3a303a747261696e3a37a970726f6d70745f6964a7747261696e3a37a77075"
    "72706f7365a5747261696ea87265766973696f6e03a764617461736574a5747261696ea77265776172647392cb0000000000000000cb0000"
    "000000000000a776657273696f6e04ab666f725f76657273696f6e00af726573706f6e73655f746f6b656e7328ab68696e745f6c656e6774"
    "6802b564656d6f6e7374726174696f6e5f6c6f6770726f62c0b464656d6f6e7374726174696f6e5f746f6b656e7300a76661696c757265a0"
    "ae68696e7465645f7265776172647392cb3ff0000000000000cb0000000000000000a670726f62657303a6616e63686f7202"
)
SCORE_TASK_BYTES = bytes.fromhex(
    "85a16ba573636f7265a17602a26964a23066a670726f6d707492a33c6934c40405000000a6746f6b656e7392a33c6934c408060000000700"
    "0000"
)
GRADE_REQUEST_BYTES = bytes.fromhex(
    "8fa16ba772657175657374a17602a26964a967726164653a312d30a970726f6d70745f6964a7747261696e3a37a7707572706f7365a56772"
    "616465a87265766973696f6e03a670726f6d707492a33c6934c40405000000a6616e73776572a3233132a4706c616e9500000001c0a87361"
    "6d706c696e6792cb3ff000000000000040ae64656d6f6e7374726174696f6e739183a6746f6b656e7392a33c6934c40c0100000002000000"
    "03000000aa626f756e64617269657390a6657870657274c0a764617461736574a5747261696eab666f725f76657273696f6e00a573636f72"
    "65c2a6736561726368c0"
)
GRADE_BYTES = bytes.fromhex(
    "de0012a16ba76f7574636f6d65a17602a26964a967726164653a312d30a970726f6d70745f6964a7747261696e3a37a7707572706f7365a5"
    "6772616465a87265766973696f6e03a764617461736574a5747261696ea77265776172647391cb3fe0000000000000a776657273696f6e04"
    "ab666f725f76657273696f6e00af726573706f6e73655f746f6b656e7300ab68696e745f6c656e67746800b564656d6f6e7374726174696f"
    "6e5f6c6f6770726f62c0b464656d6f6e7374726174696f6e5f746f6b656e7300a76661696c757265a0ae68696e7465645f72657761726473"
    "90a670726f62657300a6616e63686f72c0"
)

# Schema 1, as it was written before there were gates and searches: a rolling upgrade meets it.
OLD_REQUEST_BYTES = bytes.fromhex(
    "8ea16ba772657175657374a17601a26964af747261696e3a303a747261696e3a37a970726f6d70745f6964a7747261696e3a37a770757270"
    "6f7365a5747261696ea87265766973696f6e03a670726f6d707492a33c6934c40405000000a6616e73776572a3233132a4706c616e940701"
    "0201a873616d706c696e6792cb3ff000000000000040ae64656d6f6e7374726174696f6e739183a6746f6b656e7392a33c6934c40c010000"
    "000200000003000000aa626f756e646172696573920102a665787065727492a33c6634c40c000080bf000000c0000040c0a7646174617365"
    "74a5747261696eab666f725f76657273696f6e00a573636f7265c2"
)
OLD_OUTCOME_BYTES = bytes.fromhex(
    "8fa16ba76f7574636f6d65a17601a26964a172a970726f6d70745f6964a170a7707572706f7365a86576616c75617465a87265766973696f"
    "6e02a764617461736574a468617264a77265776172647392cb3ff0000000000000cb0000000000000000a776657273696f6e05ab666f725f"
    "76657273696f6e05af726573706f6e73655f746f6b656e7328ab68696e745f6c656e67746803b564656d6f6e7374726174696f6e5f6c6f67"
    "70726f62cbc029000000000000b464656d6f6e7374726174696f6e5f746f6b656e7314a76661696c757265a0"
)


def test_every_message_has_exactly_these_bytes() -> None:
    assert encode_group(a_group()) == GROUP_BYTES
    assert encode_request(a_request()) == REQUEST_BYTES
    assert encode_outcome(an_outcome()) == OUTCOME_BYTES
    assert encode_score_task(a_score_task()) == SCORE_TASK_BYTES
    assert encode_request(a_request_to_grade()) == GRADE_REQUEST_BYTES
    assert encode_outcome(a_grade()) == GRADE_BYTES


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


def test_the_golden_bytes_decode_to_the_request() -> None:
    request = decode_request(REQUEST_BYTES)
    assert request.plan == GroupPlan(7, 1, 2, 1, gate=3)
    assert request.search == AnchorSearch((1, 2), 8, 4, 0.0, 0.75, always=True, anchor=2)
    assert request.sampling == Sampling(1.0, 64)
    assert request.demonstrations[0].tokens.tolist() == [1, 2, 3]
    assert request.demonstrations[0].boundaries == (1, 2)
    assert request.demonstrations[0].expert_logprobs is not None
    assert request.demonstrations[0].expert_logprobs.tolist() == [-1.0, -2.0, -3.0]
    assert request.purpose is Purpose.TRAIN


def test_the_golden_bytes_decode_to_the_outcome_and_the_score_task() -> None:
    assert decode_outcome(OUTCOME_BYTES) == an_outcome()
    task = decode_score_task(SCORE_TASK_BYTES)
    assert (task.key, task.prompt_tokens.tolist(), task.tokens.tolist()) == ("0f", [5], [6, 7])


def test_a_request_to_grade_and_its_outcome_survive_the_wire() -> None:
    request = decode_request(GRADE_REQUEST_BYTES)
    assert (request.purpose, request.plan) == (Purpose.GRADE, GroupPlan(plain=0, demonstrations=1))
    assert request.demonstrations[0].tokens.tolist() == [1, 2, 3]
    assert decode_outcome(GRADE_BYTES) == a_grade()


@pytest.mark.parametrize("purpose", [Purpose.EVALUATE, Purpose.GRADE])
def test_an_outcome_that_neither_failed_nor_has_a_reward_is_refused(purpose: Purpose) -> None:
    outcome = Outcome("r", "p", purpose, 2, "hard", (), 5)
    with pytest.raises(WireError, match=f"an outcome that was to {purpose} has no reward and did not fail"):
        decode_outcome(encode_outcome(outcome))
    assert decode_outcome(encode_outcome(replace(outcome, failure="the grader crashed"))).rewards == ()


def test_a_purpose_of_a_newer_version_is_refused_as_malformed_so_that_a_mixed_fleet_goes_on() -> None:
    fields = msgpack.unpackb(GRADE_REQUEST_BYTES)
    fields["purpose"] = "ponder"
    with pytest.raises(WireError, match="malformed request: ValueError: 'ponder' is not a valid Purpose"):
        decode_request(msgpack.packb(fields) or b"")


def test_an_evaluations_outcome_survives_the_wire() -> None:
    outcome = Outcome("r", "p", Purpose.EVALUATE, 2, "hard", (1.0, 0.0), 5, 5, 40, 3, -12.5, 20, "")
    assert decode_outcome(encode_outcome(outcome)) == outcome


def test_messages_of_the_first_schema_are_still_read() -> None:
    request = decode_request(OLD_REQUEST_BYTES)
    assert (request.plan, request.search) == (GroupPlan(7, 1, 2, 1, gate=None), None)
    assert (request.request_id, request.demonstrations[0].tokens.tolist()) == ("train:0:train:7", [1, 2, 3])
    old = Outcome("r", "p", Purpose.EVALUATE, 2, "hard", (1.0, 0.0), 5, 5, 40, 3, -12.5, 20, "")
    assert decode_outcome(OLD_OUTCOME_BYTES) == old
    assert (old.hinted_rewards, old.probes, old.anchor) == ((), 0, None)
    group = decode_group(GROUP_BYTES.replace(b"\xa1v\x02", b"\xa1v\x01"))
    assert group.trajectories[0].tokens.tolist() == [5, 6, 7]


def test_a_newer_schema_is_an_error_of_its_own() -> None:
    fields = msgpack.unpackb(GROUP_BYTES)
    fields["v"] = SCHEMA + 1
    with pytest.raises(NewerSchemaError, match="schema 3"):
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
    "group": (GROUP_BYTES, decode_group),
    "request": (REQUEST_BYTES, decode_request),
    "outcome": (OUTCOME_BYTES, decode_outcome),
    "evaluation": (encode_outcome(Outcome("r", "p", Purpose.EVALUATE, 2, "hard", (1.0,), 5)), decode_outcome),
    "score task": (SCORE_TASK_BYTES, decode_score_task),
    "request to grade": (GRADE_REQUEST_BYTES, decode_request),
    "grade": (GRADE_BYTES, decode_outcome),
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
    fields["v"] = SCHEMA + 1
    assert identity(msgpack.packb(fields) or b"") == "train:0:train:7"
    for payload in (b"junk", msgpack.packb([1]), msgpack.packb({"id": 3})):
        assert identity(payload or b"") == ""


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("plan", [1, 1, 1, 10_000, None], "a group of 10000 members"),
        ("plan", [1, 1, 1, 1, -1], "a count is -1"),
        ("sampling", [float("nan"), 8], "a number is nan"),
        ("search", {}, "malformed request"),
        ("search", {"cuts": [1], "members": -1, "probes": 1, "band": [0, 1], "always": False, "anchor": None}, "-1"),
        ("search", {"cuts": [1], "members": 1, "probes": 1, "band": [0, 1], "always": False, "anchor": -4}, "-4"),
        ("search", {"cuts": ["x"], "members": 1, "probes": 1, "band": [0, 1], "always": False, "anchor": 4}, "x"),
        (
            "search",
            {"cuts": [1], "members": 1, "probes": 1, "band": [0, float("nan")], "always": 0, "anchor": 1},
            "a number is nan",
        ),
    ],
)
def test_a_search_or_a_gate_that_makes_no_sense_is_refused(key: str, value: object, said: str) -> None:
    fields = msgpack.unpackb(REQUEST_BYTES)
    fields[key] = value
    with pytest.raises(WireError, match=said):
        decode_request(msgpack.packb(fields) or b"")


DECODERS = st.sampled_from([decode_group, decode_request, decode_outcome, decode_score_task])


@given(st.binary(max_size=64), DECODERS)
def test_random_bytes_are_a_wire_error(payload: bytes, decode: Callable[[bytes], object]) -> None:
    with pytest.raises(WireError):
        decode(payload)


@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_a_damaged_message_is_either_decoded_or_a_wire_error(kind: str, data: st.DataObject) -> None:
    payload, decode = MESSAGES[kind]
    position = data.draw(st.integers(0, len(payload) - 1))
    value = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        decode(payload[:position] + bytes([value]) + payload[position + 1 :])
