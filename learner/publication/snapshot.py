"""Snapshots: the weights at a step boundary, copied so that training can go on while they are published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.weights import Canary
from learner.forward.model import named_weights, published_as, published_weights
from learner.publication.canary import Singer

Source = Callable[[torch.dtype], Iterable[tuple[str, Tensor]]]
"""Weights one by one, as `named_weights` names them; those that are gathered first, as that type."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where weights come from: the step after which they were taken, and the revision then in force."""

    step: int
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The weights of a version. tensors: as a Hugging Face checkpoint names them, contiguous, on the learner's device.

    updates: optimiser updates since the snapshot before; None if it repeats weights that had a version before. sing:
    computes its canary, in a thread that may take the time. taken: on a GPU, when the copy is there. seconds: how long
    the step waited; on a GPU the copy itself is only queued by then, and takes its place before the next step.
    """

    version: int
    origin: Origin
    tensors: Mapping[str, Tensor]
    updates: int | None = 0
    sing: Callable[[], Canary] | None = None
    taken: torch.cuda.Event | None = None
    seconds: float = 0.0


class Snapshots:
    """Takes snapshots of one model; floating tensors are copied as `dtype`.

    The copies stay on the model's device, where the next ones will be compared with them, and are used again: what was
    published last, what is being published, and what waits are three sets at most, if what waits is given back before
    the next one is taken.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        canary: Sequence[Sequence[int]] = (),
        *,
        source: Source | None = None,
        device: torch.device | None = None,
    ) -> None:
        """source: where the weights come from if they are not in `model`. device: where copies lie; the model's."""
        self._model = model
        self._dtype = dtype
        self._source: Source = source or (lambda dtype: named_weights(model).items())
        self._device = device or model.device
        self._singer = Singer(model, canary) if canary else None
        self._used: dict[int, dict[str, Tensor]] = {}
        self._free: list[dict[str, Tensor]] = []

    def take(self, version: int, origin: Origin, updates: int | None = 0) -> Snapshot:
        """The weights as they are now. Called between two steps, by the thread that takes them."""
        copies = self._free.pop() if self._free else {}
        for name, weight in self._source(self._dtype):
            if name not in copies:
                copies[name] = torch.empty(weight.shape, dtype=published_as(weight, self._dtype), device=self._device)
            copies[name].copy_(weight)
        self._used[version] = copies
        singer = self._singer
        tensors = published_weights(self._model, copies)
        sing = partial(singer.sing, copies) if singer else None
        return Snapshot(version, origin, tensors, updates, sing, _now(self._device))

    def give_back(self, snapshot: Snapshot) -> None:
        """Nobody reads this snapshot any more: its memory is for the next one."""
        copies = self._used.pop(snapshot.version, None)
        if copies is not None:
            self._free.append(copies)


def _now(device: torch.device) -> torch.cuda.Event | None:
    """When a GPU will have done what it was told to until now; None on a CPU, which has."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
