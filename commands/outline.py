"""A network's layers, their costs and the budget, from its shape alone: nothing is trained, downloaded or evaluated."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..configs import Config, ConfigError
from ..configs.registry import admit
from ..configs.schema import DataConfig
from ..data import load_splits
from ..networks import build_network
from ..networks.checks import unwrapped
from ..networks.copying import copied
from ..networks.opened import opened
from ..pruners import METHODS, Budget, Structure
from ..pruners.costs.latency_files import in_torch, runtime_of
from ..pruners.costs.latency_profile import take_table
from ..pruners.costs.profiler import Bar, no_bar
from ..pruners.saved import load_further
from ..training.inputs import InputShape, shape_of
from .loading import device_of
from .resolve import applied_folder

SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32}  # pixels, of data sets whose images are all alike


def untrained(config: Config, model: nn.Module | None, *, trust_code: bool) -> nn.Module:
    """The caller's network, or the config's with random weights: layers and costs are the same.

    Raises:
        ValueError: there is no such network; see `build_network`.
    """
    if model is None and config.network is None:
        raise ConfigError("the config has no network section: add one, or pass model=")
    if model is None:
        assert config.network is not None
        named, applied = config.network.model_copy(update={"weights": None}), applied_folder(config)
        if applied is not None:
            model, _ = load_further(applied, named, trust_code=trust_code)
        else:
            model = build_network(named, seed=config.seed, trust_code=trust_code)
    return opened(copied(unwrapped(model)).to(device_of(config.device))).eval()


def image_shape(data: DataConfig | None) -> InputShape:
    """(C, H, W) of a config's images; they are looked at only where it cannot be told without.

    Raises:
        ConfigError: nothing says it.
        ValueError, FileNotFoundError: see `load_splits`.
    """
    if data is None:
        raise ConfigError("nothing says what goes into the network: give the shape of one image, --input 3x224x224")
    size = data.image_size or SIDES.get(data.name)
    if size is not None:
        return (len(data.mean), size, size)
    images = load_splits(data, num_classes=None).calibration
    return shape_of(images.batches(1, torch.device("cpu"))[0][0])


def check_names(config: Config, *, trust_code: bool) -> None:
    """Whether there are the method, the criterion and the runtime that a config names; code is imported where trusted.

    Raises:
        ValueError: there is none of that name, a package is missing, or code is not trusted.
    """
    code = {"method": config.method, "criterion": config.criterion, "latency.runtime": config.latency.runtime}
    admit(code, trust_code=trust_code)
    METHODS[config.method].check_criterion(config.criterion or METHODS[config.method].criterion)
    if not in_torch(config.latency):
        runtime_of(config.latency)


def find_structure(
    config: Config, model: nn.Module, input_shape: InputShape, *, timed: bool, bar: Bar = no_bar
) -> Structure:
    """What the config's method finds in a network, dense and in eval mode; with a latency table, where it is timed.

    Raises:
        ValueError: see `Method.find` and `take_table`.
    """
    found = METHODS[config.method].find(model, input_shape, config.layers)
    if timed:
        found = found.with_cost("latency", take_table(model, found, config.latency, bar=bar))
    return replace(found, method=config.method)  # as it is found by, here and later


def find_budget(config: Config, structure: Structure) -> Budget:
    """What a plan may cost by the config.

    Raises:
        PlanError: it cannot be met; see `Budget`.
    """
    return Budget.asked(structure, config.budget.asked, most_sparsity(config), config.layers.bounds)


def most_sparsity(config: Config) -> float:
    """Of any one layer: the config's, or the method's own."""
    return config.layers.max_sparsity or METHODS[config.method].max_sparsity


def check_budget(config: Config, bar: Bar, untrained: nn.Module, input_shape: InputShape) -> None:
    """Whether the budget can be met, before the network is trained.

    Raises:
        PlanError: it cannot.
    """
    network = opened(copied(untrained))
    find_budget(config, find_structure(config, network, input_shape, timed="latency" in config.budget.asked, bar=bar))
