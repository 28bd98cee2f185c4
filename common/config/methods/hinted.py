"""Algorithms whose rollouts continue the beginning of a demonstration."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from common.config.base import HintNorm, Material, Norm, Selection
from common.config.methods.families import HINTS, PolicyGradient


class Hinted(PolicyGradient):
    """What the hinted policy gradients share."""

    requires: ClassVar[frozenset[Material]] = HINTS
    accepts: ClassVar[frozenset[Material]] = HINTS

    rollouts: int = Field(default=8, ge=1, le=1024, description="members of a group that the policy samples")


class UFT(Hinted):
    """Clipped GRPO on what the policy continues, and a little imitation of the hint."""

    title: ClassVar[str] = "UFT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.16984"
    published_hints: ClassVar[dict[str, Any]] = {"kind": "cosine_binomial"}

    kind: Literal["uft"] = "uft"
    norm: Norm = Field(default=Norm.TOKEN_MEAN, description="what the sum over sampled tokens is divided by")
    kl_coefficient: float = Field(
        default=0.001, ge=0, le=100, description="weight of the KL divergence (k3) to the model the run began with"
    )
    entropy_bonus: float = Field(default=0.001, ge=0, le=10, description="weight of the mean entropy that is maximised")
    beta: float = Field(default=0.001, ge=0, le=100, description="β: weight of the imitation of hint tokens")
    hint_norm: HintNorm = Field(default=HintNorm.MEAN, description="how the loss on hint tokens is added up")


class BREAD(Hinted):
    """Plain GRPO on groups that branch from an expert's anchor when the bare prompt only fails."""

    title: ClassVar[str] = "BREAD"
    paper: ClassVar[str] = "https://arxiv.org/abs/2506.17211"
    published_hints: ClassVar[dict[str, Any]] = {"kind": "branch_on_failure"}

    kind: Literal["bread"] = "bread"


class PrefixRFT(Hinted):
    """One rollout of a group continues a demonstration; of its hint only the least certain tokens are learnt."""

    title: ClassVar[str] = "Prefix-RFT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2507.01679"
    published_hints: ClassVar[dict[str, Any]] = {"kind": "uniform_decay"}

    kind: Literal["prefix_rft"] = "prefix_rft"
    divide_by_std: bool = Field(default=False, description="divide advantages by the group's standard deviation")
    norm: Norm = Field(default=Norm.CONSTANT, description="what the sum over tokens is divided by")
    dual_clip: float | None = Field(
        default=3.0, gt=1, le=1e6, description="bound c on a clipped ratio where A < 0; null: off"
    )
    keep_share: float = Field(
        default=0.2, ge=0, le=1, description="share of hint tokens, of the highest entropy, that keep their advantage"
    )
    selection: Selection = Field(default=Selection.TRAJECTORY, description="within what hint tokens are ranked")
