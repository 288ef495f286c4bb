"""The latency table of layers in two: what the network takes at any rank, also where two layers are slower than one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from secateur.configs import LatencyConfig
from secateur.configs.schema import LayersConfig
from secateur.networks.factors import Factorised
from secateur.pruners import METHODS, Budget, PlanError, Structure
from secateur.pruners.costs.latency import measure_latency
from secateur.pruners.costs.latency_profile import take_table
from secateur.pruners.costs.latency_table import LayerTimes
from secateur.pruners.costs.segments import describe
from secateur.pruners.loss_model import Lagrangian, LossModel, best_steps
from secateur.testing import toy_networks

ONE = LatencyConfig(batch=1, repeats=1)
ONNX = LatencyConfig(batch=4, threads=1, repeats=1, runtime="onnxruntime")
LOWRANK = METHODS["lowrank"]
IMAGE = torch.zeros(1, 3, 8, 8)
CASES = [("plain", "channel"), ("residual", "spatial"), ("biases", "channel")]


def found(name: str, kind: str = "channel", **config: Any) -> tuple[nn.Module, Structure]:
    model = toy_networks()[name]
    told = LayersConfig.model_validate({"factors": kind, **config})
    return model, LOWRANK.find(model, (3, 8, 8), told)


def timed(model: nn.Module, structure: Structure, price: zoo.Price) -> Structure:
    return structure.with_cost("latency", take_table(model, structure, ONE, timer=zoo.timer(price)))


def in_two(model: nn.Module, structure: Structure, kept: np.ndarray) -> nn.Module:
    """As the method's recipe makes it, of the dense architecture."""
    ranks: list[Any] = list(structure.layers)
    pairs = [(layer, int(n)) for layer, n in zip(ranks, kept, strict=True) if n <= layer.most]
    entries = [{"module": layer.name, "rank": rank, "kind": layer.kind} for layer, rank in pairs]
    return LOWRANK.rebuild(model, {"ranks": entries}).eval()


def drawn(structure: Structure, seed: int) -> np.ndarray:
    """Any ranks, choices or not."""
    return np.random.default_rng(seed).integers(1, structure.units + 1)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_network_that_is_timed_calls_what_the_plans_network_calls(name: str, kind: str) -> None:
    model, structure = found(name, kind)
    assert structure.first_units is not None
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for seed in range(4):
        kept = drawn(structure, seed)
        small, whole = structure.first_units(model, structure, kept), in_two(model, structure, kept)
        assert [s.key for s in describe(small, IMAGE)] == [s.key for s in describe(whole, IMAGE)]
        twos = {name for name, module in small.named_modules() if isinstance(module, Factorised)}
        assert twos == {layer.name for layer, n in zip(structure.layers, kept, strict=True) if n <= layer.choices[-2]}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_where_only_multiplications_take_time_latency_is_flops(name: str, kind: str) -> None:
    model, structure = found(name, kind)
    layers = timed(model, structure, zoo.multiplications)
    assert [layer.choices for layer in layers.layers] == [layer.choices for layer in structure.layers]
    plans = np.array([structure.units, *(drawn(structure, seed) for seed in range(8))])
    for kept in plans:
        assert layers.cost("latency", kept) == layers.cost("flops", kept)
    assert np.array_equal(np.rint(layers.costs["latency"](plans)), layers.costs["flops"](plans))


def slow_calls(module: nn.Module, given: Tensor, output: Tensor) -> float:
    """A call costs as much as ninety multiplications: what two layers have one more of."""
    return zoo.multiplications(module, given, output) + 9e-8 * bool(zoo.multiplications(module, given, output))


def noise(module: nn.Module, given: Tensor, output: Tensor) -> float:
    """A time that follows no rule, the same for the same module and shapes."""
    text = f"{module}{tuple(given.shape)}".encode()
    return 1e-6 * (1 + np.random.default_rng(list(text)).integers(100))


@pytest.mark.parametrize("price", [zoo.blocks, noise])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_table_says_what_the_network_takes_at_any_rank(name: str, kind: str, price: zoo.Price) -> None:
    """Exactly, for layers that are two at sixteen ranks and less; also where two are slower than the one."""
    model, structure = found(name, kind)
    assert max(structure.apart) <= 16
    layers = timed(model, structure, price)
    for kept in (structure.units, *(drawn(structure, seed) for seed in range(5))):
        taken = sum(zoo.timer(price)(in_two(model, structure, kept), IMAGE))
        assert layers.cost("latency", kept) == pytest.approx(1e9 * taken, abs=1)


def test_a_rank_that_takes_longer_than_a_higher_one_is_no_choice() -> None:
    model, structure = found("residual")
    layers = timed(model, structure, slow_calls)
    slower = 0
    for index, (layer, all_of_it) in enumerate(zip(layers.layers, structure.layers, strict=True)):
        alone = np.tile(structure.units, (len(all_of_it.choices), 1))
        alone[:, index] = all_of_it.choices
        costs = np.rint(layers.costs["latency"](alone))
        stay = [n for n, cost, rest in zip(all_of_it.choices, costs, np.arange(len(costs)), strict=True)
                if cost <= costs[rest:].min()]  # fmt: skip
        assert layer.choices == tuple(stay)
        assert layer.units == all_of_it.units
        slower += len(costs) - len(stay)
    assert slower > 0
    assert layers.fingerprint == structure.fingerprint  # plans fit as before


@pytest.mark.parametrize("price", [slow_calls, noise])
def test_no_plan_takes_longer_than_its_budget_whoever_makes_it(price: zoo.Price) -> None:
    """The clock has the last word, not the table; and one step more of any layer is too much."""
    model, structure = found("plain")
    layers = timed(model, structure, price)
    whole = sum(zoo.timer(price)(model, IMAGE))
    least = layers.fraction("latency", [layer.choices[0] for layer in layers.layers])
    rng = np.random.default_rng(0)
    for share, flops in ((0.0, 1.0), (0.3, 1.0), (0.3, 0.8), (0.6, 0.7), (0.9, 1.0)):
        fraction = least + share * (1.0 - least)
        budget = Budget(layers, "latency", fraction, 0.99, besides={"flops": flops} if flops < 1.0 else {})
        curves = [np.sort(rng.random(len(layer.choices)))[::-1] for layer in layers.layers]
        losses = LossModel.from_curves(layers, [np.append(curve[:-1], 0.0) for curve in curves])
        filled = budget.fill(layers.units * rng.random(len(layers.layers)))
        for kept in (filled, best_steps(budget, losses.gains(budget)), np.array(walked(budget, losses))):
            assert all(int(n) in layer.choices for n, layer in zip(kept, layers.layers, strict=True))
            taken = sum(zoo.timer(price)(in_two(model, structure, kept), IMAGE))
            assert taken <= fraction * whole * (1 + 1e-6)
            assert layers.fraction("flops", kept) <= flops
            for i, layer in enumerate(layers.layers):
                more = [n for n in layer.choices if n > kept[i]][:1]
                assert all(budget.cost([*kept[:i], n, *kept[i + 1 :]]) > budget.limit for n in more)


def walked(budget: Budget, losses: LossModel) -> list[int]:
    """As the environment walks where its actions are zero."""
    lagrangian, chosen = Lagrangian(losses, budget), []
    for _ in budget.structure.layers:
        chosen.append(lagrangian.choose(chosen, lagrangian.position(chosen), budget.bounds_at(chosen)))
    return chosen


def test_ranks_that_gain_nothing_are_refused_in_a_line() -> None:
    model, structure = found("plain")

    def by_calls(module: nn.Module, given: Tensor, output: Tensor) -> float:
        return 1e-6

    with pytest.raises(PlanError, match=r"budget\.latency: of no layer does keeping less save latency here") as caught:
        timed(model, structure, by_calls)
    assert "\n" not in str(caught.value)


def test_a_bound_that_only_slow_ranks_are_in_is_refused() -> None:
    """And not met by a table that takes them to be as fast as what is out of bounds."""
    model, structure = found("residual")
    layers = timed(model, structure, slow_calls)
    one = next(layer for layer, before in zip(layers.layers, structure.layers, strict=True)
               if layer.choices != before.choices)  # fmt: skip
    gone = next(n for n in range(1, one.units) if n not in one.choices)
    cut = 1 - gone / one.units
    with pytest.raises(PlanError, match=f"layer {one.name}: none of its choices"):
        Budget(layers, "latency", 0.99, bounds={one.name: (cut - 1e-6, cut + 1e-6)})
    assert Budget(structure, "flops", 0.99, bounds={one.name: (cut - 1e-6, cut + 1e-6)}).least is not None


@settings(max_examples=40)
@given(times=st.lists(st.lists(st.integers(0, 50), min_size=2, max_size=9), min_size=1, max_size=4), data=st.data())
def test_real_numbers_of_ranks_never_cost_less_where_more_is_kept(times: list[list[int]], data: st.DataObject) -> None:
    table = LayerTimes(3.0, [np.array(each, dtype=float) for each in times])
    whole = np.array([len(each) - 1 for each in times])
    shares = np.sort(np.array([data.draw(st.tuples(*2 * [st.floats(0, 1)])) for _ in times]), axis=1)
    low, high = table(shares[:, 0] * whole), table(shares[:, 1] * whole)
    assert low <= high + 1e-9
    kept = np.array([data.draw(st.integers(0, int(n))) for n in whole])
    assert table(kept) == 3.0 + sum(each[n] for each, n in zip(times, kept, strict=True))
    assert table(kept.astype(float)) == 3.0 + sum(min(each[n:]) for each, n in zip(times, kept, strict=True))


def test_what_is_known_is_not_measured_again() -> None:
    def never(_model: nn.Module, _images: Tensor) -> list[float]:
        raise AssertionError("measured though it is known")

    model, structure = found("residual", "spatial")
    first = take_table(model, structure, ONE, timer=zoo.timer(zoo.blocks))
    again = take_table(toy_networks(1)["residual"], structure, ONE, timer=never)
    kept = drawn(structure, 0)
    assert first(kept) == again(kept)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("name", "kind"), CASES[:2])
def test_files_of_both_layers_are_brought_to_whole_networks(
    name: str, kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the two is a file, the second with the batch norm behind it; a whole network takes what a law says."""
    seen: list[nn.Module] = []
    config = ONNX.model_copy(update={"precision": precision})

    def law(networks: Any, images: Any, _config: LatencyConfig, passes: int) -> dict[str, float]:
        taken = {}
        for key, network in networks.items():
            seen.append(network)
            whole = key.startswith("whole")
            own = 1e3 * sum(zoo.timer(slow_calls)(network, images[key]))
            taken[key] = 2e-4 + 0.7 * own if whole else own
        return taken

    monkeypatch.setattr("secateur.pruners.costs.file_profiler.file_times", law)
    model, structure = found(name, kind)
    layers = structure.with_cost("latency", take_table(model, structure, config))
    parts = [module for module in seen if not list(module.children())]
    assert {type(module) for module in parts} == {nn.Conv2d, nn.Linear}
    assert all(module.bias is not None or module.weight.shape[0] <= max(structure.apart) for module in parts)
    for kept in (structure.units, *(drawn(structure, seed) for seed in range(6))):
        own = 1e3 * sum(zoo.timer(slow_calls)(in_two(model, structure, kept), IMAGE))
        assert layers.cost("latency", kept) == pytest.approx(1e6 * (2e-4 + 0.7 * own), rel=0.02)
    files = len(seen)
    take_table(model, structure, config)
    assert len(seen) == files


@pytest.mark.parametrize("method", ["weights", "bits", "lowrank+channels"])
def test_methods_without_a_table_are_refused(method: str) -> None:
    model = toy_networks()["plain"]
    structure = METHODS[method].find(model, (3, 8, 8), LayersConfig())
    with pytest.raises(PlanError, match=r"budget\.latency: no latency table for method: ") as caught:
        take_table(model, structure, ONE)
    assert method in str(caught.value)


def test_a_real_clock() -> None:
    """Nothing is said of how long it takes."""
    model, structure = found("residual")
    table = take_table(model, structure, LatencyConfig(batch=2, repeats=2))
    assert 0 < table(np.ones(len(structure.layers))) <= table(structure.units.astype(float)) < 1e10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "precision"), [("eager", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")]
)
def test_the_table_of_a_real_runtime_is_near_the_clock(runtime: str, precision: str) -> None:
    """Whole, and with half of the ranks, within a factor of two: the machine may be busy."""
    pytest.importorskip("onnxruntime")
    # a file takes a second or two: there, a network of fewer layers than that of the digits
    model, shape = (zoo.make("digits"), (1, 8, 8)) if runtime == "eager" else (toy_networks()["residual"], (3, 8, 8))
    structure = LOWRANK.find(model, shape, LayersConfig())
    settings = {"batch": 32, "threads": 1, "repeats": 3, "runtime": runtime, "precision": precision}
    config = LatencyConfig.model_validate(settings)
    table = take_table(model, structure, config)
    half = np.array([max(1, most // 2) for most in structure.apart])
    measured = measure_latency({"dense": model, "half": in_two(model, structure, half)}, shape, config)
    for name, kept in (("dense", structure.units), ("half", half)):
        assert 0.5 < float(table(kept)) / 1e6 / measured[name] < 2.0
