"""The policy as a torch module: loaded in float32, placed on its device, and named as Hugging Face names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging as transformers_logging

from common.errors import SettingsError
from common.settings import RunFile


def choose_device(asked: str) -> torch.device:
    """The device that `learner.device` means on this machine."""
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise SettingsError('learner.device is "cuda", but torch sees no GPU here: set it to "auto" or "cpu"')
    return torch.device("cuda" if available and asked != "cpu" else "cpu")


def publication_dtype(asked: str, device: torch.device) -> torch.dtype:
    """What weights are published in: model.dtype, "auto" being float32 on CPU and bfloat16 on a GPU."""
    if asked == "float32" or (asked == "auto" and device.type == "cpu"):
        return torch.float32
    return torch.bfloat16


def load_policy(settings: RunFile, device: torch.device) -> PreTrainedModel:
    """The model of the run, with float32 masters and without dropout. SettingsError if it cannot be trained."""
    path = settings.model.path
    if Path(path).is_absolute() and not (Path(path) / "config.json").is_file():
        raise SettingsError(
            f"model.path: {path} is not a Hugging Face model directory (it has no config.json): correct it"
        )
    transformers_logging.disable_progress_bar()  # standard error holds one JSON object a line
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
            path, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(f"model.path: {path} cannot be loaded as a causal language model: {reason}") from error
    # Dropout off: the importance ratio of a fresh on-policy token must be one.
    return loaded.to(device).eval()


def vocabulary(model: PreTrainedModel) -> int:
    """How many token ids the model can read."""
    return int(model.get_input_embeddings().weight.shape[0])  # pyright: ignore


def longest(settings: RunFile, model: PreTrainedModel) -> int:
    """How many tokens of prompt and response together the model is trained on at most."""
    limits = (settings.model.max_model_len, getattr(model.config, "max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=2**31 - 1)


def named_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every parameter and buffer once, by its name inside the module: a tied tensor under its first name only."""
    weights: dict[str, Tensor] = {}
    places: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        # What is empty here or shared among ranks has no address; tied, it is one and the same object.
        place = (tensor.data_ptr() or id(tensor), tensor.shape)
        if place not in places:
            places.add(place)
            weights[name] = tensor.detach()
    return weights


def check_fit(model: PreTrainedModel, saved: Mapping[str, Tensor]) -> None:
    """ValueError if weights that `named_weights` returned are another model's."""
    ours = named_weights(model)
    if ours.keys() != saved.keys() or any(ours[name].shape != saved[name].shape for name in ours):
        raise ValueError("its tensors have other names or shapes than the model's")


def take_weights(
    model: PreTrainedModel, saved: Mapping[str, Tensor], fill: Callable[[Tensor, Tensor], object] = Tensor.copy_
) -> None:
    """Take weights that `named_weights` returned. ValueError if they are another model's. fill: takes one of them."""
    check_fit(model, saved)
    with torch.no_grad():
        for name, weight in named_weights(model).items():
            fill(weight, saved[name])


def published_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are named as `named_weights` names them, as a Hugging Face checkpoint holds them; contiguous."""
    original = cast(dict[str, Tensor], revert_weight_conversion(model, dict(weights)))
    return {name: tensor.contiguous() for name, tensor in original.items()}


def published_as(weight: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What a weight is published in where floating ones are published in `dtype`."""
    return dtype if weight.is_floating_point() else weight.dtype
