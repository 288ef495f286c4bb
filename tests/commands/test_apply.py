from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur.networks import digits_resnet
from secateur.pruners.structure import PlanError


@pytest.fixture(scope="module")
def applied(run, tmp_path_factory):
    return secateur.apply(run.folder, finetune=1, out=tmp_path_factory.mktemp("applied") / "small")


def flops(model: torch.nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 8, 8))
    return counter.get_total_flops() // 2


def test_the_network_is_physically_smaller_and_costs_what_the_summary_says(applied):
    dense = digits_resnet()
    summary = json.loads((applied.folder / "summary.json").read_text())
    assert summary["pruned"]["flops"] == pytest.approx(flops(applied.model) / flops(dense))
    params = [sum(p.numel() for p in model.parameters()) for model in (applied.model, dense)]
    assert summary["pruned"]["params"] == pytest.approx(params[0] / params[1])
    assert summary["pruned"]["flops"] <= 0.14
    for name in ("dense", "masked", "pruned", "repaired"):
        change = set() if name == "dense" else {"test_change", "test_change_standard_error"}
        assert summary[name].keys() == {"test_accuracy", "flops", "params", "latency_ms", "bytes", *change}
        assert summary[name]["latency_ms"] > 0
    assert summary["masked_difference"] <= 1e-4


def test_repair_and_fine_tuning_pay(applied):
    summary = applied.summary
    assert summary["repaired"]["test_accuracy"] > summary["masked"]["test_accuracy"] + 10
    assert summary["pruned"]["test_accuracy"] > 40


def test_load_gives_the_network_back(applied):
    again = secateur.load(applied.folder)
    images = torch.randn(5, 1, 8, 8)
    with torch.inference_mode():
        assert torch.allclose(again(images), applied.model(images), atol=1e-5)
    for name, tensor in applied.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.training


def test_the_plan_needs_no_config_that_made_it(run, tmp_path):
    shutil.copy(run.folder / "plan.json", tmp_path)
    with pytest.raises(ValueError, match="give the config"):
        secateur.apply(tmp_path / "plan.json")
    done = secateur.apply(tmp_path / "plan.json", run.folder / "config.yaml", finetune=0, out=tmp_path / "small")
    assert done.summary["pruned"]["flops"] == pytest.approx(run.plan.cost["flops"])


def test_a_plan_for_another_network_is_refused(run, tmp_path):
    overrides = ["network.name=cifar_resnet20", "network.kwargs.in_channels=1", "network.pretrain.epochs=1"]
    other = secateur.Session("digits", overrides=overrides)
    with pytest.raises(PlanError, match=r"another network: layer layer1\.2\.conv1 is not in the plan"):
        secateur.apply(run.folder, other, out=tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["layers"][0].update(sparsity=1.5), "sparsity = 1.5"),
        (lambda plan: plan["layers"][0].update(sparsity=1.0), "sparsity 1 of 16 units does not keep"),
        (lambda plan: plan["layers"][0].update(sparsity=1.0, kept=0), "0 units kept is outside 1 … 16"),
        (lambda plan: plan["layers"][0].update(sparsity=-0.1), "sparsity = -0.1"),
        (lambda plan: plan["layers"][1].update(name="layer1.1.conv9"), "did you mean layer1.1.conv1"),
    ],
)
def test_a_bad_plan_is_refused(run, tmp_path, change, message):
    plan = json.loads((run.folder / "plan.json").read_text())
    change(plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match=message):
        secateur.apply(tmp_path / "plan.json", run.folder / "config.yaml", out=tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_one_class_too_many_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"10 classes.*11|11.*10 classes"):
        secateur.apply(run.folder, secateur.Session(overrides=["network.num_classes=11"]), out=tmp_path / "small")


def test_a_shrunk_network_that_differs_is_not_saved(run, tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.commands.retraining.TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="does not compute what the masked one computes"):
        secateur.apply(run.folder, finetune=0, out=tmp_path / "small")
    assert not (tmp_path / "small" / "weights.safetensors").exists()


def test_loading_what_is_not_there(tmp_path, applied):
    with pytest.raises(FileNotFoundError, match="secateur apply"):
        secateur.load(tmp_path)
    shutil.copytree(applied.folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is damaged"):
        secateur.load(tmp_path / "damaged")
