"""A detector as torchvision makes it, pruned to 60 % of its FLOPs: an SSD on a tiny backbone.

Images come in lists, targets are dicts of boxes and labels, the loss is the one that the detector computes itself: the
objective `detection`. What is compared with the dense network is what its heads say before any box is chosen.

`python examples/detection.py` takes a minute, and prints mAP at IoU 0.75 on test images before, one-shot, fine-tuned.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

import secateur
from secateur.configs.schema import FitConfig
from secateur.training.detection import Detection
from secateur.training.fit import fit

SIZE, CLASSES = 32, 3  # the first class is the background


def scenes(count: int, seed: int) -> list[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Batches of 20 images (1, 32, 32), and for each its boxes (n, 4) and labels (n,): dark or bright squares."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count // 20):
        images, targets = 0.8 * torch.randn(20, 1, SIZE, SIZE, generator=generator), []
        for image in images:
            boxes, labels = [], []
            for left in (0, SIZE // 2)[: int(torch.randint(1, 3, (1,), generator=generator))]:
                side, x, y = (int(torch.randint(*r, (1,), generator=generator)) for r in ((7, 12), (1, 4), (1, 20)))
                label = int(torch.randint(1, CLASSES, (1,), generator=generator))
                image[0, y : y + side, left + x : left + x + side] += 2.0 * label - 3.0
                boxes.append([left + x, y, left + x + side, y + side])
                labels.append(label)
            targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)})
        batches.append((list(images), targets))
    return batches


class Backbone(nn.Module):
    """Two maps of features."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

        self.fine = nn.Sequential(block(1, 16), block(16, 24, 2), block(24, 32, 2))
        self.coarse = nn.Sequential(block(32, 32), block(32, 32, 2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 1, 32, 32) to maps of 8 × 8 and 4 × 4."""
        fine = self.fine(images)
        return OrderedDict(fine=fine, coarse=self.coarse(fine))


def detector() -> SSD:
    """Untrained."""
    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.25, 0.35, 0.5])
    head = SSDHead([32, 32], anchors.num_anchors_per_location(), CLASSES)
    return SSD(Backbone(), anchors, (SIZE, SIZE), CLASSES, head=head, image_mean=[0.0], image_std=[1.0])


def main(epochs: int = 15, episodes: int = 10) -> dict[str, float]:
    """mAP in per cent on the test images: dense, one-shot (pruned and repaired), tuned."""
    torch.manual_seed(0)
    network, train = detector(), scenes(400, seed=0)
    from_scratch = Detection(frozen_norms=False)
    fit(network, train, FitConfig(epochs=epochs, learning_rate=0.02), seed=0, objective=from_scratch)
    images = secateur.Images(
        calibration=scenes(100, seed=1), search=scenes(100, seed=2), test=scenes(100, seed=3), train=train
    )
    config = secateur.Config.model_validate(
        {
            "name": "detection",
            "objective": {"name": "detection", "kwargs": {"iou": 0.75}},
            "budget": {"flops": 0.6},
            "agent": {"episodes": episodes},
            "finetune": {"epochs": max(1, epochs // 3), "learning_rate": 0.01},
        }
    )
    session = secateur.Session(config, model=network, images=images)
    with tempfile.TemporaryDirectory() as folder:
        found = secateur.train(session, out=Path(folder) / "run")
        done = secateur.apply(found.plan, session, out=Path(folder) / "small")
        small = secateur.load(done.folder, model=detector)
    boxes = small(images.test[0][0])  # a detector, called as before
    assert set(boxes[0]) == {"boxes", "scores", "labels"}
    rows = {"dense": "dense", "one-shot": "repaired", "tuned": "pruned"}
    return {name: done.summary[row]["test_accuracy"] for name, row in rows.items()}


if __name__ == "__main__":
    for name, score in main().items():
        print(f"{name:9} mAP {score:.1f} %")
