"""A model whose output head is its embedding serves both of them right after an update."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.torch import save_file

from services.generator.engine import Completion, Engine, EngineSettings
from services.generator.weight_update import WeightUpdate
from tests.system.engine_rig import ENGINE_MARKS, LoopThread, PublishedLlama

pytestmark = ENGINE_MARKS
PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PublishedLlama:
    return PublishedLlama(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def engine(model: PublishedLlama, loop: LoopThread) -> Iterator[Engine]:
    engine = loop.run(Engine.start(EngineSettings(model=str(model.directory), dtype="float32", max_model_len=512)))
    yield engine
    loop.run(engine.close())


def _error(engine: Engine, model: PublishedLlama, loop: LoopThread) -> float:
    completions: list[Completion] = loop.run(
        engine.sample(PROMPT, n=8, temperature=1.0, max_tokens=60, request_id="tied")
    )
    return max(model.largest_error(PROMPT, completion, 1.0) for completion in completions)


def test_a_tied_head_follows_every_update(engine: Engine, model: PublishedLlama, loop: LoopThread) -> None:
    assert _error(engine, model, loop) < 1e-4
    for version in (1, 2, 3):
        loop.run(engine.apply(model.update(version, complete=version == 1)))
        assert _error(engine, model, loop) < 1e-4


def test_a_file_may_hold_the_tied_head_too(engine: Engine, model: PublishedLlama, loop: LoopThread) -> None:
    weights = model.weights(4)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path := model.versions / "with-head.safetensors")
    for changed in (None, set(weights)):
        loop.run(engine.apply(WeightUpdate(4, path, changed)))
        assert _error(engine, model, loop) < 1e-4


def test_a_tied_model_scores_right_after_an_update_in_flight(
    engine: Engine, model: PublishedLlama, loop: LoopThread
) -> None:
    async def scenario() -> list[Completion]:
        running = asyncio.create_task(
            engine.sample(PROMPT, n=24, temperature=1.0, max_tokens=400, request_id="in-flight")
        )
        while engine.statistics.running == 0:
            await asyncio.sleep(0.005)
        await engine.apply(model.update(5))
        return await running

    completions = loop.run(scenario())
    assert max(len(completion.versions) for completion in completions) == 2
    assert max(model.largest_error(PROMPT, completion, 1.0) for completion in completions) < 1e-4
    tokens = list(range(2, 64))
    np.testing.assert_allclose(loop.run(engine.score(tokens, 1)), model.logprobs(5, tokens), atol=1e-4)
