"""From a config's `network` section to a network, with its weights, in eval mode."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..configs import did_you_mean
from ..configs.registry import imported
from ..configs.schema import NetworkConfig
from ..storage.reading import shown
from .registry import registered_networks
from .weights import load_weights

# Their own initialisation is slow and they warn where it is left open; their auxiliary heads work only in training,
# where no forward pass in eval mode, and so no pruner, sees them.
_TORCHVISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False, "aux_logits": False},
    "inception_v3": {"init_weights": False, "aux_logits": False},
}

# Nothing is downloaded behind the user's back, and no checkpoint read that is not a state_dict.
_WEIGHTS_ARGUMENTS = {
    "weights",
    "weights_backbone",
    "pretrained",
    "pretrained_backbone",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}


def build_network(
    config: NetworkConfig,
    search_folders: Sequence[Path] = (),
    *,
    seed: int | None = None,
    trust_code: bool = False,
) -> nn.Module:
    """The network of a config, in eval mode, on the CPU.

    Args:
        config: its name, classes, constructor arguments and weights. Where `weights` is none the network is
            untrained, and `pretrain` is the caller's to run.
        search_folders: where a relative `weights` is looked for, after the working directory.
        seed: draws the initial weights without touching torch's own random state; none draws from that state.
        trust_code: whether a `package.module:callable` may be imported and called. Never read from a file: whoever
            wrote the name would grant it.

    Raises:
        ValueError: an unknown name (the near miss is named), code that is not trusted, constructor arguments it does
            not take, or weights that do not fit.
        FileNotFoundError: no such weights.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = _construct(config, trust_code)
    if config.weights is not None:
        load_weights(model, config.weights, search_folders)
    return model.eval()


def _construct(config: NetworkConfig, trust_code: bool) -> nn.Module:
    name = config.name
    registered = registered_networks()
    if name in registered:
        with _arguments_named(config):
            return _call(name, registered[name], config)
    prefix, separator, rest = name.partition(":")
    if prefix == "torchvision" and separator:
        return _torchvision(rest, config)
    if prefix == "timm" and separator:
        return _timm(rest, config)
    if separator:
        known = ("torchvision", "timm")
        return _call(name, imported("network.name", name, trust_code=trust_code, known=known), config)
    hint = did_you_mean(name, registered)
    if name in _torchvision_names():
        hint = f" – did you mean torchvision:{name}?"
    raise ValueError(
        f"no network {name!r}: known are {', '.join(registered)}, torchvision:NAME, timm:NAME and "
        f"package.module:callable{hint}"
    )


def _torchvision(name: str, config: NetworkConfig) -> nn.Module:
    known = _torchvision_names()
    if name not in known:
        raise ValueError(
            f"torchvision has no network {name!r} of classification or detection{did_you_mean(name, known)}"
        )
    builder = functools.partial(_torchvision_models().get_model, name, weights=None)
    detects = name in _torchvision_names("detection")
    return _made(builder, config, {"weights_backbone": None} if detects else _TORCHVISION_DEFAULTS.get(name, {}))


def _torchvision_models() -> ModuleType:
    return importlib.import_module("torchvision.models")  # a second and a half, and most need it not


def _torchvision_names(*parts: str) -> list[str]:
    """Of classification and detection, or of some of their modules."""
    models = _torchvision_models()
    modules = [getattr(models, part) for part in parts] or [models, models.detection]
    return [name for module in modules for name in models.list_models(module=module)]


def _timm(name: str, config: NetworkConfig) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise  # it is there, and misses one of its own
        raise ValueError(f"network.name={config.name}: timm is not installed: pip install 'secateur[timm]'") from error
    known = timm.list_models()
    if name not in known:  # a tag (NAME.TAG) names pretrained weights, and a hub's address downloads them
        raise ValueError(f"timm has no network {name!r}{did_you_mean(name, known)}")
    return _made(functools.partial(timm.create_model, name, pretrained=False), config, {})


def _made(builder: Callable[..., nn.Module], config: NetworkConfig, defaults: Mapping[str, Any]) -> nn.Module:
    """Call a library's builder; weights come from a file only."""
    for key in _WEIGHTS_ARGUMENTS & config.kwargs.keys():
        raise ValueError(f"network.kwargs.{key}: give the weights as a file in network.weights")
    with _arguments_named(config):
        return builder(**{"num_classes": config.num_classes, **defaults, **config.kwargs})


@contextlib.contextmanager
def _arguments_named(config: NetworkConfig) -> Iterator[None]:
    """A library's constructor fails in any way there is on arguments that it does not expect."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("network."):
            raise  # said already
        given = f"network.num_classes={config.num_classes}, network.kwargs={shown(config.kwargs)}"
        raise ValueError(f"{given} for {config.name}: {' '.join(str(error).split())}") from error


def _call(name: str, builder: Callable[..., object], config: NetworkConfig) -> nn.Module:
    """Call a builder, with the classes where it takes them."""
    try:
        signature = inspect.signature(builder)
    except ValueError as error:  # some that are written in C have none
        raise ValueError(f"network.name={name}: {builder} cannot be called by keyword") from error
    takes = {"num_classes"} & set(signature.parameters) or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values()
    )
    arguments = {**({"num_classes": config.num_classes} if takes else {}), **config.kwargs}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = ", ".join(signature.parameters)
        raise ValueError(f"network.kwargs={config.kwargs} for {name}: {error} (it takes: {known})") from error
    model = builder(**arguments)
    if not isinstance(model, nn.Module):
        raise ValueError(f"network.name={name}: returned a {type(model).__name__}, expected a torch.nn.Module")
    return model
