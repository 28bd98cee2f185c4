"""Grading: graders run in processes of their own, so that one that hangs or crashes costs one request and no more.

The pool is pebble's; its workers are spawned (never forked from a process that holds an engine), ignore SIGINT and are
killed by the kernel when this process dies.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import multiprocessing
import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from enum import StrEnum
from functools import lru_cache

from pebble import ProcessExpired, ProcessPool

from common.errors import TributaryError
from common.settings import GraderSettings
from services.generator.graders import Grade, Grader, load

_PR_SET_PDEATHSIG = 1
_POOLS_TRIED = 3


class Failure(StrEnum):
    """How a grader can fail."""

    HUNG = "hung"
    CRASHED = "crashed"
    RAISED = "raised"


class GraderFailed(TributaryError):
    """A response could not be graded."""

    def __init__(self, how: Failure, sentence: str) -> None:
        self.how = how
        super().__init__(sentence)


class Grading:
    """A pool of grader processes. `finished` counts the responses graded so far."""

    def __init__(self, settings: GraderSettings) -> None:
        self.finished = 0
        self._settings = settings
        self._call = (settings.name, json.dumps(settings.options, sort_keys=True))
        self._pool = self._open()

    def _open(self) -> ProcessPool:
        pool = ProcessPool(
            max_workers=self._settings.workers,
            initializer=_prepare,
            initargs=(os.getpid(), *self._call),
            context=multiprocessing.get_context("spawn"),
        )
        assert pool.active  # asking starts the workers: importing a grader takes a second that no request should wait
        return pool

    async def grade(self, response: str, answer: str) -> Grade:
        """The grade of a response. GraderFailed if the grader hung, crashed or raised; others are not affected."""
        for _ in range(_POOLS_TRIED):
            pool = self._pool
            try:
                verdict = await self._ask(pool, response, answer)
            except TimeoutError:
                limit_s = self._settings.timeout_s
                raise GraderFailed(Failure.HUNG, f"the grader hung for {limit_s:g} s and was killed") from None
            except ProcessExpired as error:
                raise GraderFailed(Failure.CRASHED, f"the grader crashed (exit code {error.exitcode})") from error
            except BrokenProcessPool:
                await self._renew(pool)
                continue
            self.finished += 1
            if isinstance(verdict, str):
                raise GraderFailed(Failure.RAISED, f"the grader raised {verdict}")
            return verdict
        raise GraderFailed(Failure.CRASHED, f"{_POOLS_TRIED} pools of grader processes died, one after the other")

    async def _ask(self, pool: ProcessPool, response: str, answer: str) -> Grade | str:
        try:
            future = pool.schedule(_verdict, args=(*self._call, response, answer), timeout=self._settings.timeout_s)
        except RuntimeError as error:  # pebble's word for a pool that broke before
            raise BrokenProcessPool from error
        return await asyncio.wrap_future(future)

    async def _renew(self, broken: ProcessPool) -> None:
        """Replace a pool that lost a worker while it was idle: pebble gives up a pool then."""
        if self._pool is broken:
            self._pool = self._open()
            await asyncio.to_thread(_discard, broken)

    async def close(self) -> None:
        """End the grader processes, working or not."""
        await asyncio.to_thread(_discard, self._pool)


def _discard(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _prepare(parent: int, name: str, options: str) -> None:
    """Make a new worker ready: it dies with its parent, dies at once when told to, and has its grader imported."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _grader(name, options)


@lru_cache(maxsize=1)
def _grader(name: str, options: str) -> Grader:
    return load(name, json.loads(options))


def _verdict(name: str, options: str, response: str, answer: str) -> Grade | str:
    """In a worker: the grade, or what the grader raised instead, as text that any process can read."""
    try:
        return _grader(name, options)(response, answer)
    except BaseException as error:  # noqa: BLE001 - the edge of its process: a grader's sys.exit() must not end ours
        return f"{type(error).__name__}: {error}"
