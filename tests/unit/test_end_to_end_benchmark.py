"""What the end-to-end comparison counts, worked by hand."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks._end_to_end_cell import GROUPS, ROLLOUTS, Cell, Lengths, Step, Training, trained_tokens
from benchmarks._end_to_end_run import Tuning, Watched, account
from benchmarks._end_to_end_task import WORKLOADS, exercises, grade, response
from common.trajectory import Finish, Group, Source, Trajectory, VersionSpan
from common.wire import encode_group

CELL = Cell("equal", "0.3M", Path("base"), Path("data"), steps=2, rate=1e-4, save_every=1, seed=0)


def _group(number: int, rewards: list[float], *, version: int = 0, response_tokens: int = 5) -> bytes:
    sources = np.array([Source.PROMPT] * 2 + [Source.POLICY] * response_tokens, np.uint8)
    length = len(sources)
    members = tuple(
        Trajectory(
            tokens=np.arange(length, dtype=np.int32),
            sources=sources,
            behaviour_logprobs=np.zeros(length, np.float32),
            reward=reward,
            finish=Finish.STOP,
            versions=(VersionSpan(version, 2, length),),
        )
        for reward in rewards
    )
    return encode_group(Group(f"g{number}", f"p{number}", 1, "generator-1", members))


def test_tokens_of_groups_whose_rewards_are_equal_reach_no_gradient() -> None:
    assert trained_tokens([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [3, 4, 5, 6, 7, 8], rollouts=2) == (7, 2)


def test_a_step_is_made_of_the_next_groups_of_the_stream_without_the_stale_ones() -> None:
    mixed, flat = [1.0] + [0.0] * (ROLLOUTS - 1), [0.0] * ROLLOUTS
    first = [_group(i, mixed if i else flat) for i in range(GROUPS)]
    stale = _group(100, mixed, version=0, response_tokens=50)
    second = [_group(200 + i, mixed, version=1) for i in range(GROUPS)]
    share = 1 / ROLLOUTS
    told = [{"step": 1, "reward": share * (GROUPS - 1) / GROUPS, "updated": True, "version": 1}]
    told += [{"step": 2, "reward": share, "updated": False, "version": 2}]
    events = [("step", 10.0 + number, data) for number, data in enumerate(told)]
    steps, lengths = account(CELL, Tuning(max_staleness=0), Watched(8.0, events, [*first, stale, *second], {}))
    assert [step.trained for step in steps] == [5 * ROLLOUTS * (GROUPS - 1), 0]  # nothing of a step without an update
    assert [step.tokens for step in steps] == [5 * ROLLOUTS * GROUPS] * 2
    assert [step.flat_groups for step in steps] == [1, 0]
    assert [step.at_s for step in steps] == [2.0, 3.0]
    assert lengths.longest == 5


def test_rates_count_from_the_start_of_training() -> None:
    steps = [Step(n, at_s=2.0 * n, tokens=100, trained=50, groups=16, flat_groups=0, reward=0.5) for n in range(1, 5)]
    training = Training("tributary", 9.0, steps, Lengths.of([1, 2, 3]), {}, {}, {})
    assert training.trained_per_s == pytest.approx(200 / 8)
    assert training.tokens_per_s == pytest.approx(400 / 8)
    assert training.steady_tokens_per_s == pytest.approx(200 / 4)


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_the_right_procedure_is_right_and_forgetting_carries_is_not(passes: int) -> None:
    for exercise in exercises("test", 50):
        answer = exercise.row["answer"]
        assert answer is not None
        assert grade(response(exercise.problem, carries=True, passes=passes), answer) == 1.0
        assert grade(response(exercise.problem, carries=False, passes=passes), answer) == 0.0


def test_the_long_tail_has_a_median_of_a_quarter_of_its_longest_at_most() -> None:
    tail, rng, problem = WORKLOADS["tail"], random.Random(0), exercises("test", 1)[0].problem
    passes = [tail.draw_passes(rng) for _ in range(5000)]
    lengths = Lengths.of([len(response(problem, carries=True, passes=n)) + 1 for n in passes])
    assert lengths.median <= lengths.longest / 4
    assert lengths.longest <= tail.longest
