"""Every schedule, for plans of any method: it ends with the plan, can be loaded, and goes on where it was stopped."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Small, batches, make, plan_of
from torch import Tensor, nn

import secateur
from secateur.commands.retraining import Task
from secateur.networks.constant import Constant
from secateur.networks.copying import copied
from secateur.pruners.masks import tighten
from secateur.storage.files import read_tensors
from secateur.training.checkpoint import Checkpoint
from secateur.training.schedules import SCHEDULES, Cut, Retraining, TrainContext, share


@pytest.fixture(scope="module", params=["channels", "weights"])
def session(request, tmp_path_factory) -> secateur.Session:
    trunks = {"layers": {"cut": "all"}} if request.param == "channels" else {}
    return make(tmp_path_factory.mktemp(request.param), request.param, **trunks)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures and latencies take longer than so small a network's training."""
    monkeypatch.setattr("secateur.commands.apply.plan_figure", lambda *_given: None)
    monkeypatch.setattr("secateur.commands.apply.measure_latency", lambda models, *_given: dict.fromkeys(models, 1.0))


def tensors(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "weights.safetensors")[0]


def same(ours: Path, theirs: Path) -> None:
    mine, other = tensors(ours), tensors(theirs)
    assert mine.keys() == other.keys()
    assert [name for name, tensor in mine.items() if not torch.equal(tensor, other[name])] == []


def stop(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in place of a checkpoint's write of number `at`, from 1."""
    write, seen = Checkpoint.write, itertools.count(1)

    def failing(self: Checkpoint, *given: Any) -> None:
        if next(seen) == at:
            raise KeyboardInterrupt
        write(self, *given)

    monkeypatch.setattr(Checkpoint, "write", failing)


QUICK = [("gradual", "all"), ("iterative", "inner"), ("rewind", "all")]


@pytest.mark.parametrize(
    ("schedule", "cut"),
    [
        pytest.param(schedule, cut, marks=[] if (schedule, cut) in QUICK else pytest.mark.slow)
        for schedule in SCHEDULES
        for cut in ("inner", "all")
    ],
)
def test_a_branch_that_goes_altogether_is_gone_in_the_end(schedule, cut, tmp_path):
    session = make(tmp_path, "channels", layers={"branches": True, "cut": cut})
    kept = plan_of(session).kept
    kept[session.structure.index("inner2")] = 0
    plan = session.plan_of(kept, allocator="uniform", seed=0, candidates=0)
    made = secateur.apply(plan, session, schedule=schedule, out=tmp_path / "made")
    small = secateur.load(made.folder, Small())
    images = batches(1, 9)[0][0]
    with torch.inference_mode():
        assert torch.allclose(small(images), made.model(images), atol=1e-5)
    assert isinstance(small.back2, Constant)
    assert sum(p.numel() for p in small.parameters()) == session.structure.cost("params", kept)
    assert made.summary["pruned"]["flops"] == session.structure.fraction("flops", kept) < 0.2
    assert small.back2.mean.any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_ends_with_the_plan_whenever_it_was_stopped(schedule, session, tmp_path, monkeypatch):
    plan = plan_of(session)
    whole = secateur.apply(plan, session, schedule=schedule, out=tmp_path / "whole")
    assert whole.summary["schedule"] == schedule
    assert whole.summary["pruned"]["flops"] == session.structure.fraction("flops", plan.kept)
    small = secateur.load(whole.folder, Small())
    images = batches(1, 9)[0][0]
    with torch.inference_mode():
        assert torch.allclose(small(images), whole.model(images), atol=1e-5)
    state = dict(small.named_parameters())
    if plan.method == "weights":
        assert {layer.name: int((state[layer.name] != 0).sum()) for layer in plan.layers} == dict(
            zip(plan.sparsities, plan.kept.tolist(), strict=True)
        )
    else:
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in Small().parameters())
    with monkeypatch.context() as patch:
        stop(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            secateur.apply(plan, session, schedule=schedule, out=tmp_path / "stopped")
    again = secateur.apply(session=session, resume=tmp_path / "stopped")
    same(again.folder, whole.folder)
    assert {path.name for path in again.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}
    assert [row | {"seconds": 0} for row in lines(again.folder)] == [
        row | {"seconds": 0} for row in lines(whole.folder)
    ]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def test_rounds_share_the_epochs_are_recorded_and_go_all_the_way(session, tmp_path, monkeypatch):
    plan = plan_of(session, 0.3)
    mine = session.beside(overrides=["finetune.rounds=3", "finetune.spacing=geometric"])
    done = secateur.apply(plan, mine, schedule="iterative", finetune=4, out=tmp_path / "small")
    assert [(row["round"], row["epoch"]) for row in lines(done.folder)] == [(1, 1), (2, 1), (3, 1), (3, 2)]
    sizes = [
        sum(int((p != 0).sum()) for p in secateur.load(done.folder / "rounds" / str(n), Small()).parameters())
        for n in (1, 2, 3)
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    same(done.folder, done.folder / "rounds" / "3")
    with pytest.raises(ValueError, match="3 rounds share 2 epochs: give finetune epochs, one a round or more"):
        secateur.apply(plan, mine, schedule="iterative", finetune=2, out=tmp_path / "no")


@pytest.mark.parametrize(
    ("scores", "left"), [((60.0, 49.9), "round 1"), ((49.9,), "the dense network"), ((60.0, math.nan), "round 1")]
)
def test_below_the_floor_the_round_before_counts(scores, left, session, tmp_path, monkeypatch):
    said, found = [], iter(scores)
    monkeypatch.setattr(session.reporter, "say", said.append)
    monkeypatch.setattr(Task, "score", lambda _self, _model: next(found))
    mine = session.beside(overrides=["finetune.floor=50"])
    done = secateur.apply(plan_of(session, 0.3), mine, schedule="iterative", out=tmp_path / "small")
    assert said[-1].startswith(f"round {len(scores)} of 2: {scores[-1]:.2f} on the search images, below 50: ")
    assert said[-1].endswith(f"what {left} left is kept" if len(scores) == 2 else f"{left} is kept")
    small = secateur.load(done.folder, Small())
    size = sum(int((p != 0).sum()) for p in small.parameters())
    whole = sum(p.numel() for p in Small().parameters())
    if len(scores) == 2:
        same(done.folder, done.folder / "rounds" / "1")
        assert size < whole
        assert done.summary["pruned"]["params"] < 1.0
    else:
        assert all(torch.equal(p, session.model.get_parameter(name)) for name, p in small.named_parameters())
        assert done.summary["pruned"]["params"] == 1.0
    assert session.structure.fraction("params", plan_of(session, 0.3).kept) < done.summary["pruned"]["params"]


@pytest.mark.parametrize(("epochs", "rounds"), [(5, 3), (3, 3), (10, 4), (7, 1)])
def test_no_epoch_is_lost_between_rounds(epochs: int, rounds: int):
    shares = [share(epochs, rounds, number) for number in range(1, rounds + 1)]
    assert sum(shares) == epochs
    assert shares == sorted(shares)
    assert shares[-1] - shares[0] <= 1


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Tensor], int, bool]]:
    """The networks that trainings begin with, their epochs, and whether there is a teacher."""
    seen: list[tuple[dict[str, Tensor], int, bool]] = []
    finetune = secateur.Session.finetune

    def watching(self: secateur.Session, model: nn.Module, epochs: int, **options: Any) -> Any:
        seen.append(({n: t.clone() for n, t in model.state_dict().items()}, epochs, options.get("taught", True)))
        return finetune(self, model, epochs, **options)

    monkeypatch.setattr(secateur.Session, "finetune", watching)
    return seen


def test_what_survives_goes_back_to_the_weights_it_had(session, tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    done = secateur.apply(plan_of(session), session, schedule="rewind", finetune=2, out=tmp_path / "small")
    start, _ = read_tensors(Path(session.config.finetune.initial))
    recipe = json.loads((done.folder / "network.json").read_text())["recipe"]["steps"]
    assert len(seen) == len(recipe) == 2
    for begun, epochs, _ in seen:
        assert epochs == 1
        for name, tensor in begun.items():
            if name == "pad.source":
                continue
            if tensor.shape == start[name].shape:
                assert bool(((tensor == start[name]) | (tensor == 0)).all()), name
            else:  # every value is one of the weights that it had
                assert set(tensor.flatten().tolist()) <= set(start[name].flatten().tolist()), name
    finetune = session.config.finetune.model_copy(update={"initial": None})
    config = session.config.model_copy(update={"finetune": finetune})
    nowhere = secateur.Session(config, model=session.model, images=session._images)
    with pytest.raises(ValueError, match=r"there are none: give finetune\.initial \(a file\), or network\.pretrain"):
        secateur.apply(plan_of(session), nowhere, schedule="rewind", out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_from_scratch_nothing_is_known_of_the_dense_network(session, tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    plan = plan_of(session)
    for schedule in ("scratch_e", "scratch_b"):
        secateur.apply(plan, session, schedule=schedule, finetune=2, out=tmp_path / schedule)
    (first, few, taught), (second, many, _) = seen
    assert not taught
    assert few == 2
    assert many == round(2 / session.structure.fraction("flops", plan.kept))
    dense = session.model.state_dict()
    assert not set(first["out.weight"].flatten().tolist()) & set(dense["out.weight"].flatten().tolist()) - {0.0}
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

    class Odd(Small):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    odd = secateur.Session(session.config, model=Odd(), images=session._images)
    with pytest.raises(ValueError, match=r"Odd has a parameter 'scale' and no reset_parameters\(\) that draws it"):
        secateur.apply(plan_of(odd), odd, schedule="scratch_e", out=tmp_path / "no")


def test_zeros_that_tighten_compute_what_the_cut_network_does(session):
    plan, model = plan_of(session), copied(session.model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()  # of its own: they may grow
    hold = tighten(session.context, model, plan.kept)
    assert not any(bool((mask == 0).all()) for name, mask in hold.masks.items() if name == "out.bias")
    masked = session.compressor.masked(plan.kept)
    images = batches(1, 9)[0][0]
    for name, tensor in masked.named_parameters():
        if not name.endswith("bias"):
            assert torch.equal(model.get_parameter(name), tensor), name
    before = model(images)
    for name in hold.masks:
        model.get_parameter(name).data += 1.0
    assert not torch.equal(model(images), before)
    hold(model)
    for name, mask in hold.masks.items():
        assert bool((model.get_parameter(name)[mask == 0] == 0).all())


def test_a_loop_of_ones_own_is_called_between_cuts(session, tmp_path):
    calls: list[TrainContext] = []

    def train(model: nn.Module, context: TrainContext) -> None:
        calls.append(context)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        model.train()
        for _ in range(context.epochs):
            for inputs, targets in context.train:
                optimizer.zero_grad()
                context.objective.training_loss(model, inputs, targets).backward()
                optimizer.step()
                context.hold(model)

    plan = plan_of(session)
    done = secateur.apply(plan, session, schedule="iterative", train_fn=train, out=tmp_path / "small")
    assert [(context.round, context.epochs) for context in calls] == [(1, 1), (2, 1)]
    assert calls[0].dense is session.model
    small = secateur.load(done.folder, Small())
    if plan.method == "weights":
        kept = {layer.name: int((small.get_parameter(layer.name) != 0).sum()) for layer in plan.layers}
        assert kept == dict(zip(plan.sparsities, plan.kept.tolist(), strict=True))
    assert not done.model.training

    def stopping(model: nn.Module, context: TrainContext) -> None:
        if context.round == 2:
            raise KeyboardInterrupt
        train(model, context)

    stopping.__qualname__ = train.__qualname__
    with pytest.raises(KeyboardInterrupt):
        secateur.apply(plan, session, schedule="iterative", train_fn=stopping, out=tmp_path / "stopped")
    with pytest.raises(ValueError, match="it was begun with another train_fn; give that back"):
        secateur.apply(session=session, resume=tmp_path / "stopped")
    calls.clear()
    again = secateur.apply(session=session, resume=tmp_path / "stopped", train_fn=train)
    assert [context.round for context in calls] == [2]
    same(again.folder, done.folder)

    def other(model: nn.Module, _context: TrainContext) -> None:
        model.register_buffer("more", torch.zeros(1))

    with pytest.raises(ValueError, match=r"train_fn changed the network's form \(more\)"):
        secateur.apply(plan, session, train_fn=other, out=tmp_path / "other")


def test_zeros_do_not_spread_through_a_loop_whose_steps_are_not_known(session, tmp_path):
    with pytest.raises(ValueError, match=r"schedule = 'gradual' cuts at steps of the training.*leave train_fn out"):
        secateur.apply(plan_of(session), session, schedule="gradual", train_fn=print, out=tmp_path / "no")


def test_a_schedule_of_ones_own(session, tmp_path):
    def twice(task: Retraining) -> Cut:
        cut = task.cut()
        for number in (1, 2):
            task.train(cut, task.epochs, number=number)
        return cut

    SCHEDULES.register("twice")(twice)
    try:
        done = secateur.apply(plan_of(session), session, schedule="twice", finetune=1, out=tmp_path / "small")
    finally:
        del SCHEDULES._known["twice"]
    assert [row["round"] for row in lines(done.folder)] == [1, 2]
    assert list((done.folder / "tensorboard").iterdir())
    assert not list(done.folder.glob("finetune*"))


@pytest.mark.slow
def test_a_network_with_standardised_weights_is_trained_kept_cut_and_rewound(tmp_path):
    overrides = ["network.name=small:standardised", "network.kwargs={}", "network.pretrain.epochs=2"]
    overrides += ["network.pretrain.keep_epoch=1", "data.calibration=40", "data.search=40", "data.test=40"]
    trained = secateur.Session("digits", overrides=overrides, trust_code=True)
    assert type(trained.model[0]) is nn.Conv2d
    assert trained.loaded.early.keys() == trained.model.state_dict().keys()
    first = secateur.apply(plan_of(trained), trained, schedule="rewind", finetune=1, out=tmp_path / "first")
    images = trained.test[0][0]
    loaded = secateur.load(first.folder, trust_code=True)
    assert loaded[0].out_channels == 3
    torch.testing.assert_close(loaded(images), first.model(images))
    again = secateur.Session("digits", overrides=overrides, trust_code=True).beside(folder=first.folder)
    torch.testing.assert_close(again.model(images), trained.model(images))
    scratch = secateur.apply(plan_of(trained), trained, schedule="scratch_e", finetune=1, out=tmp_path / "scratch")
    assert scratch.model(images).shape == (len(images), 10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_that_are_not_trained_yet_learn_as_the_dense_network_did(schedule, tmp_path, monkeypatch):
    rates = []
    finetune = secateur.Session.finetune

    def watching(self: secateur.Session, model: nn.Module, epochs: int, **options: Any) -> Any:
        rates.append((options["config"].learning_rate, options["config"].distill.temperature))
        return finetune(self, model, epochs, **options)

    monkeypatch.setattr(secateur.Session, "finetune", watching)
    overrides = ["data.calibration=20", "data.search=20", "data.test=20", "data.train=40", "repair.final.kind=none"]
    overrides += ["network.pretrain.epochs=1", "network.pretrain.keep_epoch=0", "network.pretrain.learning_rate=0.3"]
    overrides += ["finetune.learning_rate=0.02", "finetune.distill.temperature=3", "criterion=l1"]
    session = secateur.Session("digits", overrides=overrides)
    secateur.apply(plan_of(session), session, schedule=schedule, finetune=3, out=tmp_path / "small")
    rate = 0.3 if schedule in ("rewind", "scratch_e", "scratch_b") else 0.02
    assert set(rates) == {(rate, 3.0)}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_is_said_where_nobody_knows_how_the_dense_network_was_trained(schedule, session, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(session.reporter, "say", said.append)
    secateur.apply(plan_of(session), session, schedule=schedule, out=tmp_path / "small")
    rate = f"hardly trained learn at finetune.learning_rate = {session.config.finetune.learning_rate:g}"
    assert any(rate in line for line in said) == (schedule in ("rewind", "scratch_e", "scratch_b"))


@pytest.mark.slow
def test_rewind_takes_what_pretraining_kept_from_the_run_folder_too(tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    overrides = ["network.pretrain.epochs=2", "network.pretrain.keep_epoch=1", "data.calibration=20", "data.search=20"]
    overrides += ["data.test=20", "repair.final.kind=none", "repair.search.kind=none", "criterion=l1"]
    trained = secateur.Session("digits", overrides=overrides)
    assert not torch.equal(trained.loaded.early["conv1.weight"], trained.model.conv1.weight)
    plan = plan_of(trained)
    first = secateur.apply(plan, trained, schedule="rewind", finetune=1, out=tmp_path / "first")
    monkeypatch.setattr("secateur.commands.loading.pretrain", lambda *_given: pytest.fail("trained again"))
    again = secateur.apply(first.folder, finetune=1, schedule="rewind", out=tmp_path / "again")
    same(first.folder, again.folder)
    (begun, _, _), _ = seen
    assert torch.equal(begun["conv1.weight"], trained.loaded.early["conv1.weight"])
    weights = tmp_path / "first" / "early.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"early\.safetensors is not the file that was saved here"):
        secateur.apply(first.folder, finetune=1, schedule="rewind", out=tmp_path / "no")
