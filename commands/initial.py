"""The dense architecture with other weights than it was pruned with: earlier ones, or random ones."""

from __future__ import annotations

import torch
from torch import nn

from ..configs.training import FinetuneConfig
from ..networks import build_network, find_weights, load_weights
from ..networks.copying import copied
from ..networks.opened import opened
from ..pruners.masks import check_zeros
from ..training.checkpoint import load_state
from ..training.schedules import SCHEDULES
from .resolve import weight_folders
from .session import Session

AFRESH = ("rewind", "scratch_e", "scratch_b")  # schedules that begin with weights which are not trained yet


def initial(session: Session) -> nn.Module:
    """The dense architecture with earlier weights: a file's, or those that pretraining kept.

    Raises:
        ValueError, FileNotFoundError: there are none, or they do not fit.
    """
    config = session.config
    if config.finetune.initial is not None:
        file = find_weights(config.finetune.initial, weight_folders(config))
        model = copied(session.model) if config.network is None else _built(session, config.seed)
        load_weights(model, file)
        return opened(model)
    model = copied(session.model)
    if session.loaded.early:
        load_state(model, session.loaded.early)
    else:
        raise ValueError(
            "schedule = 'rewind' goes back to earlier weights, and there are none: give finetune.initial (a file), or "
            "network.pretrain.keep_epoch where the network is trained here"
        )
    return model


def fresh(session: Session, seed: int) -> nn.Module:
    """The dense architecture with random weights, others than it was trained from with this seed.

    Raises:
        ValueError: nobody knows how a parameter of the caller's own network is drawn.
    """
    config = session.config
    seed = (seed + 1) % 2**32
    if config.network is not None:  # code that it names has made the dense network already
        return opened(_built(session, seed))
    model = copied(session.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif own := next(module.named_parameters(recurse=False), None):
                raise ValueError(
                    f"a training from scratch needs random weights: {name or type(model).__name__} has a parameter "
                    f"{own[0]!r} and no reset_parameters() that draws it"
                )
    return model


def _built(session: Session, seed: int) -> nn.Module:
    """The architecture that the config names, not opened yet."""
    config = session.config
    assert config.network is not None
    bare = config.network.model_copy(update={"weights": None})
    device = next(session.model.parameters()).device
    return build_network(bare, weight_folders(config), seed=seed, trust_code=True).to(device)


def check(session: Session, schedule: str, epochs: int, *, own_loop: bool = False) -> None:
    """Whether a schedule has what it needs, before anything that takes long.

    Args:
        session: with network and images.
        schedule: one of `SCHEDULES`.
        epochs: to train for.
        own_loop: whether a `train_fn` trains, by settings of its own.

    Raises:
        ValueError, FileNotFoundError: it has not, or there is none of that name.
    """
    _ = SCHEDULES[schedule]
    session.check_finetune(epochs)
    if not epochs and schedule != "one_shot":
        raise ValueError(f"schedule = {schedule!r} trains while it cuts, or after: give finetune epochs")
    if schedule == "gradual":
        check_zeros(session.context)
    elif schedule in AFRESH and session.loaded.before:
        raise ValueError(
            f"schedule = {schedule!r} begins with other weights of the dense architecture, and network.weights is a "
            "network that was compressed already: take another schedule"
        )
    elif schedule == "rewind":
        initial(session)
    elif schedule in ("scratch_e", "scratch_b"):
        fresh(session, session.config.seed)
    if schedule in AFRESH and not own_loop and (name := settings_of(session, afresh=True)[0]) == "finetune":
        session.reporter.say(
            f"{schedule}: how the dense network was trained is not known here (network.pretrain), so weights that are "
            f"hardly trained learn at {name}.learning_rate = {session.config.finetune.learning_rate:g}; most need more"
        )


def settings_of(session: Session, *, afresh: bool) -> tuple[str, FinetuneConfig]:
    """By which is trained, and the config's section: afresh as the dense network was, if that was here."""
    finetune, network = session.config.finetune, session.config.network
    if not afresh or network is None or network.pretrain is None:
        return "finetune", finetune
    return "network.pretrain", finetune.model_copy(update=network.pretrain.model_dump(exclude={"keep_epoch"}))
