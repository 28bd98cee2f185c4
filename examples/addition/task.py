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
from itertools import combinations

COLUMNS = 4
STEP_END = ";"
ANSWER_MARK = "#"
ALPHABET = "0123456789+=;#"
PROMPT_LENGTH = 2 * COLUMNS + 2
DEMONSTRATION_LENGTH = COLUMNS * len("7+7+0=14;") + len("#10164")

EASY = (0, 1)
"""Numbers of carrying columns of an easy problem: what the base model masters."""
HARD = (3, 4)
"""Numbers of carrying columns of a hard problem: what the base model never gets right.

Three beside four, so that "always carry" does not solve it and a model that learns it can still add without carries.
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


def carries(problem: Problem) -> int:
    """How many of the four columns carry into the next."""
    count = carry = 0
    for column in range(COLUMNS):
        carry = int(digit(problem.left, column) + digit(problem.right, column) + carry >= 10)
        count += carry
    return count


def digit(number: int, column: int) -> int:
    """The digit of a number in a column, counted from the right."""
    return number // 10**column % 10


def draw_problem(rng: random.Random, carry_counts: Sequence[int]) -> Problem:
    """A problem whose number of carrying columns is one of `carry_counts`, each equally likely.

    Then the columns that carry are equally likely, and then the digits that make them do so.
    """
    pattern = rng.choice(list(combinations(range(COLUMNS), rng.choice(carry_counts))))
    left = right = carry = 0
    for column in range(COLUMNS):
        wanted = int(column in pattern)
        lowest = 1 if column == COLUMNS - 1 else 0  # a number does not start with zero
        pairs = [
            (a, b) for a in range(lowest, 10) for b in range(lowest, 10) if int(a + b + carry >= 10) == wanted
        ]
        a, b = rng.choice(pairs)
        left, right, carry = left + a * 10**column, right + b * 10**column, wanted
    return Problem(left, right)


def draw_distinct(rng: random.Random, carry_counts: Sequence[int], count: int) -> list[Problem]:
    """`count` different problems with the given numbers of carrying columns, in the order drawn."""
    drawn: dict[Problem, None] = {}
    while len(drawn) < count:
        drawn[draw_problem(rng, carry_counts)] = None
    return list(drawn)
