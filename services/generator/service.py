"""The generator's service: requests in, graded groups out, always with the newest weights that are whole."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable

from common.errors import WireError
from common.metrics import GeneratorMetrics
from common.process import Process
from common.settings import RunFile
from common.stores.opening import storage_to_read
from common.streams import Entry
from common.trajectory import Purpose, Request
from common.wire import decode_request, encode_group, encode_outcome, identity
from services.generator import graders
from services.generator.answering import Answer, Answerer, failed
from services.generator.draining import Draining
from services.generator.engine import EngineDead, EngineError
from services.generator.engine_settings import EngineSettings
from services.generator.feasibility import RequestRefused
from services.generator.grading import GraderFailed, Grading
from services.generator.intake import MOST_DELIVERIES, Intake
from services.generator.lifetime import StartEngine, running_engine
from services.generator.pulse import Pulse
from services.generator.refresh import Refresh
from services.generator.rollouts import Rollouts, SamplingEngine
from services.generator.tokenizer import Detokenizer, open_detokenizer, require_model
from services.generator.weight_cache import WeightCache

log = logging.getLogger(__name__)


async def serve(
    process: Process, start_engine: StartEngine, open_text: Callable[..., Detokenizer] = open_detokenizer
) -> int:
    """Run a generator until it is told to stop; its exit code. SettingsError before anything is started."""
    settings = process.settings
    process.details |= {"tokens_per_s": 0.0, "running": 0, "requests": 0, "generated_tokens": 0}
    process.details |= {"draining": False, "drained": False}
    require_model(settings.model)
    await asyncio.to_thread(graders.load, settings.grader.name, settings.grader.options)
    detokenize = await asyncio.to_thread(open_text, settings.model)
    grading = Grading(settings.grader)
    try:
        asked = engine_settings(settings, process.name)
        async with running_engine(process, start_engine, asked, settings.generator.threads) as engine:
            await Generator(process, engine, grading, detokenize).run()
    finally:
        await grading.close()
    return 0


class Generator:
    """One engine at work on the requests of a run."""

    def __init__(self, process: Process, engine: SamplingEngine, grading: Grading, detokenize: Detokenizer) -> None:
        self._process = process
        self._engine = engine
        self._metrics = GeneratorMetrics(process.registry)
        self._answerer = Answerer(process.name, engine, Rollouts(engine, grading.grade, detokenize))
        self._enforcing = asyncio.Lock()  # so that revisions are told in their order
        self._intake = Intake(
            process,
            process.delivery.requests,
            self._carry_out,
            self._metrics.reclaimed,
            limit=process.settings.generator.requests_in_flight,
        )
        self._draining = Draining(process, self._intake)
        self._refresh = Refresh(process, engine, self._metrics, open_cache(process), self._intake)
        self._pulse = Pulse(
            process,
            engine,
            self._metrics,
            in_flight=lambda: self._intake.in_flight,
            progress=lambda: self._intake.finished + grading.finished,
        )

    async def run(self) -> None:
        """Serve until told to stop, then finish or give up what is in flight. Raises what makes that impossible."""
        await self._refresh.catch_up()
        await self._draining.obey()  # before anything is taken
        if not self._process.stop.is_set():
            self._process.state = "running"
        await self._intake.serve(
            self._refresh.follow(), self._pulse.follow(), self._draining.follow(), self._engine.until_dead()
        )

    async def _carry_out(self, entry: Entry, deliveries: int) -> None:
        """Answer one request, or quarantine it. Raises only what other requests would meet as well."""
        try:
            request = decode_request(entry.payload)
        except WireError as error:
            stream, group_id = self._process.delivery.requests, identity(entry.payload)
            await self._process.quarantine(stream, entry, str(error), group_id=group_id)
            return
        if deliveries > MOST_DELIVERIES:
            await self._give_up(entry, request, f"it was given out {deliveries - 1} times and no generator outlived it")
            return
        async with self._enforcing:
            if request.revision > self._process.revision:
                await self._process.enforce(request.revision, step=self._refresh.step)
        try:
            answer = await self._answerer.answer(request)
            await self._refresh.proved.wait()  # what unproved weights sampled is given out by nobody
            group = b"" if answer.group is None else encode_group(answer.group)
            outcome = encode_outcome(answer.outcome)
        except EngineDead:
            raise
        except GraderFailed as error:
            self._metrics.grader_failures.labels(error.how.value).inc()
            await self._give_up(entry, request, str(error))
        except (EngineError, RequestRefused) as error:
            await self._give_up(entry, request, str(error))
        except Exception as error:  # what is wrong with one request must not end the others
            log.exception("unexpected error in a request", extra={"request": request.request_id})
            await self._give_up(entry, request, f"unexpected {type(error).__name__}: {error}")
        else:
            await self._emit(entry, group, outcome)
            self._count_search(answer)

    def _count_search(self, answer: Answer) -> None:
        """Count what was sampled in search of an anchor, whoever answered the request in the end."""
        if answer.search is not None:
            self._metrics.searches.labels(answer.search.value).inc()
            self._metrics.probes.inc(answer.outcome.probes)

    async def _emit(self, entry: Entry, group: bytes, outcome: bytes) -> None:
        delivery = self._process.delivery
        emitted = await self._process.patiently("emit a group", lambda: delivery.emit(entry.entry_id, group, outcome))
        if not emitted:
            self._metrics.duplicates.inc()
            log.info("answered before", extra={"entry": entry.entry_id})
        elif group:
            self._metrics.groups.inc()

    async def _give_up(self, entry: Entry, request: Request, reason: str) -> None:
        await self._process.quarantine(
            self._process.delivery.requests,
            entry,
            reason,
            group_id=request.request_id if request.purpose is Purpose.TRAIN else "",
            outcome=encode_outcome(failed(request, reason, self._engine.version)),
        )


def engine_settings(settings: RunFile, name: str) -> EngineSettings:
    """The engine that a run file asks for, for the generator called `name`: each samples with a seed of its own."""
    generator = settings.generator
    return EngineSettings(
        model=settings.model.path,
        dtype=settings.model.dtype,
        max_model_len=settings.model.max_model_len,
        max_num_seqs=generator.max_num_seqs,
        kv_cache_bytes=None if generator.kv_cache_mb is None else generator.kv_cache_mb << 20,
        gpu_memory_utilization=generator.gpu_memory_utilization,
        tensor_parallel_size=generator.tensor_parallel_size,
        seed=zlib.crc32(f"{settings.run.seed}:{name}".encode()) >> 1,
        clear_cache_on_update=generator.clear_cache_on_update,
    )


def open_cache(process: Process) -> WeightCache:
    """Where the generator of a process keeps its weights."""
    settings = process.settings
    return WeightCache(
        storage_to_read(settings), settings.weights_cache / process.name, settings.weights.cache_mb << 20
    )
