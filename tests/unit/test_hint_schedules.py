"""Hint schedules, worked by hand: p and low at a phase, what is drawn, and clocks that never jump."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from common.config.hints import CosineBinomial, Cut, HintDraw, HintUnit, NoHints, UniformDecay
from common.trajectory import Demonstration
from services.curriculum.clocks import Clock, Clocks
from services.curriculum.schedules import binomial_hint, lowest_share, probability, uniform_hint

UFT = CosineBinomial()
# Seven sentences: five buckets end after 1, 2, 4 and 5 of them, and the last leaves the end token.
SEVEN = Demonstration(np.arange(20, dtype=np.int32), boundaries=(3, 6, 8, 11, 13, 17))
BUCKETS = [0, 3, 6, 11, 13, 19]


def long(length: int) -> Demonstration:
    return Demonstration(np.arange(length, dtype=np.int32))


@pytest.mark.parametrize(
    ("phase", "p"), [(0.0, 0.95), (0.25, 0.8181980515), (0.5, 0.5), (0.75, 0.1818019485), (0.999999, 0.05), (1.0, 0.0)]
)
def test_p_falls_as_a_cosine_and_there_are_no_hints_after_it(phase: float, p: float) -> None:
    # 0.05 + 0.45 (1 + cos(pi phase)); cos(pi/4) = 0.7071067812
    assert probability(UFT, phase) == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize(("phase", "low"), [(0.0, 0.95), (0.25, 0.8181980515), (0.5, 0.5), (1.0, 0.05), (7.0, 0.05)])
def test_low_falls_as_a_cosine_and_stays(phase: float, low: float) -> None:
    assert lowest_share(UniformDecay(), phase) == pytest.approx(low, abs=1e-9)


def drawn(hints: CosineBinomial, shown: Demonstration, phase: float, count: int = 3200) -> Counter[int]:
    random = np.random.default_rng(0)
    return Counter(binomial_hint(hints, shown, phase, random) for _ in range(count))


def test_buckets_are_drawn_binomially() -> None:
    # Half-way p = 1/2, so k of five buckets has C(5,k)/32; the tolerance is four standard deviations.
    found = drawn(UFT, SEVEN, 0.5)
    assert sorted(found) == BUCKETS
    for length, ways in zip(BUCKETS, (1, 5, 10, 10, 5, 1), strict=True):
        share = ways / 32
        assert found[length] == pytest.approx(3200 * share, abs=4 * (3200 * share * (1 - share)) ** 0.5)


def test_a_demonstration_of_few_sentences_has_fewer_buckets() -> None:
    assert sorted(drawn(UFT, Demonstration(np.arange(9, dtype=np.int32), (4,)), 0.5)) == [0, 4, 8]
    assert sorted(drawn(UFT, long(9), 0.5)) == [0, 8]


def test_tokens_are_drawn_binomially_and_the_last_is_never_shown() -> None:
    tokens = UFT.model_copy(update={"unit": HintUnit.TOKENS, "cut": Cut.TOKEN})
    found = drawn(tokens, long(40), 0.5)
    assert sum(length * n for length, n in found.items()) / 3200 == pytest.approx(20, abs=4 * (10 / 3200) ** 0.5)
    assert max(drawn(tokens.model_copy(update={"p_high": 1.0}), long(10), 0.0)) == 9


def test_tokens_are_rounded_down_to_the_cut() -> None:
    tokens = UFT.model_copy(update={"unit": HintUnit.TOKENS})
    assert set(drawn(tokens, SEVEN, 0.5)) <= {0, *SEVEN.boundaries}


@pytest.mark.parametrize(
    ("phase", "buckets"), [(0.0, 5), (0.19, 5), (0.2, 4), (0.5, 3), (0.7, 2), (0.8, 1), (0.99, 1), (1.0, 0)]
)
def test_stages_fall_evenly_from_all_to_none(phase: float, buckets: int) -> None:
    stages = UFT.model_copy(update={"draw": HintDraw.STAGE})
    assert drawn(stages, SEVEN, phase, 1) == Counter({BUCKETS[buckets]: 1})


def test_the_uniform_draw_shows_any_number_equally_often() -> None:
    found = drawn(UFT.model_copy(update={"draw": HintDraw.UNIFORM}), SEVEN, 0.9)
    for length in BUCKETS:
        assert found[length] == pytest.approx(3200 / 6, abs=4 * (3200 * 5 / 36) ** 0.5)


def test_after_the_schedule_nothing_is_shown() -> None:
    for draw in HintDraw:
        assert drawn(UFT.model_copy(update={"draw": draw}), SEVEN, 1.0, 50) == Counter({0: 50})


def test_a_uniform_share_lies_between_low_and_high_and_is_never_all() -> None:
    random = np.random.default_rng(0)
    first = {uniform_hint(UniformDecay(), long(40), 0.0, random) for _ in range(50)}
    assert first == {38}  # low = high = 0.95, int(0.95 * 40)
    late = [uniform_hint(UniformDecay(), long(100), 1.0, random) for _ in range(3000)]
    assert (min(late), max(late)) == (5, 94)
    assert np.mean(late) == pytest.approx(49.5, abs=4 * 0.9 * 100 / 12**0.5 / 3000**0.5)  # int() takes half a token
    whole = UniformDecay(low_start=1.0, high=1.0)
    assert uniform_hint(whole, long(10), 0.0, random) == 9
    assert uniform_hint(UniformDecay(cut=Cut.SENTENCE), SEVEN, 0.0, random) == 17  # int(0.95 * 20) = 19, rounded down


def test_a_clock_follows_the_learners_steps() -> None:
    clocks = Clocks().at(UFT, 40)
    assert clocks.phase(UFT) == 0.0
    assert clocks.at(UFT, 140).phase(UFT) == pytest.approx(1 / 3)
    one_by_one = clocks
    for step in range(41, 341):
        assert one_by_one.phase(UFT) < 1.0
        one_by_one = one_by_one.at(UFT, step)
    assert one_by_one.phase(UFT) == 1.0
    assert one_by_one.at(UFT, 5000).phase(UFT) == 1.0


def test_another_pace_does_not_move_the_clock() -> None:
    slow = CosineBinomial(steps=600)
    clocks = Clocks().at(UFT, 0).at(slow, 100)
    assert clocks.phase(slow) == pytest.approx(1 / 3)
    assert clocks.at(slow, 200).phase(slow) == pytest.approx(1 / 2)
    back = clocks.at(slow, 200).at(UFT, 200)
    assert back.phase(UFT) == pytest.approx(1 / 2)
    assert back.at(UFT, 350).phase(UFT) == 1.0  # the other half of 300


def test_a_clock_stands_while_its_policy_is_not_in_force() -> None:
    away = Clocks().at(UFT, 0).at(NoHints(), 30)
    assert away.phase(UFT) == pytest.approx(0.1)
    there = away.at(UniformDecay(), 90)
    assert (there.phase(UFT), there.phase(UniformDecay())) == (pytest.approx(0.1), 0.0)
    again = there.at(UFT, 140)
    assert (again.phase(UFT), again.phase(UniformDecay())) == (pytest.approx(0.1), pytest.approx(50 / 500))
    assert again.at(UFT, 170).phase(UFT) == pytest.approx(0.2)


def test_restart_begins_another_clock() -> None:
    anew = CosineBinomial(restart=1)
    clocks = Clocks().at(UFT, 0).at(anew, 60)
    assert (clocks.phase(UFT), clocks.phase(anew)) == (pytest.approx(0.2), 0.0)
    assert clocks.at(anew, 90).phase(anew) == pytest.approx(0.1)


def test_steps_that_a_restored_learner_repeats_count_once() -> None:
    clocks = Clocks().at(UFT, 0).at(UFT, 60)
    restored = clocks.at(UFT, 45)
    assert restored.phase(UFT) == pytest.approx(0.2)
    assert restored.at(UFT, 60).phase(UFT) == pytest.approx(0.2)
    assert restored.at(UFT, 50).at(UFT, 90).phase(UFT) == pytest.approx(0.3)


def test_a_clock_knows_its_end_through_rounding() -> None:
    assert Clock(begun=1 / 3, steps=100, pace=150).phase == 1.0
    assert Clock(begun=0.2, steps=7, pace=10).phase == pytest.approx(0.9)
