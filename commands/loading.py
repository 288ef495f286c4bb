"""From a config, or from what the caller brings: the dense network and its images, ready and checked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..configs import Config, ConfigError
from ..configs.schema import DataConfig, NetworkConfig
from ..data import Splits, as_batches, check_pixels, load_splits
from ..data.images import Images as Split
from ..networks import build_network, load_tensors, load_weights
from ..networks.batches import Batches, LazyBatches, targets_of
from ..networks.checks import check_forward, check_weights, unwrapped
from ..networks.copying import copied
from ..networks.opened import opened
from ..pruners.method import Step
from ..pruners.saved import load_further
from ..reports.progress import Reporter
from ..storage.files import check_sha256, read_tensors, recorded_sha256, write_tensors
from ..training.fit import Batches as Loader
from ..training.fit import modules_at_rest
from ..training.inputs import InputShape, mapped, shape_of, told
from ..training.objective import Objective
from ..training.tasks import DEFAULT
from .resolve import applied_folder, weight_folders
from .tuning import pretrain
from .workers import check_threads

DENSE_NAME = "dense.safetensors"
EARLY_NAME = "early.safetensors"  # what pretraining kept for the schedule rewind


class LoaderOf(Protocol):
    """Makes the loader for training, for a batch size and a seed of order and augmentation (none: the config's)."""

    def __call__(self, batch_size: int, seed: int | None = None) -> Loader:
        """The loader, for a seed of its own where one is given."""
        ...

    @property
    def identity(self) -> str:
        """What tells these images from others, as far as that can be told without looking at each of them."""
        ...


@dataclass(frozen=True)
class _Split:
    """Loaders of a config's training side."""

    images: Split
    data: DataConfig
    seed: int

    def __call__(self, batch_size: int, seed: int | None = None) -> Loader:
        data = self.data
        return self.images.loader(
            batch_size,
            augment=data.augment,
            flip=data.flip,
            seed=self.seed if seed is None else seed,
            crop=data.crop,
            randaugment=data.randaugment,
        )

    @property
    def identity(self) -> str:
        return self.images.identity


@dataclass(frozen=True)
class _Callers:
    """The caller's own loader, whatever is asked for."""

    loader: Any

    def __call__(self, batch_size: int, seed: int | None = None) -> Loader:
        return cast(Loader, self.loader)

    @property
    def identity(self) -> str:
        try:
            return f"{len(self.loader)} batches"
        except TypeError:  # one that streams has no length, whatever its class says
            return "the caller's"


@dataclass(frozen=True)
class Images:
    """A caller's own images; every one an iterable of (images (N, C, H, W) float, labels (N,)).

    Or of what else the objective takes apart (`Objective.split`): inputs of any rank, several of them, dicts.

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
class Loaded:
    """A dense network and its images.

    Attributes:
        model: in eval mode; never changed.
        calibration: images that repair.
        search: images that pay the reward.
        test: images that are looked at in the end; none where the caller gave none.
        train: makes the loader for fine-tuning, for a batch size; none where the caller gave none.
        source: where the images come from, in a line.
        trained_here: whether the network was trained for this config, so that its weights are kept with the run.
        at_rest: modules that its maker had in eval mode while the rest was not, or whose norms are frozen.
        early: its weights after the epoch that pretraining kept, by name; empty where it kept none.
        classes: their names, in the order of the labels; empty where nobody says.
        before: the steps by which the network was made of its architecture, where it is compressed already.
    """

    model: nn.Module
    calibration: Batches
    search: Batches
    test: Batches | None
    train: LoaderOf | None
    source: str
    trained_here: bool = False
    at_rest: frozenset[str] = frozenset()
    early: Mapping[str, Tensor] = field(default_factory=dict)
    classes: Sequence[str] = ()
    before: Sequence[Step] = ()


def load(
    config: Config,
    *,
    folder: Path | None = None,
    model: nn.Module | None = None,
    images: Images | None = None,
    objective: Objective = DEFAULT,
    reporter: Reporter | None = None,
    trust_code: bool = False,
    before_training: Callable[[nn.Module, InputShape], None] | None = None,
) -> Loaded:
    """Build the network and read the images that a config names, or take the caller's.

    Args:
        config: checked.
        folder: a run folder; a network that was trained there is loaded instead of trained again.
        model: the caller's network instead of the config's.
        images: the caller's images instead of the config's.
        objective: what the network is for; none is cross-entropy.
        reporter: shows progress.
        trust_code: whether code that the config names may run; see `build_network`.
        before_training: called with a network that is about to be trained and the shape of its images, to refuse early.

    Raises:
        ValueError, FileNotFoundError: a network, weights or images that cannot be used, or too many threads.
    """
    check_threads(config)
    _seed(config.seed)
    device = device_of(config.device)
    if images is not None:
        calibration, search, test, train = _caller_batches(images, device, objective)
        source, classes = "the caller's images", list[str]()
    else:
        calibration, search, test, train, source, classes = _config_batches(config, device)
    trained, early, before = False, dict[str, Tensor](), list[Step]()
    if model is not None:
        model = unwrapped(model)
        check_weights(model)
        model = copied(model)  # the caller's own stays as it is, whatever is done to this one
    else:
        if config.network is None:
            raise ConfigError("the config has no network section: add one, or pass model=")
        if (applied := applied_folder(config)) is not None:
            model, before = load_further(applied, config.network, trust_code=trust_code)
        else:
            model = build_network(config.network, weight_folders(config), seed=config.seed, trust_code=trust_code)
        check_weights(model)
        trained = config.network.weights is None
        if trained and (saved := _saved(model, folder)) is not None:
            early = saved
        elif trained:
            model = model.to(device)
            if before_training is not None:
                before_training(model, shape_of(search[0][0]))
            early = _opened(model, _pretrained(model, config, config.network, train, objective, reporter or Reporter()))
    at_rest = frozenset(modules_at_rest(model))
    given = (calibration, search, test, train, source, trained, at_rest, early, classes, before)
    loaded = Loaded(_clean(model, device), *given)
    _check_images(loaded, objective)
    return loaded


def _seed(seed: int) -> None:
    """For loaders that shuffle, and images that are changed at random; the session puts the caller's states back."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def device_of(name: str) -> torch.device:
    """The device of a config.

    Raises:
        ConfigError: it is not to be had here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device = {name!r} is not to be had here ({str(error).splitlines()[0]}): try cpu") from None
    return device


def _config_batches(config: Config, device: torch.device) -> tuple[Batches, Batches, Batches, LoaderOf, str, list[str]]:
    data, network = config.data, config.network
    if data is None:
        raise ConfigError("the config has no data section: add one, or pass images=")
    splits: Splits = load_splits(data, num_classes=None if network is None else network.num_classes)
    size = data.batch_size or splits.calibration.images_a_pass(device)  # looking at none of the test images
    calibration = splits.calibration.batches(size, device)
    check_pixels(calibration[0][0], "calibration batch 0")  # files hold bytes, but mean and std may be anything
    return (
        calibration,
        splits.search.batches(size, device),
        splits.test.batches(size, device),
        _Split(splits.train, data, config.seed),
        splits.source,
        splits.classes,
    )


def _caller_batches(
    images: Images, device: torch.device, objective: Objective
) -> tuple[Batches, Batches, Batches | None, LoaderOf | None]:
    def ready(side: str, loader: Iterable[Any]) -> Batches:
        return [mapped(lambda tensor: tensor.to(device), batch) for batch in as_batches(loader, objective, side=side)]

    return (
        ready("calibration", images.calibration),
        ready("search", images.search),
        None if images.test is None else ready("test", images.test),
        None if images.train is None else _Callers(images.train),
    )


def save_trained(loaded: Loaded, folder: Path) -> None:
    """The weights of a network that was trained here, and those that were kept on the way, where they are not there."""
    if loaded.trained_here and not (folder / DENSE_NAME).exists():
        if loaded.early:
            write_tensors(folder / EARLY_NAME, loaded.early, record=True)
        tensors = {name: t.clone() for name, t in loaded.model.state_dict().items()}
        write_tensors(folder / DENSE_NAME, tensors, record=True)


def _saved(model: nn.Module, folder: Path | None) -> dict[str, Tensor] | None:
    """Weights that an earlier command trained are loaded; what it kept on the way, or none where there are none."""
    file = folder / DENSE_NAME if folder is not None else None
    if file is None or not file.exists():
        return None
    try:
        check_sha256(file, recorded_sha256(file))
        if not model.state_dict().keys() <= read_tensors(file)[0].keys():
            opened(model)  # as it was when its weights were written, see `save_trained`
        load_weights(model, file)
        return _early(file.with_name(EARLY_NAME))
    except ValueError as error:
        raise ValueError(f"{error}; restore it, or delete it and the network is trained again") from error


def _pretrained(
    model: nn.Module,
    config: Config,
    network: NetworkConfig,
    train: LoaderOf | None,
    objective: Objective,
    reporter: Reporter,
) -> dict[str, Tensor]:
    """The network is trained; its weights that were kept on the way."""
    assert network.pretrain is not None, "the schema asks for weights or training"
    if train is None:
        raise ConfigError("network.pretrain needs training images: pass images.train, or give network.weights")
    loader = train(network.pretrain.batch_size)
    return dict(pretrain(model, loader, network.pretrain, config.seed, reporter, config.cache, objective).early)


def _opened(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network before it was opened as they are afterwards."""
    if not weights:
        return {}
    other = copied(model)
    load_tensors(other, weights)
    return {name: tensor.clone() for name, tensor in opened(other).state_dict().items()}


def _early(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    check_sha256(path, recorded_sha256(path))
    return read_tensors(path)[0]


def _clean(model: nn.Module, device: torch.device) -> nn.Module:
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"the network's {name} holds a NaN or an infinity: it cannot be pruned; retrain or reload it"
            )
    return opened(model.to(device)).eval()


def _check_images(loaded: Loaded, objective: Objective) -> None:
    """Images must be what the network takes, all alike, and outputs and targets what the objective takes."""
    first, targets = loaded.search[0]
    ours = told(shape_of(first))
    for split, batches in {"calibration": loaded.calibration, "test": loaded.test or ()}.items():
        for images, _ in () if isinstance(batches, LazyBatches) else batches:  # a source's images are alike
            if (theirs := told(shape_of(images))) != ours:
                raise ValueError(f"{split} images are {theirs}, search images {ours}: they must be alike")
    outputs = check_forward(loaded.model, first, objective.outputs)
    with torch.no_grad():
        try:
            objective.check(outputs, targets)
        except (IndexError, RuntimeError):  # torch's own, of a label that is no class
            objective.check_targets(outputs, targets)
            raise
        for batches in (loaded.search, loaded.calibration, loaded.test or ()):
            for others in targets_of(batches):
                objective.check_targets(outputs, others)
