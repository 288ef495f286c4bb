"""A network trained for a command, before it is pruned or after: shown, kept on disk, gone on with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ..configs.training import FinetuneConfig, FitConfig
from ..data.loaders import TrainLoader
from ..networks.inference import FAILURES, accuracy
from ..reports.progress import Advance, Reporter
from ..storage.cache import LIMIT, cache_folder, code_of, digest, evict
from ..storage.files import package_versions
from ..storage.folders import FINETUNED_NAME
from ..training.checkpoint import Checkpoint, network_of
from ..training.distillation import Teacher, distillable
from ..training.fit import Batches as Loader
from ..training.fit import Fitted, OnEpoch, OnStep, Row, fit
from ..training.inputs import leaves
from ..training.objective import Objective, identity, is_built_in
from ..training.schedules import Hold
from ..training.step import in_training
from ..training.tasks import DEFAULT
from ..training.team import current

if TYPE_CHECKING:
    from .session import Session

PROBE = 8  # images that tell what a network's forward does with its weights


class FitOptions(TypedDict, total=False):
    """What `fit` takes besides what is trained, on what and how."""

    on_step: OnStep | None
    on_epoch: OnEpoch | None
    on_rows: Callable[[Sequence[Row]], None] | None
    checkpoint: Checkpoint | None
    at_rest: Collection[str]
    objective: Objective
    teacher: Teacher | None
    evaluate: Callable[[nn.Module], float] | None
    ready: Callable[[], bool] | None
    keep_best: bool


def run_fit(
    model: nn.Module,
    batches: Loader,
    config: FitConfig,
    seed: int,
    reporter: Reporter,
    title: str,
    **options: Unpack[FitOptions],
) -> Fitted:
    """`fit` with a progress bar, which begins where the training does."""
    on_step, on_epoch, on_rows = options.get("on_step"), options.get("on_epoch"), options.get("on_rows")
    bars: list[Advance] = []
    last = ""
    with ExitStack() as stack:

        def before(step: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(reporter.bar(title, total, step)))
            if on_epoch is not None:
                on_epoch(step, total)

        def after(step: int, total: int, loss: float) -> None:
            if on_step is not None:
                on_step(step, total, loss)
            bars[0](f"loss {loss:.3f}{last}")

        def epochs(rows: Sequence[Row]) -> None:
            nonlocal last
            last = "" if rows[-1]["score"] is None else f", search {rows[-1]['score']:.2f}"
            if on_rows is not None:
                on_rows(rows)

        options["on_step"], options["on_epoch"], options["on_rows"] = after, before, epochs
        team = current()
        if team is not None:
            reporter.say(f"{title}: {team.size} processes share every batch out")
        return fit(model, batches, config, seed=seed, team=team, **options)


@contextmanager
def steps_shown(reporter: Reporter, title: str) -> Iterator[OnStep]:
    """For the length of a block a function that draws a bar of steps, from the first on."""
    with ExitStack() as stack:
        bars: list[Advance] = []

        def show(step: int, total: int, loss: float) -> None:
            if not bars:
                bars.append(stack.enter_context(reporter.bar(title, total, step - 1)))
            bars[0](f"loss {loss:.3f}")

        yield show


class TuneOptions(FitOptions, total=False):
    """What a fine-tuning takes besides the network and its epochs.

    Attributes:
        config: instead of the session's `finetune`.
        hold: keeps the network's form.
        channels: of the dense network that it has, for hints; see `Teacher`.
        taught: whether it learns from the dense network, if the config says so.
        seed: instead of the config's.
    """

    config: FinetuneConfig | None
    hold: Hold | None
    channels: Mapping[str, Tensor | None]
    taught: bool
    seed: int


def finetune(
    session: Session,
    model: nn.Module,
    epochs: int,
    *,
    config: FinetuneConfig | None = None,
    hold: Hold | None = None,
    channels: Mapping[str, Tensor | None] | None = None,
    taught: bool = True,
    seed: int | None = None,
    **options: Unpack[FitOptions],
) -> Fitted:
    """Train a compressed network in place, as the config's `finetune` says; see `Session.finetune`."""
    session.check_finetune(epochs)
    if epochs == 0 or session.train_loader is None:
        return Fitted()
    config = (config or session.config.finetune).model_copy(update={"epochs": epochs})
    objective, search, distill = session.objective, session.search, config.distill

    def evaluate(current: nn.Module) -> float:
        if hold is not None:
            hold(current)
        return accuracy(current, search, objective)

    options = {
        "at_rest": session.loaded.at_rest,
        "objective": objective,
        "evaluate": evaluate,
        "keep_best": config.keep == "best",
        **options,
    }
    if hold is not None:
        options.setdefault("on_step", lambda _step, _total, _loss: hold(model))
    if taught and (distill.weight or distill.hints):
        if distillable(objective):
            kept = {"weight": distill.weight, "temperature": distill.temperature, "hints": distill.hints}
            options["teacher"] = Teacher(session.model, **kept, channels=channels or {})
        else:
            session.reporter.say(f"not distilled: {objective.name} has its loss computed inside the network")
    seed = session.config.seed if seed is None else seed
    batches = session.train_loader(config.batch_size, seed)
    with in_training(model, hold):
        done = run_fit(model, batches, config, seed, session.reporter, "fine-tune", **options)
    if hold is not None:
        hold(model)
    return done


def row_checkpoint(folder: Path, number: int) -> Checkpoint:
    """Where a run folder keeps the fine-tuning of one of its plans, until `remove_checkpoints`."""
    return Checkpoint(folder / FINETUNED_NAME / f"{number}.safetensors")


def remove_checkpoints(folder: Path) -> None:
    """Of a run that has nothing left to go on with."""
    shutil.rmtree(folder / FINETUNED_NAME, ignore_errors=True)


def pretrain(
    model: nn.Module,
    batches: Loader,
    config: FitConfig,
    seed: int,
    reporter: Reporter,
    cache: bool,
    objective: Objective = DEFAULT,
) -> Fitted:
    """Train the dense network, in place; kept in the cache epoch by epoch, and when it is finished.

    A command that was interrupted here goes on there when it is called again, and so does another one on the same
    network, images and settings.
    """
    checkpoint = _cached(model, batches, config, seed, objective) if cache else None
    try:
        options: FitOptions = {"checkpoint": checkpoint, "objective": objective}
        return run_fit(model, batches, config, seed, reporter, "pretrain", **options)
    except KeyboardInterrupt:
        if checkpoint is not None and checkpoint.path.exists():
            reporter.say("stopped while the network was trained; the same command goes on after its last whole epoch")
        raise


def check_trainable(model: nn.Module, train: object | None, epochs: int) -> None:
    """Whether a network can be fine-tuned, before anything that takes long.

    Raises:
        ValueError: there are no training images, or all parameters are frozen.
    """
    if train is None:
        raise ValueError(f"finetune={epochs} epochs, but there are no training images: pass images.train")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"finetune={epochs} epochs, but every parameter of the {type(model).__name__} is frozen (requires_grad is "
            "off): set it on for some, or finetune=0"
        )


def _cached(model: nn.Module, batches: Loader, config: FitConfig, seed: int, objective: Objective) -> Checkpoint | None:
    """Under a key of all that the trained network depends on; none where not all of it is known."""
    if not isinstance(batches, TrainLoader) or not is_built_in(objective):
        return None
    probe = _probe(model, batches)
    if probe is None:
        return None
    about = {
        "versions": package_versions(),
        "code": code_of("data", "networks", "training"),
        "threads": torch.get_num_threads(),
        "processes": 1 if (team := current()) is None else team.size,
        "device": str(next(model.parameters()).device),
        "network": [type(model).__name__, repr(model), network_of(model), digest(probe)],
        "objective": identity(objective),
        "training": config.model_dump(mode="json"),
        "seed": seed,
        "images": [batches.settings, digest(batches.images)],
    }
    folder = cache_folder() / "pretrained" / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    with suppress(OSError):  # what cannot be written is said by whoever writes
        if folder.is_dir():
            os.utime(folder)
        else:
            folder.mkdir(parents=True)
            evict(folder.parent, LIMIT)
    return Checkpoint(folder / "network.safetensors", needed=False)


def _probe(model: nn.Module, batches: TrainLoader) -> list[Tensor] | None:
    """What the untrained network makes of some images: two of the same weights need not compute the same."""
    device = next(model.parameters()).device
    images, _ = next(iter(batches))
    try:
        with torch.no_grad():
            return list(leaves(model(images[:PROBE].to(device))).values())
    except FAILURES:
        return None  # training it says what is wrong
