"""What the configurations of algorithms have in common: material, corrections, and a policy gradient's parameters."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from common.config.base import Frozen, Material, Norm, Statistics, Surrogate

NOTHING: frozenset[Material] = frozenset()
DEMONSTRATIONS: frozenset[Material] = frozenset({Material.DEMONSTRATIONS})
HINTS: frozenset[Material] = frozenset({Material.HINTS})


class AlgorithmConfig(Frozen):
    """What all algorithms declare.

    requires: material without which it learns nothing. accepts: what it can use. published_hints: the hint policy that
    its authors fed it with.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    requires: ClassVar[frozenset[Material]] = NOTHING
    accepts: ClassVar[frozenset[Material]] = NOTHING
    published_hints: ClassVar[dict[str, Any]] = {"kind": "none"}

    rollouts: int = Field(default=8, ge=0, le=1024, description="members of a group that the policy samples")


class Corrections(Frozen):
    """Corrections for the asynchronous gap, on policy tokens only; they may be combined (methods §0.4).

    With any of them the importance ratio is π_θ/π_prox, and the loss is weighted by w = π_prox/π_old, where π_prox is
    the learner's policy at the start of the step.
    """

    decoupled: bool = Field(default=False, description="decoupled PPO: weigh by π_prox/π_old (arXiv 2505.24298)")
    truncate_at: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="truncated importance sampling: w is at most this (2 is usual); null: off",
    )
    keep_low: float | None = Field(
        default=None, ge=0, le=1e6, description="masked importance sampling: w below this becomes 0 (0.5 is usual)"
    )
    keep_high: float | None = Field(
        default=None, gt=0, le=1e6, description="masked importance sampling: w above this becomes 0 (5 is usual)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Corrections:
        if self.keep_low is not None and self.keep_high is not None and self.keep_low >= self.keep_high:
            raise ValueError(f"keep_low ({self.keep_low}) must be below keep_high ({self.keep_high})")
        return self

    @property
    def any(self) -> bool:
        """Whether one of them is on."""
        return self.decoupled or not (self.truncate_at is self.keep_low is self.keep_high is None)


class Reinforcing(AlgorithmConfig):
    """The parameters shared by every algorithm that learns from rewards."""

    statistics: Statistics = Field(default=Statistics.JOINT, description="whose rewards make the group statistics")
    norm: Norm = Field(default=Norm.SEQUENCE_MEAN, description="what the sum over tokens is divided by")
    entropy_bonus: float = Field(default=0.0, ge=0, le=10, description="weight of the mean entropy that is maximised")
    kl_coefficient: float = Field(
        default=0.0, ge=0, le=100, description="weight of the KL divergence (k3) to the model the run began with"
    )
    corrections: Corrections = Corrections()


class PolicyGradient(Reinforcing):
    """The parameters shared by every algorithm that weighs tokens with group-relative advantages."""

    surrogate: Surrogate = Field(default=Surrogate.CLIPPED, description="objective on sampled tokens")
    clip_low: float = Field(default=0.2, ge=0, lt=1, description="ε below: the ratio is clipped at 1 - clip_low")
    clip_high: float = Field(default=0.2, ge=0, le=1e6, description="ε above: the ratio is clipped at 1 + clip_high")
    gspo_clip_low: float = Field(default=3e-4, ge=0, lt=1, description="ε below of the sequence ratio (gspo)")
    gspo_clip_high: float = Field(default=4e-4, ge=0, le=1e6, description="ε above of the sequence ratio (gspo)")
    dual_clip: float | None = Field(
        default=None, gt=1, le=1e6, description="bound c on a clipped ratio where A < 0 (3 is usual); null: off"
    )
    divide_by_std: bool = Field(default=True, description="divide advantages by the group's standard deviation")
