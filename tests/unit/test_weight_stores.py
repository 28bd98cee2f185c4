"""The stores: whole publications or none, by ranges, and the same through a directory, an object store and HTTP."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from common.digests import DigestKind, digest
from common.durable import NotWritten
from common.errors import SettingsError, WeightsError
from common.stores.directory import DirectoryStorage
from common.stores.fetching import fetch, prove
from common.stores.object_store import ObjectStorage
from common.stores.storage import BLOCK, WeightStorage, manifest_at
from common.weights import MANIFEST_FILE, Manifest, PublicationKind, location_of

CONTENT = bytes(range(256)) * 40
Opened = Callable[[Path], WeightStorage]


@pytest.fixture(params=["directory", "objects"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """How to open the store of a test, again and again."""
    if request.param == "directory":
        return lambda _: DirectoryStorage(tmp_path / "weights")
    url = f"memory://{request.node.name}"
    return lambda _: ObjectStorage(url, tmp_path / "scratch")


@pytest.fixture
def storage(opened: Opened, tmp_path: Path) -> WeightStorage:
    return opened(tmp_path)


def manifest_of(version: int, content: bytes = CONTENT, *, empty: bool = False) -> Manifest:
    files = {"model.safetensors": (len(content), digest(content))} | ({"empty": (0, digest(b""))} if empty else {})
    kind, location = PublicationKind.ANCHOR, location_of(version)
    size = len(content)
    return Manifest(version, 1, 1, kind, 0, location, files, {}, size, 0.0, anchor=version, digests=DigestKind.BLAKE3)


def put(storage: WeightStorage, version: int, content: bytes = CONTENT) -> Manifest:
    manifest = manifest_of(version, content, empty=True)
    with storage.publishing(manifest.location) as directory:
        (directory / "model.safetensors").write_bytes(content)
        (directory / "empty").touch()
        (directory / MANIFEST_FILE).write_bytes(manifest.encode())
    return manifest


def test_what_was_published_is_found_read_by_ranges_and_removed(storage: WeightStorage) -> None:
    for version in (9, 10, 1_000_000):
        put(storage, version)
    assert storage.versions() == [9, 10, 1_000_000]
    assert storage.size(location_of(10), "model.safetensors") == len(CONTENT)
    assert storage.read(location_of(10), "model.safetensors", 250, 10) == CONTENT[250:260]
    assert manifest_at(storage, 10) == manifest_of(10, empty=True)
    storage.delete(10)
    storage.delete(10)
    assert storage.versions() == [9, 1_000_000]
    for what in (lambda: storage.size(location_of(10), "model.safetensors"), lambda: manifest_at(storage, 10)):
        with pytest.raises(WeightsError, match="cannot read"):
            what()


def test_a_range_beyond_the_end_is_an_error(storage: WeightStorage) -> None:
    put(storage, 1)
    with pytest.raises(WeightsError):
        storage.read(location_of(1), "model.safetensors", len(CONTENT) - 1, 2)


def test_a_publication_that_broke_off_is_not_there_and_is_swept_away(opened: Opened, tmp_path: Path) -> None:
    storage = opened(tmp_path)
    put(storage, 1)

    def break_off() -> None:
        with storage.publishing(location_of(2)) as directory:
            (directory / "model.safetensors").write_bytes(CONTENT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert storage.versions() == [1]
    storage.sweep()
    assert opened(tmp_path).versions() == [1]


def test_an_empty_store_has_no_versions(storage: WeightStorage) -> None:
    assert storage.versions() == []
    storage.sweep()


def test_a_directory_that_a_killed_writer_left_is_no_version_and_is_swept_away(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    put(storage, 1)
    for name in (".v000002.unfinished", ".v000003.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST_FILE).write_bytes(manifest_of(2).encode())
    (tmp_path / "notes").mkdir()
    assert storage.versions() == [1]
    storage.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "v000001"]


def test_files_without_a_manifest_are_no_version_and_are_swept_away(tmp_path: Path) -> None:
    url = "memory://killed-while-sending"
    storage = ObjectStorage(url, tmp_path)
    put(storage, 1)
    files = fsspec.filesystem("memory")
    files.pipe_file("/killed-while-sending/v000002/model.safetensors", b"half")
    files.pipe_file("/killed-while-sending/notes.txt", b"not ours")
    assert storage.versions() == [1]
    storage.sweep()
    assert not files.exists("/killed-while-sending/v000002/model.safetensors")
    assert storage.versions() == [1]
    assert files.exists("/killed-while-sending/notes.txt")


def test_what_was_being_put_together_when_the_writer_was_killed_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".publication-x").mkdir()
    (tmp_path / ".publication-x" / "model.safetensors").write_bytes(b"half")
    ObjectStorage("memory://swept", tmp_path).sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_publication_is_proved_where_it_lies(opened: Opened, tmp_path: Path) -> None:
    storage = opened(tmp_path)
    manifest = put(storage, 1, bytes(BLOCK + 1))
    prove(storage, manifest)
    for size, proof in ((BLOCK + 1, "00"), (BLOCK, digest(bytes(BLOCK))), (BLOCK + 2, "00")):
        with pytest.raises(WeightsError):
            prove(storage, replace(manifest, files={"model.safetensors": (size, proof)}))


def test_a_place_that_takes_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotWritten, match="cannot write"):
        put(DirectoryStorage(tmp_path / "file"), 1)
    with pytest.raises(NotWritten, match="cannot write memory://there"):
        put(ObjectStorage("memory://there", tmp_path / "file"), 1)


def test_an_url_that_nothing_here_can_open_is_a_setting_to_correct() -> None:
    with pytest.raises(SettingsError, match=r"weights\.url: nowhere://x cannot be used"):
        ObjectStorage("nowhere://x")


class Interrupted(Exception):
    pass


class Flaky(ObjectStorage):
    """A store that breaks off after some reads, and remembers them."""

    def __init__(self, url: str, scratch: Path) -> None:
        super().__init__(url, scratch)
        self.ranges: list[tuple[int, int]] = []
        self.left = 1000

    def read(self, location: str, name: str, start: int, length: int) -> bytes:
        if self.left == 0:
            raise WeightsError("the network is gone")
        self.left -= 1
        self.ranges.append((start, length))
        return super().read(location, name, start, length)


def test_a_fetch_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    storage = Flaky("memory://flaky", tmp_path)
    content = bytes(2 * BLOCK + 5)
    manifest = put(storage, 1, content)
    storage.left = 2
    with pytest.raises(WeightsError, match="network is gone"):
        fetch(storage, manifest, tmp_path / "here")
    assert not (tmp_path / "here" / "model.safetensors").exists()
    storage.left = 1000
    paths = fetch(storage, manifest, tmp_path / "here")
    assert paths["model.safetensors"].read_bytes() == content
    assert storage.ranges == [(0, BLOCK), (BLOCK, BLOCK), (2 * BLOCK, 5)]
    fetch(storage, manifest, tmp_path / "here")
    assert len(storage.ranges) == 3


def test_a_fetch_can_be_ended_between_blocks(tmp_path: Path) -> None:
    storage = Flaky("memory://ended", tmp_path)
    manifest = put(storage, 1)

    def heed() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        fetch(storage, manifest, tmp_path / "here", heed)


def test_bytes_of_another_digest_are_refused_and_fetched_again(tmp_path: Path) -> None:
    storage = ObjectStorage("memory://damaged", tmp_path)
    manifest = put(storage, 1)
    files = fsspec.filesystem("memory")
    files.pipe_file("/damaged/v000001/model.safetensors", bytes(len(CONTENT)))
    with pytest.raises(WeightsError, match="does not match its digest"):
        fetch(storage, manifest, tmp_path / "here")
    files.pipe_file("/damaged/v000001/model.safetensors", CONTENT)
    assert fetch(storage, manifest, tmp_path / "here")["model.safetensors"].read_bytes() == CONTENT


def test_a_directory_store_is_fetched_from_where_it_lies(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path / "weights")
    manifest = put(storage, 1)
    paths = fetch(storage, manifest, tmp_path / "here")
    assert paths["model.safetensors"] == tmp_path / "weights" / "v000001" / "model.safetensors"
    assert not (tmp_path / "here").exists()
    paths["model.safetensors"].write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="bytes, not"):
        fetch(storage, manifest, tmp_path / "here")
    paths["model.safetensors"].write_bytes(bytes(len(CONTENT)))
    with pytest.raises(WeightsError, match="does not match its digest"):
        fetch(storage, manifest, tmp_path / "here")
    assert paths["model.safetensors"].exists()


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "..", ".hidden", "a/b", ""])
def test_a_name_that_leads_elsewhere_is_refused_and_what_lies_there_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / "up").write_bytes(b"x")
    evil = replace(manifest_of(1), files={name: (1, "00")})
    for storage in (ObjectStorage("memory://evil", tmp_path), DirectoryStorage(tmp_path / "here")):
        with pytest.raises(WeightsError, match="no name of a file"):
            fetch(storage, evil, tmp_path / "here")
    assert (tmp_path / "up").read_bytes() == b"x"


def test_a_file_url_is_a_store_as_well(tmp_path: Path) -> None:
    storage = ObjectStorage(f"file://{tmp_path}/store", tmp_path / "scratch")
    manifests = {version: put(storage, version) for version in (1, 2)}
    assert storage.versions() == [1, 2]
    assert manifest_at(storage, 2) == manifests[2]
    storage.delete(1)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["v000002"]


class Unsteady:
    """A file system that does not take one file, nor lets anything be removed, while it is `down`."""

    def __init__(self, real: Any, complaint: str = "the network is gone") -> None:
        self.real = real
        self.complaint = complaint
        self.down = ""
        self.attempts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def put_file(self, local: str, remote: str) -> None:
        if self.down and remote.endswith(self.down):
            raise ConnectionError(self.complaint)
        self.real.put_file(local, remote)

    def rm_file(self, path: str) -> None:
        self.attempts += 1
        if self.down:
            raise ConnectionError("the network is gone")
        self.real.rm_file(path)


def test_what_a_broken_sending_left_is_removed_as_soon_as_that_works(tmp_path: Path) -> None:
    storage = ObjectStorage("memory://unsteady", tmp_path)
    files = storage._files = Unsteady(storage._files)
    put(storage, 1)
    files.down = MANIFEST_FILE
    for version in (2, 3, 4):
        files.attempts = 0
        with pytest.raises(NotWritten, match="the network is gone"):
            put(storage, version)
    assert files.attempts == 2  # not one for each that is left: every one may take as long as the network's timeout
    storage.delete(1)
    assert storage.versions() == [1]  # whole, as its manifest says
    assert storage.size(location_of(1), "model.safetensors") == len(CONTENT)
    files.down = ""
    put(storage, 5)
    assert {str(path).split("/")[-2] for path in files.find("/unsteady")} == {"v000005"}


@pytest.mark.parametrize(
    ("place", "shown"),
    [("ada:hush@there/x", ":***@there/x"), ("ada:hu/hush@there/x", ":***@there/x"), ("x?key=hush", "x?***")],
)
def test_a_password_in_the_url_is_not_told(tmp_path: Path, place: str, shown: str) -> None:
    def opened(protocol: str) -> None:
        ObjectStorage(f"{protocol}://{place}")

    storage = ObjectStorage(f"memory://{place}", tmp_path)
    storage._files = Unsteady(storage._files, f"memory://{place} is gone")
    storage._files.down = MANIFEST_FILE
    calls: list[Callable[[], object]] = [
        lambda: opened("nowhere"),
        lambda: storage.size(location_of(1), "model.safetensors"),
        lambda: put(storage, 1),
    ]
    for call in calls:
        with pytest.raises((SettingsError, WeightsError, NotWritten)) as told:
            call()
        text = "".join(traceback.format_exception(told.value))
        assert "hush" not in text
        assert f"://{shown}" in str(told.value)
