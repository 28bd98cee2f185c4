"""Hint schedules: how much of a demonstration is shown at a phase, the share of the schedule that is done.

UFT (arXiv 2505.16984): a binomial number of parts whose mean falls as a cosine. Prefix-RFT (arXiv 2507.01679): a
uniform share whose lower bound does.
"""

from __future__ import annotations

from math import ceil, cos, pi
from typing import assert_never

import numpy as np

from common.config.hints import CosineBinomial, HintDraw, HintUnit, UniformDecay
from common.trajectory import Demonstration
from services.curriculum.boundaries import places_to_cut, portions, rounded_down

_ROUNDING = 1e-9


def probability(hints: CosineBinomial, phase: float) -> float:
    """The expected share of a demonstration's units that is shown: p(t) for the binomial draw; 0 once it is over."""
    if phase >= 1.0:
        return 0.0
    match hints.draw:
        case HintDraw.BINOMIAL:
            return hints.p_low + 0.5 * (hints.p_high - hints.p_low) * (1.0 + cos(pi * phase))
        case HintDraw.STAGE:
            return 1.0 - phase
        case HintDraw.UNIFORM:
            return 0.5
        case _:
            assert_never(hints.draw)


def binomial_hint(hints: CosineBinomial, demonstration: Demonstration, phase: float, draws: np.random.Generator) -> int:
    """A hint length of UFT. All buckets are everything but the last token, which is left to be sampled."""
    if phase >= 1.0:
        return 0
    whole = len(demonstration.tokens)
    if hints.unit is HintUnit.TOKENS:
        return rounded_down(_units(hints, whole, phase, draws), demonstration, hints.cut)
    cuts = (0, *portions(places_to_cut(demonstration, hints.cut), hints.buckets), whole - 1)
    return cuts[_units(hints, len(cuts) - 1, phase, draws)]


def _units(hints: CosineBinomial, units: int, phase: float, draws: np.random.Generator) -> int:
    """How many of so many units are shown."""
    match hints.draw:
        case HintDraw.BINOMIAL:
            return int(draws.binomial(units, probability(hints, phase)))
        case HintDraw.STAGE:
            return ceil(units * (1.0 - phase) - _ROUNDING)
        case HintDraw.UNIFORM:
            return int(draws.integers(0, units + 1))
        case _:
            assert_never(hints.draw)


def lowest_share(hints: UniformDecay, phase: float) -> float:
    """The least share of a demonstration that is shown; it stays where it is once the schedule is over."""
    return hints.low_end + 0.5 * (hints.low_start - hints.low_end) * (1.0 + cos(pi * min(phase, 1.0)))


def uniform_hint(hints: UniformDecay, demonstration: Demonstration, phase: float, draws: np.random.Generator) -> int:
    """A hint length of Prefix-RFT: int(l|y*|) tokens with l ~ U(low, high), never the whole demonstration."""
    low = min(lowest_share(hints, phase), hints.high)
    share = low + (hints.high - low) * draws.random()
    return rounded_down(int(share * len(demonstration.tokens)), demonstration, hints.cut)
