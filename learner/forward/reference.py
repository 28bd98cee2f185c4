"""The frozen reference: the model the run began with, held only while an algorithm asks what it says."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import SettingsError, TributaryError
from learner.batch import MicroBatch
from learner.forward.policy import Policy
from learner.memory import is_shortage

LoadPolicy = Callable[[], PreTrainedModel | Policy]

_REMEDY = "Otherwise set algorithm.kl_coefficient to 0"


class ReferenceMissing(TributaryError):
    """An algorithm asks for the frozen reference, and it cannot be had."""


class Reference:
    """Loaded when it is first needed, without a gradient, on `device`; given back when it is not needed any more.

    It computes exactly as the policy does, in the same precision: before the first update the two agree to the bit.
    """

    def __init__(self, load: LoadPolicy | None, device: torch.device) -> None:
        self._load = load
        self._device = device
        self._policy: Policy | None = None

    @property
    def is_held(self) -> bool:
        """Whether it is in memory."""
        return self._policy is not None

    def hold(self, needed: bool) -> None:
        """Have it in memory if it is needed, and only then. ReferenceMissing if it cannot be loaded."""
        if needed and self._policy is None:
            self._policy = self._loaded()
        elif not needed and self._policy is not None:
            self._policy = None
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    @torch.no_grad()
    def logprobs(self, micro: MicroBatch, temperature: float) -> Tensor | None:
        """log π_ref of the response tokens of `micro`; None while it is not held.    [T]"""
        return None if self._policy is None else self._policy.evaluate(micro, temperature).logprobs_T

    def _loaded(self) -> Policy:
        if self._load is None:
            raise ReferenceMissing("the algorithm needs a frozen reference, and no model was named for it")
        try:
            with _same_generators(self._device):
                policy = Policy.of(self._load())
                policy.model.requires_grad_(False)
                return policy
        except SettingsError as error:
            raise ReferenceMissing(
                f"the frozen reference that algorithm.kl_coefficient asks for cannot be loaded: {error}. {_REMEDY}"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            raise ReferenceMissing(
                "the frozen reference that algorithm.kl_coefficient asks for does not fit into memory beside the "
                "policy: use more GPUs or a larger one, or set algorithm.kl_coefficient to 0"
            ) from error


@contextmanager
def _same_generators(device: torch.device) -> Generator[None]:
    """Leave the random generators as they are: when a model is loaded must not change what comes after."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        yield
