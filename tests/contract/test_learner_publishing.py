"""Publications beside the training: steps that do not wait, versions that are passed over, deltas, and sudden death."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common.deltas import read_patches
from common.digests import digest
from common.events import EventKind
from common.stores.directory import DirectoryStorage
from common.stores.fetching import fetch, prove
from common.stores.http import HttpStorage
from common.stores.storage import manifest_at
from common.tensor_file import TensorFile
from common.weights import ANCHOR_FILE, DELTA_FILE, PublicationKind, WeightAnnouncements
from learner.publication.snapshot import Snapshots
from tests.contract.learner_rig import Nursery, Rig, checkpoint_of, make_group, progress_of, saved_tensors, write_run
from tests.contract.publication_deaths import STAGES
from tests.contract.publishing_rig import Gate, shown, step

BFLOAT16 = 'dtype = "bfloat16"\n'


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    path = write_run(tmp_path)
    path.write_text(path.read_text().replace("[data]", f"{BFLOAT16}[data]"))
    rig = Rig(path)
    yield rig
    await rig.close()


def rebuilt(storage: DirectoryStorage, version: int, scratch: Path) -> dict[str, torch.Tensor]:
    """What a generator that knows nothing comes to by the chain of a version, every link proved."""
    chain = [manifest_at(storage, version)]
    while chain[0].kind is PublicationKind.DELTA:
        chain.insert(0, manifest_at(storage, chain[0].base))
    path = scratch / "rebuilt.safetensors"
    path.write_bytes(fetch(storage, chain[0], scratch)[ANCHOR_FILE].read_bytes())
    file = TensorFile(path, writable=True)
    for manifest in chain:
        if manifest.kind is PublicationKind.DELTA:
            for patch in read_patches(fetch(storage, manifest, scratch)[DELTA_FILE].read_bytes(), file.layouts):
                patch.apply(file.patterns(patch.name))
        assert {name: digest(file.raw(name)) for name in file.layouts} == manifest.tensors
    file.flush()
    return load_file(path)


async def test_steps_go_on_while_a_version_is_written_and_the_newest_snapshot_is_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, sets, take = Gate(monkeypatch), set[int](), Snapshots.take

    def taken(snapshots: Snapshots, *args: Any) -> Any:
        snapshot = take(snapshots, *args)
        sets.add(next(iter(snapshot.tensors.values())).data_ptr())
        return snapshot

    monkeypatch.setattr(Snapshots, "take", taken)
    await rig.prepare()
    rig.start()
    for number in range(1, 6):
        await step(rig, number)
    assert gate.versions == [1]
    assert [s["version"] for s in await rig.events(EventKind.STEP)] == [1, 2, 3, 4, 5]
    assert await rig.events(EventKind.PUBLICATION) == []
    assert (shown(rig, "publications_coalesced_total"), shown(rig, "weight_version")) == (3, 0)
    assert shown(rig, "unpublished_updates") == 5  # no generator has any of them
    assert len(sets) == 2  # one is written, one waits
    gate.open()
    assert [(p["version"], p["step"]) for p in await rig.published(5)] == [(1, 1), (5, 5)]
    assert gate.versions == [1, 5]
    assert shown(rig, "unpublished_updates") == 0
    assert (shown(rig, "publications_total"), shown(rig, "weight_version")) == (2, 5)
    assert shown(rig, "publication_seconds_count", stage="snapshot") == 2
    for number in range(6, 12):
        await step(rig, number)
    assert len(sets) <= 3  # the last one, which the next is compared with, as well


async def test_versions_are_told_with_what_they_cost_and_saved(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare(optimizer={"learning_rate": 3e-5, "warmup_steps": 0})
    rig.start()
    for number in (1, 2, 3):
        await step(rig, number)
        await rig.published(number)
    told = await rig.events(EventKind.PUBLICATION)
    assert [(p["kind"], p["base"]) for p in told] == [("anchor", 0), ("delta", 1), ("delta", 2)]
    assert told[0]["changed"] is None
    assert all(0 < p["changed"] < 1 and p["bytes"] < p["full_bytes"] for p in told[1:])
    parts = ("snapshot_s", "canary_s", "encode_s", "write_s")
    assert all(0 < sum(p[part] for part in parts) <= p["seconds"] for p in told)
    assert shown(rig, "publication_changed_ratio") == pytest.approx(told[2]["changed"])
    assert shown(rig, "publication_full_bytes_total") == sum(p["full_bytes"] for p in told)
    assert shown(rig, "publication_anchors_total") == 1
    assert await rig.stop() == 0
    storage = DirectoryStorage(tmp_path / "run" / "weights")
    saved = load_file(checkpoint_of(tmp_path / "run", 3) / "model.safetensors")
    published = rebuilt(storage, 3, tmp_path)
    assert all(tensor.equal(saved[name].to(torch.bfloat16)) for name, tensor in published.items())


async def test_the_canary_of_a_version_is_what_its_weights_say(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare()
    rig.start()
    for number in (1, 2):
        await step(rig, number)
        await rig.published(number)
    manifests = await WeightAnnouncements(rig.process.redis, rig.process.keys).recent(2)
    storage = DirectoryStorage(tmp_path / "run" / "weights")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    sung: list[np.ndarray] = []
    for manifest in manifests:
        canary = manifest.canary
        assert canary is not None
        model.load_state_dict({k: v.float() for k, v in rebuilt(storage, manifest.version, tmp_path).items()})
        ids = torch.tensor(canary.tokens)
        said = torch.log_softmax(model(ids).logits[:, :-1], -1).gather(2, ids[:, 1:, None]).squeeze(2)
        assert np.abs(np.subtract(canary.logprobs, said.detach().numpy())).max() < 1e-5
        sung.append(np.array(canary.logprobs))
    assert manifests[0].canary is not None
    assert manifests[1].canary is not None
    assert manifests[0].canary.tokens == manifests[1].canary.tokens
    assert np.abs(sung[0] - sung[1]).max() > 1e-4


async def test_versions_are_at_least_so_many_seconds_apart(rig: Rig) -> None:
    await rig.prepare(publish_min_interval_s=1000)
    rig.start()
    for number in (1, 2, 3):
        await step(rig, number)
    assert [s["version"] for s in await rig.events(EventKind.STEP)] == [1, 1, 1]
    assert shown(rig, "unpublished_updates") == 2
    await rig.switch(publish_min_interval_s=0)
    await step(rig, 4)
    assert [(p["version"], p["step"]) for p in await rig.published(2)] == [(1, 1), (2, 4)]


async def test_a_learner_that_is_told_to_stop_announces_what_it_has_taken(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare()
    rig.start()
    await step(rig, 1)
    assert await rig.stop() == 0
    newest = await WeightAnnouncements(rig.process.redis, rig.process.keys).newest()
    assert newest is not None
    assert newest.version == 1
    prove(DirectoryStorage(tmp_path / "run" / "weights"), newest)


async def test_a_learner_that_is_told_to_stop_does_not_wait_for_a_slow_store(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.publication.publisher.GRACE_S", 0.3)
    gate = Gate(monkeypatch)
    await rig.prepare()
    rig.start()
    await step(rig, 1)
    try:
        assert await rig.stop() == 0
    finally:
        gate.open()
    assert await rig.events(EventKind.PUBLICATION) == []


async def test_a_paused_learner_announces_what_it_writes_and_an_ordered_checkpoint_has_its_number(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate, orders = Gate(monkeypatch), rig.process.orders
    await rig.prepare()
    rig.start()
    await step(rig, 1)
    await orders.pause("ada", at_s=1.0)
    number = await orders.checkpoint("ada", at_s=2.0)

    async def saved() -> bool:
        return rig.process.heartbeat().get("checkpoint_order") == number

    await rig.until(saved)
    assert progress_of(checkpoint_of(tmp_path / "run", 1))["version"] == 1
    assert (rig.process.heartbeat()["paused"], rig.process.version) == (True, 0)
    gate.open()
    assert [p["version"] for p in await rig.published(1)] == [1]
    await rig.crash()
    rig.start()
    assert [(p["version"], p["step"]) for p in await rig.published(2)] == [(1, 1), (2, 1)]


async def test_a_learner_that_waits_for_its_last_version_to_be_written_is_well(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    rig.run_file.write_text(rig.run_file.read_text().replace("[checkpoints]", "max_steps = 1\n[checkpoints]"))
    monkeypatch.setattr("common.process.BEAT_LIMIT_S", 0.6)
    monkeypatch.setattr("learner.storage.slow_storage.EVERY_S", 0.1)
    await rig.prepare()
    rig.start()
    await step(rig, 1)
    end_s, complaints = asyncio.get_running_loop().time() + 1.2, set[str]()

    async def slow() -> bool:
        complaints.add(rig.process.why_unhealthy())
        return asyncio.get_running_loop().time() > end_s

    await rig.until(slow)
    gate.open()
    assert await rig.ended() == 0
    assert complaints == {""}
    assert [p["version"] for p in await rig.published(1)] == [1]


async def test_the_learner_serves_its_versions_over_http(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIBUTARY_TOKEN", "secret")
    with rig.run_file.open("a") as run_file:
        run_file.write('[weights]\nurl = "http://127.0.0.1:1/"\nserve_port = 0\n')
    await rig.prepare()
    rig.start()
    await step(rig, 1)
    await rig.published(1)
    storage = HttpStorage(rig.process.details["weights_url"], "secret")
    manifest = await asyncio.to_thread(manifest_at, storage, 1)
    paths = await asyncio.to_thread(fetch, storage, manifest, tmp_path / "here")
    ours = tmp_path / "run" / "weights" / "v000001" / ANCHOR_FILE
    assert paths[ANCHOR_FILE].read_bytes() == ours.read_bytes()


@pytest.mark.slow
async def test_death_at_every_stage_of_a_publication_leaves_only_whole_versions_and_the_same_bits(
    rig: Rig, tmp_path: Path, redis_server: Any, client: Any, request: pytest.FixtureRequest
) -> None:
    steps = 3 * (len(STAGES) + 1)
    text = rig.run_file.read_text().replace("every_steps = 1000", "every_steps = 2")
    rig.run_file.write_text(text.replace("[checkpoints]", f"max_steps = {steps}\n[checkpoints]"))
    await rig.prepare(groups_per_step=1, optimizer={"learning_rate": 3e-5, "warmup_steps": 0})
    nursery = Nursery(rig.run_file, redis_server.url)
    request.addfinalizer(nursery.close)
    storage = DirectoryStorage(tmp_path / "run" / "weights")
    announcements = WeightAnnouncements(rig.process.redis, rig.process.keys)
    emitted, announced = 0, 0
    for stage in (*STAGES, ""):
        await asyncio.to_thread(nursery.start, stage)
        ended = asyncio.create_task(asyncio.to_thread(nursery.code))
        while not ended.done():
            if await rig.process.delivery.outstanding() == 0 and emitted < steps + 10:
                await rig.emit([make_group(emitted)])
                emitted += 1
            await asyncio.wait({ended}, timeout=0.05)
        assert await ended == (-signal.SIGKILL if stage else 0), stage
        newest = await announcements.newest()
        assert newest is not None
        assert newest.version > announced
        announced = newest.version
        assert manifest_at(storage, announced) == newest
        rebuilt(storage, announced, tmp_path)
    versions = [manifest.version for manifest in await announcements.recent(200)]
    assert versions == sorted(set(versions), reverse=True)
    assert not list((tmp_path / "run" / "weights").glob(".*"))
    resumed = saved_tensors(checkpoint_of(tmp_path / "run", steps))
    await client().flushall()
    other = Rig(write_run(tmp_path / "undisturbed", learner=f"max_steps = {steps}", every_steps=2))
    await other.prepare(groups_per_step=1, optimizer={"learning_rate": 3e-5, "warmup_steps": 0})
    await other.emit(make_group(number) for number in range(steps))
    other.start()
    assert await other.ended() == 0
    await other.close()
    assert resumed == saved_tensors(checkpoint_of(tmp_path / "undisturbed" / "run", steps))


async def test_a_version_that_was_announced_and_is_gone_is_followed_by_a_whole_one(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare()
    rig.start()
    for number in (1, 2):
        await step(rig, number)
        await rig.published(number)
    await rig.crash()
    storage = DirectoryStorage(tmp_path / "run" / "weights")
    for version in (1, 2):
        storage.delete(version)
    rig.start()
    told = {p["version"]: p["kind"] for p in await rig.published(3)}
    assert told[3] == "anchor"
    rebuilt(storage, 3, tmp_path)
