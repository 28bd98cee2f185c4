"""Demonstrations whose expert policy is served: scores are asked for ahead of need, and waited for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from common.connection import Patience
from common.expert_scores import ExpertScores, Score, score_key
from common.trajectory import ScoreTask
from services.curriculum.prompts import Prepared, Prompt

ASK_AGAIN_S = 30.0
KEPT_SCORES = 4096


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
    """The scores known here, and what was asked for. The run's scores themselves are kept in Redis by their content."""

    def __init__(self, scores: ExpertScores, patiently: Patience, clock_s: Callable[[], float]) -> None:
        self._scores = scores
        self._patiently = patiently
        self._clock_s = clock_s
        self._found: OrderedDict[tuple[str, int], Score] = OrderedDict()
        self._asked_s: dict[str, float] = {}
        self._keys: dict[tuple[str, int], str] = {}
        self._identity = ""
        self.waiting = 0

    def score(self, wanted: Wanted) -> Score | None:
        """The score of a demonstration; None while there is none."""
        return self._found.get(wanted.name)

    async def follow(self, wanted: Iterable[Wanted]) -> None:
        """Take in the scores that are there, and ask for those that are not, in order. waiting: how many those are.

        A task that a scorer gave back is asked for anew; what is on its way already is passed over by the stream.
        """
        missing = [w for w in wanted if w.name not in self._found]
        self.waiting = len(missing)
        if not missing or not await self._expert_is_known():
            return
        keys = [self._key(w) for w in missing]
        known = await self._patiently("read expert scores", lambda: self._scores.known(keys))
        unknown: list[ScoreTask] = []
        for item, key in zip(missing, keys, strict=True):
            if key in known:
                self._keep(item, key, known[key])
            elif self._clock_s() - self._asked_s.get(key, float("-inf")) >= ASK_AGAIN_S:
                unknown.append(ScoreTask(key, item.prompt.tokens, item.demonstration.tokens))
        await self._ask(unknown)
        self.waiting = len(missing) - len(known)

    async def _ask(self, tasks: Sequence[ScoreTask]) -> None:
        if tasks:
            await self._patiently("ask for expert scores", lambda: self._scores.ask(tasks))
            self._asked_s |= {task.key: self._clock_s() for task in tasks}

    async def _expert_is_known(self) -> bool:
        """Whether a scorer has said who the expert is: the scores of another one are not its scores."""
        self._identity = self._identity or await self._patiently("read who the expert is", self._scores.identity)
        return bool(self._identity)

    def _key(self, wanted: Wanted) -> str:
        key = self._keys.get(wanted.name)
        if key is None:
            key = score_key(self._identity, wanted.prompt.tokens, wanted.demonstration.tokens)
            self._keys[wanted.name] = key
        return key

    def _keep(self, wanted: Wanted, key: str, score: Score) -> None:
        self._found[wanted.name] = score
        self._asked_s.pop(key, None)
        self._keys.pop(wanted.name, None)
        if len(self._found) > KEPT_SCORES:
            self._found.popitem(last=False)
