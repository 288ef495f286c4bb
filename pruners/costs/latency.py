"""Measured latency: networks timed in turn, so that a noisy machine disturbs them alike."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ...configs import LatencyConfig
from ...networks.copying import copied
from ...networks.inference import channels_last
from ...networks.world import undisturbed
from ...training.inputs import Inputs, InputShape, call, leaves, mapped, random_inputs
from .latency_files import file_times, in_torch

Clock = Callable[[], float]


@undisturbed()
def measure_latency(
    models: Mapping[str, nn.Module], input_shape: InputShape, config: LatencyConfig | None = None, *, runs: int = 25
) -> dict[str, float]:
    """Median milliseconds of one forward pass; see `stopwatch` for what is counted.

    Args:
        models: by name, in eval mode, all on one device; copies in the same memory format take turns, so that a repair
            that left the weights in another one gains nothing by it.
        input_shape: (C, H, W) of one image.
        config: images a pass, threads, memory format, the runtime; its `repeats` are those of the table.
        runs: counted passes of each, after three that warm up.

    Raises:
        ValueError: the runtime is not there, or does not take a network.
    """
    config = config or LatencyConfig()
    if not in_torch(config):
        here = {name: copied(model).cpu() for name, model in models.items()}
        images = random_inputs(input_shape, config.batch, torch.Generator().manual_seed(0))
        return file_times(here, dict.fromkeys(here, images), config, runs)
    ready = {name: formatted(copied(model), config) for name, model in models.items()}
    images = random_images(next(iter(ready.values())), input_shape, config)
    times: dict[str, list[float]] = {name: [] for name in models}
    with stopwatch(next(iter(leaves(images).values())).device, config) as clock, torch.inference_mode():
        for run in range(runs + 3):
            for name, model in ready.items():
                start = clock()
                call(model, images)
                if run >= 3:
                    times[name].append(1000.0 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


@contextlib.contextmanager
def stopwatch(device: torch.device, config: LatencyConfig) -> Iterator[Clock]:
    """A clock in seconds, and torch's threads as the config asks for them.

    A single thread on the CPU is timed by the processor time it gets: on an idle machine that is the time on the wall,
    on a busy one what it would be without the waiting. Several threads, and a GPU, are timed by the wall.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        if device.type == "cuda":
            yield partial(_when_done, device)
        else:
            yield time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    finally:
        torch.set_num_threads(before)


def _when_done(device: torch.device) -> float:
    torch.cuda.synchronize(device)
    return time.perf_counter()


def formatted(model: nn.Module, config: LatencyConfig) -> nn.Module:
    """The same module, its parameters in the memory format asked for."""
    for parameter in model.parameters():
        parameter.data = _formatted(parameter.data, config)
    return model


def random_images(model: nn.Module, input_shape: InputShape, config: LatencyConfig) -> Inputs:
    """(batch, C, H, W) in the memory format asked for, on the network's device; or what else the network takes."""
    images = random_inputs(input_shape, config.batch, torch.Generator().manual_seed(0))
    device = next(model.parameters()).device
    return mapped(lambda tensor: _formatted(tensor.to(device), config), images)


def _formatted(tensor: Tensor, config: LatencyConfig) -> Tensor:
    # a clone has the strides of its format, which a 1×1 kernel that calls itself contiguous in both may not
    plain = tensor.clone(memory_format=torch.contiguous_format)
    return channels_last(plain) if config.channels_last else plain
