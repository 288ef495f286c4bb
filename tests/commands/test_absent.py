"""Whatever may be absent, is: no test images, no training images, no config's network or data, one layer, no rules.

Every command must do what it can, or say before any work what it lacks.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from torch import nn

import secateur
from secateur.commands.apply import figures_table
from secateur.commands.compared import compare_table
from secateur.configs import ConfigError, load_config
from secateur.reports.figures import comparison_figure, plan_figure, quality_figure
from secateur.reports.progress import RichReporter


class One(nn.Module):
    """One layer of channels, two of weights; no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(x).relu().mean((2, 3)))


def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(20, 3, 6, 6, generator=generator), torch.arange(20) % 3)]


def session(method: str, **changes) -> secateur.Session:
    """A network and two kinds of images, and nothing else."""
    tree = {
        "name": "mine",
        "method": method,
        "budget": {"params": 0.7},
        "agent": {"episodes": 2, "warmup": 1, "updates": 1, "hidden": [4]},
    }
    given = {"config": secateur.Config.model_validate(tree), "images": secateur.Images(batches(0), batches(1))}
    reporter = RichReporter(Console(file=io.StringIO(), width=100))
    return secateur.Session(**{**given, "model": seeded(), "reporter": reporter, **changes})


def seeded() -> nn.Module:
    torch.manual_seed(0)
    return One()


def said(of: secateur.Session) -> str:
    return of.reporter.console.file.getvalue()


def is_drawn(path) -> bool:
    return len(np.unique(imread(path)[..., :3].reshape(-1, 3), axis=0)) > 10


@pytest.fixture(scope="module", params=["channels", "weights"])
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(method, tmp_path_factory) -> secateur.Training:
    return secateur.train(session(method), out=tmp_path_factory.mktemp(method) / "run")


def test_train(trained, method):
    assert trained.plan.cost["params"] <= 0.7
    assert len(trained.plan.layers) == {"channels": 1, "weights": 2}[method]
    assert trained.plan.architecture == "One"
    assert is_drawn(trained.folder / "plan.png")
    assert is_drawn(trained.folder / "quality.png")
    resumed = secateur.train(session(method, config=None), resume=trained.folder)
    assert resumed.plan == trained.plan


@pytest.mark.parametrize("beside", [True, False])
def test_apply(trained, method, beside, tmp_path):
    mine = session(method, config=None)
    done = secateur.apply(trained.folder if beside else trained.plan, mine, out=tmp_path / "small")
    rows = [row for row in done.summary.values() if isinstance(row, dict) and "test_accuracy" in row]
    assert len(rows) == 3
    assert all(row["test_accuracy"] is None for row in rows)
    assert "pruned and repaired" in said(mine)
    assert is_drawn(done.folder / "plan.png")
    x = batches(5)[0][0]
    with torch.inference_mode():
        assert torch.allclose(secateur.load(done.folder, model=One())(x), done.model(x), atol=1e-5)
    with pytest.raises(ValueError, match="holds a network of your own"):
        secateur.load(done.folder)


@pytest.mark.parametrize("against", [[], ["uniform"], ["shallow", "deep", "random"]])
def test_compare(trained, method, against, tmp_path):
    mine = session(method)
    done = secateur.compare([trained.plan], mine, against=against, candidates=2, out=tmp_path / "c")
    assert [row["allocator"] for row in done.rows] == ["ddpg", *against]
    assert all(row["test_accuracy"] is None and "test_gain_over_uniform" not in row for row in done.rows)
    assert is_drawn(done.folder / "compare.png")
    assert "Same cost, same repair, same images" in said(mine)
    assert json.loads((done.folder / "compare.json").read_text())["rows"] == done.rows


def test_compare_fine_tuned_without_test_images(method, tmp_path):
    train = secateur.Images(batches(0), batches(1), train=batches(2))
    done = secateur.compare((), session(method, images=train), against=["deep"], finetune=1, out=tmp_path / "c")
    assert done.rows[0]["finetuned_test_accuracy"] is None
    assert is_drawn(done.folder / "compare.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"against": []}, "nothing to compare: give a plan, or an allocator"),
        ({"against": ["random"], "seeds": []}, "0 seeds: a search draws, give 1 to 1,000"),
        ({"against": ["uniform"], "finetune": 1}, "there are no training images: pass images.train"),
    ],
)
def test_compare_says_before_any_work_what_it_lacks(arguments, message, method, tmp_path):
    with pytest.raises(ValueError, match=message):
        secateur.compare((), session(method), out=tmp_path / "c", **arguments)
    assert not (tmp_path / "c").exists()


def test_apply_says_before_any_work_what_it_lacks(trained, method, tmp_path):
    with pytest.raises(ValueError, match=r"there are no training images: pass images\.train"):
        secateur.apply(trained.plan, session(method), finetune=1, out=tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_correlate_says_before_any_work_what_it_lacks(method, tmp_path):
    with pytest.raises(ValueError, match=r"no test images to measure finished plans on: pass images\.test"):
        secateur.correlate(session(method), out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_plan(trained, method, tmp_path):
    done = secateur.plan(trained.folder, session(method, config=None), params=0.8, out=tmp_path / "plan")
    assert done.plan.cost["params"] <= 0.8
    assert is_drawn(done.folder / "plan.png")


@pytest.mark.parametrize("config", [True, False])
def test_sensitivity(method, config, tmp_path):
    mine = session(method) if config or method == "weights" else session(method, config=None)
    layer = {"channels": "conv", "weights": "conv.weight"}[method]
    done = secateur.sensitivity(mine, layers=[layer], sparsities=[0.5], out=tmp_path / "s")
    assert {point["layer"] for point in done.points} == {layer}
    assert is_drawn(done.folder / "sensitivity.png")
    assert "error of the consumers'" in " ".join(said(mine).split())


def test_filters(method, tmp_path):
    mine = session(method)
    done = secateur.filters(mine, out=tmp_path / "f")
    assert len(done.summary["filters"]) == 6
    assert is_drawn(done.folder / "filters.png")
    assert "conv: of the first 3 filters" in said(mine)


def test_filters_know_before_any_work_that_the_config_is_of_other_images(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.commands.filters._removed_first", lambda *_: pytest.fail("filters were removed"))
    tree = {"name": "grey", "budget": {"flops": 0.5}, "data": {"name": "digits", "mean": [0.5], "std": [0.5]}}
    mine = session("channels", config=secateur.Config.model_validate(tree))
    with pytest.raises(ValueError, match=r"data\.std has 1 channel"):
        secateur.filters(mine, out=tmp_path / "f")


def test_your_own_network_on_a_configs_images(tmp_path):
    """The config's network plays no part: it is neither built, nor found missing, nor named in what is saved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    overrides = ["network.weights=nowhere.safetensors", "data.calibration=50", "data.search=50", "data.test=50"]
    mine = secateur.Session("digits", model=model, overrides=[*overrides, "budget.params=0.5"])
    plan = secateur.compare((), mine, against=["uniform"], out=tmp_path / "c").plans[0]
    done = secateur.apply(plan, mine, finetune=0, out=tmp_path / "small")
    assert done.summary["pruned"]["test_accuracy"] is not None
    assert load_config(done.folder / "config.yaml").network is None
    with pytest.raises(ValueError, match="holds a network of your own"):
        secateur.load(done.folder)


def test_a_configs_network_on_your_own_images(tmp_path):
    network = {"name": "digits_resnet", "num_classes": 3, "kwargs": {"in_channels": 3}, "pretrain": {"epochs": 1}}
    config = secateur.Config.model_validate({"name": "mine", "budget": {"flops": 0.6}, "network": network})
    with pytest.raises(ConfigError, match=r"network\.pretrain needs training images: pass images\.train"):
        secateur.compare((), session("channels", config=config, model=None), against=["uniform"], out=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    images = secateur.Images(batches(0), batches(1), train=batches(2))
    mine = session("channels", config=config, model=None, images=images)
    done = secateur.compare((), mine, against=["uniform"], out=tmp_path / "d")
    assert done.rows[0]["flops"] <= 0.6
    assert (done.folder / "dense.safetensors").is_file()


@pytest.mark.parametrize("command", ["train", "compare", "sensitivity", "filters", "correlate"])
def test_neither_data_nor_network(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nothing = secateur.Session(secateur.Config.model_validate({"name": "nothing", "budget": {"flops": 0.5}}))
    plans = ((),) if command == "compare" else ()
    with pytest.raises(ConfigError, match="the config has no data section: add one, or pass images="):
        getattr(secateur, command)(*plans, nothing)
    images = secateur.Images(batches(0), batches(1), batches(2))
    blind = secateur.Session(
        secateur.Config.model_validate({"name": "nothing", "budget": {"flops": 0.5}}), images=images
    )
    with pytest.raises(ConfigError, match="the config has no network section: add one, or pass model="):
        getattr(secateur, command)(*plans, blind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_network_of_your_own_without_a_budget(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans = ((),) if command == "compare" else ()
    with pytest.raises(ConfigError, match="a config says what a network may cost"):
        getattr(secateur, command)(*plans, session("channels", config=None))
    assert not list(tmp_path.iterdir())


def row(allocator: str, **figures) -> dict:
    absent = {"test_accuracy": None, "latency": None}
    made = {"allocator": allocator, "seed": 0, "candidates": 0, "flops": 0.5, "params": 0.5, "search_accuracy": 50.0}
    return {**made, **absent, **figures}


@pytest.mark.parametrize(
    "rows",
    [
        [row("uniform")],
        [row("uniform", finetuned_test_accuracy=None)],
        [row("uniform", test_accuracy=40.0), row("deep")],
        [row("random"), row("random", finetuned_test_accuracy=60.0)],
        [row("uniform", search_accuracy=0.0, test_accuracy=0.0)],
        [row("uniform", search_accuracy=100.0, test_accuracy=100.0)],
    ],
)
def test_the_comparisons_figure_and_table(rows, trained, tmp_path):
    rows = [{key: value for key, value in row.items() if key != "latency"} for row in rows]
    comparison_figure(rows, [trained.plan] * len(rows), tmp_path / "compare.png", "mIoU %")
    assert is_drawn(tmp_path / "compare.png")
    console = Console(width=100, file=io.StringIO())
    console.print(compare_table(rows, "mIoU %"))
    lines = console.file.getvalue().splitlines()
    assert sum(any(line.strip().startswith(f"{row['allocator']} ") for row in rows[:1]) for line in lines) >= 1
    assert all("None" not in line for line in lines)


def test_other_figures_and_tables_of_one_thing(trained, tmp_path):
    quality_figure([0.5], tmp_path / "quality.png")
    plan_figure(trained.plan, tmp_path / "plan.png")
    assert is_drawn(tmp_path / "quality.png")
    assert is_drawn(tmp_path / "plan.png")
    console = Console(width=100, file=io.StringIO())
    rows = {"pruned": {"test_accuracy": None, "flops": 0.5, "params": 0.25, "latency_ms": 1.0}}
    console.print(figures_table("one", rows, {"dense": "dense", "pruned": "pruned"}, "nothing else", "top-1 %"))
    shown = [line.split() for line in console.file.getvalue().splitlines() if line.strip().startswith("pruned")]
    assert shown == [["pruned", "–", "50.0", "25.0", "1.00"]]
