"""The manifest of a weight version: what was published, from which step, where it lies, and proof that it is whole."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis

from common.errors import WeightsError
from common.keys import Keys

MANIFEST_FILE = "manifest.json"
_KEPT = 1000
_SCHEMA = 1


class PublicationKind(StrEnum):
    """An anchor holds every tensor in full."""

    ANCHOR = "anchor"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One weight version. Versions start at 1 (0 is the base model), grow, and are never reused.

    step: the learner step it comes from. location: directory of the publication. files: name → size in bytes and
    SHA-256 of the file. tensors: name → SHA-256 of the tensor's raw bytes. bytes: what a generator has to fetch.
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

    def encode(self) -> bytes:
        """The manifest as JSON bytes."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}).encode()


def decode_manifest(payload: bytes) -> Manifest:
    """The manifest in `payload`; WeightsError if there is none."""
    try:
        fields = cast(dict[str, Any], json.loads(payload))
        if fields.pop("schema") > _SCHEMA:
            raise WeightsError(
                "the weight manifest was written by a newer version of this project: upgrade this process"
            )
        files = {name: (int(size), str(digest)) for name, (size, digest) in fields.pop("files").items()}
        kind = PublicationKind(fields.pop("kind"))
        if any(not isinstance(fields[name], int) for name in ("version", "step", "revision", "base", "bytes")):
            raise TypeError("its numbers are none")
        if not isinstance(fields["location"], str) or not isinstance(fields["at_s"], float | int):
            raise TypeError("its location or its time is none")
        return Manifest(files=files, kind=kind, **fields)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"not a weight manifest: {type(error).__name__}: {error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(manifest: Manifest) -> Path:
    """The directory of a publication whose every file is present and undamaged; WeightsError otherwise."""
    directory = Path(manifest.location)
    for name, (size, digest) in manifest.files.items():
        path = directory / name
        try:
            actual = path.stat().st_size
            if actual != size:
                raise WeightsError(
                    f"weight version {manifest.version}: {path} has {actual} bytes, {size} were published"
                )
            if file_digest(path) != digest:
                raise WeightsError(f"weight version {manifest.version}: {path} does not match its digest")
        except OSError as error:
            raise WeightsError(f"weight version {manifest.version}: cannot read {path}: {error.strerror}") from error
    return directory


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

    async def recent(self, count: int) -> list[Manifest]:
        """The last `count` announced versions, newest first."""
        found: list[Manifest] = []
        end = "+"
        while len(found) < count:
            entries: Any = await self._redis.xrevrange(self._key, max=end, count=max(count, 10))
            for entry_id, fields in entries:
                end = f"({entry_id.decode()}"
                with suppress(WeightsError):
                    found.append(decode_manifest(fields.get(b"payload", b"")))
            if not entries:
                break
        return sorted(found, key=lambda manifest: -manifest.version)[:count]
