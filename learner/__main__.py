"""`python -m learner RUN_FILE`: the learner process."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel

from common.process import Process, run
from common.settings import RunFile
from common.stores.directory import DirectoryStorage
from common.stores.opening import TOKEN_VARIABLE, storage_to_write
from learner.attending import choose_kernel, equip
from learner.compute import ComputeThread
from learner.head import choose_head
from learner.intake import Acceptance, Intake
from learner.layers import checkpoint_activations, compile_layers
from learner.layout import Layout
from learner.loop import Learner
from learner.memory import Budget
from learner.model import choose_device, load_policy, longest, vocabulary
from learner.policy import check_head, use_head
from learner.suiting import suited
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
    device = choose_device(settings.learner.device)
    load = partial(open_policy, settings, device)
    model = load()
    layout = suited(model, Layout.of(settings.learner, device), insist=settings.learner.layout == "packed")
    budget = Budget.of(settings.learner, settings.checkpoints_directory)
    # On a CPU planning would take its time from the computation; only beside a GPU does it cost nothing.
    return Trainer(model, layout, load_reference=load, budget=budget, foresight=device.type == "cuda")


def open_policy(settings: RunFile, device: torch.device) -> PreTrainedModel:
    """The model of the run, computed as the run file asks. SettingsError if it cannot be."""
    asked, head = settings.learner, choose_head(settings.learner.head, device)
    model = load_policy(settings, device)
    check_head(model)
    use_head(model, head)
    equip(model, choose_kernel(device))
    if asked.activation_checkpointing:
        checkpoint_activations(model)
    if asked.compile:
        compile_layers(model, device)
    return model


if __name__ == "__main__":
    code = run("learner", main)
    # Everything is closed and saved. The interpreter would take seconds to tear torch down, module by module.
    sys.stderr.flush()
    os._exit(code)
