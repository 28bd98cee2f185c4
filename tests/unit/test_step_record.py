"""What operators see of a step."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from common.metrics import LearnerMetrics
from common.trajectory import Finish, Group, Source, Trajectory, VersionSpan
from learner.lineage import Lineage
from learner.objective import StepSums
from learner.outcome import Rehearsed, StepOutcome, Verdict
from learner.record import Material, StepRecord, Timeline
from learner.timing import StageTimes

EVENT_KEYS = {
    *("step", "revision", "version", "algorithm", "hints", "loss", "reward", "reward_parts", "entropy", "staleness"),
    *("staleness_max", "groups", "trajectories", "tokens", "tokens_per_s", "grad_norm", "learning_rate", "hint_length"),
    *("clip_fraction", "effective_sample_size", "ratio", "gradient_weight", "terms", "flat_groups"),
    *("updated", "updates"),
    *("rehearsal", "stale_dropped", "wait_s", "pack_s", "transfer_s", "forward_s", "backward_s", "optimizer_s"),
    *("publish_s", "checkpoint_s", "step_s"),
}


def trajectory(reward: float, *, version: int | None = 0, hint: int = 0, **parts: float) -> Trajectory:
    sources = [Source.PROMPT, *[Source.HINT] * hint, Source.POLICY if version is not None else Source.DEMONSTRATION]
    length = len(sources)
    return Trajectory(
        tokens=np.ones(length, dtype=np.int32),
        sources=np.array(sources, dtype=np.uint8),
        behaviour_logprobs=np.zeros(length, dtype=np.float32),
        reward=reward,
        finish=Finish.STOP if version is not None else Finish.DEMONSTRATION,
        versions=() if version is None else (VersionSpan(version, length - 1, length),),
        reward_parts=parts,
    )


def group(*members: Trajectory) -> Group:
    return Group("g", "p", 1, "generator-1", members)


def outcome(verdict: Verdict = Verdict.UPDATED, loss: float = 0.5) -> StepOutcome:
    sums = StepSums(
        names=("policy",),
        values_K=torch.tensor([loss], dtype=torch.float64),
        pulls_K=torch.tensor([1.0], dtype=torch.float64),
        sources_S4=torch.tensor([[4.0, 4.0, 4.0, 1.0], [0.0] * 4, [0.0] * 4], dtype=torch.float64),
        entropy=torch.tensor(8.0, dtype=torch.float64),
    )
    times = StageTimes(pack_s=0.1, transfer_s=0.05, forward_s=0.1, backward_s=0.15, optimizer_s=0.2)
    return StepOutcome(verdict, sums, 2.0, 1e-3, 40, 4, 1, times)


def record(material: Material, told: StepOutcome) -> StepRecord:
    return StepRecord(7, 2, 5, "luffy", "demonstration", 6, material, told, 3, Timeline(0.4, 0.5, 0.1, 2.0))


def material(*groups: Group) -> Material:
    return Material.of(groups, Lineage({0: 0, 1: 1, 2: 2}, (1, 2)))


def test_rewards_are_averaged_over_sampled_members_only() -> None:
    seen = material(group(trajectory(1.0, form=1.0), trajectory(0.0), trajectory(0.5, version=None, form=0.0)))
    assert (seen.reward, seen.reward_parts) == (0.5, {"form": 1.0})


def test_staleness_is_of_groups_and_hints_are_of_hinted_members() -> None:
    seen = material(
        group(trajectory(0, version=2), trajectory(0, version=0, hint=3)),
        group(trajectory(0, version=1, hint=1)),
        group(trajectory(1, version=None)),
    )
    assert (seen.groups, seen.staleness, seen.staleness_max, seen.hint_length) == (3, 1.5, 2, 2.0)


def test_demonstrations_alone_have_neither_reward_nor_staleness() -> None:
    seen = material(group(trajectory(1, version=None)))
    assert (seen.reward, seen.staleness, seen.staleness_max, seen.hint_length) == (None, None, None, None)


def test_an_event_has_every_key_of_the_contract() -> None:
    event = record(material(group(trajectory(1.0))), outcome()).event()
    assert event.keys() == EVENT_KEYS
    assert (event["tokens_per_s"], event["stale_dropped"], event["updated"]) == (20.0, 3, True)
    assert (event["entropy"], event["clip_fraction"]) == (2.0, {"policy": 0.25})


def test_a_rehearsal_is_told_with_what_still_waits() -> None:
    rehearsed = Rehearsed(5, [outcome(Verdict.UPDATED, 0.25)])
    step = record(material(group(trajectory(1.0))), replace(outcome(Verdict.FLAT), rehearsal=rehearsed))
    event = step.event()
    assert event["updated"] is True, "the step itself was flat, its rehearsal was not"
    assert (event["tokens"], event["trajectories"], event["tokens_per_s"]) == (80, 4, 40.0)
    told = event["rehearsal"]
    assert told.pop("seconds") == pytest.approx(0.6)
    assert told == {"waiting": 5, "entries": 4, "loss": 0.25, "grad_norm": 2.0, "updated": True}


def test_no_rehearsal_is_told_as_such_and_null_where_there_is_nothing_to_rehearse() -> None:
    seen = material(group(trajectory(1.0)))
    assert record(seen, outcome()).event()["rehearsal"] is None
    none_yet = record(seen, replace(outcome(), rehearsal=Rehearsed(3))).event()["rehearsal"]
    assert none_yet == {
        "waiting": 3,
        "entries": 0,
        "loss": None,
        "grad_norm": None,
        "updated": False,
        "seconds": 0,
    }


@pytest.mark.parametrize(
    ("verdict", "rehearsal", "trained", "flat", "skipped"),
    [
        (Verdict.FLAT, Verdict.UPDATED, 40, 0, 0),
        (Verdict.UPDATED, Verdict.UPDATED, 80, 0, 0),
        (Verdict.UPDATED, Verdict.NOT_FINITE, 40, 0, 1),
        (Verdict.FLAT, Verdict.NOT_FINITE, 0, 1, 1),
    ],
)
def test_a_rehearsal_counts_as_a_step_does(
    verdict: Verdict, rehearsal: Verdict, trained: int, flat: int, skipped: int
) -> None:
    registry = CollectorRegistry()
    whole = replace(outcome(verdict), rehearsal=Rehearsed(0, [outcome(rehearsal, math.nan)]))
    step = record(material(group(trajectory(1.0))), whole)
    step.measure(LearnerMetrics(registry))
    json.dumps(step.event(), allow_nan=False)
    names = ("trained_tokens_total", "steps_without_signal_total", "steps_nonfinite_total", "steps_total")
    assert [registry.get_sample_value(f"tributary_{name}") for name in names] == [trained, flat, skipped, 1]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_told_as_null(loss: float) -> None:
    event = record(material(group(trajectory(1.0))), outcome(Verdict.NOT_FINITE, loss)).event()
    told: dict[str, Any] = json.loads(json.dumps(event, allow_nan=False))
    assert (told["loss"], told["terms"], told["updated"]) == (None, {"policy": None}, False)


@pytest.mark.parametrize(
    ("verdict", "trained", "flat", "skipped"),
    [(Verdict.UPDATED, 40, 0, 0), (Verdict.FLAT, 0, 1, 0), (Verdict.NOT_FINITE, 0, 0, 1)],
)
def test_each_verdict_has_its_counter(verdict: Verdict, trained: int, flat: int, skipped: int) -> None:
    registry = CollectorRegistry()
    record(material(group(trajectory(1.0))), outcome(verdict)).measure(LearnerMetrics(registry))
    names = ("trained_tokens_total", "steps_without_signal_total", "steps_nonfinite_total", "steps_total")
    values = [registry.get_sample_value(f"tributary_{name}") for name in names]
    assert values == [trained, flat, skipped, 1]


def test_a_number_that_a_step_does_not_have_is_not_shown_as_that_of_an_earlier_step() -> None:
    registry = CollectorRegistry()
    metrics = LearnerMetrics(registry)

    def shown(name: str, source: str) -> float | None:
        return registry.get_sample_value(f"tributary_{name}", {"source": source})

    record(material(group(trajectory(1.0))), outcome()).measure(metrics)
    assert (shown("effective_sample_size", "policy"), shown("importance_ratio_mean", "policy")) == (1.0, 1.0)
    assert registry.get_sample_value("tributary_entropy") == 2.0
    demonstrations = torch.tensor([[0.0] * 4, [0.0] * 4, [4.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    imitated = replace(outcome(), sums=replace(outcome().sums, sources_S4=demonstrations))
    record(material(group(trajectory(1, version=None))), imitated).measure(metrics)
    assert shown("importance_ratio_mean", "demonstration") == 0.5
    gone = [shown("effective_sample_size", "policy"), *map(registry.get_sample_value, ("tributary_entropy",))]
    assert all(value is not None and math.isnan(value) for value in gone)
