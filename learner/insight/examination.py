"""The examination: groups of a step as the learner saw them, token by token. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.config.live import LiveConfig
from common.examined import ExaminedGroup, ExaminedTrajectory
from common.trajectory import Group, Logprobs, Source, Trajectory
from learner.algorithms import build
from learner.batch import Place
from learner.insight.evidence import Evidence
from learner.packing.plan import credit, response_positions
from learner.ratios import importance_ratio


@dataclass(frozen=True, slots=True)
class Circumstances:
    """When groups were trained on. version: of the weights that the learner held. at_s: Unix time in seconds."""

    step: int
    revision: int
    version: int
    at_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """What the policy said of a trajectory's response tokens, and their ratios.    [T], [T]"""

    logprobs_T: Logprobs
    ratios_T: Logprobs


def chosen_for(step: int, groups: int, count: int) -> list[int]:
    """Which of a step's groups are examined: `count` in a row, others in every step until all had their turn."""
    return [((step - 1) * count + i) % groups for i in range(min(count, groups))]


def examined(
    live: LiveConfig, groups: Sequence[Group], numbers: Sequence[int], evidence: Evidence, at: Circumstances
) -> list[ExaminedGroup]:
    """The groups of these numbers as a step under `live` saw them."""
    algorithm = build(live.algorithm, longest_response=live.sampling.max_response_tokens)
    advantages = {c.place: c.advantage for c in chain.from_iterable(credit(algorithm, groups))}
    said = _said(evidence, set(numbers))
    return [
        ExaminedGroup(
            group_id=groups[number].group_id,
            prompt_id=groups[number].prompt_id,
            generator=groups[number].generator,
            step=at.step,
            revision=at.revision,
            version=at.version,
            algorithm=live.algorithm.kind,
            at_s=at.at_s,
            trajectories=tuple(
                _examined(trajectory, advantages.get(place), said.get(place))
                for member, trajectory in enumerate(groups[number].trajectories)
                for place in [Place(number, member)]
            ),
        )
        for number in numbers
    ]


def _said(evidence: Evidence, numbers: set[int]) -> Mapping[Place, _Said]:
    """What the policy said of the members of these groups that were in the forward."""
    said: dict[Place, _Said] = {}
    for exhibit in evidence.exhibits():
        if not any(place.group in numbers for place in exhibit.places):
            continue
        segment_T = exhibit.tokens.segment_T
        ratios_T = importance_ratio(exhibit.tokens, exhibit.outputs)
        for row, place in enumerate(exhibit.places):
            if place.group in numbers:
                of_row_T = segment_T == row
                said[place] = _Said(_array(exhibit.outputs.logprobs_T[of_row_T]), _array(ratios_T[of_row_T]))
    return said


def _examined(trajectory: Trajectory, advantage: float | None, said: _Said | None) -> ExaminedTrajectory:
    sources = trajectory.sources
    nothing = np.full(len(sources), np.nan, dtype=np.float32)
    policy_logprobs, ratios = nothing.copy(), nothing.copy()
    if said is not None:
        at = response_positions(trajectory)
        policy_logprobs[at], ratios[at] = said.logprobs_T, said.ratios_T
    wrote = (sources == Source.HINT) | (sources == Source.DEMONSTRATION)
    expert = trajectory.expert_logprobs
    return ExaminedTrajectory(
        tokens=trajectory.tokens,
        sources=sources,
        versions=_versions(trajectory),
        behaviour_logprobs=np.where(sources == Source.POLICY, trajectory.behaviour_logprobs, nothing),
        expert_logprobs=nothing if expert is None else np.where(wrote, expert, nothing),
        policy_logprobs=policy_logprobs,
        ratios=ratios,
        advantage=advantage,
        reward=trajectory.reward,
        reward_parts=trajectory.reward_parts,
    )


def _versions(trajectory: Trajectory) -> NDArray[np.int32]:
    """The weight version that sampled each token, -1 where none did."""
    versions = np.full(len(trajectory.tokens), -1, dtype=np.int32)
    for span in trajectory.versions:
        versions[span.start : span.end] = span.version
    return versions


def _array(tensor: Tensor) -> Logprobs:
    return tensor.detach().float().cpu().numpy()  # pyright: ignore[reportUnknownMemberType]
