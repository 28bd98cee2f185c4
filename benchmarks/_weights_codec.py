"""How fast a version is taken, compared, coded and proved: bytes of model a second, on a CPU or a GPU."""

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
from learner.publication.changes import apply, are_same, changes_on_device, host_patterns, layout_of
from learner.publication.changes import changes as changes_here

Changes = Callable[[str, Tensor, Tensor], Iterator[Patch]]
SHARES = (0.001, 0.013, 0.05, 0.085, 0.42, 1.0)
HIDDEN, INNER, KEYS, WORDS = 1536, 8960, 256, 151_936
LAYER = (
    *((HIDDEN, HIDDEN), (KEYS, HIDDEN), (KEYS, HIDDEN), (HIDDEN, HIDDEN)),
    *((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER), (HIDDEN,), (HIDDEN,)),
)
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "1.5b": ((WORDS, HIDDEN), *LAYER * 28),
    "part": LAYER * 4,
    "tiny": ((256, 64), (64,), (64, 64)),
}
"""Shapes of tensors by the name of a model: all of Qwen2.5-1.5B, four of its 28 layers, and next to nothing."""


def measure(device: str, shapes: Sequence[tuple[int, ...]], *, by_torch: bool = False) -> Iterator[str]:
    """Lines of tables. On a CPU times are those that one thread works; on a GPU those on the clock.

    by_torch: compare on a CPU as on a GPU.
    """
    clock: Callable[[], float] = time.thread_time if device == "cpu" else time.perf_counter
    torch.manual_seed(0)
    masters = [torch.randn(shape, device=device).mul_(0.02) for shape in shapes]
    base = [torch.empty_like(master, dtype=torch.bfloat16) for master in masters]
    full = sum(tensor.numel() * 2 for tensor in base)
    yield f"{full / 1e9:.2f} GB of bfloat16 weights in {len(base)} tensors on {device}; GB of model a second"
    took_s = [_copied(masters, base, clock) for _ in range(2)]  # the first call of a kernel loads it
    yield f"snapshot {full / 1e9 / took_s[1]:.1f}"
    del masters
    yield from _coded(full, base, clock, changes_on_device if by_torch else changes_here)


def _copied(masters: Sequence[Tensor], copies: Sequence[Tensor], clock: Callable[[], float]) -> float:
    """The seconds of a snapshot."""
    _wait(copies[0])
    began_s = clock()
    for master, copy in zip(masters, copies, strict=True):
        copy.copy_(master)
    _wait(copies[0])
    return clock() - began_s


def _coded(full: int, base: Sequence[Tensor], clock: Callable[[], float], changes: Changes) -> Iterator[str]:
    yield "    changed   smaller   compare    encode      both    decode     apply    digest     prove"
    for share in SHARES:
        new = [_changed(tensor, share) for tensor in base]
        yield f"{share:11.1%}" + _line(full, (base, new), clock, changes)


def _line(full: int, states: tuple[Sequence[Tensor], ...], clock: Callable[[], float], changes: Changes) -> str:
    base, new = states
    names = [str(i) for i in range(len(base))]
    layouts = {name: layout_of(tensor) for name, tensor in zip(names, new, strict=True)}
    list(changes("0", base[-1], new[-1]))  # the first call of a kernel loads it
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
    learner_s = _proved(dict(zip(names, base, strict=True)), new, read, clock)
    if any((held[name] != host_patterns(tensor)).any() for name, tensor in zip(names, new, strict=True)):
        raise RuntimeError("the delta did not bring about what was to be")
    took = [later - earlier for earlier, later in pairwise(at_s)]
    speeds = [took[0], took[1], took[0] + took[1], took[3], took[4], took[5], learner_s]
    return f"{full / max(1, size.bytes):9.1f}x" + "".join(f"{full / 1e9 / max(s, 1e-9):10.2f}" for s in speeds)


def _proved(base: dict[str, Tensor], new: Sequence[Tensor], read: list[Patch], clock: Callable[[], float]) -> float:
    """The seconds in which the learner proves a delta: its copy of the base, with the delta, is the new one."""
    copies = {name: tensor.clone() for name, tensor in base.items()}
    _wait(new[0])
    began_s = clock()
    for patch in read:
        apply(patch, copies[patch.name])
    if not all(are_same(copy, tensor) for copy, tensor in zip(copies.values(), new, strict=True)):
        raise RuntimeError("the delta did not bring about what was to be, where the learner applies it")
    return clock() - began_s


def _changed(tensor: Tensor, share: float) -> Tensor:
    """The tensor with about this share of its elements one step of bfloat16 away."""
    bits: Any = tensor.view(torch.int16)
    return (bits + (torch.rand(tensor.shape, device=tensor.device) < share)).view(torch.bfloat16)


def _wait(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize()
