"""A comparison after training: every plan alike, resumable, and a verdict on the same images."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from small import make, plan_of

import secateur
from secateur.commands.trained import Trained, order_kept, summarised, trained_table, trained_verdict
from secateur.data.loaders import TrainLoader
from secateur.envs.workers.processes import Processes
from secateur.storage.files import read_tensors, write_tensors
from secateur.training.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> secateur.Session:
    return make(tmp_path_factory.mktemp("small"), "channels")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than so small a network's training."""
    monkeypatch.setattr("secateur.commands.compare.comparison_figure", lambda *_given: None)


ARGUMENTS: dict[str, Any] = {
    "against": ["uniform", "random"],
    "candidates": 2,
    "seeds": [0, 1],
    "finetune": 2,
    "schedules": ["one_shot", "rewind"],
}


def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_every_plan_is_trained_alike_and_nothing_twice(session, tmp_path, monkeypatch):
    whole = secateur.compare((), session, **ARGUMENTS, out=tmp_path / "whole")
    names = [(row["allocator"], row["seed"], row["schedule"], row["training_seed"]) for row in whole.trained]
    rule = [("uniform", 0, schedule, seed) for schedule in ("one_shot", "rewind") for seed in (0, 1)]
    searches = [("random", seed, schedule, seed) for seed in (0, 1) for schedule in ("one_shot", "rewind")]
    assert names == rule + searches
    assert {row["images"] for row in whole.trained} == {2 * 3 * 12}  # epochs, batches, images
    assert {row["dense_images"] for row in whole.trained} == {72}
    found = {(row["allocator"], row["search_images"]) for row in whole.trained}
    assert found == {("uniform", 0), ("random", 2 * (36 + 36))}  # candidates, images that repair and that score
    for number, row in enumerate(whole.rows):
        ours = [r["test_accuracy"] for r in whole.trained if (r["plan"], r["schedule"]) == (number, "one_shot")]
        assert row["finetuned_test_accuracy"] == pytest.approx(sum(ours) / len(ours))
    written = json.loads((whole.folder / "compare.json").read_text())
    assert written["trained"] == whole.trained
    assert len(written["trained_summary"]) == 4
    assert written["trained_verdict"] is None or "after 2 epochs" in written["trained_verdict"]
    assert not (whole.folder / "finetune").exists()

    write, writes = Checkpoint.write, []

    def failing(self: Checkpoint, *given: Any) -> None:
        if len(writes) == 9:  # in the fifth training
            raise KeyboardInterrupt
        writes.append(self.path)
        write(self, *given)

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            secateur.compare((), session, **ARGUMENTS, out=folder)
    finished = folder / "finetune" / "0-rewind-1" / "row.safetensors"
    with pytest.raises(ValueError, match=r"schedules was \['one_shot', 'rewind'\], is \['one_shot'\] now"):
        secateur.compare((), session, **{**ARGUMENTS, "schedules": ["one_shot"]}, resume=folder)
    other = session.beside(overrides=["finetune.distill.weight=0"])
    with pytest.raises(ValueError, match=r"finetune\.distill\.weight was 0\.5, is 0\.0 now"):
        secateur.compare((), other, **ARGUMENTS, resume=folder)
    tensors, about = read_tensors(finished)
    write_tensors(finished, tensors, {**about, "plan": "[1]"})
    with pytest.raises(ValueError, match=r"row\.safetensors is of another plan, or of a training with other images"):
        secateur.compare((), session, **ARGUMENTS, resume=folder)
    write_tensors(finished, tensors, about)
    steps, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *given: (steps.append(1), step(self, *given))[1])
    again = secateur.compare((), session, **ARGUMENTS, resume=folder)
    assert told(again.trained) == told(whole.trained)
    assert again.rows == whole.rows
    assert len(steps) == (8 - 4) * 2 * 3 - 3  # of the fifth training one epoch is there


@pytest.mark.slow
def test_workers_train_what_one_process_does(session, tmp_path):
    arguments = {**ARGUMENTS, "against": ["uniform"], "finetune": 1, "schedules": ["one_shot", "scratch_e"]}
    alone = secateur.compare((), session, **arguments, out=tmp_path / "alone")
    begun: list[Any] = []

    def watched(self: Processes, *given: Any) -> Any:
        begun.append(hire(self))
        return begun[-1]

    hire = Processes.hire
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Processes, "hire", watched)
        patch.setattr(torch.optim.SGD, "step", None)  # this process trains nothing
        both = secateur.compare((), session.beside(overrides=["workers=2"]), **arguments, out=tmp_path / "both")
    assert len(begun) == 2
    assert told(both.trained) == told(alone.trained)
    assert both.rows == alone.rows


def test_plans_of_several_seeds_are_trained_by_their_own(session, tmp_path):
    plan = plan_of(session)
    found = [plan.provenance.model_copy(update={"allocator": "own", "seed": seed}) for seed in (0, 1)]
    given = [*(plan.model_copy(update={"provenance": of}) for of in found), plan]
    found = secateur.compare(given, session, against=[], seeds=[0, 1], finetune=1, out=tmp_path / "given")
    assert [(row["allocator"], row["seed"], row["training_seed"]) for row in found.trained] == [
        ("own", 0, 0),
        ("own", 1, 1),
        ("uniform", 0, 0),
        ("uniform", 0, 1),
    ]


def test_a_seed_is_an_order_of_the_images_that_all_plans_share(monkeypatch):
    session = secateur.Session("digits", overrides=["network.pretrain.epochs=1", "data.calibration=20"])
    loaders = [session.train_loader(50, seed) for seed in (None, 0, 1, 1)]
    assert all(isinstance(loader, TrainLoader) for loader in loaders)
    first, zero, one, again = (next(iter(loader)) for loader in loaders)
    assert torch.equal(first[0], zero[0])
    assert not torch.equal(zero[0], one[0])
    assert torch.equal(one[0], again[0])


def trained(allocator: str, plan: int, hits: list[int], schedule: str = "one_shot", seed: int = 0) -> Trained:
    score = 100 * sum(hits) / len(hits)
    row = {"plan": plan, "allocator": allocator, "seed": 0, "schedule": schedule, "training_seed": seed}
    row |= {"search_accuracy": 50.0, "test_accuracy": score, "images": 1000, "dense_images": 0, "search_images": 0}
    row["seconds"] = 1.0
    return Trained(row, 100.0 * torch.tensor(hits, dtype=torch.float64))


def test_the_verdict_is_on_the_same_images_and_over_seeds():
    good, fair, poor = [1] * 90 + [0] * 10, [1] * 89 + [0] * 11, [1] * 60 + [0] * 40
    rows = [trained("a", 0, fair), trained("b", 1, poor, seed=0), trained("b", 1, poor[::-1], seed=1)]
    rows += [trained("c", 2, good), trained("c", 2, good, seed=1)]
    found = summarised(rows)
    assert [row["allocator"] for row in found] == ["c", "a", "b"]
    assert [row["trainings"] for row in found] == [2, 1, 2]
    assert found[1]["behind"] == pytest.approx(1.0)
    assert found[1]["behind_standard_error"] == pytest.approx(1.0)  # of a hundred images one differs
    images = torch.tensor(good) - (torch.tensor(poor) + torch.tensor(poor[::-1])) / 2
    assert found[2]["behind_standard_error"] == pytest.approx(100 * float(images.std()) / 10)
    before = [{"test_accuracy": score} for score in (50.0, 40.0, 45.0)]
    spearman = order_kept(before, rows, "one_shot")
    assert spearman == pytest.approx(0.5)
    assert order_kept(before[:2], rows, "one_shot") is None
    sentence = trained_verdict(found, 5, spearman)
    assert sentence == (
        "c is best after 5 epochs, 90.00: beyond two standard errors ahead of b; not beyond chance ahead of a; order "
        "of the plans before and after: Spearman 0.50"
    )
    assert trained_verdict(found[:1], 5, None) is None
    schedules = summarised([trained("a", 0, good), trained("a", 0, poor, "scratch_b")])
    assert trained_verdict(schedules, 5, None) == (
        "a (one_shot) is best after 5 epochs, 90.00: beyond two standard errors ahead of a (scratch_b)"
    )
    longer = trained_verdict(summarised([trained("a", 0, poor), trained("a", 0, good, "scratch_b")]), 5, None)
    assert longer == (
        "a (scratch_b) is best after the FLOPs of 5 dense epochs, 90.00: beyond two standard errors ahead of "
        "a (one_shot)"
    )
    assert len(trained_table(found, "top-1 %").rows) == 3
