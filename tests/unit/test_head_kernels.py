"""The fused head against the plain one; on a CPU Triton's interpreter runs the kernels, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton, which comes with the CUDA build of torch, is missing"
)

# Rows, vocabulary, chunk: one tile; several, in which labels are elsewhere; blocks of a tile; no rows.
COMPARISON = """
import itertools
import torch
from learner.forward.head import logprobs_and_entropy
from learner.forward.head_kernels import fused_logprobs_and_entropy

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-2}
SIZES = [(3, 40, 1000), (5, 13, 9), (2, 1300, 10000), (0, 13, 9)]
USES = {"both": (1.0, 1.0), "logprob": (1.0, None), "entropy": (None, 1.0)}
torch.manual_seed(0)
for (dtype, tolerance), (rows, vocabulary, chunk), (use, weights), has_bias in itertools.product(
    TOLERANCE.items(), SIZES, USES.items(), (False, True)
):
    leaves = [torch.randn(n, 8).to(dtype).requires_grad_() for n in (rows, vocabulary)]
    bias = torch.randn(vocabulary).to(dtype).requires_grad_() if has_bias else None
    labels = torch.randint(vocabulary, (rows,))
    found = []
    for head in (logprobs_and_entropy, fused_logprobs_and_entropy):
        outputs = head(leaves[0], leaves[1], labels, 0.5, chunk, bias)
        slopes_T = torch.linspace(-1, 1, rows)
        value = sum((w * (out * slopes_T).sum() for w, out in zip(weights, outputs) if w is not None), 0.0)
        wanted = leaves + ([] if bias is None else [bias])
        found.append((*(t.detach() for t in outputs), *torch.autograd.grad(value, wanted)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, msg=lambda m: f"{dtype} {use}: {m}")
sure = torch.tensor([[100.0, 0.0, 0.0, 50.0], [30.0, 12.0, 13.0, 14.0]])
logprobs_T, entropy_T = fused_logprobs_and_entropy(sure, torch.eye(4), torch.tensor([0, 0]), 1.0, 100, None)
exact_TV = sure.double().log_softmax(-1)
exact_T = -(exact_TV.exp() * exact_TV).sum(-1)
torch.testing.assert_close(entropy_T.double(), exact_T, rtol=1e-5, atol=1e-7)
"""


@pytest.mark.timeout(300)
def test_the_fused_head_gives_the_values_and_gradients_of_the_chunked_one() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPARISON],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
