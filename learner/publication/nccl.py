"""A group of NCCL with the learner as its first member: the few calls that a broadcast of weights needs, each limited.

Bound with ctypes to the library that torch has loaded: torch's own groups can meet no foreign peer, and vLLM, whose
transfer the others use, is no part of the learner. An operation that stands still is aborted, which makes it return.
"""

from __future__ import annotations

import base64
import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Timer
from typing import Any, ClassVar

import torch
from torch import Tensor

from common.errors import TributaryError

_LIBRARY = "libnccl.so.2"
_UNIQUE_ID_BYTES = 128
_MOST_JOINING = 4
_SUM, _FLOAT32 = 0, 7
_DTYPES = {torch.int64: 4, torch.float16: 6, torch.float32: _FLOAT32, torch.float64: 8, torch.bfloat16: 9}


class BroadcastFailed(TributaryError):
    """A group did not come together, or a broadcast in it did not come to its end."""


class _UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * _UNIQUE_ID_BYTES)]


class NcclGroup:
    """A group that `world_size` members may join once. The learner is number 0."""

    _joining: ClassVar[set[NcclGroup]] = set()  # each keeps a thread, late ones too, until NCCL returns

    def __init__(self, world_size: int) -> None:
        """BroadcastFailed if there is no NCCL here, or if joining stood still too often."""
        if len(self._joining) >= _MOST_JOINING:
            raise BroadcastFailed(
                f"{_MOST_JOINING} groups before this one are still coming together: see that members reach the learner "
                "by NCCL and start it again, or set [weights] transfer to store"
            )
        self._world_size = world_size
        self._comm = ctypes.c_void_p()
        self._stream: Any = None  # of our own: on the training's, a member that is late would hold the next step
        self._is_joined = self._is_left = False
        self._lock = Lock()  # of _comm and _is_left: joining and leaving may meet
        try:
            self._library: Any = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise BroadcastFailed(f"no NCCL: {error}: set [weights] transfer to store") from error
        self._library.ncclGetErrorString.restype = ctypes.c_char_p
        self._id = _UniqueId()
        self._check(self._library.ncclGetUniqueId(ctypes.byref(self._id)))

    @property
    def unique_id(self) -> str:
        """How the others find the group, in base64."""
        return base64.b64encode(bytes(self._id)).decode()

    def broadcast(self, tensors: Sequence[Tensor], limit_s: float) -> None:
        """Send tensors of one device, which are there, one after another. BroadcastFailed if that takes longer than
        `limit_s` or breaks, and the group is of no use any more. The first time, so long again for all to join.
        """
        if not self._is_joined:
            self._join(tensors[0].device, limit_s)
        timer = Timer(limit_s, self.abort)
        timer.daemon = True
        try:
            timer.start()
            for tensor in tensors:
                self._send(tensor)
            self._stream.synchronize()
        except RuntimeError as error:
            raise BroadcastFailed(f"the broadcast broke: {error}") from error
        finally:
            timer.cancel()
        if not self._is_joined:
            raise BroadcastFailed(f"the broadcast took longer than {limit_s} s")

    def abort(self) -> None:
        """Leave the group; what is under way in it returns, and a join that is late leaves it as well."""
        with self._lock:
            self._is_joined, self._is_left = False, True
            comm, self._comm = self._comm, ctypes.c_void_p()
        if comm:
            self._library.ncclCommAbort(comm)

    def _join(self, device: torch.device, limit_s: float) -> None:
        def join() -> None:
            torch.cuda.set_device(device)
            self._stream = torch.cuda.Stream()
            self._come_together()
            with torch.cuda.stream(self._stream):
                one = torch.zeros(1, device=device)  # vLLM's workers begin with the sum of one number, and so do we
                here = ctypes.c_void_p(one.data_ptr())
                at = self._at
                self._check(self._library.ncclAllReduce(here, here, ctypes.c_size_t(1), _FLOAT32, _SUM, self._comm, at))
                self._stream.synchronize()

        try:
            within(limit_s, "coming together", join)
        except BroadcastFailed:
            self.abort()  # what waits for others on the device as well
            raise
        except (RuntimeError, ValueError) as error:  # ValueError: the weights are on no GPU
            self.abort()
            raise BroadcastFailed(f"coming together broke: {error}") from error
        self._is_joined = True

    def _come_together(self) -> None:
        """Wait until all members are there. Whoever left meanwhile could not abort what there was not yet."""
        comm = ctypes.c_void_p()
        self._joining.add(self)
        try:
            result = self._library.ncclCommInitRank(ctypes.byref(comm), self._world_size, self._id, 0)
        finally:
            self._joining.discard(self)
        with self._lock:
            is_late = self._is_left
            if not is_late:
                self._comm = comm
        if is_late and comm:
            self._library.ncclCommAbort(comm)
        self._check(result)
        if is_late:
            raise BroadcastFailed("the group came together when it had been left")

    @property
    def _at(self) -> ctypes.c_void_p:
        """Where operations are queued."""
        return ctypes.c_void_p(self._stream.cuda_stream)

    def _send(self, tensor: Tensor) -> None:
        here, count = ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.numel())
        if tensor.dtype not in _DTYPES:
            raise BroadcastFailed(f"weights of {tensor.dtype} cannot be broadcast: set [weights] transfer to store")
        self._check(self._library.ncclBroadcast(here, here, count, _DTYPES[tensor.dtype], 0, self._comm, self._at))

    def _check(self, result: int) -> None:
        if result != 0:
            raise BroadcastFailed(f"NCCL: {self._library.ncclGetErrorString(result).decode()}")


def within(limit_s: float, what: str, work: Callable[[], None]) -> None:
    """Do something that cannot be interrupted, and do not wait for it longer than `limit_s`. BroadcastFailed then."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broadcast")
    done = thread.submit(work)
    thread.shutdown(wait=False)
    try:
        done.result(limit_s)
    except TimeoutError as error:
        raise BroadcastFailed(f"{what} took longer than {limit_s} s") from error
