"""The preparation of an update inside a worker: whatever can be done before sampling has to stand still for it.

On a CPU: new packed layers (packed_layers.py). On a GPU: the changed elements, decoded and copied to the device, to be
written in place by vLLM's sparse checkpoint patches, which know its fused and sharded layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.checkpoint_weight_patch import (
    CheckpointWeightPatch,
    load_checkpoint_weight_patches,
)

from common.deltas import Patch, read_patches
from common.tensor_file import Layout, TensorFile
from services.generator.packed_layers import PackedLayers

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
MOST_CHANGED = 0.2
"""Above this share of changed elements everything is loaded anew: that moves less, and needs less memory beside it."""

PutInPlace = Callable[[], None]
"""What is left for the pause."""


class Preparation:
    """One update on its way: begun, done (in a thread of its own), put in place."""

    def __init__(self, path: str, names: Sequence[str], deltas: Sequence[str]) -> None:
        self.path = path
        self._names = names
        self._deltas = deltas
        self._work: Future[PutInPlace | None] | None = None

    def begin(self, model: nn.Module, device: torch.device, layers: PackedLayers | None) -> None:
        """Start the work, if there is some that can be done beforehand."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="preparation")
        if device.type != "cpu" and self._deltas and is_patchable(model, Path(self.path)):
            self._work = thread.submit(self._prepare_patches, model, device)
        elif layers is not None:
            self._work = thread.submit(self._prepare_layers, layers)
        thread.shutdown(wait=False)

    def is_done(self) -> bool:
        """Whether the work has ended, or none had to be done. Raises what ended it."""
        if self._work is None or not self._work.done():
            return self._work is None
        self._work.result()
        return True

    def put_in_place(self) -> bool:
        """Let the model be the new one; False if nothing was prepared. The engine must not be sampling meanwhile."""
        put = None if self._work is None else self._work.result()
        if put is None:
            return False
        put()
        return True

    def _prepare_layers(self, layers: PackedLayers) -> PutInPlace:
        prepared = layers.prepare(Path(self.path), set(self._names))

        def put() -> None:
            for layer in prepared:
                layer.put_in_place()

        return put

    def _prepare_patches(self, model: nn.Module, device: torch.device) -> PutInPlace | None:
        layouts = TensorFile(Path(self.path)).layouts
        rounds = [checkpoint_patches(Path(delta), layouts, device) for delta in self._deltas]
        elements = sum(layout.elements for layout in layouts.values())
        changed = sum(patch.values.numel() for patches in rounds for patch in patches)
        if changed > MOST_CHANGED * elements or any(bool(p.values.isnan().any()) for r in rounds for p in r):
            return None  # vLLM's patches use NaN for what has not changed

        def put() -> None:
            for patches in rounds:
                load_checkpoint_weight_patches(model, patches, validate_unique_indices=False)

        return put


def is_patchable(model: nn.Module, path: Path) -> bool:
    """Whether every published dtype is the engine's own, so that what is written in place is what was published."""
    published = {DTYPES.get(layout.dtype) for layout in TensorFile(path).layouts.values()}
    return published == {parameter.dtype for parameter in model.parameters()}


def checkpoint_patches(delta: Path, layouts: dict[str, Layout], device: torch.device) -> list[CheckpointWeightPatch]:
    """The changed elements that a delta tells, on the device: one patch a tensor."""
    runs: dict[str, list[Patch]] = {}
    for patch in read_patches(delta.read_bytes(), layouts):
        runs.setdefault(patch.name, []).append(patch)
    return [_joined(name, layouts[name], patches, device) for name, patches in runs.items()]


def _joined(name: str, layout: Layout, runs: list[Patch], device: torch.device) -> CheckpointWeightPatch:
    """The runs of one tensor as a single patch."""
    spans = [np.arange(p.start, p.start + p.span) if p.indices is None else p.indices for p in runs]
    indices: Tensor = torch.from_numpy(np.concatenate(spans))
    signed = np.concatenate([p.values for p in runs]).view(f"<i{layout.width}")
    values = torch.from_numpy(signed).view(DTYPES[layout.dtype])
    return CheckpointWeightPatch(name, layout.shape, values.dtype, values.to(device), indices.to(device))
