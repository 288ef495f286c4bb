"""Whole files with right checksums whose content does not fit: said with file and place, and never taken."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secateur
from secateur.agents.log import CandidateLog, EpisodeLog
from secateur.agents.policy import Policy
from secateur.envs import Evaluation
from secateur.networks import digits_resnet
from secateur.pruners import METHODS, PlanError
from secateur.storage.files import read_tensors, write_tensors


@pytest.fixture(scope="module")
def applied(run, tmp_path_factory):
    folder = secateur.apply(run.folder, finetune=0, out=tmp_path_factory.mktemp("contents") / "small").folder
    edit(folder / "network.json", lambda tree: tree.pop("sha256"))  # so that nothing but the content tells
    return folder


def edit(path: Path, change: Callable[[Any], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def cut(**changes: Any) -> Callable[[Any], object]:
    return lambda tree: tree["recipe"]["kept"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut(positions="all"), r"kept\.0\.positions = 'all': input should be a valid list"),
        (cut(positions=[]), r"kept\.0\.positions = \[\]: list should have at least 1 item"),
        (cut(positions=[0.0]), r"kept\.0\.positions\.0 = 0\.0: input should be a valid integer"),
        (cut(positions=[True]), r"kept\.0\.positions\.0 = True: input should be a valid integer"),
        (cut(positions=[-1]), r"kept\.0\.positions\.0 = -1: input should be greater than or equal to 0"),
        (cut(positions=[0, 0]), r"the positions that stay of .*, dimension \d, do not ascend within 0 … \d+"),
        (cut(positions=[1, 0]), r"do not ascend within"),
        (cut(positions=[10**9]), r"do not ascend within"),
        (cut(dim=7), r"this network has no dimension 7 of "),
        (cut(dim="0"), r"kept\.0\.dim = '0': input should be a valid integer"),
        (cut(tensor="nowhere.weight"), r"this network has no tensor 'nowhere\.weight'"),
        (cut(step=2), r"kept\.0\.step: extra inputs are not permitted"),
        (lambda tree: tree["recipe"]["kept"].append(tree["recipe"]["kept"][0]), r"cuts a dimension of a tensor twice"),
        (lambda tree: tree["recipe"]["kept"].pop(), r"has shape .*, the network's is"),
        (lambda tree: tree["recipe"].clear(), r"kept: field required"),
        (lambda tree: tree.update(method="weights"), r"this is no recipe of pruned weights"),
        (lambda tree: tree.update(method="wights"), r"no method 'wights', only .* – did you mean weights\?"),
        (lambda tree: tree.update(note=1), r"network\.json: note: extra inputs"),
        (lambda tree: tree.update(kwargs={"width": "x"}), r"network\.kwargs=\{'width': 'x'\} for digits_resnet"),
        (lambda tree: tree["network"].update(num_classes=10**8), r"num_classes = 100000000: no tensor of weights"),
        (lambda tree: tree["network"].update(num_classes=True), r"network: num_classes: true is no number"),
    ],
)
def test_a_recipe_that_does_not_fit(applied, tmp_path, change, message):
    folder = Path(shutil.copytree(applied, tmp_path / "small"))
    edit(folder / "network.json", change)
    with pytest.raises(ValueError, match=message) as refused:
        secateur.load(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("masked", "message"), [(3, "masked is no list"), (["x"], "'x': no such weights"), (["conv1.weight"] * 2, "twice")]
)
def test_a_recipe_of_weights_names_what_is_there(masked, message):
    model = digits_resnet(num_classes=10)
    assert METHODS["weights"].rebuild(model, {"masked": ["conv1.weight"]}) is model
    with pytest.raises(ValueError, match=message):
        METHODS["weights"].rebuild(model, {"masked": masked})


def retyped(kind: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.to(kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (retyped(torch.int8), r"conv1\.weight holds torch\.int8 numbers, the network's are torch\.float32"),
        (retyped(torch.bool), r"conv1\.weight holds torch\.bool numbers"),
        (retyped(torch.complex64), r"conv1\.weight holds torch\.complex64 numbers"),
        (lambda tensor: tensor.double() * 1e300, r"conv1\.weight holds NaN or infinity"),
        (lambda tensor: tensor * float("nan"), r"conv1\.weight holds NaN or infinity"),
        (lambda tensor: tensor[:, :, 1:].contiguous(), r"conv1\.weight has shape .*, the network's is"),
    ],
)
def test_numbers_of_another_kind(run, applied, tmp_path, change, message):
    folder = Path(shutil.copytree(applied, tmp_path / "small"))
    shutil.copy(run.folder / "dense.safetensors", tmp_path)
    for path in (folder / "weights.safetensors", tmp_path / "dense.safetensors"):
        tensors, _ = read_tensors(path)
        write_tensors(path, {**tensors, "conv1.weight": change(tensors["conv1.weight"])})
    with pytest.raises(ValueError, match=message):
        secateur.load(folder)
    session = secateur.Session("digits", overrides=[f"network.weights={tmp_path / 'dense.safetensors'}"])
    with pytest.raises(ValueError, match=message):
        _ = session.model


def test_half_precision_is_only_less_precise(applied, tmp_path):
    folder = Path(shutil.copytree(applied, tmp_path / "small"))
    tensors, _ = read_tensors(folder / "weights.safetensors")
    write_tensors(folder / "weights.safetensors", {n: t.half() if t.dim() else t for n, t in tensors.items()})
    assert torch.equal(secateur.load(folder).conv1.weight, tensors["conv1.weight"].half().float())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden", "[", r"policy\.safetensors is another version's \(hidden is not JSON"),
        ("hidden", "[1000000]", r"no tensor has 1000000 rows"),
        ("hidden", "[true]", r"hidden\.0 = True: input should be a valid integer"),
        ("features", "[1]", r"features\.0 = 1: input should be a valid string"),
        ("features", '["[red]"]', r"policy\.safetensors was trained on other observations"),
        ("algorithm", "ppo", r"algorithm = 'ppo': input should be 'ddpg', 'td3' or 'sac'"),
        ("algorithm", "sac", r"policy\.safetensors does not fit: .*; train it anew"),
    ],
)
def test_a_policy_that_does_not_fit(run, tmp_path, key, value, message):
    path = tmp_path / "policy.safetensors"
    tensors, about = read_tensors(run.folder / "policy.safetensors")
    write_tensors(path, tensors, {**about, key: value})
    with pytest.raises(ValueError, match=message):
        secateur.plan(path, secateur.Session(run.folder / "config.yaml"), out=tmp_path / "plan")


@pytest.mark.parametrize("name", ["actor.mu.0.weight", "loss_model.factors"])
@pytest.mark.parametrize("value", [float("nan"), 1e300])
def test_a_policy_of_what_are_no_numbers(run, tmp_path, name, value):
    tensors, about = read_tensors(run.folder / "policy.safetensors")
    write_tensors(tmp_path / "p.safetensors", {**tensors, name: torch.full_like(tensors[name].double(), value)}, about)
    with pytest.raises(ValueError, match=f"{re.escape(name)} holds something else than finite numbers"):
        Policy.load(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quality", -3.0, r"episodes\.jsonl, line 2: quality = -3\.0, where its figures give"),
        ("accuracy", 12.5, r"episodes\.jsonl, line 2: quality = .*, where its figures give"),
        ("reward", 0.75, r"episodes\.jsonl, line 2: reward = 0\.75, where its figures give"),
        ("reward", "nan", r"line 2 is damaged: .* \(it: reward = 'nan': input should be a valid number"),
        ("accuracy", 101.0, r"line 2 is damaged: .* \(it: accuracy = 101\.0: input should be less than or equal"),
        ("accuracy", True, r"line 2 is damaged: .* \(it: accuracy = True: input should be a valid number"),
        ("actions", [0.0], r"line 2 is damaged: .* \(it has more actions than layers, or fewer\)"),
        ("actions", [2.0] * 6, r"line 2 is damaged: .* \(it: actions\.0 = 2\.0: input should be less than"),
        ("kept", [True] * 6, r"line 2 is damaged: .* \(it: kept\.0 = True: input should be a valid integer"),
        ("episode", 4, r"line 2 is damaged: .* \(it is episode 4\)"),
    ],
)
def test_an_episode_that_cannot_have_been(run, tmp_path, key, value, message):
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    log = folder / "episodes.jsonl"
    lines = log.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), key: value})
    log.write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(ValueError, match=message):
        secateur.train(resume=folder)


def test_a_candidate_whose_figures_were_changed(tmp_path):
    kept, found = np.array([3, 4]), Evaluation(50.0, 0.25, 0.5, 0.5)
    CandidateLog(tmp_path / "log", 2).append("random", 0, kept, found, 0.75)
    again = CandidateLog(tmp_path / "log", 2)
    again.append("random", 0, kept, found, 0.75)
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    with pytest.raises(ValueError, match=r"log: random's \[3, 4\] has quality 0\.75, where its figures give 0\.5 now"):
        again.append("random", 0, kept, found, 0.5)


def test_what_is_no_log_is_not_cut_off(tmp_path):
    for log in (lambda path: EpisodeLog(path).read(6), lambda path: CandidateLog(path, 6)):
        path = tmp_path / "mine"
        path.write_bytes(b"a letter, in one line")
        with pytest.raises(ValueError, match=r"mine, line 1 is damaged: .* \(no line of a log\)"):
            log(path)
        assert path.read_bytes() == b"a letter, in one line"


@pytest.mark.parametrize("name", [".lock", "episodes.jsonl", "dense.safetensors", "config.yaml"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(run, tmp_path, name):
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is a pipe, not a file|no run there"):
        secateur.train(resume=folder)


def test_a_plan_that_does_not_fit_is_named_with_its_file(run, tmp_path):
    for key, value, message in (
        ("criterion", "obss", r"plan\.json: no criterion 'obss'.* – did you mean obs\?"),
        ("method", "chanels", r"plan\.json: no method 'chanels'"),
        ("fingerprint", "0" * 16, r"plan\.json: the plan \(digits_resnet\) is for another network"),
    ):
        folder = Path(shutil.copytree(run.folder, tmp_path / key))
        edit(folder / "plan.json", lambda tree, key=key, value=value: tree.update({key: value}))
        with pytest.raises(PlanError, match=message):
            secateur.apply(folder, finetune=0, out=tmp_path / "small")


def test_coupled_twice_is_coupled_otherwise(run, tmp_path):
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    edit(folder / "plan.json", lambda tree: tree["layers"][0]["members"].append(tree["layers"][0]["members"][0]))
    with pytest.raises(PlanError, match=r"plan\.json: .* is coupled differently here \(at "):
        secateur.apply(folder, finetune=0, out=tmp_path / "small")
    edit(folder / "plan.json", lambda tree: tree["layers"].append(tree["layers"][0]))
    with pytest.raises(PlanError, match=r"layer \S+ is there twice"):
        secateur.RatioPlan.load(folder)
