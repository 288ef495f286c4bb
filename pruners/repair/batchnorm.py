"""Batch norms: re-estimated after pruning (EagleEye, Li et al., ECCV 2020), or folded into what is in front of them."""

from __future__ import annotations

import torch
from torch import nn

from ...networks.inference import Batches
from ...training.inputs import call


def adapt_batchnorm(model: nn.Module, batches: Batches) -> None:
    """Adaptive BN: replace the running statistics by those of the given training images, weights frozen.

    The mean over batches is cumulative (every batch weighs the same), so the momentum a network was trained with
    plays no part. Recalibrate only what was cut: unaugmented images have other statistics than those a network was
    trained on, and even the dense one loses by it.

    Args:
        model: changed in place, left in eval mode.
        batches: calibration images, (N, C, H, W) and labels.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for images, _ in batches:
                call(model, images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
