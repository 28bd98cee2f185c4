"""The engine core tells its front of many tokens at a time, and nothing is lost, repeated or mixed up by that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from common.trajectory import Finish
from services.generator.engine import Engine, EngineSettings
from tests.system.engine_rig import ENGINE_MARKS, LoopThread, PublishedLlama

pytestmark = ENGINE_MARKS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PublishedLlama:
    return PublishedLlama(tmp_path_factory.mktemp("held"), tied=False)


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def engine(model: PublishedLlama, loop: LoopThread) -> Iterator[Engine]:
    settings = EngineSettings(model=str(model.directory), dtype="float32", max_model_len=1024, max_num_seqs=16)
    engine = loop.run(Engine.start(settings))
    yield engine
    loop.run(engine.close())


def test_every_token_is_counted_once(engine: Engine, loop: LoopThread) -> None:
    async def scenario() -> None:
        before = engine.statistics.tokens_generated
        responses = await engine.sample([5, 6, 7], n=4, temperature=1.0, max_tokens=600, request_id="counted")
        assert engine.statistics.tokens_generated - before == sum(len(c.tokens) for c in responses)

    loop.run(scenario())


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33])
def test_a_cut_response_has_every_token_and_logprob_whatever_its_length(
    engine: Engine, model: PublishedLlama, loop: LoopThread, length: int
) -> None:
    prompt = [9, 8, 7, 6]
    sampled = loop.run(engine.sample(prompt, n=6, temperature=0.9, max_tokens=length, request_id=f"cut-{length}"))
    assert any(c.finish is Finish.LENGTH and len(c.tokens) == length for c in sampled) or length > 2
    for completion in sampled:
        assert len(completion.logprobs) == len(completion.tokens) <= length
        assert model.largest_error(prompt, completion, 0.9) < 1e-4


def test_a_cancelled_request_leaves_others_whole(engine: Engine, model: PublishedLlama, loop: LoopThread) -> None:
    async def scenario() -> None:
        kept = asyncio.create_task(engine.sample([3, 4], n=3, temperature=1.0, max_tokens=300, request_id="kept"))
        given_up = asyncio.create_task(engine.sample([4, 3], n=3, temperature=1.0, max_tokens=900, request_id="given"))
        generated = engine.statistics.tokens_generated
        while engine.statistics.tokens_generated == generated:
            await asyncio.sleep(0.002)
        given_up.cancel()
        for completion in await kept:
            assert np.isfinite(completion.logprobs).all()
            assert model.largest_error([3, 4], completion, 1.0) < 1e-4
        again = await engine.sample([4, 3], n=2, temperature=1.0, max_tokens=50, request_id="given-again")
        assert all(model.largest_error([4, 3], completion, 1.0) < 1e-4 for completion in again)

    loop.run(scenario())
