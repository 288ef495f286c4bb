"""What a task is: losses, scores and measures against other libraries, and shapes that are refused, never broadcast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score, r2_score
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.configs.schema import ObjectiveConfig
from secateur.training.inputs import (
    Integers,
    as_json,
    call,
    count,
    flat,
    joined,
    parts,
    picked,
    random_inputs,
    shape_of,
    taken,
    told,
)
from secateur.training.objective import OBJECTIVES, Objective, make_objective, settings_of
from secateur.training.tasks import CrossEntropy, Multilabel, Regression, Segmentation


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2])
PIXELS = LABELS[:, None, None].repeat(1, 4, 5).clone()
PIXELS[:, 0] = 255
GOOD: dict[str, tuple[Any, Any]] = {
    "cross-entropy": (drawn(8, 3), LABELS),
    "segmentation": (drawn(8, 3, 4, 5), PIXELS),
    "regression": (drawn(8, 2), drawn(8, 2) * 2),
    "multilabel": (drawn(8, 4), (drawn(8, 4) > 0.3).float()),
}


class TrainingOutputs(NamedTuple):
    """As torchvision's GoogLeNet's."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


@pytest.mark.parametrize(
    ("outputs", "options", "others"),
    [
        (TrainingOutputs(drawn(8, 3), drawn(8, 3) + 1, drawn(8, 3) * 2), {}, [1, 2]),
        ((drawn(8, 3), drawn(8, 3) * 2), {}, [1]),
        ((drawn(8, 3), drawn(8, 3) * 2), {"output": 0}, []),  # told which: the other one is something else
        ({"out": drawn(8, 3), "aux": drawn(8, 3) * 2, "features": drawn(8, 5)}, {}, [1]),
        ({"aux": drawn(8, 3), "logits": drawn(8, 3) * 2}, {"output": "aux"}, []),
        (drawn(8, 3), {}, []),
    ],
    ids=["named", "tuple", "told", "dict", "other", "one"],
)
def test_auxiliary_outputs_count_in_training_alone(outputs: Any, options: dict[str, Any], others: list[int]) -> None:
    tensors = [outputs] if isinstance(outputs, Tensor) else [tensor for _, tensor in parts(outputs)]
    alone = [F.cross_entropy(tensors[number], LABELS) for number in (0, *others)]
    objective = CrossEntropy(auxiliary=0.25, **options)
    torch.testing.assert_close(objective.loss_in_training(outputs, LABELS), alone[0] + 0.25 * sum(alone[1:]))
    assert CrossEntropy(auxiliary=0, **options).loss_in_training(outputs, LABELS) == alone[0]
    if options or type(outputs) is not tuple:
        assert objective.loss(outputs, LABELS) == alone[0]
        assert torch.equal(objective.score(outputs, LABELS), objective.score(tensors[0], LABELS))


def test_auxiliary_outputs_weigh_nothing_or_more() -> None:
    with pytest.raises(ValueError, match=r"objective\.kwargs\.auxiliary = -1: must be 0 or more"):
        CrossEntropy(auxiliary=-1)


def test_every_objective_is_looked_at_here() -> None:
    assert set(GOOD) | {"detection"} == set(OBJECTIVES)  # whose outputs are no tensors: test_detection.py


@pytest.mark.parametrize("name", GOOD)
def test_what_must_hold_for_every_objective(name: str) -> None:
    objective, (outputs, targets) = OBJECTIVES[name](), GOOD[name]
    objective.check(outputs, targets)
    objective.check_targets(outputs, targets)
    alone = [slice(i, i + 1) for i in range(8)]
    expected = torch.stack([objective.loss(outputs[one], targets[one]) for one in alone])
    assert torch.allclose(objective.losses(outputs, targets), expected, rtol=1e-5)
    assert objective.loss(outputs, targets).shape == ()
    scores = objective.score(outputs, targets)
    assert torch.allclose(scores, torch.cat([objective.score(outputs[one], targets[one]) for one in alone]))
    whole = objective.total(objective.statistics(outputs, targets))
    halves = [objective.statistics(outputs[part], targets[part]) for part in (slice(3), slice(3, 8))]
    assert whole == pytest.approx(objective.total(torch.cat(halves)))
    assert 0.0 <= whole <= 100.0
    for wrapped in ({"logits": outputs, "other": outputs * 2}, {"aux": outputs * 2, "out": outputs}, [outputs]):
        assert torch.equal(objective.loss(wrapped, targets), objective.loss(outputs, targets))
        assert torch.equal(objective.features(wrapped), objective.features(outputs))
    second = make_objective(ObjectiveConfig(name=name, kwargs={"output": 1}))
    assert torch.equal(second.loss((outputs * 2, outputs), targets), objective.loss(outputs, targets))
    assert make_objective(settings_of(second)) == second
    with pytest.raises(ValueError, match=r"returns a tuple \(0 float32 .* say which with objective.kwargs.output"):
        objective.loss((outputs, outputs), targets)
    with pytest.raises(ValueError, match=r"objective.kwargs.output=1: the network returns a dict"):
        second.loss({"a": outputs}, targets)


@pytest.mark.parametrize("name", GOOD)
def test_a_perfect_and_a_blown_up_network(name: str) -> None:
    objective, (outputs, targets) = OBJECTIVES[name](), GOOD[name]
    right = {
        "cross-entropy": lambda: 9.0 * F.one_hot(targets, 3),
        "segmentation": lambda: 9.0 * F.one_hot(targets.where(targets != 255, 0), 3).movedim(-1, 1),
        "regression": lambda: targets,
        "multilabel": lambda: 9.0 * (2 * targets - 1),
    }[name]()
    assert objective.total(objective.statistics(right, targets)) == 100.0
    assert objective.total(objective.statistics(torch.full_like(outputs, math.nan), targets)) == 0.0
    chance = objective.chance(targets)
    assert chance is not None
    assert 0.0 <= chance < 100.0


@pytest.mark.parametrize(
    ("name", "outputs", "targets"),
    [
        ("cross-entropy", drawn(8, 10, 8, 8), LABELS),  # pixels
        ("cross-entropy", drawn(8, 64, 10), LABELS),  # tokens
        ("cross-entropy", drawn(64, 10), LABELS),  # rows of patches
        ("cross-entropy", drawn(8), LABELS),
        ("cross-entropy", drawn(8, 1), LABELS),  # one logit for two classes
        ("cross-entropy", drawn(8, 3), LABELS.float()),
        ("cross-entropy", drawn(8, 3), LABELS > 1),
        ("cross-entropy", drawn(8, 3), LABELS[:, None]),
        ("cross-entropy", drawn(8, 3), drawn(8, 4)),
        ("cross-entropy", drawn(8, 3), [0, 1, 2, 0, 1, 2, 2, 2]),
        ("segmentation", drawn(8, 3), LABELS),
        ("segmentation", drawn(8, 3, 4, 5), LABELS),
        ("segmentation", drawn(8, 3, 4, 5), PIXELS[:, :2, :2]),  # a smaller map
        ("segmentation", drawn(8, 1, 4, 5), PIXELS),
        ("segmentation", drawn(8, 3, 4, 5), PIXELS.float()),
        ("regression", drawn(8, 2), drawn(8)),
        ("regression", drawn(8), drawn(8, 8)),  # (N,) against (N, N) would broadcast
        ("regression", drawn(8, 2, 3), drawn(8, 3, 2)),
        ("regression", drawn(8, 2), torch.ones(8, 2, dtype=torch.int64)),
        ("regression", drawn(4, 2), drawn(8, 2)),
        ("multilabel", drawn(8, 4), LABELS),
        ("multilabel", drawn(8, 4), drawn(1, 4)),
        ("multilabel", drawn(8, 4, 2), drawn(8, 4)),
    ],
)
def test_shapes_are_compared_and_never_broadcast(name: str, outputs: Tensor, targets: Any) -> None:
    objective = OBJECTIVES[name]()
    for what in (objective.loss, objective.losses, objective.score, objective.statistics, objective.check):
        with pytest.raises(ValueError, match=r"float32 \(|a list") as told_of:
            what(outputs, targets)
        assert "\n" not in str(told_of.value)


def test_shapes_that_can_mean_one_thing_only() -> None:
    logits = drawn(8, 3)
    for shape in ((8, 3, 1, 1), (8, 3, 1)):
        assert CrossEntropy().loss(logits.reshape(shape), LABELS) == CrossEntropy().loss(logits, LABELS)
        assert torch.equal(CrossEntropy().features(logits.reshape(shape)), logits)
    assert Regression().loss(drawn(8, 1), drawn(8) + 1) == pytest.approx(1.0, rel=1e-5)
    segmentation = Segmentation()
    assert segmentation.loss(drawn(8, 3, 4, 5), PIXELS[:, None]) == segmentation.loss(drawn(8, 3, 4, 5), PIXELS)


def test_labels_that_the_network_does_not_know() -> None:
    for objective, outputs, targets in (
        (CrossEntropy(), drawn(8, 3), LABELS + 1),
        (Segmentation(), drawn(8, 3, 4, 5), PIXELS.where(PIXELS != 2, 3)),
    ):
        with pytest.raises(
            ValueError, match=r"a label is 3, but the network tells 3 classes \(0 … 2\): check num_classes"
        ):
            objective.check_targets(outputs, targets)
    with pytest.raises(ValueError, match="a label is -1, but"):
        CrossEntropy().check_targets(drawn(8, 3), LABELS - 1)
    with pytest.raises(ValueError, match="a target is 2, expected 0 or 1"):
        Multilabel().check_targets(drawn(8, 4), torch.full((8, 4), 2.0))


def test_images_that_do_not_count() -> None:
    objective, logits = CrossEntropy(), drawn(8, 3)
    some = LABELS.clone()
    some[[1, 4]] = -100
    counted = [0, 2, 3, 5, 6, 7]
    assert torch.allclose(objective.loss(logits, some), objective.loss(logits[counted], LABELS[counted]))
    assert objective.total(objective.score(logits, some)) == objective.total(
        objective.score(logits[counted], LABELS[counted])
    )
    assert objective.losses(logits, some)[1] == 0.0
    none = torch.full_like(LABELS, -100)
    assert objective.loss(logits, none) == 0.0
    assert objective.chance(none) is None
    assert Segmentation().loss(drawn(8, 3, 4, 5), torch.full_like(PIXELS, 255)) == 0.0


def test_one_hot_and_soft_labels_are_classes() -> None:
    objective, logits = CrossEntropy(), drawn(8, 3)
    hot = F.one_hot(LABELS, 3)
    assert torch.allclose(objective.loss(logits, hot), objective.loss(logits, LABELS))
    assert torch.equal(objective.score(logits, hot), objective.score(logits, LABELS))
    assert objective.chance(hot) == objective.chance(LABELS) == 50.0
    soft = 0.9 * hot + 0.1 / 3
    assert torch.allclose(objective.loss(logits, soft), F.cross_entropy(logits, LABELS, label_smoothing=0.1))


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_the_mean_iou_is_scikit_learns(classes: int, images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, 3, 4, generator=generator)
    labels = torch.randint(0, classes, (images, 3, 4), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    counted = labels != 255
    if not counted.any():
        return
    truth, answer = labels[counted].numpy(), logits.argmax(1)[counted].numpy()
    present = np.union1d(truth, answer)
    expected = jaccard_score(truth, answer, labels=present, average="macro")
    objective = Segmentation()
    assert objective.total(objective.statistics(logits, labels)) == pytest.approx(100 * expected)


@settings(max_examples=25)
@given(st.integers(2, 20), st.integers(1, 3), st.integers(0, 10**6))
def test_r2_is_scikit_learns_and_never_below_0(images: int, numbers: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(images, numbers, generator=generator)
    outputs = truth + torch.rand(1, generator=generator) * 2 * torch.randn(images, numbers, generator=generator)
    expected = r2_score(truth.numpy(), outputs.numpy(), multioutput="variance_weighted")
    found = Regression().total(Regression().statistics(outputs, truth))
    assert found == pytest.approx(100 * max(0.0, expected), abs=1e-3)


def test_influence_of_a_mean_are_its_terms_and_of_another_measure_they_tell_its_error() -> None:
    hits = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert CrossEntropy().influence(hits).tolist() == [100.0, 0.0, 100.0, 100.0]
    # R² of many draws scatters as the jackknife of one says
    generator = torch.Generator().manual_seed(0)
    found, errors = [], []
    for _ in range(60):
        truth = torch.randn(100, 1, generator=generator)
        statistics = Regression().statistics(truth + 0.5 * torch.randn(100, 1, generator=generator), truth)
        found.append(Regression().total(statistics))
        errors.append(float(Regression().influence(statistics).std()) / 10.0)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.3)


def test_dense_features_are_a_grid() -> None:
    features = Segmentation().features(drawn(2, 3, 100, 40))
    assert features.shape == (2, 3 * 25 * 20)
    assert torch.equal(features, drawn(2, 3, 100, 40)[:, :, ::4, ::2].flatten(1))


# ---- batches


X, Y = drawn(4, 1, 2, 2), torch.arange(4)


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        ((X, Y), X),
        ([X, Y], X),
        ((X, X + 1, Y), (X, X + 1)),
        ([[X, X + 1], Y], (X, X + 1)),
        ({"a": X, "b": X + 1, "labels": Y}, {"a": X, "b": X + 1}),
        ({"image": X, "mask": Y}, {"image": X}),
        (({"a": X}, Y), {"a": X}),
    ],
)
def test_batches_are_taken_apart(batch: Any, inputs: Any) -> None:
    found, targets = CrossEntropy().split(batch)
    assert torch.equal(targets, Y)
    assert type(found) is type(inputs)
    assert torch.equal(flat(found), flat(inputs))
    assert count(found) == 4


def test_lists_of_images_stay_lists_where_targets_are_one_an_image() -> None:
    images = [drawn(1, 5, 5), drawn(1, 7, 4)]
    found, targets = CrossEntropy().split((images, [{"boxes": drawn(1, 4)}, {"boxes": drawn(3, 4)}]))
    assert found is images
    assert count(found) == count(targets) == 2
    assert picked(found, [1, 0])[0] is images[1]
    assert len(taken(targets, slice(1, 2))[0]["boxes"]) == 3


@dataclass
class Out:
    scores: Tensor
    hidden: Tensor


def test_trees_of_tensors_keep_their_form() -> None:
    tree = {"a": X, "b": (X + 1, [Y[:1], Y[1:2], Y[2:3], Y[3:]])}
    parts = [taken(tree, slice(1)), taken(tree, slice(1, 4))]
    again = joined(parts)
    assert torch.equal(again["a"], X)
    assert torch.equal(again["b"][0], X + 1)
    assert [int(one) for one in again["b"][1]] == [0, 1, 2, 3]
    assert flat(Out(drawn(4, 2), drawn(4, 3, 5))).shape == (4, 17)
    assert torch.equal(CrossEntropy(output="scores").features(Out(drawn(4, 2), drawn(4, 3))), drawn(4, 2))
    with pytest.raises(
        ValueError, match=r"returns a list \(0 float32 \(4, 2\), 1 float32 \(3, 2\)\): expected tensors"
    ):
        flat([drawn(4, 2), drawn(3, 2)])


@pytest.mark.parametrize(
    ("inputs", "shape", "text"),
    [
        (drawn(4, 3, 8, 8), (3, 8, 8), "3×8×8"),
        (drawn(4, 7), (7,), "7"),
        (torch.tensor([[1, 5], [0, 2]]), Integers((2,), 5), "2 int64"),
        ((drawn(4, 3), drawn(4, 2, 2)), ((3,), (2, 2)), "3, 2×2"),
        (
            {"x": drawn(4, 3), "m": torch.ones(4, 3, dtype=torch.bool)},
            {"x": (3,), "m": Integers((3,), 1, "bool")},
            "x 3, m 3 bool",
        ),
        ([drawn(3, 5, 5), drawn(3, 6, 7)], [(3, 5, 5)], "any size"),
    ],
)
def test_others_are_made_of_the_same_shape(inputs: Any, shape: Any, text: str) -> None:
    assert shape_of(inputs) == shape
    assert told(shape) == text
    made = random_inputs(shape, 4, torch.Generator().manual_seed(0))
    assert count(made) == 4
    assert shape_of(made) == shape or isinstance(shape, Integers)
    assert isinstance(as_json(shape), list | dict)
    if isinstance(shape, Integers):
        assert made.dtype == torch.int64
        assert 0 <= int(made.min()) <= int(made.max()) <= 5


def test_several_inputs_are_several_arguments() -> None:
    class Sum(nn.Module):
        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return one - other

    assert torch.allclose(call(Sum(), (X, X + 1)), -torch.ones_like(X))
    assert torch.allclose(call(Sum(), {"other": X, "one": X + 1}), torch.ones_like(X))


# ---- one's own


class Margin(Objective):
    name, measure = "margin", "margin %"

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return F.multi_margin_loss(outputs, targets)

    def score(self, outputs: Any, targets: Any) -> Tensor:
        return (outputs.argmax(1) == targets).float()


def test_an_objective_of_ones_own_needs_a_loss_and_a_score() -> None:
    objective, logits = Margin(), drawn(8, 3)
    objective.check(logits, LABELS)
    assert objective.losses(logits, LABELS).mean() == pytest.approx(float(objective.loss(logits, LABELS)))
    assert objective.total(objective.statistics(logits, LABELS)) == CrossEntropy().total(
        CrossEntropy().score(logits, LABELS)
    )
    assert settings_of(objective) == ObjectiveConfig(name="margin")


class Broadcast(Margin):
    def score(self, outputs: Any, targets: Any) -> Tensor:
        return (outputs == targets[:, None]).float()


class PerCent(Margin):
    def score(self, outputs: Any, targets: Any) -> Tensor:
        return torch.full((len(targets),), 100.0)


class OneFeature(Margin):
    def features(self, outputs: Any) -> Tensor:
        return outputs.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Broadcast(), r"margin: score of 8 images are float32 \(8, 3\): expected \(8,\)"),
        (PerCent(), "margin: the score of an image is 100: it must be 1 at most"),
        (OneFeature(), "margin: features of 8 images have 1 rows"),
    ],
)
def test_an_objective_of_ones_own_is_checked(objective: Objective, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective.check(drawn(8, 3), LABELS)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("segmentaton", {}, "no objective 'segmentaton', only .* – did you mean segmentation\\?; one of your own"),
        ("segmentation", {"ignored": 0}, r"objective.kwargs=\{'ignored': 0\} for segmentation: .*ignored"),
        ("os:system", {}, "objective.name='os:system' names code to import and run"),
    ],
)
def test_objectives_that_cannot_be_made(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_objective(ObjectiveConfig(name=name, kwargs=kwargs))


def test_what_is_given_as_an_objective_must_be_one() -> None:
    given: Any = Margin
    with pytest.raises(TypeError, match=r"objective= is the class Margin: make one, Margin\(\)"):
        make_objective(ObjectiveConfig(), given)
    with pytest.raises(
        ValueError, match=r"objective.name=collections:OrderedDict is a OrderedDict; an objective derives from"
    ):
        make_objective(ObjectiveConfig(name="collections:OrderedDict"), trust_code=True)
