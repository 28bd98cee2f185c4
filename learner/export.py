"""`python -m learner.export RUN_FILE --to DIR`: a checkpoint's policy as a Hugging Face model directory."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import SettingsError, TributaryError
from common.settings import RunFile, load_run
from learner.forward.model import (
    load_policy,
    named_weights,
    publication_dtype,
    published_as,
    published_weights,
    take_weights,
)
from learner.storage.checkpoint import CheckpointStore
from learner.storage.durable import appearing

_WEIGHTS_FILE, _GENERATION_FILE = "model.safetensors", "generation_config.json"
_COPIED = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", _GENERATION_FILE),
    *("vocab*", "merges.txt", "spiece.model", "sentencepiece*.model", "*.tiktoken"),
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NotExported(TributaryError):
    """The directory cannot be made; the message says what to do."""


def main(argv: list[str] | None = None) -> int:
    """Export as the command line says; the exit code: 0 done, 2 not done."""
    arguments = _parser().parse_args(argv)
    try:
        settings = load_run(arguments.run_file)
        dtype = _DTYPES[arguments.dtype] if arguments.dtype else _published_dtype(settings)
        print(export(settings, arguments.to, dtype, step=arguments.step))
    except TributaryError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


def export(settings: RunFile, target: Path, dtype: torch.dtype, *, step: int | None = None) -> str:
    """Make `target` a model directory of the newest checkpoint, or of that of `step`; a sentence about it.

    The directory appears whole or not at all. TributaryError if it cannot be made; one that holds anything is refused.
    """
    target = _vacant(target)
    saved = CheckpointStore(settings.checkpoints_directory, settings.checkpoints.keep).saved_policy(step)
    model = load_policy(settings, torch.device("cpu"))
    try:
        take_weights(model, saved.weights)
    except ValueError as error:
        raise SettingsError(
            f"the checkpoint of step {saved.progress.step} does not fit model.path {settings.model.path} ({error}): "
            "name the model it was made from"
        ) from error
    weights = published_weights(
        model, {name: weight.to(published_as(weight, dtype)) for name, weight in named_weights(model).items()}
    )
    base = _base_directory(settings.model.path)
    with appearing(target) as directory:
        _fill(directory, model, weights, base)
    size_mb = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    return (
        f"step {saved.progress.step} (weight version {saved.progress.version}, revision {saved.progress.revision}) is "
        f"in {target}: {size_mb:.1f} MB, {str(dtype).removeprefix('torch.')}"
    )


def _vacant(target: Path) -> Path:
    """The directory to make, in full. NotExported if it holds anything, or if that cannot be found out."""
    try:
        place = target.expanduser().resolve()
        taken = place.exists() and not (place.is_dir() and not any(place.iterdir()))
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, ~ of nobody
        raise NotExported(f"{target} cannot be looked at ({error}): name another directory, or correct it") from error
    if taken:
        raise NotExported(f"{place} exists and is not an empty directory: name another one, or remove it")
    return place


def _fill(directory: Path, model: PreTrainedModel, weights: Mapping[str, Tensor], base: Path) -> None:
    """Write weights and configuration, and copy what belongs to the tokenizer."""
    dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    model.config.dtype = dtype  # whoever loads the directory without naming a dtype gets this one
    model.config.save_pretrained(directory)  # pyright: ignore[reportUnknownMemberType]
    save_file(dict(weights), directory / _WEIGHTS_FILE, metadata={"format": "pt"})
    for path in sorted({path for pattern in _COPIED for path in base.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, directory / path.name)
    if not (directory / _GENERATION_FILE).exists():
        model.generation_config.save_pretrained(directory)  # pyright: ignore[reportUnknownMemberType]


def _base_directory(path: str) -> Path:
    """Where the files of the model lie that the run began with; those of a hub name in the hub's cache."""
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, allow_patterns=list(_COPIED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NotExported(f"the tokenizer of {path} cannot be read from the hub or its cache: {error}") from error


def _published_dtype(settings: RunFile) -> torch.dtype:
    """What the run publishes in, if it trains on a machine like this one."""
    on_gpu = settings.learner.device == "cuda" or (settings.learner.device == "auto" and torch.cuda.is_available())
    return publication_dtype(settings.model.dtype, torch.device("cuda" if on_gpu else "cpu"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m learner.export",
        description="Make a Hugging Face model directory of a checkpoint: configuration, weights and tokenizer.",
        epilog="It may be run while the learner trains. Exit codes: 0 done, 2 not done (standard error says why).",
    )
    parser.add_argument("run_file", type=Path, help="the run file (TOML)")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new or an empty directory")
    parser.add_argument("--step", type=int, help="of which step's checkpoint (default: the newest)")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), help="of the weights (default: what the run publishes in)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
