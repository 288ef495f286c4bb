"""`method: weights` from end to end: single weights become zeros, at once or while training, and stay zeros."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.commands import cli
from secateur.configs import load_config
from secateur.networks import digits_resnet
from secateur.pruners.structure import PlanError

RULES = ["uniform", "global_magnitude", "erk", "lamp", "knapsack"]


def sizes() -> dict[str, int]:
    """The weights of the default network: one a convolution or linear layer."""
    return {name: p.numel() for name, p in digits_resnet().named_parameters() if p.dim() > 1}


def zeros(folder) -> dict[str, int]:
    state = load_file(folder / "weights.safetensors")
    return {name: int((state[name] == 0).sum()) for name in sizes()}


def gone(plan: secateur.RatioPlan) -> dict[str, int]:
    return {layer.name: layer.units - layer.kept for layer in plan.layers}


@pytest.fixture(scope="module")
def settings(run, quick) -> list[str]:
    """The quick run's own network, its weights pruned to a tenth of all parameters."""
    dense = f"network.weights={run.folder / 'dense.safetensors'}"
    return [*quick, dense, "method=weights", "budget.params=0.1", "agent.episodes=4", "repair.search.images=100"]


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory) -> secateur.Training:
    """On the command line."""
    out = tmp_path_factory.mktemp("weights") / "run"
    arguments = [part for override in settings for part in ("--set", override)]
    done = CliRunner().invoke(cli.app, ["train", "digits", *arguments, "--out", str(out)])
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "summary.json").read_text())
    return secateur.Training(secateur.RatioPlan.load(out), out, summary, finished=True)


@pytest.fixture(scope="module")
def session(trained) -> secateur.Session:
    return secateur.Session(trained.folder / "config.yaml")


@pytest.fixture(scope="module")
def sparse(trained, session, tmp_path_factory) -> secateur.Applied:
    """Repaired, and fine-tuned for an epoch."""
    return secateur.apply(trained.plan, session, finetune=1, out=tmp_path_factory.mktemp("sparse") / "small")


def test_the_plan_keeps_the_budget_and_says_what_it_counts(trained):
    plan = trained.plan
    assert (plan.method, plan.criterion, plan.unit) == ("weights", "magnitude", "weights")
    assert {layer.name: layer.units for layer in plan.layers} == sizes()
    params = sum(p.numel() for p in digits_resnet().parameters())
    assert plan.cost["params"] == pytest.approx(1 - sum(gone(plan).values()) / params)
    assert 0.09 < plan.cost["params"] <= 0.1
    records = [json.loads(line) for line in (trained.folder / "episodes.jsonl").read_text().splitlines()]
    assert plan.kept.tolist() in [record["kept"] for record in records]
    assert all(record["params"] <= 0.1 for record in records)
    assert trained.summary["best"]["params"] == plan.cost["params"]


def test_the_folder_says_what_is_in_the_weights(sparse, trained):
    counts = zeros(sparse.folder)
    assert counts == gone(trained.plan)  # still there after fine-tuning, momentum and weight decay
    summary = json.loads((sparse.folder / "summary.json").read_text())
    assert summary == sparse.summary
    params = sum(p.numel() for p in digits_resnet().parameters())
    assert summary["pruned"]["params"] == pytest.approx(1 - sum(counts.values()) / params)
    for name in ("dense", "masked", "repaired", "pruned"):
        change = set() if name == "dense" else {"test_change", "test_change_standard_error"}
        assert summary[name].keys() == {"test_accuracy", "flops", "params", "bytes", "latency_ms"} | change
        assert summary[name]["latency_ms"] > 0
    assert (summary["method"], summary["schedule"], summary["finetune_epochs"]) == ("weights", "one_shot", 1)
    assert summary["masked_difference"] <= 1e-4
    assert secateur.RatioPlan.load(sparse.folder) == trained.plan


def test_repair_and_training_pay(sparse):
    accuracy = {name: sparse.summary[name]["test_accuracy"] for name in ("masked", "repaired", "pruned")}
    assert accuracy["repaired"] > accuracy["masked"] + 10
    assert accuracy["pruned"] > 70


def test_load_gives_the_network_back(sparse):
    again = secateur.load(sparse.folder)
    images = torch.randn(5, 1, 8, 8)
    with torch.inference_mode():
        assert torch.allclose(again(images), sparse.model(images), atol=1e-5)  # another memory format
    for name, tensor in sparse.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.training


@pytest.mark.slow  # an interrupted one is tested every time
def test_gradually_while_training_it_ends_at_the_same_counts(trained, session, tmp_path, capsys):
    gradual = ["apply", str(trained.folder), "--finetune", "2", "--schedule", "gradual", "--out", str(tmp_path / "g")]
    done = CliRunner().invoke(cli.app, gradual)
    assert done.exit_code == 0, done.output
    assert "pruned while trained, 2 epochs" in done.output
    assert zeros(tmp_path / "g") == gone(trained.plan)
    summary = json.loads((tmp_path / "g" / "summary.json").read_text())
    assert summary["schedule"] == "gradual"
    assert summary["pruned"]["test_accuracy"] > max(70, summary["masked"]["test_accuracy"])
    again = secateur.apply(tmp_path / "g", session, finetune=0)  # its plan once more, at once
    assert again.folder == tmp_path / "g" / "applied"
    assert zeros(again.folder) == gone(trained.plan)


def test_at_once_and_not_repaired_the_largest_weights_stay_as_they_were(run, trained, settings, tmp_path):
    bare = secateur.Session("digits", overrides=[*settings, "repair.final.kind=none"])
    done = secateur.apply(trained.plan, bare, finetune=0, out=tmp_path / "sparse")
    dense = load_file(run.folder / "dense.safetensors")
    kept = {layer.name: layer.kept for layer in trained.plan.layers}
    for name, tensor in done.model.state_dict().items():
        if name in kept:
            threshold = np.sort(dense[name].abs().flatten().numpy())[-kept[name]]
            assert torch.equal(tensor, torch.where(dense[name].abs() >= threshold, dense[name], 0.0)), name
        else:
            assert torch.equal(tensor, dense[name]), name
    assert "repaired" not in done.summary
    assert done.summary["finetune_epochs"] == 0


def test_adaptive_batch_norm_where_the_config_asks_for_it(run, trained, settings, tmp_path):
    adapting = [*settings, "repair.final.kind=none", "repair.final.adaptive_bn=100", "repair.final.guard=false"]
    done = secateur.apply(trained.plan, secateur.Session("digits", overrides=adapting), out=tmp_path / "sparse")
    dense = load_file(run.folder / "dense.safetensors")
    name = "layer3.1.bn2.running_var"
    assert not torch.equal(done.model.state_dict()[name], dense[name])
    assert zeros(done.folder) == gone(trained.plan)


@pytest.mark.slow
def test_compared_with_rules_and_a_search_of_the_same_budget(trained, session, tmp_path):
    done = secateur.compare(
        [trained.plan], session, against=[*RULES, "hill_climb"], candidates=3, finetune=1, out=tmp_path / "c"
    )
    assert [row["allocator"] for row in done.rows] == ["ddpg", *RULES, "hill_climb"]
    for row, plan in zip(done.rows, done.plans, strict=True):
        assert 0.09 < row["params"] <= 0.1
        assert row["params"] == plan.cost["params"]
        assert plan.method == "weights"
        assert row["finetuned_test_accuracy"] > 50
    kept = {plan.provenance.allocator: plan.kept / np.array(list(sizes().values())) for plan in done.plans}
    assert np.ptp(kept["uniform"]) < 0.03  # per cents of each, and what is left of the budget
    assert all(np.ptp(kept[name]) > 0.1 for name in RULES[1:])
    assert json.loads((done.folder / "compare.json").read_text())["method"] == "weights"
    assert len((done.folder / "candidates.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_layer_is_left_whole_by_its_name_or_its_tensors(settings, tmp_path):
    overrides = [*settings, "layers.ignore=[conv1, linear.weight]", "budget.params=0.3"]
    session = secateur.Session("digits", overrides=overrides)
    plan = secateur.compare((), session, against=["uniform"], out=tmp_path / "c").plans[0]
    done = secateur.apply(plan, session, out=tmp_path / "sparse")
    counts = zeros(done.folder)
    assert (counts.pop("conv1.weight"), counts.pop("linear.weight")) == (0, 0)
    assert all(counts.values())
    assert {"conv1.weight", "linear.weight"}.isdisjoint(plan.sparsities)


@pytest.mark.slow
def test_two_of_four(settings, tmp_path):
    session = secateur.Session("digits", overrides=[*settings, 'layers.pattern="2:4"', "budget.params=0.6"])
    plan = secateur.compare((), session, against=["uniform"], out=tmp_path / "c").plans[0]
    done = secateur.apply(plan, session, finetune=1, out=tmp_path / "sparse")
    cut = [layer.name for layer in plan.layers if layer.kept < layer.units]
    state = done.model.state_dict()
    assert cut
    for name in cut:
        assert (state[name] != 0).reshape(-1, 4).sum(1).eq(2).all(), name
    assert zeros(done.folder) == {**dict.fromkeys(sizes(), 0), **gone(plan)}


@pytest.mark.slow
def test_a_policy_proposes_a_plan_of_weights_for_another_budget(trained, tmp_path):
    done = secateur.plan(trained.folder, params=0.2, out=tmp_path / "plan")
    assert done.trained_on_it
    assert done.plan.method == "weights"
    assert 0.18 < done.plan.cost["params"] <= 0.2
    small = secateur.apply(done.folder, finetune=0, out=tmp_path / "small")
    assert zeros(small.folder) == gone(done.plan)


def test_sensitivity_by_tensor(session, tmp_path):
    layers = ["layer1.0.conv1.weight", "linear.weight"]
    done = secateur.sensitivity(
        session, layers=layers, criteria=["magnitude", "obs"], sparsities=[0.5, 0.9], out=tmp_path / "s"
    )
    found = {(p["layer"], p["criterion"], p["asked"]): p["error"] for p in done.points}
    assert len(found) == 8
    for layer in layers:
        for criterion in ("magnitude", "obs"):
            assert 0.0 < found[layer, criterion, 0.5] < found[layer, criterion, 0.9] <= 1.0
    tree = json.loads((done.folder / "sensitivity.json").read_text())
    assert (tree["method"], tree["unit"]) == ("weights", "weights")
    assert (done.folder / "sensitivity.png").stat().st_size > 10_000
    by_default = secateur.sensitivity(session, layers=layers[:1], sparsities=[0.5], out=tmp_path / "d")
    assert {p["criterion"] for p in by_default.points} == {"magnitude"}


@pytest.mark.slow  # as channels do
def test_correlate(session, tmp_path):
    done = secateur.correlate(session, plans=3, out=tmp_path / "c")
    assert all(0.09 < row["params"] <= 0.1 for row in done.rows)
    tree = json.loads((done.folder / "correlate.json").read_text())
    assert (tree["method"], tree["criterion"]) == ("weights", "magnitude")
    for row in done.rows:
        kept = np.array(row["kept"])
        bare = session.compressor.compress(kept).model
        assert row["none_accuracy"] == session.evaluator.measure(bare, kept).accuracy


class Tied(nn.Module):
    """A network of one's own, whose two middle layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 3)
        self.middle = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.middle[1].weight = self.middle[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        for middle in self.middle:
            x = middle(x).relu()
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("schedule", ["one_shot", "gradual"])
def test_your_own_network_and_images(schedule, tmp_path):
    batch = [(torch.randn(12, 1, 6, 6), torch.arange(12) % 3)]
    images = secateur.Images(calibration=batch, search=batch, train=batch)
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = secateur.Config.model_validate({"name": "mine", "method": "weights", "budget": {"params": 0.5}})
    session = secateur.Session(config, model=model, images=images)
    plan = secateur.compare((), session, against=["global_magnitude"], out=tmp_path / "c").plans[0]
    assert set(plan.sparsities) == {"first.weight", "middle.0.weight", "last.weight"}
    done = secateur.apply(plan, session, finetune=2, schedule=schedule, out=tmp_path / "sparse")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert done.summary["pruned"]["test_accuracy"] is None
    state = load_file(tmp_path / "sparse" / "weights.safetensors")
    assert {name: int((state[name] == 0).sum()) for name in plan.sparsities} == gone(plan)
    assert torch.equal(state["middle.0.weight"], state["middle.1.weight"])
    again = secateur.load(tmp_path / "sparse", model=Tied())
    x = torch.randn(4, 1, 6, 6)
    with torch.inference_mode():
        assert torch.allclose(again(x), done.model(x), atol=1e-5)
    untrained = secateur.Session(config, model=model, images=secateur.Images(calibration=batch, search=batch))
    with pytest.raises(ValueError, match="there are no training images"):
        secateur.apply(plan, untrained, finetune=1, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_plan_of_weights_is_applied_as_one_whatever_method_the_config_names(run, trained, tmp_path):
    config = run.folder / "config.yaml"
    assert load_config(config).method == "channels"
    done = secateur.apply(trained.plan, config, finetune=0, out=tmp_path / "small")
    assert zeros(done.folder) == gone(trained.plan)
    assert load_config(done.folder / "config.yaml").method == done.summary["method"] == "weights"
    with pytest.raises(PlanError, match="prunes weights, not channels: set method: weights"):
        trained.plan.check(secateur.Session(config).structure)


def test_a_plan_for_another_network_or_method_is_refused(run, trained, tmp_path):
    batch = [(torch.randn(6, 1, 8, 8), torch.arange(6) % 3)]
    images = secateur.Images(calibration=batch, search=batch)
    other = secateur.Session(model=digits_resnet(num_classes=3), images=images)
    with pytest.raises(PlanError, match=r"layer linear.weight has 640 weights in the plan \(digits_resnet\), 192 here"):
        secateur.apply(trained.plan, other, out=tmp_path / "no")
    with pytest.raises(PlanError, match=r"same method, budget and criterion: weights, params 0\.1, magnitude against"):
        secateur.compare([trained.plan, run.plan], run.folder / "config.yaml", out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layers.ignore=[liner]"], "names 'liner', which is no layer here, nor a module's type – did you mean Linear"),
        (["layers.tie=[[conv1, linear]]"], "weight tensors are not tied"),
        (["budget.params=0.001"], r"budget\.params = 0\.001 cannot be met: .* still keeps 0\.\d+"),
        (["criterion=l1"], "no criterion of weights 'l1', only magnitude, obs"),
        (["method=channel"], "no method 'channel', only .*channels.*weights.*did you mean channels"),
        (["gradual.ramp=0"], "gradual.ramp = 0: input should be greater than 0"),
        (["gradual.evry=1"], "did you mean every"),
    ],
)
def test_what_cannot_be_is_refused(overrides, message, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        secateur.train(secateur.Session("digits", overrides=[*settings, *overrides]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "gradual", "finetune": 0}, "trains while it cuts, or after: give finetune epochs"),
        ({"schedule": "graduall", "finetune": 1}, "did you mean gradual"),
        ({"finetune": -1}, "finetune = -1"),
    ],
)
def test_what_cannot_be_applied_is_refused(arguments, message, trained, session, tmp_path):
    with pytest.raises(ValueError, match=message):
        secateur.apply(trained.plan, session, out=tmp_path / "no", **arguments)
    assert not (tmp_path / "no").exists()


def test_a_rule_for_channels_is_refused_in_one_line(trained, tmp_path, monkeypatch, capsys):
    arguments = [
        "secateur",
        "compare",
        str(trained.folder),
        "--against",
        "lamp,global_l1",
        "--out",
        str(tmp_path / "c"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "error: allocator global_l1 is for channels, not for weights: leave it out\n"
    assert not (tmp_path / "c").exists()
