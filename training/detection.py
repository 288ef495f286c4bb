"""The objective of detectors: their own losses, and mean average precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .inputs import Answer, Detector, Inputs, describe
from .objective import OBJECTIVES, Objective

ROWS = 256  # anchors, and regions, that the distance from the dense network is taken at
GROUPS = 50  # of images, that are left out one after another for a standard error
NONE = -1.0  # the label of a row that is no box

_INSIDE = (
    "detection: a detector computes its loss inside, in training, and there is none of its outputs, which the criteria "
    "taylor, rar, dcp and car look at: take l1, l2, lasso or another one"
)


@OBJECTIVES.register("detection")
@dataclass(frozen=True)
class Detection(Objective):
    """Boxes and what is in them: a detector's own losses, and mAP.

    The network is one of torchvision's detectors (SSD, RetinaNet, FCOS, Faster, Mask and Keypoint R-CNN), or a
    `Detector` of your own. Images in a list or stacked; targets a list of dicts, for each image `boxes` (n, 4) float,
    corners x1, y1, x2, y2 in pixels, `labels` (n,) integers, and what else the network learns from.

    Average precision of a class: the area under its precision over recall, the highest precision at this recall or
    more (as PASCAL VOC from 2010 on); boxes are taken by falling score, and each true box is found once at most. The
    measure is its mean over the classes that occur.

    Attributes:
        iou: overlap, over union, from which a box is found.
        most: boxes an image that count, those of the highest scores (COCO takes 100); and the most true ones it has.
        frozen_norms: whether batch norms stay in evaluation mode while it is trained: of a few images a batch they
            would learn noise. Set it to false to train from random weights.
    """

    iou: float = 0.5
    most: int = 100
    frozen_norms: bool = True
    name = "detection"
    measure = "mAP %"

    def __post_init__(self) -> None:
        if not 0.0 < self.iou <= 1.0:
            raise ValueError(f"objective.kwargs.iou = {self.iou}: must be above 0, and 1 at most")
        if self.most < 1:
            raise ValueError(f"objective.kwargs.most = {self.most}: must be 1 or more")

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """As other objectives do; images and targets in tuples, as `zip(*batch)` collates them, are lists."""
        inputs, targets = super().split(batch)
        return list(inputs) if isinstance(inputs, tuple) else inputs, (
            list(targets) if isinstance(targets, tuple) else targets
        )

    def outputs(self, model: nn.Module, inputs: Inputs) -> Answer:
        """What a detector finds, and what its heads say.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(model, Detector):
            raise ValueError(
                f"detection: {type(model).__name__} is not one of torchvision's detectors: give one as it is, not "
                "inside another module, or an objective of your own"
            )
        return model.answer(inputs)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """There is none of outputs.

        Raises:
            ValueError: always.
        """
        raise ValueError(_INSIDE)

    def training_loss(self, model: nn.Module, inputs: Inputs, targets: Any) -> Tensor:
        """The sum of the losses that the network returns in training mode."""
        with _norms_at_rest(model) if self.frozen_norms else nullcontext():
            try:
                losses = model(list(inputs), targets)
            except TypeError as error:
                raise ValueError(
                    f"detection: {type(model).__name__} does not take images and targets as torchvision's detectors do "
                    f"in training ({error}): give one of them, or another objective"
                ) from error
        if not isinstance(losses, Mapping) or not losses:
            raise ValueError(
                f"detection: {type(model).__name__} returns {describe(losses)} in training: expected losses by name"
            )
        return torch.stack(list(losses.values())).sum()

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) mAP of each image alone, 0 … 1; NaN where there is nothing to find."""
        rows = self.statistics(outputs, targets)
        truth = (rows[..., 3] != NONE).any(1)
        alone = [self.total(row[None]) / 100.0 if some else torch.nan for row, some in zip(rows, truth, strict=True)]
        return torch.tensor(alone)

    def statistics(self, outputs: Any, targets: Any) -> Tensor:
        """(N, most, 4) of boxes by falling score: label, score, whether it is right; and the label of a true box."""
        if not isinstance(outputs, Answer):
            raise ValueError(_INSIDE)
        rows = [self._rows(found, target) for found, target in zip(outputs.found, targets, strict=True)]
        return torch.from_numpy(np.stack(rows))

    def total(self, statistics: Tensor) -> float:
        """mAP in per cent over the classes that occur; 0 where none does."""
        labels, scores, right, truth = statistics.reshape(-1, 4).double().cpu().numpy().T
        classes, counts = np.unique(truth[truth != NONE], return_counts=True)
        found = [
            average_precision(scores[labels == label], right[labels == label], int(count))
            for label, count in zip(classes, counts, strict=True)
        ]
        return 100.0 * float(np.mean(found)) if found else 0.0

    def influence(self, statistics: Tensor) -> Tensor:
        """(N,) the jackknife's pseudo-values of groups of images, one value a group, spread as single images' are."""
        size, whole = len(statistics), self.total(statistics)
        groups = min(size, GROUPS)
        if groups < 2:
            return torch.full((size,), whole, dtype=torch.float64)
        group = torch.arange(size) % groups
        left = [self.total(statistics[(group != number).to(statistics.device)]) for number in range(groups)]
        values = groups * whole - (groups - 1) * torch.tensor(left, dtype=torch.float64)
        mean = values.mean()
        spread: Tensor = mean + (values - mean) * (size / groups) ** 0.5
        return spread[group]

    def features(self, outputs: Any) -> Tensor:
        """(N, d) what the heads say at `ROWS` anchors, spread evenly, and of as many regions."""
        heads = outputs.heads if isinstance(outputs, Answer) else outputs
        if not isinstance(heads, Mapping):
            raise ValueError(f"detection: the network returns {describe(outputs)}, expected a detector's heads")
        rows = [part if part.dim() == 3 else part.flatten(1)[..., None] for part in heads.values()]
        return torch.cat([part[:, _spread(part.shape[1]).to(part.device)].flatten(1) for part in rows], dim=1)

    def check(self, outputs: Any, targets: Any) -> None:
        """Whether targets are such as the network can answer."""
        self.check_targets(outputs, targets)
        self.features(outputs)

    def check_targets(self, outputs: Any, targets: Any) -> None:
        """Whether each is a dict of boxes with corners in order, and as many labels that the network knows."""
        if not isinstance(targets, list | tuple):
            raise ValueError(
                f"detection: targets are {describe(targets)}: expected a list of dicts, one for each image"
            )
        for number, target in enumerate(targets):
            wrong = self._wrong(target, outputs.labels)
            if wrong:
                raise ValueError(f"detection: the target of image {number} {wrong}")

    def _wrong(self, target: Any, known: range) -> str:
        if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
            return f"is {describe(target)}: expected a dict of boxes (n, 4) and labels (n,)"
        boxes, labels = target["boxes"], target["labels"]
        if boxes.shape != (len(labels), 4) or labels.dim() != 1 or not boxes.is_floating_point():
            return f"has boxes {describe(boxes)} and labels {describe(labels)}: expected (n, 4) of floats and (n,)"
        if len(labels) > self.most:
            return f"has {len(labels)} boxes: set objective.kwargs.most, {self.most}, to as many at least"
        flat = ~(boxes[:, 2:] > boxes[:, :2]).all(1)
        if bool(flat.any()):
            return f"has a box {boxes[flat][0].tolist()}: expected corners x1, y1, x2, y2 with x1 < x2 and y1 < y2"
        odd = (labels < known.start) | (labels >= known.stop)
        if bool(odd.any()):
            background = ", 0 being the background" if known.start else ""
            return (
                f"has a label {int(labels[odd][0])}, but the network knows {known.start} … {known.stop - 1}"
                f"{background}: check num_classes and the data set"
            )
        return ""

    def _rows(self, found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> NDArray[np.float32]:
        rows = np.full((self.most, 4), NONE, dtype=np.float32)
        scores, order = found["scores"].detach().sort(descending=True, stable=True)
        scores, order = scores[: self.most], order[: self.most]
        labels, truth = found["labels"][order], target["labels"].to(order.device)
        overlap = _overlap(found["boxes"].detach()[order], target["boxes"].to(order.device))
        overlap = overlap.masked_fill(labels[:, None] != truth, 0.0)
        rows[: len(order), 0], rows[: len(order), 1] = labels.cpu().numpy(), scores.cpu().numpy()
        rows[: len(order), 2] = _right(overlap.cpu().numpy(), self.iou)
        rows[: len(truth), 3] = truth.cpu().numpy()
        return rows


def average_precision(scores: NDArray[Any], right: NDArray[Any], count: int) -> float:
    """Of one class's boxes (n,), given which are right and how many there are to find, 1 at least: in [0, 1]."""
    hits = right[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((highest * hits).sum() / count)


def _right(overlap: NDArray[Any], iou: float) -> list[bool]:
    """Whether each box (n, true boxes), in this order, finds a true one that none before it has found."""
    free, right = overlap.copy(), []
    for number in range(len(free)):
        best = int(free[number].argmax()) if free.shape[1] else 0
        right.append(bool(free.shape[1] and free[number, best] >= iou))
        if right[-1]:
            free[:, best] = 0.0
    return right


def _overlap(some: Tensor, others: Tensor) -> Tensor:
    """(n, m) intersection over union of boxes (n, 4) and (m, 4)."""
    left, right = torch.maximum(some[:, None, :2], others[:, :2]), torch.minimum(some[:, None, 2:], others[:, 2:])
    both = (right - left).clamp_min(0.0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (some, others)]
    return both / (areas[0][:, None] + areas[1] - both)


@lru_cache(maxsize=64)
def _spread(rows: int) -> Tensor:
    """(ROWS,) of so many rows: multiples of the golden ratio, in step with no number of anchors a position."""
    return ((torch.arange(1, ROWS + 1, dtype=torch.float64) * 0.6180339887498949) % 1.0 * rows).long()


@contextmanager
def _norms_at_rest(model: nn.Module) -> Iterator[None]:
    """Batch norms in evaluation mode, for the length of a block."""
    awake = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in awake:
        norm.training = False
    try:
        yield
    finally:
        for norm in awake:
            norm.training = True
