"""The object store against a local server that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from common.durable import NotWritten
from common.errors import WeightsError
from common.stores.fetching import fetch
from common.stores.object_store import ObjectStorage
from common.stores.storage import manifest_at
from common.weights import MANIFEST_FILE
from tests.unit.test_weight_stores import CONTENT, put


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A server that speaks S3, in the variables that clients read."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield
    server.stop()


@pytest.fixture
def bucket(server: None, tmp_path: Path) -> str:
    """The URL of a place in a bucket that is there and empty."""
    name = f"bucket-{tmp_path.name[:20].replace('_', '-').strip('-')}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}/run [1]"


def test_versions_are_published_found_fetched_and_removed(bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage(bucket, tmp_path)
    assert storage.versions() == []
    manifests = {version: put(storage, version) for version in (1, 2, 3)}
    assert ObjectStorage(bucket).versions() == [1, 2, 3]
    assert manifest_at(storage, 2) == manifests[2]
    paths = fetch(storage, manifests[2], tmp_path / "here")
    assert {name: path.read_bytes() for name, path in paths.items()} == {"model.safetensors": CONTENT, "empty": b""}
    assert storage.read("v000003", "model.safetensors", 250, 10) == CONTENT[250:260]
    storage.delete(2)
    assert storage.versions() == [1, 3]
    with pytest.raises(WeightsError, match="cannot read s3://bucket"):
        storage.size("v000002", "model.safetensors")


def test_the_manifest_is_sent_last_and_what_has_none_is_swept_away(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = ObjectStorage(bucket, tmp_path)
    put(storage, 1)
    files = storage._files
    real, sent = type(files).put_file, []

    def put_file(local: str, remote: str, **options: object) -> None:
        sent.append(remote.rpartition("/")[2])
        if sent[-1] == MANIFEST_FILE:
            raise ConnectionError("the network is gone")
        real(files, local, remote, **options)

    monkeypatch.setattr(files, "put_file", put_file)
    with pytest.raises(NotWritten, match="the network is gone"):
        put(storage, 2)
    assert (set(sent[:2]), sent[2:]) == ({"empty", "model.safetensors"}, [MANIFEST_FILE])
    assert storage.versions() == [1]
    storage.sweep()
    assert [path for path in files.find(bucket.rpartition("/")[0]) if "v000002" in path] == []
    assert storage.versions() == [1]


def test_a_bucket_that_is_not_there_is_said(bucket: str, tmp_path: Path) -> None:
    storage = ObjectStorage("s3://elsewhere/run", tmp_path)
    with pytest.raises(NotWritten, match="cannot write s3://elsewhere/run/v000001"):
        put(storage, 1)
    with pytest.raises(WeightsError):
        manifest_at(storage, 1)
