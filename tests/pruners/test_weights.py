"""Weights pruned by magnitude: exact counts, the right ones, and they stay away while the network trains."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from secateur.configs.schema import FitConfig
from secateur.networks import fit
from secateur.pruners.structure import PlanError, WeightStructure
from secateur.pruners.weights import (
    GradualPruner,
    find_weights,
    kept_weights,
    magnitude_masks,
    prune_weights,
    weights_kept,
)
from secateur.training.schedules import CubicSchedule

SEEDS = st.integers(0, 2**31)
SPARSITIES = st.floats(0.0, 0.999)


def chain(*sizes: int, seed: int = 0) -> nn.Module:
    """Linear layers between these sizes."""
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


def weights_of(model: nn.Module, structure: WeightStructure) -> dict[str, Tensor]:
    return {layer.name: model.get_parameter(layer.name).detach().clone() for layer in structure.layers}


def zoo_weights(name: str) -> tuple[nn.Module, WeightStructure]:
    model = zoo.make(name)
    return model, find_weights(model, zoo.ZOO[name].shape)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_weight_of_a_convolution_or_linear_layer_is_found_and_costs_what_torch_counts(name: str) -> None:
    model, structure = zoo_weights(name)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    expected = {id(module.weight): module.weight.numel() for module in modules}  # tied weights once
    assert {id(model.get_parameter(layer.name)): layer.units for layer in structure.layers} == expected
    if name != "transposed":  # whose transposed convolution is neither pruned nor counted as FLOPs
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(zoo.images(name, 1))
        assert structure.cost("flops", structure.units) == counter.get_total_flops() // 2
    assert structure.cost("params", structure.units) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["residual", "tied", "shared", "grouped", "depthwise", "conv1d", "tokens"])
def test_flops_kept_are_positions_times_nonzero_weights(name: str) -> None:
    model, structure = zoo_weights(name)
    masks = prune_weights(model, structure, 0.7, "global")
    counted = 0

    def count(module: Any, _inputs: Any, output: Tensor) -> None:
        nonlocal counted
        channels = output.shape[-1] if isinstance(module, nn.Linear) else output.shape[1]
        counted += output.numel() // channels * int(module.weight.count_nonzero())

    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(zoo.images(name, 1))
    kept = kept_weights(structure, masks)
    assert structure.cost("flops", kept) == counted
    removed = int((structure.units - kept).sum())
    assert structure.cost("params", kept) == sum(p.numel() for p in model.parameters()) - removed


def test_finding_leaves_the_network_as_it_was() -> None:
    model = zoo.make("residual").train()
    before = copy.deepcopy(model.state_dict())
    find_weights(model, zoo.RGB)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_excluded_weights_stay_dense_and_are_paid_for() -> None:
    model = zoo.make("tied")
    whole = find_weights(model, zoo.RGB)
    structure = find_weights(model, zoo.RGB, ignore=["0.weight", "4"])  # 4 shares its weight with 2
    assert [layer.name for layer in structure.layers] == ["6.weight", "7.2.weight"]
    assert set(structure.ignored) == {"0.weight", "2.weight"}
    assert structure.cost("flops", structure.units) == whole.cost("flops", whole.kept)
    before = copy.deepcopy(model.state_dict())
    prune_weights(model, structure, 0.5)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"6.weight", "7.2.weight"}
    least = structure.cost("params", np.ones(2))
    assert least == sum(p.numel() for p in model.parameters()) - int(structure.units.sum()) + 2


@given(seed=SEEDS, sparsity=SPARSITIES, sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_layer_counts_are_exact_and_the_largest_stay(seed: int, sparsity: float, sizes: list[int]) -> None:
    model = chain(*sizes, seed=seed)
    structure = find_weights(model, sizes[:1])
    before = weights_of(model, structure)
    masks = prune_weights(model, structure, sparsity, "layer")
    for layer in structure.layers:
        weight, mask = model.get_parameter(layer.name).detach(), masks[layer.name]
        removed = min(round(sparsity * layer.units), layer.units - 1)
        assert int((~mask).sum()) == removed
        assert torch.equal(weight, before[layer.name] * mask)
        if removed:
            assert before[layer.name][mask].abs().min() >= before[layer.name][~mask].abs().max()


@given(seed=SEEDS, sparsity=st.floats(0.0, 0.95))
def test_global_is_one_threshold_over_all_weights(seed: int, sparsity: float) -> None:
    model = chain(6, 9, 12, 5, seed=seed)
    structure = find_weights(model, (6,))
    before = weights_of(model, structure)
    masks = prune_weights(model, structure, sparsity, "global")
    ranked = np.sort(np.abs(np.concatenate([weight.numpy().ravel() for weight in before.values()])))
    removed = round(sparsity * len(ranked))
    if all((weight.abs().numpy() > ranked[removed - 1]).any() for weight in before.values()):
        threshold = ranked[removed - 1] if removed else -1.0
        for name, weight in before.items():
            np.testing.assert_array_equal(masks[name].numpy(), weight.abs().numpy() > threshold)
    assert sum(int((~mask).sum()) for mask in masks.values()) == removed


@given(data=st.data(), sparsity=SPARSITIES, scope=st.sampled_from(["layer", "global"]))
def test_ties_do_not_change_the_count_and_break_alike(data: st.DataObject, sparsity: float, scope: str) -> None:
    model = chain(4, 5, 3)
    for parameter in model.parameters():
        values = data.draw(st.lists(st.integers(-2, 2), min_size=parameter.numel(), max_size=parameter.numel()))
        parameter.data = torch.tensor(values, dtype=torch.float32).reshape(parameter.shape)
    structure = find_weights(model, (4,))
    twin = copy.deepcopy(model)
    masks = prune_weights(model, structure, sparsity, scope)
    again = prune_weights(twin, structure, sparsity, scope)
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    removed = structure.units - kept_weights(structure, masks)
    if scope == "layer":
        assert removed.tolist() == [min(round(sparsity * n), n - 1) for n in (20, 15)]
    else:
        assert removed.sum() == min(round(sparsity * 35), 33)
        assert removed.max() < 20
        assert removed[1] < 15


def test_among_equals_the_first_go() -> None:
    model = nn.Linear(6, 1)
    nn.init.ones_(model.weight)
    structure = find_weights(model, (6,))
    assert prune_weights(model, structure, 0.5)["weight"].tolist() == [[False] * 3 + [True] * 3]


def test_a_tensor_of_small_weights_loses_more_only_where_the_threshold_is_global() -> None:
    model = zoo.make("vgg")
    structure = find_weights(model, zoo.RGB)
    small = structure.layers[1].name
    model.get_parameter(small).data *= 0.1
    sparsity = {
        scope: 1.0 - weights_kept(model, structure, 0.5, scope) / structure.units for scope in ("layer", "global")
    }
    assert sparsity["layer"] == pytest.approx(0.5, abs=0.02)
    assert sparsity["global"][1] > 0.9
    assert np.delete(sparsity["global"], 1).max() < 0.5


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_tensor_keeps_at_least_one_weight(scope: str) -> None:
    model = chain(3, 2, 40)
    model[0].weight.data *= 1e-3
    structure = find_weights(model, (3,))
    kept = weights_kept(model, structure, 0.99, scope)
    assert kept.tolist() == [1, 1]
    best = int(model[0].weight.detach().abs().argmax())
    assert int(prune_weights(model, structure, 0.99, scope)["0.weight"].flatten().int().argmax()) == best


def test_a_sparsity_a_tensor() -> None:
    model = chain(10, 10, 10, 10)
    structure = find_weights(model, (10,))
    assert weights_kept(model, structure, {"0.weight": 0.25, "2.weight": 0.9}).tolist() == [75, 100, 10]


def test_what_was_removed_stays_removed_even_beside_a_kept_zero() -> None:
    model = nn.Linear(6, 1)
    model.weight.data = torch.tensor([[0.0, 0.0, 3.0, 0.0, 2.0, 1.0]])
    structure = find_weights(model, (6,))
    before = {"weight": torch.tensor([[True, True, True, False, True, True]])}
    masks = magnitude_masks(model, structure, [4], before)
    assert masks["weight"].tolist() == [[False, True, True, False, True, True]]


@pytest.mark.parametrize(
    ("sparsity", "scope", "message"),
    [
        (1.0, "layer", r"sparsity = 1: give the fraction to remove, at least 0 and below 1"),
        (-0.1, "global", r"sparsity = -0.1: "),
        (float("nan"), "layer", r"sparsity = nan: "),
        ({"0.weight": 1.5}, "layer", r"sparsity of 0.weight = 1.5: "),
        ({"0.weigth": 0.5}, "layer", r"'0.weigth', which is no weight to prune here – did you mean 0.weight\?"),
        ({"0.weight": 0.5}, "global", r"with scope global give a single sparsity"),
        (0.5, "globl", r"scope = 'globl': give one of layer, global – did you mean global\?"),
    ],
)
def test_what_cannot_be_is_refused(sparsity: Any, scope: str, message: str) -> None:
    model = chain(4, 4)
    structure = find_weights(model, (4,))
    for refused in (weights_kept, prune_weights, GradualPruner):
        with pytest.raises(ValueError, match=message):
            refused(model, structure, sparsity, scope)


def test_nothing_to_prune_and_unknown_names_are_refused() -> None:
    with pytest.raises(PlanError, match="no weight to prune"):
        find_weights(nn.Sequential(nn.BatchNorm2d(3)), zoo.RGB)
    with pytest.raises(PlanError, match="no weight to prune"):
        find_weights(chain(3, 3), (3,), ignore=["0"])
    with pytest.raises(PlanError, match=r"layers.ignore names '0.wieght', .* – did you mean 0.weight\?"):
        find_weights(chain(3, 3), (3,), ignore=["0.wieght"])
    with pytest.raises(ValueError, match="the network does not run on images of 4"):
        find_weights(chain(3, 3), (4,))


@given(
    initial=st.floats(0.0, 1.0),
    rise=st.floats(0.0, 1.0),
    begin=st.integers(0, 20),
    updates=st.integers(1, 12),
    every=st.integers(1, 9),
)
def test_the_schedule_is_the_papers(initial: float, rise: float, begin: int, updates: int, every: int) -> None:
    final = initial + rise * (1.0 - initial)
    schedule = CubicSchedule(final, initial, begin, updates, every)
    for t in range(begin, begin + updates * every + 1, every):
        formula = final + (initial - final) * (1 - (t - begin) / (updates * every)) ** 3
        assert schedule.sparsity(t) == pytest.approx(formula, abs=1e-12)
        assert schedule.renews(t)
    last = begin + updates * every + 30
    values = [schedule.sparsity(t) for t in range(last)]
    assert all(a <= b + 1e-15 for a, b in itertools.pairwise(values))
    assert values[:begin] == pytest.approx([initial] * begin)
    assert set(values[begin + updates * every :]) == {final}
    changes = {t for t in range(1, last) if values[t] != values[t - 1]}
    assert changes <= {t for t in range(last) if schedule.renews(t)}
    assert sum(schedule.renews(t) for t in range(last)) == updates + 1


@given(steps=st.integers(1, 500), ramp=st.floats(0.01, 1.0), every=st.integers(1, 200))
def test_the_schedule_ends_within_its_part_of_the_steps(steps: int, ramp: float, every: int) -> None:
    schedule = CubicSchedule.over(steps, ramp, every)
    end = max(1, int(ramp * steps))
    assert end - schedule.every < schedule.end <= end
    assert schedule.sparsity(end) == 1.0
    assert schedule.sparsity(0) == 0.0


@pytest.mark.parametrize(
    "arguments",
    [{"final": 1.5}, {"final": 0.2, "initial": 0.3}, {"final": 0.5, "every": 0}, {"final": 1, "updates": 0}],
)
def test_a_schedule_that_falls_or_stands_still_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it must rise within 0 … 1|1 or more of the others"):
        CubicSchedule(**arguments)


BATCHES = [(zoo.images("vgg", 8, seed=i), torch.arange(8) % zoo.CLASSES) for i in range(10)]
TRAINING = FitConfig(epochs=3, learning_rate=0.05, momentum=0.9, weight_decay=1e-3)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_removed_weights_stay_away_through_training_with_momentum(scope: str) -> None:
    model, structure = zoo_weights("vgg")
    pruner = GradualPruner(model, structure, 0.8, scope, ramp=0.5, every=4)
    schedule = CubicSchedule.over(30, 0.5, 4)
    history = [pruner.masks]

    def on_step(step: int, total: int, loss: float) -> None:
        pruner.on_step(step, total, loss)
        before, masks = history[-1], pruner.masks
        for name, mask in masks.items():
            assert not model.get_parameter(name)[~mask].any()
            assert not (mask & ~before[name]).any()  # nothing comes back
        asked = schedule.sparsity(step)
        total_weights = int(structure.units.sum())
        if scope == "global":
            assert total_weights - kept_weights(structure, masks).sum() == round(0.8 * asked * total_weights)
        else:
            expected = [n - round(0.8 * asked * n) for n in structure.units.tolist()]
            assert kept_weights(structure, masks).tolist() == expected
        if not schedule.renews(step):
            assert masks is before
        history.append(masks)

    before = weights_of(model, structure)
    fit(model, BATCHES, TRAINING, seed=0, on_step=on_step)
    assert [step for step in range(1, 31) if history[step] is not history[step - 1]] == [4, 8, 12]
    end = pruner.masks
    pruner.finish()
    assert all(torch.equal(end[name], mask) for name, mask in pruner.masks.items())  # it was final already
    for name, mask in end.items():
        assert not torch.equal(model.get_parameter(name)[mask], before[name][mask])  # the others were trained


def test_without_the_hook_momentum_brings_them_back() -> None:
    model, structure = zoo_weights("vgg")
    masks = prune_weights(model, structure, 0.8)
    fit(model, BATCHES, TRAINING, seed=0)
    assert any(model.get_parameter(name)[~mask].any() for name, mask in masks.items())


@pytest.mark.parametrize(("steps", "every"), [(0, 100), (1, 100), (7, 3), (19, 7), (30, 7)])
def test_the_final_sparsity_is_exact_wherever_training_stops(steps: int, every: int) -> None:
    model, structure = zoo_weights("vgg")
    pruner = GradualPruner(model, structure, 0.77, ramp=1.0, every=every)
    for step in range(1, steps + 1):
        pruner.on_step(step, 30, 0.0)
    pruner.finish()
    for layer in structure.layers:
        zeros = layer.units - int(model.get_parameter(layer.name).count_nonzero())
        assert zeros == round(0.77 * layer.units)


def test_a_sparsity_a_tensor_is_reached_gradually() -> None:
    model, structure = zoo_weights("vgg")
    name = structure.layers[1].name
    pruner = GradualPruner(model, structure, {name: 0.5}, ramp=1.0, every=5)
    shares = []
    for step in range(1, 11):
        pruner.on_step(step, 10, 0.0)
        shares.append(1.0 - float(pruner.masks[name].float().mean()))
    assert shares[3] == 0.0
    assert shares[4] == pytest.approx(0.5 * (1 - 0.5**3), abs=0.01)
    assert shares[9] == pytest.approx(0.5, abs=0.01)
    assert pruner.masks[structure.layers[0].name].all()


@pytest.mark.parametrize("arguments", [{"ramp": 0.0}, {"ramp": 1.5}, {"every": 0}])
def test_a_pace_that_cannot_be_is_refused(arguments: dict[str, Any]) -> None:
    model, structure = zoo_weights("vgg")
    with pytest.raises(ValueError, match=r"give a ramp in \(0, 1\], and 1 step or more"):
        GradualPruner(model, structure, 0.5, **arguments)
