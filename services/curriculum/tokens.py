"""Text to the policy's tokens: prompts, and demonstrations with the places where a hint may be cut.

Prompt and demonstration are tokenised apart and joined as ids, exactly as sampling joins them; nothing is re-tokenised.
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoTokenizer

from common.errors import SettingsError
from common.settings import DataSettings, ModelSettings
from common.trajectory import Demonstration, Tokens
from services.curriculum.rows import Message


class Tokeniser:
    """The policy's tokenizer with the run's template."""

    def __init__(self, model: ModelSettings, data: DataSettings) -> None:
        self.context = context_length(model)
        self._data = data
        self._tokenizer: Any = _load_tokenizer(model)
        if self._tokenizer.eos_token_id is None:
            raise SettingsError(
                f"the tokenizer of {model.path} has no end-of-sequence token: set eos_token in its config"
            )

    def prompt(self, prompt: str | tuple[Message, ...]) -> Tokens:
        """The tokens of a prompt, template applied."""
        if isinstance(prompt, tuple) or self._data.chat_template:
            text = "" if isinstance(prompt, tuple) else self._data.template.replace("{prompt}", prompt)
            messages = list(prompt) if isinstance(prompt, tuple) else [{"role": "user", "content": text}]
            encoded = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            return np.asarray(encoded["input_ids"], dtype=np.int32)
        return np.asarray(self._tokenizer(self._data.template.replace("{prompt}", prompt))["input_ids"], dtype=np.int32)

    def demonstration(self, text: str) -> Demonstration:
        """The tokens of a demonstration, EOS last, with its step boundaries."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = np.asarray([*encoded["input_ids"], self._tokenizer.eos_token_id], dtype=np.int32)
        ends = [end for _, end in encoded["offset_mapping"]]
        return Demonstration(tokens, boundaries=step_boundaries(text, ends, self._data.step_separator))


def step_boundaries(text: str, token_ends: list[int], separator: str) -> tuple[int, ...]:
    """Numbers of leading tokens after which a step ends.

    token_ends: where each token ends in `text`. A token that reaches over the end of a step belongs to that step. The
    end of the text is no boundary: a hint is never the whole demonstration.
    """
    boundaries: list[int] = []
    position = text.find(separator)
    while position >= 0:
        count = bisect_left(token_ends, position + len(separator)) + 1
        if count < len(token_ends) and (not boundaries or count > boundaries[-1]):
            boundaries.append(count)
        position = text.find(separator, position + len(separator))
    return tuple(boundaries)


def context_length(model: ModelSettings) -> int:
    """How many tokens prompt and response may have together."""
    if Path(model.path).is_dir() and not (Path(model.path) / "config.json").is_file():
        raise SettingsError(f"{model.path} is not a model directory (it has no config.json): correct [model] path")
    try:
        own: int | None = getattr(AutoConfig.from_pretrained(model.path), "max_position_embeddings", None)
    except (OSError, ValueError) as error:
        raise SettingsError(f"the model {model.path} cannot be read: {_first_line(error)}") from error
    limits = [limit for limit in (own, model.max_model_len) if limit]
    if not limits:
        raise SettingsError(f"the model {model.path} does not say its context length: set [model] max_model_len")
    return min(limits)


def _load_tokenizer(model: ModelSettings) -> Any:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model.path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"the tokenizer of {model.path} cannot be read: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise SettingsError(f"the tokenizer of {model.path} has no fast version: convert it to tokenizer.json")
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
