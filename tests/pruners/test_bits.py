"""The method `bits`: weights exactly on their grids, whatever was done to them, and bytes that are those stored."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from secateur.configs.schema import FitConfig, LayersConfig, Repair
from secateur.networks.fused import Fused
from secateur.networks.quantise.grid import Grid, by_row, code_range
from secateur.networks.quantise.observed import _best_range
from secateur.pruners.bits import BITS, Bits
from secateur.pruners.budget import Budget
from secateur.pruners.compressor import Compressor
from secateur.pruners.context import Context
from secateur.pruners.method import METHODS
from secateur.pruners.repair.gram import output_error
from secateur.pruners.structure import Kept, PlanError
from secateur.training.fit import fit
from secateur.training.step import in_training

METHOD = Bits()
NETWORKS = ["residual", "tied", "grouped", "depthwise", "conv1d", "tokens"]


def context(name: str, criterion: str = "", **layers: Any) -> Context:
    model = zoo.make(name)
    structure = METHOD.find(model, zoo.ZOO[name].shape, LayersConfig(**layers))
    return Context(model, structure, zoo.batches(name), criterion)


def mixed(seen: Context, seed: int = 0) -> Kept:
    """Some bits for every tensor; the first stays as it is where there are several."""
    rng = np.random.default_rng(seed)
    kept = np.array([int(rng.choice(BITS)) for _ in seen.structure.layers])
    kept[0] = 32 if len(kept) > 1 else 3
    return kept


def require_on_grid(model: nn.Module, grids: dict[str, int]) -> None:
    assert grids
    for name, bits in grids.items():
        weight, scale = model.get_parameter(name).detach(), model.get_buffer(f"{name}_scale")
        assert bool((scale > 0).all())
        codes = (weight / by_row(scale, weight)).round()
        assert torch.equal(codes * by_row(scale, weight), weight), name  # exactly
        assert code_range(bits)[0] <= int(codes.min()) <= int(codes.max()) <= code_range(bits)[1]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("criterion", ["gptq", "nearest"])
def test_weights_are_on_their_grids_however_they_were_repaired(name: str, criterion: str) -> None:
    seen = context(name, criterion)
    kept = mixed(seen)
    compressor = Compressor(seen)
    grids = {layer.name: int(b) for layer, b in zip(seen.structure.layers, kept, strict=True) if b < 32}
    for kind in ("none", "gram", "sequential"):
        model = compressor(kept, Repair.model_validate({"kind": kind, "guard": False}))
        require_on_grid(model, grids)
        held = copy.deepcopy(model)
        METHOD.apply(seen, kept).hold(held)
        assert all(torch.equal(a, b) for a, b in zip(held.parameters(), model.parameters(), strict=True))
    whole = [layer.name for layer in seen.structure.layers if layer.name not in grids]
    assert all(torch.equal(model.get_parameter(w), seen.model.get_parameter(w)) for w in whole if kept[0] == 32) or (
        kind == "sequential"  # what sits before may be re-fitted, and stays as fine as it is
    )


@pytest.mark.parametrize("name", ["residual", "tied", "depthwise", "tokens"])
def test_shared_values_are_few_however_they_were_repaired(name: str) -> None:
    seen = context(name, grid="shared")
    kept = mixed(seen)
    grids = {layer.name: int(b) for layer, b in zip(seen.structure.layers, kept, strict=True) if b < 32}
    first = seen.model.get_parameter(next(iter(grids)))
    first.data.flatten()[::3] = 0.0
    for kind in ("none", "gram", "sequential"):
        model = Compressor(seen)(kept, Repair.model_validate({"kind": kind, "guard": False}))
        assert all(len(model.get_parameter(g).unique()) <= 2**bits for g, bits in grids.items())
        assert torch.equal(model.get_parameter(next(iter(grids))) == 0, first == 0)
        held = copy.deepcopy(model)
        compressed = METHOD.apply(seen, kept)
        compressed.hold(held)
        assert all(torch.equal(a, b) for a, b in zip(held.parameters(), model.parameters(), strict=True))
        assert compressed.recipe == {"bits": grids, "grid": "shared"}
        again = METHOD.rebuild(copy.deepcopy(seen.model), compressed.recipe)
        again.load_state_dict(model.state_dict())  # nothing is kept beside the weights
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_shared_values_cost_their_codes_and_a_codebook() -> None:
    seen = context("residual", grid="shared")
    kept = mixed(seen, 1)
    stored = 4 * sum(parameter.numel() for parameter in seen.model.parameters())
    assert seen.structure.cost("size", seen.structure.units) == stored
    for layer, bits in zip(seen.structure.layers, kept.tolist(), strict=True):
        if bits < 32:
            weight = seen.model.get_parameter(layer.name)
            stored -= max(0, 4 * weight.numel() - (-(-weight.numel() * bits // 8) + 4 * 2**bits))
    assert seen.structure.cost("size", kept) == stored
    for index, layer in enumerate(seen.structure.layers):
        plans = np.tile(seen.structure.units, (31, 1))
        plans[:, index] = range(2, 33)
        assert bool((np.diff(seen.structure.costs["size"](plans)) >= 0).all()), layer.name


def test_curves_are_those_of_the_grid_that_is_asked_for() -> None:
    shared, rows = context("vgg", grid="shared"), context("vgg")
    shared = replace(shared, store=rows.store)  # a folder on disk serves both
    for one, other, layer in zip(METHOD.curves(rows), METHOD.curves(shared), shared.structure.layers, strict=True):
        assert not np.array_equal(one, other), layer.name
        assert bool((np.diff(other) <= 0).all())
        assert other[-1] == 0.0 < other[0] < 1.0


def test_gptq_loses_less_than_nearest_and_a_fit_less_than_none() -> None:
    seen, plain = context("vgg"), context("vgg", "nearest")
    kept = np.full(len(seen.structure.layers), 3)
    one, other = METHOD.apply(seen, kept), METHOD.apply(plain, kept)
    assert output_error(one, seen.model, seen.moments) < 0.8 * output_error(other, seen.model, seen.moments)
    assert one.recipe == other.recipe == {"bits": {layer.name: 3 for layer in seen.structure.layers}}
    compressor = Compressor(seen)
    bare = compressor._distances(100)(compressor(kept, Repair(kind="none")))
    assert compressor._distances(100)(compressor(kept, Repair(guard=False))) < bare


@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_are_those_of_packed_codes_scales_and_floats(name: str) -> None:
    seen = context(name)
    kept = mixed(seen, 1)
    stored = 4 * sum(parameter.numel() for parameter in seen.model.parameters())
    assert seen.structure.cost("size", seen.structure.units) == stored
    for layer, bits in zip(seen.structure.layers, kept, strict=True):
        if bits < 32:
            weight = seen.model.get_parameter(layer.name)
            packed = len(np.packbits(np.zeros((weight.numel(), bits), dtype=bool))) + 4 * len(weight)
            stored -= max(0, 4 * weight.numel() - packed)
    assert seen.structure.cost("size", kept) == stored
    assert seen.structure.fraction("flops", kept) == seen.structure.fraction("params", kept) == 1.0


@pytest.mark.parametrize(("inputs", "factor"), [(None, 32), (8, 8)])
def test_bit_operations_are_macs_times_the_bits_of_both_factors(inputs: int | None, factor: int) -> None:
    seen = context("residual", activation_bits=inputs)
    kept, whole = mixed(seen), zoo.flops_counted(seen.model, zoo.RGB)
    structure = seen.structure
    assert structure.cost("bops", structure.units) == 32 * 32 * whole
    plain = METHODS["weights"].find(seen.model, zoo.RGB, LayersConfig())
    macs = [int(f) * layer.units for f, layer in zip(plain.costs["flops"].factors, plain.layers, strict=True)]
    saved = sum(n * (32 * 32 - b * factor) for n, b in zip(macs, kept.tolist(), strict=True) if b < 32)
    assert structure.cost("bops", kept) == 32 * 32 * whole - saved


@pytest.mark.parametrize("name", ["residual", "tied", "conv1d", "tokens"])
def test_inputs_are_on_grids_of_their_own_and_come_back(name: str) -> None:
    seen = context(name, activation_bits=4)
    kept = mixed(seen)
    compressed = METHOD.apply(seen, kept)
    inputs = compressed.recipe["inputs"]
    rounded = {m for layer, b in zip(seen.structure.layers, kept, strict=True) if b < 32 for m in layer.consumers}
    assert set(inputs) == rounded
    assert set(inputs.values()) == {4}
    model = Compressor(seen)(kept, Repair(guard=False))
    again = METHOD.rebuild(copy.deepcopy(seen.model), compressed.recipe)
    again.load_state_dict(model.state_dict())
    images = zoo.images(name, 4)
    found: list[torch.Tensor] = []
    for module in sorted(inputs):
        quantiser = model.get_submodule(module).quantiser
        x = torch.randn(1000) * float(quantiser.range.abs().max())
        found.append(quantiser.inputs(x).unique())
    assert all(1 < len(values) <= 16 and 0.0 in values for values in found)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(again.eval()(images), expected)
        assert torch.equal(Fused(seen.model, images[:1])(model)(images), expected) or (
            float((Fused(seen.model, images[:1])(model)(images) - expected).abs().max()) < 0.1 * float(expected.std())
        )
        assert not torch.equal(METHOD.apply(context(name), kept).model(images), METHOD.apply(seen, kept).model(images))
    require_on_grid(model, compressed.recipe["bits"])


def test_eight_bits_of_inputs_lose_little_and_clip_what_is_rare() -> None:
    seen = context("vgg", activation_bits=8)
    kept = np.full(len(seen.structure.layers), 8)
    model, images = METHOD.apply(seen, kept).model, zoo.images("vgg", 16)
    with torch.no_grad():
        expected = seen.model(images)
        assert float((model(images) - expected).std()) < 0.05 * float(expected.std())
    values = torch.cat([torch.randn(5000), torch.tensor([20.0])])
    limits = _best_range(values.abs(), 3)
    assert limits[0] < 0.01
    assert 3.0 < limits[1] < 10.0


@pytest.mark.parametrize("method", ["channels", "weights", "lowrank"])
@pytest.mark.parametrize("given", [{"activation_bits": 8}, {"grid": "shared"}])
def test_grids_are_for_this_method(method: str, given: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=rf"layers\.{next(iter(given))} is for method: bits; leave it out .* {method}"):
        METHODS[method].find(zoo.make("vgg"), zoo.RGB, LayersConfig(**given))


def test_a_budget_that_bits_do_not_change_is_refused_with_those_that_they_do() -> None:
    structure = context("residual").structure
    for kind in ("flops", "params"):
        with pytest.raises(
            PlanError, match=rf"^budget\.{kind} = 0\.5: nothing .* bits .* changes it; budget size or bops$"
        ):
            Budget(structure, kind, 0.5)  # type: ignore[arg-type]
        assert Budget(structure, kind, 1.0).limit > 0  # type: ignore[arg-type]


def test_choices_are_multiples_of_round_to() -> None:
    assert context("vgg").structure.layers[0].choices == (2, 3, 4, 6, 8, 32)
    assert context("vgg", round_to=4).structure.layers[0].choices == (4, 8, 32)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (0, r"0 units kept is outside 1 … 32"),
        (1, r"layer 0\.0\.weight: 1 bits: a symmetric grid has 2 or more"),
        (33, r"33 units kept is outside 1 … 32"),
    ],
)
def test_bits_that_are_none_are_refused(bits: int, message: str) -> None:
    seen = context("vgg")
    kept = seen.structure.units.copy()
    kept[0] = bits
    with pytest.raises(PlanError, match=message):
        Compressor(seen).compress(kept)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"bits": {"0.0.weight": 1}}, "this is no recipe of bits"),
        ({"bits": {"0.0.weight": 33}}, "this is no recipe of bits"),
        ({"bits": {"0.0.weihgt": 3}}, "the recipe gives '0.0.weihgt' its bits: no such weights"),
        ({"masked": []}, "this is no recipe of bits"),
        ({"bits": {}, "grid": "sharde"}, "this is no recipe of bits"),
    ],
)
def test_other_recipes_are_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHOD.rebuild(zoo.make("vgg"), recipe)


@pytest.mark.parametrize(
    ("layers", "message"), [({"pattern": "2:4"}, "layers.pattern is not for"), ({"tie": [["0*"]]}, "layers.tie is not")]
)
def test_what_is_for_other_methods_is_refused(layers: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        context("vgg", **layers)


def test_a_criterion_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"no criterion of bits 'gtpq', only gptq, nearest – did you mean gptq\?"):
        METHOD.check_criterion("gtpq")


def test_a_trained_grid_is_lsq() -> None:
    """Values, and the gradients of Esser et al. 2020, eqs. 1 to 3, against their formula written out."""
    torch.manual_seed(0)
    weight, bits = torch.randn(4, 6, requires_grad=True), 3
    grid = Grid(torch.tensor([0.2, 0.5, 1.0, 0.7]), bits)
    grid(weight).backward(torch.ones(4, 6))
    least, greatest = code_range(bits)
    v = weight.detach() / grid.scale.detach()[:, None]
    inside = (v > least) & (v < greatest)
    assert torch.equal(weight.grad, inside.float())
    eq3 = torch.where(inside, v.round() - v, v.clamp(least, greatest))
    torch.testing.assert_close(grid.scale.grad, eq3.sum(1) / (6 * greatest) ** 0.5)
    assert 0 < int(inside.sum()) < 24


def test_training_moves_codes_and_scales_and_leaves_weights_on_the_grid() -> None:
    seen = context("tied")
    kept = np.full(len(seen.structure.layers), 4)
    compressed = METHOD.apply(seen, kept)
    model = copy.deepcopy(compressed.model)
    with in_training(model, compressed.hold):
        with torch.no_grad():
            expected, found = (m.eval()(zoo.images("tied", 2)) for m in (compressed.model, model))
        assert torch.equal(expected, found)  # begins where it was
        fit(model, seen.calibration, FitConfig(epochs=10, learning_rate=0.2), seed=0, on_step=lambda *_: None)
        with torch.no_grad():
            inside = model.eval()(zoo.images("tied", 2))
    with torch.no_grad():
        assert torch.equal(model(zoo.images("tied", 2)), inside)  # and is kept as it ended
    require_on_grid(model, compressed.recipe["bits"])
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in seen.model.named_parameters()]
    assert model.get_submodule("2").weight is model.get_submodule("4").weight
    before, after = (m.get_buffer("0.weight_scale") for m in (compressed.model, model))
    assert not torch.equal(before, after)
    weights = [(m.get_parameter("7.2.weight"), m.get_buffer("7.2.weight_scale")) for m in (compressed.model, model)]
    old, new = ((weight / by_row(scale, weight)).round() for weight, scale in weights)
    assert not torch.equal(old, new)
