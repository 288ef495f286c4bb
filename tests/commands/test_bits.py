"""`method: bits` from end to end: searched on a budget of bytes, applied, trained on its grids, saved and loaded."""

from __future__ import annotations

import numpy as np
import pytest
import small
import torch
from safetensors.torch import load_file

import secateur
from secateur.networks.quantise.grid import by_row, code_range
from secateur.pruners.structure import PlanError
from secateur.training.checkpoint import Checkpoint

BUDGET = {"size": 0.15}


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> secateur.Session:
    return small.make(
        tmp_path_factory.mktemp("bits"), "bits", budget=BUDGET, agent={"episodes": 2, "warmup": 1, "rerank": 1}
    )


def require_on_grid(folder, plan: secateur.RatioPlan) -> None:
    state = load_file(folder / "weights.safetensors")
    for layer in plan.layers:
        if layer.kept < 32:
            weight, scale = state[layer.name], by_row(state[f"{layer.name}_scale"], state[layer.name])
            codes = (weight / scale).round()
            assert torch.equal(codes * scale, weight)
            assert code_range(layer.kept)[0] <= int(codes.min()) <= int(codes.max()) <= code_range(layer.kept)[1]


def test_the_agent_searches_on_bytes_and_the_comparison_shows_them(session, tmp_path, capsys):
    done = secateur.train(session, out=tmp_path / "run")
    assert done.plan.budget.kind == "size"
    assert 0.08 < done.plan.cost["size"] <= 0.15
    assert {layer.kept for layer in done.plan.layers} <= {2, 3, 4, 6, 8, 32}
    assert done.summary["best"]["size"] == done.plan.cost["size"]
    compared = secateur.compare([done.plan], session, against=["uniform", "lamp"], out=tmp_path / "all")
    assert all(row["size"] <= 0.15 and row["flops"] == row["params"] == 1.0 for row in compared.rows)


@pytest.mark.parametrize("schedule", ["one_shot", "iterative", "rewind", "scratch_e"])
def test_every_schedule_ends_on_the_grid(session, tmp_path, schedule):
    plan = small.plan_of(session, 0.1)
    done = secateur.apply(plan, session, finetune=2, schedule=schedule, out=tmp_path / "out")
    require_on_grid(done.folder, plan)
    again = secateur.load(done.folder, small.Small())
    images = session.test[0][0]
    with torch.no_grad():
        assert torch.equal(again(images), done.model(images))
    assert done.summary["pruned"]["size"] == plan.cost["size"] < 0.15
    assert done.summary["pruned"]["flops"] == 1.0


@pytest.mark.parametrize("schedule", ["one_shot", "iterative"])
def test_every_schedule_ends_on_shared_values_that_pack_exactly(tmp_path, schedule):
    session = small.make(tmp_path, "bits", "layers.grid=shared", budget=BUDGET)
    plan = session.plan_of(np.full(len(session.structure.layers), 3), allocator="uniform", seed=0, candidates=0)
    done = secateur.apply(plan, session, finetune=2, schedule=schedule, out=tmp_path / "out")
    state = load_file(done.folder / "weights.safetensors")
    assert all(len(state[layer.name].unique()) <= 8 for layer in plan.layers)
    if schedule == "one_shot":  # who shares stays, what they share is trained
        repaired = secateur.load(done.folder / "repaired", small.Small()).state_dict()
        for layer in plan.layers:
            before, after = repaired[layer.name], state[layer.name]
            assert not torch.equal(before, after)
            assert all(len(after[before == value].unique()) == 1 for value in before.unique())
    report = secateur.export(done.folder, session, format="packed", out=tmp_path / "packed").report
    assert report["packing"]["bytes"] == (tmp_path / "packed" / "network.packed").stat().st_size
    again = secateur.load(tmp_path / "packed", small.Small())
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_zeros_cannot_spread_where_all_weights_change(session, tmp_path):
    with pytest.raises(
        ValueError, match=r"schedule = 'gradual' spreads zeros, and method bits changes weights in another"
    ):
        secateur.apply(small.plan_of(session, 0.1), session, finetune=2, schedule="gradual", out=tmp_path / "out")


def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(session, tmp_path, monkeypatch):
    plan = small.plan_of(session, 0.1)
    whole = secateur.apply(plan, session, finetune=3, out=tmp_path / "whole")
    write = Checkpoint.write

    def stop(self, *given):
        write(self, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        secateur.apply(plan, session, finetune=3, out=tmp_path / "stopped")
    monkeypatch.setattr(Checkpoint, "write", write)
    again = secateur.apply(session=session, resume=tmp_path / "stopped")
    state, other = (done.model.state_dict() for done in (whole, again))
    assert all(torch.equal(state[name], other[name]) for name in state | other)


def test_plans_of_other_methods_and_budgets_that_are_not_counted_are_refused(session, tmp_path):
    other = small.make(tmp_path, "weights")
    with pytest.raises(PlanError, match=r"prunes weights, not bits: set method: weights"):
        small.plan_of(other).check(session.structure)
    with pytest.raises(PlanError, match=r"budget\.size: this network's size is not counted, only flops, params"):
        _ = small.make(tmp_path, "weights", budget=BUDGET).budget
    with pytest.raises(PlanError, match=r"budget\.flops = 0\.5: nothing that method: bits may do"):
        _ = small.make(tmp_path, "bits", budget={"flops": 0.5}).budget


def test_a_network_of_ones_own_loop_trains_weights_of_full_precision(session, tmp_path):
    plan, seen = small.plan_of(session, 0.1), []

    def loop(model, context):
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for images, labels in context.train:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            context.hold(model)
        seen.append(sum("original" in name for name, _ in model.named_parameters()))

    done = secateur.apply(plan, session, finetune=1, train_fn=loop, out=tmp_path / "out")
    assert seen == [len(plan.layers)]
    require_on_grid(done.folder, plan)


@pytest.mark.parametrize("grid", ["row", "shared"])
def test_weights_that_were_pruned_before_stay_pruned(tmp_path, grid):
    """Deep Compression's order: few weights, then few bits of those; trained, packed and loaded."""
    pruning = small.make(tmp_path, "weights")
    pruned = secateur.apply(small.plan_of(pruning), pruning, finetune=0, out=tmp_path / "pruned").model
    zeros = {name: weight == 0 for name, weight in pruned.named_parameters() if weight.dim() > 1}
    assert sum(int(mask.sum()) for mask in zeros.values()) > 100
    coding = small.make(tmp_path, "bits", f"layers.grid={grid}", model=pruned, budget={"size": 0.3})
    done = secateur.apply(small.plan_of(coding, 0.2), coding, finetune=1, out=tmp_path / "coded")
    for name, mask in zeros.items():
        assert not bool(done.model.get_parameter(name)[mask].any()), name
        assert bool(done.model.get_parameter(name)[~mask].any()), name
    report = secateur.export(done.folder, coding, format="packed", out=tmp_path / "packed").report
    again = secateur.load(tmp_path / "packed", pruned)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in done.model.state_dict().items())
    assert report["packing"]["bytes"] < 0.35 * report["packing"]["float32_bytes"]


def test_bits_of_inputs_are_searched_applied_trained_packed_and_loaded(tmp_path):
    agent = {"episodes": 2, "warmup": 1, "rerank": 1}
    asked = ("layers.activation_bits=[3, 6]",)
    session = small.make(tmp_path, "bits", *asked, budget={"bops": 0.02}, agent=agent)
    done = secateur.train(session, out=tmp_path / "run")
    assert 0.01 < done.plan.cost["bops"] <= 0.02
    bits = {layer.name: layer.kept for layer in secateur.RatioPlan.load(tmp_path / "run").layers}
    inputs = {name.removesuffix(".inputs"): kept for name, kept in bits.items() if name.endswith(".inputs")}
    assert len(bits) == 2 * len(inputs)
    assert set(inputs.values()) <= {3, 6, 32}
    compared = secateur.compare([done.plan], session, against=["uniform"], out=tmp_path / "all")
    assert all(row["bops"] <= 0.02 for row in compared.rows)
    small_one = secateur.apply(done.plan, session, finetune=1, out=tmp_path / "small")
    packed = secateur.export(small_one.folder, session, format="packed", out=tmp_path / "packed")
    images = session.test[0][0]
    for folder in (small_one.folder, packed.folder):
        again = secateur.load(folder, small.Small())
        rounded = {
            name.removesuffix(".quantiser"): module.bits
            for name, module in again.named_modules()
            if name.endswith(".quantiser")
        }
        assert rounded == {name: kept for name, kept in inputs.items() if kept < 32}
        with torch.no_grad():
            assert torch.equal(again(images), small_one.model(images))
    with pytest.raises(PlanError, match=r"cuts layer '\w+\.inputs'; this network has no such layer"):
        done.plan.check(small.make(tmp_path, "bits", budget=BUDGET).structure)


def test_the_sensitivity_of_inputs_is_that_of_their_weights(tmp_path):
    session = small.make(tmp_path, "bits", "layers.activation_bits=[4, 8]", budget=BUDGET)
    with pytest.raises(ValueError, match=r"'back1\.inputs' loses no weights .* is that of 'back1\.weight'"):
        secateur.sensitivity(session, layers=["back1.inputs"], out=tmp_path / "out")
    found = secateur.sensitivity(session, sparsities=[0.9], out=tmp_path / "out")
    assert [point["layer"] for point in found.points] == ["inner1.weight", "inner2.weight", "out.weight"]
