"""Answering a request: its plan becomes draws, the draws become one group, and the group has an outcome."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.errors import TributaryError
from common.tasks import together
from common.trajectory import Group, Outcome, Purpose, Request, Sampling, Source, Trajectory
from services.generator.rollouts import Draw, Rollouts, SamplingEngine

log = logging.getLogger(__name__)


class RequestRefused(TributaryError):
    """A request that asks for something impossible."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with. group: None for an evaluation."""

    group: Group | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Score:
    """The summed log-prob of a demonstration's tokens at temperature 1."""

    logprob: float
    tokens: int


class Answerer:
    """Answers requests with an engine's rollouts, in the name of one generator."""

    def __init__(self, name: str, engine: SamplingEngine, rollouts: Rollouts) -> None:
        self._name = name
        self._engine = engine
        self._rollouts = rollouts

    async def answer(self, request: Request) -> Answer:
        """The answer to a request. Raises RequestRefused, EngineError, GraderFailed."""
        request = fitted(request, self._engine.max_model_len)
        match request.purpose:
            case Purpose.TRAIN:
                return await self._train(request)
            case Purpose.EVALUATE:
                return await self._evaluate(request)

    async def _train(self, request: Request) -> Answer:
        plan, temperature, limit = request.plan, request.sampling.temperature, request.sampling.max_tokens
        plain, branched, demonstrations = await together(
            self._rollouts.draw(request, Draw(plan.plain, 0, temperature, limit)),
            self._rollouts.draw(request, Draw(plan.branched, plan.hint_length, temperature, limit - plan.hint_length)),
            self._rollouts.demonstrate(request, plan.demonstrations),
        )
        members = (*plain, *branched, *demonstrations)
        group = Group(request.request_id, request.prompt_id, request.revision, self._name, members)
        hint_length = plan.hint_length if plan.branched else 0
        return Answer(group, replace(self._outcome(request, [*plain, *branched]), hint_length=hint_length))

    async def _evaluate(self, request: Request) -> Answer:
        rollouts: list[Trajectory]
        score: _Score | None
        rollouts, score = await together(self._greedy_then_sampled(request), self._score(request))
        outcome = self._outcome(request, rollouts)
        if score is not None:
            outcome = replace(outcome, demonstration_logprob=score.logprob, demonstration_tokens=score.tokens)
        return Answer(None, outcome)

    async def _greedy_then_sampled(self, request: Request) -> list[Trajectory]:
        sampling, greedy = request.sampling, min(request.plan.plain, 1)
        greedily, freely = await together(
            self._rollouts.draw(request, Draw(greedy, 0, 0.0, sampling.max_tokens)),
            self._rollouts.draw(
                request, Draw(request.plan.plain - greedy, 0, sampling.temperature, sampling.max_tokens)
            ),
        )
        return [*greedily, *freely]

    async def _score(self, request: Request) -> _Score | None:
        """The score of the first demonstration; None if nobody asks for it, or if it does not fit the context."""
        if not request.score_demonstration:
            return None
        demonstration, limit = request.demonstrations[0], self._engine.max_model_len
        tokens = np.concatenate([request.prompt_tokens, demonstration.tokens])
        if len(tokens) >= limit:
            log.warning(
                "not scored: too long", extra={"prompt": request.prompt_id, "tokens": len(tokens), "limit": limit}
            )
            return None
        logprobs = await self._engine.score(tokens, len(request.prompt_tokens))
        return _Score(float(np.sum(logprobs, dtype=np.float64)), len(demonstration.tokens))

    def _outcome(self, request: Request, rollouts: Sequence[Trajectory]) -> Outcome:
        versions = [t.oldest_version for t in rollouts if t.oldest_version is not None]
        return Outcome(
            request_id=request.request_id,
            prompt_id=request.prompt_id,
            purpose=request.purpose,
            revision=request.revision,
            dataset=request.dataset,
            rewards=tuple(t.reward for t in rollouts),
            version=min(versions, default=self._engine.version),
            for_version=request.for_version,
            response_tokens=sum(int(np.count_nonzero(t.sources == Source.POLICY)) for t in rollouts),
        )


def failed(request: Request, reason: str, version: int) -> Outcome:
    """The outcome of a request that could not be carried out."""
    return Outcome(
        request_id=request.request_id,
        prompt_id=request.prompt_id,
        purpose=request.purpose,
        revision=request.revision,
        dataset=request.dataset,
        rewards=(),
        version=version,
        for_version=request.for_version,
        failure=reason,
    )


def fitted(request: Request, context: int) -> Request:
    """The request with max_tokens reduced to what the model's context leaves. RequestRefused if it cannot be done."""
    room = context - len(request.prompt_tokens)
    if len(request.prompt_tokens) == 0:
        raise RequestRefused("the prompt is empty: there is nothing to continue")
    if room < 1:
        raise RequestRefused(
            f"the prompt has {len(request.prompt_tokens)} tokens and the model's context {context}: nothing is left "
            "for a response; drop the prompt, or raise [model] max_model_len as far as the model goes"
        )
    max_tokens = min(request.sampling.max_tokens, room)
    _require_possible(request, max_tokens)
    return replace(request, sampling=Sampling(request.sampling.temperature, max_tokens))


def _require_possible(request: Request, max_tokens: int) -> None:
    plan, known = request.plan, len(request.demonstrations)
    if min(plan.plain, plan.branched, plan.hint_length, plan.demonstrations) < 0:
        raise RequestRefused(f"a plan counts from zero: {plan}")
    only_scores = request.purpose is Purpose.EVALUATE and request.score_demonstration
    if plan.plain + plan.branched + plan.demonstrations == 0 and not only_scores:
        raise RequestRefused("the plan has no members: a group would be empty")
    if max_tokens < 1 and plan.plain + plan.branched:
        raise RequestRefused(f"max_tokens is {max_tokens}: nothing could be sampled")
    wanted = max(plan.demonstrations, int(plan.branched > 0 and plan.hint_length > 0), int(request.score_demonstration))
    if wanted > known:
        raise RequestRefused(f"the plan needs {wanted} demonstrations and the request brings {known}")
    if plan.branched == 0 or plan.hint_length == 0:
        return
    shown = len(request.demonstrations[0].tokens)
    if plan.hint_length >= min(shown, max_tokens):
        raise RequestRefused(
            f"a hint of {plan.hint_length} tokens leaves nothing to sample: the demonstration has {shown} tokens, and "
            f"hint plus continuation may have {max_tokens}"
        )
