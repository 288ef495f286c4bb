"""torchvision's detectors as they are: what they find, what their heads say, what is cut of them."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from secateur.networks.copying import copied
from secateur.networks.detectors import regions
from secateur.networks.fused import Fused
from secateur.networks.graph import Walk, trace
from secateur.networks.opened import opened
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.shrink import mask, shrink
from secateur.training.inputs import Detector, call

CLASSES = 3
GRAY = {"image_mean": [0.5], "image_std": [0.25]}
SIZES = {"min_size": 32, "max_size": 48, **GRAY}
TWO = {"rpn_post_nms_top_n_test": 6, "box_detections_per_img": 4, **SIZES}


class Maps(nn.Module):
    """Two maps of features, or one."""

    def __init__(
        self, out_channels: int = 8, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, alone: bool = False
    ) -> None:
        super().__init__()
        self.out_channels = out_channels

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), norm(outputs), nn.ReLU())

        self.fine = nn.Sequential(block(1, 6), block(6, out_channels))
        self.coarse = block(out_channels, out_channels)
        self.alone = alone

    def forward(self, x: Tensor) -> Any:
        fine = self.fine(x)
        return fine if self.alone else OrderedDict({"0": fine, "1": self.coarse(fine)})


def ssd() -> nn.Module:
    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.25, 0.35, 0.5])
    head = SSDHead([8, 8], anchors.num_anchors_per_location(), CLASSES)
    return SSD(Maps(), anchors, (32, 32), CLASSES, head=head, **GRAY)


def retinanet() -> nn.Module:
    anchors = AnchorGenerator(((8,), (16,)), ((0.5, 1.0),) * 2)
    return RetinaNet(Maps(), CLASSES, anchor_generator=anchors, score_thresh=0.0, **SIZES)


def fcos() -> nn.Module:
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return FCOS(Maps(32), CLASSES, anchor_generator=anchors, score_thresh=0.0, **SIZES)


def faster() -> nn.Module:
    """Of one map, and norms that are frozen, as torchvision's pretrained backbones have them."""
    return FasterRCNN(
        Maps(norm=FrozenBatchNorm2d, alone=True),
        rpn_anchor_generator=AnchorGenerator(((8, 16),), ((0.5, 1.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(8 * 9, 12),
        box_predictor=FastRCNNPredictor(12, CLASSES),
        **TWO,
    )


def masks() -> nn.Module:
    pools = {f"{part}_roi_pool": MultiScaleRoIAlign(["0", "1"], 3, 2) for part in ("box", "mask")}
    return MaskRCNN(
        Maps(),
        rpn_anchor_generator=AnchorGenerator(((8,), (16,)), ((0.5, 1.0),) * 2),
        box_head=TwoMLPHead(8 * 9, 12),
        box_predictor=FastRCNNPredictor(12, CLASSES),
        mask_head=MaskRCNNHeads(8, (6,), 1),
        mask_predictor=MaskRCNNPredictor(6, 5, CLASSES),
        **pools,
        **TWO,
    )


DETECTORS = {"ssd": ssd, "retinanet": retinanet, "fcos": fcos, "faster": faster, "masks": masks}
INSIDE = {  # of the heads, what is cut
    "ssd": set(),
    "retinanet": {"head.classification_head.conv.0.0", "head.regression_head.conv.3.0"},
    "fcos": {"head.classification_head.conv.0", "head.regression_head.conv.9"},
    "faster": {"rpn.head.conv.0.0", "roi_heads.box_head.fc6", "roi_heads.box_head.fc7"},
    "masks": {"roi_heads.box_head.fc6", "roi_heads.mask_head.0.0", "roi_heads.mask_predictor.conv5_mask"},
}


def made(name: str) -> nn.Module:
    """In evaluation mode, with norms that are far from trivial, and scores that differ."""
    torch.manual_seed(0)
    network = DETECTORS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor, low in {"weight": 0.5, "bias": -1.0, "running_mean": -1.0, "running_var": 0.5}.items():
                getattr(module, tensor).data.uniform_(low, 2.0)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.normal_(0.0, 1.5 / module.weight[0].numel() ** 0.5)
    return network.eval()


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, *size, generator=generator) for size in sizes]


SOME = images((32, 40), (36, 32))
QUICK = ("ssd", "faster")
MOST = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DETECTORS]


def same(one: Any, other: Any, atol: float = 0.0) -> bool:
    """Whether two networks have found the same."""
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(a[key].shape == b[key].shape and torch.allclose(a[key], b[key], rtol=0, atol=atol) for key in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", MOST)
@torch.no_grad()
def test_it_finds_what_it_found_and_says_what_its_heads_say(name: str) -> None:
    network = made(name)
    found = copied(network)(SOME)
    assert all(len(one["boxes"]) for one in found)
    detector = opened(copied(network))
    assert isinstance(detector, Detector)
    assert isinstance(detector, type(network))
    assert type(detector).__name__ == type(network).__name__
    assert detector.state_dict().keys() == network.state_dict().keys()
    assert opened(detector) is detector
    answer, heads = detector.answer(SOME), call(detector, SOME)
    assert same(detector(SOME), found)
    assert same(answer.found, found)
    assert answer.heads.keys() == heads.keys()
    assert all(torch.equal(heads[key], answer.heads[key]) for key in heads)
    assert all(len(rows) == len(SOME) for rows in heads.values())
    labels = torch.cat([one["labels"] for one in found])
    assert answer.labels == range(int(name not in ("retinanet", "fcos")), CLASSES)
    assert set(labels.tolist()) <= set(answer.labels)


@pytest.mark.parametrize("name", ["ssd", "masks"])
@torch.no_grad()
def test_copies_and_pickles_are_detectors_of_their_own(name: str) -> None:
    detector: Any = opened(made(name))
    for other in (copied(detector), pickle.loads(pickle.dumps(detector))):
        assert type(other) is type(detector)
        assert same(other(SOME), detector(SOME))
        next(other.parameters()).data.zero_()
        assert not same([call(other, SOME)], [call(detector, SOME)])
        assert other._batched.transform is other.transform
        assert same(other.answer(SOME).found, other(SOME))


@pytest.mark.parametrize("name", ["ssd", "fcos"])
@torch.no_grad()
def test_heads_look_at_images_as_in_evaluation(name: str) -> None:
    detector: Any = opened(made(name))
    stacked = torch.stack(images((32, 40), (32, 40)))
    wanted = call(detector, stacked)
    detector.transform.min_size = (24, 40, 32)  # of which training draws one
    detector.train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    got = call(detector, list(stacked))
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert detector.transform.training


@pytest.mark.parametrize("name", MOST)
@torch.no_grad()
def test_a_smaller_detector_finds_what_the_masked_one_finds(name: str) -> None:
    """The heads are what cutting is verified by; what comes after them is another forward, over other regions."""
    detector: Any = opened(made(name))
    structure = find_layers(detector, [(1, 32, 40)], cut="all")
    names = {layer.name for layer in structure.layers}
    assert {"backbone.fine.0.0", "backbone.fine.1.0"} | INSIDE[name] <= names
    assert all(reason == "it is the network's output" for reason in structure.ignored.values())
    rng = np.random.default_rng(0)
    chosen = [np.sort(rng.choice(x.units, size=-(-x.units // 2), replace=False)) for x in structure.layers]
    small, masked = shrink(detector, structure, chosen), mask(detector, structure, chosen)
    assert isinstance(small, Detector)
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in detector.parameters())
    found = small(SOME)
    assert same(found, masked(SOME), atol=1e-4)
    assert not same(found, detector(SOME), atol=1e-4)


@pytest.mark.parametrize("name", MOST)
@torch.no_grad()
def test_its_graph_is_that_of_images_of_any_size_and_number(name: str) -> None:
    detector = opened(made(name))
    graph = trace(detector, SOME[:1])
    others = images((40, 32), (32, 48), (33, 33))
    (walked,) = Walk(graph, detector, [others]).result()
    wanted = call(detector, others)
    assert all(torch.allclose(walked[key], wanted[key], atol=1e-5) for key in wanted)


def test_a_detector_is_run_as_it_is_where_others_are_fused() -> None:
    detector = opened(made("ssd"))
    assert Fused(detector, SOME[:1])(detector) is detector


def test_other_networks_are_no_detectors() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), made("ssd"))
    assert opened(network) is network
    assert type(network) is nn.Sequential
    assert not isinstance(network[1], Detector)


@pytest.mark.parametrize("count", [1, 6, 1000])
def test_regions_lie_in_the_image_and_spread(count: int) -> None:
    found = regions(count)
    assert found.shape == (count, 4)
    assert bool((found >= 0).all() and (found <= 1).all())
    assert bool((found[:, 2:] > found[:, :2]).all())
    assert torch.equal(found, regions(1000)[:count])
    if count == 1000:
        sides = (found[:, 2:] - found[:, :2]).prod(1).sqrt()
        assert float(sides.min()) < 0.1
        assert float(sides.max()) > 0.6
        centres = (found[:, 2:] + found[:, :2]) / 2
        assert torch.allclose(centres.mean(0), torch.full((2,), 0.5), atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
@torch.no_grad()
def test_as_torchvision_makes_them(name: str) -> None:
    torch.manual_seed(0)
    sizes = (
        {}
        if name.startswith("ssd")
        else {"min_size": 96, "max_size": 128, "rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.0}
    )
    network = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=CLASSES, **sizes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(
                *((0.02, 0.1) if name.startswith("ssd") else (0.1, 0.3))
            )  # signals neither fade nor grow
    detector: Any = opened(network.eval())
    structure = find_layers(detector, [(3, 96, 128)])
    assert len(structure.layers) == (31 if name.startswith("ssd") else 27)
    chosen = [np.arange(0, layer.units, 2) for layer in structure.layers]
    given = [torch.rand(3, 96, 128), torch.rand(3, 100, 90)]
    found = shrink(detector, structure, chosen)(given)
    assert any(len(one["boxes"]) for one in found)
    assert same(found, mask(detector, structure, chosen)(given), atol=1e-2)
