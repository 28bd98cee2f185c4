"""Peak memory and time of the log-prob and entropy head against others, side by side: forward and backward.

    python -m benchmarks.head [--tokens 8192] [--vocabulary 32000 152064] [--width 256] [--device cpu] [--rounds 3]
                              [--dtype float32] [--heads chunked whole ...]

Heads: chunked, the learner's; fused, the learner's with Triton kernels (on a GPU); whole, log_softmax on all logits;
trl-logits, TRL's selective_log_softmax and entropy_from_logits on all logits; trl-fused, the head inside TRL's
GRPOTrainer; liger, Liger's linear scaled cross-entropy with entropy. The last three need more packages:

    pip install 'tributary[bench]'

Each head runs in a process of its own, all of them in turns; the peak is what that process grew by, on a GPU what torch
allocated, gradients included. A head that would not fit free memory is left out: give fewer --tokens. On CPU the
processor's seconds are given beside those on the clock: they say more on a machine that does other work too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.forward.head import choose_head, logits_at_a_time, logprobs_and_entropy

Outputs = tuple[Tensor, Tensor]
Head = Callable[[Tensor, Tensor, Tensor], Outputs]
ENTROPY_WEIGHT = 0.01
LIGER_IGNORED = -100


def chunked(hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor) -> Outputs:
    """The learner's head."""
    return logprobs_and_entropy(hidden_TH, head_VH, labels_T, 1.0, logits_at_a_time(hidden_TH.device))


def fused(hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor) -> Outputs:
    """The learner's head with Triton kernels."""
    chunk = logits_at_a_time(hidden_TH.device)
    return choose_head("fused", hidden_TH.device)(hidden_TH, head_VH, labels_T, 1.0, chunk, None)


def whole(hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor) -> Outputs:
    """log_softmax and entropy on logits [T, V]."""
    logprobs_TV = torch.log_softmax((hidden_TH @ head_VH.T).float(), dim=-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1)
    return logprobs_TV.gather(1, labels_T[:, None])[:, 0], entropy_T


def trl_logits(hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor) -> Outputs:
    """TRL's functions on logits [1, T, V]."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax  # type: ignore

    logits_TV = (hidden_TH @ head_VH.T)[None]
    return selective_log_softmax(logits_TV, labels_T[None])[0], entropy_from_logits(logits_TV)[0]


def trl_fused(hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor) -> Outputs:
    """What TRL's GRPOTrainer computes its log-probs with."""
    from trl.trainer import utils  # type: ignore

    size: int = utils._CHUNKED_LOGPROB_CHUNK_SIZE
    apply: Any = utils._ChunkedLogProbFunction.apply
    found = apply(hidden_TH, head_VH, None, labels_T, 1.0, size, None, 1.0, ("log_probs", "entropy"))
    return found[0], found[1]


def liger(hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor) -> Outputs:
    """Liger's: CuTe kernels on Hopper, chunks of 512 rows elsewhere."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (  # type: ignore
        LigerFusedLinearScaledCrossEntropyFunction,
    )

    apply: Any = LigerFusedLinearScaledCrossEntropyFunction.apply
    minus_T, entropy_T = apply(hidden_TH, head_VH, labels_T, 1.0, LIGER_IGNORED, 1, True)
    return -minus_T, entropy_T


# What runs it, the package it needs, and how many [T, V] buffers of float32 it holds at least.
HEADS: dict[str, tuple[Head, str | None, int]] = {
    "chunked": (chunked, None, 0),
    "fused": (fused, "triton", 0),
    "whole": (whole, None, 5),
    "trl-logits": (trl_logits, "trl", 8),
    "trl-fused": (trl_fused, "trl", 0),
    "liger": (liger, "liger_kernel", 0),
}


def measure(head: Head, vocabulary: int, asked: argparse.Namespace) -> dict[str, float]:
    """Seconds on the clock and of the processor, and MiB, of one forward and backward after a small one."""
    run(head, inputs(16, 512, asked))  # what is loaded, compiled and set up at the first call
    given = inputs(asked.tokens, vocabulary, asked)
    device = given[0].device
    settle(device)
    before_mb = peak_mb(device)
    start_s, busy_s = time.perf_counter(), time.process_time()
    run(head, given)
    seconds, busy_s = time.perf_counter() - start_s, time.process_time() - busy_s
    return {"seconds": seconds, "busy_s": busy_s, "peak_mb": peak_mb(device) - before_mb}


def inputs(tokens: int, vocabulary: int, asked: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and labels."""
    torch.manual_seed(0)
    device, dtype = torch.device(asked.device), getattr(torch, asked.dtype)
    hidden_TH = torch.randn(tokens, asked.width, device=device).to(dtype).requires_grad_()
    head_VH = (torch.randn(vocabulary, asked.width, device=device) / asked.width**0.5).to(dtype).requires_grad_()
    return hidden_TH, head_VH, torch.randint(vocabulary, (tokens,), device=device)


def run(head: Head, given: tuple[Tensor, Tensor, Tensor]) -> None:
    """A forward and backward, to their end."""
    logprobs_T, entropy_T = head(*given)
    (logprobs_T.sum() + ENTROPY_WEIGHT * entropy_T.sum()).backward()
    if given[0].is_cuda:
        torch.cuda.synchronize()


def settle(device: torch.device) -> None:
    """Let work end, and forget the memory it took."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from what is resident now


def peak_mb(device: torch.device) -> float:
    """The most memory since `settle`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return kilobytes("/proc/self/status", "VmHWM") / 1024


def free_mb(device: torch.device) -> float:
    """Memory that is free now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**20
    return kilobytes("/proc/meminfo", "MemAvailable") / 1024


def kilobytes(path: str, name: str) -> int:
    """A figure that Linux gives in a file of lines like `name: 12 kB`."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def present(asked: argparse.Namespace) -> Iterator[str]:
    """The heads that can run here; what is missing is said."""
    for name in asked.heads:
        package = HEADS[name][1]
        if package is not None and importlib.util.find_spec(package) is None:
            print(f"{name}: left out: the package {package} is missing (pip install 'tributary[bench]')")
        elif name == "fused" and not asked.device.startswith("cuda"):
            print(f"{name}: left out: it needs a GPU")
        else:
            yield name


def compare(vocabulary: int, heads: list[str], asked: argparse.Namespace) -> None:
    """Print a row for each head at one vocabulary: medians over the rounds, and how it stands to the learner's."""
    logits_mb = asked.tokens * vocabulary * 4 / 2**20
    print(f"\nT = {asked.tokens}, V = {vocabulary}, H = {asked.width}, {asked.dtype}: logits {logits_mb:,.0f} MiB")
    free = free_mb(torch.device(asked.device))
    fitting = [name for name in heads if HEADS[name][2] * logits_mb < 0.9 * free]
    for name in set(heads) - set(fitting):
        print(f"{name}: left out: it needs over {HEADS[name][2] * logits_mb:,.0f} MiB, and {free:,.0f} are free")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in fitting}
    for _ in range(asked.rounds):
        for name in fitting:
            row = in_process(name, vocabulary, asked)
            print(
                f"  {name}: {row['peak_mb']:,.0f} MiB, {row['seconds']:.2f} s, busy {row['busy_s']:.2f} s", flush=True
            )
            found[name].append(row)
    middle = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()
    }
    print(f"{'head':11}{'MiB':>9}{'seconds':>9}{'busy s':>9}   against chunked: memory, seconds, busy")
    for name, row in middle.items():
        ratios = [row[key] / max(middle["chunked"][key], 1e-9) for key in ("peak_mb", "seconds", "busy_s")]
        print(
            f"{name:11}{row['peak_mb']:9,.0f}{row['seconds']:9.2f}{row['busy_s']:9.2f}"
            f"   {ratios[0]:22.1f}x{ratios[1]:8.2f}x{ratios[2]:5.2f}x",
            flush=True,
        )


def in_process(name: str, vocabulary: int, asked: argparse.Namespace) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    options = [f"--{key}={getattr(asked, key)}" for key in ("tokens", "width", "device", "dtype", "threads")]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.head", *options, "--vocabulary", str(vocabulary)]
    done = subprocess.run([*command, "--only", name], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure the heads at each vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32000, 152064])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None, help="float32 on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--only", choices=HEADS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.dtype = asked.dtype or ("bfloat16" if asked.device.startswith("cuda") else "float32")
    torch.set_num_threads(asked.threads)
    if asked.only:
        print(json.dumps(measure(HEADS[asked.only][0], asked.vocabulary[0], asked)))
        return
    asked.heads = ["chunked", *(name for name in asked.heads if name != "chunked")]
    heads = list(present(asked))
    for vocabulary in asked.vocabulary:
        compare(vocabulary, heads, asked)


if __name__ == "__main__":
    main()
