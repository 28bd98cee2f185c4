"""The inference engine of a generator: samples the policy, scores sequences, and takes new weights in flight.

A thin owner of vLLM's AsyncLLM (its core is a child process) that keeps four promises vLLM leaves to its caller:
log-probs are the behaviour policy's own; every token knows the weight version that sampled it; weights change only
while the engine is paused, and it resumes only with a complete set; no control call waits for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from common.errors import TributaryError, WeightsError
from common.trajectory import Finish, Logprobs, Tokens, VersionSpan
from services.generator.checkpoint_layout import CheckpointLayout
from services.generator.engine_settings import EngineSettings
from services.generator.exchange import METHOD
from services.generator.weight_update import AnyUpdate

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import AsyncMPClient

    from services.generator.engine_gauges import EngineGauges

MIN_TEMPERATURE = 0.01
_LOOK_S = 0.005
_USUAL, _URGENT = 0, -1
_CORE_FAREWELL_S = 1.0
"""A core that is told to end has nothing to save; after this it is killed."""

_Result = TypeVar("_Result")


class EngineError(TributaryError):
    """One request cannot be served; others are not affected."""


class EngineDead(EngineError):
    """The engine core is gone; nothing will be served by this process again."""


class WeightUpdateFailed(EngineError):
    """A weight update was refused or broke. `Engine.healthy` tells the two apart: a refused one changed nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled response.

    tokens [R], its EOS token included when it stopped (the policy chose it, so it is trained on). logprobs [R]: log of
    the probability with which each was sampled, at the temperature used. versions: spans over the response.
    """

    tokens: Tokens
    logprobs: Logprobs
    versions: tuple[VersionSpan, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What an engine is doing: sequences running and waiting, tokens generated and preemptions since it started."""

    running: int
    waiting: int
    tokens_generated: int
    preemptions: int
    kv_cache_usage: float


class Engine:
    """A running engine. Safe for many concurrent `sample` and `score` calls; updates exclude each other."""

    def __init__(self, settings: EngineSettings, llm: AsyncLLM, home: ThreadPoolExecutor) -> None:
        """Use `Engine.start`. home: the thread that created the core (see `start`)."""
        self.version = settings.version
        self.healthy = True
        self._settings = settings
        self._llm = llm
        self._home = home
        self._updating = asyncio.Lock()
        self._changes = 0
        self._is_replacing = False
        self._scores = itertools.count()
        self._closing = False
        self._layout: CheckpointLayout | None = None
        self._vocabulary = llm.model_config.get_vocab_size()
        self._max_model_len: int = llm.model_config.max_model_len

    @classmethod
    async def start(cls, settings: EngineSettings) -> Engine:
        """Start an engine and return once it has sampled a token. Raises EngineError if it cannot.

        The core is killed by the kernel when the *thread* that created it ends, so one thread is kept for that, and the
        event loop stays free meanwhile.
        """
        home = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-home")
        in_home = partial(asyncio.get_running_loop().run_in_executor, home)
        try:
            # Two calls: an error kept since some import would keep the frames below it, and with them the engine.
            await in_home(settings.import_vllm)
            llm = await in_home(settings.create)
        except BaseException as error:
            home.shutdown(wait=False)
            if isinstance(error, (RuntimeError, ValueError, OSError)):
                raise EngineError(f"the engine did not start with {settings}: {error}") from error
            raise
        engine = cls(settings, llm, home)
        try:
            engine._layout = await asyncio.to_thread(settings.layout, tied=engine._tied)
            await engine._control("labelling the first weights", llm.update_weight_version(str(settings.version)))
            await engine.sample([0], n=1, temperature=1.0, max_tokens=1, request_id="first-token")
        except BaseException:
            await engine.close()
            raise
        return engine

    async def sample(
        self, prompt_tokens: Tokens | list[int], *, n: int, temperature: float, max_tokens: int, request_id: str
    ) -> list[Completion]:
        """Sample n responses to one prompt, which is prefilled once.

        There is no top-p, top-k or min-p: they renormalise and bias the importance ratio. temperature 0 is greedy, for
        evaluation: its log-probs are those at temperature 1. A sequence that reaches the model's length limit ends with
        Finish.LENGTH like one that reaches max_tokens. Cancelling the call aborts its sequences, by request_id: it has
        to be unique among the running ones.
        """
        if n < 1 or max_tokens < 1 or not (temperature == 0.0 or temperature >= MIN_TEMPERATURE):
            raise EngineError(
                f"cannot sample n={n}, max_tokens={max_tokens}, temperature={temperature}: n and max_tokens start at "
                f"1, temperature is 0 (greedy) or at least {MIN_TEMPERATURE}"
            )
        output = await self._generate(prompt_tokens, _sampling(n, temperature, max_tokens), request_id)
        return [_completion(completion, request_id) for completion in output.outputs]

    async def score(self, tokens: Tokens | list[int], start: int, *, urgent: bool = False) -> Logprobs:
        """Return log π(tokens[t] | tokens[:t]) for t in [start, T) at temperature 1, all under one weight version.

        start ≥ 1: nothing precedes the first token. urgent: before all that waits. A score that an update interrupts is
        taken again.
        """
        if not 1 <= start <= len(tokens):
            raise EngineError(f"cannot score from {start}: it has to be within 1..{len(tokens)}, the sequence's length")
        while True:
            begun = self._changes
            output = await self._generate(
                tokens, _scoring(), f"score-{next(self._scores)}", _URGENT if urgent else _USUAL
            )
            if begun == self._changes and not self._is_replacing:
                break
        logprobs_T = _logprobs(output.prompt_logprobs, "score")  # T - 1 entries: nothing precedes the first token
        if len(logprobs_T) != len(tokens) - 1:
            raise EngineError(f"a score of {len(tokens)} tokens came back with {len(logprobs_T)} log-probs")
        return logprobs_T[start - 1 :]

    async def apply(self, update: AnyUpdate) -> float:
        """Serve other weights, in flight. Running sequences keep their tokens and go on under the new ones.

        What can be prepared is, while sampling goes on. Returns for how long it then stood still, in seconds: from when
        the core had stopped until it went on. Raises WeightUpdateFailed. A file that does not hold this model's weights
        is refused before anything changes. A failure after that leaves the engine paused and `healthy` False until an
        update completes; such a one has to be complete (`WeightUpdate.changed` None).
        """
        async with self._updating:
            await asyncio.to_thread(self._require_layout, update)
            if not self.healthy and update.changed is not None:
                raise WeightUpdateFailed(f"version {update.version}: the engine holds mixed weights: load all of them")
            if update.changed is not None:
                await self._prepare(update)
            return await self._replace(update)

    async def _prepare(self, update: AnyUpdate) -> None:
        """Have the workers read, convert and pack beside their work what the pause would otherwise have to wait for."""
        what, llm = f"preparing version {update.version}", self._llm
        await self._control(what, llm.collective_rpc("prepare_weights", args=(update.payload(),)))
        deadline_s = time.monotonic() + self._settings.control_timeout_s
        while not all(await self._control(what, llm.collective_rpc("weights_prepared"))):
            if time.monotonic() > deadline_s:
                raise WeightUpdateFailed(f"{what} took longer than {self._settings.control_timeout_s} s")
            await asyncio.sleep(_LOOK_S)

    async def _replace(self, update: AnyUpdate) -> float:
        complete, self._is_replacing = False, True
        self._changes += 1
        try:
            if self._settings.clear_cache_on_update:
                await self._llm.renderer.clear_mm_cache_async()
            one = self._settings.tensor_parallel_size == 1  # the worker lives in the core
            pause_s = await (self._exchange(update) if one else self._exchange_step_by_step(update))
            self._changes += 1  # what came between the two may have met both weights
            complete = True
        finally:
            self.healthy, self._is_replacing = complete, False
        return pause_s

    async def _exchange(self, update: AnyUpdate) -> float:
        """The whole of it as one call of the core: see services.generator.exchange."""
        version, clear = update.version, self._settings.clear_cache_on_update
        call = self._core.call_utility_async(METHOD, update.payload(), str(version), clear)
        pause_s: float = await self._control(f"loading version {version}", call, update.needs_s)
        self.version = version
        return pause_s

    async def _exchange_step_by_step(self, update: AnyUpdate) -> float:
        """The same by vLLM's own calls: a core without a worker in it does not know ours."""
        version, clear = update.version, self._settings.clear_cache_on_update
        # Not AsyncLLM.pause_generation, which sleeps for 20 ms: outputs on their way know their version anyway.
        pause = self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=clear)
        await self._control(f"pausing for version {version}", pause)
        began_s = time.perf_counter()
        load = self._llm.collective_rpc("replace_weights", args=(update.payload(),))
        await self._control(f"loading version {version}", load, update.needs_s)
        self.version = version
        # At once: the core takes them in the order in which they are sent.
        go_on = asyncio.gather(self._llm.update_weight_version(str(version)), self._llm.resume_generation())
        await self._control(f"resuming with version {version}", go_on)
        return time.perf_counter() - began_s

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus response, in tokens."""
        return self._max_model_len

    @property
    def statistics(self) -> EngineStatistics:
        """The engine's counts after its latest step."""
        manager = self._llm.logger_manager
        assert manager is not None  # EngineSettings.create adds our gauges, which makes one
        gauges = cast("EngineGauges", manager.stat_loggers[0])
        return EngineStatistics(
            gauges.running, gauges.waiting, gauges.tokens_generated, gauges.preemptions, gauges.kv_cache_usage
        )

    async def until_dead(self) -> None:
        """Return when `close` is called; raise EngineDead as soon as the engine core is gone."""
        handler = self._llm.output_handler
        assert handler is not None  # runs since the first token
        await asyncio.wait({handler})
        if not self._closing:
            raise EngineDead("the engine core ended unexpectedly: restart this generator")

    async def close(self) -> None:
        """Stop the engine core. Requests in flight fail."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._closing:
            return
        self._closing = True
        if self._llm.output_handler is not None:  # else it reports the core's planned end as a failure
            self._llm.output_handler.cancel()
        self._llm.output_processor.propagate_error(EngineDeadError())
        await asyncio.to_thread(self._llm.shutdown, _CORE_FAREWELL_S)
        await asyncio.to_thread(self._home.shutdown)
        self._core.resources.ctx.destroy(linger=0)  # vLLM leaves its sockets' context

    @property
    def _core(self) -> AsyncMPClient:
        return cast("AsyncMPClient", self._llm.engine_core)

    @property
    def _tied(self) -> bool:
        return bool(getattr(self._llm.model_config.hf_text_config, "tie_word_embeddings", False))

    def _require_layout(self, update: AnyUpdate) -> None:
        try:
            layout = update.layout(tied=self._tied)
            if self._layout is not None:
                self._layout.require_same(layout, update.source)
        except WeightsError as error:
            raise WeightUpdateFailed(
                f"version {update.version} is refused, version {self.version} stays: {error}"
            ) from error
        self._layout = self._layout or layout

    async def _generate(
        self, tokens: Tokens | list[int], params: SamplingParams, request_id: str, priority: int = _USUAL
    ) -> RequestOutput:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        # The version alone would not do: one that is loaded once more was loaded wrongly before.
        prompt = tokens_input(self._checked(tokens), cache_salt=f"{self.version}.{self._changes}")
        final = None
        try:
            async for output in self._llm.generate(prompt, params, request_id, priority=priority):
                final = output
        except asyncio.CancelledError:
            await self._llm.abort(request_id)  # a cancellation while it was being added finds nothing to abort itself
            raise
        except EngineDeadError as error:
            raise EngineDead("the engine core is gone: restart this generator") from error
        except (VLLMClientError, EngineGenerateError, ValueError) as error:
            raise EngineError(f"request {request_id} failed: {error}") from error
        if final is None or not final.finished:
            raise EngineError(f"request {request_id} ended without a result")
        return final

    def _checked(self, tokens: Tokens | list[int]) -> list[int]:
        """The tokens as vLLM takes them. An id outside the vocabulary can kill the core and every request in it."""
        tokens_T = np.asarray(tokens, dtype=np.int64)
        if tokens_T.ndim != 1 or not 1 <= len(tokens_T) < self._max_model_len:
            raise EngineError(
                f"a prompt has 1..{self._max_model_len - 1} tokens, not an array of shape {tokens_T.shape}"
            )
        if tokens_T.min() < 0 or tokens_T.max() >= self._vocabulary:
            raise EngineError(
                f"token ids {tokens_T.min()}..{tokens_T.max()} do not fit a vocabulary of {self._vocabulary}: was the "
                "prompt tokenized for another model?"
            )
        return tokens_T.tolist()

    async def _control(self, what: str, call: Awaitable[_Result], more_s: float = 0.0) -> _Result:
        """Await a control call, but neither for ever (`more_s` beyond the usual limit) nor beyond the core's death.

        Raises EngineDead, or WeightUpdateFailed naming `what`.
        """
        limit_s = self._settings.control_timeout_s + more_s
        task = asyncio.ensure_future(call)
        watched: set[asyncio.Future[Any]] = {task}
        if self._llm.output_handler is not None:
            watched.add(self._llm.output_handler)
        try:
            await asyncio.wait(watched, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        except Exception as error:  # vLLM reports every failure inside the core as a bare Exception
            if self._llm.errored:
                raise EngineDead(f"the engine core died while {what}: restart this generator") from error
            raise WeightUpdateFailed(f"{what} failed: {error}") from error
        finally:
            task.cancel()
        if self._llm.errored:
            raise EngineDead(f"the engine core died while {what}: restart this generator")
        raise WeightUpdateFailed(f"{what} took longer than {limit_s} s")


def _sampling(n: int, temperature: float, max_tokens: int) -> SamplingParams:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        n=n,
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        max_tokens=max_tokens,
        logprobs=0,  # the sampled token's alone
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,  # with anything else some of n > 1 get lost
    )


def _scoring() -> SamplingParams:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,  # the least that vLLM takes
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: CompletionOutput, request_id: str) -> Completion:
    if output.finish_reason not in (Finish.STOP, Finish.LENGTH):
        raise EngineError(f"request {request_id} was ended by the engine: {output.finish_reason}")
    tokens_R = np.asarray(output.token_ids, dtype=np.int32)
    logprobs_R = _logprobs(output.logprobs, request_id)
    spans = tuple(VersionSpan(int(span.version), span.start, span.end) for span in output.weight_versions or ())
    if len(logprobs_R) != len(tokens_R) or not spans or spans[-1].end != len(tokens_R):
        raise EngineError(
            f"request {request_id}: {len(tokens_R)} tokens, {len(logprobs_R)} log-probs, versions {spans}"
        )
    return Completion(tokens_R, logprobs_R, spans, Finish(output.finish_reason))


def _logprobs(container: object, request_id: str) -> Logprobs:
    from vllm.logprobs import FlatLogprobs

    assert isinstance(container, FlatLogprobs)  # what flat_logprobs=True gives: one entry a position
    logprobs_T = np.asarray(container.logprobs, dtype=np.float32)
    if not np.isfinite(logprobs_T).all():
        bad = np.flatnonzero(~np.isfinite(logprobs_T))
        raise EngineError(f"request {request_id}: {len(bad)} log-probs are not finite, the first at position {bad[0]}")
    return logprobs_T
