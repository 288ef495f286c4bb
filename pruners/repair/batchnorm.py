"""Batch norms' running statistics, estimated anew after pruning (EagleEye, Li et al., ECCV 2020)."""

from __future__ import annotations

import torch
from torch import nn

from ...networks.inference import Batches, count_images, regrouped
from ...training.inputs import call, count

GROUP = 100  # images whose statistics are taken together, however the caller batched them


def adapt_batchnorm(model: nn.Module, batches: Batches) -> None:
    """Adaptive BN: replace the running statistics by those of the given training images, weights frozen.

    They are the mean over groups of `GROUP` images, each weighing as much as it has images. Neither the caller's
    batches nor the momentum that a network was trained with play a part; of a single image there are no statistics,
    and nothing is changed. Recalibrate only what was cut: unaugmented images have other statistics than those a network
    was trained on, and even the dense one loses by it.

    Args:
        model: changed in place, left in eval mode.
        batches: calibration images, (N, C, H, W) and labels.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    if not norms or count_images(batches) < 2:
        return
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        seen = 0
        with torch.no_grad():
            for images in regrouped(batches, GROUP):
                group = count(images)
                seen += group
                for norm in norms:
                    norm.momentum = group / seen  # what makes a running mean that of all images so far
                call(model, images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
