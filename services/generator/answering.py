"""Answering a request: its plan becomes draws, the draws become one group, and the group has an outcome."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from common.tasks import together
from common.trajectory import AnchorSearch, Group, Outcome, Purpose, Request, Source, Trajectory
from services.generator.feasibility import fitted
from services.generator.rollouts import Draw, Rollouts, SamplingEngine
from services.generator.search import Findings, SearchResult, find_anchor, usable_cuts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with. group: None unless it is to train. search: how a search ended, if asked for."""

    group: Group | None
    outcome: Outcome
    search: SearchResult | None = None


@dataclass(frozen=True, slots=True)
class _Score:
    """The summed log-prob of a demonstration's tokens at temperature 1."""

    logprob: float
    tokens: int


@dataclass(frozen=True, slots=True)
class _Sampled:
    """What was sampled for a training request.

    plain: every rollout from the bare prompt. hinted: those of the group that continue a hint of `hint_length` tokens.
    members: the group's, in order. passed: rollouts of probes that were not taken.
    """

    plain: tuple[Trajectory, ...]
    members: tuple[Trajectory, ...]
    hinted: tuple[Trajectory, ...] = ()
    hint_length: int = 0
    passed: tuple[Trajectory, ...] = ()
    probes: int = 0
    search: SearchResult | None = None


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
            case Purpose.GRADE:
                return Answer(None, self._outcome(request, await self._rollouts.demonstrate(request, 1)))

    async def _train(self, request: Request) -> Answer:
        plan = request.plan
        sampled: _Sampled
        demonstrations: list[Trajectory] = []
        if plan.gate is None:
            sampled, demonstrations = await together(
                self._sample(request), self._rollouts.demonstrate(request, plan.demonstrations)
            )
        else:
            sampled = await self._sample(request)
            if sum(member.is_right for member in sampled.members) <= plan.gate:
                demonstrations = await self._rollouts.demonstrate(request, plan.demonstrations)
        members = (*sampled.members, *demonstrations)
        group = Group(request.request_id, request.prompt_id, request.revision, self._name, members)
        return Answer(group, self._training_outcome(request, sampled), sampled.search)

    async def _sample(self, request: Request) -> _Sampled:
        """The sampled members of a training group."""
        return await (self._planned(request) if request.search is None else self._searched(request, request.search))

    async def _planned(self, request: Request) -> _Sampled:
        plan = request.plan
        plain, branched = await together(
            self._draw(request, plan.plain), self._draw(request, plan.branched, plan.hint_length)
        )
        members = (*plain, *branched)
        if plan.hint_length == 0:  # an empty hint shows nothing: its rollouts are plain ones
            return _Sampled(members, members)
        return _Sampled(tuple(plain), members, tuple(branched), plan.hint_length if branched else 0)

    async def _searched(self, request: Request, search: AnchorSearch) -> _Sampled:
        """A plain group; only if all of it fails (or always), and an anchor is found, the anchor's group instead."""
        plain: Sequence[Trajectory] = ()
        cuts = usable_cuts(search, request.sampling.max_tokens)
        if not search.always or not cuts:
            plain = await self._draw(request, request.plan.plain)
        if not search.always and any(rollout.is_right for rollout in plain):
            return _Sampled(tuple(plain), tuple(plain), search=SearchResult.UNNEEDED)
        found = await find_anchor(search, cuts, partial(self._draw, request, search.members))
        return _after_search(tuple(plain), found, always=search.always)

    async def _draw(self, request: Request, count: int, hint_length: int = 0) -> list[Trajectory]:
        """Rollouts at the request's temperature; hint and continuation share its max_tokens."""
        sampling = request.sampling
        draw = Draw(count, hint_length, sampling.temperature, sampling.max_tokens - hint_length)
        return await self._rollouts.draw(request, draw)

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

    def _training_outcome(self, request: Request, sampled: _Sampled) -> Outcome:
        everything = (*sampled.plain, *sampled.hinted, *sampled.passed)
        return replace(
            self._outcome(request, everything),
            rewards=tuple(t.reward for t in sampled.plain),
            hinted_rewards=tuple(t.reward for t in sampled.hinted),
            hint_length=sampled.hint_length,
            probes=sampled.probes,
            anchor=sampled.hint_length if sampled.search is SearchResult.TAKEN else None,
        )

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


def _after_search(plain: tuple[Trajectory, ...], found: Findings, *, always: bool) -> _Sampled:
    """What a search leaves: the taken probe, or else the plain rollouts (or else, with `always`, the last probe)."""
    if not found.probes or not (found.taken or always):
        passed = tuple(rollout for probe in found.probes for rollout in probe.rollouts)
        return _Sampled(plain, plain, passed=passed, probes=len(found.probes), search=found.result)
    *others, last = found.probes
    return _Sampled(
        plain=plain,
        members=last.rollouts,
        hinted=last.rollouts,
        hint_length=last.hint_length,
        passed=tuple(rollout for probe in others for rollout in probe.rollouts),
        probes=len(found.probes),
        search=found.result,
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
