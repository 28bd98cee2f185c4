"""Peak memory and time of the log-prob and entropy head against log_softmax on the whole logits, side by side.

    python -m benchmarks.head [--tokens 8192] [--vocabulary 32000] [--width 256]

Each head runs forward and backward in a process of its own; the peak is what that process grew by. Run it on a quiet
machine; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from learner.head import logprobs_and_entropy

Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
CHUNK = 1024


def chunked(hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    """The learner's head."""
    return logprobs_and_entropy(hidden_TH, head_VH, labels_T, 1.0, CHUNK)


def whole(hidden_TH: Tensor, head_VH: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    """log_softmax and entropy on logits [T, V]."""
    logprobs_TV = torch.log_softmax(hidden_TH @ head_VH.T, dim=-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1)
    return logprobs_TV.gather(1, labels_T[:, None])[:, 0], entropy_T


HEADS: dict[str, Head] = {"chunked": chunked, "whole": whole}


def measure(head: Head, tokens: int, vocabulary: int, width: int) -> dict[str, float]:
    """Seconds and MiB of one forward and backward."""
    torch.manual_seed(0)
    hidden_TH = torch.randn(tokens, width, requires_grad=True)
    head_VH = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
    labels_T = torch.randint(vocabulary, (tokens,))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start_s = time.perf_counter()
    logprobs_T, entropy_T = head(hidden_TH, head_VH, labels_T)
    (logprobs_T.sum() + 0.01 * entropy_T.sum()).backward()
    seconds = time.perf_counter() - start_s
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    return {"seconds": seconds, "peak_mb": peak_mb}


def main() -> None:
    """Measure both heads and print a row each, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--only", choices=HEADS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(measure(HEADS[asked.only], asked.tokens, asked.vocabulary, asked.width)))
        return
    found: dict[str, dict[str, float]] = {}
    for name in HEADS:
        command = [sys.executable, "-m", "benchmarks.head", *sys.argv[1:], "--only", name]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{name:8} {found[name]['seconds']:7.2f} s {found[name]['peak_mb']:8.0f} MiB")
    ratios = {key: found["whole"][key] / found["chunked"][key] for key in ("seconds", "peak_mb")}
    print(f"whole/chunked: time {ratios['seconds']:.2f}, peak memory {ratios['peak_mb']:.1f}")


if __name__ == "__main__":
    main()
