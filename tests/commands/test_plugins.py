"""Methods, criteria and allocators named `package.module:callable`: they run only when asked, and then everywhere."""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pytest
import torch

import secateur
from secateur.commands import cli
from secateur.configs.registry import UnknownNameError
from secateur.pruners import METHODS

CODE = """
from pathlib import Path

import numpy as np
from secateur.agents import SearchProblem, register_allocator
from secateur.agents.allocators.ranks import knapsack
from secateur.agents.allocators.searches import Evaluated
from secateur.pruners import METHODS
from secateur.pruners.channels.criteria import filters, register_criterion, register_score

Path("imported").touch()


class Last(type(METHODS["weights"])):
    name = "last"

    def curves(self, context):
        return [1 - layer.levels / layer.units for layer in context.structure.layers]


def later(context, layer):
    weight = context.model.get_parameter(layer.name)
    return weight.detach().new_tensor(range(weight.numel())).reshape(weight.shape)


@register_criterion("NAME last")
def last_k(context, layer):
    return np.arange(layer.units)[::-1]


@register_score("NAME signed")
def signed(context, layer):
    return np.sum([own.sum(1).cpu().numpy() for own in filters(context, layer)], axis=0)


def undecorated(context, layer):
    return np.arange(layer.units)


def thin(problem):
    return problem.budget.fill(np.sqrt(problem.dense))


@register_allocator("NAME one", searches=True)
def one(problem: SearchProblem):
    evaluated = Evaluated(problem)
    evaluated([knapsack(problem)])
    return evaluated.best


class Half:
    name = "half"


class Needy:
    def __init__(self, size): ...
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module that no one can import but from the working directory; it leaves a file when it is imported."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(CODE.replace("NAME", name))
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def overrides(quick, own, *more):
    return (*quick, "agent.episodes=3", "agent.rerank=2", *(text.replace("OWN", own) for text in more))


METHOD = (
    *("method=OWN:Last", "criterion=OWN:later", "repair.search.kind=none", "repair.final.kind=none"),
    *("data.calibration=20", "data.search=40", "data.test=20", "latency.batch=2", "latency.repeats=1"),
)


@pytest.mark.slow
def test_a_method_and_its_criterion_work_from_a_config_to_a_loaded_network(quick, own, tmp_path):
    settings = overrides(quick, own, *METHOD, "workers=2")
    with pytest.raises(ValueError, match=f"method='{own}:Last' names code to import and run.*--trust-code"):
        secateur.Session("digits", overrides=settings)
    assert not (tmp_path / "imported").exists()

    found = secateur.train(secateur.Session("digits", overrides=settings, trust_code=True), out="run")
    assert (found.plan.method, found.plan.criterion) == (f"{own}:Last", f"{own}:later")

    log = tmp_path / "run" / "episodes.jsonl"
    lines = log.read_text()
    log.write_text("".join(lines.splitlines(keepends=True)[:1]))
    for left in ("summary.json", "plan.json"):
        log.with_name(left).unlink()
    with pytest.raises(ValueError, match="--trust-code"):
        secateur.train(secateur.Session(), resume="run")
    secateur.train(secateur.Session(trust_code=True), resume="run")
    assert told(log.read_text()) == told(lines)
    here = secateur.Session("run/config.yaml", trust_code=True).evaluator
    for line in told(lines)[:2]:  # what workers find, this process finds
        assert here.evaluate(np.array(line["kept"])).reconstruction_loss == line["reconstruction_loss"]

    for session in (None, secateur.Session("digits", overrides=quick)):
        with pytest.raises(ValueError, match=f"{own}:Last.*--trust-code"):
            secateur.apply("run", session, out="small")
    done = secateur.apply("run", secateur.Session(trust_code=True), out="small")
    share = next(layer for layer in found.plan.layers if layer.kept < layer.units)
    kept = done.model.get_parameter(share.name).detach().flatten()
    assert (kept[: share.units - share.kept] == 0).all()  # the last of every tensor stay, as `later` says
    assert torch.equal(secateur.load("small", trust_code=True).get_parameter(share.name).flatten(), kept)
    with pytest.raises(ValueError, match=f"method='{own}:Last' names code.*trust_code=True"):
        secateur.load("small")


def told(log: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in log.splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "check", "fingerprint")} for line in lines
    ]


@pytest.mark.parametrize(("name", "order"), [("last_k", lambda units: range(units)[::-1]), ("signed", None)])
def test_a_criterion_of_channels_ranks(quick, own, name, order):
    session = secateur.Session("digits", overrides=overrides(quick, own, f"criterion=OWN:{name}"), trust_code=True)
    layer = session.structure.layers[0]
    selection = METHODS["channels"].selection(session.context, session.structure.units - 1)
    weight = session.model.get_parameter(layer.slices[0].parameter)
    weakest = 0 if order else int(weight.flatten(1).sum(1).argmin())
    assert sorted({*range(layer.units)} - {*selection[0].tolist()}) == [weakest]


def test_allocators_compare_as_they_are_registered_or_as_rules(quick, own, tmp_path):
    names = [f"{own}:thin", f"{own}:one", "knapsack"]
    settings = overrides(quick, own, "workers=2")
    with pytest.raises(ValueError, match=f"against='{own}:thin' names code.*--trust-code"):
        secateur.compare((), secateur.Session("digits", overrides=settings), against=names, candidates=1, out="no")
    listed = (*settings, f"compare.against=[{', '.join(names)}]")
    with pytest.raises(ValueError, match=f"compare.against='{own}:thin' names code.*--trust-code"):
        secateur.compare((), secateur.Session("digits", overrides=listed), out="no")
    assert not (tmp_path / "imported").exists()
    trusted = secateur.Session("digits", overrides=listed, trust_code=True)
    done = secateur.compare((), trusted, candidates=1, out="mine")
    assert [row["allocator"] for row in done.rows] == names
    assert [row["candidates"] for row in done.rows] == [0, 1, 0]
    thin, one, knapsack = (plan.kept for plan in done.plans)
    assert one.tolist() == knapsack.tolist() != thin.tolist()
    for row, plan in zip(done.rows, done.plans, strict=True):
        read = secateur.RatioPlan.load(done.folder / row["plan"])  # a file name without a colon
        assert ":" not in row["plan"]
        assert np.array_equal(read.kept, plan.kept)
        assert read.provenance.allocator == row["allocator"]


@pytest.mark.parametrize(
    ("setting", "kind", "message"),
    [
        ("criterion=OWN:undecorated", ValueError, "may be an order or scores: decorate it"),
        ("criterion=OWN:signe", ValueError, "has no callable 'signe' – did you mean signed?"),
        ("criterion=no_such_module:score", ValueError, "no module 'no_such_module'"),
        ("method=OWN:Half", ValueError, "makes a Half without .*find.*: a method has all"),
        ("method=OWN:Needy", ValueError, "missing 1 required positional argument.*what makes a method of no arguments"),
    ],
)
def test_what_is_no_plug_in_says_so(quick, own, setting, kind, message):
    with pytest.raises(kind, match=message):
        secateur.Session("digits", overrides=overrides(quick, own, setting), trust_code=True)


def test_trust_is_not_given_by_a_registry(own):
    with pytest.raises(ValueError, match=f"method='{own}:Last' names code"):
        METHODS[f"{own}:Last"]
    with pytest.raises(UnknownNameError):
        METHODS[f"{own}.Last"]


LOOP = """
from pathlib import Path


def fit(model, context):
    with Path("called").open("a") as file:
        file.write(f"{context.round} {context.epochs} {len(context.train)}\\n")
"""


def test_a_training_loop_is_named_on_the_command_line(run, tmp_path, monkeypatch, capsys):
    name = f"loop_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(LOOP)
    monkeypatch.chdir(tmp_path)
    command = ["secateur", "apply", str(run.folder), "--finetune", "2", "--out", "small", "--train-fn", f"{name}:fit"]
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"--train-fn='{name}:fit' names code to import and run" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--trust-code"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert (tmp_path / "called").read_text().split()[:2] == ["1", "2"]
    begun = json.loads((tmp_path / "small" / "apply.json").read_text())
    assert begun["of"]["train_fn"] == "fit"


WRONG = """
from torch import nn


def three(**_settings):
    return 3


class Empty(nn.Module):
    def __init__(self, num_classes):
        super().__init__()

    def forward(self, images):
        return images
"""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("objective.name=OWN:three", "objective.name=OWN:three is a int; an objective derives from secateur.Objective"),
        ("network.name=OWN:three", "network.name=OWN:three: returned a int, expected a torch.nn.Module"),
        ("network.name=OWN:Empty", "the network (Empty) has no parameters: there is nothing to prune"),
        ("method=OWN:three", "method=OWN:three makes a int without name"),
    ],
)
def test_code_that_makes_something_else_ends_in_a_line(setting, message, tmp_path, monkeypatch, capsys):
    name = f"wrong_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    command = ["secateur", "compare", "--config", "digits", "--trust-code", "--set", setting.replace("OWN", name)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message.replace("OWN", name) in said
    assert "Traceback" not in said
    assert said.count("\n") == 1
