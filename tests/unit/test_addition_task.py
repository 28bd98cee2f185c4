"""The addition task: its text, its grading, and the carries of what is drawn."""

import random

import pytest

from examples.addition.task import (
    DEMONSTRATION_LENGTH,
    EASY,
    HARD,
    PROMPT_LENGTH,
    CarryPattern,
    Problem,
    answer,
    carry_pattern,
    demonstration,
    draw_distinct,
    draw_problem,
    is_correct,
    prompt,
)


def test_the_documented_problem_is_written_as_documented() -> None:
    problem = Problem(4997, 5167)
    assert prompt(problem) == "4997+5167="
    assert demonstration(problem) == "7+7+0=14;9+6+1=16;9+1+1=11;4+5+1=10;#10164"
    assert answer(problem) == "10164"


def test_a_sum_below_ten_thousand_is_padded_and_so_are_column_sums() -> None:
    problem = Problem(1023, 2045)
    assert demonstration(problem) == "3+5+0=08;2+4+0=06;0+0+0=00;1+2+0=03;#03068"


def test_every_prompt_and_every_demonstration_is_equally_long() -> None:
    problems = draw_distinct(random.Random(0), EASY + HARD, 200)
    assert {len(prompt(problem)) for problem in problems} == {PROMPT_LENGTH}
    assert {len(demonstration(problem)) for problem in problems} == {DEMONSTRATION_LENGTH}


def test_a_demonstration_is_graded_as_correct() -> None:
    for problem in draw_distinct(random.Random(1), EASY + HARD, 200):
        assert is_correct(demonstration(problem), answer(problem))


@pytest.mark.parametrize("response", ["", "10164", "#", "#1016", "#010164", "#10164 ", "#10164#10165", "#10165"])
def test_a_response_without_exactly_the_sum_after_its_last_mark_is_wrong(response: str) -> None:
    assert not is_correct(response, "10164")


def test_only_what_follows_the_last_mark_is_graded() -> None:
    assert is_correct("#00000#10164", "10164")


@pytest.mark.parametrize("patterns", [EASY, HARD])
def test_drawn_problems_carry_exactly_where_asked(patterns: tuple[CarryPattern, ...]) -> None:
    problems = draw_distinct(random.Random(2), patterns, 300)
    assert {carry_pattern(problem) for problem in problems} == set(patterns)


def test_a_carry_that_only_comes_from_the_column_before_is_seen() -> None:
    assert carry_pattern(Problem(1995, 1005)) == (0, 1, 2)


def test_drawn_numbers_have_four_digits() -> None:
    for problem in draw_distinct(random.Random(3), EASY + HARD, 300):
        assert 1000 <= problem.left <= 9999
        assert 1000 <= problem.right <= 9999


def test_distinct_problems_are_distinct_and_the_same_seed_draws_the_same() -> None:
    drawn = draw_distinct(random.Random(4), HARD, 300)
    assert len(set(drawn)) == 300
    assert drawn == draw_distinct(random.Random(4), HARD, 300)
    assert draw_problem(random.Random(4), HARD) == drawn[0]
