"""Nothing is lost: processes are killed, disks are full, files are damaged, numbers are not finite."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import crash
import kills
import secateur
from secateur.agents.log import EpisodeLog
from secateur.commands import cli
from secateur.pruners.compressor import Compressor
from secateur.storage.files import is_temporary, read_tensors

SERVER = multiprocessing.get_context("forkserver")  # real processes, that need not import everything first
SERVER.set_forkserver_preload(["crash", "secateur.commands.train", "secateur.commands.compare"])


def start(command: str, at: int = 0, session=None, **arguments) -> multiprocessing.Process:
    given = (
        command,
        os.environ["SECATEUR_CACHE"],
        at,
        session or {},
    )  # a server's children have its environment, not the test's
    process = SERVER.Process(target=crash.run_and_die, args=given, kwargs=arguments, daemon=True)
    process.start()
    return process


def was_killed(process: multiprocessing.Process) -> bool:
    process.join(600)
    assert process.exitcode in (0, -signal.SIGKILL)  # it must not fail
    return process.exitcode != 0


def untimed(path: Path) -> list[dict]:
    records = map(json.loads, path.read_text().splitlines())
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def assert_same_run(folder: Path, expected: Path) -> None:
    assert untimed(folder / "episodes.jsonl") == untimed(expected / "episodes.jsonl")
    for name in ("plan.json", "config.yaml"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    for name in ("dense.safetensors", "policy.safetensors"):
        (ours, about), (theirs, expected_about) = read_tensors(folder / name), read_tensors(expected / name)
        assert about == expected_about
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name
    assert not any(is_temporary(path) for path in folder.iterdir())


def copy(run: secateur.Training, folder: Path, episodes: int) -> Path:
    """A run that was killed after so many episodes."""
    shutil.copytree(run.folder, folder)
    log = folder / "episodes.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:episodes]))
    for name in ("summary.json", "policy.safetensors", "plan.png", "quality.png"):
        (folder / name).unlink()
    return folder


@pytest.mark.slow
def test_killed_at_one_write_after_another_it_ends_as_the_uninterrupted_run(run, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))  # written in these processes, and so killed there too
    folder = tmp_path / "run"
    fresh = {"session": {"config": "digits", "overrides": quick}, "out": folder}
    log = folder / "episodes.jsonl"
    for at in (1, 4, 9, 16, 20, 20, 20, 20):  # the config, the dense network, the cache, at last the log
        there = (folder / "config.yaml").exists()
        assert there or at <= 9
        assert was_killed(start("train", at, **({"resume": folder} if there else fresh)))
        if log.exists() and log.read_bytes().count(b"\n"):
            break
    assert 0 < len(log.read_bytes().splitlines()) < 8
    assert not was_killed(start("train", resume=folder))
    assert_same_run(folder, run.folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apply, fine-tuning"])  # the others have tests of their own
def test_killed_at_any_time_it_ends_as_the_uninterrupted_run(name, tmp_path):
    found = kills.check(kills.CASES[name], tmp_path, 1, random.Random(name))
    assert sum(found.killed.values()) == 1
    assert found.runs >= 1


@pytest.mark.slow  # an interrupted one is tested every time
def test_a_killed_comparison_ends_as_the_uninterrupted_one(run, tmp_path):
    folder = tmp_path / "compare"
    arguments = {"plans": [run.folder], "against": ["uniform", "random", "hill_climb"], "candidates": 3}
    whole = secateur.compare(**arguments, out=tmp_path / "whole")
    assert was_killed(start("compare", 10, **arguments, out=folder))
    assert len((folder / "candidates.jsonl").read_bytes().splitlines()) == 2  # the second is torn
    for at in (5, 9):  # the last candidate, a plan
        assert was_killed(start("compare", at, **arguments, resume=folder))
    assert not was_killed(start("compare", **arguments, resume=folder))
    assert (folder / "candidates.jsonl").read_text() == (whole.folder / "candidates.jsonl").read_text()
    assert json.loads((folder / "compare.json").read_text())["rows"] == whole.rows
    for row in whole.rows:
        assert (folder / row["plan"]).read_text() == (whole.folder / row["plan"]).read_text()


def test_a_run_that_was_killed_before_it_had_a_config_starts_again(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".config.yaml.0123abcd.tmp").write_text("name: dig")
    with pytest.raises(ValueError, match=r"no run there \(no config\.yaml\); start one with secateur train --out"):
        secateur.train(resume=folder)
    done = secateur.compare((), run.folder / "config.yaml", against=["uniform"], out=folder)
    assert not any(is_temporary(path) for path in done.folder.iterdir())


@pytest.fixture
def error_line(capsys, monkeypatch):
    """What the console script says of a mistake or a mishap, in this process."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
        monkeypatch.delenv("SECATEUR_DEBUG", raising=False)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said

    return call


def test_on_a_full_disk_a_run_stops_with_one_line_and_goes_on_when_there_is_room(run, tmp_path, error_line):
    folder = copy(run, tmp_path / "run", 3)
    size = (folder / "episodes.jsonl").stat().st_size
    for name in ("plan.json", "policy.safetensors"):
        (folder / name).write_bytes(b"\x00garbage")  # written anew in any case
    with crash.files_of_at_most(size + 100):
        said = error_line("train", "--resume", folder)
    assert f"disk full: {folder} cannot be written" in said
    assert f"free space, then secateur train --resume {folder}" in said
    assert (folder / "episodes.jsonl").stat().st_size == size + 100  # a torn line
    assert secateur.train(resume=folder).summary["replayed"] == 3
    assert_same_run(folder, run.folder)


@pytest.mark.filterwarnings("ignore:.* cannot be written .File too large.*:RuntimeWarning")  # the cache
def test_on_a_full_disk_a_start_leaves_nothing_behind(quick, tmp_path, error_line):
    overrides = [part for override in (*quick, "network.pretrain.epochs=1") for part in ("--set", override)]
    with crash.files_of_at_most(5000):
        said = error_line("train", "digits", "--out", tmp_path / "runs" / "new", *overrides)
    assert "disk full" in said
    assert said.strip().endswith("free space, then secateur train again")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", b"\xff\xfe\x00", r"config\.yaml is not text in UTF-8 .*; restore it, or write it anew"),
        ("config.yaml", b"", r"config\.yaml holds no config: .*; restore it"),
        ("config.yaml", b"name: [", r"config\.yaml is not YAML: .*; restore it"),
        ("config.yaml", b"name: digits\nbudge: 1\n", r"config\.yaml: .*unknown key budge .*; restore it"),
        (
            "dense.safetensors",
            b"garbage",
            r"dense\.safetensors is not the file that was saved .*; restore it, or delete",
        ),
        (
            "dense.safetensors",
            b"",
            r"dense\.safetensors is not the file that was saved here: .*; restore it, or delete",
        ),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(run, tmp_path, name, content, message):
    folder = copy(run, tmp_path / "run", 3)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        secateur.train(resume=folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == {**before, name: content}


@pytest.mark.parametrize("line", ['{"episode": 1}', "null", "[]", '"', '{"kept": 3}', "\udcff"])
def test_a_damaged_line_is_named(run, tmp_path, line):
    log = copy(run, tmp_path / "run", 3) / "episodes.jsonl"
    lines = log.read_text().splitlines()
    for spoilt in (line, lines[1].replace('"kept": [', '"kept": ["1", ')):
        log.write_text("\n".join([lines[0], spoilt, lines[2], ""]), encoding="utf-8", errors="surrogateescape")
        with pytest.raises(ValueError, match=r"episodes\.jsonl, line 2 is damaged: delete that line and all below it"):
            EpisodeLog(log).read(6)


@pytest.fixture(scope="module")
def scratch(quick, tmp_path_factory) -> secateur.Training:
    """As runs began before there was anything else to begin with, and logs had no fingerprint."""
    session = secateur.Session("digits", overrides=[*quick, "agent.warm_start=false"])
    return secateur.train(session, out=tmp_path_factory.mktemp("scratch") / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.flops=0.2", "its actions give another plan now"),
        ("reward.accuracy=3", r"quality = \d\.\d+, where its figures give \d\.\d+ now"),
    ],
)
def test_a_log_without_a_fingerprint_that_does_not_replay_is_refused(scratch, tmp_path, override, message):
    folder = copy(scratch, tmp_path / "run", 3)
    records = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    lines = ({key: value for key, value in r.items() if key not in ("fingerprint", "check")} for r in records)
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=rf"episodes\.jsonl, line 1: {message}"):
        secateur.train(secateur.Session(overrides=[override]), resume=folder)


def test_a_candidate_that_is_not_finite_is_paid_the_worst_and_the_run_goes_on(run, tmp_path, monkeypatch):
    compress, calls = Compressor.__call__, []

    def broken(self, kept, repair, *more):
        pruned = compress(self, kept, repair, *more)
        calls.append(kept.tolist())
        if not repair.guard and len(calls) == 2:
            first = next(pruned.parameters())
            first.data = torch.full_like(first, float("nan"))  # the dense network's own stays as it is
        return pruned

    monkeypatch.setattr(Compressor, "__call__", broken)
    folder = copy(run, tmp_path / "run", 2)
    done = secateur.train(secateur.Session(overrides=["agent.rerank=1"]), resume=folder)
    records = untimed(folder / "episodes.jsonl")
    worst = next(record for record in records if record["kept"] == calls[1])
    assert done.finished
    assert worst["accuracy"] == 0.0
    assert worst["reward"] < -1.4  # the worst gain there is, less the actions
    assert worst["quality"] == -10.0 == min(record["quality"] for record in records)
    assert np.isfinite(worst["reconstruction_loss"])
    assert done.plan.kept.tolist() != calls[1]


def test_an_agent_that_diverges_stops_the_run_and_it_goes_on_with_a_lower_rate(run, quick, tmp_path):
    folder = tmp_path / "run"
    weights = f"network.weights={run.folder / 'dense.safetensors'}"
    diverging = secateur.Session("digits", overrides=[*quick, weights, "agent.learning_rate=1e30"])
    with pytest.raises(
        RuntimeError, match=r"the agent diverged after \d episodes .* below agent\.learning_rate=1e\+30"
    ):
        secateur.train(diverging, out=folder)
    logged = untimed(folder / "episodes.jsonl")
    assert len(logged) >= 2
    assert secateur.RatioPlan.load(folder).provenance.candidates >= 2
    assert not (folder / "policy.safetensors").exists()
    again = secateur.Session(overrides=["agent.learning_rate=1e-3", "agent.rerank=1"])
    done = secateur.train(again, resume=folder)
    assert done.finished
    assert untimed(folder / "episodes.jsonl")[: len(logged)] == logged
    policy, _ = read_tensors(folder / "policy.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in policy.values())
