"""Two hundred updates while requests run: from the learner's store to the engine, every token under its own version."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.stores.directory import DirectoryStorage
from common.weights import Manifest, PublicationKind
from learner.publication.snapshot import Origin, Snapshot
from learner.publication.weight_store import WeightStore
from services.generator.engine import Completion, Engine, EngineSettings
from services.generator.weight_cache import WeightCache
from services.generator.weight_update import WeightUpdate
from tests.system.engine_rig import ENGINE_MARKS, LoopThread, PublishedLlama

pytestmark = [*ENGINE_MARKS, pytest.mark.slow]
VERSIONS = 200
ANCHOR_EVERY = 50
TOLERANCE = 1e-4
TEMPERATURE = 0.8
CHANGED = 0.01

Sampled = list[tuple[list[int], Completion]]


class Lineage:
    """Weights of which each version changes one in a hundred elements of the one before, as a step of training does."""

    def __init__(self, base: dict[str, Tensor]) -> None:
        self._base = base

    def versions(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(version, its bf16 weights), from 1 on."""
        weights = {name: tensor.clone() for name, tensor in self._base.items()}
        for version in itertools.count(1):
            noise = torch.Generator().manual_seed(version)
            for name, tensor in weights.items():
                hit = torch.rand(tensor.shape, generator=noise) < CHANGED
                moved = self._base[name] + (0.1 * torch.randn(tensor.shape, generator=noise)).bfloat16()
                tensor[hit] = moved[hit]
            yield version, {name: tensor.clone() for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


def test_every_token_of_two_hundred_updates_in_flight_has_the_logprob_of_its_version(
    tmp_path: Path, loop: LoopThread
) -> None:
    model = PublishedLlama(tmp_path / "model", tied=False)
    lineage = Lineage(model.weights(0))
    settings = EngineSettings(model=str(model.directory), dtype="float32", max_model_len=1024, max_num_seqs=24)
    engine = loop.run(Engine.start(settings))
    try:
        sampled, kinds = loop.run(_updates_in_flight(engine, lineage, tmp_path), 280.0)
    finally:
        loop.run(engine.close())
    assert kinds.count(PublicationKind.ANCHOR) == VERSIONS // ANCHOR_EVERY
    spans = [span for _, completion in sampled for span in completion.versions]
    assert {span.version for span in spans} >= set(range(1, VERSIONS + 1))
    assert sum(len(completion.versions) > 1 for _, completion in sampled) > 50
    assert _largest_error(model, lineage, sampled) < TOLERANCE
    assert _largest_error(model, lineage, sampled[:40], moved_by=1) > 0.01, "the comparison tells versions apart"


async def _updates_in_flight(
    engine: Engine, lineage: Lineage, directory: Path
) -> tuple[Sampled, list[PublicationKind]]:
    """Publish, fetch and apply version after version while eight requests are always being answered."""
    storage = DirectoryStorage(directory / "store")
    store = WeightStore(storage, anchor_every=ANCHOR_EVERY)
    cache = WeightCache(storage, directory / "cache", 1 << 30)
    sampled: Sampled = []
    numbers = itertools.count()
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            number = next(numbers)
            prompt = [5, 6, 7, 2 + number % 60] * (1 + number % 5)
            completions = await engine.sample(
                prompt, n=2, temperature=TEMPERATURE, max_tokens=120, request_id=f"request-{number}"
            )
            sampled.extend((prompt, completion) for completion in completions)

    asking = [asyncio.create_task(ask()) for _ in range(8)]
    kinds: list[PublicationKind] = []
    served: Manifest | None = None
    for version, weights in itertools.islice(lineage.versions(), VERSIONS):
        written = await asyncio.to_thread(store.write, Snapshot(version, Origin(version, 1), weights))
        kinds.append(written.manifest.kind)
        ready = await asyncio.to_thread(cache.advance, written.manifest)
        changed = None if served is None else set(weights)
        generated = engine.statistics.tokens_generated
        while engine.statistics.tokens_generated < generated + 16:
            await asyncio.sleep(0.002)
        await engine.apply(WeightUpdate(version, ready.path, changed, ready.deltas))
        served = written.manifest
    stop.set()
    await asyncio.gather(*asking)
    cache.close()
    return sampled, kinds


def _largest_error(model: PublishedLlama, lineage: Lineage, sampled: Sampled, moved_by: int = 0) -> float:
    """The largest difference to a forward under the version that each token names, or to one that comes later."""
    by_version: dict[int, list[tuple[list[int], Completion]]] = {}
    for prompt, completion in sampled:
        for span in completion.versions:
            by_version.setdefault(span.version + moved_by, []).append((prompt, completion))
    largest = 0.0
    for version, weights in itertools.islice(lineage.versions(), VERSIONS):
        for prompt, completion in by_version.get(version, []):
            tokens = prompt + completion.tokens.tolist()
            expected_R = model.logprobs_with(weights, tokens, TEMPERATURE)[len(prompt) - 1 :]
            for span in completion.versions:
                if span.version + moved_by == version:
                    apart_R = np.abs(completion.logprobs - expected_R)[span.start : span.end]
                    largest = max(largest, float(apart_R.max()))
    return largest
