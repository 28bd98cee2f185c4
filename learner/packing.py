"""The plan of a step: advantages, global denominators, and trajectories cut into micro-batches. Deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.trajectory import Group, Source, Trajectory
from learner.advantages import members_of
from learner.batch import MicroBatch, Place, TokenBatch
from learner.terms import Algorithm, taught_tokens

_PADDING = 0


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """All that one optimiser step will do, known before its first forward.

    counts: term name → what its sum is divided by, over all micro-batches. groups, trajectories: those that the
    algorithm sees. tokens: those that some term is about. flat_groups: groups in which every advantage is zero.
    """

    micro_batches: tuple[MicroBatch, ...]
    counts: Mapping[str, float]
    groups: int
    flat_groups: int
    trajectories: int
    tokens: int

    def with_counts(self, counts: Mapping[str, float]) -> StepPlan:
        """The same plan with other denominators: a caller with several ranks sums theirs and passes them back."""
        if counts.keys() != self.counts.keys():
            raise ValueError(f"counts are for the terms {sorted(counts)}, the plan has {sorted(self.counts)}")
        return replace(self, counts=dict(counts))


@dataclass(frozen=True, slots=True, eq=False)
class Credited:
    """A trajectory that an algorithm sees, with its advantage."""

    place: Place
    trajectory: Trajectory
    advantage: float


def plan_step(algorithm: Algorithm, groups: Sequence[Group], micro_batch_tokens: int) -> StepPlan:
    """Plan one step on `groups`: no micro-batch exceeds `micro_batch_tokens`, padding included.

    A trajectory is never split; one that is longer than the limit gets a micro-batch of its own.
    """
    credited = credit(algorithm, groups)
    flat = list(chain.from_iterable(credited))
    micro_batches = tuple(_micro_batch(rows) for rows in _cut(flat, micro_batch_tokens))
    counts = {
        term.name: sum((term.norm.count(micro.tokens) for micro in micro_batches), 0.0) for term in algorithm.terms
    }
    return StepPlan(
        micro_batches=micro_batches,
        counts=counts,
        groups=len(credited),
        flat_groups=sum(all(member.advantage == 0 for member in members) for members in credited),
        trajectories=len(flat),
        tokens=sum(int(taught_tokens(algorithm, micro.tokens).sum()) for micro in micro_batches),
    )


def credit(algorithm: Algorithm, groups: Sequence[Group]) -> list[list[Credited]]:
    """The members that the algorithm sees of each group of which it sees any, each with its advantage."""
    return [members for number, group in enumerate(groups) if (members := _credit(algorithm, number, group))]


def _credit(algorithm: Algorithm, number: int, group: Group) -> list[Credited]:
    admitted = algorithm.admits(group.trajectories)
    if not admitted:
        return []
    advantages_G = algorithm.advantage(members_of(admitted))
    member_of = {id(trajectory): member for member, trajectory in enumerate(group.trajectories)}
    return [
        Credited(Place(number, member_of[id(trajectory)]), trajectory, float(a))
        for trajectory, a in zip(admitted, advantages_G, strict=True)
    ]


def _cut(members: Sequence[Credited], micro_batch_tokens: int) -> list[list[Credited]]:
    """Rows of like length together, the longest first: little padding, and a lack of memory shows at once."""
    ordered = sorted(members, key=lambda member: -len(member.trajectory.tokens))
    cuts: list[list[Credited]] = []
    while ordered:
        rows = max(1, micro_batch_tokens // max(1, len(ordered[0].trajectory.tokens)))
        cuts.append(ordered[:rows])
        ordered = ordered[rows:]
    return cuts


def _micro_batch(rows: Sequence[Credited]) -> MicroBatch:
    lengths = [len(row.trajectory.tokens) for row in rows]
    width = max(1, *lengths)
    ids = np.full((len(rows), width), _PADDING, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = row.trajectory.tokens
    positions = [response_positions(row.trajectory) for row in rows]
    return MicroBatch(
        input_ids=_tensor(ids),
        lengths_B=torch.tensor(lengths, dtype=torch.int64),
        predictor_T=_tensor(np.concatenate([i * width + at - 1 for i, at in enumerate(positions)])),
        tokens=_token_batch(rows, positions),
        places=tuple(row.place for row in rows),
    )


def response_positions(trajectory: Trajectory) -> NDArray[np.int64]:
    """Where the response's tokens stand. Nothing predicts a trajectory's first token, so that is never one of them."""
    return np.flatnonzero(trajectory.sources[1:] != Source.PROMPT).astype(np.int64) + 1


def _token_batch(rows: Sequence[Credited], positions: Sequence[NDArray[np.int64]]) -> TokenBatch:
    counts = [len(at) for at in positions]
    trajectories = [row.trajectory for row in rows]

    def per_token(values: Sequence[NDArray[np.generic]], dtype: type[np.generic]) -> Tensor:
        return _tensor(np.concatenate([v[at] for v, at in zip(values, positions, strict=True)]).astype(dtype))

    expert = [_expert_logprobs(t) for t in trajectories]
    return TokenBatch(
        labels_T=per_token([t.tokens for t in trajectories], np.int64),
        sources_T=per_token([t.sources for t in trajectories], np.uint8),
        advantages_T=_tensor(np.repeat([row.advantage for row in rows], counts).astype(np.float64)),
        behaviour_logprobs_T=per_token([t.behaviour_logprobs for t in trajectories], np.float64),
        expert_logprobs_T=per_token([logprobs for logprobs, _ in expert], np.float64),
        has_expert_T=per_token([known for _, known in expert], np.bool_),
        segment_T=_tensor(np.repeat(np.arange(len(rows)), counts).astype(np.int64)),
        rewards_N=torch.tensor([t.reward for t in trajectories], dtype=torch.float64),
        is_demonstration_N=torch.tensor([t.is_demonstration for t in trajectories], dtype=torch.bool),
    )


def _expert_logprobs(trajectory: Trajectory) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """log π_φ where the expert wrote the token and it is known, else 0; and where it is known.    [T], [T]"""
    wrote_T = (trajectory.sources == Source.HINT) | (trajectory.sources == Source.DEMONSTRATION)
    if trajectory.expert_logprobs is None:
        return np.zeros(len(wrote_T), dtype=np.float32), np.zeros_like(wrote_T)
    return np.where(wrote_T, trajectory.expert_logprobs, np.float32(0.0)), wrote_T


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]
