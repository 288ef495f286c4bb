"""A session traces, ranks and measures its network once, for as many commands as there are."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import secateur
import zoo
from secateur.commands import session as module
from secateur.pruners.channels.criteria import CRITERIA
from secateur.storage.cache import Store
from secateur.storage.files import write_tensors

AGENT = {"episodes": 3, "warmup": 1, "updates": 1, "hidden": [4], "rerank": 2}


def config(**changes) -> secateur.Config:
    return secateur.Config.model_validate({"name": "mine", "budget": {"flops": 0.6}, "agent": AGENT, **changes})


def session(**changes) -> secateur.Session:
    images = secateur.Images(
        calibration=zoo.batches("residual"),
        search=zoo.batches("residual", (30, 10), seed=9),
        test=zoo.batches("residual", (20,), seed=5),
        train=zoo.batches("residual", (16,), seed=6),
    )
    return secateur.Session(config(**changes), model=zoo.make("residual"), images=images)


@pytest.fixture
def counted(monkeypatch) -> Counter[str]:
    """How often what a session needs once was made; nothing is found on the disk."""
    counts: Counter[str] = Counter()

    def count(where: str, name: str, key: str | None = None) -> None:
        original = getattr(__import__(where, fromlist=["_"]), name)

        def counting(*arguments, **named):
            counts[key or name] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(f"{where}.{name}", counting)

    monkeypatch.setattr(module, "dense_store", lambda *_: Store())
    count("secateur.commands.session", "load")
    count("secateur.pruners.channels.method", "find_layers")
    count("secateur.pruners.context", "collect_inputs")
    count("secateur.commands.setup", "layer_statistics")
    count("secateur.commands.session", "Compressor")
    count("secateur.commands.session", "CandidateEvaluator")
    l1 = CRITERIA["l1"]

    def counted_l1(context, layer):
        counts[f"l1 {layer.name}"] += 1
        return l1(context, layer)

    counted_l1.score = l1.score  # of our own package: remembered in the store, too
    monkeypatch.setitem(CRITERIA._known, "l1", counted_l1)
    return counts


def test_everything_once_for_all_commands(counted, tmp_path):
    mine = session(criterion="l1")
    trained = secateur.train(mine, out=tmp_path / "run")
    secateur.apply(trained.plan, mine, finetune=1, out=tmp_path / "small")
    secateur.compare([trained.plan], mine, against=["uniform", "random", "lamp"], candidates=2, out=tmp_path / "c")
    secateur.plan(trained.folder, mine, flops=0.5, out=tmp_path / "plan")
    secateur.correlate(mine, plans=3, out=tmp_path / "k")
    secateur.sensitivity(mine, criteria=["l1"], sparsities=[0.5], out=tmp_path / "s")
    secateur.filters(mine, out=tmp_path / "f")
    once = {"load", "find_layers", "collect_inputs", "layer_statistics", "Compressor"}
    assert {name: counted[name] for name in once} == dict.fromkeys(once, 1)
    assert counted["CandidateEvaluator"] == 1  # of the session; correlate's for the test images is its own
    ranked = {name: n for name, n in counted.items() if name.startswith("l1 ")}
    assert ranked == {f"l1 {layer.name}": 1 for layer in mine.structure.layers}


def test_a_candidate_is_evaluated_once_for_all_commands(tmp_path, monkeypatch):
    mine = session()
    first = secateur.compare((), mine, against=["random"], candidates=4, seeds=[0, 1], out=tmp_path / "a")
    known = len(mine.evaluator.known)
    assert 4 <= known <= 8
    monkeypatch.setattr("secateur.pruners.compressor.Compressor._repair", lambda *_: pytest.fail("repaired anew"))
    for plan in first.plans:
        mine.evaluator.evaluate(plan.kept)
    assert len(mine.evaluator.known) == known


def test_beside_shares_what_does_not_differ(counted):
    mine = session()
    context, evaluator = mine.context, mine.evaluator
    tighter = mine.beside(overrides=["budget.flops=0.5"])
    assert (tighter.budget.fraction, mine.budget.fraction) == (0.5, 0.6)
    assert tighter.context is context
    assert tighter.evaluator is evaluator
    other = mine.beside(overrides=["criterion=l1"])
    assert other.structure is mine.structure
    assert other.context is not context
    assert other.context.store is context.store  # the moments are the same
    repaired = mine.beside(overrides=["repair.search.kind=gram"])
    assert repaired.compressor is mine.compressor
    assert repaired.evaluator is not evaluator
    assert repaired.evaluator.repair.kind == "gram"
    weights = mine.beside(overrides=["method=weights", "budget.params=0.5"])
    assert weights.model is mine.model
    assert weights.structure.method == "weights" != mine.structure.method
    assert weights.criterion == "magnitude"
    assert mine.beside().evaluator is evaluator
    assert other.beside(overrides=["criterion=obs"]).context is context
    assert counted["load"] == 1
    assert counted["find_layers"] == 1


def test_a_session_of_no_config_takes_that_of_the_folder(run, tmp_path):
    bare = secateur.Session()
    applied = secateur.apply(run.folder, bare, finetune=0, out=tmp_path / "small")
    assert applied.summary["pruned"]["flops"] == run.plan.cost["flops"]
    beside = bare.beside(run.folder)
    assert beside.config.agent.episodes == 6
    assert torch.equal(beside.model.conv1.weight, secateur.Session(run.folder / "config.yaml").model.conv1.weight)
    assert beside.beside(tmp_path / "small").config.agent.episodes == 6  # the first folder counts


def test_what_a_command_finds_does_not_depend_on_those_before_it(tmp_path):
    fresh = secateur.train(session(), out=tmp_path / "fresh")
    used = session()
    secateur.sensitivity(used, sparsities=[0.5], out=tmp_path / "s")
    secateur.compare((), used, against=["random", "hill_climb"], candidates=3, finetune=1, out=tmp_path / "c")
    spent = sum(used.evaluator.seconds.values())
    again = secateur.train(used, out=tmp_path / "again")
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (fresh.folder / "episodes.jsonl", again.folder / "episodes.jsonl")
    ]
    assert logs[0] == logs[1]
    assert again.plan == fresh.plan
    parts = again.summary["seconds_per_part"]
    own = sum(used.evaluator.seconds.values()) - spent
    assert sum(parts[name] for name in used.evaluator.seconds) <= own + 1e-6  # of this command alone


def test_each_folder_has_its_own_trained_network(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    tensors = load_file(other / "dense.safetensors")
    changed = {**tensors, "linear.bias": tensors["linear.bias"] + 1.0}
    write_tensors(other / "dense.safetensors", changed, record=True)
    bare = secateur.Session()
    biases = [bare.beside(folder).model.linear.bias for folder in (run.folder, other)]
    torch.testing.assert_close(biases[1], biases[0] + 1.0)
    assert bare.beside(other).model is bare.beside(other).model


def test_a_plan_says_method_and_criterion(tmp_path):
    plan = secateur.compare((), session(criterion="l1"), against=["uniform"], out=tmp_path / "c").plans[0]
    mine = session()
    assert mine.beside(plan=plan).criterion == "l1"
    assert mine.criterion == "obs"


@pytest.mark.parametrize("method", ["channels", pytest.param("weights", marks=pytest.mark.slow)])
def test_the_sessions_own_network_stays_as_it_was(method, tmp_path):
    mine = session(method=method)
    model = mine.model
    model.conv1.weight.requires_grad = False
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    trained = secateur.train(mine, out=tmp_path / "run")
    schedules = ["one_shot", "gradual"] if method == "weights" else ["one_shot"]
    for schedule in schedules:
        secateur.apply(trained.plan, mine, finetune=2, schedule=schedule, out=tmp_path / schedule)
    secateur.compare([trained.plan], mine, against=["uniform", "knapsack"], finetune=2, out=tmp_path / "c")
    secateur.correlate(mine, plans=3, finetune_plans=3, finetune=1, out=tmp_path / "k")
    secateur.sensitivity(mine, sparsities=[0.5], out=tmp_path / "s")
    small = mine.compress(mine.structure.units)  # nothing is cut: it would share all
    for tensor in small.state_dict().values():
        tensor.zero_()
    assert mine.model is model
    assert not model.training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == grads
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_an_environment_is_new_every_time_and_shares_what_is_known():
    mine = session()
    one, other = mine.env(), mine.env()
    assert one is not other
    assert one.evaluator is other.evaluator
    assert one.predicted is other.predicted  # of the dense network, before any plan
    one.reset(seed=0)
    one.step(np.zeros(1, dtype=np.float32))
    other.reset(seed=0)
    assert (len(one.kept), len(other.kept)) == (1, 0)
    assert isinstance(secateur.make_env(mine), type(one))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"config": "digit"}, "did you mean digits"),
        ({"config": "digits", "overrides": ["method=chanels"]}, "did you mean channels"),
        ({"config": "digits", "overrides": ["criterion=l11"]}, "did you mean l1"),
    ],
)
def test_a_mistake_in_the_config_is_said_at_once(given, message):
    with pytest.raises(ValueError, match=message):
        secateur.Session(**given)


def test_a_plan_keeps_what_its_own_config_says_of_layers(run, tmp_path):
    """It would not fit otherwise; what is set by hand is on top, and a config that cannot be read is no obstacle."""
    run.plan.save(tmp_path / "plan.json")
    told = run.folder.joinpath("config.yaml").read_text().replace("round_to: 1", "round_to: 2")
    assert "round_to: 2" in told
    (tmp_path / "config.yaml").write_text(told)
    mine = secateur.Session("digits", overrides=["budget.flops=0.9"])
    assert mine.beside(tmp_path, run.plan).config.layers.round_to == 2
    assert mine.beside(tmp_path, run.plan).config.budget.flops == 0.9
    assert mine.beside(tmp_path, run.plan, overrides=["layers.round_to=4"]).config.layers.round_to == 4
    (tmp_path / "config.yaml").write_text("damaged: [")
    assert mine.beside(tmp_path, run.plan).config.layers.round_to == 1


def test_nothing_is_loaded_before_it_is_needed(monkeypatch):
    monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("loaded"))
    mine = secateur.Session("digits", overrides=["network.weights=nowhere"])
    assert mine.config.method == "channels"
    assert mine.beside(overrides=["method=weights"]).criterion == "magnitude"
