"""Trained tokens a second, peak memory and MFU of the learner and of TRL's GRPOTrainer, side by side.

    python -m benchmarks.learner [--size tiny|0.5B|1.5B] [--groups 2] [--rollouts 4] [--prompt 256] [--response 256]
                                 [--micro-batch-tokens 4096] [--layout auto] [--head chunked] [--device cpu]

Models have the shape of Qwen2.5 (tiny: two layers and its vocabulary) and random weights; both sides make optimiser
steps of GRPO on the same rollouts, with the same budget of tokens a forward. TRL needs more packages:

    pip install 'tributary[bench]'

Without them the learner's side is measured alone. Each side runs in a process of its own, in turns. Peak memory is what
the process grew by from before its model was made: weights, gradients, moments, activations, logits. trained tokens are
those of responses. MFU = FLOPs / (seconds · the device's peak), FLOPs = 6 · N · tokens (N: weights of the layers)
+ 6 · V · H · trained tokens + 6 · L · H · Σ length²: what is recomputed does not count, a shared prompt counts for each
trajectory; n/a on a CPU. On a CPU the processor's seconds are given too: other work on the machine does not lengthen
them much.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks import _learner_sides
from benchmarks._learner_work import SHAPES, Work, groups_of, peak_flops, step_flops, trained_tokens
from benchmarks.head import peak_mb, settle
from learner.timing import Stage, stopwatch

SIDES = {"learner": _learner_sides.ours, "trl": _learner_sides.trl}
LAPS = 10_000


def measure(side: str, asked: argparse.Namespace, work: Work) -> dict[str, float]:
    """Median seconds of a step, on the clock and of the processor, and MiB."""
    device = torch.device(asked.device)
    groups = groups_of(work)
    settle(device)
    before_mb = peak_mb(device)
    taken = SIDES[side](asked, work, groups)[asked.warm_up :]
    return {
        "seconds": statistics.median(seconds for seconds, _ in taken),
        "busy_s": statistics.median(busy_s for _, busy_s in taken),
        "peak_mb": peak_mb(device) - before_mb,
    }


def in_process(side: str) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.learner", *sys.argv[1:], "--only", side]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(sides: Sequence[str], asked: argparse.Namespace, work: Work) -> None:
    """Print a row for each side, medians over the rounds, and the ratios."""
    groups = groups_of(work)
    tokens, peak = trained_tokens(groups), peak_flops(torch.device(asked.device))
    whole = sum(len(member.tokens) for group in groups for member in group.trajectories)
    print(
        f"{asked.size}, {asked.device}: {work.groups} x {work.rollouts} rollouts, {whole} tokens of which {tokens} are "
        f"trained, longest {work.longest}, {asked.micro_batch_tokens} tokens a forward, layout {asked.layout}, head "
        f"{asked.head}" + (", activation checkpointing" if asked.activation_checkpointing else "")
    )
    rounds = {side: list[dict[str, float]]() for side in sides}
    for _ in range(asked.rounds):
        for side in sides:
            row = in_process(side)
            print(
                f"  {side}: {row['seconds']:.2f} s, busy {row['busy_s']:.2f} s, {row['peak_mb']:,.0f} MiB", flush=True
            )
            rounds[side].append(row)
    middle = {s: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for s, rows in rounds.items()}
    print(f"{'side':9}{'tokens/s':>10}{'seconds':>9}{'busy s':>9}{'peak MiB':>10}{'MFU':>7}")
    for side, row in middle.items():
        mfu = "n/a" if peak is None else f"{step_flops(asked.size, groups) / row['seconds'] / peak:.1%}"
        print(
            f"{side:9}{tokens / row['seconds']:10,.0f}{row['seconds']:9.2f}{row['busy_s']:9.2f}"
            f"{row['peak_mb']:10,.0f}{mfu:>7}",
            flush=True,
        )
    if len(sides) == 2:
        ours, theirs = middle["learner"], middle["trl"]
        print(
            f"learner against TRL: {theirs['seconds'] / ours['seconds']:.2f}x the tokens/s "
            f"({theirs['busy_s'] / ours['busy_s']:.2f}x per second of the processor), "
            f"{ours['peak_mb'] / theirs['peak_mb']:.2f}x the memory"
        )


def stopwatch_cost_s(device: torch.device) -> float:
    """Seconds that one lap of a step's stopwatch takes."""
    watch = stopwatch(device, time.perf_counter)
    watch.start()
    start_s = time.perf_counter()
    for _ in range(LAPS):
        watch.lap(Stage.FORWARD)
    return (time.perf_counter() - start_s) / LAPS


def arguments() -> argparse.Namespace:
    """What is asked for, defaults filled in."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="0.5B" if cuda else "tiny")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--groups", type=int, default=8 if cuda else 2)
    parser.add_argument("--rollouts", type=int, default=8 if cuda else 4)
    parser.add_argument("--prompt", type=int, default=1024 if cuda else 256, help="tokens of the longest prompt")
    parser.add_argument("--response", type=int, default=3072 if cuda else 256, help="tokens of the longest response")
    parser.add_argument("--micro-batch-tokens", type=int, default=16384 if cuda else 4096, help="of one forward")
    parser.add_argument("--layout", choices=("auto", "rows", "packed"), default="auto")
    parser.add_argument(
        "--no-shared-prompts", action="store_true", help="compute a prompt for each member of its group"
    )
    parser.add_argument("--head", choices=("chunked", "fused"), default="chunked")
    parser.add_argument("--activation-checkpointing", action="store_true", help="on both sides (TRL's own default)")
    parser.add_argument("--warm-up", type=int, default=3 if cuda else 1, help="steps before those that count")
    parser.add_argument("--steps", type=int, default=10 if cuda else 2, help="steps that count, in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure both sides."""
    asked = arguments()
    work = Work(asked.groups, asked.rollouts, asked.prompt, asked.response)
    torch.set_num_threads(asked.threads)
    if asked.only:
        print(json.dumps(measure(asked.only, asked, work)))
        return
    sides = list(SIDES)
    if importlib.util.find_spec("trl") is None:
        print("trl: left out: the package trl is missing (pip install 'tributary[bench]')")
        sides.remove("trl")
    compare(sides, asked, work)
    print(f"the stopwatch takes {1e6 * stopwatch_cost_s(torch.device(asked.device)):.1f} us a lap, three a micro-batch")


if __name__ == "__main__":
    main()
