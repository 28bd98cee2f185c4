"""Sequences decoded with quick slots and without, beside each other in vLLM's own manager and scheduler; as JSON.

In a process of its own, as everything that imports vLLM.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from unittest import mock

from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from services.generator.held_outputs import HoldingScheduler
from services.generator.quick_slots import quick_slots
from tests.system.scheduler_bench import BLOCK, SPEC, SchedulerBench, cache_config, engine_config

LENGTH = 60


class Bench:
    """A manager, and a sequence of its own that is decoded token by token. calls: tokens at which it was asked."""

    def __init__(self, prompt: list[int], *, quick: bool, blocks: int = 16) -> None:
        init_none_hash(sha256)
        config = cache_config(blocks=blocks)
        self.manager = KVCacheManager(config, max_model_len=64, scheduler_block_size=BLOCK, hash_block_size=BLOCK)
        self.calls: list[int] = []
        whole = self.manager.allocate_slots

        def counted(request: Request, *args: Any, **more: Any) -> Any:
            self.calls.append(request.num_computed_tokens)
            return whole(request, *args, **more)

        self.manager.allocate_slots = counted
        self.allocate = quick_slots(self.manager, config) if quick else counted
        self.request = Request(
            "r", prompt, SamplingParams(max_tokens=64), None, block_hasher=get_request_block_hasher(BLOCK, sha256)
        )
        assert self.allocate(self.request, len(prompt)) is not None
        self.request.num_computed_tokens = len(prompt)

    def decode(self, token: int) -> list[int] | None:
        """Ask for the slots of one more token; the new blocks, None if there is no room."""
        self.request.append_output_token_ids(token)
        found = self.allocate(self.request, 1, num_lookahead_tokens=0)
        if found is None:
            return None
        self.request.num_computed_tokens += 1
        return [block.block_id for blocks in found.blocks for block in blocks]

    def seen(self) -> list[Any]:
        """Blocks of the sequence, how many of them are full and known to the prefix cache, and what is free."""
        single = self.manager.coordinator.single_type_managers[0]
        hashes = [repr(block.block_hash) for block in self.manager.get_blocks("r").blocks[0]]
        return [hashes, single.num_cached_block.get("r", 0), self.manager.block_pool.get_num_free_blocks()]


def _decoded(length: int, *, quick: bool) -> dict[str, Any]:
    """What was found and seen token by token after a prompt of this length, and when the manager was asked."""
    bench = Bench(list(range(length)), quick=quick)
    told = [[bench.decode(token), bench.seen()] for token in range(100, 123)]
    return {"told": told, "calls": bench.calls[1:]}


def _passed_on() -> list[bool]:
    """Whether the manager was asked: for requests that are not one plain step of decoding."""
    bench, found = Bench([1, 2, 3, 4, 5], quick=True), list[bool]()
    for count, more in ((1, {}), (1, {"num_lookahead_tokens": 1}), (2, {"num_lookahead_tokens": 0})):
        before = len(bench.calls)
        bench.request.append_output_token_ids([7] * count)
        assert bench.allocate(bench.request, count, **more) is not None
        found.append(len(bench.calls) == before + 1)
    return found


def _left_alone() -> dict[str, bool]:
    """Whether a manager's own function is what one gets, for different kinds of attention."""
    manager = KVCacheManager(cache_config(), max_model_len=64, scheduler_block_size=BLOCK, hash_block_size=BLOCK)
    windowed = cache_config(replace(SPEC, sliding_window=8))
    configs = {"full": cache_config(), "windowed": windowed, "several": cache_config(groups=2)}
    configs["none"] = cache_config(groups=0)
    return {name: quick_slots(manager, config) == manager.allocate_slots for name, config in configs.items()}


def _scheduled(config: VllmConfig, kind: type[Scheduler]) -> dict[str, Any]:
    """Two sequences decoded by a scheduler: the blocks that it gave out step by step, and how often it asked for them.

    decoded: tokens of which slots were sought, the prompts' apart; asked: calls of the manager for those.
    """
    asked, whole = list[str](), KVCacheManager.allocate_slots

    def counted(manager: KVCacheManager, request: Request, *args: Any, **more: Any) -> Any:
        if request.num_output_tokens:
            asked.append(request.request_id)
        return whole(manager, request, *args, **more)

    with mock.patch.object(KVCacheManager, "allocate_slots", counted):
        bench = SchedulerBench(config, kind)
        for name, prompt in (("first", 5), ("second", 8)):
            bench.begin(name, prompt, LENGTH)
        blocks, decoded = [], 0
        while bench.scheduler.has_unfinished_requests():
            planned = bench.step()[0]
            fresh = {new.req_id: new.block_ids for new in planned.scheduled_new_reqs}
            known = planned.scheduled_cached_reqs
            blocks.append([fresh, dict(zip(known.req_ids, known.new_block_ids, strict=True))])
            decoded += len(known.req_ids)
    return {"blocks": blocks, "decoded": decoded, "asked": len(asked)}


if __name__ == "__main__":
    short = Bench([1, 2, 3], quick=True, blocks=3)  # one of them is never given out
    config = engine_config()
    found = {
        "scheduled": {kind.__name__: _scheduled(config, kind) for kind in (HoldingScheduler, Scheduler)},
        "decoded": {
            length: [_decoded(length, quick=True), _decoded(length, quick=False)] for length in (1, 3, 4, 5, 8)
        },
        "no_room": [short.decode(token) is None for token in range(4, 10)],
        "passed_on": _passed_on(),
        "left_alone": _left_alone(),
    }
    print(json.dumps(found))
