"""Demonstrations that operators add while the run goes on: looked at, graded, scored if need be, then used.

Nothing is used before a generator has found it right. What became of each is kept in Redis, and that its grade was
asked for moves with the request in the curriculum's state: a restart neither forgets one nor grades it twice.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.additions import Addition, Additions, AdditionState, AdditionVerdict
from common.config.hints import Cut
from common.config.store import Revision
from common.events import EventKind
from common.metrics import CurriculumMetrics
from common.process import Process
from common.trajectory import GroupPlan, Outcome, Purpose, Request, Sampling
from common.wire import encode_request
from services.curriculum.expert_logprobs import UnfitLogprobs
from services.curriculum.prompts import Prepared, Prompt, PromptSet
from services.curriculum.scored import ScoredDemonstrations, Wanted
from services.curriculum.set_aside import UnfitDemonstration
from services.curriculum.state import State

READ_AT_ONCE = 16
GRADED_AT_ONCE = 64
ASKED_AT_MOST = 3
_ID = "grade:"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """An addition to a prompt that exists. number: among its prompt's demonstrations. reward: its grade, if known."""

    addition: Addition
    prompt: Prompt
    number: int
    reward: float | None


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """An addition that can be used, as far as can be seen without its grade."""

    placed: _Placed
    prepared: Prepared

    @property
    def wanted(self) -> Wanted:
        """What the expert is asked to score."""
        return Wanted(self.placed.prompt, self.prepared)


class AddedDemonstrations:
    """The additions of a run on their way into the training prompts. scored: where expert log-probs come from, if so.

    used: how many are in use.
    """

    def __init__(
        self, process: Process, metrics: CurriculumMetrics, prompts: PromptSet, scored: ScoredDemonstrations | None
    ) -> None:
        self.used = 0
        self._process = process
        self._metrics = metrics
        self._prompts = prompts
        self._scored = scored
        self._additions = Additions(process.redis, process.keys)
        self._last_id = "0"
        self._counts: Counter[str] = Counter()
        self._new: list[_Placed] = []
        self._ungraded: dict[str, _Fit] = {}
        self._unscored: dict[str, _Fit] = {}
        self._asked_up_to: tuple[int, int] | None = None
        self._left = False

    @property
    def wanted(self) -> list[Wanted]:
        """Those whose score is waited for."""
        return [fit.wanted for fit in self._unscored.values()]

    async def restore(self) -> None:
        """Read all additions; those in use are in use again."""
        while await self._read():
            pass

    async def follow(self, revision: Revision, state: State) -> State:
        """Look at what was added since, use what is scored, ask for missing grades; the state after that."""
        await self._read()
        await self._use_what_is_scored()
        await self._look_at_new(revision)
        unasked = [i for i in self._ungraded if i not in state.grading]
        room = GRADED_AT_ONCE - (len(self._ungraded) - len(unasked))
        return await self._ask(revision, state, unasked[: max(0, room)])

    async def graded(self, outcomes: Sequence[Outcome]) -> None:
        """Take in grades. One that comes a second time changes nothing."""
        for outcome in outcomes:
            fit = self._ungraded.pop(outcome.request_id.removeprefix(_ID), None)
            if fit is None:
                log.info("graded before", extra={"request": outcome.request_id})
            elif outcome.failure:
                await self._refuse(fit.placed, f"it could not be graded: {outcome.failure}")
            elif outcome.rewards[0] <= 0:
                why = f"graded {outcome.rewards[0]:g}: a demonstration has to earn a positive reward"
                await self._refuse(replace(fit.placed, reward=outcome.rewards[0]), why)
            else:
                await self._graded_right(replace(fit, placed=replace(fit.placed, reward=outcome.rewards[0])))

    async def ask_again(self, revision: Revision, state: State) -> State:
        """Ask anew for grades that will never come; the state after that. Called when no outcome is left unread.

        A request leaves its stream in the same script that adds its outcome. If it has left, and then no outcome is
        unread, it was lost with Redis's data, or a generator of an older version put it into the quarantine.
        """
        asked = [addition_id for addition_id in self._ungraded if addition_id in state.grading]
        if not asked or not self._left:
            self._left = bool(asked) and await self._have_left()
            return state
        log.warning("grades of additions are missing", extra={"missing": len(asked)})
        for addition_id in [i for i in asked if state.grading[i] >= ASKED_AT_MOST]:
            why = f"no grade came, asked {ASKED_AT_MOST} times: see the quarantine and the generators, and add it again"
            await self._refuse(self._ungraded.pop(addition_id).placed, why)
        return await self._ask(revision, state, [i for i in asked if i in self._ungraded])

    async def _have_left(self) -> bool:
        """Whether every request for a grade has left the stream."""
        requests = self._process.delivery.requests
        if self._asked_up_to is None:  # asked in an earlier life: so at the latest by now
            self._asked_up_to = await self._process.patiently("look at requests", requests.newest) or (0, 0)
        oldest = await self._process.patiently("look at requests", requests.oldest)
        return oldest is None or oldest > self._asked_up_to

    async def _read(self) -> bool:
        """Read the next additions; whether there were any."""
        additions = await self._process.patiently(
            "read additions", lambda: self._additions.after(self._last_id, READ_AT_ONCE)
        )
        ids = [addition.addition_id for addition in additions]
        verdicts = await self._process.patiently("read verdicts", lambda: self._additions.verdicts(ids))
        for addition in additions:
            self._last_id = addition.addition_id
            await self._sort(addition, verdicts[addition.addition_id])
        return bool(additions)

    async def _sort(self, addition: Addition, verdict: AdditionVerdict) -> None:
        """Put an addition where its verdict says. Its number depends on the additions before it alone."""
        prompt = self._prompts.find(addition.prompt_id)
        if prompt is None:
            if verdict.state is not AdditionState.REFUSED:
                last = len(self._prompts) - 1
                why = f"there is no prompt {addition.prompt_id!r}: they are {self._prompts.name}:0 to "
                await self._judge(addition, AdditionVerdict(AdditionState.REFUSED, f"{why}{self._prompts.name}:{last}"))
            return
        number = len(prompt.demonstrations) + self._counts[prompt.prompt_id]
        self._counts[prompt.prompt_id] += 1
        match verdict.state:
            case AdditionState.IN_USE:
                self._prompts.add(prompt, number, addition.text)
                self.used += 1
            case AdditionState.WAITING:
                self._new.append(_Placed(addition, prompt, number, verdict.reward))
            case AdditionState.REFUSED:
                return

    async def _look_at_new(self, revision: Revision) -> None:
        """See which new additions can be used at all, and who has to say something about them."""
        new, self._new = self._new, []
        for placed in new:
            longest = revision.live.sampling.max_response_tokens
            try:
                fit = _Fit(placed, self._prompts.look_at(placed.prompt, placed.number, placed.addition.text, longest))
            except UnfitDemonstration as unfit:
                await self._refuse(placed, str(unfit))
                continue
            if placed.reward is None:
                self._ungraded[placed.addition.addition_id] = fit
            else:  # in an earlier life
                self._unscored[placed.addition.addition_id] = fit

    async def _graded_right(self, fit: _Fit) -> None:
        """Use an addition that the grader found right, once the expert has scored it if one has to."""
        if self._scored is None:
            await self._use(fit.placed)
            return
        self._unscored[fit.placed.addition.addition_id] = fit
        why = 'graded; it waits until the expert has scored it ([expert] policy = "scored")'
        await self._judge(fit.placed.addition, AdditionVerdict(AdditionState.WAITING, why, fit.placed.reward))

    async def _use_what_is_scored(self) -> None:
        """Use what waited for its score and has it, or refuse it with the expert's reason."""
        for addition_id, fit in list(self._unscored.items()):
            try:
                is_scored = self._scored is None or self._scored.logprobs(fit.wanted) is not None
            except UnfitLogprobs as unfit:
                del self._unscored[addition_id]
                await self._refuse(fit.placed, str(unfit))
                continue
            if is_scored:
                del self._unscored[addition_id]
                await self._use(fit.placed)

    async def _ask(self, revision: Revision, state: State, addition_ids: Sequence[str]) -> State:
        """Issue requests for grades; the state that explains them. Those that came meanwhile are forgotten there."""
        if not addition_ids:
            return state
        times = {i: state.grading.get(i, 0) for i in self._ungraded}
        grading = {i: n for i, n in times.items() if n} | {i: times[i] + 1 for i in addition_ids}
        state = replace(state, grading=grading)
        process, delivery = self._process, self._process.delivery
        payloads = [("", encode_request(_request(revision, self._ungraded[i]))) for i in addition_ids]
        await process.patiently("ask for grades", lambda: delivery.issue(payloads, state.encode()))
        self._metrics.requests.labels(Purpose.GRADE.value).inc(len(payloads))
        self._asked_up_to = await process.patiently("look at requests", delivery.requests.newest) or (0, 0)
        self._left = False
        return state

    async def _use(self, placed: _Placed) -> None:
        self._prompts.add(placed.prompt, placed.number, placed.addition.text)
        self.used += 1
        await self._judge(placed.addition, AdditionVerdict(AdditionState.IN_USE, reward=placed.reward))

    async def _refuse(self, placed: _Placed, why: str) -> None:
        await self._judge(placed.addition, AdditionVerdict(AdditionState.REFUSED, why, placed.reward))

    async def _judge(self, addition: Addition, verdict: AdditionVerdict) -> None:
        """Say what became of an addition, where its state is kept and where operators look."""
        process, addition_id = self._process, addition.addition_id
        await process.patiently("judge an addition", lambda: self._additions.judge(addition_id, verdict))
        told = {"id": addition_id, "prompt_id": addition.prompt_id, "by": addition.by}
        told |= {"state": verdict.state.value, "reason": verdict.reason}
        log.info("addition judged", extra=told)
        self._metrics.additions.labels(verdict.state.value).inc()
        await process.tell(EventKind.ADDITION, told)


def _request(revision: Revision, fit: _Fit) -> Request:
    """A request that samples nothing: only the grader is asked."""
    return Request(
        request_id=f"{_ID}{fit.placed.addition.addition_id}",
        prompt_id=fit.placed.prompt.prompt_id,
        purpose=Purpose.GRADE,
        revision=revision.number,
        prompt_tokens=fit.placed.prompt.tokens,
        answer=fit.placed.prompt.answer,
        plan=GroupPlan(plain=0, demonstrations=1),
        sampling=Sampling(revision.live.sampling.temperature, revision.live.sampling.max_response_tokens),
        demonstrations=(fit.prepared.text.cut_at(Cut.STEP),),
    )
