"""The benchmark of weight versions proves what it times: the codec on any device, updates while requests run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fake_engine import FakeEngine

from benchmarks import _weights_codec, _weights_engine, weights
from benchmarks._weights_codec import SHAPES, SHARES, measure
from benchmarks._weights_engine import Kind, Measured, Plan, Update, keep_updating, publish_chains, report
from common.stores.directory import DirectoryStorage
from common.tensor_file import TensorFile
from common.weights import Manifest
from services.generator.engine import Completion
from services.generator.engine_settings import EngineSettings
from services.generator.weight_cache import WeightCache
from services.generator.weight_update import AnyUpdate

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("by_torch", [False, True])
def test_every_share_is_coded_and_proved(device: str, by_torch: bool) -> None:
    first, snapshot, head, *lines = measure(device, SHAPES["tiny"], by_torch=by_torch)
    assert first.startswith("0.00 GB of bfloat16 weights in 3 tensors")
    assert snapshot.startswith("snapshot ")
    assert [len(line.split()) for line in lines] == [len(head.split())] * len(SHARES)
    assert [line.split()[0] for line in lines] == ["0.1%", "1.3%", "5.0%", "8.5%", "42.0%", "100.0%"]


def test_a_codec_that_loses_something_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_weights_codec, "apply", lambda patch, tensor: None)
    with pytest.raises(RuntimeError, match="where the learner applies it"):
        list(measure("cpu", SHAPES["tiny"]))


def test_the_shapes_are_those_of_a_model_of_one_and_a_half_billion_parameters() -> None:
    count = sum(int(torch.Size(shape).numel()) for shape in SHAPES["1.5b"])
    assert count == pytest.approx(1.54e9, rel=0.01)


PLAN = Plan(rounds=2, chain=4, every_s=0.02, requests=3, warm_up_s=0.0)
NAMES = {"wide", "long"}


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    return DirectoryStorage(tmp_path / "store")


@pytest.fixture
def manifests(storage: DirectoryStorage) -> list[Manifest]:
    torch.manual_seed(0)
    return publish_chains(storage, {"wide": torch.randn(64, 64), "long": torch.randn(4096)}, PLAN)


class Mislabelling(FakeEngine):
    """Says that it serves a version which it skips."""

    async def apply(self, update: AnyUpdate) -> float:
        held = self.version
        pause_s = await super().apply(update)
        if update.version == 3:
            self.version = held
        return pause_s


class Failing(FakeEngine):
    """Breaks at its tenth request."""

    async def sample(self, *arguments: object, **named: object) -> list[Completion]:
        if named["request_id"] == "request-9":
            raise OSError("the tenth")
        return await super().sample(*arguments, **named)  # type: ignore[arg-type]


async def test_every_version_is_fetched_and_applied_as_a_generator_does_it(
    tmp_path: Path, storage: DirectoryStorage, manifests: list[Manifest]
) -> None:
    engine, cache = FakeEngine(token_s=0.001), WeightCache(storage, tmp_path / "cache", 1 << 30)
    measured = await keep_updating(engine, cache, manifests, PLAN)
    assert engine.applied == list(range(1, 9))
    deltas = [Kind.DELTA] * 3
    assert [update.kind for update in measured.updates] == [Kind.WHOLE, *deltas, Kind.ANCHOR, *deltas]
    assert [update.changed for update in engine.updates] == [None] + 7 * [NAMES]
    assert [len(update.deltas) for update in engine.updates] == [0, 1, 1, 1, 0, 1, 1, 1]
    assert {update.pause_s for update in measured.updates} == {0.01}, "the engine's own word"
    assert all(update.fetch_s > 0 for update in measured.updates)
    assert len(measured.quiet) == len(measured.updating) == PLAN.rounds
    assert min(measured.quiet + measured.updating) > 0
    assert engine.calls[0][1:] == (1, 1.0, _weights_engine.RESPONSE)
    assert engine.statistics.running == 0, "nothing is left unanswered"


async def test_a_version_that_samples_nothing_is_found_out(
    tmp_path: Path, storage: DirectoryStorage, manifests: list[Manifest]
) -> None:
    engine, cache = Mislabelling(token_s=0.001), WeightCache(storage, tmp_path / "cache", 1 << 30)
    with pytest.raises(RuntimeError, match="no token was sampled under version 3"):
        await keep_updating(engine, cache, manifests, PLAN)


async def test_a_request_that_fails_ends_the_measurement(
    tmp_path: Path, storage: DirectoryStorage, manifests: list[Manifest]
) -> None:
    engine, cache = Failing(token_s=0.001), WeightCache(storage, tmp_path / "cache", 1 << 30)
    with pytest.raises(ExceptionGroup) as raised:
        await keep_updating(engine, cache, manifests, PLAN)
    assert raised.group_contains(OSError, match="the tenth")


def test_versions_that_do_not_come_as_planned_are_found_out(storage: DirectoryStorage) -> None:
    alike = {"none": torch.empty(0)}  # deltas would weigh more than the anchor
    with pytest.raises(RuntimeError, match="was published as anchor"):
        publish_chains(storage, alike, PLAN)


def test_the_table_tells_median_percentile_and_largest_pause_and_what_an_update_costs() -> None:
    updates = [Update(Kind.DELTA, 0.002, 0.004, number / 1000) for number in range(101)]
    updates += [Update(Kind.WHOLE, 0.001, 0.003, pause_s) for pause_s in (0.02, 0.03)]
    head, deltas, whole, speeds, _ = report(Measured(updates, [900.0, 1100.0], [940.0, 960.0]), Plan(every_s=2.0))
    assert head.split()[:6] == ["update", "versions", "fetch", "prepare", "pause:", "median"]
    assert deltas.split() == ["delta", "101", "2.0", "4.0", "50.0", "95.0", "100.0"]
    assert whole.split() == ["whole", "2", "1.0", "3.0", "25.0", "n/a", "30.0"]
    assert "1,000 (900 to 1,100) without updates, 950 (940 to 960) with a delta every 2 s: each costs 100 ms" in speeds


@pytest.mark.parametrize("keeps", [False, True])
def test_the_engine_starts_as_generators_start_it_with_a_model_of_three_million_parameters(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(settings: EngineSettings) -> None:
        layouts = TensorFile(Path(settings.model) / "model.safetensors").layouts
        assert sum(layout.elements for layout in layouts.values()) == pytest.approx(3.2e6, rel=0.02)
        assert {layout.dtype for layout in layouts.values()} == {"F32"}
        assert (settings.clear_cache_on_update, settings.max_num_seqs) == (not keeps, 16)
        raise OSError("enough is known")

    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setattr(_weights_engine.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(_weights_engine.Engine, "start", start)
    monkeypatch.setattr(weights, "Plan", lambda clear_cache: Plan(rounds=1, chain=2, clear_cache=clear_cache))
    monkeypatch.setattr(sys, "argv", ["weights", "--no-steps", "--no-codec", *(["--keep-cache"] if keeps else [])])
    monkeypatch.setattr(weights.torch, "set_num_threads", lambda count: None)  # other tests go on in this process
    with pytest.raises(OSError, match="enough is known"):
        weights.main()


@pytest.mark.parametrize("arguments", [[], ["--no-engine"]])
def test_without_an_engine_it_says_so_unless_none_was_asked_for(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_weights_engine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(weights.torch, "set_num_threads", lambda count: None)  # other tests go on in this process
    monkeypatch.setattr(sys, "argv", ["weights", "--no-steps", "--no-codec", *arguments])
    weights.main()
    assert capsys.readouterr().out == ("" if arguments else "no engine is measured: vLLM is not installed\n")
