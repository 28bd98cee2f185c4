"""What the intake refuses before it can harm the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.trajectory import Finish, Group, Source, Trajectory
from learner.intake import Acceptance

P, S = Source.PROMPT, Source.POLICY
ACCEPTANCE = Acceptance(vocabulary=10, longest=6)


def group(tokens: list[int], sources: list[int]) -> Group:
    logprobs = np.zeros(len(tokens), dtype=np.float32)
    member = Trajectory(np.array(tokens, dtype=np.int32), np.array(sources, dtype=np.uint8), logprobs, 1.0, Finish.STOP)
    return Group("g", "p", 1, "generator-1", (member,))


def test_a_sound_group_is_accepted() -> None:
    assert ACCEPTANCE.complaint(group([1, 2, 9, 0], [P, P, Source.HINT, S])) == ""


@pytest.mark.parametrize(
    ("tokens", "sources", "complaint"),
    [
        ([1, 10], [P, S], "the vocabulary has 10 entries"),
        ([1, -1], [P, S], "token ids span -1..1"),
        ([1, 2], [P, P], "2 prompt and 0 response tokens"),
        ([1, 2], [S, S], "0 prompt and 2 response tokens"),
        ([1, 2, 3], [P, S, P], "prompt tokens stand after response tokens"),
        ([1, 2], [P, 9], "source 9 is not known"),
        ([1] * 7, [P] + [S] * 6, "the model's context holds 6"),
    ],
)
def test_a_group_that_would_harm_the_model_is_refused_with_the_reason(
    tokens: Any, sources: Any, complaint: str
) -> None:
    assert complaint in ACCEPTANCE.complaint(group(tokens, sources))


def test_a_group_without_trajectories_is_refused() -> None:
    assert ACCEPTANCE.complaint(Group("g", "p", 1, "generator-1", ())) == "the group has no trajectories"
