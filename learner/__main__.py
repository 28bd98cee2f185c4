"""`python -m learner RUN_FILE`: the learner process."""

from __future__ import annotations

import os
import sys
from functools import partial

import torch

from common.process import Process, run
from common.settings import RunFile
from learner.compute import ComputeThread
from learner.intake import Acceptance, Intake
from learner.loop import Learner
from learner.model import choose_device, load_policy, longest, vocabulary
from learner.policy import check_head
from learner.trainer import Trainer


async def main(process: Process) -> int:
    """The learner process: load the model, then train."""
    compute = ComputeThread(process)
    try:
        trainer = await compute.run(lambda: open_trainer(process.settings))
        acceptance = Acceptance(vocabulary(trainer.model), longest(process.settings, trainer.model))
        return await Learner(process, compute, trainer, Intake(process, acceptance)).run()
    finally:
        compute.close()


def open_trainer(settings: RunFile) -> Trainer:
    """The trainer of a run, seeded. SettingsError if device or model cannot be used."""
    torch.set_num_threads(settings.learner.threads or 1)
    torch.manual_seed(settings.run.seed)  # pyright: ignore[reportUnknownMemberType]
    load = partial(load_policy, settings, choose_device(settings.learner.device))
    model = load()
    check_head(model)
    return Trainer(model, settings.learner.micro_batch_tokens, load_reference=load)


if __name__ == "__main__":
    code = run("learner", main)
    # Everything is closed and saved. The interpreter would take seconds to tear torch down, module by module.
    sys.stderr.flush()
    os._exit(code)
