"""Algorithms that imitate demonstrations as such: always, or where the policy cannot help itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from common.config.base import Material, Norm, Surrogate
from common.config.methods.families import DEMONSTRATIONS, HINTS, AlgorithmConfig, PolicyGradient


class SFT(AlgorithmConfig):
    """Supervised fine-tuning on demonstrations; no rollouts."""

    title: ClassVar[str] = "Supervised fine-tuning"
    paper: ClassVar[str] = "survey Eq. 1-2"
    requires: ClassVar[frozenset[Material]] = DEMONSTRATIONS
    accepts: ClassVar[frozenset[Material]] = DEMONSTRATIONS
    published_hints: ClassVar[dict[str, Any]] = {"kind": "demonstration"}

    kind: Literal["sft"] = "sft"
    rollouts: int = Field(
        default=0, ge=0, le=1024, description="sampled members; ignored by the loss, graded for metrics"
    )
    norm: Norm = Field(default=Norm.TOKEN_MEAN, description="what the sum over expert tokens is divided by")


class Rescued(PolicyGradient):
    """Dr.GRPO, with demonstrations for the prompts that the policy does not solve."""

    requires: ClassVar[frozenset[Material]] = DEMONSTRATIONS
    accepts: ClassVar[frozenset[Material]] = DEMONSTRATIONS | HINTS
    published_hints: ClassVar[dict[str, Any]] = {"kind": "if_unsolved"}

    rollouts: int = Field(default=8, ge=1, le=1024, description="members of a group that the policy samples")
    divide_by_std: bool = Field(default=False, description="divide advantages by the group's standard deviation")
    norm: Norm = Field(default=Norm.CONSTANT, description="what the sum over sampled tokens is divided by")


class ReLIFT(Rescued):
    """Reinforcement learning, and now and then a step of imitation on the prompts that it could not solve."""

    title: ClassVar[str] = "ReLIFT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2506.07527"

    kind: Literal["relift"] = "relift"
    surrogate: Surrogate = Field(default=Surrogate.UNCLIPPED, description="objective on sampled tokens")
    buffer_size: int = Field(
        default=128,
        ge=1,
        le=65_536,
        description="M: demonstrations of one imitation step, which follows when so many wait",
    )
    buffer_limit: int = Field(
        default=1024, ge=1, le=1_048_576, description="demonstrations kept at most; the oldest leave first"
    )
    sft_learning_rate: float = Field(default=1e-6, ge=0, le=1, description="learning rate of the imitation step")
    sft_entropy_bonus: float = Field(
        default=1e-4, ge=0, le=10, description="α: weight of the mean entropy in the imitation step"
    )

    @model_validator(mode="after")
    def _fits(self) -> ReLIFT:
        if self.buffer_limit < self.buffer_size:
            raise ValueError(f"buffer_limit ({self.buffer_limit}) must not be below buffer_size ({self.buffer_size})")
        return self


class HPT(Rescued):
    """Imitation of the demonstration where almost every rollout fails, Dr.GRPO everywhere else."""

    title: ClassVar[str] = "HPT"
    paper: ClassVar[str] = "https://arxiv.org/abs/2509.04419"

    kind: Literal["hpt"] = "hpt"
    gate: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="a group with at most so many right rollouts gives way to its demonstration",
    )
    sft_coefficient: float = Field(default=1.0, ge=0, le=100, description="weight of the imitation")
