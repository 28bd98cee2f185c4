"""From completions to trajectories: who wrote each token, under which weights, and with what probability. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.trajectory import (
    Demonstration,
    Finish,
    Logprobs,
    Request,
    Source,
    Sources,
    Tokens,
    Trajectory,
    VersionSpan,
)
from services.generator.engine import Completion
from services.generator.graders.grade import Grade


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """What a rollout continues: a prompt, and as much of a demonstration as the policy is shown (its hint).

    hint_expert_logprobs: [hint] where π_φ is known, else None.
    """

    prompt: Tokens
    hint: Tokens
    hint_expert_logprobs: Logprobs | None

    @property
    def tokens(self) -> Tokens:
        """Exactly the ids that the policy continues."""
        return _tokens(self.prompt, self.hint)

    def response(self, completion: Completion) -> Tokens:
        """Hint and continuation."""
        return _tokens(self.hint, completion.tokens)


def opening(request: Request, hint_length: int) -> Opening:
    """The opening that shows `hint_length` tokens of the request's first demonstration."""
    if hint_length == 0:
        return Opening(request.prompt_tokens, np.zeros(0, np.int32), None)
    shown = request.demonstrations[0]
    expert = None if shown.expert_logprobs is None else shown.expert_logprobs[:hint_length]
    return Opening(request.prompt_tokens, shown.tokens[:hint_length], expert)


def sampled(start: Opening, completion: Completion, grade: Grade) -> Trajectory:
    """The trajectory of a rollout."""
    prompt, hint, length = len(start.prompt), len(start.hint), len(completion.tokens)
    expert = None
    if start.hint_expert_logprobs is not None:
        expert = _logprobs(_zeros(prompt), start.hint_expert_logprobs, _zeros(length))
    shift = prompt + hint
    return Trajectory(
        tokens=_tokens(start.tokens, completion.tokens),
        sources=_sources((Source.PROMPT, prompt), (Source.HINT, hint), (Source.POLICY, length)),
        behaviour_logprobs=_logprobs(_zeros(shift), completion.logprobs),
        expert_logprobs=expert,
        versions=tuple(VersionSpan(s.version, s.start + shift, s.end + shift) for s in completion.versions),
        finish=Finish(completion.finish),
        reward=grade.reward,
        reward_parts=grade.parts,
    )


def demonstrated(prompt: Tokens, demonstration: Demonstration, grade: Grade) -> Trajectory:
    """The trajectory of a whole demonstration."""
    length = len(demonstration.tokens)
    expert = demonstration.expert_logprobs
    return Trajectory(
        tokens=_tokens(prompt, demonstration.tokens),
        sources=_sources((Source.PROMPT, len(prompt)), (Source.DEMONSTRATION, length)),
        behaviour_logprobs=_zeros(len(prompt) + length),
        expert_logprobs=None if expert is None else _logprobs(_zeros(len(prompt)), expert),
        finish=Finish.DEMONSTRATION,
        reward=grade.reward,
        reward_parts=grade.parts,
    )


def _sources(*runs: tuple[Source, int]) -> Sources:
    return np.repeat(np.array([source for source, _ in runs], np.uint8), [count for _, count in runs])


def _zeros(count: int) -> Logprobs:
    return np.zeros(count, np.float32)


def _tokens(*parts: Tokens) -> Tokens:
    return np.concatenate(parts).astype(np.int32, copy=False)


def _logprobs(*parts: Logprobs) -> Logprobs:
    return np.concatenate(parts).astype(np.float32, copy=False)
