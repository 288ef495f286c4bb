"""A plan and a session, as a schedule sees them: what cuts, what trains, what is on disk already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..networks.copying import copied
from ..networks.factors import unfactorised
from ..networks.inference import accuracy, first_images, logits
from ..pruners import METHODS, Compressed, Compressor, Context, Kept, RatioPlan, Structure
from ..pruners.masks import tighten
from ..pruners.method import chained
from ..pruners.saved import NETWORK_NAME, REPAIRED_NAME, load, save_network
from ..storage.cache import Store
from ..training.checkpoint import Checkpoint, state_of
from ..training.distillation import distillable
from ..training.fit import OnEpoch, OnStep
from ..training.schedules import SCHEDULES, Cut, Hold, TrainContext, TrainFn
from ..training.step import in_training
from ..training.team import current
from .begun import Begun
from .initial import fresh, initial, settings_of
from .session import Session
from .training_log import TrainingLog
from .tuning import steps_shown

CHECKPOINTS = "finetune*.safetensors"
ROUNDS_NAME = "rounds"
TOLERANCE = 1e-3  # of the outputs' spread; what layers are found by


class Task:
    """What `training.schedules.Retraining` asks for.

    Attributes:
        epochs: to train for.
        settings: the config's section `finetune`.
        gradual: the config's section of that name.
        flops: the part of the dense network's that the plan keeps.
        log: of all epochs.
        section: of the config, by which is trained.
    """

    def __init__(
        self,
        session: Session,
        plan: RatioPlan,
        begun: Begun,
        folder: Path,
        train_fn: TrainFn | None = None,
        *,
        repaired: nn.Module | None = None,
        seed: int | None = None,
    ):
        """Of a plan.

        Args:
            session: with network and images.
            plan: that cuts.
            begun: epochs and schedule, and what a checkpoint must be of.
            folder: to write to.
            train_fn: the caller's own loop.
            repaired: the plan's network, where it is made already.
            seed: of the training, instead of the config's.
        """
        self.epochs = begun.epochs
        self.settings = session.config.finetune
        self.gradual = session.config.gradual
        self.flops = session.structure.fraction("flops", plan.kept)
        self._session, self._plan, self._begun, self._folder, self._train_fn = session, plan, begun, folder, train_fn
        self._method, self._repaired = METHODS[plan.method], repaired
        self._seed = session.config.seed if seed is None else seed
        self.log = TrainingLog(folder)
        self.section = "finetune"

    def run(self) -> Cut:
        """The schedule, from where it was."""
        try:
            return SCHEDULES[self._begun.schedule](self)
        finally:
            self.log.close()

    @cached_property
    def repaired(self) -> Cut:
        """The plan's network, repaired; the one that is there already, if it is."""
        if self._repaired is not None:
            return replace(self._planned, model=self._repaired)
        folder = self._folder / REPAIRED_NAME
        if not (folder / NETWORK_NAME).exists():
            with steps_shown(self._session.reporter, "distill") as shown:
                return replace(self._planned, model=self._session.compress(self._plan.kept, shown))
        return replace(self._planned, model=self._loaded(folder))

    @cached_property
    def _planned(self) -> Cut:
        compressed = self._session.compressor.compress(self._plan.kept)
        return _cut(self.dense(), compressed, self._plan.kept)

    def save(self, cut: Cut, folder: Path) -> None:
        """Write a network, for `load`."""
        config = self._session.config
        save_network(
            cut.model,
            folder,
            method=self._plan.method,
            recipe=chained(cut.recipes),
            network=config.network,
            input_shape=self._session.input_shape,
            objective=config.objective,
            before=self._session.loaded.before,
        )

    def dense(self) -> Cut:
        """A copy of the dense network, nothing cut."""
        return Cut(copied(self._session.model), self._session.structure.units)

    def cut(self, part: float = 1.0, after: Cut | None = None, *, repaired: bool = True) -> Cut:
        """A network cut a part of the way to the plan."""
        if part == 1.0 and after is None:
            cut = self.repaired if repaired else self._planned
            return replace(cut, model=copied(cut.model))
        kept = self._part(part)
        if after is None:
            compressor, wanted = self._session.compressor, kept
        else:
            compressor = Compressor(self._context(unfactorised(after.model, self._session.model)))
            wanted = _wanted(self._session.structure, compressor.structure, kept, after.kept)
        cut = _cut(after or self.dense(), compressor.compress(wanted), kept)
        if not repaired:
            return replace(cut, model=copied(cut.model))
        with steps_shown(self._session.reporter, "distill") as shown:
            model = compressor(wanted, self._session.config.repair.final, shown)
        return replace(cut, model=copied(model))

    def tighten(self, model: nn.Module, part: float) -> Hold:
        """Cut a part of the way with zeros, in place."""
        return tighten(self._session.context, model, self._part(part, linear=True))

    def shrunk(self, model: nn.Module) -> Cut:
        """The plan's network of one that was tightened all the way."""
        context = replace(self._session.context, model=model)
        compressed = self._method.apply(context, self._plan.kept)
        largest_difference(self._session, model, compressed.model)
        cut = _cut(self.dense(), compressed, self._plan.kept)
        return replace(cut, model=copied(compressed.model))

    def with_weights(self, cut: Cut, dense: nn.Module) -> Cut:
        """The same part of another network of the dense architecture."""
        model = dense
        for recipe in cut.recipes:
            model = self._method.rebuild(model, recipe)
        model = copied(model).eval()
        for name, parameter in cut.model.named_parameters():
            model.get_parameter(name).requires_grad_(parameter.requires_grad)
        if cut.hold is not None:
            cut.hold(model)
        return replace(cut, model=model)

    def initial(self) -> nn.Module:
        """The dense architecture with the weights that `rewind` goes back to."""
        return initial(self._session)

    def fresh(self) -> nn.Module:
        """The dense architecture with random weights."""
        return fresh(self._session, self._seed)

    def train(
        self,
        cut: Cut,
        epochs: int,
        *,
        number: int = 1,
        taught: bool = True,
        afresh: bool = False,
        on_step: OnStep | None = None,
        on_epoch: OnEpoch | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        """Train in place, kept on disk epoch by epoch; or by the caller's own loop."""
        if self._train_fn is not None:
            if on_step is not None or on_epoch is not None:
                raise ValueError(
                    f"schedule = {self._begun.schedule!r} cuts at steps of the training, of which a train_fn's are not "
                    "known: leave train_fn out, or take another schedule"
                )
            self._train_own(cut, epochs, number)
            return
        self.section, settings = settings_of(self._session, afresh=afresh)
        checkpoint = Checkpoint(
            self._folder / (CHECKPOINTS.replace("*", "" if number == 1 else f"-{number}")),
            {**self._begun.of, "schedule": self._begun.schedule, "round": str(number)},
        )
        callbacks = {"on_step": on_step, "on_epoch": on_epoch, "ready": ready}
        self._session.finetune(
            cut.model,
            epochs,
            config=settings,
            hold=cut.hold,
            channels=cut.channels,
            taught=taught,
            seed=self._seed,
            checkpoint=checkpoint,
            on_rows=lambda rows: self.log.write(number, rows, taught=taught and self._distils),
            **{name: callback for name, callback in callbacks.items() if callback is not None},  # type: ignore[arg-type]
        )

    def recorded(self, cut: Cut, number: int) -> Cut | None:
        """The cut as this round ended, where it is finished already."""
        folder = self._folder / ROUNDS_NAME / str(number)
        if not (folder / NETWORK_NAME).exists():
            return None
        return replace(cut, model=self._loaded(folder))

    def record(self, cut: Cut, number: int) -> None:
        """A round is finished."""
        self.save(cut, self._folder / ROUNDS_NAME / str(number))

    def score(self, model: nn.Module) -> float:
        """The objective's measure on the search images."""
        return accuracy(model, self._session.search, self._session.objective)

    def say(self, text: str) -> None:
        """A line for a person."""
        self._session.reporter.say(text)

    def _part(self, part: float, *, linear: bool = False) -> Kept:
        """(layers,) units kept a part of the way, the plan's at least."""
        units, kept = self._session.structure.units, self._plan.kept
        if linear or self.settings.spacing == "linear":
            found = units - part * (units - kept)
        else:
            found = units * (kept / units) ** part
        return np.maximum(np.round(found).astype(np.int64), kept)

    def _context(self, model: nn.Module) -> Context:
        """Of a network that was cut before, and trained: its layers, ranked anew."""
        session = self._session
        structure = self._method.find(model, session.input_shape, session.config.layers)
        return Context(model, structure, session.calibration, session.criterion, 0, Store(), session.objective)

    def _loaded(self, folder: Path) -> nn.Module:
        device = next(self._session.model.parameters()).device
        return load(folder, self._session.model, trust_code=self._session.trust_code).to(device)

    def _train_own(self, cut: Cut, epochs: int, number: int) -> None:
        session, settings = self._session, self.settings
        assert self._train_fn is not None
        assert session.train_loader is not None
        if current() is not None:
            self.say("train_fn trains in this process alone, the others wait")
        before = {name: tensor.shape for name, tensor in state_of(cut.model).items()}
        context = TrainContext(
            epochs=epochs,
            train=session.train_loader(settings.batch_size, self._seed),
            search=session.search,
            dense=session.model,
            objective=session.objective,
            hold=cut.hold or (lambda _model: None),
            settings=settings,
            round=number,
            seed=self._seed,
            folder=self._folder,
        )
        with in_training(cut.model, cut.hold):
            self._train_fn(cut.model, context)
        context.hold(cut.model)
        cut.model.eval()
        after = {name: tensor.shape for name, tensor in state_of(cut.model).items()}
        if other := [name for name in before | after if before.get(name) != after.get(name)]:
            raise ValueError(f"train_fn changed the network's form ({other[0]}): it trains the weights that are there")

    @property
    def _distils(self) -> bool:
        distill = self.settings.distill
        return bool(distill.weight or distill.hints) and distillable(self._session.objective)


def largest_difference(session: Session, masked: nn.Module, compressed: nn.Module) -> float:
    """Over the outputs' spread, of the objective's features. The masked network is the oracle.

    Raises:
        RuntimeError: they do not agree; nothing is saved.
    """
    images = first_images(session.search, 100)
    expected, actual = (logits(model, images, session.objective.features) for model in (masked, compressed))
    difference = (actual - expected).abs().max() / expected.std().clamp_min(torch.finfo().tiny)
    if not difference <= TOLERANCE:
        raise RuntimeError(
            "the compressed network does not compute what the masked one computes (outputs differ by "
            f"{float(difference):.1e} of their spread): leave layers out with layers.ignore until it does, "
            "and please report this network"
        )
    return float(difference)


def _cut(before: Cut, compressed: Compressed, kept: Kept) -> Cut:
    """What a compression makes of a cut; nothing fitted."""
    channels = dict(before.channels)
    for name, stay in compressed.channels.items():
        known = channels.get(name)
        channels[name] = known if stay is None else stay if known is None else known[stay]
    recipes = (*before.recipes, compressed.recipe)
    return Cut(compressed.model, kept, recipes, compressed.hold, channels)


def _wanted(dense: Structure, now: Structure, kept: Kept, before: Kept) -> Kept:
    """(layers of a network that was cut,) units to keep, given those of the dense network's layers.

    Raises:
        ValueError: a layer that has more to lose is not among them.
    """
    wanted = dict(zip((layer.name for layer in dense.layers), kept, strict=True))
    missing = [
        layer.name
        for layer, count, had in zip(dense.layers, kept, before, strict=True)
        if count < had and layer.name not in {other.name for other in now.layers}
    ]
    if missing:
        raise ValueError(f"layer {missing[0]} cannot be cut a second time: use schedule = 'one_shot' or 'gradual'")
    return np.array([min(layer.units, wanted.get(layer.name, layer.units)) for layer in now.layers], dtype=np.int64)
