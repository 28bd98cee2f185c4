"""The learner's benchmark: what it trains on, and how it counts."""

from __future__ import annotations

import pytest

from benchmarks._learner_work import SHAPES, VOCABULARY, Work, groups_of, model_of, step_flops, trained_tokens

WORK = Work(groups=2, rollouts=3, prompt=8, response=16)


def test_every_group_of_the_benchmark_has_its_own_prompt_and_all_its_rollouts() -> None:
    groups = groups_of(WORK)
    assert [len(group.trajectories) for group in groups] == [3, 3]
    assert all(len(member.tokens) <= WORK.longest for group in groups for member in group.trajectories)
    assert trained_tokens(groups) == sum(
        span.end - span.start for group in groups for member in group.trajectories for span in member.versions
    )


def test_the_benchmark_gives_both_sides_the_same_rollouts() -> None:
    first, second = (
        [member.tokens.tolist() for group in groups_of(WORK) for member in group.trajectories] for _ in range(2)
    )
    assert first == second


def test_the_flops_of_a_step_count_the_weights_of_the_layers_the_head_and_attention() -> None:
    groups = groups_of(WORK)
    layers, width, *_ = SHAPES["tiny"]
    matrices = [
        p.numel() for name, p in model_of("tiny", WORK.longest).named_parameters() if "layers" in name and p.dim() == 2
    ]
    lengths = [len(member.tokens) for group in groups for member in group.trajectories]
    by_hand = 6 * sum(matrices) * sum(lengths) + 6 * VOCABULARY * width * trained_tokens(groups)
    by_hand += 6 * layers * width * sum(length**2 for length in lengths)
    assert step_flops("tiny", groups) == pytest.approx(by_hand)
