"""The learning rate of each update, by hand."""

from __future__ import annotations

import math

import pytest

from common.config.live import OptimizerConfig, merge_patch, parse_live
from common.config.schedules import ConstantRate, CosineDecay, LinearDecay
from common.errors import ConfigRejected
from learner.schedules import rate


def test_the_rate_rises_linearly_to_the_asked_one_and_stays() -> None:
    warm = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    assert [rate(warm, updates) for updates in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rate(OptimizerConfig(learning_rate=0.5), 0) == 0.5


def test_a_line_goes_from_the_full_rate_at_the_end_of_the_warm_up_to_its_share() -> None:
    falling = OptimizerConfig(learning_rate=1.0, warmup_steps=2, schedule=LinearDecay(steps=4, final_ratio=0.25))
    # From 1 down to 0.25 in four updates: 0.1875 each.
    assert [rate(falling, updates) for updates in range(8)] == [0.5, 1.0, 1.0, 0.8125, 0.625, 0.4375, 0.25, 0.25]


def test_a_cosine_is_flat_at_both_ends_and_half_way_in_the_middle() -> None:
    falling = OptimizerConfig(learning_rate=1.0, schedule=CosineDecay(steps=4))
    half = math.sqrt(0.5) / 2
    expected = [1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.0]
    assert [rate(falling, updates) for updates in range(6)] == pytest.approx(expected, abs=1e-15)
    kept = OptimizerConfig(learning_rate=1.0, schedule=CosineDecay(steps=4, final_ratio=0.1))
    assert rate(kept, 2) == pytest.approx(0.55)
    assert rate(kept, 1000) == pytest.approx(0.1)


def test_a_decay_can_begin_in_the_middle_of_a_run_but_not_in_its_warm_up() -> None:
    late = OptimizerConfig(learning_rate=1.0, schedule=LinearDecay(steps=10, after=100))
    assert [rate(late, updates) for updates in (0, 99, 100, 105, 110)] == [1.0, 1.0, 1.0, 0.5, 0.0]
    early = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule=LinearDecay(steps=10, after=2))
    assert [rate(early, updates) for updates in (3, 4, 9)] == [1.0, 1.0, 0.5]


def test_the_kind_alone_is_a_schedule_and_replaces_another_wholly() -> None:
    assert parse_live({}).optimizer.schedule == ConstantRate()
    asked = {"optimizer": {"schedule": {"kind": "linear", "steps": 7, "final_ratio": 0.5}}}
    patched = merge_patch(asked, {"optimizer": {"schedule": {"kind": "cosine"}}})
    assert parse_live(patched).optimizer.schedule == CosineDecay(steps=1000, final_ratio=0.0, after=0)
    kept = merge_patch(asked, {"optimizer": {"schedule": {"steps": 9}}})
    assert parse_live(kept).optimizer.schedule == LinearDecay(steps=9, final_ratio=0.5)


@pytest.mark.parametrize(
    ("schedule", "path", "said"),
    [
        ({"kind": "linear", "steps": 0}, "optimizer.schedule.steps", "greater than or equal to 1"),
        ({"kind": "cosine", "final_ratio": 2}, "optimizer.schedule.final_ratio", "less than or equal to 1"),
        ({"kind": "constant", "steps": 5}, "optimizer.schedule.steps", "not known here"),
        ({"kind": "step"}, "optimizer.schedule", "choose one of 'constant', 'linear', 'cosine'"),
        ({}, "optimizer.schedule", 'no "kind"'),
    ],
)
def test_what_is_wrong_is_said_by_its_path(schedule: dict[str, object], path: str, said: str) -> None:
    with pytest.raises(ConfigRejected) as refused:
        parse_live({"optimizer": {"schedule": schedule}})
    ((found, sentence),) = refused.value.problems
    assert (found, said in sentence) == (path, True), sentence
