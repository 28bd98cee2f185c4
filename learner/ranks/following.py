"""Following: what the ranks other than 0 do. They have no Redis and no heartbeat; they do what rank 0 tells them.

A signal to stop does not end them: rank 0 has heard it too, and needs them for its last checkpoint. torchrun, which
passed it on, ends whoever takes longer than its `--shutdown-timeout`.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, assert_never

from common import logs
from common.errors import TributaryError
from common.process import die_with_parent, parser
from common.settings import RunFile, load_run
from learner.outcome import Abandoned
from learner.ranks.alone import RankLost
from learner.ranks.directives import End, GiveState, GiveWeights, MakeStep, TakeState, decode
from learner.trainer import Trainer

_LOOK_S = 1.0

Open = Callable[[RunFile], Trainer]

log = logging.getLogger(__name__)


def follow(rank: int, open_trainer: Open, argv: list[str] | None = None) -> int:
    """Follow rank 0 until it has no more to do; the exit code."""
    arguments = parser("learner").parse_args(argv)
    die_with_parent()
    try:
        settings = load_run(arguments.run_file)
    except TributaryError:  # rank 0 says it
        return 2
    context: dict[str, Any] = {"run": settings.run.name, "process": arguments.name or "learner", "rank": rank}
    logs.configure(lambda: context, arguments.log_level)
    _heed_signals()
    # Torch works in a thread of its own: signals are heard in the main thread only, between two of its steps.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute") as executor:
        work = executor.submit(_work, settings, open_trainer)
        while True:
            with suppress(TimeoutError):
                return work.result(_LOOK_S)


def obey(trainer: Trainer) -> None:
    """Do what rank 0 tells, until it says that it is the end."""
    while True:
        directive = decode(trainer.ranks.hear())
        match directive:
            case MakeStep(live, groups, keep_evidence):
                try:
                    trainer.step(live, groups, _nothing, keep_evidence=keep_evidence)
                except Abandoned as reason:
                    log.info(str(reason))
            case GiveState():
                for tensors in trainer.tensors().values():
                    deque(tensors.values(), maxlen=0)
            case GiveWeights(dtype):
                deque(trainer.weights(dtype), maxlen=0)
            case TakeState(updates, tensors):
                trainer.restore(tensors, updates)
            case End():
                return
            case _:
                assert_never(directive)


def _work(settings: RunFile, open_trainer: Open) -> int:
    try:
        trainer = open_trainer(settings)
        log.info("started", extra={"pid": os.getpid(), "ranks": trainer.ranks.size})
        obey(trainer)
        trainer.close()  # as rank 0 does: NCCL waits for everyone there
    except RankLost as error:  # why the other one ended, it says itself, or torchrun does
        log.warning(str(error))
        return 1
    except TributaryError as error:
        log.error(str(error))
        return 1
    except Exception:
        log.exception("unexpected error")
        return 1
    log.info("ended", extra={"code": 0})
    return 0


def _heed_signals() -> None:
    """Leave it to rank 0 to end the work after a first signal."""
    heard: list[int] = []

    def on_signal(number: int, _: Any) -> None:
        if heard:
            os._exit(128 + number)
        heard.append(number)
        log.info("stopping", extra={"signal": signal.Signals(number).name})

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def _nothing() -> None:
    """Only rank 0 is told to hurry."""
