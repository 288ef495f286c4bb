from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.commands.cli import app
from secateur.networks import digits_resnet
from secateur.pruners.structure import PlanError


def sizes() -> dict[str, int]:
    """The weights of the default network: one a convolution or linear layer."""
    return {name: p.numel() for name, p in digits_resnet().named_parameters() if p.dim() > 1}


def zeros(folder) -> dict[str, int]:
    state = load_file(folder / "weights.safetensors")
    return {name: int((state[name] == 0).sum()) for name in sizes()}


@pytest.fixture(scope="module")
def sparse(run, tmp_path_factory):
    """Half of the weights, by one threshold, in one epoch."""
    folder = tmp_path_factory.mktemp("magnitude") / "sparse"
    return secateur.magnitude(run.folder / "config.yaml", sparsity=0.5, scope="global", finetune=1, out=folder)


def test_the_folder_says_what_is_in_the_weights(sparse):
    counts, total = zeros(sparse.folder), sum(sizes().values())
    assert sum(counts.values()) == round(0.5 * total)
    summary = json.loads((sparse.folder / "summary.json").read_text())
    assert summary == sparse.summary
    assert summary["sparsity"] == pytest.approx({name: counts[name] / n for name, n in sizes().items()})
    assert summary["total_sparsity"] == pytest.approx(0.5, abs=1 / total)
    params = sum(p.numel() for p in digits_resnet().parameters())
    assert summary["pruned"]["params"] == pytest.approx(1 - sum(counts.values()) / params)
    for name in ("dense", "at_once", "pruned"):
        assert summary[name].keys() == {"test_accuracy", "flops", "params", "latency_ms"}
        assert summary[name]["latency_ms"] > 0
    assert len(set(summary["sparsity"].values())) > 5  # one threshold, many sparsities


def test_training_pays(sparse):
    assert sparse.summary["pruned"]["test_accuracy"] > sparse.summary["at_once"]["test_accuracy"]
    assert sparse.summary["pruned"]["test_accuracy"] > 70


def test_load_gives_the_network_back(sparse):
    again = secateur.load(sparse.folder)
    images = torch.randn(5, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(again(images), sparse.model(images))
    assert not again.training


def test_at_once_the_largest_weights_stay_as_they_were(run, tmp_path):
    done = secateur.magnitude(run.folder / "config.yaml", sparsity=0.6, out=tmp_path / "sparse")
    dense = load_file(run.folder / "dense.safetensors")
    for name, tensor in done.model.state_dict().items():
        if name in sizes():
            size = dense[name].abs().flatten()
            threshold = np.sort(size.numpy())[round(0.6 * len(size)) - 1]
            assert torch.equal(tensor, torch.where(dense[name].abs() > threshold, dense[name], 0.0)), name
        else:
            assert torch.equal(tensor, dense[name]), name
    assert "at_once" not in done.summary
    assert done.summary["finetune_epochs"] == 0


def test_the_plan_gives_the_same_counts_again(sparse, run, tmp_path):
    once = secateur.magnitude(plan=sparse.folder, finetune=0)
    assert once.folder == sparse.folder / "magnitude"
    assert zeros(once.folder) == zeros(sparse.folder)
    trained = secateur.magnitude(plan=sparse.folder / "plan.json", finetune=1, out=tmp_path / "trained")
    assert zeros(trained.folder) == zeros(sparse.folder)
    plans = [secateur.RatioPlan.load(folder) for folder in (sparse.folder, once.folder, trained.folder)]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].method == "magnitude"
    assert plans[0].provenance.allocator == "global"
    assert plans[0].cost["params"] == sparse.summary["pruned"]["params"]


def test_a_sparsity_a_tensor_and_what_stays_dense(run, tmp_path):
    done = secateur.magnitude(
        run.folder / "config.yaml",
        sparsity={"linear.weight": 0.25},
        overrides=["layers.exclude=[conv1]"],
        out=tmp_path / "sparse",
    )
    counts = zeros(done.folder)
    assert counts.pop("linear.weight") == 160
    assert set(counts.values()) == {0}
    assert "conv1.weight" not in done.summary["sparsity"]


def test_adaptive_batch_norm_where_the_config_asks_for_it(run, tmp_path):
    overrides = ["pruning.final_adaptive_bn=100"]
    kwargs = {"sparsity": 0.6, "finetune": 0, "overrides": overrides}
    done = secateur.magnitude(run.folder / "config.yaml", out=tmp_path / "sparse", **kwargs)
    dense = load_file(run.folder / "dense.safetensors")
    name = "layer3.1.bn2.running_var"
    assert not torch.equal(done.model.state_dict()[name], dense[name])


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


def test_your_own_network_and_images(tmp_path):
    batch = [(torch.randn(12, 1, 6, 6), torch.arange(12) % 3)]
    images = secateur.Images(calibration=batch, search=batch, train=batch)
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = secateur.magnitude(
        model=model, images=images, sparsity=0.5, scope="global", finetune=2, out=tmp_path / "sparse"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert done.summary["pruned"]["test_accuracy"] is None
    assert set(done.summary["sparsity"]) == {"first.weight", "middle.0.weight", "last.weight"}
    state = load_file(tmp_path / "sparse" / "weights.safetensors")
    counted = ("first.weight", "middle.0.weight", "last.weight")
    assert sum(int((state[name] == 0).sum()) for name in counted) == round(0.5 * (54 + 324 + 18))
    again = secateur.load(tmp_path / "sparse", model=Tied())
    x = torch.randn(4, 1, 6, 6)
    with torch.inference_mode():
        assert torch.equal(again(x), done.model(x))
    images = secateur.Images(calibration=batch, search=batch)
    with pytest.raises(ValueError, match="there are no training images"):
        secateur.magnitude(model=model, images=images, sparsity=0.5, finetune=1, out=tmp_path / "no")


def test_a_plan_for_another_network_or_method_is_refused(run, sparse, tmp_path):
    config = run.folder / "config.yaml"
    batch = [(torch.randn(6, 1, 8, 8), torch.arange(6) % 3)]
    images = secateur.Images(calibration=batch, search=batch)
    with pytest.raises(PlanError, match=r"layer linear.weight has 640 weights in the plan \(digits_resnet\), 192 here"):
        secateur.magnitude(plan=sparse.folder, model=digits_resnet(num_classes=3), images=images, out=tmp_path / "no")
    with pytest.raises(PlanError, match="prunes channels, not weights: apply it with `secateur apply`"):
        secateur.magnitude(plan=run.folder, out=tmp_path / "no")
    for other in (secateur.apply, secateur.compare):
        plans = sparse.folder if other is secateur.apply else [sparse.folder]
        with pytest.raises(PlanError, match="prunes weights, not channels: apply it with `secateur magnitude --plan`"):
            other(plans, config=config, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give a sparsity"),
        ({"sparsity": 0.5, "plan": "plan.json"}, "one of the two"),
        ({"sparsity": 1.0}, "sparsity = 1: give the fraction"),
        ({"sparsity": 0.5, "scope": "layers"}, "did you mean layer"),
        ({"plan": "plan.json", "scope": "layer"}, "leave --scope out"),
        ({"sparsity": 0.5, "finetune": -1}, "finetune = -1"),
        ({"sparsity": {"linear": 0.5}}, "'linear', which is no weight to prune here"),
        ({"sparsity": 0.5, "overrides": ["layers.exclude=[liner]"]}, "did you mean linear"),
        ({"sparsity": 0.5, "overrides": ["magnitude.ramp=0"]}, "magnitude.ramp = 0: input should be greater than 0"),
        ({"sparsity": 0.5, "overrides": ["magnitude.evry=1"]}, "did you mean every"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        secateur.magnitude(run.folder / "config.yaml", **arguments)
    assert not list(tmp_path.iterdir())


def test_the_command_hands_on_what_it_is_told(run, tmp_path):
    def command(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["magnitude", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    out = tmp_path / "sparse"
    shown = command(str(run.folder / "config.yaml"), "--sparsity", "0.8", "--scope", "global", "--out", str(out))
    assert "80 % of the weights removed" in shown
    assert str(out / "weights.safetensors") in shown.replace("\n", "")
    assert sum(zeros(out).values()) == round(0.8 * sum(sizes().values()))
    assert "pruned while trained, 1 epochs" in command("--plan", str(out), "--set", "finetune.epochs=1")
    assert (out / "magnitude" / "plan.json").read_bytes() == (out / "plan.json").read_bytes()
    assert zeros(out / "magnitude") == zeros(out)
