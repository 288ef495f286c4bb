"""A short run of benchmarks/fuzz.py: whatever is done to a file, it is refused by name, or nothing changes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import secateur

FILE = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
MUTATIONS = 68  # four of every artefact


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(fuzz, run, quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    secateur.apply(run.folder, finetune=0, out=folder / "small")
    overrides = (*quick, f"network.weights={run.folder / 'dense.safetensors'}")
    return fuzz.artefacts(run.folder, folder / "small", secateur.Session("digits", overrides=overrides))


def test_no_mutation_does_harm(fuzz, found):
    outcomes = fuzz.campaign(found, MUTATIONS, seed=0)
    assert [one for one in outcomes if one.kind in fuzz.BAD] == []
    kinds = [one.kind for one in outcomes]
    assert kinds.count("refused") > MUTATIONS / 2  # most of what is done to a file is seen
    assert {"same", "healed", "edit"} <= set(kinds)


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        (lambda folder: (folder / "plan.json").read_text() and secateur.RatioPlan.load(folder).kept[99], "TRACEBACK"),
        (lambda folder: os.read(os.open(folder / "pipe", os.O_RDONLY), 1), "HANG"),
        (lambda folder: int((folder / "plan.json").read_text()), "VAGUE"),
        (lambda folder: "something else", "WRONG"),
    ],
)
def test_it_sees_harm(fuzz, run, tmp_path, reader, kind):
    shutil.copy(run.folder / "plan.json", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    artefact = fuzz.Artefact("plan", tmp_path, "plan.json", reader)
    assert fuzz.attempt(artefact, tmp_path, "expected", seconds=0.2)[0] == kind


def test_a_mutation_is_drawn_by_its_seed(fuzz, found, tmp_path):
    plan = found[0]
    for name in ("one", "other"):
        shutil.copytree(plan.source, tmp_path / name)
        fuzz.mutate(tmp_path / name / plan.file, plan, [], fuzz.random.Random("0-5"))
    assert (tmp_path / "one" / plan.file).read_bytes() == (tmp_path / "other" / plan.file).read_bytes()
    assert (tmp_path / "one" / plan.file).read_bytes() != (plan.source / plan.file).read_bytes()
