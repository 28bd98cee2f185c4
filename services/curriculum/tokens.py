"""Text to the policy's tokens: prompts, and demonstrations with the places where a hint may be cut.

Prompt and demonstration are tokenised apart and joined as ids, exactly as sampling joins them; nothing is re-tokenised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.processors import ByteLevel
from transformers import AutoConfig, AutoTokenizer

from common.config.hints import Cut
from common.errors import SettingsError
from common.settings import DataSettings, ModelSettings
from common.trajectory import Demonstration, Logprobs, Tokens
from services.curriculum.boundaries import sentence_boundaries, step_boundaries
from services.curriculum.rows import Message


@dataclass(frozen=True, slots=True, eq=False)
class TokenisedText:
    """A demonstration in tokens [D], EOS last. steps, sentences: numbers of leading tokens after which one ends."""

    tokens: Tokens
    steps: tuple[int, ...] = ()
    sentences: tuple[int, ...] = ()
    specials: tuple[str, ...] = field(default=())
    """Special tokens that stand inside it, where none may be."""

    def cut_at(self, cut: Cut, expert_logprobs: Logprobs | None = None) -> Demonstration:
        """The demonstration as a request carries it; boundaries are left out where any token may be the last."""
        boundaries = {Cut.TOKEN: (), Cut.STEP: self.steps, Cut.SENTENCE: self.sentences}[cut]
        return Demonstration(self.tokens, boundaries, expert_logprobs)


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
        self._whole = _without_trimming(self._tokenizer.backend_tokenizer)
        self._special_ids = np.asarray(self._tokenizer.all_special_ids, dtype=np.int32)

    def prompt(self, prompt: str | tuple[Message, ...]) -> Tokens:
        """The tokens of a prompt, template applied."""
        if isinstance(prompt, tuple) or self._data.chat_template:
            text = "" if isinstance(prompt, tuple) else self._data.template.replace("{prompt}", prompt)
            messages = list(prompt) if isinstance(prompt, tuple) else [{"role": "user", "content": text}]
            encoded = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            return np.asarray(encoded["input_ids"], dtype=np.int32)
        return np.asarray(self._tokenizer(self._data.template.replace("{prompt}", prompt))["input_ids"], dtype=np.int32)

    def demonstration(self, text: str) -> TokenisedText:
        """The tokens of a demonstration, with its boundaries. An EOS that the text ends with already is not doubled."""
        encoded = self._whole.encode(text, add_special_tokens=False)
        eos: int = self._tokenizer.eos_token_id
        written = encoded.ids[:-1] if encoded.ids and encoded.ids[-1] == eos else encoded.ids
        starts = [start for start, _ in encoded.offsets[: len(written)]]
        inside = np.intersect1d(np.asarray(written, dtype=np.int32), self._special_ids)
        return TokenisedText(
            tokens=np.asarray([*written, eos], dtype=np.int32),
            steps=step_boundaries(text, starts, self._data.step_separator),
            sentences=sentence_boundaries(text, starts),
            specials=tuple(self._tokenizer.convert_ids_to_tokens(inside.tolist())),
        )


def _without_trimming(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, telling where tokens truly begin: many leave white space out of what they tell."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = ByteLevel(trim_offsets=False)  # pyright: ignore[reportAttributeAccessIssue]
    copy.no_truncation()
    copy.no_padding()
    return copy


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
