"""Differences, answers and measures are those that are counted by hand; what differs in form is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.runtimes.parity import compare
from secateur.training.tasks import CrossEntropy, Multilabel, Regression, Segmentation


def batches(*counts: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 4, generator=generator), torch.arange(n) % 4) for n in counts]


def test_figures_are_those_counted_by_hand():
    seen = batches(6, 5)
    x = torch.cat([images for images, _ in seen])
    labels = torch.cat([targets for _, targets in seen])
    other = x.clone()
    other[:, 0] += 0.3
    other[7] = other[7].roll(1)
    found = compare(nn.Identity(), lambda images: other[(x[:, None] == images).all(2).any(1)], seen, CrossEntropy())
    # the first image is looked at once more, by itself
    y, z = torch.cat([x[:1], x]), torch.cat([other[:1], other])
    spread = y.std(correction=0)
    assert found.parity.largest == pytest.approx(float((y - z).abs().max() / spread), rel=1e-5)
    assert found.parity.mean == pytest.approx(float((y - z).abs().mean() / spread), rel=1e-5)
    changed = int((x.argmax(1) != other.argmax(1)).sum())
    assert changed > 0
    assert (found.parity.changed, found.parity.answers, found.parity.images) == (changed, 11, 11)
    assert found.torch == pytest.approx(100 * float((x.argmax(1) == labels).float().mean()))
    assert found.runtime == pytest.approx(100 * float((other.argmax(1) == labels).float().mean()))


def test_without_labels_there_is_no_measure():
    found = compare(nn.Identity(), lambda images: images, batches(4), CrossEntropy(), labelled=False)
    assert (found.torch, found.runtime) == (None, None)
    assert (found.parity.largest, found.parity.mean, found.parity.changed) == (0.0, 0.0, 0)


def test_a_file_for_one_number_of_images_is_found_out():
    def fixed(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, images])[:4]

    with pytest.raises(ValueError, match=r"the file returns tensors of .*\(2, 4\).*, the network of .*\(1, 4\)"):
        compare(nn.Identity(), fixed, batches(4), CrossEntropy())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_nothing_that_is_not_finite_passes_for_close(wrong):
    def other(images: torch.Tensor) -> torch.Tensor:
        found = images.clone()
        found[-1, -1] = wrong
        return found

    found = compare(nn.Identity(), other, batches(4, 3), CrossEntropy()).parity
    assert not found.largest <= 1e9
    assert not found.mean <= 1e9


def test_answers_are_what_each_task_decides():
    scores = torch.randn(3, 4, 2, 2)
    assert torch.equal(Segmentation().answers(scores), scores.argmax(1))
    assert torch.equal(Multilabel().answers(scores[:, :, 0, 0]), scores[:, :, 0, 0] > 0)
    assert Regression().answers(scores) is None
