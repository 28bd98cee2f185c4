"""Algorithms that learn from rewards alone: REINFORCE, and GRPO with its presets."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from common.config.base import Baseline, Material, Norm
from common.config.methods.families import HINTS, PolicyGradient, Reinforcing


class REINFORCE(Reinforcing):
    """Reward times log-probability, with or without a baseline."""

    title: ClassVar[str] = "REINFORCE"
    paper: ClassVar[str] = "https://doi.org/10.1007/BF00992696"
    accepts: ClassVar[frozenset[Material]] = HINTS

    kind: Literal["reinforce"] = "reinforce"
    rollouts: int = Field(default=8, ge=1, le=1024, description="members of a group that the policy samples")
    baseline: Baseline = Field(default=Baseline.NONE, description="what is taken off a reward")
    norm: Norm = Field(default=Norm.CONSTANT, description="what the sum over tokens is divided by")


class GRPO(PolicyGradient):
    """Group-relative policy optimisation, as written."""

    title: ClassVar[str] = "GRPO"
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.03300"
    accepts: ClassVar[frozenset[Material]] = HINTS

    kind: Literal["grpo"] = "grpo"
    rollouts: int = Field(default=8, ge=1, le=1024, description="members of a group that the policy samples")
    drop_flat_groups: bool = Field(default=False, description="leave out groups whose rewards are all equal")
    overlong_buffer: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the longest response over which a reward falls linearly by 1 (DAPO's soft penalty)",
    )


class DrGRPO(GRPO):
    """GRPO without the two biases: no division by the standard deviation, a constant length normaliser."""

    title: ClassVar[str] = "Dr.GRPO"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.20783"

    kind: Literal["dr_grpo"] = "dr_grpo"  # pyright: ignore[reportIncompatibleVariableOverride]
    divide_by_std: bool = Field(default=False, description="divide advantages by the group's standard deviation")
    norm: Norm = Field(default=Norm.CONSTANT, description="what the sum over tokens is divided by")


class DAPO(GRPO):
    """GRPO with a higher upper clip, a token mean, no flat groups, and a soft penalty on overlong responses."""

    title: ClassVar[str] = "DAPO"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.14476"

    kind: Literal["dapo"] = "dapo"  # pyright: ignore[reportIncompatibleVariableOverride]
    clip_high: float = Field(default=0.28, ge=0, le=1e6, description="ε above: the ratio is clipped at 1 + clip_high")
    norm: Norm = Field(default=Norm.TOKEN_MEAN, description="what the sum over tokens is divided by")
    drop_flat_groups: bool = Field(default=True, description="leave out groups whose rewards are all equal")
    overlong_buffer: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="share of the longest response over which a reward falls linearly by 1 (DAPO's soft penalty)",
    )
