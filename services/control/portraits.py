"""Portraits: examined groups as the API shows them, with the text of each token beside its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from common.config.live import Json
from common.examined import ExaminedGroup, ExaminedTrajectory, Kept
from common.trajectory import Source
from services.control.words import Spelling

PREVIEW_CHARACTERS = 200
_DIGITS = 6
_SOURCES = tuple(source.name.lower() for source in Source)

Kind = Literal["rollout", "hinted", "demonstration"]
SourceName = Literal["prompt", "policy", "hint", "demonstration"]
Numbers = list[float | None]


class GroupSummary(BaseModel):
    """A group that the learner trained on. id: of the entry, growing. step: at which. revision: in force there.

    version: the weights' that the learner held. rewards, kinds: one per trajectory. tokens: of the responses.
    """

    id: str
    group_id: str
    prompt_id: str
    step: int
    revision: int
    version: int
    algorithm: str
    generator: str
    at_s: float = Field(description="Unix time in seconds")
    rewards: Numbers
    kinds: list[Kind]
    tokens: int
    prompt: str = Field(description="the beginning of its text")


class TokenColumns(BaseModel):
    """The tokens of a trajectory, column by column, prompt included. null: it does not apply to the token.

    text: what each token adds to the text; "" where a character goes on in the next one. version: of the weights that
    sampled it. policy_logprob: π_θ at the start of the step. ratio: the importance ratio with its true denominator.
    """

    id: list[int]
    text: list[str]
    source: list[SourceName]
    version: list[int | None]
    behaviour_logprob: Numbers
    policy_logprob: Numbers
    expert_logprob: Numbers
    ratio: Numbers


class TrajectoryPortrait(BaseModel):
    """One trajectory. advantage: as the algorithm gave it; null: it did not admit the trajectory."""

    kind: Kind
    reward: float | None
    reward_parts: dict[str, float | None]
    advantage: float | None
    versions: list[int] = Field(description="weight versions that sampled it")
    tokens: TokenColumns


class GroupPortrait(GroupSummary):
    """A group token by token. notice: why tokens are shown by their ids, if they are."""

    trajectories: list[TrajectoryPortrait]
    notice: str = ""


def summary(kept: Kept, spelling: Spelling) -> Json:
    """A GroupSummary."""
    group = kept.group
    return {
        "id": kept.entry_id,
        "group_id": group.group_id,
        "prompt_id": group.prompt_id,
        "step": group.step,
        "revision": group.revision,
        "version": group.version,
        "algorithm": group.algorithm,
        "generator": group.generator,
        "at_s": group.at_s,
        "rewards": [_number(t.reward) for t in group.trajectories],
        "kinds": [_kind(t) for t in group.trajectories],
        "tokens": sum(int(np.count_nonzero(t.sources != Source.PROMPT)) for t in group.trajectories),
        "prompt": _prompt(group, spelling),
    }


def portrait(kept: Kept, spelling: Spelling) -> Json:
    """A GroupPortrait. Takes a while for long ones: call it in a thread."""
    trajectories = [_trajectory(t, spelling) for t in kept.group.trajectories]
    return {**summary(kept, spelling), "trajectories": trajectories, "notice": spelling.notice}


def _trajectory(trajectory: ExaminedTrajectory, spelling: Spelling) -> Json:
    tokens = trajectory.tokens.tolist()
    versions = trajectory.versions
    return {
        "kind": _kind(trajectory),
        "reward": _number(trajectory.reward),
        "reward_parts": {name: _number(value) for name, value in trajectory.reward_parts.items()},
        "advantage": _number(trajectory.advantage),
        "versions": np.unique(versions[versions >= 0]).tolist(),
        "tokens": {
            "id": tokens,
            "text": spelling.pieces(tokens),
            "source": [_SOURCES[source] for source in trajectory.sources.tolist()],
            "version": [version if version >= 0 else None for version in versions.tolist()],
            "behaviour_logprob": _numbers(trajectory.behaviour_logprobs),
            "policy_logprob": _numbers(trajectory.policy_logprobs),
            "expert_logprob": _numbers(trajectory.expert_logprobs),
            "ratio": _numbers(trajectory.ratios),
        },
    }


def _kind(trajectory: ExaminedTrajectory) -> Kind:
    if np.any(trajectory.sources == Source.DEMONSTRATION):
        return "demonstration"
    return "hinted" if np.any(trajectory.sources == Source.HINT) else "rollout"


def _prompt(group: ExaminedGroup, spelling: Spelling) -> str:
    """The beginning of the prompt; of a long one only so many tokens are written as can be in it."""
    first = next(iter(group.trajectories), None)
    if first is None:
        return ""
    tokens: Sequence[int] = first.tokens[first.sources == Source.PROMPT][:PREVIEW_CHARACTERS].tolist()
    return spelling.text(tokens)[:PREVIEW_CHARACTERS]


def _number(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _numbers(values: NDArray[Any]) -> Numbers:
    """Six digits of each number; None for what is not finite."""
    exact = values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(exact))))
        short = np.where(np.isfinite(scale) & (scale > 0), np.round(exact * scale) / scale, exact)
    return [
        value if finite else None for value, finite in zip(short.tolist(), np.isfinite(short).tolist(), strict=True)
    ]
