"""A compressed network of one's own class, trained on outside, saved and loaded by its class."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from small import Small, batches, make, plan_of
from torch import nn

import secateur


@pytest.fixture(scope="module")
def applied(tmp_path_factory) -> secateur.Applied:
    folder = tmp_path_factory.mktemp("saved")
    session = make(folder, "channels")
    return secateur.apply(plan_of(session), session, finetune=0, out=folder / "small")


def trained(model: nn.Module) -> nn.Module:
    """By a loop of the caller's own."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    for images, labels in batches(2, 7):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval()


MADE = {"class": Small, "network": Small(), "function": lambda: Small(), "partial": partial(Small)}


@pytest.mark.parametrize("model", MADE.values(), ids=MADE)
def test_a_class_or_what_makes_one_is_enough(applied, model):
    images = batches(1, 8)[0][0]
    again = secateur.load(applied.folder, model=model)
    assert torch.equal(again(images), applied.model.cpu()(images))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in Small().parameters())


def test_what_was_trained_elsewhere_comes_back(applied, tmp_path):
    small = trained(secateur.load(applied.folder, model=Small))
    small.out.bias.requires_grad_(False)
    folder = secateur.save(small, tmp_path / "tuned", like=applied.folder)
    again, images = secateur.load(folder, model=Small), batches(1, 8)[0][0]
    assert torch.equal(again(images), small(images))
    assert not torch.equal(again(images), applied.model(images))
    assert [name for name, p in again.named_parameters() if not p.requires_grad] == ["out.bias"]
    once_more = secateur.save(nn.DataParallel(again), tmp_path / "again", like=folder)  # wrapped, and of a saved one
    assert torch.equal(secateur.load(once_more, model=Small)(images), small(images))


@pytest.mark.parametrize("method", ["weights", "lowrank", "bits"])
def test_of_every_method(method, tmp_path):
    session = make(tmp_path, method, **({"budget": {"size": 0.3}} if method == "bits" else {}))
    done = secateur.apply(plan_of(session, 0.4), session, finetune=0, out=tmp_path / "small")
    with torch.no_grad():
        done.model.out.bias.add_(1.0)
    folder = secateur.save(done.model, tmp_path / "moved", like=done.folder)
    again = secateur.load(folder, model=Small).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in done.model.cpu().state_dict().items())


def test_zeros_that_are_filled_are_said(tmp_path):
    session = make(tmp_path, "weights")
    done = secateur.apply(plan_of(session, 0.4), session, finetune=0, out=tmp_path / "small")
    gone = sum(int((p == 0).sum()) for p in done.model.parameters() if p.dim() > 1)
    small = secateur.load(done.folder, model=Small)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter += 0.5 * (parameter == 0)
    assert gone > 100
    with pytest.warns(RuntimeWarning, match=rf"^{gone:,} weights that are zero in .* train with apply"):
        secateur.save(small, tmp_path / "filled", like=done.folder)


def test_what_cannot_be_saved_or_made_is_said(applied, tmp_path):
    small = secateur.load(applied.folder, model=Small)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for model, folder, like, message in (
        (small, "taken", applied.folder, "is not empty, and nothing is overwritten"),
        (small, "new", tmp_path / "gone", r"no network\.json in"),
        (Small(), "new", applied.folder, "the network is not the one in"),
        (nn.Linear(2, 2), "new", applied.folder, "the network is not the one in"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            secateur.save(model, tmp_path / folder, like=like)
        assert "\n" not in str(caught.value)
    with torch.no_grad():
        small.out.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"out\.weight holds NaN or infinity"):
        secateur.save(small, tmp_path / "new", like=applied.folder)
    assert not (tmp_path / "new").exists()

    for factory, message in (
        (nn.Linear, "makes no network without arguments"),
        (dict, "which is no network"),
        ("Small", "give a network, its class"),
    ):
        with pytest.raises(TypeError, match=message) as error:
            secateur.load(Path(applied.folder), model=factory)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"pass load\(folder, model=YourNetwork\)"):
        secateur.load(applied.folder)
