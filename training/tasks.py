"""The objectives that come with the package: classes of images or of pixels, numbers, several labels an image.

Shapes of outputs and targets are compared, never broadcast: of (N, 1, 8, 8) against (N,) labels arithmetic makes
something, and an agent would be paid for it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .inputs import describe, essential, integers
from .objective import OBJECTIVES, OneOutput, check_labels, one_tensor

GRID = 32  # positions a dimension, at most, that the distance of dense outputs is taken at


@OBJECTIVES.register("cross-entropy")
@dataclass(frozen=True)
class CrossEntropy(OneOutput):
    """One class an image: cross-entropy, and top-1 accuracy.

    Outputs (N, classes), or (N, classes, 1, …, 1); targets (N,) integers, or (N, classes) of one-hot labels or
    probabilities. Images labelled `ignore` count neither in the loss nor in the score.

    Attributes:
        ignore: the label of images that do not count.
        output, auxiliary: see `OneOutput`.
    """

    ignore: int = -100
    name = "cross-entropy"
    measure = "top-1 %"
    smoothing = 0.0  # of a training's loss alone: no setting of the task

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over the images that count; 0 where none does."""
        return self._cross_entropy(outputs, targets, "mean")

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """(N,), 0 for images that do not count."""
        return self._cross_entropy(outputs, targets, "none")

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) 1 where the answer is right and finite."""
        logits, labels = self._pair(outputs, targets)
        right = labels if labels.dim() == 1 else labels.argmax(1)
        hits = ((logits.argmax(1) == right) & logits.isfinite().all(1)).to(torch.float32)
        return hits.masked_fill(right == self.ignore, torch.nan) if labels.dim() == 1 else hits

    def features(self, outputs: Any) -> Tensor:
        """The scores of all classes."""
        return self._logits(outputs)

    def answers(self, outputs: Any) -> Tensor:
        """(N,) the class with the highest score."""
        return self._logits(outputs).argmax(1)

    def imitation(self, outputs: Any, wanted: Any, temperature: float) -> Tensor:
        """T² · KL(dense ‖ ours) of the class probabilities at temperature T (Hinton et al. 2015, section 2)."""
        ours, theirs = (F.log_softmax(self._logits(found) / temperature, dim=1) for found in (outputs, wanted))
        return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    def smoothed(self, amount: float) -> CrossEntropy:
        """With label smoothing in the loss (Szegedy et al. 2016, section 7)."""
        found = copy.copy(self)
        object.__setattr__(found, "smoothing", amount)  # frozen, and no field: plans do not know of it
        return found

    def check_targets(self, outputs: Any, targets: Any) -> None:
        """Whether every label is a class that the network knows."""
        if targets.dim() == 1:
            check_labels(targets, self._logits(outputs).shape[1], self.ignore)

    def chance(self, targets: Any) -> float | None:
        """Always the most frequent class."""
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        counts = labels[labels != self.ignore].unique(return_counts=True)[1]
        return 100.0 * float(counts.max() / counts.sum()) if len(counts) else None

    def _cross_entropy(self, outputs: Any, targets: Any, reduction: str) -> Tensor:
        logits, labels = self._pair(outputs, targets)
        if labels.dim() == 1:
            if reduction == "mean" and bool((labels == self.ignore).all()):
                reduction = "sum"  # of nothing: 0, where a mean would be NaN
            options = {"ignore_index": self.ignore, "label_smoothing": self.smoothing}
            return F.cross_entropy(logits, labels, reduction=reduction, **options)  # type: ignore[arg-type]
        return F.cross_entropy(logits, labels.to(logits.dtype), reduction=reduction, label_smoothing=self.smoothing)

    def _logits(self, outputs: Any) -> Tensor:
        wanted = "scores of two or more classes for each image, (N, classes)"
        logits = one_tensor(outputs, self.output, wanted)
        if logits.dim() < 2 or logits.shape[1] < 2 or logits[0].numel() != logits.shape[1]:
            raise ValueError(
                f"the network returns {describe(outputs)}, expected {wanted}: wrap it in a module that returns them, "
                "or set objective: segmentation, regression or multilabel"
            )
        return logits if logits.dim() == 2 else logits.flatten(1)

    def _pair(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        logits = self._logits(outputs)
        fits = isinstance(targets, Tensor) and (
            targets.shape == logits.shape or (targets.dim() == 1 and len(targets) == len(logits) and integers(targets))
        )
        if not fits:
            raise ValueError(
                f"outputs {describe(logits)} and labels {describe(targets)} do not go together: expected labels (N,) "
                "of integers, or (N, classes) of probabilities"
            )
        labels = targets.to(logits.device)
        return logits, labels.long() if labels.dim() == 1 else labels


DEFAULT = CrossEntropy()


@OBJECTIVES.register("segmentation")
@dataclass(frozen=True)
class Segmentation(OneOutput):
    """One class a pixel: cross-entropy, and mean intersection over union.

    Outputs (N, classes, H, W), targets (N, H, W) or (N, 1, H, W) integers; or of one or three dimensions alike. An
    image's score is its own mean IoU; the measure sums intersections and unions over all images first, as is usual, and
    takes the mean over the classes that occur.

    Attributes:
        ignore: the label of pixels that do not count.
        output, auxiliary: see `OneOutput`; torchvision's networks return theirs as `out`.
    """

    ignore: int = 255
    name = "segmentation"
    measure = "mIoU %"

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over the pixels that count; 0 where none does."""
        logits, labels = self._pair(outputs, targets)
        summed = F.cross_entropy(logits, labels, ignore_index=self.ignore, reduction="sum")
        return summed / (labels != self.ignore).sum().clamp_min(1)

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) mean IoU over the classes that are in the image or its answer; NaN where no pixel counts."""
        return _mean_iou(*self.statistics(outputs, targets).unbind(1))

    def statistics(self, outputs: Any, targets: Any) -> Tensor:
        """(N, 2, classes) pixels in the intersection and in the union of answer and truth."""
        logits, labels = self._pair(outputs, targets)
        images, classes = logits.shape[:2]
        answers, truth = logits.argmax(1).flatten(1), labels.flatten(1)
        finite = logits.isfinite().all(1).flatten(1)
        counted = truth != self.ignore
        number = torch.arange(images, device=logits.device)[:, None]

        def pixels(of: Tensor, where: Tensor) -> Tensor:
            found = torch.bincount((number * classes + of)[where], minlength=images * classes)
            return found.reshape(images, classes).double()

        right = pixels(answers, counted & finite & (answers == truth))
        union = pixels(answers, counted) + pixels(truth, counted) - pixels(answers, counted & (answers == truth))
        return torch.stack([right, union], dim=1)

    def total(self, statistics: Tensor) -> float:
        """mIoU in per cent over the classes that occur."""
        return 100.0 * float(_mean_iou(*statistics.double().sum(0, keepdim=True).unbind(1)))

    def features(self, outputs: Any) -> Tensor:
        """The class scores at 32 × 32 positions at most, spread evenly: all of them would be gigabytes."""
        logits = self._logits(outputs)
        steps = [slice(None, None, -(-size // GRID)) for size in logits.shape[2:]]
        return logits[(slice(None), slice(None), *steps)].flatten(1)

    def answers(self, outputs: Any) -> Tensor:
        """(N, H, W) the class of each pixel."""
        return self._logits(outputs).argmax(1)

    def check_targets(self, outputs: Any, targets: Any) -> None:
        """Whether every label is a class that the network knows."""
        check_labels(targets, self._logits(outputs).shape[1], self.ignore)

    def chance(self, targets: Any) -> float | None:
        """The most frequent class at every pixel."""
        counts = targets[targets != self.ignore].unique(return_counts=True)[1]
        return 100.0 * float(counts.max() / counts.sum()) / len(counts) if len(counts) else None

    def _logits(self, outputs: Any) -> Tensor:
        wanted = "class scores for every pixel, (N, classes, H, W)"
        logits = one_tensor(outputs, self.output, wanted)
        if logits.dim() < 3 or logits.shape[1] < 2:
            raise ValueError(f"the network returns {describe(outputs)}, expected {wanted}")
        return logits

    def _pair(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        logits = self._logits(outputs)
        if isinstance(targets, Tensor) and integers(targets):
            labels = targets[:, 0] if targets.dim() == logits.dim() and targets.shape[1] == 1 else targets
            if labels.shape == (len(logits), *logits.shape[2:]):
                return logits, labels.long().to(logits.device)
        raise ValueError(
            f"outputs {describe(logits)} and labels {describe(targets)} do not go together: expected a label of "
            f"integers for every pixel, {(len(logits), *logits.shape[2:])}; bring one to the size of the other"
        )


@OBJECTIVES.register("regression")
@dataclass(frozen=True)
class Regression(OneOutput):
    """Numbers: mean squared error, and R².

    Outputs and targets (N, …) of one shape, but for dimensions of size 1 behind the first. An image's score is less its
    squared error; the measure is 1 − Σ squared errors / Σ squared deviations from the mean of each number, over all
    numbers together. Below 0, where the mean would be a better answer, it is 0: how far off a network is beyond that
    the distance from the dense one tells.

    Attributes:
        output, auxiliary: see `OneOutput`.
    """

    name = "regression"
    measure = "R² %"

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean squared error."""
        return F.mse_loss(*self._pair(outputs, targets))

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) mean squared errors."""
        numbers, truth = self._pair(outputs, targets)
        return (numbers - truth).square().mean(1)

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) less the mean squared error."""
        return -self.losses(outputs, targets).nan_to_num(torch.inf)

    def statistics(self, outputs: Any, targets: Any) -> Tensor:
        """(N, 2, numbers) squared errors and targets."""
        numbers, truth = (part.double() for part in self._pair(outputs, targets))
        return torch.stack([(numbers - truth).square().nan_to_num(torch.inf), truth], dim=1)

    def total(self, statistics: Tensor) -> float:
        """R² in per cent, 0 at least."""
        errors, truth = statistics.double().unbind(1)
        spread, missed = float((truth - truth.mean(0)).square().sum()), float(errors.sum())
        return 100.0 * max(0.0, 1.0 - missed / spread) if spread else 100.0 * (missed == 0.0)

    def features(self, outputs: Any) -> Tensor:
        """(N, numbers)."""
        return self._numbers(outputs)

    def chance(self, targets: Any) -> float | None:
        """The mean."""
        return 0.0

    def _numbers(self, outputs: Any) -> Tensor:
        numbers = one_tensor(outputs, self.output, "numbers for each image, (N, …)")
        if not numbers.dim():
            raise ValueError(f"the network returns {describe(outputs)}, expected numbers for each image, (N, …)")
        return numbers.reshape(len(numbers), -1)

    def _pair(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        whole = one_tensor(outputs, self.output, "numbers for each image, (N, …)")
        numbers = self._numbers(outputs)
        fits = isinstance(targets, Tensor) and len(targets) == len(whole) and essential(targets) == essential(whole)
        if not fits or not targets.is_floating_point():
            raise ValueError(
                f"outputs {describe(whole)} and targets {describe(targets)} do not go together: expected targets of "
                "floats, of the outputs' shape"
            )
        return numbers, targets.reshape(numbers.shape).to(numbers)


@OBJECTIVES.register("multilabel")
@dataclass(frozen=True)
class Multilabel(OneOutput):
    """Several labels an image: binary cross-entropy, and the mean over labels of how many images are right.

    Outputs (N, labels), targets (N, labels) of 0 and 1. The score of an image is the part of its labels that are right,
    not whether all are: with many labels hardly any image would be. Where most labels are 0, answering 0 scores high:
    look at how far the dense network is above that (`chance`).

    Attributes:
        output, auxiliary: see `OneOutput`.
    """

    name = "multilabel"
    measure = "labels right %"

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over images and labels."""
        logits, truth = self._pair(outputs, targets)
        return F.binary_cross_entropy_with_logits(logits, truth)

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) means over labels."""
        logits, truth = self._pair(outputs, targets)
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) the part of the labels that are right."""
        logits, truth = self._pair(outputs, targets)
        return (((logits > 0) == (truth > 0.5)) & logits.isfinite()).float().mean(1)

    def features(self, outputs: Any) -> Tensor:
        """The scores of all labels."""
        return self._logits(outputs)

    def answers(self, outputs: Any) -> Tensor:
        """(N, labels) which are there."""
        return self._logits(outputs) > 0

    def chance(self, targets: Any) -> float | None:
        """Every label as most images have it."""
        part = (targets > 0.5).double().mean(0)
        return 100.0 * float(torch.maximum(part, 1 - part).mean())

    def _logits(self, outputs: Any) -> Tensor:
        wanted = "a score for each label of each image, (N, labels)"
        logits = one_tensor(outputs, self.output, wanted)
        if logits.dim() < 2 or logits[0].numel() != logits.shape[1]:
            raise ValueError(f"the network returns {describe(outputs)}, expected {wanted}")
        return logits.flatten(1)

    def _pair(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        logits = self._logits(outputs)
        if not isinstance(targets, Tensor) or targets.shape != logits.shape:
            raise ValueError(
                f"outputs {describe(logits)} and labels {describe(targets)} do not go together: expected a 0 or 1 for "
                f"each label of each image, {tuple(logits.shape)}"
            )
        return logits, targets.to(logits)

    def check_targets(self, outputs: Any, targets: Any) -> None:
        """Whether targets are 0 and 1."""
        odd = targets[(targets != 0) & (targets != 1)]
        if len(odd):
            raise ValueError(f"multilabel: a target is {float(odd[0]):g}, expected 0 or 1")


def _mean_iou(intersection: Tensor, union: Tensor) -> Tensor:
    """(N,) of (N, classes) each; the mean over classes that occur."""
    return torch.where(union > 0, intersection / union.clamp_min(1), torch.nan).nanmean(1)
