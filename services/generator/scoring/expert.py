"""The expert model of a run: whether it can score the policy's tokens, and what tells one expert from another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import SettingsError
from common.settings import ModelSettings, RunFile
from services.generator.tokenizer import require_model, vocabulary

NAMED = "[expert] model"
_FILES = ("config.json", "*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, slots=True)
class Expert:
    """An expert that can be served. identity: changes whenever its scores might."""

    model: ModelSettings
    identity: str


def open_expert(settings: RunFile) -> Expert:
    """The expert that a run file names. SettingsError if there is none, or it cannot score the policy's tokens."""
    path = settings.expert.model
    if settings.expert.policy != "scored" or path is None:
        raise SettingsError(
            f'[expert] policy is "{settings.expert.policy}": a scorer has nothing to do there; set it to "scored"'
        )
    model = ModelSettings(path=path, dtype=settings.model.dtype)
    require_model(model, NAMED)
    _require_same_vocabulary(settings.model.path, path)
    policy, expert = _config(settings.model.path, "[model] path"), _config(path, NAMED)
    lengths = [length for length in (_length(policy), settings.model.max_model_len) if length]
    # One token more than the policy's longest sequence: to score a sequence, the engine has to sample one after it.
    limits = [limit for limit in (_length(expert), min(lengths) + 1 if lengths else None) if limit]
    model = model.model_copy(update={"max_model_len": min(limits, default=None)})
    return Expert(model, _identity(model, str(getattr(expert, "_commit_hash", None))))


def _require_same_vocabulary(policy: str, expert: str) -> None:
    """SettingsError unless every token of the policy has the same id in the expert's tokenizer.

    The expert is given the policy's own ids. It may have tokens that the policy does not know.
    """
    ours, theirs = vocabulary(policy, "[model] path"), vocabulary(expert, NAMED)
    foreign = sorted((token for token, number in ours.items() if theirs.get(token) != number), key=lambda t: ours[t])
    if not foreign:
        return
    token = foreign[0]
    there = f"is {theirs[token]} there" if token in theirs else "is unknown there"
    raise SettingsError(
        f"{NAMED}: the tokenizer of {expert} differs from the policy's in {len(foreign)} of {len(ours)} tokens (the "
        f"first, {token!r}, is {ours[token]} here and {there}): its log-probs would belong to other text; choose an "
        f"expert of the policy's family, or record log-probs under the policy's tokens"
    )


def _config(path: str, named: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(f"{named}: {path} has no configuration that can be read ({reason})") from error


def _length(config: Any) -> int | None:
    return getattr(config, "max_position_embeddings", None)


def _identity(model: ModelSettings, commit: str) -> str:
    """The path, and a digest of what changes when the model's files or the way it is served change.

    A directory's files by size and time of change: reading gigabytes at every start would take longer than scoring.
    """
    parts = [model.path, model.dtype, str(model.max_model_len)]
    directory = Path(model.path)
    if directory.is_dir():
        files = sorted(file for pattern in _FILES for file in directory.glob(pattern))
        parts += [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    else:
        parts.append(commit)
    return f"{model.path}@{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}"
