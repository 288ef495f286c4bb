"""Files from other people: they run nothing, they are what was saved, and their names are no paths."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.commands import cli
from secateur.configs import ConfigError, check_config, load_config
from secateur.pruners import PlanError


@pytest.fixture(scope="module")
def applied(run, tmp_path_factory):
    return secateur.apply(run.folder, finetune=0, out=tmp_path_factory.mktemp("applied") / "small").folder


def copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- code


@pytest.mark.parametrize("place", [None, "the file", "its network"])
def test_a_folder_runs_no_command(applied, tmp_path, place):
    folder = copied(applied, tmp_path / "small")
    granted = {"trust_code": True}
    network = {"name": "os:system", "num_classes": 10, **(granted if place == "its network" else {})}
    kwargs = {"command": f"touch {tmp_path / 'ran'}"}
    edit(folder / "network.json", network=network, kwargs=kwargs, **(granted if place == "the file" else {}))
    with pytest.raises(ValueError) as refused:  # noqa: PT011 – what it says is looked at below
        secateur.load(folder)
    assert not (tmp_path / "ran").exists()
    assert "trust_code" in str(refused.value)


def test_a_config_cannot_grant_trust():
    with pytest.raises(ConfigError, match="unknown key trust_code"):
        load_config("digits", ["trust_code=true"])
    with pytest.raises(ConfigError, match=r"unknown key network\.trust_code"):
        load_config("digits", ["network.trust_code=true"])


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A network's name; its module leaves a file when it is imported, and its builder says that it was called."""
    name = f"foreign_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\n"
        "def build(num_classes):\n    raise RuntimeError('it ran')\n"
    )
    monkeypatch.chdir(tmp_path)
    yield f"{name}:build"
    sys.modules.pop(name, None)


CALLS = {
    "train": lambda run, **rest: secateur.train(secateur.Session("digits", **rest), out="new"),
    "apply": lambda run, **rest: secateur.apply(run.folder, secateur.Session(**rest), out="new"),
    "compare": lambda run, **rest: secateur.compare([run.folder], secateur.Session(**rest), out="new"),
    "plan": lambda run, **rest: secateur.plan(run.folder, secateur.Session(**rest), out="new"),
    "sensitivity": lambda run, **rest: secateur.sensitivity(secateur.Session("digits", **rest), out="new"),
    "filters": lambda run, **rest: secateur.filters(secateur.Session("digits", **rest), out="new"),
    "correlate": lambda run, **rest: secateur.correlate(secateur.Session("digits", **rest), out="new"),
}


@pytest.mark.parametrize("command", CALLS)
def test_a_command_runs_code_only_when_asked(command, run, foreign, tmp_path):
    overrides = [f"network.name={foreign}"]
    with pytest.raises(ValueError, match=f"{foreign}.*--trust-code"):
        CALLS[command](run, overrides=overrides)
    assert not (tmp_path / "imported").exists()
    with pytest.raises(RuntimeError, match="it ran"):
        CALLS[command](run, overrides=overrides, trust_code=True)
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "c.yaml"],
        ["train", "--resume", "RUN"],
        ["apply", "RUN"],
        ["apply", "RUN", "--config", "c.yaml"],
        ["compare", "RUN"],
        ["plan", "RUN"],
        ["sensitivity", "c.yaml"],
        ["filters", "c.yaml"],
        ["correlate", "c.yaml"],
    ],
)
def test_so_does_its_command_line(arguments, run, foreign, tmp_path, capsys, monkeypatch):
    text = (run.folder / "config.yaml").read_text().replace("name: digits_resnet", f"name: {foreign}")
    folder = copied(run.folder, tmp_path / "run")
    for path in (folder / "config.yaml", tmp_path / "c.yaml"):
        path.write_text(text)
    arguments = [str(folder) if part == "RUN" else part for part in arguments]

    def said(*given):
        monkeypatch.setattr(sys, "argv", ["secateur", *given])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert f"'{foreign}' names code to import and run" in said(*arguments)
    assert not (tmp_path / "imported").exists()
    assert said(*arguments, "--trust-code") == "error: it ran\n"


def test_what_is_trusted_works(run, quick, tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text("from secateur.networks import digits_resnet as build\n")
    monkeypatch.chdir(tmp_path)
    session = secateur.Session(overrides=["network.name=own_network:build"], trust_code=True)
    done = secateur.apply(run.folder, session, finetune=0, out="small")
    with pytest.raises(ValueError, match="own_network:build"):
        secateur.load("small")
    again = secateur.load("small", trust_code=True)
    assert torch.equal(again.conv1.weight, done.model.conv1.weight)


@pytest.mark.parametrize("address", ["203.0.113.7:6379", "ray://203.0.113.7:10001"])
def test_a_config_names_no_cluster_elsewhere(run, tmp_path, address, monkeypatch):
    monkeypatch.setattr("secateur.envs.workers.ray.find_spec", lambda name: None)
    folder = copied(run.folder, tmp_path / "run")
    with (folder / "config.yaml").open("a") as file:
        file.write(f"ray_address: {address}\n")
    text = (folder / "config.yaml").read_text().replace("ray_address: null\n", "")
    (folder / "config.yaml").write_text(text)
    for call in (
        lambda **rest: secateur.train(secateur.Session(**rest), resume=folder),
        lambda **rest: secateur.compare([folder], secateur.Session(**rest)),
    ):
        with pytest.raises(ValueError, match=f"a cluster can run code here; .* --ray-address {address} yourself"):
            call()
        with pytest.raises(ImportError, match="ray"):  # trusted, it would connect
            call(ray_address=address)
        with pytest.raises(ImportError, match="ray"):
            call(trust_code=True)


# ---- checksums


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def spoil(path: Path) -> None:
    tensors = load_file(path)
    tensors["conv1.weight"].view(-1)[0] = float("nan")
    save_file(tensors, path)


def halve(path: Path) -> None:
    save_file({name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()}, path)


def swap(path: Path) -> None:
    save_file({name: t + 0.01 if t.is_floating_point() else t for name, t in load_file(path).items()}, path)


CHANGES = pytest.mark.parametrize("change", [flip, spoil, halve, swap])


@CHANGES
def test_other_weights_than_were_saved_are_refused(applied, tmp_path, change):
    folder = copied(applied, tmp_path / "small")
    change(folder / "weights.safetensors")
    remedy = r"weights\.safetensors is not the file that was saved here: .*restore the file, or apply the plan anew"
    with pytest.raises(ValueError, match=remedy):
        secateur.load(folder)


@CHANGES
def test_another_dense_network_than_was_saved_is_refused(run, tmp_path, change):
    folder = copied(run.folder, tmp_path / "run")
    change(folder / "dense.safetensors")
    remedy = r"dense\.safetensors is not the file that was saved here: .*; restore it, or delete it"
    with pytest.raises(ValueError, match=remedy):
        secateur.apply(folder)
    with pytest.raises(ValueError, match=remedy):
        secateur.train(resume=folder)


def test_folders_without_checksums_still_load(run, applied, tmp_path):
    small = copied(applied, tmp_path / "small")
    tree = json.loads((small / "network.json").read_text())
    del tree["sha256"]
    (small / "network.json").write_text(json.dumps(tree))
    assert torch.equal(secateur.load(small).conv1.weight, load_file(small / "weights.safetensors")["conv1.weight"])
    folder = copied(run.folder, tmp_path / "run")
    (folder / "dense.safetensors.sha256").unlink()
    assert secateur.train(resume=folder).finished


def test_the_checksum_is_one_that_other_tools_read(run):
    command = ["sha256sum", "--check", "dense.safetensors.sha256"]
    done = subprocess.run(command, cwd=run.folder, capture_output=True, text=True, check=False)
    assert done.stdout == "dense.safetensors: OK\n"


@pytest.mark.parametrize(
    "network",
    [
        {"name": ["digits_resnet"], "num_classes": 10},
        {"name": "digits_resnet", "num_classes": "ten"},
        {"name": "digits_resnet", "num_classes": 10, "weigths": "x"},
        "digits_resnet",
    ],
)
def test_a_network_file_is_checked_as_a_config_is(applied, tmp_path, network):
    folder = copied(applied, tmp_path / "small")
    edit(folder / "network.json", network=network)
    with pytest.raises(ValueError, match="is damaged"):
        secateur.load(folder)


# ---- names


NAMES = ["../up", "/etc/x", "a/b", "a\\b", "..", ".", "", " ", "a\nb", "a\x1b[2J", "a\u202eb", "a" * 101]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_not_named_by_a_path(name):
    with pytest.raises(ConfigError, match=r"name: the name .*files are called by it") as refused:
        check_config({"name": name, "budget": {"flops": 0.5}})
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_nor_is_the_allocator_of_a_plan(run, tmp_path, name):
    tree = json.loads((run.folder / "plan.json").read_text())
    tree["provenance"]["allocator"] = name
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    with pytest.raises(PlanError, match=r"plan\.json is not a ratio plan: the name .*files are called by it"):
        secateur.RatioPlan.load(tmp_path)


@pytest.mark.parametrize("name", ["mine", "ResNet-56, 50 %", "v1.2", "ddpg policy", "Netz größer", "[bold]x[", "a:b"])
def test_other_names_stay(name):
    assert check_config({"name": name, "budget": {"flops": 0.5}}).name == name


@pytest.mark.parametrize("name", [".lock", "episodes.jsonl", "tensorboard"])
def test_nothing_is_written_through_a_link(run, tmp_path, name):
    folder, mine = copied(run.folder, tmp_path / "run"), tmp_path / "mine"
    (folder / name).touch() if name == ".lock" else None  # gone when a run ends
    (folder / name).rename(mine)
    (folder / name).symlink_to(mine)
    before = [path.stat().st_mtime_ns for path in (mine, *mine.glob("*"))]
    with pytest.raises(ValueError, match=f"{name} is a link, and would be written through: put"):
        secateur.train(resume=folder)
    assert [path.stat().st_mtime_ns for path in (mine, *mine.glob("*"))] == before


# ---- the files themselves


def test_every_file_has_the_mode_of_the_umask(run, applied):
    umask = os.umask(0)
    os.umask(umask)
    files = [path for folder in (run.folder, applied) for path in folder.rglob("*") if path.is_file()]
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files}
    assert {"dense.safetensors", "policy.safetensors", "weights.safetensors", "network.json"} <= modes.keys()
    assert modes == dict.fromkeys(modes, oct(0o666 & ~umask))


def test_names_are_shown_as_they_are(run, quick, tmp_path, capsys, monkeypatch):
    name = "[bold]x[red] :x: $x^$"
    arguments = ["compare", str(run.folder), "--against", "uniform", "--out", str(tmp_path / "[/red]out")]
    monkeypatch.setattr(sys, "argv", ["secateur", *arguments, "--set", f"name='{name}'"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"{name}: channels, 6 layers" in shown
    assert str(tmp_path / "[/red]out" / "compare.json") in shown


def test_an_error_does_not_steer_the_terminal(run, tmp_path, capsys, monkeypatch):
    folder = copied(run.folder, tmp_path / "run")
    tree = json.loads((folder / "plan.json").read_text())
    tree["layers"][0]["name"] = "nowhere"
    edit(folder / "plan.json", architecture="\x1b]0;title\x07", layers=tree["layers"])
    monkeypatch.setattr(sys, "argv", ["secateur", "apply", str(folder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert r"plan.json: the plan (\x1b]0;title\x07) cuts layer 'nowhere'" in capsys.readouterr().err
