"""The memory that a micro-batch may take: as configured, or less once that did not fit; remembered over restarts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import TributaryError
from common.events import EventKind
from common.metrics import LearnerMetrics
from common.process import Process
from common.settings import LearnerSettings
from learner.storage.durable import sync

_SIGNS = ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_FILE = "memory.json"

log = logging.getLogger(__name__)


class OutOfMemory(TributaryError):
    """What has to be computed does not fit into memory, and cutting it smaller is not the way out."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a micro-batch is: its trajectories, and the tokens that its forward computes, padding included."""

    trajectories: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """Memory ran out, and what was done about it. before, after: tokens of one micro-batch at most."""

    at: Extent
    before: int
    after: int

    @property
    def text(self) -> str:
        """It, in words."""
        return (
            f"memory ran out in a micro-batch of {self.at.tokens} tokens: the step is made again with at most "
            f"{self.after} tokens in one instead of {self.before}, and so are those that follow; to try more again, "
            "set learner.micro_batch_tokens to another value"
        )


class Budget:
    """How many tokens one micro-batch may have. What did not fit is not tried again, not even after a restart.

    asked: the settings that the remembered budget belongs to; once one of them is another, it is forgotten. retries:
    False where a step cannot be made again in this process, because others take part in it: then what is remembered is
    for the next start, and so is the telling of it.
    """

    def __init__(self, asked: Mapping[str, Any], directory: Path | None = None, *, retries: bool = True) -> None:
        self.retries = retries
        self._asked = dict(asked)
        self._path = None if directory is None else directory / _FILE
        configured = int(asked["micro_batch_tokens"])
        remembered, self._news = self._remembered()
        self.tokens = min(configured, remembered or configured)
        if self.tokens < configured:
            text = "micro-batches stay smaller than configured: memory ran out before"
            log.warning(text, extra={"tokens": self.tokens, "configured": configured})

    @classmethod
    def of(cls, settings: LearnerSettings, directory: Path, *, retries: bool = True) -> Budget:
        """The budget of a learner whose checkpoints lie in `directory`."""
        names = {"micro_batch_tokens", "layout", "activation_checkpointing", "compile", "head", "processes"}
        return cls(settings.model_dump(mode="json", include=names), directory, retries=retries)

    def lower(self, at: Extent) -> None:
        """Halve the budget until a micro-batch of this extent is cut smaller. OutOfMemory if it cannot be."""
        if not at.trajectories:  # one that only keeps step with those of other ranks
            raise OutOfMemory(
                "memory does not suffice for this GPU's share of the model, whatever the micro-batch: share it among "
                "more GPUs (learner.processes), or choose a smaller one"
            )
        if at.trajectories < 2 or self.tokens == 1:
            raise OutOfMemory(
                f"memory does not suffice for one trajectory of {at.tokens} tokens alone: set "
                "learner.activation_checkpointing = true, share the model among more GPUs (learner.processes), or "
                "begin a run with a smaller sampling.max_response_tokens"
            )
        before = self.tokens
        self.tokens = max(1, before // 2)
        while self.tokens >= at.tokens > 1:
            self.tokens //= 2
        shortage = Shortage(at, before, self.tokens)
        log.warning(shortage.text)
        if not self.retries:
            self._remember(untold=[*self._remembered()[1], shortage])
            raise OutOfMemory(f"{shortage.text}; the processes begin again from their checkpoint")
        self._remember()
        self._news.append(shortage)

    def news(self) -> list[Shortage]:
        """The shortages since this was asked last, also those that ended the process before this one."""
        found, self._news = self._news, []
        if found:
            self._remember()
        return found

    def _remembered(self) -> tuple[int | None, list[Shortage]]:
        """What is remembered for these settings, and the shortages that nobody was told of; None if nothing is."""
        if self._path is None:
            return None, []
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document["asked"] != self._asked:
                return None, []
            untold = [Shortage(Extent(*at), before, after) for *at, before, after in document.get("untold", [])]
            return max(1, int(document["tokens"])), untold
        except FileNotFoundError:
            return None, []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(f"{self._path} cannot be read, so it is not known what fits into memory: {error}")
            return None, []

    def _remember(self, untold: Iterable[Shortage] = ()) -> None:
        """Replace the file. Where the disk does not take it, the next start has to find out again."""
        if self._path is None:
            return
        rows = [(s.at.trajectories, s.at.tokens, s.before, s.after) for s in untold]
        document = {"asked": self._asked, "tokens": self.tokens, "untold": rows}
        unfinished = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(document) + "\n", encoding="utf-8")
            sync(unfinished)
            unfinished.replace(self._path)
            sync(self._path.parent)
        except OSError as error:
            log.warning(f"the smaller micro-batch is not remembered: {self._path} cannot be written: {error}")
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)


async def tell(shortages: Iterable[Shortage], process: Process, metrics: LearnerMetrics) -> None:
    """Count shortages, and say them to the operators."""
    for shortage in shortages:
        metrics.shortages.inc()
        await process.tell(EventKind.NOTICE, {"text": shortage.text})


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out: a GPU's, or the host's as torch and numpy say it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
