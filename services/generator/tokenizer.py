"""The policy's tokenizer, for turning responses into the text that graders read; and whether a model is one at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import SettingsError
from common.settings import ModelSettings
from common.trajectory import Tokens

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

Detokenizer = Callable[[Tokens], str]
"""Response tokens → text, special tokens left out."""


def require_model(model: ModelSettings, named: str = "[model] path") -> None:
    """Raise SettingsError unless a local model is a directory with a configuration, weights and enough context.

    A hub name is left to whoever downloads it. named: where the run file names the model.
    """
    directory = Path(model.path)
    if not directory.is_absolute():
        return
    if not directory.is_dir():
        raise SettingsError(f"{named}: {directory} is not a directory: correct the path, or make the model first")
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{named}: {directory} is not a model directory: it has no config.json") from error
    except ValueError as error:
        raise SettingsError(f"{named}: {directory / 'config.json'} is not JSON: {error}") from error
    if not any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        raise SettingsError(f"{named}: {directory} has no weights ({', '.join(_WEIGHTS)}): save them there")
    longest = config.get("max_position_embeddings")
    if longest and model.max_model_len and model.max_model_len > longest:
        raise SettingsError(
            f"[model] max_model_len is {model.max_model_len}, but {directory} was made for {longest} tokens: lower it"
        )


def open_detokenizer(model: ModelSettings) -> Detokenizer:
    """The detokenizer of the policy. SettingsError if the model has no tokenizer that can be read."""
    tokenizer = _open_tokenizer(model.path, "[model] path")
    return lambda tokens: tokenizer.decode(
        tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def vocabulary(path: str, named: str) -> dict[str, int]:
    """Every token of a model's tokenizer with its id, added ones included. SettingsError if it cannot be read."""
    return _open_tokenizer(path, named).get_vocab()


def _open_tokenizer(path: str, named: str) -> Any:
    from transformers import AutoTokenizer  # takes seconds, and most of what imports this module does without

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(
            f"{named}: {path} has no tokenizer that can be read ({reason}): save one beside the model"
        ) from error
