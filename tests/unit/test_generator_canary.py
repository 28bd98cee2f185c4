"""The canary's judgement, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from common.trajectory import Logprobs
from common.weights import Canary
from services.generator.canary import Proved, Reading, WrongWeights, compare, judge


def canary(*rows: tuple[float, ...], tokens: int = 0) -> Canary:
    return Canary(
        tokens=tuple(tuple(range(tokens, tokens + len(row) + 1)) for row in rows),
        logprobs=rows,
        tolerance=0.1,
        mean_tolerance=0.05,
        dtype="bfloat16",
    )


def heard(*rows: tuple[float, ...]) -> list[Logprobs]:
    return [np.array(row, np.float32) for row in rows]


def test_a_reading_is_the_largest_and_the_mean_difference() -> None:
    reading = compare(heard((-1.0, -2.0), (-3.5,)), canary((-1.0, -2.25), (-3.0,)))
    assert (reading.largest, reading.mean) == (0.5, 0.25)


def test_rows_that_an_engine_takes_only_in_part_are_compared_so_far() -> None:
    assert compare(heard((-1.0,), ()), canary((-1.25, -9.0), (-9.0,))) == Reading(0.25, 0.25)
    assert compare(heard((), ()), canary((-1.0,), (-9.0,))) == Reading(0.0, 0.0)


def test_what_arithmetic_explains_is_a_proof() -> None:
    proved = judge(7, heard((-1.0, -2.0625)), canary((-1.0, -2.0)), None)
    assert (proved.version, proved.reading) == (7, Reading(0.0625, 0.03125))


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        ((-1.0, -2.25, -3.0, -4.0, -5.0, -6.0), "by up to 0.25 and by 0.0417 in the mean"),
        ((-1.0625, -2.0625, -3.0625, -4.0625, -5.0625, -6.0625), "by up to 0.0625 and by 0.0625 in the mean"),
        ((float("nan"), -2.0, -3.0, -4.0, -5.0, -6.0), "by up to nan"),
    ],
)
def test_more_than_that_refutes_with_both_numbers(row: tuple[float, ...], numbers: str) -> None:
    with pytest.raises(WrongWeights, match=f"refutes version 7: .*{numbers}.*; up to 0.1 and 0.05 are explained"):
        judge(7, heard(row), canary((-1.0, -2.0, -3.0, -4.0, -5.0, -6.0)), None)


def test_an_engine_nearer_to_the_version_before_still_serves_it() -> None:
    old, new = canary((-1.0, -2.0)), canary((-1.03125, -2.03125))
    before = Proved(6, old, Reading(0.001, 0.001))
    assert judge(7, heard((-1.03, -2.03)), new, before).version == 7
    with pytest.raises(WrongWeights, match=r"from those of version 6 by 0.001: the old weights are still served"):
        judge(7, heard((-1.001, -2.001)), new, before)


@pytest.mark.parametrize(
    "before",
    [
        Proved(6, canary((-1.0, -2.0)), Reading(0.02, 0.01)),  # noisier than the step is long
        Proved(6, canary((-1.0, -2.0), tokens=3), Reading(0.001, 0.001)),  # of other tokens
        Proved(7, canary((-1.0, -2.0)), Reading(0.001, 0.001)),  # the same version, made anew
    ],
)
def test_the_version_before_says_nothing_where_the_two_cannot_be_told_apart(before: Proved) -> None:
    assert judge(7, heard((-1.001, -2.001)), canary((-1.03125, -2.03125)), before).version == 7
