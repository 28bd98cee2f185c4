"""`python -m learner RUN_FILE`: the learner process."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

import torch

from common.process import Process, run
from common.settings import RunFile
from common.stores.directory import DirectoryStorage
from common.stores.opening import TOKEN_VARIABLE, storage_to_write
from learner.compute import ComputeThread
from learner.intake import Acceptance, Intake
from learner.loop import Learner
from learner.model import choose_device, load_policy, longest, vocabulary
from learner.policy import check_head
from learner.trainer import Trainer
from learner.weight_server import WeightServer


async def main(process: Process) -> int:
    """The learner process: load the model, then train."""
    compute = ComputeThread(process)
    try:
        trainer = await compute.run(lambda: open_trainer(process.settings))
        acceptance = Acceptance(vocabulary(trainer.model), longest(process.settings, trainer.model))
        with serving_weights(process):
            return await Learner(process, compute, trainer, Intake(process, acceptance)).run()
    finally:
        compute.close()


@contextmanager
def serving_weights(process: Process) -> Generator[None]:
    """The weight directory is served by HTTP meanwhile, if the run file asks for it; the heartbeat tells where."""
    settings, storage = process.settings.weights, storage_to_write(process.settings)
    if settings.serve_port is None or not isinstance(storage, DirectoryStorage):
        yield
        return
    server = WeightServer(storage, settings.serve_host, settings.serve_port, os.environ.get(TOKEN_VARIABLE))
    server.start()
    process.details["weights_url"] = server.url
    try:
        yield
    finally:
        server.close()


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
