"""The weight cache under a process that is killed again and again while it fetches and applies."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from publications import Publications, assert_holds

from common.stores.directory import DirectoryStorage
from services.generator.weight_cache import WeightCache

ROOT = Path(__file__).resolve().parents[2]
LIFE = """
import sys
from pathlib import Path
from common.stores.directory import DirectoryStorage
from common.stores.object_store import ObjectStorage
from common.stores.storage import manifest_at
from services.generator.weight_cache import WeightCache
storage = ObjectStorage(f"file://{sys.argv[1]}")  # copied here block by block, unlike a directory store
cache = WeightCache(storage, Path(sys.argv[2]), 1 << 30)
held = cache.open()
print("open", flush=True)
for version in range((held.version if held else 0) + 1, 31):
    cache.advance(manifest_at(storage, version))
"""


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_a_version_or_none(tmp_path: Path) -> None:
    published = Publications(DirectoryStorage(tmp_path / "store"))
    published.anchor(1)
    for version in range(2, 31):
        published.delta(version, version - 1)
    moments = random.Random(5)
    for _ in range(5):
        life = subprocess.Popen(
            [sys.executable, "-c", LIFE, tmp_path / "store", tmp_path / "cache" / "generator-1"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert life.stdout is not None
        life.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.03))
        life.kill()
        life.wait()
        life.stdout.close()
    ours = WeightCache(published.storage, tmp_path / "cache" / "generator-1", 1 << 30)
    held = ours.open()
    if held is not None:
        assert_holds(tmp_path / "cache" / "generator-1" / "current.safetensors", held.version)
    assert_holds(ours.advance(published.manifests[30]).path, 30)
