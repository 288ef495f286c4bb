"""An application that was killed, or failed, goes on where it was, and with nothing else than it was begun with."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import crash
import secateur
from secateur.commands import correlate as correlate_module
from secateur.pruners.saved import save_network
from secateur.storage.cache import cache_folder
from secateur.storage.files import read_tensors
from secateur.training.checkpoint import Checkpoint
from secateur.training.step import Step

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["crash", "secateur.commands.apply"])


def killed(command: str, session: dict, **arguments) -> None:
    """Call it in a process that is killed in the middle of the second epoch of the first training that gets there."""
    given = (command, os.environ["SECATEUR_CACHE"], session)
    process = SERVER.Process(target=crash.run_and_die_in_epoch, args=given, kwargs=arguments, daemon=True)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def interrupt(monkeypatch: pytest.MonkeyPatch, epoch: int, error: BaseException, *, training: int = 1) -> None:
    """Raise just before the checkpoint of an epoch, from 1, of the training of this number is written."""
    write, seen = Checkpoint.write, []

    def failing(self, of, tensors, state):
        seen.append(state["epoch"])
        if state["epoch"] == epoch and seen.count(epoch) == training:
            raise error
        write(self, of, tensors, state)

    monkeypatch.setattr(Checkpoint, "write", failing)


def assert_same_network(ours: Path, theirs: Path) -> None:
    (mine, _), (other, _) = (read_tensors(folder / "weights.safetensors") for folder in (ours, theirs))
    assert mine.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


def part(session: secateur.Session, fraction: float) -> np.ndarray:
    """So much of every layer."""
    structure = session.structure
    return np.array([structure.snap(i, fraction * layer.units) for i, layer in enumerate(structure.layers)])


def figures(folder: Path) -> dict:
    tree = json.loads((folder / "summary.json").read_text())
    return {
        name: {k: v for k, v in row.items() if k != "latency_ms"} if isinstance(row, dict) else row
        for name, row in tree.items()
    }


OVERRIDES = ("latency.repeats=1", "latency.batch=1", "finetune.batch_size=50")


@pytest.fixture(scope="module")
def session(run) -> secateur.Session:
    """On the network that `run` trained, with 100 images to fine-tune on."""
    given = secateur.Session(run.folder / "config.yaml")
    train = [(images[half], labels[half]) for images, labels in given.calibration for half in (np.s_[:50], np.s_[50:])]
    images = secateur.Images(
        given.calibration, given.search, given.test, train=[part for part in train if len(part[1])]
    )
    return secateur.Session(run.folder / "config.yaml", images=images, overrides=OVERRIDES)


@pytest.fixture(scope="module")
def whole(run, session, tmp_path_factory) -> secateur.commands.apply.Applied:
    return secateur.apply(run.folder, session, finetune=3, out=tmp_path_factory.mktemp("whole") / "small")


def test_killed_in_the_middle_of_fine_tuning_it_ends_as_the_uninterrupted_one(run, tmp_path):
    folder, config = tmp_path / "small", {"config": run.folder / "config.yaml", "overrides": OVERRIDES[:2]}
    killed("apply", config, plan=run.folder, finetune=2, out=folder)
    assert {"apply.json", "config.yaml", "plan.json", "finetune.safetensors", "repaired"} <= {
        path.name for path in folder.iterdir()
    }
    repaired = secateur.load(folder / "repaired")
    with pytest.raises(FileNotFoundError, match=r"fine-tuning is not finished.*secateur apply --resume .*repaired"):
        secateur.load(folder)
    done = secateur.apply(resume=folder)
    whole = secateur.apply(run.folder, secateur.Session(**config), finetune=2, out=tmp_path / "whole")
    assert_same_network(folder, whole.folder)
    assert_same_network(folder / "repaired", whole.folder / "repaired")
    assert figures(folder) == figures(whole.folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.folder.iterdir()}
    assert not (folder / "finetune.safetensors").exists()
    assert any(not torch.equal(a, b) for a, b in zip(repaired.parameters(), done.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="that run is finished"):
        secateur.apply(resume=folder)


@pytest.mark.slow  # benchmarks/kills.py does it at twenty moments
def test_killed_in_the_middle_of_pretraining_the_same_command_ends_as_the_uninterrupted_one(
    run, quick, tmp_path, monkeypatch
):
    session = {"config": "digits", "overrides": quick}
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    killed("correlate", session, plans=3, out=tmp_path / "c")
    (kept,) = (cache_folder() / "pretrained").glob("*/network.safetensors")
    assert json.loads(read_tensors(kept)[1]["state"])["epoch"] == 1
    steps = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (steps.append(1), step(self))[1])
    model = secateur.Session(**session).model
    theirs, _ = read_tensors(run.folder / "dense.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    once = len(steps)
    assert once > 0
    assert not any(name.startswith("optimizer.momentum_buffer.") for name in read_tensors(kept)[0])
    assert torch.equal(secateur.Session(**session).model.conv1.weight, model.conv1.weight)
    assert len(steps) == once  # trained once
    other = secateur.Session("digits", overrides=[*quick, "network.pretrain.learning_rate=0.01"])
    assert not torch.equal(other.model.conv1.weight, model.conv1.weight)
    assert len(steps) == once + once // 2 * 3  # of its own, all three epochs


@pytest.mark.slow
def test_a_gradual_schedule_that_is_interrupted_ends_as_the_uninterrupted_one(session, tmp_path, monkeypatch):
    mine = session.beside(overrides=["method=weights", "gradual.every=1", "repair.final.kind=none"])
    plan = mine.plan_of(part(mine, 0.5), allocator="uniform", seed=0, candidates=0)
    whole = secateur.apply(plan, mine, finetune=4, schedule="gradual", out=tmp_path / "whole")
    interrupted(3, plan, mine, finetune=4, schedule="gradual", out=tmp_path / "small")
    done = secateur.apply(session=mine, resume=tmp_path / "small")
    assert done.summary["schedule"] == "gradual"
    assert_same_network(done.folder, whole.folder)


def interrupted(epoch: int, *plan: object, training: int = 1, command: str = "apply", **arguments: object) -> None:
    """Ctrl-C while an epoch is written."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch, KeyboardInterrupt(), training=training)
        with pytest.raises(KeyboardInterrupt):
            getattr(secateur, command)(*plan, **arguments)


def test_ctrl_c_says_how_to_go_on_and_where_the_repaired_network_is(run, session, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(session.reporter, "say", said.append)
    folder = tmp_path / "small"
    interrupted(2, run.folder, session, finetune=2, out=folder)
    assert said[-1] == (
        f"stopped while fine-tuning; the repaired network is in {folder / 'repaired'}; go on with: secateur apply "
        f"--resume {folder}"
    )


def edit(path: Path, change) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_it_goes_on_with_nothing_else_than_it_was_begun_with(run, session, whole, tmp_path):
    folder = tmp_path / "small"
    interrupted(2, run.folder, session, finetune=3, out=folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def refused(match: str, given: secateur.Session = session, **more: object) -> None:
        with pytest.raises(ValueError, match=match):
            secateur.apply(session=given, resume=folder, **more)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before

    for override in ("finetune.batch_size=10", "finetune.momentum=0.5", "repair.final.kind=gram"):
        refused("it was begun with another config; give that back", session.beside(overrides=[override]))
    refused("begun with another objective; give that back", session.beside(overrides=["objective.kwargs.ignore=9"]))
    images = secateur.Images(session.search, session.search, session.test, train=session.train_loader(50))
    refused(
        "another calibration images", secateur.Session(run.folder / "config.yaml", images=images, overrides=OVERRIDES)
    )
    batches = list(session.train_loader(50))
    images = secateur.Images(session.calibration, session.search, session.test, train=batches[1:])
    refused("another training images", secateur.Session(run.folder / "config.yaml", images=images, overrides=OVERRIDES))
    refused("takes plan, epochs, schedule and folder from the folder itself", plan=run.folder)
    refused("takes plan, epochs, schedule and folder from the folder itself", finetune=2)
    with pytest.raises(ValueError, match=rf"is not empty, and nothing is overwritten; .* --resume {folder}"):
        secateur.apply(run.folder, session, finetune=3, out=folder)

    def spoil(name: str, change, match: str) -> None:
        edit(folder / name, change)
        with pytest.raises(ValueError, match=match):
            secateur.apply(session=session, resume=folder)
        (folder / name).write_bytes(before[name])

    plan = json.loads(before["plan.json"])
    other = next(i for i, layer in enumerate(plan["layers"]) if layer["kept"] > 1)
    units = plan["layers"][other]["units"]

    def widen(tree: dict) -> None:
        kept = tree["layers"][other]["kept"] - 1
        tree["layers"][other].update(kept=kept, sparsity=1 - kept / units)

    spoil("plan.json", widen, "it was begun with another plan")
    spoil("apply.json", lambda tree: tree.update(schedule="later"), r"apply\.json is damaged")
    spoil(
        "apply.json", lambda tree: tree.update(finetune_epochs=4), r"finetune\.safetensors is the .* training differs"
    )
    (folder / "repaired" / "weights.safetensors").write_bytes((whole.folder / "weights.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"repaired.*weights\.safetensors is not the file that was saved here"):
        secateur.apply(session=session, resume=folder)
    shutil.rmtree(folder / "repaired")
    shutil.copytree(whole.folder / "repaired", folder / "repaired")
    secateur.apply(session=session, resume=folder)
    assert_same_network(folder, whole.folder)


def test_killed_before_there_was_anything_to_go_on_with_the_same_command_begins_again(run, session, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / ".lock").touch()
    for name in ("plan.json", "dense.safetensors", "dense.safetensors.sha256"):
        shutil.copy(run.folder / name, folder)
    with pytest.raises(ValueError, match="is not empty, and nothing is overwritten"):
        secateur.apply(run.folder, session, finetune=0, out=folder)  # anybody's folder
    (folder / "apply.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no run there \(no config\.yaml\); start one with secateur apply --out"):
        secateur.apply(session=session, resume=folder)
    assert secateur.apply(run.folder, session, finetune=0, out=folder).summary["finetune_epochs"] == 0


def test_a_folder_that_was_begun_by_another_command_is_refused(run):
    with pytest.raises(ValueError, match=r"no apply\.json, so nothing that secateur apply began is there|is finished"):
        secateur.apply(resume=run.folder)


@pytest.mark.parametrize(("schedule", "section"), [("one_shot", "finetune"), ("scratch_e", "network.pretrain")])
def test_a_loss_that_is_not_finite_stops_with_one_line_and_goes_on_with_a_lower_rate(
    schedule, section, run, session, tmp_path, monkeypatch
):
    folder, step, calls = tmp_path / "small", Step.__call__, []

    def diverging(self, batch, rate, *rest):
        calls.append(rate)
        spoilt = (batch[0] * (math.nan if len(calls) == per_epoch + 2 else 1.0), batch[1])
        return step(self, spoilt, rate, *rest)

    per_epoch = len(session.train_loader(50))
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", diverging)
        again = rf"secateur apply --resume {folder} --set {section}\.learning_rate="
        with pytest.raises(
            RuntimeError, match=rf"loss is nan at step \d+ of \d+: .* holds epoch 1; go on with: {again}"
        ):
            secateur.apply(run.folder, session, finetune=2, schedule=schedule, out=folder)
    lower = session.beside(overrides=[f"{section}.learning_rate=0.0001"])
    done = secateur.apply(session=lower, resume=folder)
    config = secateur.Session(folder / "config.yaml").config
    assert {"finetune": config.finetune, "network.pretrain": config.network.pretrain}[section].learning_rate == 0.0001
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert rows[0]["learning_rate"] > rows[1]["learning_rate"] < 0.0001
    assert all(bool(torch.isfinite(p).all()) for p in done.model.parameters())


def test_on_a_full_disk_nothing_is_lost(run, session, whole, tmp_path):
    folder = tmp_path / "small"
    images = secateur.Images(session.calibration, session.search, session.test, train=session.train_loader(50))
    mine = secateur.Session(session.config, model=session.model, images=images)  # no dense network is written
    size = (whole.folder / "repaired" / "weights.safetensors").stat().st_size
    plan = secateur.RatioPlan.load(run.folder)
    with crash.files_of_at_most(size + 3000), pytest.raises(OSError, match=rf"disk full: .* apply --resume {folder}"):
        secateur.apply(plan, mine, finetune=3, out=folder)
    secateur.apply(session=mine, resume=folder)
    assert_same_network(folder, whole.folder)


@pytest.mark.slow
def test_an_interrupted_comparison_or_correlation_does_not_fine_tune_again(run, session, tmp_path, monkeypatch):
    mine = session.beside(overrides=["correlate.plans=3", "correlate.finetune=2", "correlate.finetune_plans=3"])
    compared = {"plans": [run.folder], "session": session, "against": ["uniform", "deep"], "finetune": 2}
    one, correlated = "1-one_shot-0/finetune.safetensors", {"session": mine}
    for command, given, kept in (("compare", compared, one), ("correlate", correlated, "1.safetensors")):
        call = getattr(secateur, command)
        whole = call(**given, out=tmp_path / command / "whole")
        folder = tmp_path / command / "stopped"
        said: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(session.reporter, "say", said.append)
            interrupted(2, training=2, command=command, **given, out=folder)
        assert said[-1].startswith("stopped")
        assert f"--resume {folder}" in said[-1]
        assert (folder / "finetune" / kept).exists()
        steps, step = [], torch.optim.SGD.step
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", lambda self, step=step, steps=steps: (steps.append(1), step(self)))
            done = call(**given, resume=folder)
        assert len(steps) == 3 * 2  # of the second plan one epoch, and two of the third
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in done.rows]
        assert rows == [{k: v for k, v in row.items() if k != "seconds"} for row in whole.rows]
        assert not (folder / "finetune").exists()


def test_weights_that_are_not_finite_are_never_saved(run, session, tmp_path):
    model = session.model
    spoilt = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    broken = type(model)(2, 10, 1)
    broken.load_state_dict(spoilt)
    broken.bn1.running_var[0] = math.inf
    about = {"method": "channels", "recipe": {}, "network": None, "input_shape": (1, 8, 8)}
    about["objective"] = session.config.objective
    with pytest.raises(
        ValueError, match=r"weights\.safetensors is not written: bn1\.running_var holds NaN or infinity"
    ):
        save_network(broken, tmp_path / "small", **about)
    policy = secateur.agents.policy.Policy.load(run.folder)
    name = next(iter(policy.tensors))
    policy.tensors[name].view(-1)[0] = math.nan
    with pytest.raises(ValueError, match=r"policy\.safetensors is not written: .* holds NaN or infinity"):
        policy.save(tmp_path / "policy.safetensors")
    factors = secateur.agents.policy.Policy.load(run.folder)
    factors.factors[0] = np.inf
    with pytest.raises(ValueError, match=r"policy\.safetensors is not written"):
        factors.save(tmp_path / "policy.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_is_frozen_survives_cutting_fine_tuning_and_saving(run, session, tmp_path):
    model, config = session.model, session.config
    own = type(model)(2, 10, 1)
    own.load_state_dict(model.state_dict())
    own.train()
    frozen = ("conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1")
    for name in frozen:
        own.get_submodule(name).requires_grad_(False)
    resting = ("bn1", "layer1.0.bn1", "layer2.0.bn1")  # the last is trained, with the statistics it has
    for name in resting:
        own.get_submodule(name).eval()
    images = secateur.Images(session.calibration, session.search, session.test, train=session.train_loader(50))
    mine = secateur.Session(config, model=own, images=images)
    plan = secateur.RatioPlan.load(run.folder)
    done = secateur.apply(plan, mine, finetune=1, out=tmp_path / "small")
    fresh = type(model)(2, 10, 1)
    repaired = secateur.load(tmp_path / "small" / "repaired", fresh)
    again = secateur.load(tmp_path / "small", fresh)
    flags = {name: parameter.requires_grad for name, parameter in done.model.named_parameters()}
    assert {name for name, flag in flags.items() if not flag} == {
        name for name in flags if name.rpartition(".")[0] in frozen
    }
    assert flags == {name: parameter.requires_grad for name, parameter in again.named_parameters()}
    before = repaired.state_dict()
    still = {name for name, tensor in done.model.state_dict().items() if torch.equal(tensor, before[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    expected = {name for name, flag in flags.items() if not flag} | {f"{m}.{s}" for m in resting for s in statistics}
    assert still == expected
    own.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the CifarResNet is frozen"):
        secateur.apply(plan, secateur.Session(config, model=own, images=images), finetune=1, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_correlate_keeps_the_form_of_what_it_fine_tunes(session, monkeypatch):
    mine = session.beside(overrides=["method=weights", "repair.final.kind=none", "repair.search.kind=none"])
    kept = part(mine, 0.3)
    tuned, finetune = [], secateur.Session.finetune

    def watched(self, model, epochs, **options):
        finetune(self, model, epochs, **options)
        tuned.append(model)

    monkeypatch.setattr(secateur.Session, "finetune", watched)
    test = correlate_module.CandidateEvaluator(mine.compressor, mine.test, mine.config.repair.search)
    correlate_module.measure_plan(mine, test, kept, 1)
    for layer, count in zip(mine.structure.layers, kept, strict=True):
        assert int((tuned[0].get_parameter(layer.name) != 0).sum()) <= count
