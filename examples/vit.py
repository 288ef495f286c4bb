"""torchvision's vision transformer learns digits; heads and hidden units of its MLPs are pruned to 60 % of its FLOPs.

`python examples/vit.py` takes a minute, and prints top-1 on test images before, one-shot and fine-tuned.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.models import VisionTransformer

import secateur
from secateur.configs.schema import FitConfig
from secateur.training.fit import fit


def digits(first: int, last: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of images (50, 3, 8, 8) and labels (50,), of scikit-learn's in an order drawn once."""
    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))[first:last]
    images = torch.tensor(found.images, dtype=torch.float32)[order] / 8.0 - 1.0
    labels = torch.tensor(found.target)[order]
    three = images.unsqueeze(1).expand(-1, 3, -1, -1)
    return list(zip(three.split(50), labels.split(50), strict=True))


def main(epochs: int = 40, episodes: int = 10) -> dict[str, float]:
    """Top-1 in per cent on the test images: dense, one-shot (pruned and repaired), tuned."""
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=8, patch_size=2, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=96, num_classes=10
    )
    torch.nn.init.normal_(network.heads[-1].weight, std=0.1)  # torchvision's begins with zeros
    train = digits(0, 1000)
    fit(network, train, FitConfig(epochs=epochs, optimizer="adamw", learning_rate=3e-3), seed=0)
    images = secateur.Images(
        calibration=digits(0, 300), search=digits(1000, 1300), test=digits(1300, 1797), train=train
    )
    config = secateur.Config.model_validate(
        {
            "name": "vit",
            "budget": {"flops": 0.6},
            "agent": {"episodes": episodes},
            "finetune": {"epochs": max(1, epochs // 4), "optimizer": "adamw", "learning_rate": 1e-3},
        }
    )
    session = secateur.Session(config, model=network, images=images)
    with tempfile.TemporaryDirectory() as folder:
        found = secateur.train(session, out=Path(folder) / "run")
        done = secateur.apply(found.plan, session, out=Path(folder) / "small")
    rows = {"dense": "dense", "one-shot": "repaired", "tuned": "pruned"}
    return {name: done.summary[row]["test_accuracy"] for name, row in rows.items()}


if __name__ == "__main__":
    for name, score in main().items():
        print(f"{name:9} top-1 {score:.1f} %")
