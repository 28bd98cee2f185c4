"""The state copy: the trainer's tensors as they are between two steps, in host memory, so that training can go on."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.trainer import TensorFiles


class StateCopy:
    """Takes copies into memory of its own, which every copy uses again: a copy is to be read before the next is taken.

    From a GPU all tensors come through page-locked memory side by side, and are waited for once.
    """

    def __init__(self) -> None:
        self._places: dict[str, dict[str, Tensor]] = {}

    def take(self, files: TensorFiles) -> TensorFiles:
        """`files` as they are now. Each tensor is asked for once and may vanish after that."""
        had, self._places = self._places, {}  # what the state does not hold any more gives its memory back
        streams: dict[torch.device, torch.cuda.Stream] = {}
        for file, tensors in files.items():
            places = self._places[file] = {}
            for name, tensor in tensors.items():
                place = _fitting(had.get(file, {}).get(name), tensor)
                place.copy_(tensor.detach(), non_blocking=True)
                places[name] = place
                if tensor.is_cuda:
                    streams[tensor.device] = torch.cuda.current_stream(tensor.device)
        for stream in streams.values():
            stream.synchronize()
        return self._places


def _fitting(place: Tensor | None, tensor: Tensor) -> Tensor:
    """Host memory for a tensor: `place` if it is of its kind, else new memory."""
    if place is not None and place.shape == tensor.shape and place.dtype == tensor.dtype:
        return place
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
