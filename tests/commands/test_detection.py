"""A detector as it is, from images of different sizes to the saved smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

import secateur


class Map(nn.Sequential):
    """One map of features."""

    out_channels = 8

    def __init__(self) -> None:
        first, second = (nn.Conv2d(inputs, 8, 3, 2, 1, bias=False) for inputs in (1, 8))
        super().__init__(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(8), nn.ReLU())


def detector() -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(
        Map(),
        rpn_anchor_generator=AnchorGenerator(((8, 16),), ((0.5, 1.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(8 * 9, 12),
        box_predictor=FastRCNNPredictor(12, 3),
        rpn_post_nms_top_n_test=6,
        min_size=32,
        max_size=48,
        image_mean=[0.5],
        image_std=[0.25],
    )


def scenes(seed: int) -> list[Any]:
    """Two batches, collated as torchvision's references do; of every three images one is empty."""
    generator = torch.Generator().manual_seed(seed)
    samples: list[tuple[Tensor, dict[str, Tensor]]] = []
    for number in range(6):
        image = torch.rand(1, 24 + 4 * number, 40, generator=generator)
        boxes = torch.tensor([[2.0, 3, 14, 15], [20, 8, 38, 22]])[: number % 3]
        samples.append((image, {"boxes": boxes, "labels": torch.tensor([1, 2])[: number % 3]}))
    return [tuple(zip(*samples[:3], strict=True)), tuple(zip(*samples[3:], strict=True))]


CONFIG = {
    "name": "boxes",
    "objective": "detection",
    "budget": {"flops": 0.6},
    "finetune": {"epochs": 1, "learning_rate": 0.001},
    "latency": {"batch": 1},
    "cache": False,
}
IMAGES = secateur.Images(*map(scenes, range(4)))


def session(images: secateur.Images = IMAGES, **config: Any) -> secateur.Session:
    return secateur.Session(secateur.Config.model_validate({**CONFIG, **config}), model=detector(), images=images)


def test_from_images_of_all_sizes_to_a_smaller_detector(tmp_path: Path) -> None:
    ours = session()
    kept = ours.structure.units // 2
    found = ours.evaluator.evaluate(kept)
    assert 0.0 <= found.accuracy <= 100.0
    assert found.reconstruction_loss > 0.0
    plan = ours.plan_of(kept, allocator="mine", seed=0, candidates=0)
    done = secateur.apply(plan, ours, out=tmp_path / "small")
    assert done.summary["measure"] == "mAP %"
    assert done.summary["masked_difference"] < 1e-4
    assert done.summary["finetune_epochs"] == 1
    small = secateur.load(done.folder, model=detector)
    assert isinstance(small, FasterRCNN)
    assert small.roi_heads.box_head.fc6.out_features == 6
    images = list(IMAGES.test[0][0])  # type: ignore[index]
    with torch.no_grad():
        for one, other in zip(done.model(images), small(images), strict=True):
            assert one.keys() == {"boxes", "labels", "scores"}
            assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"objective": "cross-entropy"}, r"the network is a detector \(FasterRCNN\): set objective: detection"),
        ({"criterion": "taylor"}, r"a detector computes its loss inside.* take l1, l2, lasso or another one"),
    ],
)
def test_what_a_detector_has_not(config: dict[str, Any], message: str) -> None:
    lists = [(list(images), list(targets)) for images, targets in scenes(0)]
    ours = session(secateur.Images(lists, lists), **config)
    with pytest.raises(ValueError, match=message):
        ours.compressor(ours.structure.units // 2, ours.config.repair.search)
