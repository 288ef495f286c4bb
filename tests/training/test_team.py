"""Several processes give the network that one gives, up to rounding, and end together, however they end."""

from __future__ import annotations

from pathlib import Path

import pytest
import several
import torch
from torch import nn

import secateur
from secateur.training.part import Part, whole

EXACT = [name for name in several.TRAININGS if name not in ("half", "drawn")]
FAST = [name for name in several.TRAININGS if name != "mixed"]  # it imports torchvision, a second and a half


def differences(ours: several.Result, theirs: several.Result) -> dict[str, float]:
    (mine, losses), (other, other_losses) = ours, theirs
    assert mine.keys() == other.keys()
    found = {name: float((mine[name].double() - other[name].double()).abs().max()) for name in mine}
    return {**found, "losses": max(abs(a - b) for a, b in zip(losses, other_losses, strict=True))}


def test_two_processes_train_as_one_does(tmp_path: Path):
    file = tmp_path / "two.pt"
    assert several.run(tmp_path, 2, several.trainings, file, *FAST) == [0, 0]
    two = torch.load(file)
    for name in set(EXACT) & set(FAST):
        one = several.TRAININGS[name]()
        off = differences(one, two[name])
        assert max(off.values()) < 1e-9, (name, off)
    rounded = differences(several.TRAININGS["half"](), two["half"])
    assert max(rounded.values()) < 0.02  # bfloat16 has three digits
    assert torch.equal(two["partly"][0]["spare"], torch.ones(3))
    assert bool((two["parametrised"][0]["4.weight"][:, ::2] == 0).all())
    assert (tmp_path / "said-1.txt").read_text() == ""
    assert differences(several.TRAININGS["drawn"](), two["drawn"])["losses"] > 1e-3  # each draws for its own images


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3, 5])
def test_more_processes_than_images(tmp_path: Path, processes: int):
    file = tmp_path / "many.pt"
    assert several.run(tmp_path, processes, several.trainings, file, *EXACT) == [0] * processes
    for name, result in torch.load(file).items():
        off = differences(several.TRAININGS[name](), result)
        assert max(off.values()) < 1e-9, (name, off)


@pytest.mark.slow
def test_it_goes_on_bit_for_bit_and_with_another_number_of_processes(tmp_path: Path):
    whole_, half, checkpoint = tmp_path / "whole.pt", tmp_path / "half.pt", tmp_path / "kept.safetensors"
    assert several.run(tmp_path, 2, several.in_two, whole_, tmp_path / "other.safetensors", None) == [0, 0]
    assert several.run(tmp_path, 2, several.in_two, half, checkpoint, 2) == [3, 3]
    kept = checkpoint.read_bytes()
    assert several.run(tmp_path, 2, several.in_two, half, checkpoint, None) == [0, 0]
    assert max(differences(torch.load(whole_), torch.load(half)).values()) == 0.0
    checkpoint.write_bytes(kept)
    several.in_two(half, checkpoint, None)
    assert torch.load(half)[1][:2] == torch.load(whole_)[1][:2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "codes", "first", "second"),
    [
        ("bad label", [1, 1], "", ""),
        ("no rows", [1, 1], "without a row for each it cannot be trained by several processes", ""),
        ("not sent", [1, 1], "the network cannot be sent to other processes", ""),
        ("ctrl-c", [1, 130], "KeyboardInterrupt", ""),
        ("elsewhere", [1, 1], "another process of this training is gone", "error: process 2 of 2: no memory here"),
    ],
)
def test_all_end_together_and_one_says_why(tmp_path: Path, how: str, codes: list[int], first: str, second: str):
    assert several.run(tmp_path, 2, several.fails, how) == codes
    said, other = ((tmp_path / f"said-{rank}.txt").read_text().strip() for rank in (0, 1))
    assert said
    assert first in said
    assert other == second


def test_one_process_alone_runs_the_work(monkeypatch: pytest.MonkeyPatch):
    assert secateur.distributed(lambda: 7) == 7
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert secateur.distributed(lambda: 8) == 8
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("secateur.training.team.find_spec", lambda _name: None)
    with pytest.raises(ImportError, match=r"pip install 'secateur\[accelerate\]'"):
        secateur.distributed(lambda: 9)


def test_parts_are_all_of_a_batch_and_alike():
    for images in range(1, 9):
        parts = [Part(images, rank, 4) for rank in range(4)]
        rows = [list(range(images))[part.start : part.start + part.count] for part in parts]
        assert [image for own in rows for image in own] == list(range(images))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        assert all(len(part.of(torch.zeros(images))) == max(1, len(own)) for part, own in zip(parts, rows, strict=True))


def test_nothing_is_put_together_outside_of_a_step():
    outputs = {"a": torch.ones(2), "b": [torch.zeros(3)]}
    assert whole(outputs) is outputs
    with pytest.raises(ValueError, match="cannot be trained by several processes"):
        Part(4, 0, 2).whole(nn.Identity())
