"""SFT: numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from learner_cases import asked, demonstration, group, rollout, told

from common.config.algorithm import SFT
from common.config.base import Norm

GROUPS = [group(rollout(2, 1.0), demonstration(3, 1.0)), group(demonstration(1, 0.0))]


def test_sft_is_the_mean_negative_logprob_of_demonstration_tokens() -> None:
    """Four tokens: (1 + 2 + 3 + 6)/4; slope -1/4 each, whatever the rewards and the rollouts."""
    result = told(asked(SFT()), GROUPS, [-1.0, -2.0, -3.0, -6.0])
    assert result.value == pytest.approx(3.0, rel=1e-14)
    torch.testing.assert_close(result.by_logprob_T, torch.full((4,), -0.25, dtype=torch.float64))
    assert not result.by_entropy_T.any()
    assert result.plan.trajectories == 2


def test_sft_by_sequence_averages_within_each_demonstration_first() -> None:
    """((1 + 2 + 3)/3 + 6)/2 = 4; slopes -1/6 and -1/2."""
    result = told(asked(SFT(norm=Norm.SEQUENCE_MEAN)), GROUPS, [-1.0, -2.0, -3.0, -6.0])
    assert result.value == pytest.approx(4.0, rel=1e-14)
    torch.testing.assert_close(result.by_logprob_T, torch.tensor([-1 / 6] * 3 + [-1 / 2], dtype=torch.float64))


def test_sft_with_the_constant_norm_divides_by_sequences_times_the_longest_response() -> None:
    result = told(asked(SFT(norm=Norm.CONSTANT), longest_response=10), GROUPS, [-1.0, -2.0, -3.0, -6.0])
    assert result.value == pytest.approx(12 / 20, rel=1e-14)
    torch.testing.assert_close(result.by_logprob_T, torch.full((4,), -1 / 20, dtype=torch.float64))
