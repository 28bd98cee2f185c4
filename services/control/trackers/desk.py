"""A desk: a thread of its own for one tracker, so that a slow disk or a silent network holds up nobody else.

It is a daemon: a call that never returns does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Desk:
    """Does calls in its own thread, one after the other."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def ask(self, call: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Have a call done after those that were asked for before; its result, or what it raised."""
        promise: Future[_Result] = Future()
        self._calls.put((call, promise))
        return asyncio.wrap_future(promise)

    def close(self) -> None:
        """End the thread after the calls that were asked for."""
        self._calls.put(None)

    def _work(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, promise = asked
            if not promise.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - handed over whole to whoever asked
                promise.set_exception(error)
            else:
                promise.set_result(result)
