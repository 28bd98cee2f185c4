"""The layers of the policy, made leaner or faster: activations computed twice instead of kept, and compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from common.errors import SettingsError

_COMPILERS = ("g++", "clang++", "c++")


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Have each layer keep its input only, and compute the rest again when its gradient is due.

    The forward of the layer is replaced, not transformers' switch turned: that acts in training mode only, which would
    bring dropout back. Names of weights stay as they are. SettingsError if the model has no layers that we know.
    """
    for layer in _layers(model, "activation_checkpointing"):
        # Without dropout there is no randomness that the second computation would have to repeat.
        again: Any = partial(
            cast(Any, checkpoint),
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,
            determinism_check="none",
        )
        layer.forward = again


def compile_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Compile each layer by itself, for any shape: all have the same code, so it is compiled once.

    SettingsError if there is no compiler for the device, or the model has no layers that we know.
    """
    missing = _missing_compiler(device)
    if missing:
        raise SettingsError(f"learner.compile needs {missing}: install it, or set learner.compile = false")
    for layer in _layers(model, "compile"):
        layer.compile(dynamic=True)  # pyright: ignore[reportUnknownMemberType]


def _layers(model: PreTrainedModel, setting: str) -> list[nn.Module]:
    """The transformer layers, without such as lie inside another."""
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    found = {name: module for name, module in modules if isinstance(module, GradientCheckpointingLayer)}
    outermost: list[nn.Module] = [
        m for name, m in found.items() if not any(name.startswith(f"{other}.") for other in found)
    ]
    if not outermost:
        raise SettingsError(
            f"learner.{setting} works layer by layer, and {type(model).__name__} does not say which its layers are: "
            f"set learner.{setting} = false"
        )
    return outermost


def _missing_compiler(device: torch.device) -> str:
    """What torch.compile lacks here; "" if nothing."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "Triton (the package triton)"
    named = os.environ.get("CXX")
    return (
        "" if any(map(shutil.which, [named] if named else _COMPILERS)) else "a C++ compiler (g++ or clang++, or $CXX)"
    )
