"""How fast the codec is: bytes of model a second; on a GPU for 1.5 billion parameters, on a CPU for a part of them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from common.deltas import Patch, read_patches, write_delta
from common.digests import digest
from learner.changes import changes, host_patterns, layout_of

SHARES = (0.001, 0.013, 0.05, 0.085, 0.42, 1.0)


def shapes(device: str) -> list[tuple[int, ...]]:
    """The matrices of Qwen2.5-1.5B; on a CPU four of its 28 layers."""
    hidden, inner, keys = 1536, 8960, 256
    layer = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    layer += [(inner, hidden), (inner, hidden), (hidden, inner), (hidden,), (hidden,)]
    return layer * 4 if device == "cpu" else [(151_936, hidden), *layer * 28]


def measure(device: str) -> Iterator[str]:
    """Lines of a table. On a CPU times are those that one thread works; on a GPU those on the clock."""
    clock: Callable[[], float] = time.thread_time if device == "cpu" else time.perf_counter
    torch.manual_seed(0)
    base = [torch.randn(shape, device=device).mul_(0.02).bfloat16() for shape in shapes(device)]
    full = sum(tensor.numel() * 2 for tensor in base)
    yield f"codec, {device}: {full / 1e9:.2f} GB of bfloat16 weights in {len(base)} tensors; GB of model a second"
    yield "    changed   smaller   compare    encode      both    decode     apply    digest"
    for share in SHARES:
        new = [_changed(tensor, share) for tensor in base]
        yield _line(share, full, base, new, clock)


def _line(share: float, full: int, base: Sequence[Tensor], new: Sequence[Tensor], clock: Callable[[], float]) -> str:
    names = [str(i) for i in range(len(base))]
    layouts = {name: layout_of(tensor) for name, tensor in zip(names, new, strict=True)}
    list(changes("0", base[0], new[0]))  # the first call of a kernel loads it
    _wait(new[0])
    at_s = [clock()]
    patches: list[Patch] = []
    for name, old, now in zip(names, base, new, strict=True):
        patches += changes(name, old, now)
    at_s.append(clock())
    file = io.BytesIO()
    size = write_delta(file, patches, base=1, version=2)
    at_s.append(clock())
    held = {name: host_patterns(tensor).copy() for name, tensor in zip(names, base, strict=True)}
    at_s.append(clock())
    read = list(read_patches(file.getbuffer(), layouts))
    at_s.append(clock())
    for patch in read:
        patch.apply(held[patch.name])
    at_s.append(clock())
    for values in held.values():
        digest(values.view("u1"))
    at_s.append(clock())
    if any((held[name] != host_patterns(tensor)).any() for name, tensor in zip(names, new, strict=True)):
        raise RuntimeError("the delta did not bring about what was to be")
    took = [later - earlier for earlier, later in pairwise(at_s)]
    speeds = [took[0], took[1], took[0] + took[1], took[3], took[4], took[5]]
    return f"{share:11.1%}{full / size.bytes:9.1f}x" + "".join(f"{full / 1e9 / s:10.2f}" for s in speeds)


def _changed(tensor: Tensor, share: float) -> Tensor:
    """The tensor with about this share of its elements one step of bfloat16 away."""
    bits: Any = tensor.view(torch.int16)
    return (bits + (torch.rand(tensor.shape, device=tensor.device) < share)).view(torch.bfloat16)


def _wait(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize()
