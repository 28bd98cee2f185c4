"""A small random Llama, its published versions, and an event loop in a thread on which a real engine runs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.generator.engine import Completion
from services.generator.weight_update import WeightUpdate

# Importing vLLM imports parts of torch that torch deprecates.
ENGINE_MARKS = [
    pytest.mark.engine,
    pytest.mark.timeout(600),  # a machine may be busy with something else
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
VOCABULARY = 64
EOS = 1
_Result = TypeVar("_Result")


class PublishedLlama:
    """A random Llama of 0.3 M parameters whose weight versions are seeded perturbations, published in bf16."""

    def __init__(self, directory: Path, *, tied: bool) -> None:
        self.directory = directory
        self.versions = directory / "versions"  # not beside the model: an engine that starts loads all that lies there
        torch.manual_seed(7)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            bos_token_id=0,
            eos_token_id=EOS,
            initializer_range=0.1,
        )
        self._model = LlamaForCausalLM(config).eval()
        self._model.load_state_dict(
            {name: tensor.bfloat16().float() for name, tensor in self._model.state_dict().items()}
        )
        self._model.save_pretrained(directory)
        self.versions.mkdir()
        self._base = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._loaded: int | None = None
        if tied:
            del self._base["lm_head.weight"]
        _save_tokenizer(directory)

    def weights(self, version: int) -> dict[str, torch.Tensor]:
        """The bf16 weights of one version; version 0 is what the directory holds."""
        if version == 0:
            return {name: tensor.bfloat16() for name, tensor in self._base.items()}
        noise = torch.Generator().manual_seed(version)
        return {
            name: (tensor + 0.05 * torch.randn(tensor.shape, generator=noise)).bfloat16()
            for name, tensor in self._base.items()
        }

    def publish(self, version: int) -> Path:
        """Write one version as a learner would."""
        path = self.versions / f"version-{version}.safetensors"
        save_file(self.weights(version), path)
        return path

    def update(self, version: int, *, complete: bool = False) -> WeightUpdate:
        """One version as an engine is told of it, every tensor changed."""
        return WeightUpdate(version, self.publish(version), None if complete else set(self.weights(version)))

    def logprobs(self, version: int, tokens: list[int], temperature: float = 1.0) -> np.ndarray:
        """A full fp32 forward: log π(tokens[t] | tokens[:t]) for t in [1, T)."""
        if self._loaded != version:
            self._load(self.weights(version))
            self._loaded = version
        return self._forward(tokens, temperature)

    def logprobs_with(
        self, weights: dict[str, torch.Tensor], tokens: list[int], temperature: float = 1.0
    ) -> np.ndarray:
        """The same under any weights."""
        self._load(weights)
        return self._forward(tokens, temperature)

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        self._model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
        self._loaded = None

    def _forward(self, tokens: list[int], temperature: float) -> np.ndarray:
        with torch.no_grad():
            logits_TV = self._model(torch.tensor([tokens])).logits[0, :-1] / temperature
        return logits_TV.log_softmax(-1).gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()

    def largest_error(self, prompt: list[int], completion: Completion, temperature: float) -> float:
        """The largest difference between a completion's log-probs and a forward under each token's own version."""
        tokens = prompt + completion.tokens.tolist()
        errors = [0.0]
        for span in completion.versions:
            expected_R = self.logprobs(span.version, tokens, temperature)[len(prompt) - 1 :]
            errors.append(np.abs(completion.logprobs - expected_R)[span.start : span.end].max())
        return float(max(errors))


class LoopThread:
    """An event loop that outlives single tests, so that one engine serves them all."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="engine-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _Result], timeout_s: float = 240.0) -> _Result:
        """Run a coroutine there and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def close(self) -> None:
        """Stop the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _save_tokenizer(directory: Path) -> None:
    words = {"<s>": 0, "</s>": EOS} | {f"t{index}": index for index in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(directory)
