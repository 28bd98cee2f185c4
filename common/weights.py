"""The manifest of a weight version: what was published, from which step, where it lies, and proof that it is whole."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, cast

from redis.asyncio import Redis

from common.digests import DigestKind
from common.errors import WeightsError
from common.keys import Keys

MANIFEST_FILE = "manifest.json"
ANCHOR_FILE = "model.safetensors"
DELTA_FILE = "model.delta"
_KEPT = 300
_SCHEMA = 2
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class PublicationKind(StrEnum):
    """An anchor holds every tensor in full; a delta what differs from another version, its base."""

    ANCHOR = "anchor"
    DELTA = "delta"


@dataclass(frozen=True, slots=True)
class Canary:
    """What the learner makes of a few token sequences under a version: proof that an engine serves that version.

    logprobs: of tokens[1:] of each sequence, untempered. tolerance, mean_tolerance: the largest and the mean absolute
    difference that arithmetic alone explains. dtype: what the weights are published in.
    """

    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    tolerance: float
    mean_tolerance: float
    dtype: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One weight version. Versions start at 1 (0 is the base model), grow, and are never reused.

    step: the learner step it comes from. base: the version that a delta applies to, 0 for anchors. location: the
    publication's place below the root of the store (an absolute directory in manifests of schema 1). files: name →
    size in bytes and digest of the file. tensors: name → digest of the tensor's raw bytes, as they are when this
    version is in place. bytes: what is fetched to come from the base to this version. anchor: the version of the anchor
    that this version's chain begins with. full_bytes: the tensors' own size. changed: share of elements whose bits are
    others than in the version published before; None where there was nothing to compare with.
    """

    version: int
    step: int
    revision: int
    kind: PublicationKind
    base: int
    location: str
    files: dict[str, tuple[int, str]]
    tensors: dict[str, str]
    bytes: int
    at_s: float
    anchor: int = 0
    digests: DigestKind = DigestKind.SHA256
    full_bytes: int = 0
    changed: float | None = None
    canary: Canary | None = None

    def encode(self) -> bytes:
        """The manifest as JSON bytes."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}).encode()


def location_of(version: int) -> str:
    """Where a version lies below the root of a store."""
    return f"v{version:06d}"


def is_file_name(name: str) -> bool:
    """Whether a file of a publication may have this name: one that leads nowhere else."""
    return _FILE_NAME.fullmatch(name) is not None


def version_at(location: str) -> int | None:
    """The version that lies at a place below the root of a store; None if that is no version's place."""
    number = location.removeprefix("v")
    return int(number) if number.isdecimal() and location_of(int(number[:18])) == location else None


def decode_manifest(payload: bytes) -> Manifest:
    """The manifest in `payload`; WeightsError if there is none."""
    try:
        fields = cast(dict[str, Any], json.loads(payload))
        schema = fields.pop("schema")
        if schema > _SCHEMA:
            raise WeightsError(
                "the weight manifest was written by a newer version of this project: upgrade this process"
            )
        if schema == 1:  # anchors only, SHA-256 only
            fields["anchor"] = fields["version"]
        return _manifest(fields)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"not a weight manifest: {type(error).__name__}: {error}") from error


def _manifest(fields: dict[str, Any]) -> Manifest:
    """A manifest of the fields of a JSON object, each made what it has to be."""
    made: dict[str, Any] = {name: _whole(fields.pop(name)) for name in ("version", "step", "revision", "base", "bytes")}
    made |= {name: _whole(fields.pop(name, 0)) for name in ("anchor", "full_bytes")}
    canary, changed = fields.pop("canary", None), fields.pop("changed", None)
    manifest = Manifest(
        kind=PublicationKind(fields.pop("kind")),
        location=_text(fields.pop("location")),
        files={_file_name(name): (_whole(size), _text(proof)) for name, (size, proof) in fields.pop("files").items()},
        tensors={str(name): str(proof) for name, proof in fields.pop("tensors").items()},
        at_s=_finite(fields.pop("at_s")),
        digests=DigestKind(fields.pop("digests", DigestKind.SHA256)),
        changed=None if changed is None else _finite(changed),
        canary=None if canary is None else _canary(canary),
        **made,
    )
    if fields:
        raise ValueError(f"unknown fields {sorted(fields)}")
    if PurePosixPath(manifest.location).name != location_of(manifest.version):
        raise ValueError(f"version {manifest.version} is said to lie at {manifest.location!r}")
    if manifest.kind is PublicationKind.DELTA and not 0 < manifest.anchor <= manifest.base < manifest.version:
        raise ValueError(f"a delta of version {manifest.version} on {manifest.base}, chain of {manifest.anchor}")
    return manifest


def _file_name(value: Any) -> str:
    if not is_file_name(value):
        raise ValueError(f"{value!r} is no name of a file")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _finite(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no finite number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _canary(fields: Any) -> Canary:
    """The canary of a JSON object; ValueError unless every token but each first has its log-prob."""
    canary = Canary(
        tokens=tuple(tuple(int(token) for token in row) for row in fields["tokens"]),
        logprobs=tuple(tuple(float(value) for value in row) for row in fields["logprobs"]),
        tolerance=float(fields["tolerance"]),
        mean_tolerance=float(fields["mean_tolerance"]),
        dtype=str(fields["dtype"]),
    )
    if [len(row) - 1 for row in canary.tokens] != [len(row) for row in canary.logprobs]:
        raise ValueError("a canary whose log-probs do not fit its tokens")
    return canary


# Versions grow: an announcement that is not newer than the last one is refused.
_ANNOUNCE = """
if tonumber(redis.call('GET', KEYS[2]) or '-1') >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'payload', ARGV[3])
return 1
"""


class WeightAnnouncements:
    """The stream of manifests. A version is announced only after it is complete and verified.

    An entry that is no manifest is passed over: others' mistakes stop neither learner nor generators.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._key = keys.weights
        self._newest_key = keys.newest_version
        self._announce = self._redis.register_script(_ANNOUNCE)

    async def announce(self, manifest: Manifest) -> None:
        """Tell every generator about a version. Announcing it again, or after a newer one, does nothing."""
        args = [manifest.version, _KEPT, manifest.encode()]
        await self._announce(keys=[self._key, self._newest_key], args=args)

    async def newest(self) -> Manifest | None:
        """The newest announced version; None before the first publication."""
        return next(iter(await self.recent(1)), None)

    async def wait_newer(self, version: int, block_ms: int) -> Manifest | None:
        """The newest version if it is greater than `version`; waits up to `block_ms` for news, then None."""
        last: Any = await self._redis.xrevrange(self._key, count=1)
        newest = await self.newest()
        if newest is None or newest.version <= version:
            if not await self._redis.xread({self._key: last[0][0] if last else "0"}, count=1, block=block_ms):
                return None
            newest = await self.newest()
        return newest if newest is not None and newest.version > version else None

    async def last(self) -> Manifest | None:
        """What was announced last; WeightsError if that is no manifest which can be read here, though others might."""
        entries: Any = await self._redis.xrevrange(self._key, count=1)
        return decode_manifest(entries[0][1].get(b"payload", b"")) if entries else None

    async def recent(self, count: int) -> list[Manifest]:
        """The last `count` announced versions, newest first."""
        found: list[Manifest] = []
        end = "+"
        while len(found) < count:
            entries: Any = await self._redis.xrevrange(self._key, max=end, count=count - len(found))
            for entry_id, fields in entries:
                end = f"({entry_id.decode()}"
                with suppress(WeightsError):
                    found.append(decode_manifest(fields.get(b"payload", b"")))
            if not entries:
                break
        return sorted(found, key=lambda manifest: -manifest.version)[:count]
