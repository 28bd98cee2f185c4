"""The addition task: four-digit sums written out column by column, with carries as the dial of difficulty.

A problem such as 4997 + 5167 is asked as the prompt `4997+5167=`. Its demonstration adds the columns from the right,
each with the carry that comes in, and then states the sum, zero-padded to five digits:

    7+7+0=14;9+6+1=16;9+1+1=11;4+5+1=10;#10164

Steps end with `;`, so a hint is cut after one. Column sums are padded to two digits, which makes every demonstration
42 characters long and lets a batch go without padding. Everything here is pure: randomness is handed in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

COLUMNS = 4
STEP_END = ";"
ANSWER_MARK = "#"
ALPHABET = "0123456789+=;#"
PROMPT_LENGTH = 2 * COLUMNS + 2
DEMONSTRATION_LENGTH = COLUMNS * len("7+7+0=14;") + len("#10164")

CarryPattern = tuple[int, ...]
"""The columns that carry into the next, counted from the right."""

EASY: tuple[CarryPattern, ...] = ((), (), (), (), (0,), (1,), (2,), (3,))
"""No carry, or one, equally often: what the base model masters."""
HARD: tuple[CarryPattern, ...] = ((0, 1, 2), (1, 2, 3), (0, 1, 2, 3))
"""Carries that run through three or four columns: what the base model never gets right, however often it samples.

Runs of three stand beside runs of four so that "always carry" is no solution: a model that learns to carry must still
look at the digits.
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """Two four-digit numbers to add."""

    left: int
    right: int


def prompt(problem: Problem) -> str:
    """The question as the model reads it, such as `4997+5167=`."""
    return f"{problem.left:0{COLUMNS}d}+{problem.right:0{COLUMNS}d}="


def answer(problem: Problem) -> str:
    """The sum, zero-padded to five digits: what must follow the answer mark."""
    return f"{problem.left + problem.right:0{COLUMNS + 1}d}"


def demonstration(problem: Problem) -> str:
    """The written-out solution: one step for each column from the right, then the answer."""
    steps: list[str] = []
    carry = 0
    for column in range(COLUMNS):
        left, right = digit(problem.left, column), digit(problem.right, column)
        column_sum = left + right + carry
        steps.append(f"{left}+{right}+{carry}={column_sum:02d}{STEP_END}")
        carry = column_sum // 10
    return "".join(steps) + ANSWER_MARK + answer(problem)


def is_correct(response: str, expected: str) -> bool:
    """Whether what follows the last answer mark is the expected sum, digit for digit."""
    _, mark, given = response.rpartition(ANSWER_MARK)
    return bool(mark) and given == expected


def carry_pattern(problem: Problem) -> CarryPattern:
    """Which of the four columns carry into the next."""
    pattern: list[int] = []
    for column in range(COLUMNS):
        carry = int(column - 1 in pattern)
        if digit(problem.left, column) + digit(problem.right, column) + carry >= 10:
            pattern.append(column)
    return tuple(pattern)


def digit(number: int, column: int) -> int:
    """The digit of a number in a column, counted from the right."""
    return number // 10**column % 10


def draw_problem(rng: random.Random, patterns: Sequence[CarryPattern]) -> Problem:
    """A problem that carries as one of `patterns` says: the pattern is drawn first, then digits that make it so."""
    pattern = rng.choice(patterns)
    left = right = carry = 0
    for column in range(COLUMNS):
        wanted = column in pattern
        lowest = 1 if column == COLUMNS - 1 else 0  # a number does not start with zero
        digits = range(lowest, 10)
        a, b = rng.choice([(a, b) for a in digits for b in digits if (a + b + carry >= 10) == wanted])
        left, right, carry = left + a * 10**column, right + b * 10**column, int(wanted)
    return Problem(left, right)


def draw_distinct(rng: random.Random, patterns: Sequence[CarryPattern], count: int) -> list[Problem]:
    """`count` different problems that carry as one of `patterns` says, in the order drawn."""
    drawn: dict[Problem, None] = {}
    while len(drawn) < count:
        drawn[draw_problem(rng, patterns)] = None
    return list(drawn)
