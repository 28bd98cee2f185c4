"""The trainer: policy and optimiser, one step at a time, and their state as tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.config.live import LiveConfig, OptimizerConfig
from common.trajectory import Group
from learner.algorithms import build
from learner.model import named_weights
from learner.objective import StepSums, empty_sums, loss
from learner.packing import StepPlan, plan_step
from learner.policy import evaluate
from learner.terms import Algorithm

BETAS = (0.9, 0.95)
EPSILON = 1e-8
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")

TensorFiles = Mapping[str, Mapping[str, Tensor]]


class Verdict(Enum):
    """What became of a step. FLAT: the gradient was exactly zero, so the optimiser was left alone."""

    UPDATED = "updated"
    FLAT = "flat"
    NOT_FINITE = "not finite"


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """One optimiser step, told. grad_norm: before clipping. learning_rate: after warm-up. tokens: of responses."""

    verdict: Verdict
    sums: StepSums
    grad_norm: float
    learning_rate: float
    tokens: int
    trajectories: int
    flat_groups: int
    pack_s: float
    forward_backward_s: float
    optimizer_s: float


class Abandoned(Exception):
    """The step was given up between two micro-batches; nothing has changed."""


class Trainer:
    """Policy and AdamW with float32 masters. On a GPU the forward computes in bfloat16.

    Weight decay applies to matrices only. updates: optimiser updates so far, which the warm-up counts.
    """

    def __init__(
        self, model: PreTrainedModel, micro_batch_tokens: int, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.model = model
        self.updates = 0
        self._micro_batch_tokens = micro_batch_tokens
        self._clock = clock
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in self._named]
        self.device = self._parameters[0].device
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self._parameters if p.ndim >= 2], "decays": True},
                {"params": [p for p in self._parameters if p.ndim < 2], "decays": False},
            ],
            betas=BETAS,
            eps=EPSILON,
            fused=True,
        )

    def step(self, live: LiveConfig, groups: Sequence[Group], heed: Callable[[], None]) -> StepOutcome:
        """One step on `groups` with the algorithm of `live`.

        heed is called before every micro-batch; when it raises Abandoned, nothing has changed.
        """
        start_s = self._clock()
        algorithm = build(live.algorithm, longest_response=live.sampling.max_response_tokens)
        plan = plan_step(algorithm, groups, self._micro_batch_tokens)
        packed_s = self._clock()
        self._optimizer.zero_grad()
        sums = self._accumulate(algorithm, plan, live.sampling.temperature, heed)
        grad_norm = float(self._gradient_norm())
        differentiated_s = self._clock()
        rate = scheduled_rate(live.optimizer, self.updates)
        verdict = self._verdict(sums, grad_norm)
        if verdict is Verdict.UPDATED:
            self._update(live.optimizer, rate, grad_norm)
        self._optimizer.zero_grad()
        return StepOutcome(
            verdict=verdict,
            sums=sums,
            grad_norm=grad_norm,
            learning_rate=rate,
            tokens=plan.tokens,
            trajectories=plan.trajectories,
            flat_groups=plan.flat_groups,
            pack_s=packed_s - start_s,
            forward_backward_s=differentiated_s - packed_s,
            optimizer_s=self._clock() - differentiated_s,
        )

    def tensors(self) -> TensorFiles:
        """The whole state as named tensors, by file: weights, optimiser moments, random generators."""
        moments: dict[str, Tensor] = {}
        for name, parameter in self._named:
            state = self._optimizer.state.get(parameter, {})
            moments |= {f"{name}.{key}": state[key] for key in _MOMENTS if key in state}
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        return {"model": named_weights(self.model), "optimizer": moments, "generators": generators}

    def restore(self, tensors: TensorFiles, updates: int) -> None:
        """Take a state that `tensors` returned. ValueError if it is another model's."""
        ours, saved = named_weights(self.model), tensors["model"]
        if ours.keys() != saved.keys() or any(ours[name].shape != saved[name].shape for name in ours):
            raise ValueError("its tensors have other names or shapes than the model's")
        with torch.no_grad():
            for name, weight in ours.items():
                weight.copy_(saved[name])
        for name, parameter in self._named:
            state = {key: tensors["optimizer"].get(f"{name}.{key}") for key in _MOMENTS}
            if all(value is not None for value in state.values()):
                self._optimizer.state[parameter] = {
                    key: value.to(self.device, copy=True) for key, value in state.items() if value is not None
                }
        torch.set_rng_state(tensors["generators"]["cpu"])
        if self.device.type == "cuda" and "cuda" in tensors["generators"]:
            torch.cuda.set_rng_state(tensors["generators"]["cuda"], self.device)
        self.updates = updates

    def _accumulate(
        self, algorithm: Algorithm, plan: StepPlan, temperature: float, heed: Callable[[], None]
    ) -> StepSums:
        """The gradient of the whole step, added up over its micro-batches."""
        total: StepSums | None = None
        for micro in plan.micro_batches:
            heed()
            here = micro.to(self.device)
            with self._compute():
                outputs = evaluate(self.model, here, temperature)
            value, sums = loss(algorithm, plan, here, outputs)
            if value.requires_grad:
                value.backward()  # pyright: ignore[reportUnknownMemberType]
            total = sums if total is None else total + sums
        return empty_sums(algorithm) if total is None else total

    def _compute(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    def _gradient_norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm(self._gradients())

    def _verdict(self, sums: StepSums, grad_norm: float) -> Verdict:
        value = sums.values_K.sum()
        if not (torch.isfinite(value) and torch.isfinite(torch.tensor(grad_norm))):
            return Verdict.NOT_FINITE
        # The norm of very small gradients underflows to zero, so zero is looked up where it matters.
        if grad_norm == 0 and not any(bool(gradient.any()) for gradient in self._gradients()):
            return Verdict.FLAT
        return Verdict.UPDATED

    def _update(self, optimizer: OptimizerConfig, rate: float, grad_norm: float) -> None:
        torch.nn.utils.clip_grads_with_norm_(self._parameters, optimizer.max_grad_norm, torch.tensor(grad_norm))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = optimizer.weight_decay if group["decays"] else 0.0
        self._optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        self.updates += 1


def scheduled_rate(optimizer: OptimizerConfig, updates: int) -> float:
    """The learning rate of the next update: it rises linearly to the asked rate over the warm-up."""
    if updates >= optimizer.warmup_steps:
        return optimizer.learning_rate
    return optimizer.learning_rate * (updates + 1) / optimizer.warmup_steps
