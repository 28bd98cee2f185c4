"""TRL's side of the end-to-end comparison: GRPOTrainer with its own generation on one cell. Needs trl.

    python -m benchmarks._end_to_end_trl cell.json out/ ROWS

It has its best setting on a CPU as far as we found it: float32 (bfloat16 is emulated), no gradient checkpointing, as
many trajectories in one forward as is fastest (ROWS), fused AdamW, both cores (OMP_NUM_THREADS) in all phases, and no
checkpoints or logging on the way. What it did is written to out/trl.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trl  # pyright: ignore[reportMissingImports]
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from benchmarks._end_to_end_cell import (
    BETAS,
    CLIP,
    GROUPS,
    MAX_GRAD_NORM,
    ROLLOUTS,
    TEMPERATURE,
    WARMUP_STEPS,
    Cell,
    Json,
    read_cell,
    trained_tokens,
)
from benchmarks._end_to_end_task import grades


class Watch(TrainerCallback):
    """Notes when training begins, what each step was made of, and the weights now and then."""

    def __init__(self, cell: Cell, out: Path) -> None:
        self.steps: list[Json] = []
        self.lengths: list[int] = []
        self.saved: dict[int, str] = {}
        self.cpu_s = 0.0
        self.started_s = 0.0
        self._cell = cell
        self._out = out
        self._batch: Json = {}

    def reward(
        self, completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any
    ) -> list[float]:
        """The reward function: the grade of each completion, noted."""
        rewards = grades(completions, answer)
        lengths = [len(ids) for ids in completion_ids]
        trained, flat = trained_tokens(rewards, lengths)
        self.lengths += lengths
        self._batch = {"tokens": sum(lengths), "trained": trained, "groups": len(rewards) // ROLLOUTS}
        self._batch |= {"flat_groups": flat, "reward": sum(rewards) / len(rewards)}
        return rewards

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """All is loaded: training starts."""
        self.started_s, self.cpu_s = time.time(), -time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """A step has ended."""
        self.steps.append({"number": state.global_step, "at_s": time.time() - self.started_s, **self._batch})
        if state.global_step % self._cell.save_every == 0:
            path = self._out / f"step-{state.global_step}.safetensors"
            save_file({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}, path)
            self.saved[state.global_step] = str(path)
        print(f"step {state.global_step}/{state.max_steps}", flush=True)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Training is over."""
        self.cpu_s += time.process_time()


def settings(cell: Cell, out: Path, rows: int) -> GRPOConfig:
    """The configuration that does what Tributary's run file asks for."""
    return GRPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=GROUPS * ROLLOUTS // rows,
        num_generations=ROLLOUTS,
        max_completion_length=cell.task.longest,
        temperature=TEMPERATURE,
        max_steps=cell.steps,
        learning_rate=cell.rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP_STEPS,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        beta=0.0,
        epsilon=CLIP,
        loss_type="grpo",
        scale_rewards="group",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        logging_steps=1_000_000,
        disable_tqdm=True,
        seed=cell.seed,
    )


def main() -> None:
    """Train one cell and write down what happened."""
    began_s = time.time()
    cell, out, rows = read_cell(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    prompts = [json.loads(line) for line in (cell.data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    watch = Watch(cell, out)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(cell.base, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(cell.base),
        args=settings(cell, out, rows),
        train_dataset=Dataset.from_list(prompts),
        reward_funcs=watch.reward,
        callbacks=[watch],
    )
    trainer.train()
    document = {
        "version": trl.__version__,
        "began_s": began_s,
        "started_s": watch.started_s,
        "steps": watch.steps,
        "lengths": watch.lengths,
        "saved": watch.saved,
        "cpu_s": watch.cpu_s,
    }
    (out / "trl.json").write_text(json.dumps(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
