"""Functions that tests call in several processes of one job, and trainings that one process does as well."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import small
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

import secateur
from secateur.configs.schema import FitConfig
from secateur.training.checkpoint import Checkpoint
from secateur.training.distillation import Teacher
from secateur.training.fit import fit
from secateur.training.tasks import CrossEntropy, Segmentation
from secateur.training.team import current

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["several"])

Result = tuple[dict[str, Tensor], list[float]]


def run(folder: Path, processes: int, work: Callable[..., None], *given: Any, wait: float = 600.0) -> list[int | None]:
    """Exit codes of the processes; what each says on standard error is in `said-RANK.txt`."""
    rendezvous = folder / f"rendezvous-{len(list(folder.glob('rendezvous-*')))}"
    arguments = (rendezvous, processes, os.environ["SECATEUR_CACHE"], folder, work, *given)
    started = [SERVER.Process(target=_join, args=(rank, *arguments), daemon=True) for rank in range(processes)]
    rendezvous.touch()
    for process in started:
        process.start()
    for process in started:
        process.join(wait)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def _join(
    rank: int, rendezvous: Path, size: int, cache: str, folder: Path, work: Callable[..., None], *given: Any
) -> None:
    os.environ["SECATEUR_CACHE"] = cache
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    said = os.open(folder / f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, sys.stderr.fileno())
    store = dist.FileStore(str(rendezvous), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        secateur.distributed(lambda: work(*given))
    except Exception as error:
        sys.exit(f"error: {error}")
    dist.destroy_process_group()


def trainings(file: Path, *names: str) -> None:
    """Trains by these names, and writes what came of each."""
    torch.save(secateur.distributed(lambda: {name: TRAININGS[name]() for name in names}), file)


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 1, 4, 4, generator=generator).double(), torch.arange(size) % 3) for size in sizes]


SIZES = (8, 7, 1, 3)  # none a multiple of the processes, one of a single image


def plain() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def normed(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    convolution = nn.Conv2d(
        1, 4, 3, bias=False
    )  # one before a norm has a gradient of rounding errors, which Adam grows
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), *more, nn.Linear(16, 3))


def done(model: nn.Module, data: Any = None, settings: dict[str, Any] | None = None, **options: Any) -> Result:
    """Train it; its state, and the losses of the epochs."""
    config = FitConfig(**{"epochs": 2, "learning_rate": 0.05, "weight_decay": 1e-2, **(settings or {})})
    fitted = fit(model.double(), data or batches(*SIZES), config, seed=0, team=current(), **options)
    losses = [row["loss"] for row in fitted.epochs]
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, losses


def _norms() -> Result:
    norms = nn.BatchNorm1d(16, momentum=None), nn.BatchNorm1d(16, track_running_stats=False, affine=False)
    return done(normed(*norms), batches(8, 7, 3))


def _recipe() -> Result:
    data = batches(8, 6, 4)

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return -float(sum(model(images).square().sum() for images, _ in data))

    settings = {"optimizer": "adamw", "warmup": 1.0, "clip": 0.5, "label_smoothing": 0.1, "ema": 0.9}
    return done(normed(), data, {**settings, "channels_last": True}, evaluate=score, keep_best=True)


def _taught() -> Result:
    torch.manual_seed(2)
    dense = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    chosen = {"0": torch.tensor([0, 2, 3, 5]), "4": None}
    return done(normed(), teacher=Teacher(dense.double().eval(), 0.7, 3.0, hints=0.5, channels=chosen))


def _ignored() -> Result:
    data = [(images, labels.masked_fill(torch.arange(len(labels)) < 3, -100)) for images, labels in batches(8, 7)]
    return done(normed(), data)


def _pixels() -> Result:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    data = [(images, (images[:, 0] > 0).long()) for images, _ in batches(5, 4)]
    for _, labels in data:
        labels[:2, 1:] = 255
    return done(model, data, objective=Segmentation())


def _partly() -> Result:
    """A frozen weight, a norm at rest, a parameter that is not used: weight decay must not reach it."""
    model = normed(nn.BatchNorm1d(16)).train()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    model.register_parameter("spare", nn.Parameter(torch.ones(3)))
    return done(model)


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrised() -> Result:
    model = normed()
    parametrize.register_parametrization(model[0], "weight", _Doubled())
    return done(model, on_step=lambda *_step: model[4].weight.data[:, ::2].zero_())


class Inside(CrossEntropy):
    """As a detector: the loss is computed by the network, of a part of the batch alone."""

    def training_loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        return self.loss(model(inputs), targets)


def _drawn() -> Result:
    return done(normed(nn.Dropout(0.5)))


TRAININGS: dict[str, Callable[[], Result]] = {
    "plain": lambda: done(plain()),
    "norms": _norms,
    "recipe": _recipe,
    "taught": _taught,
    "ignored": _ignored,
    "pixels": _pixels,
    "partly": _partly,
    "parametrised": _parametrised,
    "inside": lambda: done(normed(), objective=Inside()),
    "mixed": lambda: done(normed(), batches(8, 6), {"mixup": 0.4, "cutmix": 1.0}),
    "half": lambda: done(normed(), settings={"precision": "bfloat16"}),
    "drawn": _drawn,
}


def in_two(file: Path, checkpoint: Path, epochs: int | None) -> None:
    """A training with dropout, given up after so many epochs; or gone on with to its end."""
    written = Checkpoint(checkpoint)
    model = normed(nn.Dropout(0.5))

    def stop(rows: Any) -> None:
        if len(rows) == epochs:
            raise SystemExit(3)

    torch.save(done(model, settings={"epochs": 3}, checkpoint=written, on_rows=stop), file)


class _FailsElsewhere(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if dist.get_rank() == 1:
            raise RuntimeError("no memory here")
        return super().forward(x)


class _Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).mean(0, keepdim=True)


def fails(how: str) -> None:
    """A training that cannot go on, for one reason or another."""
    model = plain()
    if how == "elsewhere":
        model[3] = _FailsElsewhere(16, 3)
    elif how == "no rows":
        model = nn.Sequential(_Averaged())
    elif how == "not sent":
        model.lock = threading.Lock()  # type: ignore[assignment]
    data = batches(4, 4)
    if how == "bad label":
        data[1][1][3] = 7
    done(model, data, on_step=_interrupt if how == "ctrl-c" else None)


def _interrupt(step: int, _total: int, _loss: float) -> None:
    if step == 2:
        raise KeyboardInterrupt


def applied(folder: Path, method: str, out: str) -> None:
    """Cut, repaired and trained: a small network by one of the methods, compared by another schedule."""
    sections = {"budget": {"size": 0.3}} if method == "bits" else {}
    session = small.make(folder, method, "workers=2", **sections)
    plan = small.plan_of(session)
    secateur.apply(plan, session, finetune=2, out=folder / out / "small")
    if method == "channels":
        schedules = ("gradual", "rewind")
        secateur.compare([plan], session, against=(), finetune=2, schedules=schedules, out=folder / out / "compared")
