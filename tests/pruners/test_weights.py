"""The method `weights`: exact counts, the right weights, re-fitted as numpy would, and zeros that stay."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from secateur.configs.schema import FitConfig, LayersConfig
from secateur.pruners.context import Context
from secateur.pruners.method import METHODS
from secateur.pruners.repair.gram import output_error, repair_from_moments
from secateur.pruners.repair.solve import masked_ridge_step
from secateur.pruners.repair.statistics import Sampler
from secateur.pruners.structure import Kept, PlanError, Structure
from secateur.pruners.weights import Masked, Weights
from secateur.training.fit import fit
from secateur.training.schedules import CubicSchedule, Gradual

WEIGHTS = Weights()
SEEDS = st.integers(0, 2**31)


def chain(*sizes: int, seed: int = 0) -> nn.Module:
    """Linear layers between these sizes."""
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))).eval()


def find(model: nn.Module, shape: tuple[int, ...], **layers: Any) -> Structure:
    return WEIGHTS.find(model, shape, LayersConfig(**layers))


def chained(model: nn.Module, criterion: str = "magnitude", **layers: Any) -> Context:
    """Of a chain, on random vectors."""
    inputs = model[0].in_features
    batches = [(torch.randn(40, inputs, generator=torch.Generator().manual_seed(s)), torch.zeros(40)) for s in (0, 1)]
    return Context(model, find(model, (inputs,), **layers), batches, criterion)


def context(name: str, criterion: str = "magnitude", **layers: Any) -> Context:
    model = zoo.make(name)
    return Context(model, find(model, zoo.ZOO[name].shape, **layers), zoo.batches(name), criterion)


def some(structure: Structure, share: float) -> Kept:
    """About this share of every layer's weights."""
    return np.array([structure.snap(i, share * layer.units) for i, layer in enumerate(structure.layers)])


def test_it_is_registered() -> None:
    assert isinstance(METHODS["weights"], Weights)
    assert context("vgg").method is METHODS["weights"]


@pytest.mark.parametrize("name", zoo.FEW)
def test_every_weight_of_a_convolution_or_linear_layer_is_found_and_costs_what_torch_counts(name: str) -> None:
    seen = context(name)
    model, structure = seen.model, seen.structure
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    expected = {id(module.weight): module.weight.numel() for module in modules}  # tied weights once
    assert {id(model.get_parameter(layer.name)): layer.units for layer in structure.layers} == expected
    assert structure.cost("flops", structure.units) == zoo.flops_counted(model, zoo.ZOO[name].shape)
    assert structure.cost("params", structure.units) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["residual", "tied", "shared", "grouped", "depthwise", "conv1d", "tokens"])
def test_flops_kept_are_positions_times_nonzero_weights(name: str) -> None:
    seen = context(name)
    kept = some(seen.structure, 0.3)
    model = WEIGHTS.apply(seen, kept).model
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
    assert seen.structure.cost("flops", kept) == counted
    removed = int((seen.structure.units - kept).sum())
    assert removed > 0
    assert seen.structure.cost("params", kept) == sum(p.numel() for p in model.parameters()) - removed


def test_finding_leaves_the_network_as_it_was() -> None:
    model = zoo.make("residual").train()
    before = copy.deepcopy(model.state_dict())
    find(model, zoo.RGB)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_ignored_weights_stay_dense_and_are_paid_for() -> None:
    whole = context("tied").structure
    seen = context("tied", ignore=["0.weight", "4"])  # 4 shares its weight with 2
    structure = seen.structure
    assert [layer.name for layer in structure.layers] == ["6.weight", "7.2.weight"]
    assert set(structure.ignored) == {"0.weight", "2.weight"}
    assert structure.cost("flops", structure.units) == whole.cost("flops", whole.units)
    before = copy.deepcopy(seen.model.state_dict())
    small = WEIGHTS.apply(seen, some(structure, 0.5)).model
    changed = {name for name, tensor in small.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"6.weight", "7.2.weight"}
    least = structure.cost("params", np.ones(2, dtype=np.int64))
    assert least == sum(p.numel() for p in seen.model.parameters()) - int(structure.units.sum()) + 2


def test_tied_weights_are_one_tensor() -> None:
    seen = context("tied")
    layer = seen.structure.layers[seen.structure.index("2.weight")]
    assert layer.consumers == ("2", "4")
    assert layer.parameters == ("2.weight",)
    compressed = WEIGHTS.apply(seen, some(seen.structure, 0.5))
    assert compressed.model.get_submodule("2").weight is compressed.model.get_submodule("4").weight
    assert int(compressed.model.get_parameter("2.weight").count_nonzero()) == some(seen.structure, 0.5)[1]
    for name in ("2", "4"):
        assert name in compressed.cut


@given(seed=SEEDS, sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4), data=st.data())
def test_counts_are_exact_and_the_largest_stay(seed: int, sizes: list[int], data: st.DataObject) -> None:
    seen = chained(chain(*sizes, seed=seed))
    kept = np.array([data.draw(st.integers(1, layer.units)) for layer in seen.structure.layers])
    small = WEIGHTS.apply(seen, kept).model
    for layer, count in zip(seen.structure.layers, kept, strict=True):
        before, after = (m.get_parameter(layer.name).detach() for m in (seen.model, small))
        mask = after != 0
        assert int(mask.sum()) == count
        assert torch.equal(after, before * mask)
        if count < layer.units:
            assert before[mask].abs().min() >= before[~mask].abs().max()


@given(data=st.data(), share=st.floats(0.0, 1.0))
def test_ties_do_not_change_the_count_and_the_first_stay(data: st.DataObject, share: float) -> None:
    model = chain(4, 5, 3)
    for parameter in model.parameters():
        values = data.draw(st.lists(st.integers(-2, 2), min_size=parameter.numel(), max_size=parameter.numel()))
        parameter.data = torch.tensor(values, dtype=torch.float32).reshape(parameter.shape)
    seen = chained(model)
    kept = some(seen.structure, share)
    masks = WEIGHTS.masks(seen, kept)
    for layer, count in zip(seen.structure.layers, kept, strict=True):
        size = model.get_parameter(layer.name).detach().abs().flatten().numpy()
        expected = np.zeros(layer.units, dtype=bool)
        expected[sorted(range(layer.units), key=lambda i: (-size[i], i))[:count]] = True
        found = masks[layer.name].flatten().numpy() > 0 if layer.name in masks else np.ones(layer.units, dtype=bool)
        np.testing.assert_array_equal(found, expected)


def test_masks_are_nested() -> None:
    seen = context("vgg", "obs")
    wide, narrow = (WEIGHTS.masks(seen, some(seen.structure, share)) for share in (0.6, 0.2))
    for name, mask in narrow.items():
        assert bool((wide[name] >= mask).all())


def inputs_of(seen: Context, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(groups, n, p) inputs of a module, centred where a constant can be absorbed, and its (groups, p, q) weights."""
    module = seen.model.get_submodule(name)
    sampler, rows = Sampler(module), []
    hook = module.register_forward_pre_hook(lambda _, args: rows.append(sampler.inputs(args[0])))
    with torch.no_grad():
        for images, _ in seen.calibration:
            seen.model(images)
    hook.remove()
    x = torch.cat(rows, 1).double().numpy()
    if seen.moments.has_intercept(seen.model, name):
        x = x - x.mean(1, keepdims=True)
    return x, sampler.weight(module.weight.detach()).transpose(1, 2).numpy()


@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
def test_obs_takes_what_the_output_loses_with_one_weight_gone_and_the_rest_refitted(name: str) -> None:
    seen = chained(chain(5, 4, 3), "obs")
    weight = seen.model.get_parameter(name).detach().numpy()
    x, w = inputs_of(seen, name.removesuffix(".weight"))
    loss = np.zeros(weight.shape)
    for row, column in np.ndindex(*weight.shape):
        stay = np.delete(np.arange(weight.shape[1]), column)
        y = x[0] @ w[0][:, row]
        loss[row, column] = np.square(y - x[0][:, stay] @ np.linalg.lstsq(x[0][:, stay], y, rcond=None)[0]).sum()
    order = np.argsort(-loss.ravel(), kind="stable")
    index = seen.structure.index(name)
    for count in range(1, weight.size):
        kept = seen.structure.units.copy()
        kept[index] = count
        mask = WEIGHTS.masks(seen, kept)[name].flatten().numpy()
        assert set(np.flatnonzero(mask)) == set(order[:count])


def test_an_unknown_criterion_is_refused_with_the_near_miss() -> None:
    with pytest.raises(ValueError, match=r"no criterion of weights 'magnitud', only .* – did you mean magnitude\?"):
        WEIGHTS.check_criterion("magnitud")


def test_choices_are_per_cents() -> None:
    (layer,) = find(nn.Linear(40, 50), (40,)).layers
    assert layer.choices == tuple(20 * per_cent for per_cent in range(1, 101))
    (small,) = find(nn.Linear(3, 2), (3,)).layers
    assert small.choices == (1, 2, 3, 4, 5, 6)
    (rounded,) = find(nn.Linear(40, 50), (40,), round_to=64).layers
    assert set(rounded.choices) <= {*range(64, 2000, 64), 2000}
    (named,) = find(nn.Linear(40, 50), (40,), round_to={"*": 64, "bias*": 7}).layers
    assert named.choices == rounded.choices


@pytest.mark.parametrize(
    ("module", "round_to", "choices"), [(nn.Linear(2, 1), 1, (1, 2)), (nn.Linear(10, 9), 64, (64, 90))]
)
def test_two_choices_alone_are_no_pattern(module: nn.Linear, round_to: int, choices: tuple[int, int]) -> None:
    structure = find(module, (module.in_features,), round_to=round_to)
    assert structure.layers[0].choices == choices
    context = Context(module, structure, [(torch.randn(4, module.in_features), torch.zeros(4, dtype=torch.long))])
    mask = WEIGHTS.masks(context, np.array([choices[0]]))[structure.layers[0].name]
    weight = module.weight.detach().abs()
    assert mask.sum() == choices[0]
    assert weight[mask > 0].min() >= weight[mask == 0].max()


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_two_of_every_four(criterion: str) -> None:
    seen = context("vgg", criterion, pattern="2:4")
    assert [layer.choices for layer in seen.structure.layers] == [(u // 2, u) for u in seen.structure.units.tolist()]
    assert "0.0.weight" in seen.structure.ignored  # 27 inputs a row
    assert "do not divide into groups of four" in seen.structure.ignored["0.0.weight"]
    half = seen.structure.units // 2
    masks = WEIGHTS.masks(seen, half)
    assert len(masks) == len(seen.structure.layers) > 0
    for name, mask in masks.items():
        assert bool((mask.reshape(len(mask), -1, 4).sum(2) == 2).all())
        if criterion == "magnitude":
            size = seen.model.get_parameter(name).detach().abs().reshape(len(mask), -1, 4)
            groups = mask.reshape(size.shape) > 0
            least = size.masked_fill(~groups, torch.inf).amin(2)
            assert bool((least >= size.masked_fill(groups, 0.0).amax(2)).all())


@pytest.mark.parametrize("name", zoo.FEW)
def test_curves_fall_to_nothing(name: str) -> None:
    seen = context(name)
    for curve, layer in zip(WEIGHTS.curves(seen), seen.structure.layers, strict=True):
        assert curve.shape == (len(layer.choices),)
        assert np.all(np.diff(curve) <= 1e-12)
        assert curve[-1] == 0.0
        assert np.all((curve >= 0.0) & (curve <= 1.0))
        assert curve[0] > 0.0


@pytest.mark.parametrize(
    ("name", "module"),
    [("vgg", "2.0"), ("plain_bias", "2"), ("grouped", "1.0"), ("tokens", "fc2"), ("densenet", "grow.0")],
)
def test_a_curve_is_what_numpys_least_squares_leaves(name: str, module: str) -> None:
    seen = context(name)
    index = seen.structure.index(f"{module}.weight")
    layer, curve = seen.structure.layers[index], WEIGHTS.curves(seen)[index]
    x, w = inputs_of(seen, module)
    total = sum(np.square(a @ b).sum() for a, b in zip(x, w, strict=True))
    for share in (0.2, 0.4, 0.6, 0.8):
        count = round(share * layer.units)
        kept = seen.structure.units.copy()
        kept[index] = count
        mask = Sampler(seen.model.get_submodule(module)).weight(WEIGHTS.masks(seen, kept)[layer.name]).numpy() > 0
        lost = 0.0
        for a, b, rows in zip(x, w, mask, strict=True):
            for output, keep in enumerate(rows):
                y = a @ b[:, output]
                lost += np.square(y - a[:, keep] @ np.linalg.lstsq(a[:, keep], y, rcond=None)[0]).sum()
        found = curve[layer.choices.index(count)]
        assert found == pytest.approx(lost / total, rel=0.02, abs=1e-4)


def test_curves_are_computed_once() -> None:
    seen = context("vgg")
    first = WEIGHTS.curves(seen)
    assert all(np.shares_memory(a, b) for a, b in zip(first, WEIGHTS.curves(seen), strict=True))


def test_sizes_are_squares() -> None:
    seen = context("vgg")
    layer = seen.structure.layers[0]
    expected = seen.model.get_parameter(layer.name).detach().double().square().flatten()
    np.testing.assert_allclose(WEIGHTS.sizes(seen, layer), expected)


@given(
    seed=st.integers(0, 1000),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 7),
    outputs=st.integers(1, 5),
    samples=st.integers(1, 12),
    share=st.floats(0.0, 1.0),
)
def test_a_masked_step_is_numpys_row_by_row(
    seed: int, groups: int, inputs: int, outputs: int, samples: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    x, r = rng.normal(size=(groups, samples, inputs)), rng.normal(size=(groups, samples, outputs))
    keep = rng.random((groups, outputs, inputs)) < share
    gram, cross = x.transpose(0, 2, 1) @ x, x.transpose(0, 2, 1) @ r
    step = masked_ridge_step(torch.from_numpy(gram), torch.from_numpy(cross), 0.01, torch.from_numpy(keep)).numpy()
    for g, q in np.ndindex(groups, outputs):
        columns = keep[g, q]
        damp = np.sqrt(0.01 * np.trace(gram[g]) / inputs) * np.eye(inputs)[:, columns]
        tall = np.vstack([x[g][:, columns], damp])
        expected = np.linalg.lstsq(tall, np.concatenate([r[g, :, q], np.zeros(inputs)]), rcond=None)[0]
        np.testing.assert_allclose(step[g, columns, q], expected, atol=1e-7)
        assert not step[g, ~columns, q].any()


def test_a_masked_step_in_small_batches_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 30, 8, generator=generator, dtype=torch.float64)
    cross = torch.randn(2, 8, 6, generator=generator, dtype=torch.float64)
    keep = torch.rand(2, 6, 8, generator=generator) < 0.6
    gram = x.transpose(1, 2) @ x
    whole = masked_ridge_step(gram, cross, 1e-3, keep)
    monkeypatch.setattr("secateur.pruners.repair.solve.MOST_BYTES", 1)
    torch.testing.assert_close(masked_ridge_step(gram, cross, 1e-3, keep), whole)


def test_a_masked_step_of_a_broken_system_is_none() -> None:
    gram = torch.diag(torch.tensor([1.0, -0.5], dtype=torch.float64)).unsqueeze(0)
    keep = torch.tensor([[[True, True], [True, False]]])
    step = masked_ridge_step(gram, torch.ones(1, 2, 2, dtype=torch.float64), 1e-9, keep)
    torch.testing.assert_close(step[0, :, 1], torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert torch.equal(step[0, :, 0], torch.zeros(2, dtype=torch.float64))


def distance(model: nn.Module, dense: nn.Module, batches: zoo.Batches) -> float:
    x = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        return float((model(x) - dense(x)).square().sum())


@pytest.mark.parametrize("name", zoo.FEW)
def test_a_repair_leaves_zeros_zero_and_brings_outputs_nearer(name: str) -> None:
    seen = context(name)
    kept = some(seen.structure, 0.4)
    masks = WEIGHTS.masks(seen, kept)
    plain = distance(WEIGHTS.apply(seen, kept).model, seen.model, seen.calibration)
    for kind in ("gram", "sequential"):
        compressed = WEIGHTS.apply(seen, kept)
        before = output_error(compressed, seen.model, seen.moments)
        if kind == "gram":
            repair_from_moments(compressed, seen.model, seen.moments)
            assert output_error(compressed, seen.model, seen.moments) < before
        else:
            zoo.repair_sequentially(compressed, seen.model, seen.calibration)
            assert distance(compressed.model, seen.model, seen.calibration) < plain
        for parameter, mask in masks.items():
            assert not compressed.model.get_parameter(parameter)[mask == 0].any(), (kind, parameter)


def test_masked_and_applied_agree_and_the_dense_network_stays() -> None:
    seen = context("residual")
    before = copy.deepcopy(seen.model.state_dict())
    kept = some(seen.structure, 0.3)
    first, second = WEIGHTS.apply(seen, kept).model, WEIGHTS.masked(seen, kept)
    zoo.assert_same_network(first, second, zoo.images("residual", 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in seen.model.state_dict().items())


def test_it_is_rebuilt_from_its_state() -> None:
    seen = context("vgg")
    compressed = WEIGHTS.apply(seen, some(seen.structure, 0.3))
    again = WEIGHTS.rebuild(zoo.make("vgg", seed=1), compressed.recipe)
    again.load_state_dict(compressed.model.state_dict())
    zoo.assert_same_network(again.eval(), compressed.model, zoo.images("vgg", 3))
    with pytest.raises(ValueError, match="no recipe of pruned weights"):
        WEIGHTS.rebuild(zoo.make("vgg"), {"kept": []})


def test_nothing_to_prune_and_unknown_names_are_refused() -> None:
    with pytest.raises(PlanError, match="no weight to prune"):
        find(nn.Sequential(nn.BatchNorm2d(3)), zoo.RGB)
    with pytest.raises(PlanError, match="no weight to prune"):
        find(chain(3, 3), (3,), ignore=["0"])
    with pytest.raises(PlanError, match=r"layers.ignore names '0.wieght', .* – did you mean 0.weight\?"):
        find(chain(3, 3), (3,), ignore=["0.wieght"])
    with pytest.raises(PlanError, match=r"layers.tie: weight tensors are not tied; leave it out"):
        find(chain(3, 3, 3), (3,), tie=[["0.weight", "1.weight"]])
    with pytest.raises(ValueError, match="the network does not run on images of 4"):
        find(chain(3, 3), (4,))


BATCHES = [(zoo.images("vgg", 8, seed=i), torch.arange(8) % zoo.CLASSES) for i in range(10)]
TRAINING = FitConfig(epochs=3, learning_rate=0.05, momentum=0.9, weight_decay=1e-3)


def zeros(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    return {layer.name: model.get_parameter(layer.name).detach() == 0 for layer in structure.layers}


def tightening(seen: Context, final: Kept) -> Callable[[nn.Module, float], Callable[[nn.Module], None]]:
    """Masks by the magnitudes of the network as trained so far, for a part of the way to the final counts."""

    def tighten(model: nn.Module, part: float) -> Callable[[nn.Module], None]:
        units = seen.structure.units
        kept = np.round(units - part * (units - final)).astype(np.int64)
        hold = WEIGHTS.apply(replace(seen, model=model), kept).hold
        assert hold is not None
        hold(model)
        return hold

    return tighten


def test_gradually_zeros_only_grow_and_the_final_count_is_exact() -> None:
    seen = context("vgg")
    final = some(seen.structure, 0.2)
    model = copy.deepcopy(seen.model)
    gradual = Gradual(model, tightening(seen, final), ramp=0.5, every=4)
    schedule = CubicSchedule.over(30, 0.5, 4)
    history = [zeros(model, seen.structure)]

    def on_step(step: int, total: int, loss: float) -> None:
        gradual(step, total, loss)
        now = zeros(model, seen.structure)
        for layer, count in zip(seen.structure.layers, final, strict=True):
            assert bool((now[layer.name] | ~history[-1][layer.name]).all())  # nothing comes back
            asked = round(layer.units - schedule.sparsity(step) * (layer.units - count))
            assert int((~now[layer.name]).sum()) == asked
        history.append(now)

    fit(model, BATCHES, TRAINING, seed=0, on_step=on_step)
    counts = [sum(int(mask.sum()) for mask in masks.values()) for masks in history]
    assert [step for step in range(1, 31) if counts[step] != counts[step - 1]] == [4, 8, 12]
    gradual.finish()
    end = zeros(model, seen.structure)
    for layer, count in zip(seen.structure.layers, final, strict=True):
        assert int((~end[layer.name]).sum()) == count
        assert torch.equal(end[layer.name], history[-1][layer.name])  # it was final already
        rest = ~end[layer.name]
        assert not torch.equal(model.get_parameter(layer.name)[rest], seen.model.get_parameter(layer.name)[rest])


@pytest.mark.parametrize("held", [True, False])
def test_held_they_stay_zero_and_momentum_alone_brings_them_back(held: bool) -> None:
    seen = context("vgg")
    compressed = WEIGHTS.apply(seen, some(seen.structure, 0.2))
    assert isinstance(compressed.hold, Masked)
    model = copy.deepcopy(compressed.model)
    before = zeros(model, seen.structure)
    hold = compressed.hold if held else lambda _model: None
    fit(model, BATCHES, TRAINING, seed=0, on_step=lambda _step, _total, _loss: hold(model))
    came_back = any(model.get_parameter(name)[mask].any() for name, mask in before.items())
    assert came_back != held
