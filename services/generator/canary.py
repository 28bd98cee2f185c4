"""The canary of an update: does the engine make of fixed token sequences what the learner made of them?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.errors import TributaryError
from common.tasks import together
from common.trajectory import Logprobs
from common.weights import Canary
from services.generator.rollouts import SamplingEngine

_CLEARLY = 4.0
"""How many times the engine's own noise two versions have to be apart for it to be said which of them is served."""


class WrongWeights(TributaryError):
    """The engine does not serve the version that it was given."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How far an engine's log-probs are from the learner's: the largest and the mean absolute difference."""

    largest: float
    mean: float


@dataclass(frozen=True, slots=True)
class Proved:
    """A version that the engine was found to serve, and how exactly."""

    version: int
    canary: Canary
    reading: Reading


async def sing(engine: SamplingEngine, canary: Canary) -> list[Logprobs]:
    """The log-probs that the engine gives the canary's tokens. Raises EngineError."""
    longest = engine.max_model_len - 1
    return await together(*(engine.score(list(row[:longest]), 1, urgent=True) for row in canary.tokens))


def compare(logprobs: list[Logprobs], canary: Canary) -> Reading:
    """How far log-probs are from those of a canary, as far as both go."""
    apart = [
        np.abs(np.asarray(ours_T, np.float64) - np.asarray(theirs, np.float64)[: len(ours_T)])
        for ours_T, theirs in zip(logprobs, canary.logprobs, strict=True)
    ]
    differences = np.concatenate([*apart, np.zeros(1)]) if not any(map(len, apart)) else np.concatenate(apart)
    return Reading(float(differences.max()), float(differences.mean()))


def judge(version: int, logprobs: list[Logprobs], canary: Canary, before: Proved | None) -> Proved:
    """The proof that the engine serves `version`; WrongWeights, with both numbers, if it does not.

    before: the version that was proved last. Where the two versions' canaries differ clearly, ours has to be nearer to
    the new one: that finds an update which left the old weights in place, however small the step was.
    """
    reading = compare(logprobs, canary)
    allowed = f"up to {canary.tolerance:.3g} and {canary.mean_tolerance:.3g} are explained by {canary.dtype}"
    found = f"log-probs differ from the learner's by up to {reading.largest:.3g} and by {reading.mean:.3g} in the mean"
    if not (reading.largest <= canary.tolerance and reading.mean <= canary.mean_tolerance):
        raise WrongWeights(f"the canary refutes version {version}: {found}; {allowed}")
    if before is not None and before.version != version and before.canary.tokens == canary.tokens:
        old = compare(logprobs, before.canary)
        step = compare([np.asarray(row, np.float32) for row in before.canary.logprobs], canary)
        if step.mean > _CLEARLY * before.reading.mean and reading.mean > old.mean:
            raise WrongWeights(
                f"the canary refutes version {version}: {found}, and from those of version {before.version} by "
                f"{old.mean:.3g}: the old weights are still served"
            )
    return Proved(version, canary, reading)
