"""The scorer's service: demonstrations in, the expert policy's log-probs of their tokens out, each of them once."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from common.connection import Patience
from common.errors import WireError
from common.expert_scores import ExpertScores, Score, score_key
from common.metrics import ScorerMetrics
from common.process import Process
from common.settings import RunFile
from common.streams import Entry
from common.trajectory import ScoreTask
from common.wire import decode_score_task, identity
from services.generator.engine import EngineDead, EngineError
from services.generator.engine_settings import EngineSettings
from services.generator.intake import MOST_DELIVERIES, Intake
from services.generator.lifetime import StartEngine, running_engine
from services.generator.rollouts import SamplingEngine
from services.generator.scoring.expert import Expert, open_expert

TICK_S = 0.5

log = logging.getLogger(__name__)


async def serve(process: Process, start_engine: StartEngine) -> int:
    """Run a scorer until it is told to stop; its exit code. SettingsError before anything is started."""
    process.details |= {"scored": 0, "refused": 0, "waiting": 0}
    expert = await asyncio.to_thread(open_expert, process.settings)
    scores = ExpertScores(process.redis, process.keys)

    async def prepare() -> None:
        await process.delivery.prepare()
        await scores.prepare()
        await scores.identify(expert.identity)  # also to a Redis that lost it: without it nobody asks

    process.patiently = Patience(process.stop, prepare, process.beat)
    await process.patiently("prepare the score tasks", prepare)
    asked = engine_settings(process.settings, expert)
    async with running_engine(process, start_engine, asked, process.settings.expert.threads) as engine:
        await Scorer(process, scores, engine, expert.identity).run()
    return 0


class Scorer:
    """One expert model at work on the demonstrations of a run."""

    def __init__(self, process: Process, scores: ExpertScores, engine: SamplingEngine, expert: str) -> None:
        self._process = process
        self._scores = scores
        self._engine = engine
        self._expert = expert
        self._metrics = ScorerMetrics(process.registry)
        limit = process.settings.expert.max_num_seqs
        self._intake = Intake(process, scores.tasks, self._carry_out, self._metrics.reclaimed, limit=limit)

    async def run(self) -> None:
        """Serve until told to stop, then finish or give up what is in flight. Raises what makes that impossible."""
        if not self._process.stop.is_set():
            self._process.state = "running"
        await self._intake.serve(self._report(), self._engine.until_dead())

    async def _report(self) -> None:
        """Tell for ever how much waits. Work that does not move does not beat."""
        moved = -1
        while True:
            waiting = await self._process.patiently("count score tasks", self._scores.tasks.length)
            self._process.details["waiting"] = waiting
            self._metrics.waiting.set(waiting)
            progress = self._intake.finished + self._engine.statistics.tokens_generated
            if self._intake.in_flight == 0 or progress != moved:
                self._process.beat()
            moved = progress
            await asyncio.sleep(TICK_S)

    async def _carry_out(self, entry: Entry, deliveries: int) -> None:
        """Answer one task, with a score or the reason why there is none. Raises only what others would meet too."""
        try:
            task = decode_score_task(entry.payload)
        except WireError as error:
            await self._set_aside(entry, str(error))
            return
        if task.key != score_key(self._expert, task.prompt_tokens, task.tokens):
            # Asked of an expert that is no longer served: our score under that key would be wrong for ever.
            log.warning("asked of another expert", extra={"key": task.key, "expert": self._expert})
            await self._process.patiently("withdraw a task", lambda: self._scores.withdraw(entry, task.key))
            return
        if deliveries > MOST_DELIVERIES:
            score = Score(None, f"it was given out {deliveries - 1} times and no scorer outlived it")
        else:
            score = await self._score(task)
        await self._answer(entry, task.key, score)

    async def _score(self, task: ScoreTask) -> Score:
        """The score of a demonstration. Raises EngineDead."""
        tokens, longest = np.concatenate([task.prompt_tokens, task.tokens]), self._engine.max_model_len - 1
        if len(task.prompt_tokens) == 0 or len(task.tokens) == 0:
            return Score(None, "its prompt or the demonstration itself is empty")
        if len(tokens) > longest:
            return Score(None, f"it has {len(tokens)} tokens with its prompt, and the expert scores up to {longest}")
        try:
            logprobs = await self._engine.score(tokens, len(task.prompt_tokens))
        except EngineDead:
            raise
        except EngineError as error:
            return Score(None, f"the expert cannot score it: {error}")
        return Score(np.minimum(logprobs, 0.0, dtype=np.float32))  # rounding can put log 1 above 0

    async def _answer(self, entry: Entry, key: str, score: Score) -> None:
        answered = await self._process.patiently("answer a task", lambda: self._scores.answer(entry, key, score))
        if not answered:
            log.info("scored before", extra={"key": key})
            return
        result = "refused" if score.logprobs is None else "scored"
        self._process.details[result] += 1
        self._metrics.scores.labels(result).inc()
        self._metrics.tokens.inc(0 if score.logprobs is None else len(score.logprobs))
        if score.reason:
            log.warning("not scored", extra={"key": key, "reason": score.reason})

    async def _set_aside(self, entry: Entry, reason: str) -> None:
        """Answer a task that cannot be read with the reason, or quarantine it if it does not even say what it is."""
        key = identity(entry.payload)
        if key:
            await self._answer(entry, key, Score(None, reason))
        else:
            await self._process.quarantine(self._scores.tasks, entry, reason)


def engine_settings(settings: RunFile, expert: Expert) -> EngineSettings:
    """The engine that serves the expert of a run."""
    asked = settings.expert
    return EngineSettings(
        model=expert.model.path,
        dtype=expert.model.dtype,
        max_model_len=expert.model.max_model_len,
        max_num_seqs=asked.max_num_seqs,
        kv_cache_bytes=None if asked.kv_cache_mb is None else asked.kv_cache_mb << 20,
        gpu_memory_utilization=asked.gpu_memory_utilization,
        tensor_parallel_size=asked.tensor_parallel_size,
    )
