"""`python -m learner RUN_FILE`: the learner process."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

from common.process import Process, run
from common.stores.directory import DirectoryStorage
from common.stores.opening import TOKEN_VARIABLE, storage_to_write
from learner.compute import ComputeThread
from learner.forward.model import longest, vocabulary
from learner.intake import Acceptance, Intake
from learner.loop import Learner
from learner.opening import open_trainer
from learner.publication.weight_server import WeightServer
from learner.ranks.alone import own_rank
from learner.ranks.following import follow


async def main(process: Process) -> int:
    """The learner process: load the model, then train."""
    compute = ComputeThread(process)
    try:
        trainer = await compute.run(lambda: open_trainer(process.settings))
        acceptance = Acceptance(vocabulary(trainer.model), longest(process.settings, trainer.model))
        with serving_weights(process):
            code = await Learner(process, compute, trainer, Intake(process, acceptance)).run()
        await compute.run(trainer.close)
        return code
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


def start() -> int:
    """What this process is: the learner, or, where torchrun started several, one that follows it; the exit code."""
    if own_rank() > 0:
        return follow(own_rank(), open_trainer)
    return run("learner", main)


if __name__ == "__main__":
    code = start()
    # Everything is closed and saved. The interpreter would take seconds to tear torch down, module by module.
    sys.stderr.flush()
    os._exit(code)
