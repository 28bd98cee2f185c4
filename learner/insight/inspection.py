"""The inspection of a step: dry runs that operators asked for are answered, and some of its groups are kept to look at.

All of it is for operators only: whatever fails here is said, and training goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import RedisError

from common.config.live import LiveConfig
from common.config.store import Revision
from common.examined import Examined
from common.metrics import LearnerMetrics
from common.process import Process
from common.trajectory import Group
from common.trials import KEPT_S, Trial, Trials
from learner.compute import ComputeThread
from learner.insight.evidence import Evidence
from learner.insight.examination import Circumstances, chosen_for, examined
from learner.insight.trials import Effect, NotTried, Stage, effect, finding
from learner.outcome import Abandoned
from learner.record import finite

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """A step that was made. version: of the weights that it began with."""

    step: int
    version: int
    revision: Revision
    groups: list[Group]
    evidence: Evidence


class Inspection:
    """Answers trials and keeps examined groups, once a step."""

    def __init__(self, process: Process, compute: ComputeThread, metrics: LearnerMetrics) -> None:
        self._process = process
        self._compute = compute
        self._metrics = metrics
        self._trials = Trials(process.redis, process.keys)
        self._examined = Examined(process.redis, process.keys)
        self._count = process.settings.learner.examined_groups

    async def is_due(self) -> bool:
        """Whether the next step's evidence is to be kept: a trial waits, or groups are to be examined."""
        if self._count > 0:
            return True
        try:
            return bool(await self._trials.waiting())
        except (RedisError, OSError) as error:
            self._lost("trials were not looked for", error)
            return False

    async def conduct(self, inspected: Inspected) -> None:
        """Answer every trial that waits and keep what is to be looked at.

        Redis is not waited for: a full one would hold up the very training that empties it. What was not answered
        waits for the next step, or for the learner that comes next if this one has to stop.
        """
        try:
            await self._answer_trials(inspected)
            await self._keep_groups(inspected)
        except Abandoned:
            log.info("the inspection of a step was given up: the process has to stop", extra={"step": inspected.step})
        except (RedisError, OSError) as error:
            self._lost("a step was not inspected", error)

    async def _answer_trials(self, inspected: Inspected) -> None:
        for asked in await self._trials.waiting():
            trial = asked.trial
            if trial is None:
                await self._trials.answer(asked, {"problem": "the trial cannot be read: ask again"})
            elif time.time() - trial.asked_s > KEPT_S:
                await self._trials.drop(asked)
            else:
                found = await self._compute.run(partial(self._findings, trial, inspected))
                await self._trials.answer(asked, found)

    def _findings(self, trial: Trial, inspected: Inspected) -> Mapping[str, Any]:
        """What a trial found, with the configuration in force beside the candidates."""
        started_s = time.perf_counter()
        stage = Stage(inspected.revision.live, inspected.groups, inspected.evidence)
        active, trouble = _attempted(partial(effect, stage.live, stage))
        told = None if active is None else _attempted(partial(_told, active, active, stage))[0]
        candidates: list[Mapping[str, Any]] = []
        for candidate in trial.candidates:
            self._compute.heed()
            found, problem = None, trouble
            if active is not None:
                found, problem = _attempted(partial(_tried, candidate.live, active, stage))
            self._metrics.candidates.labels("failed" if found is None else "done").inc()
            candidates.append({"label": candidate.label, "finding": found, "problem": problem})
        return {
            "step": inspected.step,
            "revision": inspected.revision.number,
            "active": told,
            "candidates": candidates,
            "seconds": time.perf_counter() - started_s,
        }

    async def _keep_groups(self, inspected: Inspected) -> None:
        """Keep some groups; those that cannot be kept are counted."""
        numbers = chosen_for(inspected.step, len(inspected.groups), self._count)
        at = Circumstances(inspected.step, inspected.revision.number, inspected.version, time.time())
        look = partial(examined, inspected.revision.live, inspected.groups, numbers, inspected.evidence, at)
        views, problem = await self._compute.run(lambda: _attempted(look))
        kept = 0
        try:
            for view in views or ():
                if await self._examined.keep(view):
                    kept += 1
                else:
                    problem = f"group {view.group_id} is too large"
        finally:
            self._metrics.examined.labels("done").inc(kept)
            self._metrics.examined.labels("failed").inc(len(numbers) - kept)
        if problem:
            log.warning("groups to look at were not kept", extra={"step": inspected.step, "reason": problem})

    def _lost(self, what: str, error: Exception) -> None:
        self._process.metrics.redis_failures.inc()
        log.warning(what, extra={"error": str(error)})


def _tried(live: LiveConfig, active: Effect, stage: Stage) -> Mapping[str, Any]:
    """The finding about a candidate, as JSON."""
    return _told(effect(live, stage), active, stage)


def _told(tried: Effect, active: Effect, stage: Stage) -> Mapping[str, Any]:
    return finite(finding(tried, active, stage))


def _attempted(work: Callable[[], Result]) -> tuple[Result | None, str]:
    """The result of `work` and "", or None and why there is none."""
    try:
        return work(), ""
    except NotTried as reason:
        return None, str(reason)
    except Exception as error:  # whatever a look at a step runs into, training goes on; the callers count it
        log.exception("a step could not be inspected")
        return None, f"it could not be evaluated on this step: {type(error).__name__}: {error}"
