"""SRFT: supervised and reinforcement fine-tuning in a single stage.

Fu et al., 2025, https://arxiv.org/abs/2506.19767 (survey Eq. 11-14)

    L       = L_SFT + L_off + L_on
    L_SFT   = - w_SFT mean_t log pi_theta        t of a demonstration;  w_SFT = sft_weight sg(exp(-H))
    L_off   = - mean_t f(rho_t) A_i              t of a demonstration;  rho_t = pi_theta / pi_phi, never clipped
    L_on    = - mean_t w_RL [right] log pi_theta + mean_t [wrong] log pi_theta
                                                 t sampled by the policy;  w_RL = rl_weight sg(exp(H))
    A_i     = (R_i - mean R) / (std R + 1e-6)    over rollouts and demonstrations of the prompt
    f(x)    = x / (x + gamma)                    as in the authors' code; shaping none, f(x) = x, is the paper

H is the mean entropy over the tokens of the same demonstration, or of the same rollout; entropy_scope token takes each
token's own, batch the mean over the demonstrations, or rollouts, of the whole step. The brackets are indicators: both
parts of L_on share one mean over all sampled tokens. An unknown pi_phi is taken to be one.

The negative part of L_on is not bounded below. self_reward advantage replaces +-1 times log pi_theta by A_i rho_t with
rho_t = pi_theta / pi_old, which is (the authors' code; to be preferred in long runs); w_RL stays on right rollouts.

Departures: the first tokens of a rollout that was shown a hint are context only. With norm constant each of the three
is divided by all sequences, not by its own. w_RL and w_SFT are read from the
entropy within [0, 20]. sft_entropy_sign 1 is what an audit reports of the authors' code; the paper is the default.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from common.config.algorithm import SRFT
from common.config.base import EntropyScope, SelfReward
from learner.advantages import Advantage, Members, Vector, group_relative, sparing_failed_groups
from learner.algorithms.policy_gradient import corrected, regularisers, shape_of, unclipped_term
from learner.batch import PolicyOutputs, TokenBatch
from learner.emphasis import entropy_means, entropy_sums, exp_entropy, given_entropy, sequence_entropy, token_entropy
from learner.losses import TokenWeight, negative_logprob, shaped_surrogate, weighted
from learner.normalisers import normaliser
from learner.selectors import Selector, admitting, demonstration_tokens, policy_tokens
from learner.terms import Algorithm, Survey, Term

_SURVEYED = (demonstration_tokens, policy_tokens)


def srft(config: SRFT, *, longest_response: int) -> Algorithm:
    """Build SRFT as configured."""
    algorithm = Algorithm(
        config.kind,
        admits=admitting(config.accepts),
        advantage=_advantage(config),
        terms=_terms(config, longest_response, *(_entropy(config.entropy_scope, over) for over in _SURVEYED)),
        needs_reference=config.kl_coefficient > 0,
    )
    if config.entropy_scope is not EntropyScope.BATCH:
        return algorithm

    def settle(sums: Tensor) -> Algorithm:
        means = (partial(given_entropy, entropy=mean) for mean in entropy_means(sums, len(_SURVEYED)))
        return replace(algorithm, terms=_terms(config, longest_response, *means), survey=None)

    return replace(algorithm, survey=Survey(observe=partial(entropy_sums, over=_SURVEYED), settle=settle))


def _terms(config: SRFT, longest_response: int, demonstrated: TokenWeight, sampled: TokenWeight) -> tuple[Term, ...]:
    """The three losses, with the entropy H of demonstrations and of rollouts."""
    expert, own = (normaliser(config.norm, over=over, longest_response=longest_response) for over in _SURVEYED)
    w_sft = partial(exp_entropy, entropy=demonstrated, sign=config.sft_entropy_sign, scale=config.sft_weight)
    imitate = Term(
        "imitation",
        on=demonstration_tokens,
        loss=partial(weighted, loss=negative_logprob, weight=w_sft),
        norm=expert,
    )
    shape = shape_of(config.shaping, gamma=config.gamma)
    follow = Term(
        "off_policy",
        on=demonstration_tokens,
        loss=partial(shaped_surrogate, shape=shape),
        norm=expert,
        weight=config.off_policy_weight,
    )
    match config.self_reward:
        case SelfReward.PM1:
            learn = corrected(Term("policy", on=policy_tokens, loss=_rewarded_logprob, norm=own), config.corrections)
        case SelfReward.ADVANTAGE:
            learn = unclipped_term(config, own)
        case _:
            assert_never(config.self_reward)
    w_rl = partial(_on_right, weight=partial(exp_entropy, entropy=sampled, sign=1, scale=config.rl_weight))
    learn = replace(learn, loss=partial(weighted, loss=learn.loss, weight=w_rl))
    return imitate, follow, learn, *regularisers(config, own)


def _advantage(config: SRFT) -> Advantage:
    joint = partial(group_relative, divide_by_std=config.divide_by_std, statistics=config.statistics)
    credit = partial(_self_rewarded, demonstrations=joint) if config.self_reward is SelfReward.PM1 else joint
    return credit if config.negatives_in_failed_groups else partial(sparing_failed_groups, advantage=credit)


def _self_rewarded(members: Members, *, demonstrations: Advantage) -> Vector:
    """1 for a right rollout, -1 for a wrong one, and for demonstrations their advantage among all.    [G]"""
    signs_G = np.where(members.rewards_G > 0, 1.0, -1.0)
    return np.where(members.is_demonstration_G, demonstrations(members), signs_G)


def _entropy(scope: EntropyScope, over: Selector) -> TokenWeight:
    """H of a token; for scope batch one that the survey replaces."""
    match scope:
        case EntropyScope.SEQUENCE:
            return partial(sequence_entropy, over=over)
        case EntropyScope.TOKEN:
            return token_entropy
        case EntropyScope.BATCH:
            return partial(given_entropy, entropy=0.0)
        case _:
            assert_never(scope)


def _rewarded_logprob(batch: TokenBatch, policy: PolicyOutputs) -> Tensor:
    """-A log π_θ    [T]    (survey Eq. 13, where A is ±1)"""
    return -batch.advantages_T * policy.logprobs_T


def _on_right(batch: TokenBatch, policy: PolicyOutputs, *, weight: TokenWeight) -> Tensor:
    """`weight` on the tokens of right trajectories, 1 on those of wrong ones.    [T]"""
    right_T = (batch.rewards_N > 0)[batch.segment_T]
    weight_T = weight(batch, policy)
    return torch.where(right_T, weight_T, torch.ones_like(weight_T))
