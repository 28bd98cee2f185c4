"""Whether a directory is a model that the run can use, judged by its files without loading it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.settings import RunFile

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def model_problems(settings: RunFile) -> Iterator[str]:
    """Sentences about a local model; a hub name yields nothing, since only loading it can tell."""
    directory = Path(settings.model.path)
    if not directory.is_absolute():
        return
    yield from _missing_files(directory, "[model] path")
    if (directory / "config.json").is_file():
        yield from _length_problems(settings, directory / "config.json")


def expert_problems(settings: RunFile) -> Iterator[str]:
    """Sentences about the directory of a local expert that is to score demonstrations."""
    expert = settings.expert
    if expert.policy == "scored" and expert.model is not None and Path(expert.model).is_absolute():
        yield from _missing_files(Path(expert.model), "[expert] model")


def _missing_files(directory: Path, key: str) -> Iterator[str]:
    """What a model directory lacks to be loaded."""
    if not directory.is_dir():
        yield f"there is no model directory {directory}: make or download the model, or correct {key}"
        return
    if not (directory / "config.json").is_file():
        yield f"{directory} is not a model directory (it has no config.json): correct {key}"
        return
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        yield f"the model {directory} has no tokenizer (no {' or '.join(_TOKENIZERS)}): copy it there"
    if not any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        yield f"the model {directory} has no weights (no {' or '.join(_WEIGHTS)}): copy them there"


def _length_problems(settings: RunFile, path: Path) -> Iterator[str]:
    """Whether the lengths that the run asks for fit the model."""
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{path} cannot be read as JSON ({error}): restore it from where the model came from"
        return
    own = config.get("max_position_embeddings") if isinstance(config, dict) else None
    asked = settings.model.max_model_len
    if isinstance(own, int) and asked is not None and asked > own:
        yield f"[model] max_model_len is {asked}, but the model's positions end at {own}: lower it to {own} or less"
    limit = min(length for length in (own, asked, 1 << 60) if isinstance(length, int))
    response = settings.live.sampling.max_response_tokens
    if response >= limit:
        yield (
            f"[live.sampling] max_response_tokens is {response}, which leaves no room for a prompt in the context of "
            f"{limit} tokens: lower it, or raise [model] max_model_len as far as the model goes"
        )
