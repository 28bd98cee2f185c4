"""The generator's service: requests in, graded groups out, always with the newest weights that are whole."""

from __future__ import annotations

import asyncio
import logging
import os
import zlib
from collections.abc import Awaitable, Callable

from common.errors import WireError
from common.metrics import GeneratorMetrics
from common.process import Process
from common.settings import RunFile
from common.streams import Entry
from common.tasks import end
from common.trajectory import Purpose, Request
from common.wire import decode_request, encode_group, encode_outcome, identity
from services.generator import graders
from services.generator.answering import Answerer, RequestRefused, failed
from services.generator.engine import EngineDead, EngineError
from services.generator.engine_settings import EngineSettings
from services.generator.grading import GraderFailed, Grading
from services.generator.intake import Intake
from services.generator.pulse import Pulse
from services.generator.refresh import Refresh
from services.generator.rollouts import Rollouts, SamplingEngine
from services.generator.tokenizer import Detokenizer, open_detokenizer, require_model

GRACE_S = 3.0
CLOSE_S = 2.5
MOST_DELIVERIES = 5

log = logging.getLogger(__name__)

StartEngine = Callable[[EngineSettings], Awaitable[SamplingEngine]]


async def serve(
    process: Process, start_engine: StartEngine, open_text: Callable[..., Detokenizer] = open_detokenizer
) -> int:
    """Run a generator until it is told to stop; its exit code. SettingsError before anything is started."""
    settings = process.settings
    process.details |= {"tokens_per_s": 0.0, "running": 0, "requests": 0, "generated_tokens": 0}
    require_model(settings.model)
    await asyncio.to_thread(graders.load, settings.grader.name, settings.grader.options)
    detokenize = await asyncio.to_thread(open_text, settings.model)
    grading = Grading(settings.grader)
    try:
        engine = await _started(process, start_engine)
        try:
            await Generator(process, engine, grading, detokenize).run()
        finally:
            await _closed(process, engine)
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
        self._refresh = Refresh(process, engine, self._metrics)
        self._enforcing = asyncio.Lock()  # so that revisions are told in their order
        self._intake = Intake(process, f"{process.name}.{os.getpid()}", self._carry_out, self._metrics.reclaimed)
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
        if not self._process.stop.is_set():
            self._process.state = "running"
        intake = self._intake
        work = (intake.take(), intake.keep(), intake.reclaim(), self._refresh.follow(), self._pulse.follow())
        loops = [asyncio.ensure_future(loop) for loop in (*work, self._engine.until_dead())]
        try:
            done, _ = await asyncio.wait({intake.failed, *loops}, return_when=asyncio.FIRST_COMPLETED)
            await intake.drain(GRACE_S if self._process.stop.is_set() else 0.0)
            for loop in done:
                loop.result()
        finally:
            await end([intake.failed, *loops])

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


async def _started(process: Process, start_engine: StartEngine) -> SamplingEngine:
    """The engine, started. Does not return if the process is told to stop meanwhile."""
    threads = process.settings.generator.threads
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    starting = asyncio.ensure_future(start_engine(engine_settings(process.settings, process.name)))
    stopping = asyncio.ensure_future(process.stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        # A starting engine cannot be interrupted, and an orderly exit would wait for it: the kernel ends it with us.
        process.state = "stopped"
        await _leave(process, 0)
    return starting.result()


async def _closed(process: Process, engine: SamplingEngine) -> None:
    """Close the engine, within a limit."""
    try:
        await asyncio.wait_for(engine.close(), CLOSE_S)
    except TimeoutError:
        log.warning("the engine did not close in time", extra={"limit_s": CLOSE_S})
        process.state = "stopped" if process.stop.is_set() else "failed"
        await _leave(process, 0 if process.stop.is_set() else 1)


async def _leave(process: Process, code: int) -> None:
    """End this process now; the kernel ends the engine core and the graders with it."""
    await process.farewell()
    os._exit(code)
