"""The wire: nouns to msgpack maps and back.

A message is a msgpack map with its kind ("k") and schema version ("v"). An array is a two-element list: a dtype tag and
raw little-endian bytes. Nothing is executed on decoding; a message that cannot be decoded raises WireError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from numpy.typing import NDArray

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
    Trajectory,
    VersionSpan,
)

_msgpack: Any = msgpack  # Any: msgpack is not annotated
SCHEMA = 2
LARGEST_REWARD = 1e6
LARGEST_GROUP = 4096
_DTYPES = {"<i4": np.dtype("<i4"), "<f4": np.dtype("<f4"), "<u1": np.dtype("<u1")}
_TAGS = {"i4": "<i4", "f4": "<f4", "u1": "<u1"}

Fields = dict[str, Any]
Message = TypeVar("Message")


def encode_request(request: Request) -> bytes:
    """A request as bytes."""
    return _pack(
        "request",
        {
            "id": request.request_id,
            "prompt_id": request.prompt_id,
            "purpose": request.purpose.value,
            "revision": request.revision,
            "prompt": _array(request.prompt_tokens, "i4"),
            "answer": request.answer,
            "plan": [
                request.plan.plain,
                request.plan.branched,
                request.plan.hint_length,
                request.plan.demonstrations,
                request.plan.gate,
            ],
            "sampling": [request.sampling.temperature, request.sampling.max_tokens],
            "demonstrations": [_demonstration_fields(d) for d in request.demonstrations],
            "dataset": request.dataset,
            "for_version": request.for_version,
            "score": request.score_demonstration,
            "search": None if request.search is None else _search_fields(request.search),
        },
    )


def decode_request(payload: bytes) -> Request:
    """The request in `payload`; WireError if there is none."""
    return _decode(payload, "request", _request)


def encode_group(group: Group) -> bytes:
    """A group as bytes."""
    return _pack(
        "group",
        {
            "id": group.group_id,
            "prompt_id": group.prompt_id,
            "revision": group.revision,
            "generator": group.generator,
            "trajectories": [_trajectory_fields(t) for t in group.trajectories],
        },
    )


def decode_group(payload: bytes) -> Group:
    """The group in `payload`; WireError if there is none."""
    return _decode(payload, "group", _group)


def encode_outcome(outcome: Outcome) -> bytes:
    """An outcome as bytes."""
    return _pack(
        "outcome",
        {
            "id": outcome.request_id,
            "prompt_id": outcome.prompt_id,
            "purpose": outcome.purpose.value,
            "revision": outcome.revision,
            "dataset": outcome.dataset,
            "rewards": list(outcome.rewards),
            "version": outcome.version,
            "for_version": outcome.for_version,
            "response_tokens": outcome.response_tokens,
            "hint_length": outcome.hint_length,
            "demonstration_logprob": outcome.demonstration_logprob,
            "demonstration_tokens": outcome.demonstration_tokens,
            "failure": outcome.failure,
            "hinted_rewards": list(outcome.hinted_rewards),
            "probes": outcome.probes,
            "anchor": outcome.anchor,
        },
    )


def decode_outcome(payload: bytes) -> Outcome:
    """The outcome in `payload`; WireError if there is none."""
    return _decode(payload, "outcome", _outcome)


def encode_score_task(task: ScoreTask) -> bytes:
    """A task for the scorer as bytes."""
    return _pack(
        "score",
        {"id": task.key, "prompt": _array(task.prompt_tokens, "i4"), "tokens": _array(task.tokens, "i4")},
    )


def decode_score_task(payload: bytes) -> ScoreTask:
    """The scorer's task in `payload`; WireError if there is none."""
    return _decode(payload, "score", _score_task)


def identity(payload: bytes) -> str:
    """The id that a message names, whatever else is wrong with it; "" if it names none."""
    try:
        message = _msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except (ValueError, _msgpack.exceptions.UnpackException):
        return ""
    found = cast(Fields, message).get("id") if isinstance(message, dict) else None
    return found if isinstance(found, str) else ""


def _pack(kind: str, fields: Fields) -> bytes:
    return _msgpack.packb({"k": kind, "v": SCHEMA, **fields}, use_bin_type=True)


def _decode(payload: bytes, kind: str, build: Callable[[Fields], Message]) -> Message:
    try:
        message = _msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except (ValueError, _msgpack.exceptions.UnpackException) as error:
        raise WireError(f"not a msgpack message ({len(payload)} bytes): {error or type(error).__name__}") from error
    if not isinstance(message, dict):
        raise WireError(f"a message is a map, not {type(message).__name__}")
    fields = cast(Fields, message)
    if fields.get("k") != kind:
        raise WireError(f"expected a {kind}, got {fields.get('k')!r}")
    version = fields.get("v")
    if not isinstance(version, int):
        raise WireError(f"the {kind} has no schema version")
    if version > SCHEMA:
        raise NewerSchemaError(f"the {kind} has schema {version}, this process reads up to {SCHEMA}: upgrade it")
    try:
        return build(fields)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise WireError(f"malformed {kind}: {type(error).__name__}: {error}") from error


def _array(values: NDArray[Any], code: str) -> list[Any]:
    tag = _TAGS[code]
    return [tag, np.ascontiguousarray(values, dtype=_DTYPES[tag]).tobytes()]


def _unarray(field: Any, code: str) -> NDArray[Any]:
    tag, data = field
    if tag != _TAGS[code]:
        raise ValueError(f"expected an array of {_TAGS[code]}, got {tag!r}")
    array = np.frombuffer(data, dtype=_DTYPES[tag])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("an array holds NaN or infinity")
    return array


def _finite(value: Any) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"a number is {number}")
    return number


def _reward(value: Any) -> float:
    """A reward that float32 arithmetic can carry: one absurd reward would make the whole step not finite."""
    reward = _finite(value)
    if abs(reward) > LARGEST_REWARD:
        raise ValueError(f"the reward is {reward}")
    return reward


def _members(value: Any) -> int:
    """A number of members that a group may have: a forged one must not take a generator down."""
    count = int(value)
    if not 0 <= count <= LARGEST_GROUP:
        raise ValueError(f"a group of {count} members was asked for")
    return count


def _optional_count(value: Any) -> int | None:
    if value is not None and int(value) < 0:
        raise ValueError(f"a count is {value}")
    return None if value is None else int(value)


def _optional_logprobs(values: NDArray[np.float32] | None) -> list[Any] | None:
    return None if values is None else _array(values, "f4")


def _demonstration_fields(demonstration: Demonstration) -> Fields:
    return {
        "tokens": _array(demonstration.tokens, "i4"),
        "boundaries": list(demonstration.boundaries),
        "expert": _optional_logprobs(demonstration.expert_logprobs),
    }


def _demonstration(fields: Fields) -> Demonstration:
    return Demonstration(
        tokens=_unarray(fields["tokens"], "i4"),
        boundaries=tuple(int(b) for b in fields["boundaries"]),
        expert_logprobs=None if fields["expert"] is None else _unarray(fields["expert"], "f4"),
    )


def _score_task(fields: Fields) -> ScoreTask:
    return ScoreTask(str(fields["id"]), _unarray(fields["prompt"], "i4"), _unarray(fields["tokens"], "i4"))


def _request(fields: Fields) -> Request:
    plain, branched, hint_length, demonstrations, *gate = fields["plan"]  # schema 1 knows no gate
    temperature, max_tokens = fields["sampling"]
    return Request(
        request_id=str(fields["id"]),
        prompt_id=str(fields["prompt_id"]),
        purpose=Purpose(fields["purpose"]),
        revision=int(fields["revision"]),
        prompt_tokens=_unarray(fields["prompt"], "i4"),
        answer=str(fields["answer"]),
        plan=GroupPlan(
            plain=_members(plain),
            branched=_members(branched),
            hint_length=int(hint_length),
            demonstrations=_members(demonstrations),
            gate=_optional_count(gate[0] if gate else None),
        ),
        sampling=Sampling(_finite(temperature), int(max_tokens)),
        demonstrations=tuple(_demonstration(d) for d in fields["demonstrations"]),
        dataset=str(fields["dataset"]),
        for_version=int(fields["for_version"]),
        score_demonstration=bool(fields["score"]),
        search=None if fields.get("search") is None else _search(fields["search"]),
    )


def _search_fields(search: AnchorSearch) -> Fields:
    return {
        "cuts": list(search.cuts),
        "members": search.members,
        "probes": search.probes,
        "band": [search.above, search.below],
        "always": search.always,
        "anchor": search.anchor,
    }


def _search(fields: Fields) -> AnchorSearch:
    above, below = fields["band"]
    return AnchorSearch(
        cuts=tuple(int(cut) for cut in fields["cuts"]),
        members=_members(fields["members"]),
        probes=_members(fields["probes"]),
        above=_finite(above),
        below=_finite(below),
        always=bool(fields["always"]),
        anchor=_optional_count(fields["anchor"]),
    )


def _trajectory_fields(trajectory: Trajectory) -> Fields:
    return {
        "tokens": _array(trajectory.tokens, "i4"),
        "sources": _array(trajectory.sources, "u1"),
        "behaviour": _array(trajectory.behaviour_logprobs, "f4"),
        "expert": _optional_logprobs(trajectory.expert_logprobs),
        "versions": [[span.version, span.start, span.end] for span in trajectory.versions],
        "reward": trajectory.reward,
        "parts": trajectory.reward_parts,
        "finish": trajectory.finish.value,
    }


def _trajectory(fields: Fields) -> Trajectory:
    return Trajectory(
        tokens=_unarray(fields["tokens"], "i4"),
        sources=_unarray(fields["sources"], "u1"),
        behaviour_logprobs=_unarray(fields["behaviour"], "f4"),
        expert_logprobs=None if fields["expert"] is None else _unarray(fields["expert"], "f4"),
        versions=tuple(VersionSpan(int(v), int(s), int(e)) for v, s, e in fields["versions"]),
        reward=_reward(fields["reward"]),
        reward_parts={str(k): _reward(v) for k, v in fields["parts"].items()},
        finish=Finish(fields["finish"]),
    )


def _group(fields: Fields) -> Group:
    return Group(
        group_id=str(fields["id"]),
        prompt_id=str(fields["prompt_id"]),
        revision=int(fields["revision"]),
        generator=str(fields["generator"]),
        trajectories=tuple(_trajectory(t) for t in fields["trajectories"]),
    )


def _outcome(fields: Fields) -> Outcome:
    logprob = fields["demonstration_logprob"]
    purpose, failure = Purpose(fields["purpose"]), str(fields["failure"])
    rewards = tuple(_reward(r) for r in fields["rewards"])
    if purpose is not Purpose.TRAIN and not (rewards or failure):
        raise ValueError(f"an outcome that was to {purpose} has no reward and did not fail")
    return Outcome(
        request_id=str(fields["id"]),
        prompt_id=str(fields["prompt_id"]),
        purpose=purpose,
        revision=int(fields["revision"]),
        dataset=str(fields["dataset"]),
        rewards=rewards,
        version=int(fields["version"]),
        for_version=int(fields["for_version"]),
        response_tokens=int(fields["response_tokens"]),
        hint_length=int(fields["hint_length"]),
        demonstration_logprob=None if logprob is None else _finite(logprob),
        demonstration_tokens=int(fields["demonstration_tokens"]),
        failure=failure,
        hinted_rewards=tuple(_reward(r) for r in fields.get("hinted_rewards", ())),
        probes=int(fields.get("probes", 0)),
        anchor=_optional_count(fields.get("anchor")),
    )
