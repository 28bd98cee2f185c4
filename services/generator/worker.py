"""The generator's half inside the engine core: loads published weights into the served model, and dies with the front.

vLLM imports this module in the core process (by the name given as `worker_extension_cls`); nothing else imports it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc

from services.generator.broadcast import BroadcastReceiver
from services.generator.engine_settings import FRONT_PID, WEIGHT_BACKEND
from services.generator.exchange import METHOD, exchange_weights
from services.generator.packed_layers import PackedLayers
from services.generator.preparation import Preparation
from services.generator.weight_update import PayloadKind

_PR_SET_PDEATHSIG = 1


@dataclass
class WeightPayload(WeightTransferUpdateInfo):
    """What one update brings: see services.generator.weight_update."""

    kind: str
    path: str
    names: list[str] = field(default_factory=list[str])
    deltas: list[str] = field(default_factory=list[str])
    broadcast: dict[str, Any] = field(default_factory=dict[str, Any])


class FileWeightTransfer(WeightTransferEngine[WeightTransferInitInfo, WeightPayload]):
    """Loads weights from local files, in checkpoint names, into the model that is being served.

    A complete load goes through vLLM's layer-wise reload, which knows every model. What is prepared beside the sampling
    (see Preparation) only has to be put in its place. Every payload kind opens and closes its own bracket inside
    `receive_weights`, so that `start_weight_update` and `finish_weight_update` have nothing to do.
    """

    init_info_cls = WeightTransferInitInfo
    update_info_cls = WeightPayload
    _preparation: Preparation | None = None
    _layers: PackedLayers | None = None
    _layers_sought = False
    _receiver: BroadcastReceiver | None = None

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        """Nothing to meet: files need no peer."""

    def start_weight_update(self) -> None:
        """Nothing to open (see the class)."""

    def finish_weight_update(self) -> None:
        """Nothing to close (see the class)."""

    def prepare(self, payload: WeightPayload) -> None:
        """Begin to prepare an update, beside the sampling."""
        self._preparation = Preparation(payload.path, payload.names, payload.deltas)
        self._preparation.begin(self.model, self.device, self._layers)

    def is_prepared(self) -> bool:
        """Whether the preparation has ended. Raises what ended it."""
        return self._preparation is None or self._preparation.is_done()

    def receive_weights(self, update_info: WeightPayload) -> None:
        """Load one payload. Whatever it raises leaves mixed weights, which the next complete load replaces."""
        preparation, self._preparation = self._preparation, None
        match PayloadKind(update_info.kind):
            case PayloadKind.COMPLETE:
                self._load_complete(update_info.path)
            case PayloadKind.CHANGED:
                if preparation is None or preparation.path != update_info.path or not preparation.put_in_place():
                    self._load_complete(update_info.path)
            case PayloadKind.BROADCAST:
                if self._receiver is None:
                    self._receiver = BroadcastReceiver(self._nccl)
                self._receiver.receive(update_info.broadcast)

    def shutdown(self) -> None:
        """Leave the group of broadcasts, if there is one."""
        if self._receiver is not None:
            self._receiver.leave()

    def _nccl(self) -> NCCLWeightTransferEngine:
        return NCCLWeightTransferEngine(self.config, self.vllm_config, self.device, self.model)

    def _load_complete(self, path: str) -> None:
        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights(_tensors(path))  # pyright: ignore[reportCallIssue] (every served model has it)
        finally:
            # Also after a failure: a layer left half open would count the next update's tensors on top of these.
            finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()
        if self.device.type == "cpu" and not self._layers_sought and self.parallel_config.world_size == 1:
            self._layers_sought = True
            self._layers = PackedLayers.learn(self.model, Path(path))

    def _repack_tied_head(self) -> None:
        """Pack the output head again where it shares the embedding.

        CPU kernels keep a packed copy of the head. The reload renews it only for a layer whose own weights were in the
        file, and a tied head has none.
        """
        if self.device.type != "cpu" or not self.model_config.hf_text_config.tie_word_embeddings:
            return
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


class WorkerExtension:
    """Methods added to vLLM's worker, called through `collective_rpc`."""

    weight_transfer_engine: FileWeightTransfer
    start_weight_update: Any
    update_weights: Any
    finish_weight_update: Any
    _weight_update_active: bool

    def prepare_weights(self, payload: dict[str, Any]) -> None:
        """Begin to prepare an update, beside the sampling."""
        self.weight_transfer_engine.prepare(WeightPayload(**payload))

    def weights_prepared(self) -> bool:
        """Whether the preparation has ended. Raises what ended it."""
        return self.weight_transfer_engine.is_prepared()

    def replace_weights(self, payload: dict[str, Any]) -> None:
        """A whole update in one call. The engine has to be paused."""
        self._weight_update_active = False  # one that a time limit cut off never ends
        self.start_weight_update()
        self.update_weights(payload)
        self.finish_weight_update()


def _tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            yield name, file.get_tensor(name)


def _exchange_weights(core: EngineCoreProc, payload: dict[str, Any], version: str, clear_cache: bool) -> Future[float]:
    """See services.generator.exchange."""

    def wake() -> None:
        core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))

    return exchange_weights(core, payload, version, clear_cache, wake)


def die_with_front(front: int) -> None:
    """Have this process killed when process `front` dies, however that happens.

    A worker in the core process is the front's child: the kernel does it. Workers of a multi-device engine are
    grandchildren: a thread waits for the front, then kills the core and its own process.
    """
    core = os.getppid()
    if core == front:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != front:  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        Thread(target=_kill_after, args=(front, core), name="front-watch", daemon=True).start()


def _kill_after(front: int, core: int) -> None:
    try:
        descriptor = os.pidfd_open(front)
    except ProcessLookupError:
        pass
    else:
        select.select([descriptor], [], [])
    if os.getppid() == core:
        os.kill(core, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


# Every reload warns of the rotary embedding, which no checkpoint holds; that a file is complete was checked before.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
# Importing this module is the only hook that vLLM offers before the model is built.
WeightTransferEngineFactory.register_engine(WEIGHT_BACKEND, FileWeightTransfer)
setattr(EngineCoreProc, METHOD, _exchange_weights)
if FRONT_PID in os.environ:
    die_with_front(int(os.environ[FRONT_PID]))
