"""A character tokenizer and a model configuration in a directory: all that the curriculum needs of a model."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

ALPHABET = "0123456789+=;#abcdefghijklmnopqrstuvwxyz \n"
EOS = 1


def write_tokenizer(directory: Path, context: int = 64) -> Path:
    """Make `directory` look like a model directory with a character-level tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {"<pad>": 0, "<eos>": EOS, "<unk>": 2} | {c: i + 3 for i, c in enumerate(ALPHABET)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")  # type: ignore[assignment]
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
    config = {"model_type": "llama", "max_position_embeddings": context, "vocab_size": len(vocabulary)}
    (directory / "config.json").write_text(json.dumps(config))
    return directory
