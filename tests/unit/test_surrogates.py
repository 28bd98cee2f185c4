"""The surrogates on sampled tokens: clipped, unclipped, CISPO, GSPO, and the dual clip; numbers worked by hand."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import Lengths, asked, at_ratios, close, group, in_float64, rollout, told, trajectory

from common.config.algorithm import GRPO, DrGRPO
from common.config.base import Norm, Surrogate
from learner.batch import PolicyOutputs, TokenBatch
from learner.losses import Clip, clipped_surrogate, is_bounded, is_clipped, surrogate, weighted_logprob
from learner.packing.layout import Layout
from learner.packing.plan import plan_step

LONG, SHORT = rollout(3, 1.0, seed=1), rollout(1, 0.0, seed=2)
"""A = ½ on three tokens and -½ on one."""


def one_sampled_token() -> TokenBatch:
    (micro,) = plan_step(asked(DrGRPO()), [group(rollout(1, 1.0, seed=3))], Layout(99)).micro_batches
    return in_float64(micro).tokens


def slope_and_marks(
    loss: partial[torch.Tensor], mark: partial[torch.Tensor], ratio: float, advantage: float
) -> tuple[float, float, bool]:
    """Value, slope on log p and mark of one token at a ratio and an advantage."""
    one = one_sampled_token()
    batch = TokenBatch(
        **{name: getattr(one, name) for name in TokenBatch.__slots__ if name != "advantages_T"},
        advantages_T=torch.tensor([advantage], dtype=torch.float64),
    )
    logprobs_T = (batch.behaviour_logprobs_T + math.log(ratio)).requires_grad_()
    outputs = PolicyOutputs(logprobs_T, torch.zeros(1))
    value_T = loss(batch, outputs)
    (slope_T,) = torch.autograd.grad(value_T.sum(), logprobs_T)
    return value_T.item(), slope_T.item(), bool(mark(batch, outputs).item())


def test_gspo_clips_the_geometric_mean_of_a_sequences_ratios() -> None:
    """LONG: 2 · ½ · 1.331 = 1.1³, s = 1.1 within ±0.2: -½ · 1.1, a third of that slope each.

    SHORT: s = 0.5 with A < 0: ½ · 0.8, no slope. Mean over the two: (-0.55 + 0.4)/2.
    """
    config = GRPO(surrogate=Surrogate.GSPO, divide_by_std=False, gspo_clip_low=0.2, gspo_clip_high=0.2)
    result = told(asked(config), [group(LONG, SHORT)], at_ratios((LONG, SHORT), [2.0, 0.5, 1.331, 0.5]))
    assert result.value == pytest.approx((-0.55 + 0.4) / 2, rel=1e-12)
    close(result.by_logprob_T, [-0.55 / 3 / 2] * 3 + [0.0])
    assert result.sums.record()["clip_fraction"] == {"policy": 1 / 4}


@pytest.mark.parametrize(("ratio", "clipped"), [(1.0003, False), (1.0005, True), (0.9, False)])
def test_gspo_as_published_clips_at_three_and_four_ten_thousandths(ratio: float, clipped: bool) -> None:
    """All of a sequence's tokens are clipped, or none: here those of the right one, A = ½."""
    config = GRPO(surrogate=Surrogate.GSPO, divide_by_std=False)
    result = told(asked(config), [group(LONG, SHORT)], at_ratios((LONG, SHORT), [ratio] * 3 + [1.0]))
    close(result.by_logprob_T, [0.0 if clipped else -0.5 * ratio / 3 / 2] * 3 + [0.5 / 2])
    assert result.sums.record()["clip_fraction"] == {"policy": 3 / 4 if clipped else 0.0}
    value = -0.5 * (1.0004 if clipped else ratio)
    assert result.value == pytest.approx((value + 0.5) / 2, rel=1e-12)


def test_gspo_does_not_look_at_a_hint() -> None:
    """Hint tokens neither enter the mean nor have a slope: s = √(1.44 · 1) = 1.2, slope ½ · 1.2/2 each, mean of two."""
    hinted = trajectory(Lengths(hint=2, sampled=2), 1.0, seed=3)
    config = GRPO(surrogate=Surrogate.GSPO, divide_by_std=False, gspo_clip_high=0.3)
    logprobs = at_ratios((hinted, SHORT), [0.01, 0.02, 1.44, 1.0, 1.0])
    result = told(asked(config), [group(hinted, SHORT)], logprobs)
    close(result.by_logprob_T, [0.0, 0.0, -0.5 * 1.2 / 2 / 2, -0.5 * 1.2 / 2 / 2, 0.5 / 2])


def test_cispo_weighs_log_probs_by_clipped_ratios_and_drops_no_token() -> None:
    """Weights 1, 1.2 (1.5), 0.8 (0.5) with A = ½, and 0.8 (0.5) with A = -½: L = -½ (Σ w log p - 0.8 log p)/20."""
    config = DrGRPO(surrogate=Surrogate.CISPO)
    logprobs = at_ratios((LONG, SHORT), [1.0, 1.5, 0.5, 0.5])
    result = told(asked(config, longest_response=10), [group(LONG, SHORT)], logprobs)
    weights = [0.5, 0.6, 0.4, -0.4]
    assert result.value == pytest.approx(-sum(w * p for w, p in zip(weights, logprobs, strict=True)) / 20, rel=1e-12)
    close(result.by_logprob_T, [-w / 20 for w in weights])
    assert result.sums.record()["clip_fraction"] == {"policy": 0.0}


@pytest.mark.parametrize(
    ("kind", "ratio", "value", "slope"),
    [
        (Surrogate.CLIPPED, 4.0, 3.0, 0.0),
        (Surrogate.CLIPPED, 2.9, 2.9, 2.9),
        (Surrogate.CLIPPED, 0.5, 0.8, 0.0),
        (Surrogate.UNCLIPPED, 4.0, 3.0, 0.0),
        (Surrogate.UNCLIPPED, 0.5, 0.5, 0.5),
        (Surrogate.GSPO, 4.0, 3.0, 0.0),
        (Surrogate.GSPO, 2.9, 2.9, 2.9),
    ],
)
def test_a_dual_clip_bounds_what_a_failure_can_cost(kind: Surrogate, ratio: float, value: float, slope: float) -> None:
    """c = 3. SHORT alone has A = -½: L = ½ · value/20, slope ½ · slope/20; it is clipped where it has no slope."""
    config = DrGRPO(surrogate=kind, dual_clip=3.0)
    logprobs = at_ratios((LONG, SHORT), [1.0, 1.0, 1.0, ratio])
    result = told(asked(config, longest_response=10), [group(LONG, SHORT)], logprobs)
    assert result.value == pytest.approx((-3 * 0.5 + 0.5 * value) / 20, rel=1e-12)
    assert result.by_logprob_T[3].item() == pytest.approx(0.5 * slope / 20, rel=1e-12)
    assert result.sums.record()["clip_fraction"] == {"policy": 0.0 if slope else 1 / 4}


def test_a_dual_clip_leaves_successes_alone() -> None:
    """A = ½ at ratio 4: the ordinary clip holds it at 1.2, or nothing does."""
    logprobs = at_ratios((LONG, SHORT), [4.0, 1.0, 1.0, 1.0])
    for kind, value in ((Surrogate.CLIPPED, 1.2), (Surrogate.UNCLIPPED, 4.0)):
        config = DrGRPO(surrogate=kind, dual_clip=3.0)
        result = told(asked(config, longest_response=10), [group(LONG, SHORT)], logprobs)
        assert result.value == pytest.approx(-0.5 * (value + 2 - 1) / 20, rel=1e-12)


def test_a_dual_clip_bounds_the_weight_of_cispo_where_the_advantage_is_negative() -> None:
    """Room up to 10: the ratio 4 is 4 for A = ½ and 3 for A = -½."""
    config = DrGRPO(surrogate=Surrogate.CISPO, clip_high=9.0, dual_clip=3.0)
    logprobs = at_ratios((LONG, SHORT), [4.0, 1.0, 1.0, 4.0])
    result = told(asked(config, longest_response=10), [group(LONG, SHORT)], logprobs)
    close(result.by_logprob_T, [-0.5 * 4 / 20, -0.5 / 20, -0.5 / 20, 0.5 * 3 / 20])


ratios = st.floats(1e-3, 1e3).filter(lambda r: min(abs(r - edge) for edge in (0.8, 1.28, 3.0)) > 1e-6)
advantages = st.floats(-5, 5).filter(lambda a: abs(a) > 1e-3)


@given(ratio=ratios, advantage=advantages, dual=st.sampled_from([None, 3.0]))
def test_a_token_is_marked_exactly_where_its_slope_is_cut_off(
    ratio: float, advantage: float, dual: float | None
) -> None:
    clip = Clip(0.2, 0.28, dual)
    value, slope, clipped = slope_and_marks(
        partial(clipped_surrogate, clip=clip), partial(is_clipped, clip=clip), ratio, advantage
    )
    assert (slope == 0) is clipped
    assert clipped or slope == pytest.approx(-ratio * advantage, rel=1e-9)
    assert value == pytest.approx(-ratio * advantage, rel=1e-9) or clipped
    bounded = slope_and_marks(partial(surrogate, dual=3.0), partial(is_bounded, dual=3.0), ratio, advantage)
    assert (bounded[1] == 0) is bounded[2]


@given(ratio=ratios, advantage=advantages)
def test_clipping_only_ever_makes_the_objective_worse_and_the_dual_clip_bounds_it(
    ratio: float, advantage: float
) -> None:
    mark = partial(is_clipped, clip=Clip(0.2, 0.28))
    plain, *_ = slope_and_marks(partial(surrogate), mark, ratio, advantage)
    clipped, *_ = slope_and_marks(partial(clipped_surrogate, clip=Clip(0.2, 0.28)), mark, ratio, advantage)
    dual, *_ = slope_and_marks(partial(clipped_surrogate, clip=Clip(0.2, 0.28, 3.0)), mark, ratio, advantage)
    assert clipped >= plain - 1e-12
    assert dual <= clipped
    assert dual <= 3 * abs(advantage) + 1e-12


@given(ratio=ratios, advantage=advantages)
def test_cispo_never_loses_a_token(ratio: float, advantage: float) -> None:
    clip = Clip(0.2, 0.28)
    _, slope, _ = slope_and_marks(
        partial(weighted_logprob, clip=clip), partial(is_clipped, clip=clip), ratio, advantage
    )
    assert slope == pytest.approx(-min(max(ratio, 0.8), 1.28) * advantage, rel=1e-9)


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=2))
def test_gspo_of_sequences_of_one_token_is_the_clipped_surrogate(values: list[float]) -> None:
    members = (rollout(1, 1.0, seed=1), rollout(1, 0.0, seed=2))
    logprobs = at_ratios(members, values)
    same = {"divide_by_std": False, "norm": Norm.TOKEN_MEAN}
    gspo = GRPO(surrogate=Surrogate.GSPO, gspo_clip_low=0.2, gspo_clip_high=0.2, **same)
    found, wanted = (told(asked(c), [group(*members)], logprobs) for c in (gspo, GRPO(**same)))
    assert found.value == pytest.approx(wanted.value, rel=1e-12)
    close(found.by_logprob_T, wanted.by_logprob_T.tolist())


def test_all_surrogates_agree_where_nothing_has_moved() -> None:
    """At ratio 1 every one of them is REINFORCE with a baseline: the slope is -A over the norm (survey Eq. 5)."""
    logprobs = at_ratios((LONG, SHORT), [1.0] * 4)
    slopes = [
        told(asked(DrGRPO(surrogate=kind)), [group(LONG, SHORT)], logprobs).by_logprob_T.tolist() for kind in Surrogate
    ]
    for one, other in pairwise(slopes):
        assert one == pytest.approx(other, rel=1e-12)
