"""Distillation after a repair: nearer to the dense network, in the method's form, without labels."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from secateur.configs.schema import LayersConfig, Repair
from secateur.pruners.compressor import Compressor
from secateur.pruners.context import Context
from secateur.pruners.method import METHODS, Compressed
from secateur.pruners.repair import distill
from secateur.pruners.repair.distill import BATCH, _Augmented, augmented, distilled
from secateur.pruners.structure import Kept
from secateur.training.augmentation import random_crop
from secateur.training.tasks import CrossEntropy

IMAGES = (40, 24)


def compressor(method: str = "channels", name: str = "residual", **given: Any) -> Compressor:
    model = zoo.make(name)
    structure = METHODS[method].find(model, zoo.ZOO[name].shape, LayersConfig())
    return Compressor(Context(model, structure, given.pop("batches", zoo.batches(name, IMAGES)), **given))


def half(p: Compressor) -> Kept:
    return np.array([layer.choices[len(layer.choices) // 2] for layer in p.structure.layers])


def distance(p: Compressor, model: nn.Module, name: str = "residual") -> float:
    """Squared, of the outputs from the dense network's, on images that nothing was fitted to."""
    unseen = zoo.images(name, 100, seed=5)
    with torch.no_grad():
        return float((model(unseen) - p.dense(unseen)).square().sum(1).mean())


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("channels", "none"), ("channels", "sequential"), ("weights", "gram"), ("lowrank", "sequential")],
)
def test_it_is_nearer_to_the_dense_network_on_other_images_and_harms_nothing(method: str, kind: str) -> None:
    p = compressor(method, batches=zoo.batches("residual", (100, 100)))
    dense = copy.deepcopy(p.dense)
    repair = Repair.model_validate({"kind": kind, "distill": 8})
    fitted = p(half(p), repair.model_copy(update={"distill": 0}))
    found = p(half(p), repair)
    assert distance(p, found) < 0.98 * distance(p, fitted)
    assert same(p.dense, dense)
    assert not any(module.training for module in found.modules())
    assert found.state_dict().keys() == fitted.state_dict().keys()
    before = dict(fitted.named_buffers())
    assert all(torch.equal(buffer, before[name]) for name, buffer in found.named_buffers())  # batch norms' statistics


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter == 0 for name, parameter in model.named_parameters() if parameter.dim() > 1}


def test_pruned_weights_stay_zero() -> None:
    p = compressor("weights")
    unrepaired, found = p.compress(half(p)).model, p(half(p), Repair(distill=2, guard=False))
    gone = zeros(unrepaired)
    assert sum(int(mask.sum()) for mask in gone.values()) > 100
    assert all(torch.equal(mask, gone[name]) for name, mask in zeros(found).items())
    assert not same(found, p(half(p), Repair(guard=False)))


def test_codes_stay_on_their_grid() -> None:
    p = compressor("bits")
    kept = np.array([4 for _ in p.structure.layers])
    compressed = p.compress(kept)
    found = distilled(compressed, p.dense, p.context.calibration, CrossEntropy(), passes=2, seed=0)
    held = copy.deepcopy(found)
    assert compressed.hold is not None
    compressed.hold(held)
    for (name, parameter), other in zip(found.named_parameters(), held.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-7, msg=name)
    assert not same(found, compressed.model)


def test_it_is_the_same_every_time_whatever_the_batches_and_the_labels() -> None:
    p = compressor()
    repair = Repair(kind="none", distill=2, guard=False)
    first = p(half(p), repair)
    torch.manual_seed(99)
    assert same(p(half(p), repair), first)
    images = torch.cat([batch for batch, _ in p.context.calibration])
    other = [(part, torch.full((len(part),), -7)) for part in images.split(11)]
    assert same(compressor(batches=other)(half(p), repair), first)
    assert not same(compressor(seed=1)(half(p), repair), first)


def test_steps_are_told() -> None:
    p, seen = compressor(), list[tuple[int, int]]()
    p(half(p), Repair(kind="none", distill=3), lambda step, total, _loss: seen.append((step, total)))
    steps = 3 * -(-(sum(IMAGES) - 7) // BATCH)  # a tenth is held out
    assert seen == [(number, steps) for number in range(1, steps + 1)]
    seen.clear()
    p(p.structure.units, Repair(distill=3), lambda step, total, _loss: seen.append((step, total)))
    assert not seen  # nothing cut, nothing learnt


def test_what_is_held_out_is_not_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt = []

    def watch(compressed: Compressed, _dense: nn.Module, batches: Any, *_args: Any, **_kwargs: Any) -> nn.Module:
        learnt.append(torch.cat([images for images, _ in batches]))
        return compressed.model

    monkeypatch.setattr("secateur.pruners.compressor.distilled", watch)
    p = compressor()
    every = torch.cat([images for images, _ in p.context.calibration])
    for guard in (True, False):
        p(half(p), Repair(kind="none", distill=1, guard=guard))
    assert torch.equal(learnt[0], every[7:])
    assert torch.equal(learnt[1], every)


def spoilt(harm: float) -> Callable[..., nn.Module]:
    def make(compressed: Compressed, *_args: Any, **_kwargs: Any) -> nn.Module:
        model = copy.deepcopy(compressed.model)
        with torch.no_grad():
            model.get_parameter("linear.bias").add_(harm)
        return model

    return make


@pytest.mark.parametrize("harm", [10.0, float("nan"), None])
def test_what_takes_it_further_off_is_not_taken(harm: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    p = compressor()
    fitted = p(half(p), Repair())
    reason = "the squared distance of the outputs .* on 7 calibration images that it has not learnt from"
    if harm is None:
        monkeypatch.setattr(distill, "SETTINGS", distill.SETTINGS.model_copy(update={"learning_rate": 1e30}))
        reason = "(loss|weight) .*is (nan|inf)|not finite"
    else:
        monkeypatch.setattr("secateur.pruners.compressor.distilled", spoilt(harm))
    with pytest.warns(RuntimeWarning, match=f"the distillation was not taken: .*({reason})") as told:
        assert same(p(half(p), Repair(distill=4)), fitted)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    if harm is not None:
        with warnings.catch_warnings(action="error"):
            assert not same(p(half(p), Repair(distill=4, guard=False)), fitted)


def test_a_single_image_is_not_enough() -> None:
    p = compressor(batches=zoo.batches("residual", (1,)))
    fitted = p.compress(half(p)).model
    with pytest.warns(RuntimeWarning, match="the distillation was not taken: there are no other calibration images"):
        assert same(p(half(p), Repair(kind="none", distill=1)), fitted)


class Inside(CrossEntropy):
    """Computes its loss in the network, as detectors do."""

    name = "inside"

    def training_loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        return torch.zeros(())


def test_what_cannot_be_distilled_is_refused_in_a_line() -> None:
    p = compressor(objective=Inside())
    with pytest.raises(ValueError, match=r"^repair\.final\.distill = 3: inside computes its loss inside .* to 0$"):
        p(half(p), Repair(distill=3))
    p(half(p), Repair(kind="none"))
    p = compressor()
    p.dense.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^repair\.final\.distill = 3: all parameters .* are frozen: .* to 0$"):
        p(half(p), Repair(distill=3))
    p(half(p), Repair(kind="none"))


def test_frozen_parameters_stay() -> None:
    p = compressor()
    p.dense.get_parameter("linear.bias").requires_grad_(False)
    fitted = p.compress(half(p))
    found = distilled(fitted, p.dense, p.context.calibration, CrossEntropy(), passes=1, seed=0)
    moved = [name for name, x in found.named_parameters() if not torch.equal(x, fitted.model.get_parameter(name))]
    assert "linear.bias" not in moved
    assert len(moved) > 5


def test_images_are_moved_and_mirrored_and_all_else_is_taken_as_it_is() -> None:
    for size, padding in ((8, 1), (16, 4)):
        images = torch.arange(3.0 * size * size).reshape(1, 3, size, size)
        padded = nn.functional.pad(images, (padding,) * 4, mode="reflect")[0]
        places = range(2 * padding + 1)
        possible = [padded[:, i : i + size, j : j + size] for i in places for j in places]
        possible += [view.flip(-1) for view in possible]
        found = augmented(images.expand(300, -1, -1, -1), torch.Generator().manual_seed(0))
        numbers = {next(i for i, view in enumerate(possible) if torch.equal(view, image)) for image in found}
        assert len(numbers) > 0.7 * min(300, len(possible))
    generator = torch.Generator()
    for other in (torch.arange(6), torch.randn(2, 3), {"a": images}, (images, images), [images[0]]):
        assert augmented(other, generator) is other
    assert augmented(torch.randn(2, 3, 1, 4), generator).shape == (2, 3, 1, 4)
    black = random_crop(torch.ones(200, 1, 16, 16), generator)
    assert black.min() == 0.0


@pytest.mark.parametrize("count", [1, 31, 33, 64, 1001, 1030])
def test_every_image_is_seen_once_a_pass_in_batches_of_about_one_size(count: int) -> None:
    numbers = torch.arange(count)
    walk = _Augmented([(part, part) for part in numbers.split(300)], seed=0)
    passes = []
    for number in range(2):
        walk.set_epoch(number)
        batches = list(walk)
        assert len(batches) == len(walk)
        assert all(len(batch) <= BATCH for batch in batches)
        passes.append(torch.cat(batches))
        assert torch.equal(passes[-1].sort().values, numbers)
    assert count == 1 or not torch.equal(*passes)
    if count > 1:
        assert min(map(len, batches)) > 1


def test_norms_are_not_in_training_nor_is_dropout() -> None:
    """What was not cut has nothing to learn, which dropout and a batch's statistics would hide."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop = zoo.make("vgg"), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.body(x))

    losses: list[float] = []
    dense = Dropping().eval()
    whole = Compressed(copy.deepcopy(dense), {}, cut=frozenset({"body.0.0"}))
    distilled(
        whole, dense, zoo.batches("vgg", (40,)), CrossEntropy(), passes=1, seed=0,
        on_step=lambda _step, _total, loss: losses.append(loss),
    )  # fmt: skip
    assert max(losses) < 1e-6
