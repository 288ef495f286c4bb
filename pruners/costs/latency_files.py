"""Networks timed as files in the runtime that they will run in."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ...configs import LatencyConfig
from ...networks.norms import LAYERS
from ...runtimes import RUNTIMES, Runtime
from ...training.inputs import Inputs, leaves


def in_torch(config: LatencyConfig) -> bool:
    """Whether networks are timed as they are, operation by operation."""
    return config.runtime == "eager" and config.precision == "fp32"


def runtime_name(config: LatencyConfig) -> str:
    """Where latency is measured, for a person."""
    return "PyTorch" if in_torch(config) else f"{config.runtime} {config.precision}"


def runtime_of(config: LatencyConfig) -> Runtime:
    """The config's runtime, its packages there.

    Raises:
        ValueError: there is none of that name, a package is missing, or it has no 8-bit integers.
    """
    runtime = RUNTIMES[config.runtime]
    if config.precision == "int8" and not runtime.int8:
        able = " or ".join(name for name in RUNTIMES if RUNTIMES[name].int8)
        raise ValueError(
            f"latency.precision = int8: {config.runtime} does not quantise here: set latency.runtime={able}"
        )
    runtime.check_installed()
    return runtime


def file_times(
    networks: Mapping[str, nn.Module], images: Mapping[str, Inputs], config: LatencyConfig, passes: int
) -> dict[str, float]:
    """Median milliseconds of a pass of each, exported, quantised where the config says so, and run in turns.

    Args:
        networks: by name, in eval mode, on the CPU.
        images: a batch for each.
        config: runtime, precision, threads.
        passes: counted ones.

    Raises:
        ValueError: see `runtime_of`; or a network cannot be exported.
    """
    runtime = runtime_of(config)
    layers = [name for name, network in networks.items() if isinstance(network, LAYERS)]
    alone = [[name] for name in networks if name not in layers]
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{number}{runtime.suffix}" for number, name in enumerate(networks)}
        for names in (*alone, layers):
            modules, given = [networks[name] for name in names], [images[name] for name in names]
            runtime.write(modules, given, [paths[name] for name in names], int8=config.precision == "int8")
        tensors = {name: list(leaves(images[name]).values()) for name in networks}
        threads = config.threads or torch.get_num_threads()
        return runtime.milliseconds(paths, tensors, threads=threads, passes=passes)
