"""Measured latency: networks timed in turn, so that a noisy machine disturbs them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

BATCH = 32


def measure_latency(
    models: Mapping[str, nn.Module], input_shape: Sequence[int], *, batch: int = BATCH, runs: int = 25
) -> dict[str, float]:
    """Median milliseconds of one forward pass.

    Args:
        models: by name, in eval mode, all on one device; they take turns.
        input_shape: (C, H, W) of one image.
        batch: images a pass.
        runs: counted passes of each, after three that warm up.
    """
    device = next(next(iter(models.values())).parameters()).device
    images = torch.randn(batch, *input_shape, device=device)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for run in range(runs + 3):
            for name, model in models.items():
                start = time.perf_counter()
                model(images)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if run >= 3:
                    times[name].append(1000.0 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
