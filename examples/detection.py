"""A detector with an objective of one's own: torchvision's SSD on a tiny backbone, pruned to 60 % of its FLOPs.

Its own forward ends in boxes that survive a threshold and each other: another number for every image, and no gradient.
What is pruned is a module round it that returns what the heads say, (N, anchors, …); loss and boxes are the task's,
from the detector's own methods. The detector inside is cut with it, and works as before.

`python examples/detection.py` takes a minute, and prints F1 at IoU 0.5 on test images before, one-shot and fine-tuned.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import box_iou

import secateur
from secateur.configs.schema import FitConfig
from secateur.training.fit import fit
from secateur.training.objective import Objective

SIZE, CLASSES = 32, 3  # the first class is the background


def scenes(count: int, seed: int) -> list[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Batches of images (20, 1, 32, 32), and for each its boxes (n, 4) and labels (n,): dark or bright squares."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count // 20):
        images, targets = 0.2 * torch.randn(20, 1, SIZE, SIZE, generator=generator), []
        for image in images:
            boxes, labels = [], []
            for left in (0, SIZE // 2)[: int(torch.randint(1, 3, (1,), generator=generator))]:
                side, x, y = (int(torch.randint(*r, (1,), generator=generator)) for r in ((7, 12), (1, 4), (1, 20)))
                label = int(torch.randint(1, CLASSES, (1,), generator=generator))
                image[0, y : y + side, left + x : left + x + side] += 2.0 * label - 3.0
                boxes.append([left + x, y, left + x + side, y + side])
                labels.append(label)
            targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)})
        batches.append((images, targets))
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
    return SSD(
        Backbone(), anchors, (SIZE, SIZE), CLASSES, head=head, image_mean=[0.0], image_std=[1.0], score_thresh=0.4
    )


class Raw(nn.Module):
    """What a detector's heads say: `cls_logits` (N, anchors, classes), `bbox_regression` (N, anchors, 4)."""

    def __init__(self, inner: SSD) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 1, H, W)."""
        said: dict[str, Tensor] = self.inner.head(list(self.inner.backbone(images).values()))
        return said


class Detection(Objective):
    """SSD's loss, and F1: boxes found of the right class that overlap by half or more, against missed and invented."""

    name = "detection"
    measure = "F1 %"

    def __init__(self, inner: SSD) -> None:
        self.inner = inner
        maps = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]
        blank = ImageList(torch.zeros(1, 1, SIZE, SIZE), [(SIZE, SIZE)])
        self.anchors: Tensor = inner.anchor_generator(blank, maps)[0]

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Of boxes and of classes."""
        matched = [self.inner.proposal_matcher(box_iou(target["boxes"], self.anchors)) for target in targets]
        parts = self.inner.compute_loss(targets, outputs, [self.anchors] * len(targets), matched)
        return parts["bbox_regression"] + parts["classification"]

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) F1 of every image."""
        said = {name: tensor.detach() for name, tensor in outputs.items()}
        sizes = [(SIZE, SIZE)] * len(targets)
        found = self.inner.postprocess_detections(said, [self.anchors] * len(targets), sizes)
        return torch.tensor([_f1(boxes, target) for boxes, target in zip(found, targets, strict=True)])


def _f1(found: dict[str, Tensor], target: dict[str, Tensor]) -> float:
    """Every true box is found by one box at most, the surest first."""
    overlap = box_iou(found["boxes"], target["boxes"]) * (found["labels"][:, None] == target["labels"])
    hits, free = 0, torch.ones(len(target["labels"]))
    for row in overlap:
        best = int((row * free).argmax())
        if float(row[best] * free[best]) >= 0.5:
            hits, free[best] = hits + 1, 0.0
    return 2 * hits / (len(overlap) + len(free))


def main(epochs: int = 15, episodes: int = 10) -> dict[str, float]:
    """F1 in per cent on the test images: dense, one-shot (pruned and repaired), tuned."""
    torch.manual_seed(0)
    network, train = Raw(detector()), scenes(400, seed=0)
    objective = Detection(detector())
    fit(network, train, FitConfig(epochs=epochs, learning_rate=0.02), seed=0, objective=objective)
    images = secateur.Images(
        calibration=scenes(100, seed=1), search=scenes(100, seed=2), test=scenes(100, seed=3), train=train
    )
    config = secateur.Config.model_validate(
        {
            "name": "detection",
            "budget": {"flops": 0.6},
            "agent": {"episodes": episodes},
            "finetune": {"epochs": max(1, epochs // 3), "learning_rate": 0.01},
        }
    )
    session = secateur.Session(config, model=network, images=images, objective=objective)
    with tempfile.TemporaryDirectory() as folder:
        found = secateur.train(session, out=Path(folder) / "run")
        done = secateur.apply(found.plan, session, out=Path(folder) / "small")
    boxes = done.model.inner(list(images.test[0][0]))  # the detector itself, smaller
    assert set(boxes[0]) == {"boxes", "scores", "labels"}
    rows = {"dense": "dense", "one-shot": "repaired", "tuned": "pruned"}
    return {name: done.summary[row]["test_accuracy"] for name, row in rows.items()}


if __name__ == "__main__":
    for name, score in main().items():
        print(f"{name:9} F1 {score:.1f} %")
