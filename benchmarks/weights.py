"""What a weight version costs: changed weights, bytes and times over real optimiser steps, and an engine's pause.

python -m benchmarks.weights                    # 210 versions of a small model, each checked bit by bit; the codec;
                                                # an engine that takes 68 in flight, where vLLM is there: 3 minutes
python -m benchmarks.weights --versions 42      # fewer
python -m benchmarks.weights --dtype float32    # what engines on a CPU run on
python -m benchmarks.weights --no-steps --no-codec                     # the engine only
python -m benchmarks.weights --no-steps --no-engine --device cuda --shape 1.5b   # the codec on a GPU, for 1.5 billion
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks._weights_codec import SHAPES, measure
from benchmarks._weights_engine import Plan, measure_engine
from benchmarks._weights_follower import Follower, Timings
from benchmarks._weights_steps import SFT, small_model, take_step
from common.stores.directory import DirectoryStorage
from common.weights import Manifest, PublicationKind
from learner.packing.layout import Layout
from learner.publication.canary import canary_tokens
from learner.publication.snapshot import Origin, Snapshots
from learner.publication.weight_store import Publication, WeightStore
from learner.trainer import Trainer

PHASES: tuple[str | float, ...] = (1e-6, 5e-6, 1e-5, 1e-4, SFT)
WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Version:
    """One version, measured from the step's end to the follower's."""

    publication: Publication
    snapshot_s: float
    timings: Timings

    @property
    def manifest(self) -> Manifest:
        """What was published."""
        return self.publication.manifest


def publish(count: int, dtype: torch.dtype) -> Iterator[tuple[str | float, list[Version]]]:
    """The versions of each phase. RuntimeError if one is not, bit by bit, what the learner had."""
    trainer = Trainer(small_model(), Layout(4096))
    snapshots = Snapshots(trainer.model, dtype, canary_tokens("benchmark", 0, 4096, 32))
    number = version = 0
    for number in range(1, WARM_UP + 1):  # moments of zero make AdamW's first steps larger than any later one
        take_step(trainer, PHASES[0], number)
    with tempfile.TemporaryDirectory() as name:
        storage = DirectoryStorage(Path(name) / "weights")
        store = WeightStore(storage, release=snapshots.give_back)
        follower = Follower(storage, Path(name))
        for phase in PHASES:
            versions: list[Version] = []
            while len(versions) < count // len(PHASES):
                number += 1
                if not take_step(trainer, phase, number):
                    continue
                version += 1
                began_s = time.perf_counter()
                snapshot = snapshots.take(version, Origin(number, 1))
                snapshot_s = time.perf_counter() - began_s
                publication = store.write(snapshot)
                versions.append(Version(publication, snapshot_s, follower.take(publication.manifest)))
                follower.check(snapshot.tensors)
                store.prune(2, set())
            yield phase, versions


def line(phase: str | float, versions: list[Version]) -> str:
    """A row of the table: medians over the deltas of a phase, and what the phase cost with its anchors."""
    deltas = [v for v in versions if v.manifest.kind is PublicationKind.DELTA] or versions
    middle = statistics.median
    changed = middle(v.manifest.changed or 0.0 for v in deltas)
    size = middle(v.manifest.bytes for v in deltas)
    full = deltas[0].manifest.full_bytes
    overall = full * len(versions) / sum(v.manifest.bytes for v in versions)
    times = (
        middle(v.snapshot_s for v in deltas),
        middle(v.publication.canary_s for v in deltas),
        middle(v.publication.encode_s for v in deltas),
        middle(v.publication.write_s for v in deltas),
        middle(v.timings.fetch_s for v in deltas),
        middle(v.timings.decode_s for v in deltas),
        middle(v.timings.apply_s for v in deltas),
        middle(v.timings.prove_s for v in deltas),
    )
    name = phase if isinstance(phase, str) else f"{phase:.0e}"
    anchors = len(versions) - len(deltas) if deltas is not versions else len(versions)
    figures = f"{name:>8}{len(versions):9}{anchors:8}{changed:10.2%}{size:13,.0f}{full / size:9.1f}x{overall:9.1f}x"
    return figures + "".join(f"{1e3 * took_s:10.1f}" for took_s in times)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=210, help="weight versions in all")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="as published")
    parser.add_argument("--no-steps", action="store_true", help="leave out the optimiser steps")
    parser.add_argument("--no-codec", action="store_true", help="leave out the codec")
    parser.add_argument("--no-engine", action="store_true", help="leave out the engine")
    parser.add_argument("--keep-cache", action="store_true", help="the engine keeps its attention cache over updates")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the codec")
    parser.add_argument("--shape", choices=SHAPES, help="of the codec's weights; 1.5b on a GPU, part of it on a CPU")
    parser.add_argument("--by-torch", action="store_true", help="compare on a CPU as on a GPU")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not asked.no_steps:
        model = small_model()
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{parameters / 1e6:.1f} million parameters, published as {asked.dtype}; GRPO at a learning rate, or SFT")
        print(
            "   phase versions anchors   changed  bytes/delta  smaller  overall"
            "  snapshot    canary    encode     write     fetch    decode     apply     prove   (ms, medians)"
        )
        for phase, versions in publish(asked.versions, getattr(torch, asked.dtype)):
            print(line(phase, versions), flush=True)
        print("every version was rebuilt from what was published and is the learner's own, bit by bit")
    if not asked.no_codec:
        shapes = SHAPES[asked.shape or ("part" if asked.device == "cpu" else "1.5b")]
        for text in measure(asked.device, shapes, by_torch=asked.by_torch):
            print(text, flush=True)
    if not asked.no_engine:
        for text in measure_engine(getattr(torch, asked.dtype), Plan(clear_cache=not asked.keep_cache)):
            print(text, flush=True)


if __name__ == "__main__":
    main()
