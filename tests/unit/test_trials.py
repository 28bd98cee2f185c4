"""Trials: what a candidate would do with a batch, worked by hand, and the same as if it had been in force."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from learner_cases import (
    CONFIGS,
    BigramPolicy,
    Lengths,
    asked,
    at_ratios,
    demonstration,
    group,
    in_float64,
    mixed_groups,
    rollout,
    run_step,
    said,
    trajectory,
)
from tiny_policy import fed_groups, heed, live, tiny_model

from common.config.algorithm import GRPO, HPT, LUFFY, SFT, SRFT, AlgorithmConfig, ReLIFT
from common.config.base import Norm
from common.config.live import LiveConfig, parse_live
from common.trajectory import Group
from learner.batch import PolicyOutputs
from learner.insight.evidence import Evidence
from learner.insight.trials import Effect, NotTried, Stage, cosine, effect, finding
from learner.packing.layout import Layout
from learner.packing.plan import plan_step
from learner.record import finite
from learner.trainer import Trainer

every_algorithm = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{CONFIGS.index(c)}")
STEP_FIGURES = ("loss", "terms", "gradient_weight", "entropy", "ratio", "effective_sample_size", "clip_fraction")

# One right rollout at the ratios 1 and 2, one wrong at ½, and a demonstration that the policy gives 0.1 and 0.4.
ROLLOUTS = (rollout(2, 1.0, seed=1), rollout(1, 0.0, seed=2))
GROUP = group(*ROLLOUTS, demonstration(2, 1.0, seed=3))
RIGHT, WRONG = at_ratios(ROLLOUTS[:1], [1.0, 2.0]), at_ratios(ROLLOUTS[1:], [0.5])
# In the order of the plan: the longer ones first.
LOGPROBS = [*RIGHT, math.log(0.1), math.log(0.4), *WRONG]
LUFFY_MEAN = LUFFY(gamma=0.1, norm=Norm.TOKEN_MEAN, entropy_bonus=0.0)
# 15 ∂L/∂log p of it: advantages ⅓, -⅔, ⅓ over Z = 5; on the demonstration γx/(x+γ)² = 0.25 and 0.16.
BY_HAND = [-1.0, -2.0, -0.25, -0.16, 1.0]


def stage(
    config: AlgorithmConfig, groups: Sequence[Group], logprobs: Sequence[float], *, limit: int = 10**6, **changes: Any
) -> Stage:
    """A step of one micro-batch or more, on which the policy gave these log-probs, in float64."""
    plan = plan_step(asked(config), groups, Layout(limit))
    sizes = [len(micro.tokens.labels_T) for micro in plan.micro_batches]
    assert sum(sizes) == len(logprobs)
    parts = torch.tensor(logprobs, dtype=torch.float64).split(sizes)
    outputs = tuple(PolicyOutputs(part, torch.ones_like(part)) for part in parts)
    return Stage(live(config, groups_per_step=len(groups), **changes), groups, Evidence(plan, outputs))


def tried(stage: Stage, config: AlgorithmConfig) -> tuple[Effect, dict[str, Any]]:
    """The effect of an algorithm, and its finding beside the one in force."""
    document = stage.live.model_dump(mode="json") | {
        "algorithm": config.model_dump(mode="json"),
        "hints": fed(config),
    }
    found = effect(parse_live(document), stage)
    return found, finding(found, effect(stage.live, stage), stage)


def fed(config: AlgorithmConfig) -> dict[str, Any]:
    """The published hint policy; with HPT's gate, which it has to follow."""
    return dict(config.published_hints) | ({"gate": config.gate} if isinstance(config, HPT) else {})


def gradient(found: Effect) -> list[float]:
    return torch.cat(found.gradients).tolist()


def test_the_configuration_in_force_is_told_as_worked_by_hand() -> None:
    found, told = tried(stage(LUFFY_MEAN, [GROUP], LOGPROBS), LUFFY_MEAN)
    assert [15 * g for g in gradient(found)] == pytest.approx(BY_HAND, rel=1e-12)
    # -(1 + 2)⅓/5 + ½⅔/5 on the rollouts; f = 0.5 and 0.8 on the demonstration
    assert told["terms"] == pytest.approx({"policy": -2 / 15, "expert": -1.3 / 15}, rel=1e-12)
    assert told["loss"] == pytest.approx(-3.3 / 15, rel=1e-12)
    assert told["gradient_weight"] == pytest.approx({"policy": 4 / 15, "expert": 0.41 / 15}, rel=1e-12)
    assert told["pull"] == pytest.approx({"policy": 4 / 15, "demonstration": 0.41 / 15}, rel=1e-12)
    assert told["ratio"] == pytest.approx({"policy": 3.5 / 3, "demonstration": 0.25}, rel=1e-12)
    assert told["effective_sample_size"] == pytest.approx(
        {"policy": 3.5**2 / (3 * 5.25), "demonstration": 0.25 / (2 * 0.17)}, rel=1e-12
    )
    assert (told["algorithm"], told["entropy"], told["clip_fraction"]["policy"]) == ("luffy", 1.0, 0.0)
    assert (told["tokens"], told["trajectories"], told["missing_trajectories"]) == (5, 3, 0)
    assert (told["cosine"], told["notes"]) == (pytest.approx(1, abs=1e-15), [])


def test_another_gamma_moves_the_weight_between_the_tokens_of_the_demonstration() -> None:
    found, told = tried(stage(LUFFY_MEAN, [GROUP], LOGPROBS), LUFFY_MEAN.model_copy(update={"gamma": 0.4}))
    # γx/(x+γ)² at γ = 0.4: 0.16 and 0.25; f = 0.2 and 0.5
    assert [15 * g for g in gradient(found)] == pytest.approx([-1, -2, -0.16, -0.25, 1], rel=1e-12)
    assert told["terms"] == pytest.approx({"policy": -2 / 15, "expert": -0.7 / 15}, rel=1e-12)
    assert told["pull"]["demonstration"] == pytest.approx(0.41 / 15, rel=1e-12)
    assert told["cosine"] == pytest.approx(6.08 / 6.0881, rel=1e-12)


def test_imitation_pulls_on_the_demonstration_alone() -> None:
    found, told = tried(stage(LUFFY_MEAN, [GROUP], LOGPROBS), SFT())
    assert gradient(found) == pytest.approx([0, 0, -0.5, -0.5, 0])
    assert told["loss"] == pytest.approx(-(math.log(0.1) + math.log(0.4)) / 2, rel=1e-12)
    assert told["cosine"] == pytest.approx(0.205 / math.sqrt(6.0881 * 0.5), rel=1e-12)
    assert set(told["ratio"]) == set(told["pull"]) == {"demonstration"}
    assert (told["tokens"], told["trajectories"], told["missing_trajectories"]) == (2, 1, 0)
    assert told["entropy"] is None


def test_clipping_leaves_one_token_and_the_statistics_are_the_candidates_own() -> None:
    found, told = tried(stage(LUFFY_MEAN, [GROUP], LOGPROBS), GRPO(divide_by_std=False))
    # Advantages ±½ without the demonstration; ratio 2 is cut off above 1.2, ratio ½ below 0.8.
    assert gradient(found) == pytest.approx([-0.125, 0, 0, 0, 0])
    assert told["loss"] == pytest.approx(-(1.0 + 1.2) / 2 * 0.5 / 2 + 0.8 * 0.5 / 2, rel=1e-12)
    assert told["clip_fraction"] == pytest.approx({"policy": 2 / 3})
    assert told["cosine"] == pytest.approx(1 / math.sqrt(6.0881), rel=1e-12)


def test_trajectories_that_were_not_in_the_forward_count_in_the_statistics_of_their_group_only() -> None:
    _, told = tried(stage(GRPO(divide_by_std=False), [GROUP], [*RIGHT, *WRONG]), LUFFY_MEAN)
    # Advantages ⅓ and -⅔ as with the demonstration, but Z = 3 as without it.
    assert told["terms"] == pytest.approx({"policy": -(3 / 3 - 0.5 * 2 / 3) / 3, "expert": 0.0}, rel=1e-12)
    assert (told["tokens"], told["trajectories"], told["missing_trajectories"]) == (3, 2, 1)
    assert told["notes"][0].startswith("1 of the trajectories that it would learn from were not in this step's forward")


def test_a_candidate_that_sees_nothing_of_the_forward_finds_zero_and_has_no_cosine() -> None:
    for logprobs, groups in (([*RIGHT, *WRONG], [GROUP]), ([], [group(demonstration(2))])):
        found, told = tried(stage(GRPO(), groups, logprobs), SFT())
        assert (told["loss"], told["cosine"], told["tokens"], told["missing_trajectories"]) == (0.0, None, 0, 1)
        assert not any(gradient(found)) if logprobs else found.gradients == ()


def test_opposite_gradients_have_the_cosine_minus_one_and_nan_none() -> None:
    found, _ = tried(stage(GRPO(), [GROUP], [*RIGHT, *WRONG]), GRPO())
    one, opposite = (pytest.approx(value, abs=1e-15) for value in (1, -1))
    for factor, wanted in ((-2.0, opposite), (math.nan, None), (math.inf, None), (1e-100, one)):
        scaled = replace(found, gradients=tuple(factor * gradient_T for gradient_T in found.gradients))
        assert cosine(found, scaled) == wanted


def test_a_step_whose_loss_is_not_finite_can_be_told_too() -> None:
    _, told = tried(stage(GRPO(), [GROUP], [math.nan, *RIGHT[1:], *WRONG]), GRPO())
    assert json.loads(json.dumps(finite(told), allow_nan=False))["loss"] is None


def bigram_stage(config: AlgorithmConfig, groups: Sequence[Group], limit: int) -> Stage:
    """A step under `config` by a policy in float64."""
    algorithm = asked(config)
    plan = plan_step(algorithm, groups, Layout(limit))
    with torch.no_grad():
        outputs = [said(algorithm, micro, BigramPolicy()) for micro in map(in_float64, plan.micro_batches)]
    return Stage(live(config), groups, Evidence(plan, tuple(outputs)))


@every_algorithm
@pytest.mark.parametrize("limit", [1, 13, 10**6])
def test_any_algorithm_is_told_exactly_what_its_own_step_would_record(config: AlgorithmConfig, limit: int) -> None:
    """Tried in a step of another algorithm that had all of its material in the forward, however that was cut."""
    step = bigram_stage(LUFFY(kl_coefficient=0.1), mixed_groups(), limit)
    _, told = tried(step, config)
    algorithm = asked(config)
    _, sums = run_step(algorithm, plan_step(algorithm, mixed_groups(), Layout(10**6)), BigramPolicy())
    for figure, wanted in sums.record().items():
        assert told[figure] == (wanted if wanted is None else pytest.approx(wanted, rel=1e-9, abs=1e-12)), figure
    assert told["missing_trajectories"] == 0


@every_algorithm
def test_the_configuration_in_force_has_the_figures_of_its_step_to_the_bit(config: AlgorithmConfig) -> None:
    trainer = Trainer(tiny_model(), Layout(20), load_reference=tiny_model)
    asked_for, groups = live(config, hints=fed(config)), fed_groups(config)
    outcome = trainer.step(asked_for, groups, heed, keep_evidence=True)
    assert outcome.evidence is not None
    step = Stage(asked_for, groups, outcome.evidence)
    active = effect(asked_for, step)
    told, record = finding(active, active, step), outcome.sums.record()
    assert {figure: told[figure] for figure in STEP_FIGURES} == record
    assert told["cosine"] == pytest.approx(1, abs=1e-12)
    assert (told["tokens"], told["trajectories"]) == (outcome.tokens, outcome.trajectories)


def test_evidence_is_kept_only_when_it_is_asked_for_and_carries_no_gradient() -> None:
    groups = fed_groups(GRPO())
    assert Trainer(tiny_model(), Layout(64)).step(live(GRPO()), groups, heed).evidence is None
    kept = Trainer(tiny_model(), Layout(64)).step(live(GRPO()), groups, heed, keep_evidence=True).evidence
    assert kept is not None
    assert len(kept.outputs) == len(kept.plan.micro_batches)
    assert not any(o.logprobs_T.requires_grad or o.entropy_T.requires_grad for o in kept.outputs)


def test_a_kl_term_needs_the_reference_to_be_held() -> None:
    step = stage(GRPO(), [GROUP], [*RIGHT, *WRONG])
    with pytest.raises(NotTried, match="needs the frozen reference"):
        tried(step, GRPO(kl_coefficient=0.1))
    held = bigram_stage(GRPO(kl_coefficient=0.1), mixed_groups(), 10**6)
    _, told = tried(held, GRPO(kl_coefficient=0.2))
    assert told["terms"]["kl"] == pytest.approx(2 * tried(held, GRPO(kl_coefficient=0.1))[1]["terms"]["kl"])


def notes(candidate: LiveConfig, step: Stage) -> list[str]:
    return finding(effect(candidate, step), effect(step.live, step), step)["notes"]


def test_what_a_batch_cannot_tell_is_said_in_sentences() -> None:
    step = stage(GRPO(rollouts=2), [group(*ROLLOUTS)], [*RIGHT, *WRONG])
    changed = live(GRPO(rollouts=4), sampling={"temperature": 0.7, "max_response_tokens": 16}, groups_per_step=8)
    assert notes(changed, step) == [
        "log-probs and entropy are those at the temperature in force, 1.0, not at 0.7",
        "the groups were asked for with 2 rollouts a prompt; it would ask for 4",
        "this step had 1 groups; it would take 8",
    ]
    (material,) = notes(live(LUFFY(rollouts=2), groups_per_step=1), step)
    assert material == 'its hint policy "demonstration" would bring demonstrations, which this batch has not'
    assert "rehearsal" in notes(live(ReLIFT(rollouts=2), groups_per_step=1), step)[-1]
    hinted = stage(LUFFY(rollouts=2), [group(*ROLLOUTS, trajectory(Lengths(demonstration=2), 1.0))], LOGPROBS)
    other = live(SRFT(rollouts=2), hints={"kind": "if_unsolved"}, groups_per_step=1)
    assert notes(other, hinted) == [
        'hints and demonstrations are those of the hint policy in force, not of its own "if_unsolved"'
    ]
