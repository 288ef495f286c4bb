"""torchvision's detectors, so that what their boxes are made from can be asked: fixed in size, and followed.

A detector ends in boxes: another number for every image, behind thresholds and non-maximum suppression. All that can be
cut is in front of that. `open_detector` makes a network of the same modules, names and forward that says beside it what
its heads say. Of two stages the second looks at regions that the first proposes; asked for its heads, it looks at as
many regions as it would be proposed, spread over the image, the same ones for every image.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..training.inputs import Answer, Detector

ONE_STAGE = {"ssd": "SSD", "retinanet": "RetinaNet", "fcos": "FCOS"}
TWO_STAGES = {"generalized_rcnn": "GeneralizedRCNN"}
SECOND = ("box", "mask", "keypoint")  # what a second stage may find in a region

_CLASSES: dict[tuple[type[nn.Module], type[Detector]], type[Detector]] = {}

SMALLEST = 1 / 16  # side of the smallest region, as a part of the image's


class Opaque(nn.Module):
    """A part of a forward without weights, which a trace does not go into."""


class Batched(Opaque):
    """Images, in a list or stacked, as a detector's own transform brings them into one batch (N, C, H, W)."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """As in evaluation, whichever mode it is in: no size is drawn at random."""
        training = self.transform.training
        self.transform.training = False
        try:
            return self.transform(list(images))[0].tensors  # type: ignore[no-any-return]
        finally:
            self.transform.training = training


class Regions(Opaque):
    """Features (N · count, C, h, w) of `count` regions of every image, pooled as a detector does with proposals."""

    def __init__(self, pool: nn.Module, count: int) -> None:
        super().__init__()
        self.pool = pool
        self.count = count

    def forward(self, features: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        """Of the backbone's maps, and the images that they are of."""
        images, _, height, width = batch.shape
        size = torch.tensor([width, height, width, height], dtype=batch.dtype, device=batch.device)
        boxes = regions(self.count).to(batch) * size
        return self.pool(features, [boxes] * images, [(height, width)] * images)  # type: ignore[no-any-return]


@lru_cache(maxsize=8)
def regions(count: int) -> Tensor:
    """(count, 4) corners x1, y1, x2, y2 as parts of the image: places, sizes and shapes spread evenly (Sobol)."""
    points: Any = torch.quasirandom.SobolEngine(4)  # type: ignore[no-untyped-call]
    x, y, size, shape = points.draw(count + 1)[1:].T
    side = SMALLEST ** (1.0 - size)
    across, down = side * 2.0 ** (shape - 0.5), side * 2.0 ** (0.5 - shape)
    corners = torch.stack([x - across / 2, y - down / 2, x + across / 2, y + down / 2], dim=1)
    return corners.clamp(0.0, 1.0)


class OneStage(Detector):
    """SSD, RetinaNet, FCOS: one head says classes and boxes for every anchor."""

    first_label = 0
    transform: nn.Module
    backbone: nn.Module
    head: nn.Module

    def open(self) -> None:
        """Add what `heads` needs; nothing of it has weights."""
        self._batched = Batched(self.transform)

    def heads(self, images: Any) -> dict[str, Tensor]:
        """`cls_logits` (N, anchors, classes), `bbox_regression` (N, anchors, 4), and what else its head says."""
        said: dict[str, Tensor] = self.head(list(_maps(self.backbone(self._batched(images))).values()))
        return said

    def answer(self, images: Any) -> Answer:
        """Both of one pass."""
        said: list[dict[str, Tensor]] = []
        found = _watched(self, self.head, lambda _inputs, output: said.append(output), images)
        return Answer(said[0], found, range(self.first_label, said[0]["cls_logits"].shape[-1]))


class SingleShot(OneStage):
    """SSD, whose first class is the background."""

    first_label = 1


class TwoStages(Detector):
    """Faster R-CNN, and those that find masks or keypoints, too: proposals first, what is in them then."""

    transform: nn.Module
    backbone: nn.Module
    rpn: Any
    roi_heads: Any

    def open(self) -> None:
        """Add what `heads` needs; nothing of it has weights."""
        self._batched = Batched(self.transform)
        for part in SECOND:
            pool = getattr(self.roi_heads, f"{part}_roi_pool", None)
            if pool is not None:
                most = self.rpn._post_nms_top_n["testing"] if part == "box" else self.roi_heads.detections_per_img
                setattr(self, f"_{part}_regions", Regions(pool, most))

    def heads(self, images: Any) -> dict[str, Tensor]:
        """`objectness` (N, anchors, 1) and `proposals` (N, anchors, 4); `cls_logits` (N, regions, classes),
        `bbox_regression` (N, regions, 4 · classes), and `mask` or `keypoint` (N, regions, …)."""
        batch = self._batched(images)
        return self._said(_maps(self.backbone(batch)), batch)

    def answer(self, images: Any) -> Answer:
        """The backbone is run once."""
        seen: list[tuple[Tensor, Any]] = []
        found = _watched(self, self.backbone, lambda inputs, output: seen.append((inputs[0], output)), images)
        ((batch, maps),) = seen
        said = self._said(_maps(maps), batch)
        return Answer(said, found, range(1, said["cls_logits"].shape[-1]))

    def _said(self, maps: Mapping[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
        objectness, proposals = self.rpn.head(list(maps.values()))
        said = {"objectness": _rows(objectness, 1), "proposals": _rows(proposals, 4)}
        for part in SECOND:
            if hasattr(self, f"_{part}_regions"):
                looked_at = getattr(self, f"_{part}_regions")
                features = getattr(self.roi_heads, f"{part}_head")(looked_at(maps, batch))
                made = getattr(self.roi_heads, f"{part}_predictor")(features)
                named = zip(("cls_logits", "bbox_regression"), made, strict=True) if part == "box" else [(part, made)]
                said |= {name: tensor.unflatten(0, (-1, looked_at.count)) for name, tensor in named}
        return said


def open_detector(model: nn.Module) -> nn.Module:
    """A detector of torchvision's with heads that can be asked, in place; any other network as it is."""
    if isinstance(model, Detector):
        return model
    for families, opened in ((ONE_STAGE, OneStage), (TWO_STAGES, TwoStages)):
        for module, name in families.items():
            family = getattr(sys.modules.get(f"torchvision.models.detection.{module}"), name, None)
            if family is not None and isinstance(model, family):
                detector: Any = model
                detector.__class__ = _open_class(type(model), SingleShot if name == "SSD" else opened)
                detector.open()
                break
    return model


def _open_class(kind: type[nn.Module], opened: type[Detector]) -> type[Detector]:
    """A class of a detector's own: its forward, its name, and what is asked of its heads."""

    def reduced(self: nn.Module, _protocol: Any) -> tuple[Any, ...]:
        return _blank, (kind, opened), vars(self)

    if (kind, opened) not in _CLASSES:
        about = {"__reduce_ex__": reduced, "__doc__": kind.__doc__, "__module__": kind.__module__}
        _CLASSES[kind, opened] = type(kind.__name__, (opened, kind), about)
    return _CLASSES[kind, opened]


def _blank(kind: type[nn.Module], opened: type[Detector]) -> Detector:
    """For a copy, which gets its state afterwards."""
    made = _open_class(kind, opened)
    return made.__new__(made)


def _maps(features: Any) -> Mapping[str, Tensor]:
    """What a backbone returns, by name, as torchvision's detectors take it."""
    return features if isinstance(features, Mapping) else OrderedDict([("0", features)])


def _rows(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """(N, anchors, numbers) of maps (N, anchors a position · numbers, H, W)."""
    apart: list[Tensor] = [part.unflatten(1, (-1, numbers)) for part in maps]  # type: ignore[no-untyped-call]
    return torch.cat([part.permute(0, 3, 4, 1, 2).flatten(1, 3) for part in apart], dim=1)


def _watched(
    model: nn.Module, part: nn.Module, look: Callable[[tuple[Any, ...], Any], object], images: Any
) -> list[dict[str, Tensor]]:
    """What a detector finds; one of its modules is looked at while it runs."""
    hook = part.register_forward_hook(lambda _module, inputs, output: look(inputs, output) and None)
    try:
        found: list[dict[str, Tensor]] = model(list(images))
    finally:
        hook.remove()
    return found
