"""The rehearsal buffer: demonstrations of prompts that the policy could not solve, waiting to be imitated (ReLIFT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.trajectory import Group
from common.wire import decode_group, encode_group
from learner.terms import Rehearsal


class RehearsalBuffer:
    """One demonstration per prompt, in the order in which the prompts failed; a bounded number of them.

    Entries are kept as they travel: bytes that decode to a group of one demonstration. owed: a rehearsal was due after
    the last step and was cut off by a stop.
    """

    def __init__(self) -> None:
        self.owed = False
        self._entries: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def collect(self, groups: Sequence[Group], rehearsal: Rehearsal) -> None:
        """Take what `groups` leave to be imitated. A prompt that waits already keeps its place; the oldest leave."""
        for group in groups:
            demonstration = rehearsal.collects(group)
            if demonstration is not None and group.prompt_id not in self._entries:
                alone = Group(group.group_id, group.prompt_id, group.revision, group.generator, (demonstration,))
                self._entries[group.prompt_id] = encode_group(alone)
        while len(self._entries) > rehearsal.limit:
            del self._entries[next(iter(self._entries))]

    def oldest(self, count: int) -> list[Group]:
        """The `count` entries that have waited longest, the oldest first; they stay."""
        return [decode_group(payload) for payload, _ in zip(self._entries.values(), range(count), strict=False)]

    def remove(self, groups: Sequence[Group]) -> None:
        """Let entries go."""
        for group in groups:
            self._entries.pop(group.prompt_id, None)

    def tensors(self) -> dict[str, Tensor]:
        """Its content for a checkpoint: entries as one array of bytes, and their lengths. Nothing if it is empty."""
        if not self._entries:
            return {}
        lengths = [len(payload) for payload in self._entries.values()]
        return {
            "entries": _tensor(np.frombuffer(b"".join(self._entries.values()), dtype=np.uint8).copy()),
            "lengths": torch.tensor(lengths, dtype=torch.int64),
            "owed": torch.tensor([self.owed], dtype=torch.uint8),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a content that `tensors` returned. ValueError if it is not one, WireError if an entry is not a group."""
        self._entries, self.owed = {}, False
        if not tensors:
            return
        lengths = _numbers(tensors["lengths"])
        data = tensors["entries"].numpy().tobytes()  # pyright: ignore[reportUnknownMemberType]
        ends = np.cumsum(lengths)
        if sum(lengths) != len(data):
            raise ValueError(f"the rehearsal buffer holds {len(data)} bytes instead of {sum(lengths)}")
        for start, end in zip(chain([0], ends), ends, strict=False):
            payload = data[int(start) : int(end)]
            self._entries[decode_group(payload).prompt_id] = payload
        self.owed = bool(tensors["owed"].item())


def _numbers(tensor: Tensor) -> list[int]:
    return [int(number) for number in tensor]


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]
