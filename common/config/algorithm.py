"""The algorithms an operator may ask for, one class each: published defaults, and the material each needs.

`{"kind": "luffy"}` alone is LUFFY. `rollouts` is how many members of a group the policy samples; how many
demonstrations join them, and who is shown a hint, is the hint policy's business.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.config.base import Frozen, Material, Norm, Shaping, Statistics, Surrogate

NOTHING: frozenset[Material] = frozenset()


class AlgorithmConfig(Frozen):
    """What all algorithms declare. `requires`: material without which it learns nothing. `accepts`: what it can use."""

    title: ClassVar[str]
    paper: ClassVar[str]
    requires: ClassVar[frozenset[Material]] = NOTHING
    accepts: ClassVar[frozenset[Material]] = NOTHING

    rollouts: int = Field(default=8, ge=0, le=1024, description="members of a group that the policy samples")


class PolicyGradient(AlgorithmConfig):
    """The parameters shared by every algorithm that weighs tokens with advantages."""

    surrogate: Surrogate = Field(default=Surrogate.CLIPPED, description="objective on sampled tokens")
    clip_low: float = Field(default=0.2, ge=0, lt=1, description="ε below: the ratio is clipped at 1 - clip_low")
    clip_high: float = Field(default=0.2, ge=0, description="ε above: the ratio is clipped at 1 + clip_high")
    divide_by_std: bool = Field(default=True, description="divide advantages by the group's standard deviation")
    statistics: Statistics = Field(default=Statistics.JOINT, description="whose rewards make the group statistics")
    norm: Norm = Field(default=Norm.SEQUENCE_MEAN, description="what the sum over tokens is divided by")
    entropy_bonus: float = Field(default=0.0, ge=0, le=10, description="weight of the mean entropy that is maximised")


class SFT(AlgorithmConfig):
    """Supervised fine-tuning on demonstrations; no rollouts."""

    title: ClassVar[str] = "Supervised fine-tuning"
    paper: ClassVar[str] = "survey Eq. 1-2"
    requires: ClassVar[frozenset[Material]] = frozenset({Material.DEMONSTRATIONS})
    accepts: ClassVar[frozenset[Material]] = frozenset({Material.DEMONSTRATIONS})

    kind: Literal["sft"] = "sft"
    rollouts: int = Field(
        default=0, ge=0, le=1024, description="sampled members; ignored by the loss, graded for metrics"
    )
    norm: Norm = Field(default=Norm.TOKEN_MEAN, description="what the sum over expert tokens is divided by")


class GRPO(PolicyGradient):
    """Group-relative policy optimisation, as written."""

    title: ClassVar[str] = "GRPO"
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.03300"
    accepts: ClassVar[frozenset[Material]] = frozenset({Material.HINTS})

    kind: Literal["grpo"] = "grpo"
    rollouts: int = Field(default=8, ge=1, le=1024, description="members of a group that the policy samples")


class DrGRPO(PolicyGradient):
    """GRPO without the two biases: no division by the standard deviation, a constant length normaliser."""

    title: ClassVar[str] = "Dr.GRPO"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.20783"
    accepts: ClassVar[frozenset[Material]] = frozenset({Material.HINTS})

    kind: Literal["dr_grpo"] = "dr_grpo"
    rollouts: int = Field(default=8, ge=1, le=1024, description="members of a group that the policy samples")
    divide_by_std: bool = Field(default=False, description="divide advantages by the group's standard deviation")
    norm: Norm = Field(default=Norm.CONSTANT, description="what the sum over tokens is divided by")


class LUFFY(PolicyGradient):
    """Demonstrations as off-policy members of the group, their ratio shaped by x/(x+γ)."""

    title: ClassVar[str] = "LUFFY"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.14945"
    requires: ClassVar[frozenset[Material]] = frozenset({Material.DEMONSTRATIONS})
    accepts: ClassVar[frozenset[Material]] = frozenset({Material.DEMONSTRATIONS, Material.HINTS})

    kind: Literal["luffy"] = "luffy"
    rollouts: int = Field(default=7, ge=1, le=1024, description="members of a group that the policy samples")
    surrogate: Surrogate = Field(default=Surrogate.UNCLIPPED, description="objective on sampled tokens")
    divide_by_std: bool = Field(default=False, description="divide advantages by the group's standard deviation")
    norm: Norm = Field(default=Norm.CONSTANT, description="what both sums over tokens are divided by")
    entropy_bonus: float = Field(default=0.001, ge=0, le=10, description="weight of the mean entropy that is maximised")
    shaping: Shaping = Field(default=Shaping.GAMMA, description="what is done to π_θ/π_φ of an expert token")
    gamma: float = Field(default=0.1, gt=0, le=100, description="γ of x/(x+γ): where the expert's gradient peaks")
    negatives_in_failed_groups: bool = Field(
        default=True, description="keep the negative advantages of rollouts when every rollout of the group failed"
    )


Algorithm = Annotated[SFT | GRPO | DrGRPO | LUFFY, Field(discriminator="kind")]
ALGORITHMS: tuple[type[AlgorithmConfig], ...] = (SFT, GRPO, DrGRPO, LUFFY)
