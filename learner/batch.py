"""The arrays of one forward pass: padded rows for the model, flat response tokens for the objective."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """The response tokens of N whole trajectories, one after another; prompt tokens are not in it.

    labels_T: token ids. sources_T: common.trajectory.Source. advantages_T: the advantage of the token's trajectory.
    behaviour_logprobs_T: log π_old on sampled tokens, else 0. expert_logprobs_T: log π_φ on expert tokens where
    has_expert_T says that it is known, else 0 (which is π_φ = 1). segment_T: the token's trajectory, 0..N-1. rewards_N,
    is_demonstration_N: one entry per trajectory, also for one without any response token. No entry is ever NaN.
    """

    labels_T: Tensor
    sources_T: Tensor
    advantages_T: Tensor
    behaviour_logprobs_T: Tensor
    expert_logprobs_T: Tensor
    has_expert_T: Tensor
    segment_T: Tensor
    rewards_N: Tensor
    is_demonstration_N: Tensor

    @property
    def sequences(self) -> int:
        """How many trajectories it holds: N."""
        return len(self.rewards_N)

    def sum_per_sequence(self, values_T: Tensor) -> Tensor:
        """The sum of a per-token quantity over each trajectory.    [T] -> [N]"""
        return values_T.new_zeros(self.sequences).index_add(0, self.segment_T, values_T)

    def chosen(self, kept_N: Tensor) -> TokenBatch:
        """Only the trajectories that kept_N marks, in the same order."""
        kept_T = kept_N[self.segment_T]
        return TokenBatch(
            labels_T=self.labels_T[kept_T],
            sources_T=self.sources_T[kept_T],
            advantages_T=self.advantages_T[kept_T],
            behaviour_logprobs_T=self.behaviour_logprobs_T[kept_T],
            expert_logprobs_T=self.expert_logprobs_T[kept_T],
            has_expert_T=self.has_expert_T[kept_T],
            segment_T=(kept_N.cumsum(0) - 1)[self.segment_T[kept_T]],
            rewards_N=self.rewards_N[kept_N],
            is_demonstration_N=self.is_demonstration_N[kept_N],
        )

    def credited(self, advantages_N: Tensor) -> TokenBatch:
        """The batch with other advantages."""
        return replace(self, advantages_T=advantages_N.to(self.advantages_T)[self.segment_T])

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> TokenBatch:
        """The batch on `device`, its real numbers as `dtype`."""
        return TokenBatch(
            labels_T=self.labels_T.to(device),
            sources_T=self.sources_T.to(device),
            advantages_T=self.advantages_T.to(device, dtype),
            behaviour_logprobs_T=self.behaviour_logprobs_T.to(device, dtype),
            expert_logprobs_T=self.expert_logprobs_T.to(device, dtype),
            has_expert_T=self.has_expert_T.to(device),
            segment_T=self.segment_T.to(device),
            rewards_N=self.rewards_N.to(device, dtype),
            is_demonstration_N=self.is_demonstration_N.to(device),
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Which member of which group of a step a trajectory is; both count from zero."""

    group: int
    member: int


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """What fits one forward: B whole trajectories, padded on the right to S tokens, and their response tokens.

    input_ids: [B, S]. lengths_B: tokens of each row that are not padding. predictor_T: index into the flattened [B * S]
    positions of the one whose hidden state predicts each response token. places: where each row comes from, B of them.
    """

    input_ids: Tensor
    lengths_B: Tensor
    predictor_T: Tensor
    tokens: TokenBatch
    places: tuple[Place, ...]

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> MicroBatch:
        """The micro-batch on `device`, its real numbers as `dtype`."""
        return MicroBatch(
            input_ids=self.input_ids.to(device),
            lengths_B=self.lengths_B.to(device),
            predictor_T=self.predictor_T.to(device),
            tokens=self.tokens.to(device, dtype),
            places=self.places,
        )


@dataclass(frozen=True, slots=True, eq=False)
class PolicyOutputs:
    """What the policy says about the tokens of a batch: log π_θ of each label, and the entropy where it was chosen.

    Both are [T], at the sampling temperature, and carry a gradient. reference_logprobs_T: what the frozen reference
    says, without a gradient; None unless the algorithm asks for it.
    """

    logprobs_T: Tensor
    entropy_T: Tensor
    reference_logprobs_T: Tensor | None = None

    def detached(self) -> PolicyOutputs:
        """The same figures without a gradient; the forward that they came from can be forgotten."""
        return replace(self, logprobs_T=self.logprobs_T.detach(), entropy_T=self.entropy_T.detach())
