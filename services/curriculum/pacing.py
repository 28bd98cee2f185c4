"""The curriculum's loop: issue while there is credit, evaluate when a version is due, take outcomes in."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import Any
from uuid import uuid4

from common.config.hints import Cut, Hints
from common.config.store import Revision
from common.events import EventKind
from common.expert_scores import ExpertScores
from common.metrics import CurriculumMetrics
from common.process import Process
from common.streams import Entry
from common.trajectory import Outcome, Purpose, Request
from common.weights import WeightAnnouncements
from common.wire import encode_request
from services.curriculum.added import AddedDemonstrations
from services.curriculum.credit import Credit
from services.curriculum.evaluation import evaluation_requests, summarise
from services.curriculum.generators import held_versions
from services.curriculum.hints import cut_of, level
from services.curriculum.order import Order
from services.curriculum.outcomes import Answers, Ledger, by_purpose, decode_outcomes
from services.curriculum.prompts import PromptSet
from services.curriculum.scored import LATE_S, ScoredDemonstrations
from services.curriculum.set_aside import SetAsideReport
from services.curriculum.state import Evaluation, State, decode_state
from services.curriculum.training import TrainingRequests

log = logging.getLogger(__name__)

BATCH = 64
TAKEN_AT_ONCE = 512
ASKED_AT_MOST = 3
UNCUT_AT_MOST = 64
TURN_MS = 100
CATCH_UP_S = 15.0


class Curriculum:
    """Everything the curriculum knows while it runs."""

    def __init__(self, process: Process, training: PromptSet, heldout: Sequence[PromptSet]) -> None:
        self._process = process
        self._training = training
        self._heldout = heldout
        self._settings = process.settings.evaluation
        self._weights = WeightAnnouncements(process.redis, process.keys)
        self._credit = Credit(process)
        self._metrics = CurriculumMetrics(process.registry)
        self._state = State()
        self._scored = self._scored_demonstrations()
        self._requests = self._training_requests(Ledger({}))
        self._added = AddedDemonstrations(process, self._metrics, training, self._scored)
        self._added_told = 0
        self._texts_told: set[str] = set()
        sets = [prompts.set_aside for prompts in (training, *heldout)]
        self._set_aside = SetAsideReport(process, self._metrics, sets, time.monotonic)
        self._answers = Answers()
        self._behind_since_s: float | None = None
        self._last_entry = "0"
        self._may_hold_unread = True
        self._drained = False
        self._uncut_said = 0

    def _scored_demonstrations(self) -> ScoredDemonstrations | None:
        """The scores of the expert, if it is served."""
        process = self._process
        if process.settings.expert.policy != "scored":
            return None
        return ScoredDemonstrations(ExpertScores(process.redis, process.keys), process.patiently, time.monotonic)

    def _training_requests(self, ledger: Ledger) -> TrainingRequests:
        data, run = self._process.settings.data, self._process.settings.run
        order = Order(len(self._training), run.seed, data.shuffle)
        return TrainingRequests(self._training, order, run.seed, ledger, self._scored)

    async def run(self) -> None:
        """Work until the process is told to stop."""
        await self._restore()
        self._process.state = "running"
        while not self._process.stop.is_set():
            self._process.beat()
            revision = await self._process.patiently("read the live configuration", self._process.config.current)
            if revision is None:  # the control plane writes the first one
                await self._process.pause(0.1)
                continue
            step = await self._step()
            await self._process.enforce(revision.number, step=step)
            finished = await self._finished_version()
            self._state = await self._added.follow(revision, self._state)
            if finished is None:
                self._state = replace(self._state, clocks=self._state.clocks.at(revision.live.hints, step))
                await self._issue(revision)
                await self._say_if_nothing_fits(revision)
                await self._say_if_nothing_is_cut(revision)
                await self._say_if_scores_are_late()
            await self._evaluate_if_due(revision, finished)
            await self._say_what_is_set_aside()
            entries = await self._process.patiently("take outcomes", self._take)
            await self._absorb(entries)
            if not self._may_hold_unread and len(entries) < TAKEN_AT_ONCE:
                self._state = await self._added.ask_again(revision, self._state)
            await self._rescue_evaluation(revision, idle=not entries)

    async def _take(self) -> list[Entry]:
        """Outcomes not yet read. A reply that was lost left its entries pending for us: those come first."""
        outcomes, name = self._process.delivery.outcomes, self._process.name
        unread, self._may_hold_unread = self._may_hold_unread, True
        if unread:
            entries = await outcomes.pending(name, self._last_entry, TAKEN_AT_ONCE)
            self._may_hold_unread = bool(entries)
        else:
            entries = await outcomes.take(name, count=TAKEN_AT_ONCE, block_ms=TURN_MS)
            self._may_hold_unread = False
        if entries:
            self._last_entry = entries[-1].entry_id
        return entries

    async def _restore(self) -> None:
        """Read the state. Outcomes taken earlier and not acknowledged are read again by the first turns."""
        process = self._process
        saved = await process.patiently("read the state", lambda: process.redis.get(process.keys.curriculum))
        self._state = decode_state(saved, life=uuid4().hex[:8])
        records: Any = await process.patiently("read solve rates", lambda: process.redis.hgetall(process.keys.prompts))
        self._requests = self._training_requests(Ledger(records))
        await self._added.restore()
        if self._state.issued:
            log.info("going on", extra={"issued": self._state.issued, "epoch": self._state.cursor.epoch})

    async def _step(self) -> int:
        newest = await self._process.patiently("read the newest version", self._weights.newest)
        return newest.step if newest else 0

    async def _finished_version(self) -> int | None:
        """The final weight version, once the learner has reached its last step."""
        process = self._process
        value: Any = await process.patiently("read facts", lambda: process.redis.hget(process.keys.facts, "finished"))
        return None if value is None else int(value)

    async def _issue(self, revision: Revision) -> None:
        """Issue training requests as far as the credit allows."""
        live, delivery = revision.live, self._process.delivery
        await self._requests.look_ahead(revision, self._state.cursor, self._added.wanted)
        outstanding = await self._process.patiently("count outstanding groups", delivery.outstanding)
        credit = await self._credit.read(live, outstanding)
        requests, state = self._requests.next(revision, self._state, min(credit - outstanding, BATCH))
        if requests:
            payloads, texts = [(r.request_id, encode_request(r)) for r in requests], self._untold_texts(requests)
            await self._process.patiently("issue requests", lambda: delivery.issue(payloads, state.encode(), texts))
            self._texts_told |= texts.keys()
            self._metrics.requests.labels(Purpose.TRAIN.value).inc(len(requests))
        self._state = state
        self._show(revision, outstanding + len(requests), credit)

    def _untold_texts(self, requests: Sequence[Request]) -> dict[str, str]:
        """The texts of the prompts of requests, by id, but those that Redis has been told."""
        found = [self._training.find(r.prompt_id) for r in requests if r.prompt_id not in self._texts_told]
        return {prompt.prompt_id: prompt.text for prompt in found if prompt is not None}

    def _show(self, revision: Revision, outstanding: int, credit: int) -> None:
        """Tell in heartbeat and metrics where the curriculum is."""
        state = self._state
        self._metrics.outstanding.set(outstanding)
        self._metrics.credit.set(credit)
        self._process.details |= {
            "issued": state.issued,
            "epoch": state.cursor.epoch,
            "outstanding": outstanding,
            "credit": credit,
            "evaluating": 0 if state.evaluation is None else sum(state.evaluation.due.values()),
            "hint_schedule": self._show_schedule(revision.live.hints),
            "waiting_for_scores": self._requests.held_back,
        }

    def _show_schedule(self, hints: Hints) -> dict[str, Any] | None:
        """Set the metrics of the hint schedule, and tell where it is; None if the hint policy has none."""
        phase, mean = self._state.clocks.phase(hints), self._requests.mean_hint_length(hints)
        found = level(hints, phase)
        self._metrics.hint_length.set(mean)
        self._metrics.hint_phase.set(phase if found else nan)
        self._metrics.hint_level.set(next(iter(found.values()), nan))
        return {"kind": hints.kind, "phase": phase, **found, "mean_hint_length": mean} if found else None

    async def _say_what_is_set_aside(self) -> None:
        """Tell which demonstrations cannot be used, and how many prompts have one that can."""
        if await self._set_aside.tell() or self._added.used != self._added_told:
            self._added_told = self._added.used
            process, known = self._process, {"train_demonstrations": self._training.with_demonstrations}
            await process.patiently("tell facts", lambda: process.redis.hset(process.keys.facts, mapping=known))

    async def _say_if_nothing_is_cut(self, revision: Revision) -> None:
        """Tell once that the hint policy in force finds no place to cut: then it shows nothing, or all."""
        if self._requests.uncut < min(UNCUT_AT_MOST, len(self._training)) or revision.number == self._uncut_said:
            return
        self._uncut_said = revision.number
        cut = cut_of(revision.live.hints)
        text = (
            f"no demonstration of the last {self._requests.uncut} can be cut after a {cut} inside it (revision "
            f'{revision.number}): set hints.cut to "token" or another of {", ".join(Cut)}, or [data] step_separator to '
            "what ends a step"
        )
        log.warning(text)
        await self._process.tell(EventKind.NOTICE, {"text": text})

    async def _say_if_scores_are_late(self) -> None:
        """Tell once that nothing is issued because the next prompt's demonstrations are not scored."""
        if not self._requests.scores_are_late():
            return
        text = (
            f"no request has been issued for {LATE_S:.0f} s: the next prompt waits until the expert has scored its "
            'demonstrations ([expert] policy = "scored"): see whether a scorer is running, and what its log says'
        )
        log.warning(text)
        await self._process.tell(EventKind.NOTICE, {"text": text})

    async def _say_if_nothing_fits(self, revision: Revision) -> None:
        """Tell once an epoch that no prompt can be asked under this configuration."""
        if self._requests.passed_over < len(self._training):
            return
        self._requests.passed_over = 0
        text = (
            f"no prompt fits revision {revision.number}: {revision.live.algorithm.kind} without rollouts needs a "
            f"demonstration of at most {revision.live.sampling.max_response_tokens} tokens; raise "
            "sampling.max_response_tokens or algorithm.rollouts"
        )
        log.warning(text)
        await self._process.tell(EventKind.NOTICE, {"text": text})
        await self._process.pause(5.0)

    async def _evaluate_if_due(self, revision: Revision, finished: int | None) -> None:
        """Ask for an evaluation of the newest version when it is due and every generator holds it."""
        if not self._heldout or self._state.evaluation is not None:
            if finished is not None and not self._heldout:
                await self._say_evaluated(finished)
            return
        newest = await self._process.patiently("read the newest version", self._weights.newest)
        version = newest.version if newest else 0
        last = self._state.evaluated_version
        if finished is not None and last >= finished:
            await self._say_evaluated(finished)
            return
        due = last < 0 or version >= last + self._settings.every_versions or (finished is not None and version > last)
        if due and await self._generators_hold(version):
            await self._start_evaluation(revision, version, newest.step if newest else 0)

    async def _generators_hold(self, version: int) -> bool:
        """Whether every live generator holds `version`; laggards are waited for, but not for ever."""
        held = await held_versions(self._process)
        if held and min(held) >= version:
            self._behind_since_s = None
            return True
        now_s = time.monotonic()
        self._behind_since_s = self._behind_since_s or now_s
        return bool(held) and now_s - self._behind_since_s > CATCH_UP_S

    async def _start_evaluation(self, revision: Revision, version: int, step: int) -> None:
        due = {prompts.name: len(prompts) for prompts in self._heldout}
        await self._ask(revision, Evaluation(version, step, time.time(), due))

    async def _ask(self, revision: Revision, evaluation: Evaluation) -> None:
        """Issue an evaluation's requests, all that are not answered."""
        requests = [
            request
            for prompts in self._heldout
            for request in evaluation_requests(
                prompts, self._settings, revision.live, revision.number, evaluation.version
            )
            if request.request_id not in self._answers.outcomes
        ]
        state = self._state.evaluating(evaluation)
        payloads = [("", encode_request(r)) for r in requests]
        delivery = self._process.delivery
        await self._process.patiently("issue an evaluation", lambda: delivery.issue(payloads, state.encode()))
        self._state = state
        self._metrics.requests.labels(Purpose.EVALUATE.value).inc(len(requests))

    async def _rescue_evaluation(self, revision: Revision, *, idle: bool) -> None:
        """Ask again for answers that will never come, and report without them when that did not help.

        A request leaves its stream in the same script that adds its outcome: once no request is left and then no
        outcome is unread, what is missing was lost with Redis's data or could not be decoded.
        """
        current, process = self._state.evaluation, self._process
        if current is None or not idle or self._may_hold_unread:
            self._drained = False
            return
        if not self._drained:
            self._drained = await process.patiently("count requests", process.delivery.requests.length) == 0
            return
        self._drained = False
        missing = sum(current.due.values()) - len(self._answers.outcomes)
        log.warning("answers of an evaluation are missing", extra={"missing": missing, "asked": current.asked})
        if current.asked >= ASKED_AT_MOST:
            await self._report(current)
        else:
            await self._ask(revision, replace(current, asked=current.asked + 1))

    async def _absorb(self, entries: Sequence[Entry]) -> None:
        """Take outcomes in. Training outcomes are acknowledged at once, those of an evaluation when it is reported."""
        if not entries:
            return
        found = by_purpose(await decode_outcomes(self._process, entries))
        training, evaluation, grades = (found[p] for p in (Purpose.TRAIN, Purpose.EVALUATE, Purpose.GRADE))
        await self._added.graded([o for _, o in grades])
        current = self._state.evaluation
        stray = {i for i, o in evaluation if not _is_due(o, current)}
        for entry_id, outcome in evaluation:
            if entry_id not in stray:
                self._answers.add(entry_id, outcome)
        done = [i for i, _ in (*training, *grades)] + sorted(stray)
        changed = self._requests.absorbed([o for _, o in training])
        delivery = self._process.delivery
        await self._process.patiently("absorb outcomes", lambda: delivery.absorb(done, changed))
        if current is not None and len(self._answers.outcomes) >= sum(current.due.values()):
            await self._report(current)

    async def _report(self, evaluation: Evaluation) -> None:
        """Tell what an evaluation found, then acknowledge its outcomes."""
        for dataset in evaluation.due:
            found = summarise(self._answers.of(dataset), self._settings.samples, evaluation.due[dataset])
            self._expose(dataset, found)
            seconds = round(time.time() - evaluation.started_s, 3)
            place = {"dataset": dataset, "version": evaluation.version, "step": evaluation.step, "seconds": seconds}
            await self._process.tell(EventKind.EVALUATION, {**place, **found})
        delivery, state = self._process.delivery, self._state.evaluated()
        await self._process.patiently("end the evaluation", lambda: delivery.issue([], state.encode()))
        self._state = state
        entry_ids = self._answers.entry_ids
        await self._process.patiently("acknowledge the evaluation", lambda: delivery.absorb(entry_ids, {}))
        self._answers = Answers()

    def _expose(self, dataset: str, found: dict[str, Any]) -> None:
        gauges = {"accuracy": self._metrics.accuracy, "pass_at_k": self._metrics.pass_at_k, "nll": self._metrics.nll}
        for name, gauge in gauges.items():
            if found[name] is not None:
                gauge.labels(dataset).set(found[name])

    async def _say_evaluated(self, version: int) -> None:
        process = self._process
        facts = {"evaluated": version}
        await process.patiently("say evaluated", lambda: process.redis.hset(process.keys.facts, mapping=facts))
        await process.pause(0.5)


def _is_due(outcome: Outcome, evaluation: Evaluation | None) -> bool:
    """Whether an outcome answers the evaluation under way."""
    return evaluation is not None and outcome.for_version == evaluation.version and outcome.dataset in evaluation.due
