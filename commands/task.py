"""A task: a dense network, its images and its layers, made ready from a config or from what the caller brings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..configs import Config, ConfigError, dump_config, load_config
from ..configs.schema import FitConfig, NetworkConfig
from ..data import Splits, as_batches, load_splits
from ..envs import CandidateEvaluator, Evaluation, ParallelEvaluator, RewardWeights
from ..envs.actors import Actors, require_ray
from ..envs.processes import Processes
from ..networks import Batches as Loader
from ..networks import OnStep, build_network, find_weights, fit, load_weights
from ..pruners.budget import Budget
from ..pruners.coupling import find_layers
from ..pruners.criteria import get_criterion
from ..pruners.files import check_sha256, recorded_sha256, replacing, write_tensors
from ..pruners.inference import count_images
from ..pruners.latency import measure_latency
from ..pruners.latency_profile import take_table
from ..pruners.layers import Structure
from ..pruners.pruner import ChannelPruner
from ..pruners.reconstruction import Batches
from ..reports.progress import Reporter

CONFIG_NAME = "config.yaml"
DENSE_NAME = "dense.safetensors"

LoaderOf = Callable[[int], Loader]


@dataclass(frozen=True)
class Images:
    """A caller's own images; every one an iterable of (images (N, C, H, W) float, labels (N,)).

    Attributes:
        calibration: that repair.
        search: that pay the reward: if there are any, images the network was not trained on.
        test: looked at in the end.
        train: for fine-tuning, walked anew every epoch; none if there is no fine-tuning.
    """

    calibration: Iterable[Any]
    search: Iterable[Any]
    test: Iterable[Any] | None = None
    train: Any = None


@dataclass(frozen=True)
class Task:
    """What every command works on.

    Attributes:
        config: resolved, paths absolute.
        model: the dense network, in eval mode; never changed.
        calibration: images that repair.
        search: images that pay the reward.
        test: images that are looked at in the end; none where the caller gave none.
        train: makes the loader for fine-tuning, for a seed; none where the caller gave none.
        source: where the images come from, in a line.
        trained_here: whether the network was trained for this task, so that its weights are kept with the run.
    """

    config: Config
    model: nn.Module
    calibration: Batches
    search: Batches
    test: Batches | None
    train: LoaderOf | None
    source: str
    trained_here: bool = False

    @property
    def architecture(self) -> str:
        """The network's name in the config, else its class."""
        return self.config.network.name if self.config.network else type(self.model).__name__

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return tuple(self.search[0][0].shape[1:])

    @cached_property
    def structure(self) -> Structure:
        """The network's layers."""
        layers = self.config.layers
        return find_layers(self.model, self.input_shape, cut=layers.cut, exclude=layers.exclude)

    @cached_property
    def priced(self) -> Structure:
        """The layers, with the table of their latency where the budget needs one; it takes seconds to make."""
        if self.config.budget.kind != "latency":
            return self.structure
        return replace(self.structure, latency=take_table(self.model, self.structure, self.config.latency))

    @cached_property
    def budget(self) -> Budget:
        """What a plan may cost here."""
        asked = self.config.budget
        return Budget(self.priced, asked.kind, asked.fraction, self.config.layers.max_sparsity)

    @cached_property
    def dense_latency(self) -> dict[str, float]:
        """Milliseconds of the dense network: `predicted_ms` by the table and `measured_ms`; empty without a table."""
        if self.priced.latency is None:
            return {}
        measured = measure_latency({"dense": self.model}, self.input_shape, self.config.latency)["dense"]
        return {"predicted_ms": self.priced.cost("latency", self.priced.widths) / 1e6, "measured_ms": measured}

    @cached_property
    def pruner(self) -> ChannelPruner:
        """The dense network, ready to be pruned in many ways."""
        config = self.config
        return ChannelPruner(self.model, self.structure, config.pruning.criterion, self.calibration, cache=config.cache)

    @cached_property
    def evaluator(self) -> CandidateEvaluator:
        """Judges candidates the fast way, on the search images."""
        pruning = self.config.pruning
        return CandidateEvaluator(
            self.pruner,
            self.search,
            repair=pruning.search_repair,
            refit=pruning.refit_producers,
            images=pruning.search_images,
            places=pruning.search_places,
            adaptive_bn=pruning.search_adaptive_bn,
        )

    def judges(self, ray_address: str | None = None) -> AbstractContextManager[CandidateEvaluator | ParallelEvaluator]:
        """The evaluator, or for the length of a `with` block workers that judge as it does; they share what is known.

        Args:
            ray_address: of a Ray cluster, instead of the config's.

        Raises:
            ValueError, ImportError, ConnectionError: see `Processes` and `Actors`.
        """
        workers, threads = self.config.workers, self.config.threads
        address = ray_address or self.config.ray_address
        if address is not None:
            return ParallelEvaluator(self.evaluator, Actors(self.evaluator, threads or 1, workers, address), workers)
        if workers == 1:
            return nullcontext(self.evaluator)
        share = threads or max(1, torch.get_num_threads() // workers)
        return ParallelEvaluator(self.evaluator, Processes(self.evaluator, share), workers)

    @property
    def reward(self) -> RewardWeights:
        """Weights of the reward's terms."""
        return RewardWeights(**self.config.reward.model_dump())

    def prune(self, widths: NDArray[np.int64]) -> nn.Module:
        """A smaller network, repaired as a finished plan is; it owns all its tensors."""
        pruning = self.config.pruning
        pruned = self.pruner.prune(
            widths, pruning.final_repair, refit=pruning.refit_producers, adaptive_bn=pruning.final_adaptive_bn
        )
        for parameter in pruned.parameters():
            parameter.data = parameter.data.clone()
        return pruned

    def check_finetune(self, epochs: int) -> None:
        """Whether there is anything to fine-tune on.

        Raises:
            ValueError: there are no training images.
        """
        if epochs and self.train is None:
            raise ValueError(f"finetune={epochs} epochs, but there are no training images: pass images.train")

    def finetune(self, model: nn.Module, epochs: int, reporter: Reporter, on_step: OnStep | None = None) -> None:
        """Train a pruned network in place: SGD, cosine; `on_step` as in `fit`.

        Raises:
            ValueError: there are no training images.
        """
        self.check_finetune(epochs)
        if epochs == 0 or self.train is None:
            return
        config = self.config.finetune.model_copy(update={"epochs": epochs})
        run_fit(model, self.train(config.batch_size), config, self.config.seed, reporter, "fine-tune", on_step)

    def save(self, folder: Path) -> None:
        """Write the resolved config, and the dense weights if they were trained here."""
        if self.trained_here and not (folder / DENSE_NAME).exists():
            tensors = {name: t.clone() for name, t in self.model.state_dict().items()}
            write_tensors(folder / DENSE_NAME, tensors, record=True)
        save_config(self.config, folder)


def save_config(config: Config, folder: Path) -> None:
    """Write a config to a run folder, with paths that hold from anywhere."""
    with replacing(folder / CONFIG_NAME) as temporary:
        temporary.write_text(dump_config(_absolute(config)), encoding="utf-8")


@dataclass(frozen=True)
class Finalist:
    """A plan of a search that was judged again, repaired as a finished plan is.

    Attributes:
        widths: (layers,) units kept.
        evaluation: on the search images.
        reward: for it.
    """

    widths: NDArray[np.int64]
    evaluation: Evaluation
    reward: float


def judge_finalists(task: Task, rewards: Mapping[tuple[int, ...], float], reporter: Reporter) -> list[Finalist]:
    """The best plans of a search, and its first, judged again on the search images with the final repair, best first.

    A candidate's quick repair ranks plans well but not perfectly, and the best of many is partly luck; the first is
    where the search began, and tells what it gained.

    Args:
        task: `agent.finalists` of its config says how many of the best.
        rewards: of the search's candidates, by widths, in the order judged.
        reporter: shows progress.
    """
    best = sorted(rewards, key=lambda widths: -rewards[widths])[: task.config.agent.finalists]
    chosen = list(dict.fromkeys([*best, *list(rewards)[:1]]))
    finalists = []
    with reporter.bar("finals", len(chosen)) as advance:
        for key in chosen:
            widths = np.array(key, dtype=np.int64)
            evaluation = task.evaluator.judge(task.prune(widths), widths)
            finalists.append(Finalist(widths, evaluation, task.reward.reward(evaluation)))
            advance(f"acc {evaluation.accuracy:.1f}%")
    return sorted(finalists, key=lambda finalist: -finalist.reward)


def resolve_config(
    config: Config | str | Path | None,
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    seed: int | None = None,
) -> Config:
    """The config given, or the one a run folder holds, with overrides on top.

    Raises:
        ConfigError: see `load_config`; or neither is there.
    """
    if config is None and folder is not None:
        config = _config_of(folder)
    return load_config(config, overrides, seed=seed)


def _config_of(folder: Path) -> Config:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ConfigError(f"no {CONFIG_NAME} in {folder}: give the config that the plan was made with (--config)")
    try:
        return load_config(path)
    except ConfigError as error:
        raise ConfigError(f"{error}; restore it, or write it anew with the settings of the run") from error


def home_of(config: Config | str | Path | None, beside: Path | None) -> Path | None:
    """The run folder that a config belongs to: where weights that were trained for it lie."""
    if config is None:
        return beside
    return Path(config).parent if not isinstance(config, Config) and Path(config).is_file() else None


def make_task(
    config: Config,
    *,
    folder: Path | None = None,
    model: nn.Module | None = None,
    images: Images | None = None,
    reporter: Reporter | None = None,
    trust_code: bool = False,
) -> Task:
    """Build the network and read the images that a config names, or take the caller's.

    Args:
        config: checked.
        folder: a run folder; a network that was trained there is loaded instead of trained again.
        model: the caller's network instead of the config's.
        images: the caller's images instead of the config's.
        reporter: shows progress.
        trust_code: whether code that the config names may run; see `build_network`.

    Raises:
        ValueError, FileNotFoundError: a network, weights or images that cannot be used.
    """
    reporter = reporter or Reporter()
    get_criterion(config.pruning.criterion)
    _prepare_torch(config)
    device = _device(config.device)
    if images is not None:
        task = Task(config, nn.Identity(), *_caller_batches(images, device), source="the caller's images")
    else:
        task = _task_from_splits(config, device)
    if model is None:
        network = config.network
        if network is None:
            raise ConfigError("the config has no network section: add one, or pass model=")
        model, trained = _network(task, network, folder, reporter, trust_code)
        task = replace(task, trained_here=trained)
    task = replace(task, model=_clean(model, device), config=_absolute(config))
    _check_images(task)
    return task


def run_fit(
    model: nn.Module,
    batches: Loader,
    config: FitConfig,
    seed: int,
    reporter: Reporter,
    title: str,
    on_step: OnStep | None = None,
) -> None:
    """`fit` with a progress bar."""
    with reporter.bar(title, config.epochs * len(batches)) as advance:

        def after(step: int, total: int, loss: float) -> None:
            if on_step is not None:
                on_step(step, total, loss)
            advance(f"loss {loss:.3f}")

        fit(model, batches, config, seed=seed, on_step=after)


def _prepare_torch(config: Config) -> None:
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    torch.manual_seed(config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device = {name!r} is not to be had here ({str(error).splitlines()[0]}): try cpu") from None
    return device


def _task_from_splits(config: Config, device: torch.device) -> Task:
    data, network = config.data, config.network
    if data is None or network is None:
        raise ConfigError("the config has no data or network section: add it, or pass images=")
    splits: Splits = load_splits(data, num_classes=network.num_classes)
    size = data.batch_size
    return Task(
        config=config,
        model=nn.Identity(),
        calibration=splits.calibration.batches(size, device),
        search=splits.search.batches(size, device),
        test=splits.test.batches(size, device),
        train=lambda batch: splits.train.loader(batch, augment=data.augment, flip=data.flip, seed=config.seed),
        source=splits.source,
    )


def _caller_batches(images: Images, device: torch.device) -> tuple[Batches, Batches, Batches | None, LoaderOf | None]:
    def ready(loader: Iterable[Any]) -> Batches:
        return [(x.to(device), y.to(device)) for x, y in as_batches(loader)]

    train = images.train
    return (
        ready(images.calibration),
        ready(images.search),
        None if images.test is None else ready(images.test),
        None if train is None else lambda _batch: train,
    )


def _network(
    task: Task, network: NetworkConfig, folder: Path | None, reporter: Reporter, trust_code: bool
) -> tuple[nn.Module, bool]:
    """The config's network, and whether its weights come from training it here."""
    data = task.config.data
    model = build_network(network, _weight_folders(task.config), seed=task.config.seed, trust_code=trust_code)
    if network.weights is not None:
        return model, False
    saved = folder / DENSE_NAME if folder is not None else None
    if saved is not None and saved.is_file():
        try:
            check_sha256(saved, recorded_sha256(saved))
            load_weights(model, saved)
        except ValueError as error:
            raise ValueError(f"{error}; restore it, or delete it and the network is trained again") from error
        return model, True
    assert network.pretrain is not None, "the schema asks for weights or training"
    if task.train is None or data is None:
        raise ConfigError("network.pretrain needs training images: give a data section, or network.weights")
    model.to(task.search[0][0].device)
    run_fit(model, task.train(network.pretrain.batch_size), network.pretrain, task.config.seed, reporter, "pretrain")
    return model, True


def _weight_folders(config: Config) -> list[Path]:
    return [config.data.root] if config.data is not None and config.data.root is not None else []


def _absolute(config: Config) -> Config:
    """Paths that hold from any working directory, so that a run folder can be used from anywhere."""
    network, data = config.network, config.data
    if network is not None and network.weights is not None:
        weights = find_weights(network.weights, _weight_folders(config)).resolve()
        network = network.model_copy(update={"weights": weights})
    if data is not None and data.root is not None:
        data = data.model_copy(update={"root": data.root.resolve()})
    return config.model_copy(update={"network": network, "data": data})


def _clean(model: nn.Module, device: torch.device) -> nn.Module:
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"the network's {name} holds a NaN or an infinity: it cannot be pruned; retrain or reload it"
            )
    return model.to(device).eval()


def _check_images(task: Task) -> None:
    """Images must be what the network takes, all alike, and labels classes that it knows."""
    images, _ = task.search[0]
    for split, batches in {"calibration": task.calibration, "test": task.test or ()}.items():
        for others, _ in batches:
            if others.shape[1:] != images.shape[1:]:
                theirs, ours = ("×".join(map(str, x.shape[1:])) for x in (others, images))
                raise ValueError(f"{split} images are {theirs}, search images {ours}: they must be alike")
    try:
        with torch.inference_mode():
            outputs = task.model(images[:1])
    except RuntimeError as error:
        shape = "×".join(map(str, images.shape[1:]))
        raise ValueError(f"the network does not run on images of {shape}: {str(error).splitlines()[0]}") from error
    highest = max(int(labels.max()) for _, labels in (*task.calibration, *task.search, *(task.test or ())))
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and highest >= outputs.shape[1]:
        raise ValueError(
            f"a label is {highest}, but the network tells {outputs.shape[1]} classes (0 … {outputs.shape[1] - 1}): "
            "check num_classes and the data set"
        )


def check_workers(config: Config, ray_address: str | None = None, trust_code: bool = False) -> None:
    """Whether there can be workers, before anything that takes long.

    A cluster's machines answer with pickles, which run code here: none is connected to that only a file names.

    Raises:
        ValueError: the config's address is of a cluster elsewhere, and nobody said that it is trusted.
        ImportError: Ray is asked for and not installed.
    """
    elsewhere = config.ray_address not in (None, "auto", "local")
    if elsewhere and ray_address is None and not trust_code:
        raise ValueError(
            f"ray_address={config.ray_address!r} in the config: a cluster can run code here; if you trust it, give "
            f"--ray-address {config.ray_address} yourself, or --trust-code (in Python: ray_address=, trust_code=True)"
        )
    if ray_address or config.ray_address:
        require_ray()


def describe(task: Task) -> str:
    """The task in a line, for a person."""
    structure, budget = task.structure, task.budget
    flops = structure.cost("flops", structure.widths)
    test = f", {count_images(task.test)} test" if task.test is not None else ""
    told = " (dense: {predicted_ms:.2f} ms by the table, {measured_ms:.2f} ms measured)" if task.dense_latency else ""
    latency = told.format(**task.dense_latency)
    return (
        f"{task.config.name}: {len(structure.layers)} layers, {flops / 1e6:.1f} M FLOPs, budget "
        f"{100 * budget.fraction:g} % of the {budget.kind}{latency}; images: {count_images(task.calibration)} "
        f"calibration, {count_images(task.search)} search{test}"
    )
