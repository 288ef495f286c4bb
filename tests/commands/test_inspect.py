"""`secateur inspect`: what it says is what a plan, torch's counter and the budget say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur.configs.amounts import told
from secateur.configs.load import ConfigError
from secateur.networks import cifar_resnet
from secateur.pruners import Budget, PlanError
from secateur.reports.progress import RichReporter


def counted(model: torch.nn.Module, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return int(counter.get_total_flops()) // 2


@pytest.fixture(scope="module")
def resnet() -> secateur.Inspection:
    return secateur.inspect("cifar_resnet20")


def test_a_network_by_its_name(resnet: secateur.Inspection) -> None:
    model = cifar_resnet(20)
    assert (resnet.method, resnet.unit, resnet.input_shape) == ("channels", "channels", (3, 32, 32))
    assert resnet.budgets["params"].whole == sum(p.numel() for p in model.parameters())
    assert resnet.budgets["flops"].whole == counted(model, 3, 32, 32)
    first = resnet.layers[0]
    assert (first.name, first.units, first.choices, first.least) == ("layer1.0.conv1", 16, tuple(range(1, 17)), 2)
    assert (first.coupled, first.consumers) == (("layer1.0.bn1",), ("layer1.0.conv2",))
    assert first.own == {"flops": 16 * 16 * 9 * 32 * 32, "params": 16 * 16 * 9}
    assert first.unit == {"flops": 2 * 16 * 9 * 32 * 32, "params": 2 * 16 * 9 + 2}
    assert sum(row.own["flops"] for row in resnet.layers) + resnet.left_flops == resnet.budgets["flops"].whole
    assert resnet.left_whole["linear"] == "it is the network's output"


def test_ranges_are_those_of_the_budget(tmp_path: Path) -> None:
    session = small.make(tmp_path, "channels", "layers.max_sparsity=0.8", "layers.bounds={inner2: [0.25, 0.5]}")
    found = secateur.inspect(session)
    assert {row.name: (row.least, row.most) for row in found.layers} == {
        "first": (2, 6),
        "inner1": (2, 8),
        "inner2": (4, 6),
    }
    for kind, reach in found.budgets.items():
        least = Budget(session.structure, kind, reach.least, 0.8, session.config.layers.bounds)  # type: ignore[arg-type]
        assert least.cost(least.least) == reach.least_amount
        assert reach.most == session.structure.fraction(kind, [6, 8, 6])
        with pytest.raises(PlanError, match="cannot be met"):
            session.beside(overrides=[f"budget.{kind}={reach.least - 1e-3}"]).budget  # noqa: B018


@pytest.mark.parametrize("method", ["channels", "weights"])
def test_every_method_at_any_width(method: str, tmp_path: Path) -> None:
    session = small.make(tmp_path, method)
    with open(tmp_path / "shown.txt", "w", encoding="utf-8") as file:  # noqa: PTH123
        session.reporter = RichReporter(Console(file=file, width=40))
        found = secateur.inspect(session)
    shown = (tmp_path / "shown.txt").read_text(encoding="utf-8")
    structure = session.structure
    assert [row.choices for row in found.layers] == [layer.choices for layer in structure.layers]
    for row, costs in zip(found.layers, structure.choice_costs("params"), strict=True):
        assert row.unit["params"] * (row.units - row.choices[0]) == pytest.approx(costs[-1] - costs[0])
    assert "…" not in shown  # no number is cut
    for kind, reach in found.budgets.items():
        assert told(kind, reach.whole) in shown


def test_latency_is_measured_only_where_it_is_asked_for(tmp_path: Path, resnet: secateur.Inspection) -> None:
    assert set(resnet.budgets) == {"flops", "params"}
    found = secateur.inspect(small.make(tmp_path, "channels"), latency=True)
    reach = found.budgets["latency"]
    assert 0 < reach.least_amount <= reach.whole
    assert all(row.unit["latency"] >= 0 for row in found.layers)
    with pytest.raises(PlanError, match=r"no latency table for method: weights; budget flops or params"):
        secateur.inspect(small.make(tmp_path, "weights"), latency=True)


def test_nothing_is_trained_for_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.commands.loading.pretrain", lambda *_: pytest.fail("it is trained"))
    found = secateur.inspect("digits")
    assert (found.network, found.input_shape, len(found.layers)) == ("digits_resnet", (1, 8, 8), 6)
    with pytest.raises(PlanError, match=r"budget.flops = 0.01 cannot be met: .* ask for at least that \(111.3k, "):
        secateur.Session("digits", overrides=["budget.flops=0.01"]).loaded  # noqa: B018
    with pytest.raises(PlanError, match=r"budget.params = 1G: the dense network's is 172.2k"):
        secateur.train(secateur.Session("digits", overrides=["budget.params=1G"]))
    assert not Path("runs").exists()


def test_a_run_and_what_was_applied(run: secateur.Training, tmp_path: Path) -> None:
    before = secateur.inspect(run.folder)
    secateur.apply(run.folder, out=tmp_path / "small")
    after = secateur.inspect(tmp_path / "small")
    assert [row.units for row in after.layers] == [kept for kept in run.plan.kept if kept > 1]  # of one, nothing can go
    reached = after.budgets["flops"].whole / before.budgets["flops"].whole
    assert reached == pytest.approx(run.plan.cost["flops"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cifar_resnet21", r"no config, run folder or network 'cifar_resnet21': .*did you mean cifar_resnet\d+\?"),
        ("nowhere.module:network", "trust_code=True"),
        ("torchvision:resnet81", "no network .resnet81. of classification"),
    ],
)
def test_what_cannot_be_inspected(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        secateur.inspect(given)


def test_a_module_without_a_shape(tmp_path: Path) -> None:
    config = secateur.Config.model_validate({"name": "mine", "budget": {"flops": 0.5}})
    session = secateur.Session(config, model=small.Small())
    with pytest.raises(ConfigError, match="give the shape of one image"):
        secateur.inspect(session)
    found = secateur.inspect(session, input_shape=(1, 6, 6))
    assert found.budgets["flops"].whole == counted(small.Small(), 1, 6, 6)
    assert secateur.inspect(secateur.Session(model=small.Small()), input_shape=(1, 6, 6)).layers == found.layers
    again = json.loads(json.dumps(found.as_json()))
    assert again["layers"][0]["choices"] == list(range(1, 7))
    assert np.isclose(again["budgets"]["params"]["least"], found.budgets["params"].least)
