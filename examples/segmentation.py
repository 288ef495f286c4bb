"""A class for every pixel: a small network learns squares and discs, and is pruned to 60 % of its FLOPs.

`python examples/segmentation.py` takes half a minute, and prints mIoU on test images before, one-shot and fine-tuned.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import secateur
from secateur.configs.schema import FitConfig
from secateur.training.fit import fit
from secateur.training.tasks import Segmentation

SIZE, UNKNOWN = 16, 255


def scenes(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of images (20, 1, 16, 16) and labels (20, 16, 16): nothing, square, disc; a rim nobody labelled."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    batches = []
    for _ in range(count // 20):
        labels = torch.zeros(20, SIZE, SIZE, dtype=torch.int64)
        for label in labels:
            (y, x), (v, u) = torch.randint(3, SIZE - 3, (2, 2), generator=generator).tolist()
            label[((rows - y).abs() <= 3) & ((columns - x).abs() <= 3)] = 1
            label[(rows - v).square() + (columns - u).square() <= 9] = 2
        images = 0.4 * torch.randn(20, 1, SIZE, SIZE, generator=generator) + labels.unsqueeze(1)
        labels[:, 0] = UNKNOWN
        batches.append((images, labels))
    return batches


class Segmenter(nn.Module):
    """Down, up, and back to the size of the image; it returns a dict, as torchvision's segmentation networks do."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

        self.body = nn.Sequential(block(1, 16), block(16, 24, 2), block(24, 24), nn.Upsample(scale_factor=2))
        self.head = nn.Sequential(block(24, 16), nn.Conv2d(16, 3, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 1, H, W) to (N, 3, H, W)."""
        return {"out": self.head(self.body(images))}


def main(epochs: int = 6, episodes: int = 10) -> dict[str, float]:
    """mIoU in per cent on the test images: dense, one-shot (pruned and repaired), tuned."""
    torch.manual_seed(0)
    network, train = Segmenter(), scenes(400, seed=0)
    fit(network, train, FitConfig(epochs=epochs, learning_rate=0.05), seed=0, objective=Segmentation(ignore=UNKNOWN))
    images = secateur.Images(
        calibration=scenes(100, seed=1), search=scenes(100, seed=2), test=scenes(100, seed=3), train=train
    )
    config = secateur.Config.model_validate(
        {
            "name": "segmentation",
            "objective": {"name": "segmentation", "kwargs": {"ignore": UNKNOWN}},
            "budget": {"flops": 0.6},
            "agent": {"episodes": episodes},
            "finetune": {"epochs": max(1, epochs // 2), "learning_rate": 0.02},
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
        print(f"{name:9} mIoU {score:.1f} %")
