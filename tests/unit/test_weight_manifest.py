"""A manifest survives its encoding, and a publication that is not whole is never taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import WeightsError
from common.weights import Manifest, PublicationKind, decode_manifest, file_digest, verify


def published(directory: Path) -> Manifest:
    (directory / "model.safetensors").write_bytes(b"weights")
    digest = file_digest(directory / "model.safetensors")
    return Manifest(
        version=3,
        step=7,
        revision=2,
        kind=PublicationKind.ANCHOR,
        base=0,
        location=str(directory),
        files={"model.safetensors": (7, digest)},
        tensors={"w": "00"},
        bytes=7,
        at_s=1.5,
    )


def test_a_manifest_survives_its_encoding(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    assert decode_manifest(manifest.encode()) == manifest


def test_a_whole_publication_is_its_directory(tmp_path: Path) -> None:
    assert verify(published(tmp_path)) == tmp_path


def test_a_short_a_changed_and_a_missing_file_are_each_said(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weight")
    with pytest.raises(WeightsError, match="has 6 bytes, 7 were published"):
        verify(manifest)
    path.write_bytes(b"wEights")
    with pytest.raises(WeightsError, match="does not match its digest"):
        verify(manifest)
    path.unlink()
    with pytest.raises(WeightsError, match="cannot read"):
        verify(manifest)


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b'{"schema": 9}', b'{"schema": 1, "version": 1}', b"\xff", b"[" * 100_000]
)
def test_anything_else_is_a_weights_error(payload: bytes) -> None:
    with pytest.raises(WeightsError):
        decode_manifest(payload)
