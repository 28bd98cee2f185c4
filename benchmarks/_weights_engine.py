"""What an update costs a real engine while it answers requests: its pause, what comes before it, and lost tokens.

vLLM is imported by `measure_engine` alone, and only once the engine starts.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.stores.directory import DirectoryStorage
from common.weights import Manifest, PublicationKind
from learner.publication.snapshot import Origin, Snapshot
from learner.publication.weight_store import WeightStore
from services.generator.engine import Engine
from services.generator.engine_settings import EngineSettings
from services.generator.weight_cache import WeightCache
from services.generator.weight_update import WeightUpdate

if TYPE_CHECKING:
    from services.generator.rollouts import SamplingEngine

VOCABULARY, EOS = 512, 1
PROMPT, RESPONSE = 32, 128
CHANGED = 0.013
_CACHE_BYTES = 1 << 30
_KV_BYTES = 256 << 20
_LOOK_S = 0.002
_FOR_A_PERCENTILE = 20


class Kind(StrEnum):
    """How a version comes into the engine; the first two are prepared while it samples."""

    DELTA = "delta"
    ANCHOR = "anchor"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Plan:
    """Rounds: an anchor, a time without updates, as long a time with deltas. chain: versions a round, all told.

    clear_cache: as `EngineSettings.clear_cache_on_update`.
    """

    rounds: int = 4
    chain: int = 17
    every_s: float = 1.0
    requests: int = 16
    warm_up_s: float = 5.0
    clear_cache: bool = True

    @property
    def versions(self) -> int:
        """All that are published."""
        return self.rounds * self.chain


@dataclass(frozen=True, slots=True)
class Update:
    """One update. fetch_s: read, decoded, written to the cache and proved. prepare_s: all of `apply` but the pause."""

    kind: Kind
    fetch_s: float
    prepare_s: float
    pause_s: float


@dataclass(slots=True)
class Measured:
    """What was measured: updates, and the tokens/s of each round without them and with them."""

    updates: list[Update] = field(default_factory=list[Update])
    quiet: list[float] = field(default_factory=list[float])
    updating: list[float] = field(default_factory=list[float])


def measure_engine(dtype: torch.dtype, plan: Plan) -> Iterator[str]:
    """Lines of a table: versions published as `dtype`, taken by an engine on what vLLM is installed for."""
    if importlib.util.find_spec("vllm") is None:
        yield "no engine is measured: vLLM is not installed"
        return
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it writes between the tables
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # of what was measured before, for the core to have
    with tempfile.TemporaryDirectory() as name:
        model = _save_model(Path(name) / "model")
        parameters = sum(tensor.numel() for tensor in model.values())
        storage = DirectoryStorage(Path(name) / "store")
        manifests = publish_chains(storage, {name: tensor.to(dtype) for name, tensor in model.items()}, plan)
        load_before = os.getloadavg()[0]
        where, measured = asyncio.run(_run(Path(name), storage, manifests, plan))
    published = str(dtype).removeprefix("torch.")
    yield (
        f"engine: {parameters / 1e6:.1f} million parameters in {where}, published as {published}, {CHANGED:.1%} "
        f"changed; {plan.requests} requests at once, attention cache {'cleared' if plan.clear_cache else 'kept'}; "
        f"load {load_before:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    yield from report(measured, plan)


def publish_chains(storage: DirectoryStorage, base: Mapping[str, Tensor], plan: Plan) -> list[Manifest]:
    """Write all versions beforehand: what a learner does is no part of what the engine loses."""
    store = WeightStore(storage, anchor_every=plan.chain)
    weights = {name: tensor.clone() for name, tensor in base.items()}
    manifests: list[Manifest] = []
    for version in range(1, plan.versions + 1):
        noise = torch.Generator().manual_seed(version)
        for tensor in weights.values():
            hit = torch.rand(tensor.shape, generator=noise) < CHANGED
            tensor[hit] *= 1 + 2**-7  # other bits, in bfloat16 as well
        copies = {name: tensor.clone() for name, tensor in weights.items()}
        manifests.append(store.write(Snapshot(version, Origin(version, 1), copies)).manifest)
    for index, manifest in enumerate(manifests):
        if (manifest.kind is PublicationKind.ANCHOR) != (index % plan.chain == 0):
            raise RuntimeError(f"version {manifest.version} was published as {manifest.kind}")
    return manifests


async def keep_updating(
    engine: SamplingEngine, cache: WeightCache, manifests: Sequence[Manifest], plan: Plan
) -> Measured:
    """Take all versions while requests are being answered. RuntimeError if one of them sampled no token."""
    measured, served = Measured(), None
    async with _asked(engine, plan.requests) as sampled:
        await asyncio.sleep(plan.warm_up_s)
        for number in range(plan.rounds):
            anchor, *deltas = manifests[number * plan.chain : (number + 1) * plan.chain]
            # Whole as in a generator that begins: the first version of all, and then that of every second round.
            measured.updates.append(await _taken(engine, cache, anchor, None if number % 2 == 0 else served))
            served = anchor
            await _until(engine, time.perf_counter(), plan.requests)
            ended = _metered(engine)
            await asyncio.sleep(len(deltas) * plan.every_s)
            measured.quiet.append(ended())
            ended, due_s = _metered(engine), time.perf_counter()
            for delta in deltas:
                measured.updates.append(await _taken(engine, cache, delta, served))
                served, due_s = delta, due_s + plan.every_s
                await _until(engine, due_s, plan.requests)
            measured.updating.append(ended())
    if silent := {manifest.version for manifest in manifests} - sampled:
        raise RuntimeError(f"no token was sampled under version {min(silent)}")
    return measured


def report(measured: Measured, plan: Plan) -> Iterator[str]:
    """The table, and what the updates cost in tokens."""
    yield "    update versions     fetch   prepare  pause: median   95th %  largest   (ms; fetch and prepare: medians)"
    for kind in Kind:
        if updates := [update for update in measured.updates if update.kind is kind]:
            yield _line(kind, updates)
    without, having = statistics.mean(measured.quiet), statistics.mean(measured.updating)
    yield (
        f"tokens/s: {_range(measured.quiet)} without updates, {_range(measured.updating)} with a delta "
        f"every {plan.every_s:g} s: each costs {1e3 * plan.every_s * (1 - having / without):.0f} ms of sampling"
    )
    yield "every version sampled tokens"


def _line(kind: Kind, updates: Sequence[Update]) -> str:
    pauses_s = [update.pause_s for update in updates]
    fetch_s, prepare_s = (statistics.median(getattr(u, name) for u in updates) for name in ("fetch_s", "prepare_s"))
    most = f"{'n/a':>9}"
    if len(pauses_s) >= _FOR_A_PERCENTILE:
        most = f"{1e3 * statistics.quantiles(pauses_s, n=20, method='inclusive')[-1]:9.1f}"
    figures = f"{kind:>10}{len(updates):9}{1e3 * fetch_s:10.1f}{1e3 * prepare_s:10.1f}"
    return f"{figures}{1e3 * statistics.median(pauses_s):15.1f}{most}{1e3 * max(pauses_s):9.1f}"


def _range(speeds: Sequence[float]) -> str:
    return f"{statistics.mean(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"


async def _run(
    directory: Path, storage: DirectoryStorage, manifests: Sequence[Manifest], plan: Plan
) -> tuple[str, Measured]:
    """What the engine computes in and on, and what was measured with it."""
    settings = EngineSettings(
        model=str(directory / "model"),
        max_model_len=PROMPT + RESPONSE,
        max_num_seqs=plan.requests,
        kv_cache_bytes=_KV_BYTES,
        gpu_memory_utilization=0.3,
        clear_cache_on_update=plan.clear_cache,
    )
    engine = await Engine.start(settings)
    cache = WeightCache(storage, directory / "cache", _CACHE_BYTES)
    try:
        from vllm.platforms import current_platform

        where = "float32 on a CPU" if current_platform.is_cpu() else f"bfloat16 on {current_platform.device_type}"
        return where, await keep_updating(engine, cache, manifests, plan)
    finally:
        cache.close()
        await engine.close()


@asynccontextmanager
async def _asked(engine: SamplingEngine, requests: int) -> AsyncIterator[set[int]]:
    """Meanwhile so many requests are always being answered; the versions under which that was done."""
    sampled: set[int] = set()
    numbers, is_over = itertools.count(), asyncio.Event()

    async def ask() -> None:
        while not is_over.is_set():
            number = next(numbers)
            prompt = np.random.default_rng(number).integers(2, 32, PROMPT).tolist()
            (completion,) = await engine.sample(
                prompt, n=1, temperature=1.0, max_tokens=RESPONSE, request_id=f"request-{number}"
            )
            sampled.update(span.version for span in completion.versions)

    async with asyncio.TaskGroup() as asking:
        for _ in range(requests):
            asking.create_task(ask())
        yield sampled
        is_over.set()


async def _taken(engine: SamplingEngine, cache: WeightCache, manifest: Manifest, served: Manifest | None) -> Update:
    """Fetch and apply a version as a generator does. served: None: everything is loaded, by vLLM's own route."""
    began_s = time.perf_counter()
    ready = await asyncio.to_thread(cache.advance, manifest)
    fetched_s = time.perf_counter()
    update, kind = WeightUpdate(manifest.version, ready.path), Kind.WHOLE
    if served is not None:
        changed = {name for name, proof in manifest.tensors.items() if served.tensors.get(name) != proof}
        update = WeightUpdate(manifest.version, ready.path, changed, ready.deltas)
        kind = Kind.DELTA if ready.deltas else Kind.ANCHOR
    pause_s = await engine.apply(update)
    return Update(kind, fetched_s - began_s, time.perf_counter() - fetched_s - pause_s, pause_s)


async def _until(engine: SamplingEngine, due_s: float, tokens: int) -> None:
    """Wait for the time at which the next version is due, and for so many tokens under this one."""
    generated = engine.statistics.tokens_generated
    await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
    while engine.statistics.tokens_generated < generated + tokens:  # noqa: ASYNC110 (it has no event for that)
        await asyncio.sleep(_LOOK_S)


def _metered(engine: SamplingEngine) -> Callable[[], float]:
    """Call it later for the tokens/s since now."""
    generated, began_s = engine.statistics.tokens_generated, time.perf_counter()
    return lambda: (engine.statistics.tokens_generated - generated) / (time.perf_counter() - began_s)


def _save_model(directory: Path) -> dict[str, Tensor]:
    """A Llama of 3.2 million parameters, always the same, as a directory that an engine starts with; its weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=PROMPT + RESPONSE,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=EOS,
    )
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    words = {"<s>": 0, "</s>": EOS} | {f"t{index}": index for index in range(2, VOCABULARY)}
    tokenizer: Any = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(directory)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
