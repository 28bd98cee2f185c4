"""Algorithms that train on rollouts and demonstrations of one prompt together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from common.config.base import EntropyScope, Material, Norm, SelfReward, Shaping, Surrogate
from common.config.methods.families import DEMONSTRATIONS, HINTS, PolicyGradient, Reinforcing


class Mixed(PolicyGradient):
    """What the mixed policy gradients share: demonstrations are members of the group."""

    requires: ClassVar[frozenset[Material]] = DEMONSTRATIONS
    accepts: ClassVar[frozenset[Material]] = DEMONSTRATIONS | HINTS
    published_hints: ClassVar[dict[str, Any]] = {"kind": "demonstration"}

    rollouts: int = Field(default=7, ge=1, le=1024, description="members of a group that the policy samples")
    norm: Norm = Field(default=Norm.TOKEN_MEAN, description="what both sums over tokens are divided by")


class NaiveMix(Mixed):
    """Demonstrations clipped against the policy itself: the wrong denominator, for comparison."""

    title: ClassVar[str] = "Naive mix"
    paper: ClassVar[str] = "survey Eq. 8"

    kind: Literal["naive_mix"] = "naive_mix"


class Mix(Mixed):
    """Demonstrations with their true denominator π_φ, clipped like rollouts; for comparison."""

    title: ClassVar[str] = "Mix"
    paper: ClassVar[str] = "survey Eq. 10"

    kind: Literal["mix"] = "mix"


class LUFFY(Mixed):
    """Demonstrations as off-policy members of the group, their ratio shaped by x/(x+γ)."""

    title: ClassVar[str] = "LUFFY"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.14945"

    kind: Literal["luffy"] = "luffy"
    surrogate: Surrogate = Field(default=Surrogate.UNCLIPPED, description="objective on sampled tokens")
    divide_by_std: bool = Field(default=False, description="divide advantages by the group's standard deviation")
    norm: Norm = Field(default=Norm.CONSTANT, description="what both sums over tokens are divided by")
    entropy_bonus: float = Field(default=0.001, ge=0, le=10, description="weight of the mean entropy that is maximised")
    shaping: Shaping = Field(default=Shaping.GAMMA, description="what is done to π_θ/π_φ of an expert token")
    gamma: float = Field(default=0.1, gt=0, le=100, description="γ of x/(x+γ): where the expert's gradient peaks")
    exponent: float = Field(default=0.5, gt=0, le=10, description="exponent of the shaping `power`")
    ratio_min: float | None = Field(
        default=None, ge=0, le=1e6, description="π_θ/π_φ is raised to this before it is shaped; null: off"
    )
    ratio_max: float | None = Field(
        default=None, gt=0, le=1e6, description="π_θ/π_φ is lowered to this before it is shaped; null: off"
    )
    negatives_in_failed_groups: bool = Field(
        default=True, description="keep the negative advantages of rollouts when every rollout of the group failed"
    )

    @model_validator(mode="after")
    def _ordered(self) -> LUFFY:
        if self.ratio_min is not None and self.ratio_max is not None and self.ratio_min >= self.ratio_max:
            raise ValueError(f"ratio_min ({self.ratio_min}) must be below ratio_max ({self.ratio_max})")
        return self


class LUFFYPaper(LUFFY):
    """LUFFY as its paper writes it: rollouts clipped, one mean over all response tokens, a larger entropy bonus."""

    title: ClassVar[str] = "LUFFY (paper)"

    kind: Literal["luffy_paper"] = "luffy_paper"  # pyright: ignore[reportIncompatibleVariableOverride]
    surrogate: Surrogate = Field(default=Surrogate.CLIPPED, description="objective on sampled tokens")
    norm: Norm = Field(default=Norm.TOKEN_MEAN, description="what both sums over tokens are divided by")
    entropy_bonus: float = Field(default=0.01, ge=0, le=10, description="weight of the mean entropy that is maximised")


class SRFT(Reinforcing):
    """Imitation, off-policy and on-policy learning in one loss, weighted by the policy's entropy."""

    title: ClassVar[str] = "SRFT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2506.19767"
    requires: ClassVar[frozenset[Material]] = DEMONSTRATIONS
    accepts: ClassVar[frozenset[Material]] = DEMONSTRATIONS | HINTS
    published_hints: ClassVar[dict[str, Any]] = {"kind": "demonstration"}

    kind: Literal["srft"] = "srft"
    rollouts: int = Field(default=8, ge=1, le=1024, description="members of a group that the policy samples")
    norm: Norm = Field(default=Norm.TOKEN_MEAN, description="what each sum over tokens is divided by")
    divide_by_std: bool = Field(default=True, description="divide advantages by the group's standard deviation")
    sft_weight: float = Field(default=0.5, ge=0, le=100, description="c of w_SFT = c exp(-H)")
    sft_entropy_sign: Literal[-1, 1] = Field(default=-1, description="sign of H in w_SFT: -1 is the paper")
    off_policy_weight: float = Field(default=1.0, ge=0, le=100, description="weight of the off-policy term")
    shaping: Literal[Shaping.GAMMA, Shaping.NONE] = Field(
        default=Shaping.GAMMA, description="what is done to π_θ/π_φ of an expert token; none is the paper"
    )
    gamma: float = Field(default=0.1, gt=0, le=100, description="γ of x/(x+γ)")
    rl_weight: float = Field(default=0.1, ge=0, le=100, description="c of w_RL = c exp(H), on right rollouts only")
    entropy_scope: EntropyScope = Field(default=EntropyScope.SEQUENCE, description="over what H is averaged")
    self_reward: SelfReward = Field(
        default=SelfReward.PM1, description="pm1 is the paper; advantage is bounded below: for long runs"
    )
    negatives_in_failed_groups: bool = Field(
        default=True, description="push down rollouts when every rollout of the group failed"
    )
