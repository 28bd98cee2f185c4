"""Demonstrations whose expert policy is served: scores are asked for ahead of need, and waited for."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

from common.connection import Patience
from common.expert_scores import ExpertScores, Score, score_key
from common.trajectory import Logprobs, ScoreTask
from services.curriculum.expert_logprobs import UnfitLogprobs, fitting_logprobs
from services.curriculum.prompts import Prepared, Prompt

ASK_AGAIN_S = 30.0
LATE_S = 60.0
KEPT_SCORES = 4096

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A demonstration whose score is wanted."""

    prompt: Prompt
    demonstration: Prepared

    @property
    def name(self) -> tuple[str, int]:
        """Which one it is."""
        return self.prompt.prompt_id, self.demonstration.number


class ScoredDemonstrations:
    """The scores known here, and what was asked for. The run's scores themselves are kept in Redis by their content.

    They are the scores of one expert. When a scorer says that it serves another, they are forgotten and asked for anew;
    what the one before refused stays set aside until the curriculum is started again.
    """

    def __init__(self, scores: ExpertScores, patiently: Patience, clock_s: Callable[[], float]) -> None:
        self._scores = scores
        self._patiently = patiently
        self._clock_s = clock_s
        self._found: OrderedDict[tuple[str, int], Score] = OrderedDict()
        self._asked_s: dict[str, float] = {}
        self._keys: dict[tuple[str, int], str] = {}
        self._identity = ""
        self._stuck_since_s: float | None = None

    def logprobs(self, wanted: Wanted) -> Logprobs | None:
        """log π_φ of a demonstration [D]; None while its score is missing. UnfitLogprobs if it cannot be had."""
        score = self._found.get(wanted.name)
        if score is None:
            return None
        if score.logprobs is None:
            raise UnfitLogprobs(f"the expert did not score it: {score.reason}")
        return fitting_logprobs(score.logprobs, wanted.demonstration.tokens)

    async def follow(self, wanted: Iterable[Wanted]) -> None:
        """Take in the scores that are there, and ask for those that are not, in order.

        A task that a scorer gave back is asked for anew; what is on its way already is passed over by the stream.
        """
        if not await self._expert_is_known():
            return
        missing = [w for w in wanted if w.name not in self._found]
        self._keys = {w.name: self._key(w) for w in missing}
        known = await self._patiently("read expert scores", lambda: self._scores.known(list(self._keys.values())))
        unknown: list[ScoreTask] = []
        for item in missing:
            key = self._keys[item.name]
            if key in known:
                self._keep(item, known[key])
            elif self._clock_s() - self._asked_s.get(key, -inf) >= ASK_AGAIN_S:
                unknown.append(ScoreTask(key, item.prompt.tokens, item.demonstration.tokens))
        await self._ask(unknown)

    def is_late(self, *, stuck: bool) -> bool:
        """Whether requests have now been `stuck` for long, waiting for a score; true once, until they go on."""
        now_s = self._clock_s()
        if not stuck:
            self._stuck_since_s = None
        elif self._stuck_since_s is None:
            self._stuck_since_s = now_s
        elif now_s - self._stuck_since_s >= LATE_S:
            self._stuck_since_s = inf
            return True
        return False

    async def _ask(self, tasks: Sequence[ScoreTask]) -> None:
        """Ask, and remember when; what is not wanted any more is forgotten."""
        if tasks:
            await self._patiently("ask for expert scores", lambda: self._scores.ask(tasks))
        asked_s = self._asked_s | {task.key: self._clock_s() for task in tasks}
        self._asked_s = {key: asked_s[key] for key in self._keys.values() if key in asked_s}

    async def _expert_is_known(self) -> bool:
        """Whether a scorer has said who the expert is: the scores of another one are not its scores."""
        identity = await self._patiently("read who the expert is", self._scores.identity)
        if identity and identity != self._identity:  # "": Redis lost it, and the scorer will say it again
            if self._identity:
                log.warning("another expert is served", extra={"was": self._identity, "is": identity})
            self._identity = identity
            self._found.clear()
            self._keys.clear()
        return bool(self._identity)

    def _key(self, wanted: Wanted) -> str:
        """The key of its score, worked out once while it is wanted."""
        known = self._keys.get(wanted.name)
        return known or score_key(self._identity, wanted.prompt.tokens, wanted.demonstration.tokens)

    def _keep(self, wanted: Wanted, score: Score) -> None:
        self._found[wanted.name] = score
        if len(self._found) > KEPT_SCORES:
            self._found.popitem(last=False)
