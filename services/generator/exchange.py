"""The exchange inside the engine core: it stops, takes new weights, is labelled with their version, and goes on.

One call does all of it. Were each a call of its own, sampling would stand still while messages pass between two
processes, which on a busy machine takes longer than everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

METHOD = "exchange_weights"
"""What the core calls it (see services.generator.worker)."""


class Core(Protocol):
    """What is needed of vLLM's EngineCoreProc."""

    model_executor: Any

    def pause_scheduler(self, mode: Any, clear_cache: bool) -> Future[Any] | None:
        """Stop; what comes back is done when no step is in flight any more. None: that is so already."""
        ...

    def _reset_caches(self) -> None:
        """Have the attention of all that is running computed again."""
        ...

    def set_weight_version(self, weight_version: str) -> None:
        """Label what is sampled from now on."""
        ...

    def resume_scheduler(self) -> None:
        """Go on."""
        ...


def exchange_weights(
    core: Core, payload: dict[str, Any], version: str, clear_cache: bool, wake: Callable[[], None]
) -> Future[float]:
    """Serve other weights; for how long the core stood still, in seconds. It stays paused if that fails.

    payload: see services.generator.weight_update. clear_cache: as `EngineSettings.clear_cache_on_update`. wake: has the
    core look whether it has work; one that stood still waits for messages.
    """
    done: Future[float] = Future()

    def exchange(paused: Future[Any] | None) -> None:
        began_s = time.perf_counter()
        try:
            if paused is not None:
                paused.result()
            if clear_cache:
                core._reset_caches()  # pyright: ignore[reportPrivateUsage]
            core.model_executor.collective_rpc("replace_weights", args=(payload,))
            core.set_weight_version(version)
            core.resume_scheduler()
            wake()
        except Exception as error:  # noqa: BLE001 - the edge of a call from another process, which gets to know
            done.set_exception(error)
        else:
            done.set_result(time.perf_counter() - began_s)

    paused = core.pause_scheduler("keep", False)
    if paused is None:
        exchange(None)
    else:
        paused.add_done_callback(exchange)
    return done
