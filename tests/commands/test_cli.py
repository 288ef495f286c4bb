from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def secateur(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "SECATEUR_DEBUG"}
    command = [sys.executable, "-m", "secateur", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


@pytest.mark.parametrize("command", ["train", "apply", "compare", "correlate", "magnitude", "sensitivity", "filters"])
def test_help_teaches(command):
    shown = secateur(command, "--help")
    assert shown.returncode == 0
    assert "Example: secateur " + command in " ".join(shown.stdout.split())


def test_a_command_from_start_to_end(run, tmp_path):
    done = secateur("apply", str(run.folder), "--finetune", "0", "--out", str(tmp_path / "small"))
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
        (["train", "--set", "pruning.criterion=l11"], "did you mean l1?"),
        (["apply", "nowhere"], "no plan at nowhere"),
        (["compare"], "give a plan, or --config"),
        (["compare", "--resume", "nowhere"], "no run there"),
        (["compare", "--resume", "nowhere", "--out", "here"], "leave --config, --set, --out out"),
        (["compare", "--config", "digits", "--against", "shalow"], "did you mean shallow?"),
        (["magnitude", "digits"], "give a sparsity (--sparsity 0.8) or a plan (--plan FILE)"),
        (["sensitivity", "--sparsities", "0.5,half"], "numbers separated by commas"),
        (["sensitivity", "--repair", "gramm"], "did you mean gram?"),
        (["filters", "--criterion", "l1"], "only car or rar"),
        (["correlate", "--plans", "2"], "correlate.plans = 2"),
        (["correlate", "--set", "budget.flops=1"], "every plan on it is the dense network"),
        (["correlate", "--resume", "nowhere", "--out", "here"], "leave them out"),
    ],
)
def test_a_users_mistake_is_one_clear_line(arguments, message, tmp_path):
    done = secateur(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()
