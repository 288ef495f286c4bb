from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from secateur.commands import cli
from secateur.commands.studies import STUDIES


@dataclass
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def secateur(capsys, monkeypatch):
    """The console script, called in this process: starting another one takes seconds."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["secateur", *arguments])
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        monkeypatch.delenv("SECATEUR_DEBUG", raising=False)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(ended.value.code, *capsys.readouterr())

    return call


@pytest.mark.parametrize("command", ["train", "apply", "compare", "plan", *STUDIES])
def test_help_teaches(secateur, command):
    shown = secateur(command, "--help")
    assert shown.code == 0
    assert "Example: secateur " + command in " ".join(shown.stdout.split())


def test_what_is_inspected_as_json_and_as_a_table(secateur):
    asked = ["inspect", "digits_resnet", "--input", "1x8x8", "--set", "layers.round_to=8"]
    found, shown = secateur(*asked, "--json"), secateur(*asked)
    assert (found.code, shown.code, found.stderr) == (0, 0, "")
    tree = json.loads(found.stdout)  # and nothing else
    assert [layer["choices"] for layer in tree["layers"][:2]] == [[8, 16], [8, 16]]
    for layer in tree["layers"]:
        assert layer["name"] in shown.stdout
    assert "layer1.0.conv2: it is coupled to conv1" in shown.stdout.replace(", layer1.1.conv2", "")


@pytest.mark.parametrize(
    "command", [["train", "--resume", "RUN", "--target", "0"], ["plan", "RUN", "--flops", "20%"]], ids=["train", "plan"]
)
def test_as_json_nothing_else_is_on_standard_output(secateur, run, command, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    done = secateur(*(str(folder) if part == "RUN" else part for part in command), "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    where = Path(found.pop("folder"))
    assert where in (folder, folder / "plan")
    assert found in [json.loads(file.read_text(encoding="utf-8")) for file in where.glob("*.json")]
    assert str(where) in done.stderr


def test_every_command_has_json():
    commands = typer.main.get_command(cli.app).commands
    without = [name for name, c in commands.items() if not any("--json" in option.opts for option in c.params)]
    assert len(commands) >= 8
    assert without == []


def test_a_command_from_start_to_end(run, tmp_path):
    arguments = ["apply", str(run.folder), "--finetune", "0", "--out", str(tmp_path / "small")]
    command = [sys.executable, "-m", "secateur", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "pruned and repaired" in done.stdout
    assert str(tmp_path / "small" / "weights.safetensors") in done.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nonsense"], "no config 'nonsense'"),
        (["train", "--set", "budgets.flops=0.4"], "did you mean budget?"),
        (["train", "--set", "budget.flops=0"], "greater than 0"),
        (["train", "cifar10-resnet20", "--set", "data.root=nowhere"], "nowhere"),
        (["train", "--resume", "nowhere"], "no run there"),
        (["train", "--set", "device=cuda:7"], "device = 'cuda:7'"),
        (["train", "--set", "criterion=l11"], "did you mean l1?"),
        (["apply", "nowhere"], "no plan at nowhere"),
        (["compare"], "give a plan, or --config"),
        (["compare", "--resume", "nowhere"], "no run there"),
        (["compare", "--resume", "nowhere", "--out", "here"], "leave --config, --set, --out out"),
        (
            ["compare", "--config", "digits", "--set", "network.pretrain.epochs=1", "--against", "shalow"],
            "did you mean shallow?",
        ),
        (["train", "--set", "pruning.criterion=l11"], "did you mean l1?"),  # as it was called in version 0.1
        (["train", "--set", "method=weihgts"], "did you mean weights?"),
        (["train", "--set", "method=weights", "--set", "criterion=magnitud"], "did you mean magnitude?"),
        (["apply", "nowhere", "--schedule", "graduall"], "did you mean gradual?"),
        (["sensitivity", "--sparsities", "0.5,half"], "numbers separated by commas"),
        (["sensitivity", "--repair", "gramm"], "did you mean gram?"),
        (["filters", "--criterion", "l1"], "only car or rar"),
        (["inspect", "cifar_resnet20", "--input", "3x32"], "does not run on images of 3×32"),
        (["inspect", "--input", "3,32,32"], "sizes of one image, as in 3x224x224"),
        (["inspect", "cifar_resnet20", "--set", "layers.ignore=[layer9]"], "layers.ignore names 'layer9'"),
        (["correlate", "--plans", "2"], "correlate.plans = 2"),
        (["correlate", "--set", "budget.flops=1"], "every plan on it is the dense network"),
        (["correlate", "--resume", "nowhere", "--out", "here"], "leave them out"),
    ],
)
def test_a_users_mistake_is_one_clear_line(secateur, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = secateur(*arguments)
    assert done.code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()
