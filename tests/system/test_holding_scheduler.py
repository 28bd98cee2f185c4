"""What the holding scheduler tells and when: by a clock in a rig's hand, so neither a machine nor a model has a say."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]  # as engine_rig's, which would import torch
FIRST, LONG, LATE = 100, 100, 80
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.system.held_outputs_rig"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _told(steps: list[dict[str, Any]], name: str) -> list[int]:
    """The steps in which something is told of a sequence."""
    return [number for number, step in enumerate(steps) if name in step["tokens"]]


@pytest.mark.parametrize(("name", "length"), [("long", LONG), ("late", LATE)])
def test_all_tokens_of_a_long_response_are_told_once_in_their_order(
    found: dict[str, Any], name: str, length: int
) -> None:
    steps = [found["long"][number] for number in _told(found["long"], name)]
    tokens = [token for step in steps for token in step["tokens"][name]]
    assert tokens == list(range(FIRST, FIRST + length))
    assert [logprob for step in steps for logprob in step["logprobs"][name]] == [-token for token in tokens]
    assert [name in step["ended"] for step in steps] == [False] * (len(steps) - 1) + [True]


@pytest.mark.parametrize("name", ["long", "late"])
def test_a_long_response_is_heard_of_now_and_then_but_not_at_every_step(found: dict[str, Any], name: str) -> None:
    gaps_s = [(after - before) * found["step_s"] for before, after in pairwise(_told(found["long"], name))]
    assert len(gaps_s) > 3
    assert max(gaps_s) <= 1.0
    assert min(gaps_s[:-1]) >= 0.25  # the last one is cut short by its end


def test_whatever_is_told_says_how_many_sequences_run(found: dict[str, Any]) -> None:
    running = [step["running"] for step in found["long"] if step["tokens"]]
    assert running[0] == 1
    assert 2 in running
    assert running[-1] == 0


@pytest.mark.parametrize(
    "idle",
    [
        "_from_the_start",
        "_after_an_end",
        "_after_an_end_when_all_was_told_anyway",
        "_after_a_cancellation",
        "_after_a_cancellation_in_a_pause",
    ],
)
def test_the_first_step_after_idleness_is_told_at_once(found: dict[str, Any], idle: str) -> None:
    first, *held, last = found["woken"][idle]
    assert (first["running"], first["tokens"]) == (1, {"short": [FIRST]})
    assert all((step["running"], step["tokens"]) == (None, {}) for step in held)
    assert (last["running"], last["tokens"]) == (0, {"short": [FIRST + 1, FIRST + 2, FIRST + 3]})


def test_a_pause_takes_effect_after_all_that_was_held_is_told(found: dict[str, Any]) -> None:
    due, told, still_due = found["paused"]
    assert due
    assert told["tokens"] == {"long": [FIRST + place for place in range(1, 5)]}
    assert not still_due
