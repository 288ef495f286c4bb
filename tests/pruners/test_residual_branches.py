"""What part of a residual sum a branch is, against hooks and arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from secateur.pruners.context import Context
from secateur.pruners.repair import residual_branches as module
from secateur.pruners.repair.residual_branches import residual_branch_variance


def context(name: str, cut: str = "inner", model: nn.Module | None = None) -> Context:
    return Context(model or zoo.make(name), zoo.structure(name, cut), zoo.batches(name))


def heard(model: nn.Module, name: str, images: Tensor, given: bool = False) -> Tensor:
    """What a module says, or is given, as a copy: somebody may add to it in place."""
    seen: list[Tensor] = []
    at = model.get_submodule(name)
    hook = at.register_forward_hook(lambda _m, args, out: seen.append((args[0] if given else out).clone()))
    with torch.no_grad():
        model(images)
    hook.remove()
    return seen[0].double()


def part(branch: Tensor, total: Tensor) -> float:
    """Variance over mean square, feature by feature in numpy."""
    over, under = branch.flatten(1).numpy(), total.flatten(1).numpy()
    return float(over.var(axis=0).sum() / (under**2).mean(axis=0).sum())


@pytest.mark.parametrize("cut", ["inner", "all"])
def test_a_branch_over_the_sum_it_joins(cut: str) -> None:
    """`cifar_resnet`'s sums are written out, torchvision's are made in place."""
    for name, blocks, ends in (
        ("residual", ["layer1.0", "layer2.0", "layer3.0"], ("bn2", "shortcut")),
        ("downsample", ["block1", "block2"], ("bn2", "downsample")),
    ):
        seen = context(name, cut)
        images = torch.cat([images for images, _ in seen.calibration])
        found = dict(zip([layer.name for layer in seen.structure.layers], residual_branch_variance(seen), strict=True))
        for block in blocks:
            branch = heard(seen.model, f"{block}.{ends[0]}", images)
            plain = block == "block1"  # its shortcut is no module
            shortcut = heard(seen.model, block, images, given=True) if plain else None
            other = heard(seen.model, f"{block}.{ends[1]}", images) if shortcut is None else shortcut
            assert found[f"{block}.conv1"] == pytest.approx(part(branch, branch + other), rel=1e-4)


def test_in_a_longer_branch_the_share_is_that_of_its_end() -> None:
    """Layers of a bottleneck count alike, the stem in front of it whole: no sum has it on one side only."""
    seen = context("bottleneck")
    images = torch.cat([images for images, _ in seen.calibration])
    branch, other = heard(seen.model, "1.bn3", images), heard(seen.model, "1.downsample", images)
    expected = part(branch, branch + other)
    # the stem's consumers are the branch, and the shortcut, which is the rest of the same sum
    stem = (expected + part(other, branch + other)) / 2
    assert residual_branch_variance(seen) == pytest.approx([stem, expected, expected], rel=1e-4)


class Nested(nn.Module):
    """A branch within a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Conv2d(3, 6, 1)
        self.inner = nn.Sequential(nn.Conv2d(6, 7, 1), nn.Conv2d(7, 6, 1))
        self.last = nn.Conv2d(6, 3, 1)
        self.head = zoo.Head(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(x)
        y = y + self.inner(y)
        out: Tensor = self.head(x + self.last(y))
        return out


def test_sums_within_a_branch_multiply() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Nested().eval()
    structure = zoo.find_layers(model, zoo.RGB)
    images = zoo.images("vgg", 50)
    with torch.no_grad():
        outer = model.outer(images).double()
        inner = heard(model, "inner", images)
        last = heard(model, "last", images)
    expected = part(inner, outer + inner) * part(last, images.double() + last)
    found = residual_branch_variance(Context(model, structure, [(images, torch.zeros(50))]))
    assert found[structure.index("inner.0")] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["vgg", "plain_bias", "densenet", "embedded", "by_value"])
def test_where_nothing_is_added_all_of_it_counts(name: str) -> None:
    """Of a position embedding too: it is a parameter, and all images see the same."""
    assert residual_branch_variance(context(name)).tolist() == [1.0] * len(zoo.structure(name).layers)


def test_a_branch_that_says_nothing_has_no_share() -> None:
    deaf = zoo.make("residual")
    deaf.get_parameter("layer2.0.bn2.weight").data.zero_()
    found = residual_branch_variance(context("residual", model=deaf))
    assert found[1] == 0.0
    assert np.all(found[[0, 2]] > 0.01)


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = context("residual")
    first = residual_branch_variance(seen)
    monkeypatch.setattr(module, "_measure", lambda _context: pytest.fail("measured again"))
    assert np.array_equal(residual_branch_variance(seen), first)


def test_a_network_without_sums_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred images' feature maps of a VGG are gigabytes."""
    monkeypatch.setattr(module._Sums, "run", lambda self: pytest.fail("it was run"))
    plain = context("vgg")
    assert residual_branch_variance(plain).tolist() == [1.0] * len(plain.structure.layers)
    with pytest.raises(pytest.fail.Exception, match="it was run"):
        residual_branch_variance(context("residual"))
