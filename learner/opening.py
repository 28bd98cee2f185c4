"""The opening: the trainer of a run, as its run file asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel

from common.settings import RunFile
from learner.forward.attending import choose_kernel, equip
from learner.forward.head import choose_head
from learner.forward.layers import checkpoint_activations, compile_layers
from learner.forward.model import choose_device, load_policy
from learner.forward.policy import Policy, check_head, use_head
from learner.forward.suiting import suited
from learner.memory import Budget
from learner.packing.layout import Layout
from learner.ranks.alone import is_among_several, plain
from learner.trainer import Trainer

log = logging.getLogger(__name__)


def open_trainer(settings: RunFile) -> Trainer:
    """The trainer of a run, seeded; one of several if torchrun says so. SettingsError if device or model is no use."""
    torch.set_num_threads(settings.learner.threads or 1)
    torch.manual_seed(settings.run.seed)  # pyright: ignore[reportUnknownMemberType]
    device = choose_device(settings.learner.device)
    if is_among_several():
        return _open_shared(settings, device)
    if settings.learner.processes > 1:
        log.warning("learner.processes is for `tributary up`: here it takes torchrun to start several, and this is one")
    load = partial(open_policy, settings, device)
    model = load()
    layout = _suited(settings, model, device)
    budget = Budget.of(settings.learner, settings.checkpoints_directory)
    # On a CPU planning would take its time from the computation; only beside a GPU does it cost nothing.
    return Trainer(model, layout, load_reference=load, budget=budget, foresight=device.type == "cuda")


def open_policy(settings: RunFile, device: torch.device) -> PreTrainedModel:
    """The model of the run, whose layers are as lean as the run file asks. SettingsError if it cannot be used."""
    model = load_checked(settings, device)
    prepare(settings, device, model)
    return model


def load_checked(settings: RunFile, device: torch.device) -> PreTrainedModel:
    """The model of the run as it was saved. SettingsError if it cannot be trained."""
    model = load_policy(settings, device)
    check_head(model)
    return model


def prepare(settings: RunFile, device: torch.device, model: PreTrainedModel) -> None:
    """Make the layers of a model as lean as the run file asks. SettingsError if that cannot be done."""
    equip(model, choose_kernel(device))
    use_head(model, choose_head(settings.learner.head, device))
    if settings.learner.activation_checkpointing:
        checkpoint_activations(model)
    if settings.learner.compile:
        compile_layers(model, device)


def _suited(settings: RunFile, model: PreTrainedModel, device: torch.device) -> Layout:
    """The layout that the run file asks for, as far as the model can be computed so."""
    asked = settings.learner
    return suited(model, Layout.of(asked, device), insist=asked.layout == "packed")


def _open_shared(settings: RunFile, kind: torch.device) -> Trainer:
    """The trainer of this rank, which leads the others or follows. RankLost if they do not come together."""
    # Here, since they take a second to import that no other learner needs to spend.
    from learner.ranks.collective import CollectiveRanks, own_device
    from learner.ranks.leading import LeadingTrainer
    from learner.ranks.sharding import spread

    device, host = own_device(kind), torch.device("cpu")
    ranks = CollectiveRanks(device)
    layout = Layout.of(settings.learner, device)

    def load_first() -> PreTrainedModel:
        nonlocal layout
        model = load_checked(settings, host)
        layout = _suited(settings, model, device)
        return model

    def share(load: Callable[[], PreTrainedModel]) -> Policy:
        return spread(load, ranks, device, partial(prepare, settings, device))

    policy = share(load_first)
    # What one rank found out holds for all: they have to cut a step alike.
    packed, shared = (bool(ranks.agreed(found)) for found in (layout.packed, layout.shared_prompts))
    budget = Budget.of(settings.learner, settings.checkpoints_directory, retries=False)
    budget.tokens = int(ranks.concatenated(plain([budget.tokens])).min())
    made = LeadingTrainer if ranks.rank == 0 else Trainer
    return made(
        policy,
        replace(layout, packed=packed, shared_prompts=shared),
        load_reference=lambda: share(partial(load_checked, settings, host)),
        budget=budget,
    )
