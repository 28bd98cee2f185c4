"""The scheduler of an engine core, driven as the core drives it, with a count in place of a model.

Imports vLLM: only for the rigs, which are processes of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from services.generator.engine_settings import EngineSettings

BLOCK = 4
FIRST = 100
"""What the first token of every response is; the others count on from there."""
LENGTH = 256
SPEC = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)


def cache_config(spec: FullAttentionSpec = SPEC, groups: int = 1, blocks: int = 16) -> KVCacheConfig:
    """A cache of so many blocks, of which one is never given out."""
    named = [KVCacheGroupSpec([f"layer-{number}"], spec) for number in range(groups)]
    return KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=named)


def engine_config() -> VllmConfig:
    """What an engine on CPU is started with, for a model of which there is only the description."""
    page = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": LENGTH}
    page |= {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    with TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(page))
        settings = EngineSettings(model=directory, max_model_len=LENGTH)
        settings.import_vllm()
        config = settings._arguments(on_cpu=True).create_engine_config()  # pyright: ignore[reportPrivateUsage]
    config.model_config.skip_tokenizer_init = True
    config.cache_config.num_gpu_blocks = 4 * LENGTH // BLOCK
    return config


class SchedulerBench:
    """A scheduler of some kind, with an empty cache."""

    def __init__(self, config: VllmConfig, kind: type[Scheduler]) -> None:
        init_none_hash(sha256)
        self.scheduler = kind(
            vllm_config=config,
            kv_cache_config=cache_config(blocks=4 * LENGTH // BLOCK),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            log_stats=True,
        )

    def begin(self, name: str, prompt: int, length: int) -> None:
        """Ask for a response of this many tokens to a prompt of that many."""
        params = SamplingParams(max_tokens=length, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
        hasher = get_request_block_hasher(BLOCK, sha256)
        self.scheduler.add_request(Request(name, list(range(prompt)), params, None, block_hasher=hasher))

    def step(self) -> tuple[SchedulerOutput, dict[int, EngineCoreOutputs]]:
        """One step of the core: what was planned, and what is told. A log-prob is its token's number, negative."""
        planned = self.scheduler.schedule()
        names = list(planned.num_scheduled_tokens)
        tokens = [FIRST + self.scheduler.requests[name].num_output_tokens for name in names]
        tokens_N1 = np.array(tokens, dtype=np.int64).reshape(-1, 1)
        done = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[[token] for token in tokens],
            logprobs=LogprobsLists(tokens_N1, -tokens_N1.astype(np.float32), np.zeros(len(names), dtype=np.int64)),
        )
        return planned, self.scheduler.update_from_output(planned, done)
