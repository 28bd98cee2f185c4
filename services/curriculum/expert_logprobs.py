"""The check of log π_φ: whoever recorded or scored it, it has to fit the demonstration's tokens, one number each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.trajectory import Logprobs, Tokens
from services.curriculum.rows import Record


class UnfitLogprobs(ValueError):
    """Log-probs that do not belong to the demonstration they came with; says why."""


def recorded_logprobs(record: Record, tokens: Tokens) -> Logprobs:
    """The log-probs [D] of a record. UnfitLogprobs if they are not those of `tokens` [D], EOS included."""
    if record.logprobs is None:
        raise UnfitLogprobs("no log-probs were recorded for it")
    if record.ids is not None:
        _require_same(_numbers(record.ids, "token ids"), tokens)
    return fitting_logprobs(_numbers(record.logprobs, "log-probs"), tokens)


def fitting_logprobs(values: Sequence[float] | Logprobs, tokens: Tokens) -> Logprobs:
    """`values` as log-probs [D]. UnfitLogprobs unless they are as many as the tokens, finite, and none above 0."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
        logprobs = np.asarray(values).astype(np.float32)
    if len(logprobs) != len(tokens):
        raise UnfitLogprobs(
            f"it has {len(logprobs)} log-probs for {len(tokens)} tokens (its end token needs one, too): "
            "they were recorded under another tokenisation"
        )
    wrong = np.flatnonzero(~np.isfinite(logprobs) | (logprobs > 0))
    if len(wrong):
        raise UnfitLogprobs(
            f"the log-prob of its token {wrong[0] + 1} is {logprobs[wrong[0]]}: it has to be finite, and 0 or less"
        )
    return logprobs


def _numbers(values: Any, what: str) -> np.ndarray[Any, Any]:
    try:
        # A null in a column becomes NaN, which no check below lets pass.
        return np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnfitLogprobs(f"its {what} are no list of numbers") from error


def _require_same(ids: np.ndarray[Any, Any], tokens: Tokens) -> None:
    if len(ids) != len(tokens):
        raise UnfitLogprobs(f"it was recorded as {len(ids)} tokens and has {len(tokens)} here, its end token included")
    differing = np.flatnonzero(ids != tokens)
    if len(differing):
        place = int(differing[0])
        raise UnfitLogprobs(f"its token {place + 1} was recorded as id {ids[place]:g} and has id {tokens[place]} here")
