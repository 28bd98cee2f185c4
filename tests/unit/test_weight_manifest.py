"""A manifest survives its encoding, older ones can be read, and what is not whole is never taken for a publication."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.digests import DigestKind, digest, file_digest
from common.errors import WeightsError
from common.weights import (
    Canary,
    Manifest,
    PublicationKind,
    decode_manifest,
    location_of,
    version_at,
)

CANARY = Canary(((1, 2, 3), (4, 5)), ((-1.5, -0.25), (-3.0,)), 1e-3, 1e-4, "float32")
SCHEMA_1 = {
    "schema": 1,
    "version": 3,
    "step": 7,
    "revision": 2,
    "kind": "anchor",
    "base": 0,
    "location": "/weights/v000003",
    "files": {"model.safetensors": [7, "00"]},
    "tensors": {"w": "00"},
    "bytes": 7,
    "at_s": 1.5,
}


def published(directory: Path, **changes: Any) -> Manifest:
    (directory / "v000003").mkdir()
    path = directory / "v000003" / "model.safetensors"
    path.write_bytes(b"weights")
    manifest = Manifest(
        version=3,
        step=7,
        revision=2,
        kind=PublicationKind.DELTA,
        base=2,
        location="v000003",
        files={"model.safetensors": (7, file_digest(path))},
        tensors={"w": "00"},
        bytes=7,
        at_s=1.5,
        anchor=1,
        digests=DigestKind.BLAKE3,
        full_bytes=99,
        changed=0.25,
        canary=CANARY,
    )
    return replace(manifest, **changes)


def test_a_manifest_survives_its_encoding(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    assert decode_manifest(manifest.encode()) == manifest
    bare = replace(manifest, kind=PublicationKind.ANCHOR, base=0, anchor=3, changed=None, canary=None)
    assert decode_manifest(bare.encode()) == bare


def test_a_manifest_of_the_first_schema_is_an_anchor_proved_by_sha256() -> None:
    manifest = decode_manifest(json.dumps(SCHEMA_1).encode())
    assert (manifest.kind, manifest.anchor, manifest.digests) == (PublicationKind.ANCHOR, 3, DigestKind.SHA256)
    assert (manifest.location, manifest.canary, manifest.changed) == ("/weights/v000003", None, None)


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b'{"schema": 9}', b'{"schema": 1, "version": 1}', b"\xff", b"[" * 100_000]
)
def test_anything_else_is_a_weights_error(payload: bytes) -> None:
    with pytest.raises(WeightsError):
        decode_manifest(payload)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "sparse"},
        {"base": 3},
        {"base": 0},
        {"anchor": 0},
        {"files": {"f": 1}},
        {"files": []},
        {"files": {"../up": [1, "00"]}},
        {"files": {"/etc/passwd": [1, "00"]}},
        {"files": {"model.safetensors": [-1, "00"]}},
        {"location": "../v000003/.."},
        {"location": "v000004"},
        {"version": -3},
        {"step": True},
        {"canary": {"tokens": [[1, 2]], "logprobs": [[]], "tolerance": 1, "mean_tolerance": 1, "dtype": "float32"}},
        {"canary": {}},
        {"changed": "much"},
        {"digests": "crc32"},
        {"more": 1},
    ],
)
def test_a_manifest_with_a_part_that_fits_nothing_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    fields = json.loads(published(tmp_path).encode()) | change
    with pytest.raises(WeightsError):
        decode_manifest(json.dumps(fields).encode())


def test_a_place_and_its_version() -> None:
    assert (location_of(12), version_at("v000012"), version_at("v1234567")) == ("v000012", 12, 1234567)
    assert [version_at(name) for name in ("v12", "notes", "v", "v0000012", "vv00012", ".v000012")] == [None] * 6


def test_the_two_digests() -> None:
    assert digest(b"weights", DigestKind.SHA256) == hashlib.sha256(b"weights").hexdigest()
    # The value of the empty message in the BLAKE3 paper.
    assert digest(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
