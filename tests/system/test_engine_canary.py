"""The canary against a real engine: what it serves is told from what it should serve."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common.weights import Canary
from services.generator import engine_settings
from services.generator.canary import Proved, WrongWeights, judge, sing
from services.generator.engine import Engine, EngineSettings
from services.generator.weight_update import WeightUpdate
from tests.system.engine_rig import ENGINE_MARKS, LoopThread, PublishedLlama

pytestmark = ENGINE_MARKS
TOKENS = tuple(tuple(int(t) for t in np.random.default_rng(row).integers(0, 64, 32)) for row in range(4))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PublishedLlama:
    return PublishedLlama(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(params=["usual", "forgetful"], scope="module")
def worker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(model: PublishedLlama, loop: LoopThread, worker: str) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        if worker == "forgetful":
            patch.setattr(engine_settings, "_WORKER_EXTENSION", "tests.system.forgetful_worker.WorkerExtension")
        engine = loop.run(Engine.start(EngineSettings(model=str(model.directory), dtype="float32", max_model_len=512)))
    yield engine
    loop.run(engine.close())


def canary_of(model: PublishedLlama, weights: dict[str, torch.Tensor]) -> Canary:
    logprobs = tuple(tuple(float(v) for v in model.logprobs_with(weights, list(row))) for row in TOKENS)
    return Canary(TOKENS, logprobs, tolerance=1e-3, mean_tolerance=1e-4, dtype="float32")


def test_the_right_weights_are_proved_and_every_wrong_one_is_refuted(
    engine: Engine, model: PublishedLlama, loop: LoopThread, worker: str
) -> None:
    canaries = {version: canary_of(model, model.weights(version)) for version in range(3)}

    def judged(version: int, before: Proved | None = None) -> Proved:
        return judge(version, loop.run(sing(engine, canaries[version])), canaries[version], before)

    assert judged(0).reading.largest < 1e-4
    with pytest.raises(WrongWeights, match="refutes version 1"):
        judged(1)  # never applied
    loop.run(engine.apply(model.update(1, complete=True)))
    if worker == "forgetful":  # the embedding is new, the head that shares it is not
        with pytest.raises(WrongWeights, match=r"differ from the learner's by up to [1-9]"):
            judged(1)
        return
    proved = judged(1)
    assert proved.reading.largest < 1e-4
    loop.run(engine.apply(WeightUpdate(2, model.publish(1), set(model.weights(1)))))  # of another version
    with pytest.raises(WrongWeights, match="refutes version 2"):
        judged(2, proved)
    loop.run(engine.apply(model.update(2)))
    assert judged(2, proved).reading.largest < 1e-4


def test_a_step_too_small_for_the_tolerance_is_missed_by_nobody_when_it_does_not_arrive(
    engine: Engine, model: PublishedLlama, loop: LoopThread, worker: str
) -> None:
    if worker == "forgetful":
        pytest.skip("one worker is enough")
    before, after = dict(model.weights(3)), dict(model.weights(3))
    name = "model.layers.0.mlp.down_proj.weight"
    before = {key: tensor.float() for key, tensor in before.items()}
    after = before | {name: before[name] + 4e-6 * torch.randn(before[name].shape)}
    paths = [model.versions / f"small-{number}.safetensors" for number in (3, 4)]
    for path, weights in zip(paths, (before, after), strict=True):
        save_file(weights, path)
    old, new = canary_of(model, before), canary_of(model, after)
    step = np.abs(np.array(old.logprobs) - np.array(new.logprobs)).max()
    assert 1e-5 < step < 5e-4
    loop.run(engine.apply(WeightUpdate(3, paths[0], None)))
    proved = judge(3, loop.run(sing(engine, old)), old, None)
    loop.run(engine.apply(WeightUpdate(4, paths[1], set())))  # says that nothing has changed
    with pytest.raises(WrongWeights, match="the old weights are still served"):
        judge(4, loop.run(sing(engine, new)), new, proved)
    loop.run(engine.apply(WeightUpdate(4, paths[1], {name})))
    assert judge(4, loop.run(sing(engine, new)), new, proved).reading.largest < 1e-5
