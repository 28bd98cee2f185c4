"""Which members of a group an algorithm sees, and which tokens of a batch a term is about. Both read data alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from common.config.base import Material
from common.trajectory import Source, Trajectory
from learner.batch import TokenBatch

Selector = Callable[[TokenBatch], Tensor]
"""TokenBatch -> bool [T]."""

Admission = Callable[[Sequence[Trajectory]], list[Trajectory]]
"""All members of a group -> those the algorithm sees. The others count nowhere: in no statistics, norm or forward."""


def response_tokens(batch: TokenBatch) -> Tensor:
    """Every response token.    bool [T]"""
    return batch.sources_T != Source.PROMPT


def policy_tokens(batch: TokenBatch) -> Tensor:
    """What the policy sampled.    bool [T]"""
    return batch.sources_T == Source.POLICY


def hint_tokens(batch: TokenBatch) -> Tensor:
    """What the policy was shown of a demonstration.    bool [T]"""
    return batch.sources_T == Source.HINT


def demonstration_tokens(batch: TokenBatch) -> Tensor:
    """The tokens of whole demonstrations.    bool [T]"""
    return batch.sources_T == Source.DEMONSTRATION


def expert_tokens(batch: TokenBatch) -> Tensor:
    """What the expert wrote: hints and demonstrations.    bool [T]"""
    return hint_tokens(batch) | demonstration_tokens(batch)


def admitting(accepts: frozenset[Material]) -> Admission:
    """Admission of plain rollouts, and of hinted rollouts and demonstrations where `accepts` names them."""
    return partial(_admit, accepts=accepts)


def demonstrations_only(members: Sequence[Trajectory]) -> list[Trajectory]:
    """The demonstrations of a group."""
    return [member for member in members if member.is_demonstration]


def dropping_flat_groups(members: Sequence[Trajectory], *, admits: Admission) -> list[Trajectory]:
    """What `admits` lets in, unless all of the rollouts among it earned the same: then nobody.

    A single rollout has nothing to differ from: it stays. A demonstration does not make a flat group uneven.
    """
    admitted = admits(members)
    rewards = [member.reward for member in admitted if not member.is_demonstration]
    return [] if len(rewards) > 1 and min(rewards) == max(rewards) else admitted


def _admit(members: Sequence[Trajectory], *, accepts: frozenset[Material]) -> list[Trajectory]:
    return [member for member in members if _extra(member) <= accepts]


def _extra(member: Trajectory) -> frozenset[Material]:
    """The material that a member is, beside a plain rollout."""
    if member.is_demonstration:
        return frozenset({Material.DEMONSTRATIONS})
    return frozenset({Material.HINTS}) if member.hint_length else frozenset()
