"""Rollouts: sample some responses to a prompt, or from a hint, and grade them. What every kind of group is made of.

A `Draw` is complete in itself (its trajectories come back graded), so whoever plans a group may look at one draw before
asking for the next, inside one request.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from common.tasks import together
from common.trajectory import Logprobs, Request, Tokens, Trajectory
from services.generator.engine import Completion, EngineStatistics
from services.generator.graders import Grade
from services.generator.tokenizer import Detokenizer
from services.generator.trajectories import demonstrated, opening, sampled
from services.generator.weight_update import AnyUpdate

AskGrader = Callable[[str, str], Awaitable[Grade]]
"""(response text, answer) → grade, from wherever graders run. Raises GraderFailed."""


class SamplingEngine(Protocol):
    """What this service needs of an engine. See services.generator.engine.Engine, which is one."""

    version: int
    healthy: bool

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus response, in tokens."""
        ...

    @property
    def statistics(self) -> EngineStatistics:
        """What it is doing."""
        ...

    async def sample(
        self, prompt_tokens: Tokens | list[int], *, n: int, temperature: float, max_tokens: int, request_id: str
    ) -> list[Completion]:
        """n responses to one prompt."""
        ...

    async def score(self, tokens: Tokens | list[int], start: int, *, urgent: bool = False) -> Logprobs:
        """Log-probs of tokens[start:]."""
        ...

    async def apply(self, update: AnyUpdate) -> float:
        """Serve other weights; how long that paused sampling, in seconds."""
        ...

    async def until_dead(self) -> None:
        """Raise EngineDead when it dies; return when it is closed."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True, slots=True)
class Draw:
    """Rollouts that share an opening.

    hint_length: leading tokens of the request's first demonstration that they continue. max_tokens bounds what is
    sampled, after the hint.
    """

    count: int
    hint_length: int
    temperature: float
    max_tokens: int


class Rollouts:
    """Makes graded trajectories with an engine, a grader and the policy's tokenizer."""

    def __init__(self, engine: SamplingEngine, grade: AskGrader, detokenize: Detokenizer) -> None:
        self._engine = engine
        self._ask = grade
        self._detokenize = detokenize
        self._numbers = itertools.count()

    async def draw(self, request: Request, draw: Draw) -> list[Trajectory]:
        """The trajectories of a draw; none if it asks for none. Raises EngineError, GraderFailed."""
        if draw.count == 0:
            return []
        start = opening(request, draw.hint_length)
        completions = await self._engine.sample(
            start.tokens,
            n=draw.count,
            temperature=draw.temperature,
            max_tokens=draw.max_tokens,
            # A redone request may meet its own remains in the engine, so its id alone would not do.
            request_id=f"{request.request_id}/{next(self._numbers)}",
        )
        grades = await together(*(self._grade(request, start.response(completion)) for completion in completions))
        return [sampled(start, completion, grade) for completion, grade in zip(completions, grades, strict=True)]

    async def demonstrate(self, request: Request, count: int) -> list[Trajectory]:
        """The first `count` demonstrations of a request as trajectories, graded like any other. Raises GraderFailed."""
        whole = request.demonstrations[:count]
        grades = await together(*(self._grade(request, demonstration.tokens) for demonstration in whole))
        return [demonstrated(request.prompt_tokens, d, grade) for d, grade in zip(whole, grades, strict=True)]

    async def _grade(self, request: Request, response: Tokens) -> Grade:
        return await self._ask(self._detokenize(response), request.answer)
