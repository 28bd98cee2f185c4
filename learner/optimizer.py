"""The optimiser: AdamW over the policy's parameters, and its moments as named tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from common.config.live import OptimizerConfig

BETAS = (0.9, 0.95)
EPSILON = 1e-8
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW with gradient clipping. Weight decay applies to matrices only.

    Several may share the same parameters: each has moments of its own, which take no memory before its first update.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        self._named = named
        self._parameters = [parameter for _, parameter in named]
        self._adamw = torch.optim.AdamW(
            [
                {"params": [p for p in self._parameters if p.ndim >= 2], "decays": True},
                {"params": [p for p in self._parameters if p.ndim < 2], "decays": False},
            ],
            betas=BETAS,
            eps=EPSILON,
            fused=True,
        )

    def prepare(self) -> None:
        """Have the moments in memory of every parameter that has a gradient: an update then needs no more of it."""
        for parameter in self._parameters:
            if parameter.grad is not None and not self._adamw.state.get(parameter):
                self._adamw.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }

    def update(self, config: OptimizerConfig, rate: float, grad_norm: Tensor) -> None:
        """One update at the learning rate `rate` with the gradients as they are, of global norm `grad_norm`.

        Nothing is read from the device. RuntimeError for lack of memory comes before anything has changed.
        """
        self.prepare()
        torch.nn.utils.clip_grads_with_norm_(self._parameters, config.max_grad_norm, grad_norm)
        for group in self._adamw.param_groups:
            group["lr"] = rate
            group["weight_decay"] = config.weight_decay if group["decays"] else 0.0
        self._adamw.step()  # pyright: ignore[reportUnknownMemberType]

    def tensors(self) -> dict[str, Tensor]:
        """The moments by parameter and kind; empty before the first update."""
        moments: dict[str, Tensor] = {}
        for name, parameter in self._named:
            state = self._adamw.state.get(parameter, {})
            moments |= {f"{name}.{key}": state[key] for key in _MOMENTS if key in state}
        return moments

    def restore(self, tensors: Mapping[str, Tensor], placed: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Take moments that `tensors` returned. placed: a copy of one of them that belongs to a parameter."""
        for name, parameter in self._named:
            state = {key: tensors.get(f"{name}.{key}") for key in _MOMENTS}
            if all(value is not None for value in state.values()):
                self._adamw.state[parameter] = {
                    key: placed(value, parameter) for key, value in state.items() if value is not None
                }
