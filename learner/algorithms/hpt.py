"""HPT: hybrid post-training, which decides prompt by prompt between imitation and reinforcement.

Lv et al., 2025, https://arxiv.org/abs/2509.04419

    a group with at most `gate` right rollouts and a demonstration: only the demonstration is seen,
        L_SFT = - sft_coefficient mean_t log pi_theta      over the tokens of all such demonstrations of the step
    any other group: only the rollouts are seen,
        L_RL  = - sum_t min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i)         Dr.GRPO
        A_i   = R_i - mean R, rho_t = pi_theta / pi_old, divided by sequences times the longest response

Departures: the demonstration of a gated prompt is imitated whatever its grade is, as under SFT. L_SFT is a token mean
whatever norm says, over the whole step and not per micro-batch. The sequences that L_RL is divided by are all that are
seen in the step, the demonstrations of gated prompts among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from common.config.algorithm import HPT
from common.trajectory import Trajectory
from learner.advantages import Advantage, Members, Vector, group_relative, unit
from learner.algorithms.policy_gradient import regularisers, surrogate_term
from learner.losses import negative_logprob
from learner.normalisers import TokenMean, normaliser
from learner.selectors import demonstration_tokens, policy_tokens
from learner.terms import Algorithm, Term


def hpt(config: HPT, *, longest_response: int) -> Algorithm:
    """Build HPT as configured."""
    norm = normaliser(config.norm, over=policy_tokens, longest_response=longest_response)
    relative = partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics)
    imitate = Term(
        "imitation",
        on=demonstration_tokens,
        loss=negative_logprob,
        norm=TokenMean(over=demonstration_tokens),
        weight=config.sft_coefficient,
    )
    return Algorithm(
        config.kind,
        admits=partial(_gated, gate=config.gate),
        advantage=partial(_advantage, rollouts=relative),
        terms=(surrogate_term(config, norm), imitate, *regularisers(config, norm)),
        needs_reference=config.kl_coefficient > 0,
    )


def _gated(members: Sequence[Trajectory], *, gate: int) -> list[Trajectory]:
    """The demonstrations of a group with at most `gate` right rollouts, if it has any; else its rollouts."""
    demonstrations = [member for member in members if member.is_demonstration]
    rollouts = [member for member in members if not member.is_demonstration]
    return demonstrations if demonstrations and sum(r.is_right for r in rollouts) <= gate else rollouts


def _advantage(members: Members, *, rollouts: Advantage) -> Vector:
    """That of `rollouts`, or 1 where demonstrations alone are seen.    [G]"""
    return unit(members) if members.is_demonstration_G.all() else rollouts(members)
