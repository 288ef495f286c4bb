"""Removing units one by one, against networks that were really cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import nn

import zoo
from secateur.pruners.channels.criteria import removal
from secateur.pruners.channels.criteria.removal import UnitEvaluator, car, greedy, rar
from secateur.pruners.channels.shrink import shrink
from secateur.pruners.context import Context


def context(name: str, cut: str = "inner") -> Context:
    return Context(zoo.make(name), zoo.structure(name, cut), zoo.batches(name))


def cut_and_evaluated(seen: Context, index: int, gone: list[int]) -> tuple[float, float]:
    """Accuracy and loss of the network that lacks some units of a layer."""
    selection = zoo.whole(seen.structure)
    selection[index] = np.setdiff1d(selection[index], gone)
    small = shrink(seen.model, seen.structure, selection)
    with torch.no_grad():
        logits = small(torch.cat([x for x, _ in seen.calibration])).double()
    labels = torch.cat([y for _, y in seen.calibration])
    return float((logits.argmax(1) == labels).double().mean()), float(F.cross_entropy(logits, labels))


ACROSS = {
    ("norms", "inner"),
    *((name, "all") for name in ("encoder", "transformer", "transformer_in_parts", "windows")),
}
"""A norm over channels makes something else of those that are left: zeroing is an approximation there."""


@pytest.mark.parametrize(("name", "cut"), [case for case in zoo.cases() if case not in ACROSS])
def test_a_unit_zeroed_is_a_unit_cut(name: str, cut: str) -> None:
    seen = context(name, cut)
    rng = np.random.default_rng(0)
    for index, layer in enumerate(seen.structure.layers):
        gone = rng.choice(layer.units, rng.integers(1, layer.units), replace=False).tolist()
        accuracy, loss = UnitEvaluator.of(seen, layer, 1000)(gone)
        expected = cut_and_evaluated(seen, index, gone)
        assert loss == pytest.approx(expected[1], rel=1e-4)
        assert accuracy == pytest.approx(expected[0], abs=1.5 / 64)  # a tie of logits may fall to either side


@pytest.mark.parametrize(
    ("name", "cut", "index"), [("vgg", "inner", 0), ("residual", "all", 0), ("strict", "inner", 0)]
)
def test_greedy_removes_what_hurts_least_and_evaluates_anew(name: str, cut: str, index: int) -> None:
    seen = context(name, cut)
    alive, gone = list(range(seen.structure.layers[index].units)), []
    while len(alive) > 1:
        worst = min(alive, key=lambda unit: cut_and_evaluated(seen, index, [*gone, unit])[1])
        alive.remove(worst)
        gone.append(worst)
    assert rar(seen, seen.structure.layers[index]).tolist() == [*alive, *gone[::-1]]


def test_car_looks_at_accuracy_first() -> None:
    seen = context("vgg")
    layer = seen.structure.layers[0]
    order = car(seen, layer).tolist()
    for kept in range(2, layer.units + 1):
        gone, last = order[kept:], order[kept - 1]
        evaluated = {unit: cut_and_evaluated(seen, 0, [*gone, unit]) for unit in order[:kept]}
        best = max(accuracy for accuracy, _ in evaluated.values())
        assert evaluated[last][0] == best
        assert evaluated[last][1] <= min(loss for accuracy, loss in evaluated.values() if accuracy == best) + 1e-5


def test_wide_layers_lose_several_units_a_round() -> None:
    seen = context("vgg")
    layer = seen.structure.layers[0]
    evaluator = UnitEvaluator.of(seen, layer, 64)
    once = greedy(seen, layer, lambda _accuracy, loss: (loss,), images=64, rounds=1)
    losses = [evaluator([unit])[1] for unit in range(layer.units)]
    assert once.tolist()[1:] == np.argsort(losses, kind="stable")[: layer.units - 1][::-1].tolist()
    twice = greedy(seen, layer, lambda _accuracy, loss: (loss,), images=64, rounds=2)
    first = np.argsort(losses, kind="stable")[: layer.units // 2].tolist()
    assert twice.tolist()[layer.units // 2 :] == first[::-1]
    assert sorted(twice.tolist()) == list(range(layer.units))


def test_as_many_images_evaluate_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = context("vgg")
    assert UnitEvaluator.of(seen, seen.structure.layers[0], 30).images == 30
    shapes = []

    def spy(model: nn.Module, parts: list[torch.Tensor], _late: set[str]) -> list[Callable[[], torch.Tensor]]:
        return [lambda part=part: shapes.append(len(part)) or model(part) for part in parts]

    monkeypatch.setattr(removal, "_forwards", spy)
    greedy(seen, seen.structure.layers[0], lambda _accuracy, loss: (loss,), images=10, rounds=None)
    assert shapes == [10] * (8 * 9 // 2 - 1)


class Table:
    """Reads what it says: wrong answers and loss of every unit on every part, whatever else is gone."""

    def __init__(self, wrong: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        self.wrong, self.losses, self.looks = wrong, losses, 0
        self.parts = range(wrong.shape[1])
        self.images = 10 * wrong.shape[1]

    def look(self, gone: list[int], part: int) -> tuple[float, float]:
        self.looks += 1
        return float(self.wrong[gone[-1], part]), float(self.losses[gone[-1], part])


@given(
    table=arrays(np.int64, st.tuples(st.integers(2, 9), st.integers(1, 5)), elements=st.integers(0, 3)),
    rounds=st.sampled_from([None, 1, 3]),
    name=st.sampled_from(sorted(removal.HARMS)),
)
def test_a_race_ends_as_if_all_had_looked_at_all(table: NDArray[np.int64], rounds: int | None, name: str) -> None:
    """Many ties: then the lower number goes first."""
    evaluator = Table(table // 2, table[:, ::-1].astype(float))
    harms = np.stack([(table // 2).sum(1), table.sum(1)], axis=1)[:, 0 if name == "car" else 1 :].tolist()
    order = removal.remove_greedily(evaluator, len(table), removal.HARMS[name], rounds)  # type: ignore[arg-type]
    gone = sorted(range(len(table)), key=harms.__getitem__)
    assert order.tolist() == gone[::-1]


def test_who_falls_behind_looks_no_further() -> None:
    """Of eight units seven lose on the first of four parts."""
    evaluator = Table(np.zeros((8, 4), dtype=np.int64), np.arange(8.0)[:, None] * [9.0, 0.1, 0.1, 0.1])
    order = removal.remove_greedily(evaluator, 8, removal.HARMS["rar"], None)  # type: ignore[arg-type]
    assert order.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert evaluator.looks == sum(4 + left - 1 for left in range(2, 9))


def test_the_hardest_images_come_first() -> None:
    seen = context("vgg")
    evaluator = UnitEvaluator.of(seen, seen.structure.layers[0], 64)
    losses = [evaluator.look([], part)[1] for part in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert len(evaluator.parts) == 7  # of 64 images the last four are apart


def test_only_what_comes_behind_is_computed_again() -> None:
    seen = context("vgg")
    evaluator = UnitEvaluator.of(seen, seen.structure.layers[1], 64)
    calls = []
    network = evaluator.model
    hooks = [m.register_forward_hook(lambda m, _i, _o: calls.append(m)) for m in network if not list(m.children())]
    evaluator.look([0], 0)
    for hook in hooks:
        hook.remove()
    assert calls == [network[5], network[6], network[7]]


class Forgetful(nn.Module):
    """Changes a tensor in place that is used again: a walk of its graph computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 5, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x.mul_(x)
        return self.last(x).mean((2, 3))


def test_where_the_graph_computes_something_else_the_whole_network_runs() -> None:
    model = Forgetful().eval()
    structure = zoo.find_layers(model, zoo.RGB)
    seen = Context(model, structure, zoo.batches("vgg"))
    evaluator = UnitEvaluator.of(seen, structure.layers[0], 64)
    assert evaluator([2]) == pytest.approx(cut_and_evaluated(seen, 0, [2]), rel=1e-4)


def silenced(name: str, conv: str, norm: str | None, gone: list[int]) -> nn.Module:
    """The network with some filters' outputs at zero: the last to touch them says nothing."""
    model = zoo.make(name)
    last = model.get_submodule(norm or conv)
    last.weight.data[gone] = 0.0
    last.bias.data[gone] = 0.0
    return model


@pytest.mark.parametrize(
    ("name", "conv", "norm"),
    [("residual", "conv1", "bn1"), ("vgg", "0.0", "0.1"), ("plain_bias", "0", None), ("bias_and_norm", "0", "1")],
)
def test_a_filter_alone_is_removed_by_zeroing_what_it_says(name: str, conv: str, norm: str | None) -> None:
    evaluator = UnitEvaluator.of_filters(zoo.make(name), conv, zoo.batches(name))
    labels = torch.cat([y for _, y in zoo.batches(name)])
    for gone in ([], [1], [0, 3, 2]):
        with torch.no_grad():
            logits = torch.cat([silenced(name, conv, norm, gone)(x) for x, _ in zoo.batches(name)]).double()
        accuracy, loss = evaluator(gone)
        assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
        assert accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()), abs=1.5 / 64)


def test_where_a_layer_has_one_producer_its_filters_are_its_units() -> None:
    seen = context("vgg")
    alone = UnitEvaluator.of_filters(seen.model, "0.0", seen.calibration)
    layer = UnitEvaluator.of(seen, seen.structure.layers[0], 64)
    for gone in ([2], [0, 5, 7]):
        assert alone(gone) == pytest.approx(layer(gone), rel=1e-4)


def test_in_a_trunk_the_others_part_of_a_channel_stays() -> None:
    seen = context("residual", "all")
    trunk = seen.structure.layers[seen.structure.index("conv1")]
    assert UnitEvaluator.of_filters(seen.model, "conv1", seen.calibration)([1])[1] != pytest.approx(
        UnitEvaluator.of(seen, trunk, 64)([1])[1], rel=1e-3
    )


def test_it_is_told_how_many_are_gone() -> None:
    told: list[int] = []
    evaluator = UnitEvaluator.of_filters(zoo.make("vgg"), "0.0", zoo.batches("vgg"))
    order = removal.remove_greedily(evaluator, 8, removal.HARMS["rar"], 3, told.append)
    assert told == [3, 6, 7]
    assert sorted(order.tolist()) == list(range(8))
