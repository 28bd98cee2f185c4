"""`python -m learner RUN_FILE`: the learner process."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

from common.niceness import share_with_group
from common.process import Process, run
from common.stores.access import is_served, weights_token
from common.stores.directory import DirectoryStorage
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
        with serving_weights(process):  # before the model is loaded: settings that cannot be used are said at once
            trainer = await compute.run(lambda: open_trainer(process.settings))
            acceptance = Acceptance(vocabulary(trainer.model), longest(process.settings, trainer.model))
            code = await Learner(process, compute, trainer, Intake(process, acceptance)).run()
        await compute.run(trainer.close)
        return code
    finally:
        compute.close()


@contextmanager
def serving_weights(process: Process) -> Generator[None]:
    """The weight directory is served by HTTP meanwhile, if the run file asks for it; the heartbeat tells where.

    SettingsError if it cannot be served there, or would be to other machines without a token.
    """
    settings = process.settings.weights
    if settings.serve_port is None or not is_served(settings):
        yield
        return
    storage = DirectoryStorage(process.settings.weights_directory)
    server = WeightServer(storage, settings.serve_host, settings.serve_port, weights_token())
    server.start()
    process.details["weights_url"] = server.url
    try:
        yield
    finally:
        server.close()


def start() -> int:
    """What this process is: the learner, or, where torchrun started several, one that follows it; the exit code."""
    share_with_group(os.getpid())  # torchrun gives each rank a session of its own
    if own_rank() > 0:
        return follow(own_rank(), open_trainer)
    return run("learner", main)


if __name__ == "__main__":
    code = start()
    # Everything is closed and saved. The interpreter would take seconds to tear torch down, module by module.
    sys.stderr.flush()
    os._exit(code)
