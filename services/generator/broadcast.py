"""Weights broadcast from the learner's GPU, inside a worker: vLLM's own NCCL transfer, with a limit on every wait.

NCCL waits for a missing member for ever. Joining happens in a thread that is left behind when the time is up; a
transfer that is under way is aborted by a timer, which makes NCCL return. Either way the group is given up, and the
next broadcast meets in a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Timer
from typing import Any, Protocol

import torch
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferInitInfo, NCCLWeightTransferUpdateInfo

from common.errors import WeightsError


class Transfer(Protocol):
    """What is needed of vLLM's NCCLWeightTransferEngine."""

    model_update_group: Any

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Join a group."""
        ...

    def start_weight_update(self) -> None:
        """Open the layer-wise reload."""
        ...

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Take part in the broadcast of all tensors."""
        ...

    def finish_weight_update(self) -> None:
        """Close the layer-wise reload."""
        ...

    def shutdown(self) -> None:
        """Abort what is under way and leave the group."""
        ...


class BroadcastReceiver:
    """A worker's place in the group of a learner and its generators."""

    def __init__(self, make: Callable[[], Transfer]) -> None:
        self._make = make
        self._transfer: Transfer | None = None
        self._group = ""

    def receive(self, told: dict[str, Any]) -> None:
        """Load what is broadcast. told: see services.generator.weight_update.BroadcastUpdate.

        WeightsError if it takes too long; the model then holds mixed weights.
        """
        try:
            if self._transfer is None or self._group != told["unique_id"]:
                self._join(told)
            self._load(told)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Give the group up."""
        transfer, self._transfer, self._group = self._transfer, None, ""
        if transfer is not None:
            transfer.shutdown()

    def _join(self, told: dict[str, Any]) -> None:
        self.leave()
        transfer = self._make()
        info = NCCLWeightTransferInitInfo(
            rank_offset=told["rank"],
            world_size=told["world_size"],
            nccl_unique_id_b64=told["unique_id"],
        )
        _within(told["limit_s"], "joining the group", lambda: transfer.init_transfer_engine(info))
        self._transfer, self._group = transfer, told["unique_id"]

    def _load(self, told: dict[str, Any]) -> None:
        transfer, late = self._transfer, Event()
        assert transfer is not None
        names, dtypes, shapes = (list(column) for column in zip(*told["tensors"], strict=True))

        def abort() -> None:
            late.set()
            if transfer.model_update_group is not None:
                transfer.model_update_group.destroy()

        timer = Timer(told["limit_s"], abort)
        timer.daemon = True
        timer.start()
        transfer.start_weight_update()
        try:
            transfer.receive_weights(NCCLWeightTransferUpdateInfo(names, dtypes, shapes))
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()  # under the timer: what was broadcast one by one is still on its way
        finally:
            timer.cancel()
            transfer.finish_weight_update()  # also after a failure, as a complete load does
        if late.is_set():
            raise WeightsError(f"the broadcast took longer than {told['limit_s']} s")


def _within(limit_s: float, what: str, work: Callable[[], None]) -> None:
    """Do something that cannot be interrupted, and do not wait for it longer than `limit_s`."""
    device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None

    def run() -> None:
        if device is not None:
            torch.accelerator.set_device_index(device)
        work()

    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broadcast")
    done = thread.submit(run)
    thread.shutdown(wait=False)
    try:
        done.result(limit_s)
    except TimeoutError as error:
        raise WeightsError(f"{what} took longer than {limit_s} s") from error
