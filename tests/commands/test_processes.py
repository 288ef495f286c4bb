"""Commands in several processes: one runs them, all train, one writes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import several
import torch

import secateur
from secateur.storage.files import read_tensors

needs_accelerate = pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


@pytest.mark.slow
@pytest.mark.parametrize("method", ["channels", "weights", "bits"])
def test_two_processes_leave_behind_what_one_does(tmp_path: Path, method: str):
    several.applied(tmp_path, method, "one")
    assert several.run(tmp_path, 2, several.applied, tmp_path, method, "two") == [0, 0]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(json.loads((tmp_path / "two" / "small" / "about.json").read_text())["runs"]) == 1
    (one, _), (two, _) = (read_tensors(tmp_path / name / "small" / "weights.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    lines = [(tmp_path / name / "small" / "training.jsonl").read_text().splitlines() for name in ("one", "two")]
    for ours, theirs in zip(*(map(json.loads, part) for part in lines), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["images"] == theirs["images"]
    if method == "channels":
        rows = [json.loads((tmp_path / name / "compared" / "compare.json").read_text()) for name in ("one", "two")]
        for ours, theirs in zip(*(row["trained"] for row in rows), strict=True):
            assert (ours["schedule"], ours["images"]) == (theirs["schedule"], theirs["images"])
            assert ours["search_accuracy"] == pytest.approx(theirs["search_accuracy"], abs=6.0)  # 2 of 36 images


@needs_accelerate
@pytest.mark.slow
def test_on_the_command_line(run, tmp_path: Path):
    def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "secateur", *arguments)
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=500, check=False)

    looked = launched("inspect", str(run.folder), "--json")
    assert looked.returncode == 0
    assert json.loads(looked.stdout)["layers"]
    said = [line for line in looked.stderr.splitlines() if "processes" in line]
    assert said == [
        "2 processes: only trainings of networks are shared out, all else of secateur inspect runs in one of them"
    ]

    folder = tmp_path / "small"
    done = launched(
        "apply", str(run.folder), "--finetune", "1", "--set", "finetune.batch_size=50", "--out", str(folder)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fine-tune: 2 processes share every batch out") == 1
    assert done.stdout.count("The plan, applied") == 1
    assert secateur.load(folder) is not None
    assert len((folder / "training.jsonl").read_text().splitlines()) == 1

    failed = launched("apply", str(run.folder), "--finetune", "1", "--out", str(folder))
    assert failed.returncode != 0
    (why,) = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert why.startswith(f"error: --out {folder}: it is not empty, and nothing is overwritten")


def test_a_process_that_no_job_numbered_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert secateur.distributed(lambda: 3) == 3
