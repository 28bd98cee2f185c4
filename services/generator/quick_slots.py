"""Cache slots for a step of decoding: there is nothing to look for while a sequence stays inside its last block.

vLLM's manager goes through its whole allocation for every sequence in every step, which takes about a tenth of the time
of a small model's engine on CPU. Of a block's tokens only the first needs a block, and only the last makes one full,
which prefix caching then learns of: these two go through the manager as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig

_DECODING = {"num_lookahead_tokens": 0}
"""What else vLLM's scheduler says when it asks for a sequence that is running, and nothing is speculated."""


class Running(Protocol):
    """What is needed of vLLM's Request. num_computed_tokens: how many of its tokens have their slots filled."""

    num_computed_tokens: int


def quick_slots(manager: KVCacheManager, config: KVCacheConfig) -> Callable[..., KVCacheBlocks | None]:
    """The manager's `allocate_slots`, quick inside a block; as it is for anything but plain full attention."""
    allocate_slots = manager.allocate_slots
    specs = [group.kv_cache_spec for group in config.kv_cache_groups]
    if len(specs) != 1:
        return allocate_slots
    spec = specs[0]
    if type(spec) is not FullAttentionSpec or spec.sliding_window is not None:
        return allocate_slots
    block_size, nothing_new = spec.block_size, manager.empty_kv_cache_blocks

    def allocate(request: Running, num_new_tokens: int, **more: Any) -> KVCacheBlocks | None:
        if num_new_tokens == 1 and 0 < request.num_computed_tokens % block_size < block_size - 1 and more == _DECODING:
            return nothing_new
        return allocate_slots(request, num_new_tokens, **more)  # pyright: ignore[reportArgumentType]

    return allocate
