"""Plans that were made ahead: used for the very step that they are for, and for no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from learner_cases import group, rollout
from tiny_policy import heed, live, same, tiny_model, weights

from common.config.algorithm import GRPO
from common.config.live import LiveConfig
from common.trajectory import Group
from learner import trainer as trainer_module
from learner.intake import Acceptance, Arrival, Intake
from learner.packing.foresight import Foresight, foreseeing
from learner.packing.layout import Layout, Share
from learner.packing.plan import plan_step
from learner.trainer import Trainer

LIVE = live(GRPO(), groups_per_step=2)
LAYOUT = Layout(64)


def some_groups(seed: int = 1) -> list[Group]:
    made = [group(rollout(4, 1.0, seed=s), rollout(3, 0.0, seed=s + 1)) for s in (seed, seed + 10)]
    return [replace(g, group_id=f"{seed}-{n}") for n, g in enumerate(made)]


@pytest.fixture
def foresight() -> Foresight:
    return Foresight(torch.device("cpu"))


def test_a_plan_is_recalled_once_for_the_very_step_that_it_is_for(foresight: Foresight) -> None:
    groups = some_groups()
    foresight.begin(LIVE, groups, LAYOUT)
    plan = foresight.recall(LIVE, list(groups), LAYOUT)
    assert plan is not None
    assert (plan.trajectories, plan.tokens) == (4, 14)
    assert foresight.recall(LIVE, groups, LAYOUT) is None


def test_a_change_of_what_the_plan_does_not_depend_on_leaves_it_good(foresight: Foresight) -> None:
    groups = some_groups()
    foresight.begin(LIVE, groups, LAYOUT)
    assert foresight.recall(live(GRPO(), optimizer={"learning_rate": 1e-5}), groups, LAYOUT) is not None


@pytest.mark.parametrize("what", ["groups", "order", "algorithm", "length", "layout"])
def test_a_plan_for_another_step_is_not_used(foresight: Foresight, what: str) -> None:
    groups = some_groups()
    foresight.begin(LIVE, groups, LAYOUT)
    asked: dict[str, tuple[LiveConfig, Sequence[Group], Layout]] = {
        "groups": (LIVE, some_groups(), LAYOUT),  # equal, but not the same
        "order": (LIVE, groups[::-1], LAYOUT),
        "algorithm": (live(GRPO(divide_by_std=False), groups_per_step=2), groups, LAYOUT),
        "length": (live(GRPO(), sampling={"max_response_tokens": 8}), groups, LAYOUT),
        "layout": (LIVE, groups, Layout(32)),
    }
    assert foresight.recall(*asked[what]) is None


def test_the_plan_of_the_step_that_begins_survives_that_of_the_one_after(foresight: Foresight) -> None:
    first, second = some_groups(1), some_groups(2)
    for groups in (first, second):
        foresight.begin(LIVE, groups, LAYOUT)
    assert foresight.recall(LIVE, first, LAYOUT) is not None
    assert foresight.recall(LIVE, second, LAYOUT) is not None


def test_a_plan_that_fails_is_made_anew_where_its_error_is_heard(foresight: Foresight) -> None:
    broken: Any = [None]
    foresight.begin(LIVE, broken, LAYOUT)
    assert foresight.recall(LIVE, broken, LAYOUT) is None


def test_steps_are_the_same_to_the_bit_through_a_switch_and_only_those_foreseen_rightly_use_their_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned: list[str] = []

    def watched(algorithm: Any, groups: Sequence[Group], layout: Layout, share: Share) -> Any:
        planned.append(groups[0].group_id)
        return plan_step(algorithm, groups, layout, share)

    monkeypatch.setattr(trainer_module, "plan_step", watched)
    foreseeing_one, plain = Trainer(tiny_model(), LAYOUT, foresight=True), Trainer(tiny_model(), LAYOUT)
    before, after = LIVE, live(GRPO(divide_by_std=False), groups_per_step=2)
    steps = [(before, some_groups(s)) for s in (1, 2)] + [(after, some_groups(s)) for s in (3, 4)]
    expected = before
    for i, (config, groups) in enumerate(steps):
        foreseeing_one.step(config, groups, heed)
        if i + 1 < len(steps):
            expected = config  # a switch that comes while a step computes is not foreseen
            foreseeing_one.foresee(expected, steps[i + 1][1])
    assert planned == ["1-0", "3-0"], "the first step, and the first after the switch"
    for config, groups in steps:
        plain.step(config, groups, heed)
    assert same(weights(plain), weights(foreseeing_one))


async def test_the_groups_of_the_next_step_are_looked_for_as_long_as_the_step_lasts() -> None:
    process: Any = None
    intake = Intake(process, Acceptance(16, 64))
    first, second, third = (Arrival(str(n), g, 1) for n, g in enumerate([*some_groups(1), some_groups(2)[0]]))
    seen: list[list[str]] = []

    def foresee(_: LiveConfig, groups: Sequence[Group]) -> None:
        seen.append([g.group_id for g in groups])

    intake.put_back([first])
    async with foreseeing(intake, LIVE, foresee):
        for _ in range(3):
            await asyncio.sleep(0)
    assert seen == [], "one of two groups was there; the step is over, and nothing is waited for"
    intake.put_back([second, third])
    async with foreseeing(intake, LIVE, foresee):
        for _ in range(3):
            await asyncio.sleep(0)
    assert seen == [["1-1", "2-0"]]
    assert intake.take() is second, "they stay where they are"
