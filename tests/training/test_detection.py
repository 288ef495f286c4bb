"""The objective of detectors: average precision against its definition, its losses, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.configs.schema import ObjectiveConfig
from secateur.training.detection import ROWS, Detection, average_precision
from secateur.training.inputs import Answer, Detector
from secateur.training.objective import make_objective

TASK = Detection()
BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 30]])
HEADS = {"cls_logits": torch.zeros(1, 7, 3), "mask": torch.zeros(1, 2, 3, 4, 4)}


def target(boxes: Tensor = BOXES, labels: tuple[int, ...] = (1, 2, 1)) -> dict[str, Tensor]:
    return {"boxes": boxes, "labels": torch.tensor(labels)}


def answer(*found: tuple[Tensor, list[int], list[float]]) -> Answer:
    named = [
        {"boxes": boxes, "labels": torch.tensor(labels), "scores": torch.tensor(scores)}
        for boxes, labels, scores in found
    ]
    return Answer(HEADS, named, range(1, 3))


def measured(found: tuple[Tensor, list[int], list[float]], wanted: dict[str, Tensor], task: Detection = TASK) -> float:
    return task.total(task.statistics(answer(found), [wanted]))


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=12, unique_by=lambda x: x[0]), st.integers(0, 4)
)
@settings(max_examples=60, deadline=None)
def test_average_precision_is_the_area_under_the_highest_precision(found: list[tuple[int, bool]], missed: int) -> None:
    count = sum(right for _, right in found) + missed
    if not count:
        return
    curve = [(0.0, 1.0)]
    for least, _ in found:  # precision and recall of the boxes from this score on
        taken = [right for score, right in found if score >= least]
        curve.append((sum(taken) / count, sum(taken) / len(taken)))
    levels = sorted({recall for recall, _ in curve})
    area = sum(
        (high - low) * max(precision for recall, precision in curve if recall >= high) for low, high in pairwise(levels)
    )
    scores, right = (np.array(column) for column in zip(*found, strict=True)) if found else (np.zeros(0), np.zeros(0))
    assert average_precision(scores, right, count) == pytest.approx(area)


def test_what_counts_as_found() -> None:
    assert measured((BOXES, [1, 2, 1], [0.9, 0.8, 0.7]), target()) == 100.0
    assert measured((BOXES[:0], [], []), target()) == 0.0
    assert measured((BOXES, [2, 1, 2], [0.9, 0.8, 0.7]), target()) == 0.0  # other classes
    assert measured((BOXES[[0, 1]], [1, 2], [0.9, 0.8]), target()) == 75.0  # of class 1 one of two, of class 2 all
    one = target(BOXES[:1], (1,))
    assert measured((BOXES[[0, 0]], [1, 1], [0.9, 0.8]), one) == 100.0  # the second finds nothing, behind the first
    assert measured((BOXES[[2, 0]], [1, 1], [0.9, 0.8]), one) == 50.0  # an invented one in front
    assert measured((BOXES[[2, 0]], [1, 1], [0.8, 0.9]), one) == 100.0
    assert measured((BOXES[:1], [1], [0.9]), {"boxes": BOXES[:0], "labels": torch.zeros(0, dtype=torch.int64)}) == 0.0


@pytest.mark.parametrize(("iou", "score"), [(0.49, 100.0), (0.5, 100.0), (0.51, 0.0)])
def test_how_far_a_box_must_overlap(iou: float, score: float) -> None:
    half = torch.tensor([[0.0, 0, 10, 5]])  # 50 of 100 pixels
    assert measured((half, [1], [0.9]), target(BOXES[:1], (1,)), Detection(iou=iou)) == score


def test_each_box_takes_the_nearest_that_is_free() -> None:
    close = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]])
    found = torch.tensor([[0.0, 0, 10, 9.5], [0, 0, 10, 9.4]])
    assert measured((found, [1, 1], [0.9, 0.8]), target(close, (1, 1))) == 100.0


def test_only_the_surest_boxes_count() -> None:
    few = Detection(most=2)
    found = (BOXES[[2, 0, 1]], [1, 1, 1], [0.3, 0.9, 0.5])
    assert measured(found, target(BOXES[[0, 2]], (1, 1)), few) == 50.0
    assert few.statistics(answer(found), [target(BOXES[[0, 2]], (1, 1))]).shape == (1, 2, 4)


def test_images_are_counted_together_and_scored_alone() -> None:
    outputs = answer((BOXES[:1], [1], [0.9]), (BOXES[:1], [2], [0.95]), (BOXES[:0], [], []))
    wanted = [target(BOXES[:1], (1,)), target(BOXES[:1], (1,)), target(BOXES[:0], ())]
    rows = TASK.statistics(outputs, wanted)
    assert TASK.total(rows) == 50.0
    assert torch.equal(TASK.score(outputs, wanted).nan_to_num(-1.0), torch.tensor([1.0, 0.0, -1.0]))
    assert float(TASK.influence(rows).mean()) == pytest.approx(3 * 50.0 - 2 * np.mean([0.0, 100.0, 50.0]))


def test_groups_of_images_say_as_much_of_the_standard_error_as_all() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.full((400, 100, 4), -1.0)
    right = (torch.rand(400, generator=generator) > 0.4).float()
    rows[:, 0] = torch.stack([torch.ones(400), torch.rand(400, generator=generator), right, torch.ones(400)], 1)
    spread = float(TASK.influence(rows).std()) / 400**0.5
    drawn = [TASK.total(rows[torch.randint(400, (400,), generator=generator)]) for _ in range(100)]
    assert spread == pytest.approx(float(np.std(drawn)), rel=0.35)


def test_features_are_rows_that_every_head_says_spread_evenly() -> None:
    logits = torch.arange(5000.0).reshape(1, 5000, 1).expand(2, 5000, 3)
    found = TASK.features({"cls_logits": logits, "mask": torch.ones(2, 4, 3, 2, 2)})
    assert found.shape == (2, ROWS * 4)
    rows = found[0, : 3 * ROWS : 3].sort().values
    assert len(rows.unique()) == ROWS
    assert float(rows.diff().max()) < 3 * 5000 / ROWS
    assert len(set((rows % 6).tolist())) == 6  # whichever of six anchors a position
    assert torch.equal(TASK.features(Answer({"cls_logits": logits}, [], range(3))), found[:, : 3 * ROWS])


class Losing(Detector):
    """Two losses in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
        assert isinstance(images, list)
        assert self.training
        return {"one": self.norm(torch.stack(images)).mean(), "two": torch.tensor(2.0)}


def test_the_loss_is_the_sum_of_a_detectors_own() -> None:
    network, images = Losing().train(), torch.ones(2, 1, 4, 4)
    loss = TASK.training_loss(network, images, [target(), target()])
    assert loss.item() == pytest.approx(3.0, abs=1e-4)
    assert network.norm.training
    assert float(network.norm.running_mean) == 0.0  # type: ignore[arg-type]
    free = Detection(frozen_norms=False).training_loss(network, images, [target(), target()])
    assert free.item() == pytest.approx(2.0, abs=1e-4)
    assert float(network.norm.running_mean) > 0.0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"detection: _OneMore returns float32 \(2, 16\) in training"):
        TASK.training_loss(_OneMore(), images, [])


class _OneMore(nn.Flatten):
    def forward(self, images: Any, targets: Any = None) -> Tensor:
        return super().forward(torch.stack(images))


@pytest.mark.parametrize("batch", [([1, 2], [3, 4]), ((1, 2), (3, 4))])
def test_images_and_targets_are_lists_however_they_are_collated(batch: Any) -> None:
    assert TASK.split(batch) == ([1, 2], [3, 4])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (torch.ones(3), r"targets are float32 \(3,\): expected a list of dicts"),
        ([torch.ones(3)], r"of image 0 is float32 \(3,\): expected a dict of boxes"),
        ([target(), {"boxes": BOXES}], "of image 1 is a dict .*: expected a dict of boxes"),
        ([target(BOXES[:2])], r"has boxes float32 \(2, 4\) and labels int64 \(3,\): expected \(n, 4\) of floats"),
        ([target(BOXES.long())], r"has boxes int64 \(3, 4\)"),
        ([target(BOXES[:, [2, 1, 0, 3]])], r"has a box \[10.0, 0.0, 0.0, 10.0\]: expected corners"),
        (
            [target(labels=(1, 3, 1))],
            "has a label 3, but the network knows 1 … 2, 0 being the background: check num_cl",
        ),
        ([target(labels=(1, 0, 1))], "has a label 0, but the network knows 1 … 2"),
        ([target(BOXES.repeat(40, 1), (1,) * 120)], "has 120 boxes: set objective.kwargs.most, 100, to as many"),
    ],
)
def test_targets_that_no_detector_can_answer(wanted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.check(answer((BOXES, [1, 2, 1], [0.9, 0.8, 0.7])), wanted)


def test_what_takes_no_targets_is_no_detector() -> None:
    with pytest.raises(ValueError, match=r"detection: Flatten does not take images and targets .* another objective"):
        Detection().training_loss(nn.Flatten(), [torch.zeros(1, 4, 4)], [{}])


def test_what_is_no_detector_or_has_no_loss_of_outputs() -> None:
    with pytest.raises(ValueError, match="detection: Flatten is not one of torchvision's detectors: give one as it is"):
        TASK.outputs(nn.Flatten(), torch.ones(1, 1))
    for ask in (TASK.loss, TASK.losses, TASK.score):
        with pytest.raises(
            ValueError, match=r"a detector computes its loss inside.* take l1, l2, lasso or another one"
        ):
            ask(HEADS, [target()])
    with pytest.raises(ValueError, match=r"the network returns float32 \(1,\), expected a detector's heads"):
        TASK.features(torch.ones(1))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"iou": 0.0}, "iou = 0.0: must be above 0"), ({"iou": 1.5}, "iou = 1.5"), ({"most": 0}, "most = 0: must be 1")],
)
def test_settings_that_cannot_be(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_objective(ObjectiveConfig(name="detection", kwargs=kwargs))
