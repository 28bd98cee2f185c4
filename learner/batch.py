"""The arrays of one forward pass: rows of token ids for the model, flat response tokens for the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

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

    def part(self, tokens: slice, sequences: slice) -> TokenBatch:
        """These whole trajectories with these tokens, which must be theirs; it shares this batch's memory."""
        chosen = {f.name: getattr(self, f.name)[tokens if f.name.endswith("_T") else sequences] for f in fields(self)}
        chosen["segment_T"] = chosen["segment_T"] - sequences.start
        return TokenBatch(**chosen)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> TokenBatch:
        """The batch on `device`, its real numbers as `dtype`. What is pinned is copied without waiting for it."""
        return self._each(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype, non_blocking=True))

    def pinned(self, dtype: torch.dtype = torch.float32) -> TokenBatch:
        """The batch in memory that a GPU reads by itself, its real numbers already as `dtype`."""
        # A conversion on the way to the device would go through memory that is not pinned.
        return self._each(lambda t: (t.to(dtype) if t.is_floating_point() else t).pin_memory())

    def _each(self, moved: Callable[[Tensor], Tensor]) -> TokenBatch:
        return TokenBatch(**{f.name: moved(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Place:
    """Which member of which group of a step a trajectory is; both count from zero."""

    group: int
    member: int


class Span(NamedTuple):
    """A run of positions that attends to itself, causally, and to all of another run, which it continues.

    start, length: the run. prefix_start, prefix_length: what it continues; of length 0 where it begins a sequence.
    """

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0

    @property
    def keys(self) -> int:
        """How many positions its last one attends to."""
        return self.prefix_length + self.length


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """The one row of a packed micro-batch as attention sees it: K spans, which together are its S positions, in order.

    position_ids [1, S]: each position's place in its own sequence. query_ends_K1, key_ends_K1: int32, 0 and then how
    many positions, and positions attended to, there are up to the end of each span. keys: the positions attended to,
    span after span; None where each span attends to itself only. longest: of the positions attended to.
    """

    spans: tuple[Span, ...]
    position_ids: Tensor
    query_ends_K1: Tensor
    key_ends_K1: Tensor
    keys: Tensor | None
    longest_query: int
    longest_key: int

    def each(self, moved: Callable[[Tensor], Tensor]) -> Spans:
        """The same with every tensor moved."""
        return replace(
            self,
            position_ids=moved(self.position_ids),
            query_ends_K1=moved(self.query_ends_K1),
            key_ends_K1=moved(self.key_ends_K1),
            keys=None if self.keys is None else moved(self.keys),
        )


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """What fits one forward: N whole trajectories in B rows of S positions, and their response tokens.

    input_ids: [B, S]. lengths_B: positions of each row that are not padding. predictor_T: index into the flattened
    [B * S] positions of the one whose hidden state predicts each response token. places: where each trajectory comes
    from, N of them. spans: None if every trajectory has a row of its own, padded on the right (B = N, or B = 1 and
    N = 0 in a micro-batch that only keeps step with those of other ranks); else all of them lie in one row.
    """

    input_ids: Tensor
    lengths_B: Tensor
    predictor_T: Tensor
    tokens: TokenBatch
    places: tuple[Place, ...]
    spans: Spans | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> MicroBatch:
        """The micro-batch on `device`, its real numbers as `dtype`. What is pinned is copied without waiting for it."""
        return self._each(lambda t: t.to(device, non_blocking=True), self.tokens.to(device, dtype))

    def pinned(self, dtype: torch.dtype = torch.float32) -> MicroBatch:
        """The micro-batch in memory that a GPU reads by itself, its real numbers already as `dtype`."""
        return self._each(lambda t: t.pin_memory(), self.tokens.pinned(dtype))

    def _each(self, moved: Callable[[Tensor], Tensor], tokens: TokenBatch) -> MicroBatch:
        return MicroBatch(
            input_ids=moved(self.input_ids),
            lengths_B=moved(self.lengths_B),
            predictor_T=moved(self.predictor_T),
            tokens=tokens,
            places=self.places,
            spans=None if self.spans is None else self.spans.each(moved),
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
