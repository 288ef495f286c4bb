"""A training that is interrupted and gone on with ends as if it had never stopped; nothing else is gone on with."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from secateur.configs.schema import FitConfig
from secateur.data.loaders import TrainLoader
from secateur.networks import fit
from secateur.storage.files import read_tensors, write_tensors
from secateur.training.checkpoint import Checkpoint
from secateur.training.distillation import Teacher
from secateur.training.fit import Fitted
from secateur.training.schedules import Gradual

CONFIG = FitConfig(epochs=4, learning_rate=0.05, weight_decay=1e-2)
Pairs = list[tuple[Tensor, Tensor]]


def listed() -> Pairs:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 4, 4, generator=generator), torch.arange(8) % 2) for _ in range(3)]


def network() -> nn.Module:
    torch.manual_seed(1)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2)
    )
    return made.eval()


class Noisy(Dataset[tuple[Tensor, int]]):
    """Augmented by torch, numpy and Python, as whoever wrote the transforms liked."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        shift = np.random.rand() + random.gauss(0, 1) + np.random.randn(1 if index else 2).sum()  # drawn two at a time
        return torch.randn(1, 4, 4) + float(shift) + index % 2, index % 2


class Walked:
    """An iterable with a state that nobody can ask for."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in listed():
            yield images + float(self.rng.normal()), labels


def remade() -> Callable[[], Pairs]:
    numbers = itertools.count()

    def make() -> Pairs:
        number = next(numbers)
        return [(images + number, labels) for images, labels in listed()]

    return make


def embedded() -> TrainLoader:
    pixels = torch.randint(0, 255, (24, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TrainLoader(pixels, torch.arange(24) % 2, (0.5,), (0.5,), 8, augment=True, flip=True, seed=3)


LOADERS: dict[str, Callable[[], Any]] = {
    "list": listed,
    "torch's state": lambda: DataLoader(Noisy(), 8, shuffle=True),
    "generator": lambda: DataLoader(Noisy(), 8, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "set_epoch": embedded,
    "walked": Walked,
    "made": remade,
}


class Stopped(Exception):  # noqa: N818 – no error
    """The process ends."""


def stop_at(step: int) -> Callable[[int, int, float], None]:
    def after(now: int, _total: int, _loss: float) -> None:
        if now == step:
            raise Stopped

    return after


def begin(path: Path, step: int = 8, config: FitConfig = CONFIG, **of: str) -> Checkpoint:
    """A training of `network` on `listed` that was stopped at a step."""
    checkpoint = Checkpoint(path, of)
    with pytest.raises(Stopped):
        fit(network(), listed(), config, seed=0, on_step=stop_at(step), checkpoint=checkpoint)
    return checkpoint


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("loader", LOADERS)
def test_it_ends_as_the_uninterrupted_training_whatever_it_is_fed_by(loader: str, tmp_path: Path) -> None:
    whole, path = network(), tmp_path / "fit.safetensors"

    def process() -> None:
        """Random as in a new one: as the first at the start, and anyhow when it goes on."""
        random.seed(7 if path.exists() else 0)
        np.random.seed(7 if path.exists() else 0)

    process()
    fit(whole, LOADERS[loader](), CONFIG, seed=0)
    for step in (2, 5, 10):  # in the first epoch, in the second, in the last
        process()
        with pytest.raises(Stopped):
            fit(network(), LOADERS[loader](), CONFIG, seed=0, on_step=stop_at(step), checkpoint=Checkpoint(path))
    process()
    again, steps = network(), []
    fit(again, LOADERS[loader](), CONFIG, seed=0, on_step=lambda *s: steps.append(s[0]), checkpoint=Checkpoint(path))
    assert steps == [10, 11, 12]
    assert_same(again, whole)
    done = network()
    fit(done, LOADERS[loader](), CONFIG, seed=0, on_step=stop_at(1), checkpoint=Checkpoint(path))  # nothing is left
    assert_same(done, whole)


OPTIONS = {
    "adamw": {"optimizer": "adamw", "warmup": 1.5},
    "average": {"ema": 0.6, "clip": 0.5},
    "mixed": {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
    "half": {"precision": "bfloat16", "keep_epoch": 1},
}


@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize("option", OPTIONS)
def test_it_ends_as_the_uninterrupted_training_whatever_it_keeps(option: str, keep_best: bool, tmp_path: Path) -> None:
    config, path = CONFIG.model_copy(update=OPTIONS[option]), tmp_path / "fit.safetensors"
    images = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(9))

    def train(stop: int) -> tuple[nn.Module, Fitted]:
        model, teacher = network(), Teacher(network())
        with torch.no_grad():
            teacher.model[-1].bias.add_(1.0)

        def evaluate(current: nn.Module) -> float:
            with torch.no_grad():
                return float((current(images).argmax(1) == 0).float().mean()) + float(images[0, 0, 0, 0])

        keep = None if stop == 0 else Checkpoint(path)
        options = {"teacher": teacher, "evaluate": evaluate, "keep_best": keep_best, "on_step": stop_at(stop)}
        return model, fit(model, listed(), config, seed=0, checkpoint=keep, **options)

    whole, done = train(0)
    for step in (2, 5, 10):
        with pytest.raises(Stopped):
            train(step)
    again, resumed = train(99)
    assert_same(again, whole)
    assert resumed.kept == done.kept
    assert resumed.early.keys() == done.early.keys()
    assert all(torch.equal(tensor, done.early[name]) for name, tensor in resumed.early.items())
    assert [{**row, "seconds": 0} for row in resumed.epochs] == [{**row, "seconds": 0} for row in done.epochs]
    assert_same(train(1)[0], whole)  # nothing is left


def test_momentum_counts_and_is_not_kept_when_nothing_is_left_to_train(tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    begin(path)
    tensors, about = read_tensors(path)
    assert json.loads(about["state"])["epoch"] == 2
    assert {name for name in tensors if name.startswith("optimizer.momentum_buffer.")} == {
        f"optimizer.momentum_buffer.{name}" for name, _ in network().named_parameters()
    }
    assert all(bool(tensor.any()) for name, tensor in tensors.items() if name.startswith("optimizer.momentum_buffer."))
    fit(network(), listed(), CONFIG, seed=0, checkpoint=Checkpoint(path))
    assert not any(name.startswith("optimizer.momentum_buffer.") for name in read_tensors(path)[0])
    Checkpoint(path).remove()
    assert list(tmp_path.iterdir()) == []


def test_a_gradual_schedule_goes_on_with_what_it_held(tmp_path: Path) -> None:
    def tighten(model: nn.Module, part: float) -> Callable[[nn.Module], None]:
        weight = model.get_parameter("0.weight").detach()
        gone = weight.flatten().abs().argsort()[: round(20 * part)]
        mask = torch.ones(36).index_fill(0, gone, 0.0).reshape(weight.shape)

        def hold(current: nn.Module) -> None:
            current.get_parameter("0.weight").data.mul_(mask)

        hold(model)
        return hold

    def train(stop: int | None) -> nn.Module:
        model = network()
        gradual = Gradual(model, tighten, ramp=0.75, every=2)

        def after(step: int, total: int, loss: float) -> None:
            gradual(step, total, loss)
            if step == stop:
                raise Stopped

        keep = None if stop is None else Checkpoint(tmp_path / "fit.safetensors")
        fit(model, listed(), CONFIG, seed=0, on_step=after, on_epoch=gradual.begin_epoch, checkpoint=keep)
        gradual.finish()
        return model

    whole = train(None)
    for step in (4, 8, 11):
        with pytest.raises(Stopped):
            train(step)
    resumed = train(0)
    assert int((resumed.get_parameter("0.weight") == 0).sum()) == 20
    assert_same(resumed, whole)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"config": CONFIG.model_copy(update={"epochs": 5})}, "training"),
        ({"config": CONFIG.model_copy(update={"momentum": 0.5})}, "training"),
        ({"config": CONFIG.model_copy(update={"batch_size": 7})}, "training"),
        ({"config": CONFIG.model_copy(update={"ema": 0.5})}, "training"),
        ({"seed": 1}, "seed"),
        ({"plan": "b"}, "plan"),
        ({"plan": None}, "plan"),
        ({"weight": 1.0}, "network"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(change: dict[str, Any], differs: str, tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    begin(path, plan="a")
    before, model, plan = path.read_bytes(), network(), change.get("plan", "a")
    if "weight" in change:
        next(model.parameters()).data[0, 0, 0, 0] = change["weight"]
    checkpoint = Checkpoint(path, {} if plan is None else {"plan": plan})
    with pytest.raises(ValueError, match=rf"fit\.safetensors is the checkpoint of another training: the {differs} dif"):
        fit(model, listed(), change.get("config", CONFIG), seed=change.get("seed", 0), checkpoint=checkpoint)
    assert path.read_bytes() == before


def more(path: Path) -> None:
    tensors, about = read_tensors(path)
    tensors["model.0.weight"][0] += 1e-3
    write_tensors(path, tensors, about)  # with a checksum that is right


def later(path: Path) -> None:
    tensors, about = read_tensors(path)
    state = {**json.loads(about["state"]), "epoch": 3}
    write_tensors(path, tensors, {**about, "state": json.dumps(state)})


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (more, "was changed"),
        (later, "was changed"),
        (foreign, "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
    ],
)
def test_a_checkpoint_that_was_changed_is_refused_or_done_without(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "fit.safetensors"
    begin(path)
    damage(path)
    with pytest.raises(ValueError, match=rf"fit\.safetensors {message}.* or delete it and the training starts anew"):
        fit(network(), listed(), CONFIG, seed=0, checkpoint=Checkpoint(path))
    whole, again = network(), network()
    fit(whole, listed(), CONFIG, seed=0)
    with pytest.warns(RuntimeWarning, match=rf"{message}.*: not used, and replaced"):
        fit(again, listed(), CONFIG, seed=0, checkpoint=Checkpoint(path, needed=False))
    assert_same(again, whole)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["epoch"] == 4


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checkpoint = Checkpoint(tmp_path / "file" / "fit.safetensors")
    with pytest.raises(OSError, match=r"file"):
        fit(network(), listed(), CONFIG, seed=0, checkpoint=checkpoint)
    with pytest.warns(RuntimeWarning, match=r"cannot be written \(.*\): an interrupted training will start anew"):
        fit(network(), listed(), CONFIG, seed=0, checkpoint=Checkpoint(checkpoint.path, needed=False))


def test_a_training_that_diverges_keeps_its_last_good_epoch_and_goes_on_with_a_lower_rate(tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"

    class Spoilt(list[Any]):
        """Its last image of the third epoch is not finite."""

        walks = 0

        def __iter__(self) -> Iterator[Any]:
            self.walks += 1
            for number, (images, labels) in enumerate(listed()):
                yield (images * math.inf if (self.walks, number) == (3, 2) else images), labels

    spoilt, model = Spoilt(listed()), network()
    with pytest.raises(RuntimeError, match=r"loss is nan at step 9 of 12: .*; .*fit\.safetensors holds epoch 2$"):
        fit(model, spoilt, CONFIG, seed=0, checkpoint=Checkpoint(path))
    tensors, about = read_tensors(path)
    assert json.loads(about["state"])["epoch"] == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())
    rates = []
    optimizer = torch.optim.SGD.step

    def step(self: Any, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return optimizer(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        lower = CONFIG.model_copy(update={"learning_rate": 0.01})
        fit(model := network(), listed(), lower, seed=0, checkpoint=Checkpoint(path))
    assert rates[0] == pytest.approx(0.01 * 0.5)  # half of the cosine
    assert len(rates) == 6


@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_what_the_last_step_made_infinite_is_not_kept(name: str, tmp_path: Path) -> None:
    path, model = tmp_path / "fit.safetensors", network()

    def spoil(step: int, _total: int, _loss: float) -> None:
        if step == 6:
            model.state_dict()[name].view(-1)[0] = math.inf

    with pytest.raises(RuntimeError, match=rf"{name} is not finite after epoch 2: lower .* holds epoch 1$"):
        fit(model, listed(), CONFIG, seed=0, on_step=spoil, checkpoint=Checkpoint(path))
    tensors, _ = read_tensors(path)
    assert bool(torch.isfinite(tensors[f"model.{name}"]).all())


def test_what_was_infinite_from_the_start_is_no_fault_of_the_training() -> None:
    model = network()
    model.register_buffer("mask", torch.full((2,), -math.inf))
    fit(model, listed(), CONFIG, seed=0)
    assert torch.equal(copy.deepcopy(model).get_buffer("mask"), torch.full((2,), -math.inf))
