"""An exported checkpoint is served by a real engine, with the very weights that were trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.settings import load_run
from learner import export
from learner.__main__ import open_trainer
from learner.storage.checkpoint import Checkpoint, CheckpointStore, Progress
from services.generator.engine import Completion, Engine, EngineSettings
from tests.contract.learner_rig import write_run
from tests.system.engine_rig import ENGINE_MARKS, LoopThread, PublishedLlama

pytestmark = ENGINE_MARKS
PROMPT = [5, 6, 7, 8]
TRAINED = 3


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.mark.parametrize("tied", [False, True])
def test_an_engine_serves_an_exported_checkpoint(tmp_path: Path, loop: LoopThread, tied: bool) -> None:
    base = PublishedLlama(tmp_path / "model", tied=tied)
    run_file = write_run(tmp_path)
    settings = load_run(run_file)
    trainer = open_trainer(settings)
    trainer.model.load_state_dict({n: w.float() for n, w in base.weights(TRAINED).items()}, strict=False)
    store = CheckpointStore(settings.checkpoints_directory, 1)
    store.commit(Checkpoint(Progress(5, 5, 1, 5, 0, (), (), (), ()), trainer.tensors()))
    assert export.main([str(run_file), "--to", str(tmp_path / "out")]) == 0
    engine = loop.run(Engine.start(EngineSettings(model=str(tmp_path / "out"), dtype="float32", max_model_len=512)))
    try:
        completions: list[Completion] = loop.run(
            engine.sample(PROMPT, n=4, temperature=1.0, max_tokens=40, request_id="exported")
        )
    finally:
        loop.run(engine.close())
    for completion in completions:
        tokens = PROMPT + completion.tokens.tolist()
        expected_R = base.logprobs_with(base.weights(TRAINED), tokens)[len(PROMPT) - 1 :]
        np.testing.assert_allclose(completion.logprobs, expected_R, atol=1e-4)
