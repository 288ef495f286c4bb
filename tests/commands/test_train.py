from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import secateur
from secateur.configs import ConfigError, load_config


def episodes(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def untimed(folder: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in episodes(folder)]


def test_the_run_folder_holds_everything(run):
    names = {path.name for path in run.folder.iterdir()}
    assert {"plan.json", "policy.safetensors", "episodes.jsonl", "summary.json", "config.yaml"} <= names
    assert {"plan.png", "quality.png", "dense.safetensors", "tensorboard"} <= names
    assert json.loads((run.folder / "summary.json").read_text()) == run.summary
    assert {"dense", "best", "episodes", "seconds", "seconds_per_part"} <= run.summary.keys()
    assert {"prune", "repair", "evaluate", "agent"} <= run.summary["seconds_per_part"].keys()
    assert run.summary["episodes"] == 6


def test_every_episode_is_logged_with_what_its_reward_and_its_quality_come_from(run):
    records = episodes(run.folder)
    assert [record["episode"] for record in records] == list(range(6))
    dense = run.summary["dense"]["search_accuracy"] / 100.0
    lost = [max(1e-3, dense - record["quality"]) for record in records]
    for record, loss in zip(records, lost, strict=True):
        assert record["quality"] == pytest.approx(sum(record["terms"].values()))
        assert record["quality"] == pytest.approx(record["accuracy"] / 100 - min(10, record["reconstruction_loss"]))
        penalty = 2.0 * sum(action**2 for action in record["actions"])
        assert record["reward"] == pytest.approx(max(-1.5, (lost[0] - loss) / lost[0]) - penalty, abs=1e-6)
        assert record["flops"] <= 0.14
        assert len(record["sparsity"]) == len(record["actions"]) == 6


def test_the_plan_is_the_best_of_those_measured_again_repaired_as_in_the_end(run):
    reranked = run.summary["reranked"]
    assert reranked[0]["quality"] == max(plan["quality"] for plan in reranked)
    best = episodes(run.folder)[reranked[0]["episode"]]
    plan = secateur.RatioPlan.load(run.folder)
    assert plan == run.plan
    assert plan.kept.tolist() == best["kept"]
    assert list(plan.sparsities.values()) == pytest.approx(best["sparsity"])
    assert plan.figures["search_accuracy"] == reranked[0]["search_accuracy"]
    assert run.summary["best"]["quality"] == plan.figures["quality"] == reranked[0]["quality"]


def test_measured_again_are_the_best_of_the_search_and_all_different(run):
    records = episodes(run.folder)
    reranked = run.summary["reranked"]
    first = next(plan for plan in reranked if plan["episode"] == 0)  # tells what the search gained
    costs = {kind: records[0][kind] for kind in ("flops", "params")}
    assert run.summary["base"] == {**{key: first[key] for key in ("quality", "search_accuracy")}, **costs}
    assert run.summary["best"]["quality"] == max(plan["quality"] for plan in reranked) >= first["quality"]
    chosen = sorted((records[plan["episode"]] for plan in reranked), key=lambda record: -record["quality"])[:3]
    assert len({tuple(record["kept"]) for record in chosen}) == 3
    others = [record["quality"] for record in records if record["kept"] not in [c["kept"] for c in chosen]]
    assert min(record["quality"] for record in chosen) >= max(others)


def test_the_search_begins_with_the_base_plan(run):
    first = episodes(run.folder)
    assert first[0]["actions"] == [0.0] * len(first[0]["actions"])
    assert first[0]["noise"] == 0.0 < first[1]["noise"]
    assert {record["budget"] for record in first} == {0.14}


@pytest.fixture
def trained(run, quick) -> list[str]:
    """The same settings, with the network that was trained there."""
    return [*quick, f"network.weights={run.folder / 'dense.safetensors'}"]


def test_a_budget_for_every_episode_and_a_plan_for_the_one_asked(trained, tmp_path):
    overrides = [*trained, "agent.budgets=[0.12,0.4]", "agent.episodes=6"]
    done = secateur.train(secateur.Session("digits", overrides=overrides), out=tmp_path / "run")
    records = episodes(done.folder)
    asked = [record for record in records if record["budget"] == 0.14]
    assert [record["episode"] for record in asked] == [0, 5]
    assert len({record["budget"] for record in records}) == 5
    assert all(record["flops"] <= record["budget"] for record in records)
    assert done.plan.kept.tolist() in [record["kept"] for record in asked]


def test_tensorboard_shows_what_was_logged(run):
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for shown, logged in (("reward", "reward"), ("quality/total", "quality"), ("candidate/flops", "flops")):
        values = [event.value for event in events.Scalars(shown)]
        assert values == pytest.approx([record[logged] for record in episodes(run.folder)], abs=1e-6)


def test_the_policy_holds_an_actor(run):
    tensors = load_file(run.folder / "policy.safetensors")
    assert any(name.startswith("actor.") for name in tensors)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_the_resolved_config_is_the_one_that_ran(run):
    config = load_config(run.folder / "config.yaml")
    assert config.agent.episodes == 6
    assert config.budget.flops == 0.14


@pytest.mark.slow
def test_another_seed_explores_elsewhere(run, trained, tmp_path):
    session = secateur.Session("digits", overrides=[*trained, "agent.episodes=4"], seed=1)
    other = secateur.train(session, out=tmp_path / "other")
    actions, others = ([record["actions"] for record in episodes(folder)] for folder in (run.folder, other.folder))
    assert others[0] == actions[0]  # the base plan
    assert others[3] != actions[3]


def test_a_run_cut_off_in_a_line_resumes_to_the_same_end(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    lines = (folder / "episodes.jsonl").read_text().splitlines(keepends=True)
    (folder / "episodes.jsonl").write_text("".join(lines[:5]) + lines[5][: len(lines[5]) // 2])
    (folder / "plan.json").unlink()
    resumed = secateur.train(resume=folder)
    assert untimed(folder) == untimed(run.folder)
    assert resumed.plan == run.plan
    assert resumed.summary["replayed"] == 5


def test_a_killed_process_loses_at_most_the_running_episode(run, quick, tmp_path):
    folder = tmp_path / "killed"
    arguments = [part for override in quick for part in ("--set", override)]
    command = [sys.executable, "-m", "secateur", "train", "digits", "--out", str(folder), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = folder / "episodes.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    survived = log.read_text().count("\n")
    assert survived >= 3
    assert secateur.RatioPlan.load(folder).provenance.candidates >= survived - 1
    resumed = secateur.train(resume=folder)
    assert resumed.summary["replayed"] == survived
    assert untimed(folder) == untimed(run.folder)
    assert resumed.plan == run.plan


@pytest.mark.slow  # benchmarks/kills.py kills workers, too
def test_a_group_of_two_workers_cut_off_in_its_middle_resumes_to_the_same_end(quick, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    done = secateur.train(secateur.Session("digits", overrides=[*quick, "workers=2"]), out=whole)
    assert {"prune", "repair", "evaluate"} <= done.summary["seconds_per_part"].keys()
    assert done.summary["seconds_per_part"]["evaluate"] > 0.0
    shutil.copytree(whole, folder)
    lines = (folder / "episodes.jsonl").read_text().splitlines(keepends=True)
    (folder / "episodes.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    resumed = secateur.train(resume=folder)
    assert resumed.summary["replayed"] == 5
    assert untimed(folder) == untimed(whole)
    assert resumed.plan == done.plan


def test_an_interrupt_keeps_the_best_so_far_and_the_same_seed_ends_the_same(run, quick, tmp_path):
    def stop(episode):
        if episode.number == 3:
            raise KeyboardInterrupt

    stopped = secateur.train(secateur.Session("digits", overrides=quick), out=tmp_path / "run", on_episode=stop)
    assert not stopped.finished
    assert stopped.summary["episodes"] == 4
    assert secateur.RatioPlan.load(tmp_path / "run") == stopped.plan
    resumed = secateur.train(resume=tmp_path / "run")
    assert resumed.finished
    assert untimed(resumed.folder) == untimed(run.folder)  # of another network, trained from the same seed
    assert resumed.plan == run.plan


def test_a_damaged_log_is_refused_by_line(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    lines = (folder / "episodes.jsonl").read_text().splitlines(keepends=True)
    lines[2] = "{ nonsense }\n"
    (folder / "episodes.jsonl").write_text("".join(lines))
    with pytest.raises(ValueError, match=r"episodes\.jsonl, line 3 is damaged"):
        secateur.train(resume=folder)


def test_resuming_needs_a_run(tmp_path):
    with pytest.raises(ValueError, match="no run there"):
        secateur.train(resume=tmp_path)


def test_nothing_is_overwritten(run, quick):
    with pytest.raises(ValueError, match="is not empty, and nothing is overwritten"):
        secateur.train(secateur.Session("digits", overrides=quick), out=run.folder)


def test_a_budget_that_cannot_be_met_says_what_can(trained, tmp_path):
    with pytest.raises(ValueError, match=r"budget\.flops = 0\.01 cannot be met: .* still keeps 0\.\d+"):
        secateur.train(secateur.Session("digits", overrides=[*trained, "budget.flops=0.01"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_config_names_the_near_miss():
    with pytest.raises(ConfigError, match="did you mean digits"):
        secateur.train("digit")


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 12, 3, padding=1)
        self.out = nn.Linear(12, 4)

    def forward(self, x):
        return self.out(self.two(self.one(x).relu()).relu().mean((2, 3)))


def batches(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 1, 6, 6, generator=generator), torch.randint(0, 4, (16,), generator=generator))
        for _ in range(count)
    ]


def settings() -> secateur.Config:
    agent = {"episodes": 4, "warmup": 1, "updates": 1, "hidden": [8]}
    return secateur.Config.model_validate({"name": "mine", "budget": {"flops": 0.5}, "agent": agent})


def test_the_callers_own_network_and_images(tmp_path):
    torch.manual_seed(0)
    model = Mine()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = secateur.Images(batches(3, 0), batches(3, 1), batches(2, 2), batches(2, 3))
    session = secateur.Session(settings(), model=model, images=images)
    done = secateur.train(session, out=tmp_path / "run")
    assert done.plan.cost["flops"] <= 0.5
    alone = secateur.Session(model=model, images=images)  # the plan says the rest
    applied = secateur.apply(done.plan, alone, finetune=1, out=tmp_path / "small")
    with torch.inference_mode():
        again = secateur.load(tmp_path / "small", model=Mine())(batches(1, 4)[0][0])
        assert torch.allclose(again, applied.model(batches(1, 4)[0][0]), atol=1e-6)
    compared = secateur.compare([done.plan], session, against=["uniform", "deep"], out=tmp_path / "compare")
    assert [row["allocator"] for row in compared.rows] == ["ddpg", "uniform", "deep"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda i: secateur.Images(i.calibration, [(i.search[0][0][:, :, 0], i.search[0][1])]),
            "calibration images are 1×6×6, search images 1×6: they must be alike",
        ),
        (lambda i: secateur.Images(i.calibration, [(i.search[0][0], i.search[0][1] + 1)]), "a label is 4, but"),
        (
            lambda i: secateur.Images([(torch.randn(4, 3, 6, 6), torch.zeros(4).long())], i.search),
            "calibration images are 3×6×6, search images 1×6×6",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(spoil, message, tmp_path):
    images = secateur.Images(batches(1, 0), batches(1, 1))
    with pytest.raises((ValueError, TypeError), match=message):
        secateur.train(secateur.Session(settings(), model=Mine(), images=spoil(images)), out=tmp_path / "run")


def test_a_network_with_a_nan_is_refused(tmp_path):
    model = Mine()
    model.two.weight.data[0] = float("nan")
    images = secateur.Images(batches(1, 0), batches(1, 1))
    with pytest.raises(ValueError, match=r"two\.weight holds a NaN"):
        secateur.train(secateur.Session(settings(), model=model, images=images))


def test_a_missing_ray_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.envs.workers.ray.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need ray: pip install 'secateur\[ray\]'"):
        secateur.train(secateur.Session("digits", ray_address="local"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_search_that_ends_early_goes_on(run, quick, tmp_path):
    accuracies = [record["accuracy"] for record in episodes(run.folder)[1:-1]]
    number = accuracies.index(max(accuracies)) + 1
    session = secateur.Session("digits", overrides=quick)
    done = secateur.train(session, out=tmp_path / "r", timeout=1e-9)
    assert (done.summary["ended"], done.summary["episodes"], done.finished) == ("timeout", 1, False)
    assert done.summary["reranked"]  # its plan is measured as any other
    again = secateur.train(session, resume=done.folder, target=max(accuracies))
    first = 1 if episodes(run.folder)[0]["accuracy"] >= max(accuracies) else number + 1
    assert (again.summary["ended"], again.summary["episodes"], again.finished) == ("target", first, False)
    last = secateur.train(session, resume=done.folder, timeout=10)
    assert (last.summary["ended"], last.finished, last.summary["replayed"]) == ("episodes", True, first)
    assert untimed(done.folder) == untimed(run.folder)
    assert last.plan.kept.tolist() == run.plan.kept.tolist()
    with pytest.raises(ValueError, match="timeout = 0: minutes, more than 0"):
        secateur.train(session, timeout=0)
