"""The error of a cut's consumers against networks that were really cut, repaired and run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from secateur.networks.norms import following_norms
from secateur.pruners.channels.method import cut as cut_channels
from secateur.pruners.channels.slices import ChannelStructure, Selection
from secateur.pruners.method import Compressed
from secateur.pruners.repair.gram import output_error, repair_from_moments
from secateur.pruners.repair.statistics import repairable

INNER = [name for name, cut in zoo.small_cases() if cut == "inner"]
# one consumer sits behind another, or behind itself
DRIFTS = ["densenet", "unet", "shared", "shared_two_norms", "c2f", "split"]
OTHERWISE = ["norms", "encoder"]  # a norm changes what is left; batches of tokens are no batches of images


def cut(
    model: nn.Module, structure: ChannelStructure, selection: Selection, fitted_on: zoo.Batches | None
) -> Compressed:
    compressed = cut_channels(model, structure, selection)
    if fitted_on is not None:
        repair_from_moments(compressed, model, zoo.moments(model, structure, fitted_on))
    return compressed


def outputs(model: nn.Module, name: str, norms: dict[str, str], batches: zoo.Batches) -> torch.Tensor:
    """(channels, samples) what a module computes, less the mean that the batch norm behind it takes off."""
    module, seen = model.get_submodule(name), []
    hook = module.register_forward_hook(lambda _m, _a, out: seen.append(out.double()))
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    hook.remove()
    y = torch.cat(seen)
    y = y.flatten(0, -2).T if isinstance(module, nn.Linear) else y.transpose(0, 1).flatten(1)
    return y - model.get_submodule(norms[name]).running_mean[:, None] if name in norms else y


def brute_force(
    pruned: nn.Module, dense: nn.Module, structure: ChannelStructure, index: int, batches: zoo.Batches
) -> float | None:
    norms = following_norms(dense, batches[0][0][:1])
    errors = []
    for name in {part.module for part in structure.layers[index].weights("in")}:
        if repairable(dense.get_submodule(name)):
            wanted, got = (outputs(model, name, norms, batches) for model in (dense, pruned))
            spread = (wanted - wanted.mean(1, keepdim=True)).square().sum()
            errors.append(float((wanted - got).square().sum() / spread))
    return np.mean(errors) if errors else None


def fed_with_dense_inputs(
    pruned: nn.Module,
    dense: nn.Module,
    structure: ChannelStructure,
    selection: Selection,
    index: int,
    batches: zoo.Batches,
) -> float:
    """Every pruned consumer on what it would get if nothing in front of it had changed but the units that went."""
    norms = following_norms(dense, batches[0][0][:1])
    kept = structure.positions(selection)
    errors = []
    for name in {part.module for part in structure.layers[index].weights("in")}:
        keep, inputs = torch.from_numpy(kept[f"{name}.weight", 1]), []
        hook = dense.get_submodule(name).register_forward_pre_hook(lambda _m, args, inputs=inputs: inputs.append(args))
        wanted = outputs(dense, name, norms, batches)
        if (f"{name}.weight", 0) in kept:  # fed by itself
            wanted = wanted[torch.from_numpy(kept[f"{name}.weight", 0])]
        hook.remove()
        small = pruned.get_submodule(name)
        with torch.no_grad():
            got = torch.cat([small(x[:, keep]) for (x,) in inputs]).double().transpose(0, 1).flatten(1)
        if name in norms:
            got = got - pruned.get_submodule(norms[name]).running_mean[:, None]
        spread = (wanted - wanted.mean(1, keepdim=True)).square().sum()
        errors.append(float((wanted - got).square().sum() / spread))
    return float(np.mean(errors))


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("name", [name for name in INNER if name not in DRIFTS + OTHERWISE])
def test_the_error_is_that_of_a_network_cut_repaired_and_run(name: str, repaired: bool) -> None:
    model, structure = zoo.make(name), zoo.structure(name)
    unseen = zoo.batches(name, (20, 9), seed=100)
    moments = zoo.moments(model, structure, unseen)
    rng = np.random.default_rng(0)
    for index, layer in enumerate(structure.layers):
        selection = structure.alone(index, rng.permutation(layer.units), int(rng.integers(1, layer.units)))
        pruned = cut(model, structure, selection, zoo.batches(name) if repaired else None)
        expected = brute_force(pruned.model, model, structure, index, unseen)
        if expected is None:
            with pytest.raises(ValueError, match=f"no output that could be measured at {layer.consumers[0]}"):
                output_error(pruned, model, moments)
        else:
            error = output_error(pruned, model, moments)
            assert error == pytest.approx(expected, rel=1e-3, abs=1e-6), layer.name


@pytest.mark.parametrize("name", DRIFTS)
def test_consumers_behind_each_other_are_measured_on_the_dense_networks_inputs(name: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name)
    unseen = zoo.batches(name, (20, 9), seed=100)
    moments = zoo.moments(model, structure, unseen)
    for index in range(len(structure.layers)):
        selection = structure.alone(index, np.arange(structure.units[index]), structure.units[index] // 2)
        pruned = cut(model, structure, selection, zoo.batches(name))
        expected = fed_with_dense_inputs(pruned.model, model, structure, selection, index, unseen)
        assert output_error(pruned, model, moments) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["vgg", "plain_bias", "residual", "grouped"])
def test_on_the_images_of_the_repair_least_squares_cannot_lose(name: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name)
    moments = zoo.moments(model, structure, zoo.batches(name))
    for index, layer in enumerate(structure.layers):
        selection = structure.alone(index, np.arange(layer.units), layer.units // 2)
        error = output_error(cut(model, structure, selection, zoo.batches(name)), model, moments)
        assert 0.0 < error < min(1.0, output_error(cut(model, structure, selection, None), model, moments))


def test_it_does_not_look_at_the_images_of_the_repair() -> None:
    """Fitted on few images, a repair is worth less on others than it claims on its own."""
    model, structure = zoo.make("vgg"), zoo.structure("vgg")
    few, others = zoo.batches("vgg", (2,)), zoo.batches("vgg", (64,), seed=50)
    selection = structure.alone(1, np.arange(6), 3)
    pruned = cut(model, structure, selection, few)
    own, unseen = (output_error(pruned, model, zoo.moments(model, structure, images)) for images in (few, others))
    assert unseen > 2 * own


def test_nothing_cut_is_nothing_lost() -> None:
    model, structure = zoo.make("vgg"), zoo.structure("vgg")
    moments = zoo.moments(model, structure, zoo.batches("vgg"))
    assert output_error(cut(model, structure, zoo.whole(structure), None), model, moments) == 0.0


def test_a_consumer_that_never_moves_cannot_be_measured() -> None:
    model, structure = zoo.make("residual"), zoo.structure("residual")
    model.layer1[0].conv2.weight.data.zero_()
    moments = zoo.moments(model, structure, zoo.batches("residual"))
    pruned = cut(model, structure, structure.alone(0, np.arange(4), 2), None)
    with pytest.raises(ValueError, match=r"no output that could be measured at layer1\.0\.conv2"):
        output_error(pruned, model, moments)


def test_one_layer_is_cut_alone() -> None:
    structure = zoo.structure("vgg")
    selection = structure.alone(0, np.array([7, 0, 3, 1, 2, 4, 5, 6]), 3)
    assert [keep.tolist() for keep in selection] == [[0, 3, 7], list(range(6)), list(range(10))]
    assert structure.alone(0, np.array([7, 0, 3, 1, 2, 4, 5, 6]), 1)[0].tolist() == [7]
