"""A session: one dense network with its images, looked at once, for as many commands as there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast

from torch import nn

from ..configs import Config, layered
from ..envs import CandidateEvaluator, LayerSparsityEnv, ParallelEvaluator, RewardWeights
from ..networks.inference import Batches
from ..networks.world import undisturbed
from ..pruners import METHODS, Budget, Compressor, Context, Kept, RatioPlan, Structure, dense_store
from ..reports.progress import Reporter
from ..storage.cache import Store
from ..training.fit import Fitted, OnStep
from ..training.inputs import InputShape, shape_of
from ..training.objective import Objective, make_objective, settings_of
from . import workers
from .describe import dense_latency, describe, warned
from .loading import Images, Loaded, LoaderOf, load, save_trained
from .outline import check_budget, check_names, find_budget, find_structure, image_shape, untrained
from .resolve import Given, absolute, home_of, resolve_config, save_config
from .setup import environment, set_up
from .tuning import TuneOptions, check_trainable, finetune

T = TypeVar("T")


class Session:
    """A config, the network and the images that it names, and all that is computed on them once.

    Nothing is loaded before it is needed. Commands take a session or what makes one (a config, its name or its file);
    several commands on one session trace, rank and measure the network once. What is the caller's stays as it was: his
    network is copied, his batches are only read, random states and torch's settings are put back (`undisturbed`).

    Args:
        config: a built-in name, a YAML file or a `Config`; none is the embedded default, or the config of the run
            folder or plan that a command is given.
        model: your own network instead of the config's; as it is when it is first needed; never changed.
        images: your own images instead of the config's.
        objective: your own task instead of the config's: its loss, its score.
        overrides: `section.key=value` on top of the config.
        seed: instead of the config's.
        ray_address: of a Ray cluster whose workers evaluate candidates, instead of the config's.
        reporter: shows progress.
        trust_code: whether code that the config, a plan or a command names (`package.module:callable`) may run.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line; what is loaded late is found out late.
    """

    def __init__(
        self,
        config: Given = None,
        *,
        model: nn.Module | None = None,
        images: Images | None = None,
        objective: Objective | None = None,
        overrides: Sequence[str] = (),
        seed: int | None = None,
        ray_address: str | None = None,
        reporter: Reporter | None = None,
        trust_code: bool = False,
    ):
        self._given = config
        self._model = model
        self._images = images
        self._objective = objective
        self._overrides = tuple(overrides)
        self._seed = seed
        self._ray_address = ray_address
        self.trust_code = trust_code
        self._folder: Path | None = home_of(config, None)
        self._plan: RatioPlan | None = None
        self._plan_folder: Path | None = None
        self._spends = True
        self._config: Config | None = None
        self._memory: dict[Any, Any] = {}
        self.reporter = reporter or Reporter()
        _ = self.config if config is not None else None  # a mistake in it is said now

    @classmethod
    def of(cls, given: Session | Given) -> Session:
        """The session given, or one of what makes it."""
        return given if isinstance(given, Session) else cls(given)

    def beside(
        self,
        folder: Path | None = None,
        plan: RatioPlan | None = None,
        overrides: Sequence[str] = (),
        *,
        spends: bool = True,
        stand_in: nn.Module | None = None,
    ) -> Session:
        """This session for a run folder or a plan: it takes the folder's config where it was given none.

        Network, images and whatever is already computed are shared, as far as they do not depend on what differs.

        Args:
            folder: a run folder; a network that was trained there is loaded.
            plan: that will be applied; its method and criterion take the config's place.
            overrides: on top of the session's own.
            spends: whether a budget counts; where it does not, a network of one's own needs no config.
            stand_in: takes the place of a network that would have to be loaded, for who needs the images alone.
        """
        other = Session.__new__(Session)
        other.__dict__.update(self.__dict__)
        other._overrides = layered(self._overrides, overrides)
        other._folder = self._folder or home_of(self._given, folder)
        other._plan = plan or self._plan
        if plan is not None and (folder is not None or plan is not self._plan):
            other._plan_folder = folder
        other._spends = spends
        other._model = stand_in if self._model is None else self._model
        other._config = None
        _ = other.config
        return other

    @property
    def config(self) -> Config:
        """Resolved."""
        if self._config is None:
            own = None if self._model is None else type(self._model).__name__
            config = resolve_config(
                self._given,
                self._overrides,
                folder=self._folder,
                plan=self._plan,
                plan_folder=self._plan_folder,
                own_network=own,
                spends=self._spends,
                seed=self._seed,
            )
            if self._model is not None:
                config = config.model_copy(update={"network": None})  # the caller's takes its place
            made = make_objective(config.objective, self._objective, trust_code=self.trust_code)
            if self._objective is not None:
                config = config.model_copy(update={"objective": settings_of(made)})
            check_names(config, trust_code=self.trust_code)
            self._config = config
        return self._config

    @property
    def objective(self) -> Objective:
        """What the network is for."""
        named, given, trusted = self.config.objective, self._objective, self.trust_code
        return self._once(("objective", repr(named)), lambda: make_objective(named, given, trust_code=trusted))

    @property
    def on_cluster(self) -> bool:
        """Whether a Ray cluster's workers evaluate candidates."""
        return (self._ray_address or self.config.ray_address) is not None

    def check_workers(self) -> None:
        """Whether there can be workers, before anything that takes long; raises as `workers.check` does."""
        workers.check(self.config, self._ray_address, self.trust_code)

    def _once(self, key: Sequence[Any], make: Callable[[], T]) -> T:
        """What was made under this key, in this session or one that shares with it."""
        if key not in self._memory:
            with undisturbed(self.config.threads):
                self._memory[key] = make()
        return cast(T, self._memory[key])

    @property
    def loaded(self) -> Loaded:
        """The dense network and its images."""
        config = self.config
        trained = config.network is not None and config.network.weights is None  # here: what lies in the folder counts
        home = self._folder.resolve() if trained and self._folder is not None else None
        parts = (config.network, config.data, config.objective, config.seed, config.device)
        key = ("loaded", home, *map(repr, parts))
        given: dict[str, Any] = {"model": self._model, "images": self._images, "objective": self.objective}
        given |= {"reporter": self.reporter, "trust_code": self.trust_code, "folder": self._folder}
        if self._spends and self._plan is None:
            given["before_training"] = partial(check_budget, config, self.reporter.bar)
        return self._once(key, lambda: load(config, **given))

    @property
    def model(self) -> nn.Module:
        """The dense network, in eval mode; never changed."""
        return self.loaded.model

    @property
    def calibration(self) -> Batches:
        """Images that repair."""
        return self.loaded.calibration

    @property
    def search(self) -> Batches:
        """Images that pay the reward."""
        return self.loaded.search

    @property
    def test(self) -> Batches | None:
        """Images that are looked at in the end; none where the caller gave none."""
        return self.loaded.test

    @property
    def train_loader(self) -> LoaderOf | None:
        """Makes the loader for fine-tuning, for a batch size; none where the caller gave no training images."""
        return self.loaded.train

    @property
    def source(self) -> str:
        """Where the images come from, in a line."""
        return self.loaded.source

    @property
    def architecture(self) -> str:
        """The network's name in the config, else its class."""
        return self.config.network.name if self.config.network else type(self.model).__name__

    @property
    def input_shape(self) -> InputShape:
        """(C, H, W) of one image, or what `shape_of` says of other inputs."""
        return shape_of(self.search[0][0])

    @property
    def criterion(self) -> str:
        """That ranks the units inside a layer."""
        return self.config.criterion or METHODS[self.config.method].criterion

    @property
    def structure(self) -> Structure:
        """The network's layers and their costs; a latency table, which takes seconds, where the budget needs one."""
        config, timed = self.config, "latency" in self.config.budget.asked
        key = ("structure", config.method, repr(config.layers), repr(config.latency) if timed else "")
        make = partial(find_structure, config, self.model, self.input_shape, timed=timed, bar=self.reporter.bar)
        return self._once((*key, id(self.loaded)), make)

    def outline(self, input_shape: InputShape | None = None) -> tuple[nn.Module, InputShape]:
        """The network, for its layers and costs alone, and the shape of one image: nothing is trained for it.

        Args:
            input_shape: (C, H, W); none is that of the images.
        """
        if self._model is not None and self._images is not None:
            return self.model, input_shape or self.input_shape
        model = untrained(self.config, self._model, trust_code=self.trust_code)
        return model, input_shape or image_shape(self.config.data)

    @property
    def budget(self) -> Budget:
        """What a plan may cost here."""
        return find_budget(self.config, self.structure)

    @property
    def context(self) -> Context:
        """The dense network and its calibration images, ranked by the criterion."""
        structure, config = self.structure, self.config
        known = (self.model, structure, self.calibration, 0, self.objective)
        store = self._once(("store", id(structure)), lambda: dense_store(*known) if config.cache else Store())
        return self._once(
            ("context", id(structure), self.criterion),
            lambda: Context(self.model, structure, self.calibration, self.criterion, 0, store, self.objective),
        )

    @property
    def compressor(self) -> Compressor:
        """Makes smaller networks of the dense one."""
        made = self._once(("compressor", id(self.context)), lambda: Compressor(self.context))
        return made.checked(self.config.repair.final)

    @property
    def evaluator(self) -> CandidateEvaluator:
        """Evaluates candidates the fast way, on the search images."""
        repair = self.config.repair.search
        key = ("evaluator", id(self.compressor), repr(repair))
        return self._once(key, lambda: warned(CandidateEvaluator(self.compressor, self.search, repair)))

    def evaluators(self) -> AbstractContextManager[CandidateEvaluator | ParallelEvaluator]:
        """The evaluator, or for the length of a `with` block workers that do as it does; raises as `workers.start`."""
        return workers.start(self.evaluator, self.config, self._ray_address)

    @property
    def weights(self) -> RewardWeights:
        """Weights of the terms by which plans are chosen."""
        return RewardWeights(**self.config.reward.model_dump())

    def env(self) -> LayerSparsityEnv:
        """A new environment that walks this network."""
        return environment(self, self._once(("set-up", id(self.context)), lambda: set_up(self)))

    @property
    def dense_latency(self) -> Mapping[str, float]:
        """Milliseconds of the dense network: `predicted_ms` by the table and `measured_ms`; empty without a table."""
        return self._once(("dense latency", id(self.structure)), lambda: dense_latency(self))

    @undisturbed()
    def compress(self, kept: Kept, on_step: OnStep | None = None) -> nn.Module:
        """A smaller network (layers,), repaired as a finished plan is; it owns its tensors; `on_step`: distilling."""
        small = self.compressor(kept, self.config.repair.final, on_step)
        for parameter in small.parameters():
            parameter.data = parameter.data.clone()
        return small

    def check_finetune(self, epochs: int) -> None:
        """Whether there is anything to fine-tune, and images to do it on.

        Raises:
            ValueError: there is not, or a negative number of epochs.
        """
        if epochs < 0:
            raise ValueError(f"finetune = {epochs}: a number of epochs, 0 or more")
        if epochs:
            check_trainable(self.model, self.train_loader, epochs)

    @undisturbed()
    def finetune(self, model: nn.Module, epochs: int, **options: Unpack[TuneOptions]) -> Fitted:
        """Train a compressed network in place, as the config's `finetune` says; the best epoch on the search images.

        Options are `TuneOptions`; errors are those of `fit`.
        """
        return finetune(self, model, epochs, **options)

    def plan_of(
        self, kept: Kept, *, allocator: str, seed: int, candidates: int, figures: Mapping[str, float] | None = None
    ) -> RatioPlan:
        """The plan that keeps so many units (layers,) of this network."""
        return RatioPlan.make(
            self.structure,
            kept,
            architecture=self.architecture,
            criterion=self.criterion,
            objective=self.config.objective,
            budget=(self.budget.kind, self.budget.fraction),
            besides=self.budget.besides,
            figures=figures or {},
            allocator=allocator,
            seed=seed,
            candidates=candidates,
        )

    def save(self, folder: Path) -> None:
        """Write the resolved config, and the dense weights if they were trained here."""
        save_trained(self.loaded, folder)
        save_config(absolute(self.config), folder)

    def describe(self) -> str:
        """The session in a line, for a person."""
        return describe(self)
