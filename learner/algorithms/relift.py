"""ReLIFT: reinforcement learning interleaved with online fine-tuning on the hardest questions.

Ma et al., 2025, https://arxiv.org/abs/2506.07527 (survey §3)

    L_RL  = - sum_t rho_t A_i                    A_i = R_i - mean R, rho_t = pi_theta / pi_old: rollouts only,
                                                 divided by sequences times the longest response

A prompt whose every rollout failed leaves its demonstration, if that is right, to a buffer. When buffer_size of them
wait, one step on the oldest of them follows the step of reinforcement learning, with an optimiser state and a learning
rate of its own:

    L_SFT = - mean_t log pi_theta - sft_entropy_bonus mean_t H       over the tokens of those demonstrations

At most one such step follows a step; what is left waits. A prompt waits once; of more than buffer_limit the oldest
leave. The buffer stays when another algorithm comes into force, and is part of the checkpoint.

Departures: the buffer and the rehearsal are the learner's (learner/rehearsal.py); the imitation step follows the step
that filled the buffer, and shares its gradient clipping and weight decay. The constant normaliser divides by sequences.
"""

from __future__ import annotations

from functools import partial

from common.config.algorithm import ReLIFT
from common.config.base import Material
from common.trajectory import Group, Trajectory
from learner.advantages import group_relative, unit
from learner.algorithms.policy_gradient import regularisers, surrogate_term
from learner.losses import negative_entropy, negative_logprob
from learner.normalisers import TokenMean, normaliser
from learner.selectors import admitting, demonstration_tokens, demonstrations_only, policy_tokens
from learner.terms import Algorithm, Rehearsal, Term


def relift(config: ReLIFT, *, longest_response: int) -> Algorithm:
    """Build ReLIFT as configured."""
    norm = normaliser(config.norm, over=policy_tokens, longest_response=longest_response)
    return Algorithm(
        config.kind,
        admits=admitting(frozenset({Material.HINTS})),
        advantage=partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics),
        terms=(surrogate_term(config, norm), *regularisers(config, norm)),
        needs_reference=config.kl_coefficient > 0,
        rehearsal=Rehearsal(
            algorithm=_imitation(config),
            collects=_solution_of_the_unsolved,
            size=config.buffer_size,
            limit=config.buffer_limit,
            learning_rate=config.sft_learning_rate,
        ),
    )


def _imitation(config: ReLIFT) -> Algorithm:
    """What is learnt from the demonstrations of the buffer."""
    mean = TokenMean(over=demonstration_tokens)
    imitate = Term("imitation", on=demonstration_tokens, loss=negative_logprob, norm=mean)
    spread = Term("entropy", on=demonstration_tokens, loss=negative_entropy, norm=mean, weight=config.sft_entropy_bonus)
    return Algorithm("rehearsal", admits=demonstrations_only, advantage=unit, terms=(imitate, spread))


def _solution_of_the_unsolved(group: Group) -> Trajectory | None:
    """The first right demonstration of a group that has rollouts of which none is right."""
    rollouts = [member for member in group.trajectories if not member.is_demonstration]
    if not rollouts or any(rollout.is_right for rollout in rollouts):
        return None
    right = (member for member in group.trajectories if member.is_demonstration and member.is_right)
    return next(right, None)
