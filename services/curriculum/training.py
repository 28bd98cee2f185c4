"""Training requests: the next prompts of the data set in their order, each with the plan of its group."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from statistics import fmean

from common.config.hints import BranchOnFailure, Hints
from common.config.store import Revision
from common.trajectory import Demonstration, Outcome, Purpose, Request, Sampling
from services.curriculum.expert_logprobs import UnfitLogprobs
from services.curriculum.hints import Occasion, Planned, cannot_be_cut, cut_of, demonstrations_used, plan_group
from services.curriculum.order import Cursor, Order
from services.curriculum.outcomes import Ledger
from services.curriculum.prompts import Prompt, PromptSet
from services.curriculum.scored import ScoredDemonstrations, Wanted
from services.curriculum.set_aside import Reason
from services.curriculum.state import State

LOOKED_THROUGH = 256
AHEAD = 256
PREPARED_AT_ONCE = 32
OF_LATE = 256


@dataclass(slots=True)
class HintLengths:
    """The hint lengths of the last requests under one hint policy."""

    of: Hints | None = None
    lengths: deque[int] = field(default_factory=lambda: deque[int](maxlen=OF_LATE))

    def add(self, length: int) -> None:
        """Take in one."""
        self.lengths.append(length)

    def mean(self, hints: Hints) -> float:
        """Their mean under this policy; 0 if there are none."""
        return fmean(self.lengths) if hints == self.of and self.lengths else 0.0


class TrainingRequests:
    """Makes the training requests of a run. scored: where the log-probs of a served expert come from, if there is one.

    passed_over: prompts in a row that no request could be made of. uncut: demonstrations in a row that the hint policy
    could not cut. held_back: whether the next prompt waits for its scores.
    """

    def __init__(
        self, prompts: PromptSet, order: Order, seed: int, ledger: Ledger, scored: ScoredDemonstrations | None
    ) -> None:
        self.prompts = prompts
        self._ledger = ledger
        self.passed_over = 0
        self.uncut = 0
        self.held_back = False
        self._stuck = False
        self._order = order
        self._seed = seed
        self._scored = scored
        self._lengths = HintLengths()

    async def look_ahead(self, revision: Revision, cursor: Cursor, besides: Sequence[Wanted] = ()) -> None:
        """Ask for the scores of the next prompts' demonstrations, if there is an expert to score them.

        besides: what else is to be scored, before those.
        """
        if self._scored is None:
            return
        used = demonstrations_used(revision.live.hints) > 0
        wanted = islice(self._wanted(revision, cursor), AHEAD) if used else ()
        if used or besides:
            await self._scored.follow(chain(besides, wanted))

    def scores_are_late(self) -> bool:
        """Whether no request could be made for long, for want of scores; true once, until requests go on."""
        return self._scored is not None and self._scored.is_late(stuck=self._stuck)

    def next(self, revision: Revision, state: State, count: int) -> tuple[list[Request], State]:
        """The next `count` requests, as far as a bounded search finds them, and the state after them."""
        requests: list[Request] = []
        cursor, issued, unready = state.cursor, state.issued, 0
        live = revision.live
        self.held_back = False
        if count > 0 and demonstrations_used(live.hints):
            self.prompts.judge(live.sampling.max_response_tokens)
        for _ in range(LOOKED_THROUGH):
            if len(requests) >= count:
                break
            index, following = self._order.at(cursor)
            prompt = self.prompts.prompts[index]
            unready += demonstrations_used(live.hints) > 0 and not self.prompts.is_ready(prompt)
            if unready > PREPARED_AT_ONCE:  # long ones take their time, and the process has more to do
                break
            known = self._demonstrations(revision, prompt)
            if known is None:
                self.held_back = True
                break
            cursor = following
            phase = state.clocks.phase(live.hints)
            occasion = Occasion(phase, (self._seed, issued), self._ledger.anchor(prompt.prompt_id))
            planned = plan_group(live, known, occasion)
            if planned is None:
                self.passed_over += 1
                continue
            self._observe(live.hints, known, planned)
            requests.append(_request(revision, prompt, planned, known, f"{state.life}:{issued}"))
            issued, self.passed_over = issued + 1, 0
        self._stuck = self.held_back and not requests
        return requests, replace(state, cursor=cursor, issued=issued)

    def absorbed(self, outcomes: Sequence[Outcome]) -> dict[str, str]:
        """Take in what became of requests; the records of prompts that it changes, as JSON."""
        for outcome in outcomes:
            if outcome.anchor is not None and isinstance(self._lengths.of, BranchOnFailure):
                self._lengths.add(outcome.anchor)
        return self._ledger.updated(outcomes)

    def _observe(self, hints: Hints, known: Sequence[Demonstration], planned: Planned) -> None:
        """Remember what a hint policy makes of demonstrations. What a search shows is known when it has found it."""
        if hints != self._lengths.of:
            self._lengths = HintLengths(hints)
            self.uncut = 0
        if known:
            self.uncut = self.uncut + 1 if cannot_be_cut(hints, known[0]) else 0
            if not isinstance(hints, BranchOnFailure):
                self._lengths.add(planned.plan.hint_length)

    def mean_hint_length(self, hints: Hints) -> float:
        """How many tokens are shown of late: the mean over groups whose prompt has a demonstration, or over anchors."""
        return self._lengths.mean(hints)

    def _demonstrations(self, revision: Revision, prompt: Prompt) -> tuple[Demonstration, ...] | None:
        """What a request may show of a prompt's demonstrations; None while a score of them is missing."""
        live = revision.live
        used, cut = demonstrations_used(live.hints), cut_of(live.hints)
        usable: list[Demonstration] = []
        fitting = self.prompts.fitting(prompt, live.sampling.max_response_tokens) if used else ()
        for prepared in fitting:
            if len(usable) == used:
                break
            if self._scored is None:
                usable.append(prepared.text.cut_at(cut, prepared.expert_logprobs))
                continue
            try:
                logprobs = self._scored.logprobs(Wanted(prompt, prepared))
            except UnfitLogprobs as error:
                self.prompts.discard(prompt, prepared.number, Reason.UNSCORABLE, str(error))
                continue
            if logprobs is None:
                return None
            usable.append(prepared.text.cut_at(cut, logprobs))
        return tuple(usable)

    def _wanted(self, revision: Revision, cursor: Cursor) -> Iterator[Wanted]:
        """The demonstrations that the next prompts use; few at a time if they have to be made ready first."""
        unready, longest = 0, revision.live.sampling.max_response_tokens
        used = demonstrations_used(revision.live.hints)
        for prompt in islice(self._from(cursor), min(AHEAD, len(self.prompts))):
            unready += not self.prompts.is_ready(prompt)
            if unready > PREPARED_AT_ONCE:
                return
            yield from (Wanted(prompt, prepared) for prepared in self.prompts.fitting(prompt, longest)[:used])

    def _from(self, cursor: Cursor) -> Iterator[Prompt]:
        while True:
            index, cursor = self._order.at(cursor)
            yield self.prompts.prompts[index]


def _request(
    revision: Revision, prompt: Prompt, planned: Planned, known: tuple[Demonstration, ...], number: str
) -> Request:
    live = revision.live
    return Request(
        request_id=f"train:{number}:{prompt.prompt_id}",
        prompt_id=prompt.prompt_id,
        purpose=Purpose.TRAIN,
        revision=revision.number,
        prompt_tokens=prompt.tokens,
        answer=prompt.answer,
        plan=planned.plan,
        sampling=Sampling(live.sampling.temperature, live.sampling.max_response_tokens),
        demonstrations=known[: planned.demonstrations],
        search=planned.search,
    )
