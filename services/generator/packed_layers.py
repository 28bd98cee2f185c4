"""Layers of a model on a CPU: which checkpoint tensors each is made of, and how to pack new ones beside the sampling.

CPU kernels read a packed copy of a linear layer's weight. vLLM's layer-wise reload packs every layer while the engine
stands still; here the copies are made in a thread, and the pause only exchanges them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

_PROOF_ROWS = 3

log = logging.getLogger(__name__)

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class NotUnderstood(Exception):
    """A layer is made in a way that is not known here."""


@dataclass(frozen=True, slots=True)
class LayerSources:
    """A layer, and for each of its parameters the checkpoint tensors that it consists of, one below the other."""

    name: str
    module: nn.Module
    parameters: Mapping[str, tuple[str, ...]]
    is_packed: bool

    @property
    def tensors(self) -> set[str]:
        """All checkpoint tensors of the layer."""
        return {name for names in self.parameters.values() for name in names}


@dataclass(frozen=True, slots=True)
class PreparedLayer:
    """New parameters of a layer, and what computes with them if they are packed."""

    module: nn.Module
    parameters: Mapping[str, Tensor]
    linear: Linear | None

    def put_in_place(self) -> None:
        """From now on the layer is a new one. Nothing is copied."""
        for name, tensor in self.parameters.items():
            getattr(self.module, name).data = tensor
        if self.linear is not None:
            self.module.cpu_linear = self.linear  # pyright: ignore[reportArgumentType]


class PackedLayers:
    """The layers of one model, all of them understood."""

    def __init__(self, layers: list[LayerSources], dtypes: Mapping[str, torch.dtype]) -> None:
        self._layers = layers
        self._dtypes = dtypes

    @classmethod
    def learn(cls, model: nn.Module, path: Path) -> PackedLayers | None:
        """The layers of a model that has just loaded the checkpoint `path`; None if one of them is not understood.

        Nothing is taken on trust: every layer is made from the file once more, and has to equal the one that is served.
        The engine must not be sampling meanwhile.
        """
        try:
            with safe_open(path, framework="pt") as file:
                layers = list(_sources(model, set(file.keys())))
            learned = cls(layers, {layer.name: _dtype(layer.module) for layer in layers})
            for layer, prepared in zip(layers, learned.prepare(path, None), strict=True):
                _require_equal(layer, prepared)
        except NotUnderstood as error:
            log.warning("every update loads all layers while sampling stands still: %s", error)
            return None
        return learned

    @torch.no_grad()
    def prepare(self, path: Path, changed: Collection[str] | None) -> list[PreparedLayer]:
        """New ones for the layers that have changed tensors (None: for all of them)."""
        shared: dict[tuple[tuple[str, ...], int], Tensor] = {}
        with safe_open(path, framework="pt") as file:
            return [
                self._prepare(layer, file.get_tensor, shared)
                for layer in self._layers
                if changed is None or not layer.tensors.isdisjoint(changed)
            ]

    def _prepare(
        self,
        layer: LayerSources,
        read: Callable[[str], Tensor],
        shared: dict[tuple[tuple[str, ...], int], Tensor],
    ) -> PreparedLayer:
        """shared: parameters made before, since a tied output head has the embedding's."""
        holder = nn.Module()
        for parameter, names in layer.parameters.items():
            rows = _padded_rows(layer.module)
            if (names, rows) not in shared:
                shared[names, rows] = _stack([read(name) for name in names], self._dtypes[layer.name], rows)
            holder.register_parameter(parameter, nn.Parameter(shared[names, rows], requires_grad=False))
        if layer.is_packed:
            is_linear = isinstance(layer.module.quant_method, UnquantizedLinearMethod)
            dispatch_cpu_unquantized_gemm(holder, remove_weight=is_linear)
        made = {name: getattr(holder, name).data for name in layer.parameters}
        return PreparedLayer(layer.module, made, getattr(holder, "cpu_linear", None))


def _sources(model: nn.Module, available: set[str]) -> Iterator[LayerSources]:
    """Every layer with parameters. NotUnderstood unless each tensor of the checkpoint belongs to one."""
    fused: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    owners: dict[int, str] = {}
    used: set[str] = set()
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        parameters = {key: _names(name, key, fused, available) for key in own}
        for key, value in own.items():
            first = owners.setdefault(id(value), name)
            if first != name:  # tied: it is what the other layer's parameter is
                used |= set(parameters[key])
                parameters[key] = _names(first, key, fused, available)
        layer = LayerSources(name, module, parameters, _is_packed(name, module))
        if missing := layer.tensors - available:
            raise NotUnderstood(f"{name} is not made of tensors called {sorted(missing)}")
        used |= layer.tensors
        yield layer
    if left := available - used:
        raise NotUnderstood(f"the checkpoint's {sorted(left)[:3]} belong to no layer that is known here")


def _names(name: str, parameter: str, fused: Mapping[str, list[str]], available: set[str]) -> tuple[str, ...]:
    """What the checkpoint calls a parameter, or the parts that it is fused of."""
    stem, _, last = name.rpartition(".")
    whole = f"{name}.{parameter}" if name else parameter
    if whole in available or last not in fused:
        return (whole,)
    return tuple(f"{stem}.{part}.{parameter}" if stem else f"{part}.{parameter}" for part in fused[last])


def _is_packed(name: str, module: nn.Module) -> bool:
    """Whether kernels read a packed copy. NotUnderstood if something else than packing is done to its parameters."""
    method = getattr(module, "quant_method", None)
    if type(method) in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
        if getattr(module, "_cpu_skip_gemm_dispatch", False):
            raise NotUnderstood(f"{name} is used unpacked")
        return True
    if method is not None or hasattr(module, "process_weights_after_loading"):
        raise NotUnderstood(f"{name} is a {type(module).__name__} with {type(method).__name__}")
    return False


def _dtype(module: nn.Module) -> torch.dtype:
    """What a layer computes in."""
    return next(module.parameters(recurse=False)).dtype


def _padded_rows(module: nn.Module) -> int:
    """Rows that a vocabulary is padded to; 0 for any other layer."""
    return int(module.num_embeddings_padded) if isinstance(module, VocabParallelEmbedding) else 0


def _stack(parts: list[Tensor], dtype: torch.dtype, rows: int) -> Tensor:
    """A parameter of its parts, converted, with rows of zeros added up to `rows`. A copy: never the file's memory."""
    size = [sum(part.shape[0] for part in parts), *parts[0].shape[1:]] if parts[0].ndim else []
    whole = torch.zeros([max(rows, size[0]), *size[1:]] if size else [], dtype=dtype)
    at = 0
    for part in parts:
        if part.ndim == 0:
            whole.copy_(part)
        else:
            whole[at : at + part.shape[0]].copy_(part)
            at += part.shape[0]
    return whole


def _require_equal(layer: LayerSources, made: PreparedLayer) -> None:
    """NotUnderstood unless a layer that was made here does what the served one does."""
    for name, tensor in made.parameters.items():
        served: Tensor = getattr(layer.module, name)
        if served.shape != tensor.shape or served.dtype != tensor.dtype or not torch.equal(served, tensor):
            raise NotUnderstood(f"{layer.name}.{name} is made otherwise of {layer.parameters[name]}")
    if made.linear is not None:
        _require_same_linear(layer, made)


@torch.no_grad()
def _require_same_linear(layer: LayerSources, made: PreparedLayer) -> None:
    module = layer.module
    width = int(getattr(module, "input_size_per_partition", 0) or getattr(module, "embedding_dim", 0))
    inputs_RH = torch.randn(_PROOF_ROWS, width, generator=torch.Generator().manual_seed(0)).to(_dtype(module))
    bias = made.parameters.get("bias")
    served = module.cpu_linear(inputs_RH, module.weight, getattr(module, "bias", None))  # pyright: ignore
    ours = made.linear(inputs_RH, made.parameters["weight"], bias) if made.linear is not None else served
    if served.shape != ours.shape or not torch.equal(served, ours):
        raise NotUnderstood(f"{layer.name} multiplies otherwise when it is made of {layer.parameters['weight']}")
