"""Other tasks than classes of images, and other inputs than one image, from the search to the saved network."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
import zoo
from secateur.configs import ConfigError, load_config
from secateur.reports.progress import RichReporter
from secateur.training.inputs import call, flat
from secateur.training.objective import Objective


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Body(nn.Module):
    """Two convolutions of some dimensions, and a head at every position or behind their mean."""

    def __init__(self, dimensions: int, outputs: int, dense: bool = False) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions]
        self.one, self.norm, self.two = conv(1, 8, 3, padding=1), norm(8), conv(8, 8, 3, padding=1)
        self.head = conv(8, outputs, 1)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.two(self.norm(self.one(x)).relu()).relu())
        return x if self.dense else x.flatten(2).mean(2)


class Dict(Body):
    def forward(self, x: Tensor) -> Any:
        return {"out": super().forward(x), "twice": 2 * super().forward(x)}


class TwoInputs(nn.Module):
    """An image and token ids, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words, self.mix, self.out = Body(2, 8), nn.Embedding(5, 8), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        both = torch.cat([self.image(pixels), self.words(tokens).mean(1)], 1)
        return self.out(self.mix(both).relu())


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


class Hinge(Objective):
    name, measure = "hinge", "hinge %"

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return F.multi_margin_loss(outputs, targets)

    def score(self, outputs: Any, targets: Any) -> Tensor:
        return (outputs.argmax(1) == targets).float()


def hinge() -> Objective:
    return Hinge()


def batch(kind: str, seed: int) -> Any:
    classes = torch.arange(20) % 3
    image = noise(20, 1, 6, 6, seed=seed) + classes[:, None, None, None]
    return {
        "segmentation": lambda: (image, (image[:, 0] > 1).long()),
        "regression": lambda: (noise(20, 1, 9, seed=seed), noise(20, 1, 9, seed=seed).mean(2)),
        "multilabel": lambda: (image, torch.stack([classes == 0, classes > 1], 1)),
        "one-hot": lambda: (image, F.one_hot(classes, 3)),
        "volumes": lambda: (noise(20, 1, 4, 4, 4, seed=seed), classes),
        "rows": lambda: (noise(20, 6, seed=seed), classes),
        "by name": lambda: {"pixels": image, "tokens": (classes[:, None] + torch.arange(4)) % 5, "labels": classes},
        "by position": lambda: (image, (classes[:, None] + torch.arange(4)) % 5, classes),
        "auxiliary": lambda: (image.expand(-1, 3, -1, -1).repeat(1, 1, 2, 2)[..., :8, :8], classes),
        "own": lambda: (image, classes),
    }[kind]()


CASES: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "segmentation": (lambda: Dict(2, 2, dense=True), "segmentation", "channels"),
    "regression": (lambda: Body(1, 1), "regression", "weights"),
    "multilabel": (lambda: Body(2, 2), "multilabel", "channels"),
    "one-hot": (lambda: Dict(2, 3), "cross-entropy", "weights"),
    "volumes": (lambda: Body(3, 3), "cross-entropy", "channels"),
    "rows": (Perceptron, "cross-entropy", "channels"),
    "by name": (TwoInputs, "cross-entropy", "channels"),
    "by position": (TwoInputs, "cross-entropy", "weights"),
    "auxiliary": (zoo.Auxiliary, {"name": "cross-entropy", "kwargs": {"auxiliary": 0.5}}, "channels"),
    "own": (lambda: Body(2, 3), hinge(), "channels"),
}


def session(kind: str, **settings: Any) -> secateur.Session:
    torch.manual_seed(0)
    make, objective, method = CASES[kind]
    own = isinstance(objective, Objective)
    tree = {
        "name": "mine",
        "method": method,
        "budget": {"params": 0.7},
        "agent": {"episodes": 2, "warmup": 1, "updates": 1, "hidden": [4], "rerank": 1},
        **({} if own else {"objective": objective}),
        **settings,
    }
    splits = {name: [batch(kind, seed)] for seed, name in enumerate(("calibration", "search", "test", "train"))}
    return secateur.Session(
        secateur.Config.model_validate(tree),
        model=make().eval(),
        images=secateur.Images(**splits),
        objective=objective if own else None,
        reporter=RichReporter(Console(file=io.StringIO(), width=150)),
    )


@pytest.mark.filterwarnings("ignore:the sequential repair was not taken:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:the gram repair was not taken:RuntimeWarning")
@pytest.mark.parametrize("kind", CASES)
def test_from_the_search_to_the_saved_network(kind, tmp_path):
    mine = session(kind)
    found = secateur.train(mine, out=tmp_path / "run")
    done = secateur.apply(found.plan, mine, finetune=1, out=tmp_path / "small")
    assert found.plan.cost["params"] <= 0.7
    assert done.summary["masked_difference"] < 1e-3
    inputs, targets = mine.search[0]
    again = secateur.load(done.folder, model=CASES[kind][0]())
    with torch.inference_mode():
        outputs = call(done.model, inputs)
        assert torch.allclose(flat(call(again, inputs)), flat(outputs), atol=1e-5)
        dense = call(mine.model, inputs)
    objective = mine.objective
    assert mine.evaluator.dense.accuracy == pytest.approx(objective.total(objective.statistics(dense, targets)))
    assert objective.measure.removesuffix(" %") in mine.reporter.console.file.getvalue()
    written = [json.loads((folder / "summary.json").read_text()) for folder in (found.folder, done.folder)]
    assert {(tree["objective"], tree["measure"]) for tree in written} == {(objective.name, objective.measure)}
    assert json.loads((done.folder / "network.json").read_text())["objective"]["name"] == objective.name
    assert secateur.RatioPlan.load(found.folder).objective == load_config(found.folder / "config.yaml").objective


def test_auxiliary_heads_are_cut_with_what_they_look_at_and_trained(tmp_path):
    mine = session("auxiliary", repair={"final": {"kind": "none"}})
    kept = mine.structure.units // 2
    plan = mine.plan_of(kept, allocator="uniform", seed=0, candidates=0)
    done = secateur.apply(plan, mine, finetune=1, out=tmp_path / "small")
    before = mine.compressor.compress(kept).model
    assert before.aux[0][0].in_channels == before.stem[0].out_channels == 3
    assert done.model(mine.search[0][0]).shape == (20, zoo.CLASSES)
    assert done.model.train()(mine.search[0][0])["aux"].shape == (20, zoo.CLASSES)
    assert not torch.equal(done.model.aux[1][2].weight, before.aux[1][2].weight)


@pytest.mark.parametrize("criterion", ["car", "rar", "taylor", "dcp"])
@pytest.mark.parametrize("kind", ["segmentation", "by name", "own"])
def test_criteria_look_at_the_objective(kind, criterion):
    mine = session(kind, criterion=criterion)
    if kind == "own":  # the same network and images, another loss: some unit changes its place, or its score
        assert mine.context.store.folder is None
    small = mine.compressor.compress(mine.structure.units // 2).model
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in mine.model.parameters())


def test_taylor_is_the_gradient_of_the_objectives_loss():
    from secateur.pruners.channels.criteria.registry import scores

    other = secateur.Session(
        session("own").config.model_copy(update={"objective": load_config("digits").objective}),
        model=session("own").model,
        images=secateur.Images([batch("own", 0)], [batch("own", 1)]),
    )
    mine, theirs = (scores(one.context, "taylor") for one in (session("own"), other))
    assert any(abs(a / a.sum() - b / b.sum()).max() > 1e-3 for a, b in zip(mine, theirs, strict=True))


def test_a_run_with_an_objective_of_ones_own_goes_on_with_it_alone(tmp_path):
    found = secateur.train(session("own"), out=tmp_path / "run")
    images = secateur.Images([batch("own", 0)], [batch("own", 1)])
    again = {"model": Body(2, 3), "images": images}
    with pytest.raises(
        ValueError, match=r"no objective 'hinge', only .*; one of your own: .* Session\(…, objective=…\)"
    ):
        secateur.apply(found.folder, secateur.Session(**again))
    assert secateur.apply(found.folder, secateur.Session(**again, objective=hinge()), out=tmp_path / "small").folder


def test_a_config_names_an_objective_that_runs_only_when_trusted(tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(
        "from secateur.training.tasks import CrossEntropy\n\nclass Task(CrossEntropy):\n    name = 'mine'\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"objective.name='own_task:Task' names code to import and run, .*--trust-code"
    ):
        secateur.Session("digits", overrides=["objective=own_task:Task"])
    trusted = secateur.Session("digits", overrides=["objective=own_task:Task"], trust_code=True)
    assert trusted.objective.name == "mine"
    with pytest.raises(ConfigError, match=r"unknown key objective\.trust_code"):
        load_config("digits", ["objective.trust_code=true"])


@pytest.mark.parametrize(
    ("kind", "objective", "message"),
    [
        (
            "segmentation",
            "cross-entropy",
            r"the network returns a dict \(out float32 \(20, 2, 6, 6\).*set objective: segm",
        ),
        ("own", "segmentation", r"the network returns float32 \(20, 3\), expected class scores for every pixel"),
        ("own", "regression", r"outputs float32 \(20, 3\) and targets int64 \(20,\) do not go together"),
        ("own", "multilabel", r"outputs float32 \(20, 3\) and labels int64 \(20,\) do not go together"),
    ],
)
def test_the_wrong_objective_is_refused_before_any_work(kind, objective, message, tmp_path):
    mine = session(kind)
    wrong = secateur.Session(
        mine.config.model_copy(update={"objective": secateur.Config.model_validate(
            {"name": "x", "budget": {"flops": 0.5}, "objective": objective}).objective}),
        model=mine.model, images=secateur.Images([batch(kind, 0)], [batch(kind, 1)]),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        secateur.train(wrong, out=tmp_path / "run")


@pytest.mark.parametrize("shift", [0, 1])
def test_a_network_that_only_guesses_is_named(shift):
    """Right labels pass without a word; labels rotated by one are what another order of the classes looks like."""

    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 3, 1), nn.Linear(3, 3)
            with torch.no_grad():
                self.conv.weight.fill_(1.0)
                self.conv.bias.zero_()
                self.out.weight.copy_(torch.diag(torch.tensor([0.0, 1.0, 2.0])))
                self.out.bias.copy_(torch.tensor([0.0, -0.5, -2.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.conv(x).mean((2, 3)))

    def batches(seed: int) -> Any:
        images, classes = batch("own", seed)
        return [(images, (classes + shift) % 3)]

    mine = secateur.Session(
        secateur.Config.model_validate({"name": "mine", "budget": {"flops": 0.9}}),
        model=Means(),
        images=secateur.Images(batches(0), batches(1)),
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        accuracy = mine.evaluator.dense.accuracy
    assert accuracy == pytest.approx(0.0 if shift else 100.0, abs=10.0)
    told = "the dense network is no better than guessing on the search images (top-1 % "
    assert [str(one.message)[: len(told)] for one in said] == [told] * shift
    assert all(one.category is RuntimeWarning for one in said)
