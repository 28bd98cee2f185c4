"""The plan of a step: advantages, global denominators, and trajectories cut into micro-batches. Deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from common.trajectory import Group, Source, Trajectory
from learner.advantages import members_of
from learner.batch import MicroBatch, Place
from learner.packing.cut import pieces_of
from learner.packing.layout import WHOLE, Layout, Share
from learner.packing.shared_prompts import Row, shared_rows, single_rows
from learner.packing.writing import Credited, written
from learner.terms import Algorithm, taught_tokens


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """All that one optimiser step will do, known before its first forward; or what one rank will do of it.

    counts: term name → what its sum is divided by, over all micro-batches. groups, trajectories: those that the
    algorithm sees. tokens: those that some term is about. flat_groups: groups in which every advantage is zero. In the
    plan of a share these are its own, groups and flat_groups with rank 0: over all shares they add up to the step's.
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


def plan_step(algorithm: Algorithm, groups: Sequence[Group], layout: Layout, share: Share = WHOLE) -> StepPlan:
    """Plan one step on `groups`, or a rank's share of it: no micro-batch exceeds `layout.tokens`, padding included.

    A trajectory is never split; one that is longer than the limit gets a micro-batch of its own.
    """
    credited = credit(algorithm, groups)
    pieces = pieces_of(_rows(credited, layout), layout, share)
    written_out = written(pieces, list(chain.from_iterable(credited)))
    counted = credited if share.rank == 0 else []
    return StepPlan(
        micro_batches=written_out.micro_batches,
        counts={term.name: term.norm.count(written_out.tokens) for term in algorithm.terms},
        groups=len(counted),
        flat_groups=sum(all(member.advantage == 0 for member in members) for members in counted),
        trajectories=written_out.tokens.sequences,
        tokens=int(taught_tokens(algorithm, written_out.tokens).sum()),
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


def response_positions(trajectory: Trajectory) -> NDArray[np.int64]:
    """Where the response's tokens stand. Nothing predicts a trajectory's first token, so that is never one of them."""
    return np.flatnonzero(trajectory.sources[1:] != Source.PROMPT).astype(np.int64) + 1


def _rows(credited: Sequence[Sequence[Credited]], layout: Layout) -> list[Row]:
    """What is computed in one piece; trajectories are numbered through all groups."""
    rows: list[Row] = []
    first = 0
    for members in credited:
        trajectories = [member.trajectory for member in members]
        sharing = layout.shared_prompts
        rows += shared_rows(trajectories, first, layout.tokens) if sharing else single_rows(trajectories, first)
        first += len(members)
    return rows
