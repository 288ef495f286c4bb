"""Whatever is done with a caller's network and images, they, and all that is global, are afterwards as they were."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.configs.schema import LatencyConfig, LayersConfig
from secateur.envs import CandidateEvaluator
from secateur.networks.world import undisturbed
from secateur.pruners import METHODS
from secateur.pruners.costs.latency import measure_latency
from secateur.pruners.saved import save_network
from secateur.storage.files import sha256


class Anchors(nn.Module):
    """Keeps a tensor that it makes in its forward, as detectors keep their anchors; counts its calls."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.kept: Tensor | None = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.kept is None:
            self.kept = torch.linspace(0.9, 1.1, 7)[3] * self.scale
        return x * self.kept.mean()


class Lived(nn.Module):
    """A network in the middle of its owner's work."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10, momentum=None)
        self.anchors, self.dropout, self.out = Anchors(10), nn.Dropout(0.2), nn.Linear(10, 3)
        self.register_buffer("mean", torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu((self.bn1(self.conv1(x)) - self.mean) * torch.tensor(0.9), inplace=True)
        x = F.relu(self.bn2(self.conv2(F.max_pool2d(x, 2))), inplace=True)
        return self.out(self.dropout(self.anchors(x).mean((2, 3))))


def batches(*counts: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 3, 8, 8), torch.arange(n) % 3) for n in counts]


@pytest.fixture
def model() -> nn.Module:
    made = Lived()
    made.heard = []
    made(batches(4)[0][0])  # its norms have statistics; what it has kept carries a graph
    made.train()
    made.bn1.eval()  # as in fine-tuning with one frozen norm
    made.conv1.requires_grad_(False)
    made.out.register_forward_hook(lambda module, _inputs, _output: None)
    made.conv2.register_full_backward_hook(lambda module, _inputs, _outputs: None)
    F.cross_entropy(made(batches(4)[0][0]), torch.arange(4) % 3).backward(retain_graph=True)
    return made


@pytest.fixture
def images() -> secateur.Images:
    return secateur.Images(batches(20, 9), batches(25, 1), batches(13), batches(8, 8))


def contents(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return id(tensor), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device, tensor.detach().clone()


def state(model: nn.Module, images: secateur.Images) -> dict[str, Any]:
    """All there is to see of the caller's things, and of what is global."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name} mode"] = module.training
        for key, value in vars(module).items():
            if "hooks" in key:
                found[f"{name}.{key}"] = list(value.items())
            elif not isinstance(value, dict):
                found[f"{name}.{key}"] = contents(value) if isinstance(value, Tensor) else (id(value), repr(value))
    for name, parameter in model.named_parameters():
        found[name] = contents(parameter), parameter.requires_grad, contents(parameter.grad), parameter._version
    for name, buffer in model.named_buffers():
        found[name] = contents(buffer), buffer._version
    for side in ("calibration", "search", "test", "train"):
        for number, batch in enumerate(getattr(images, side)):
            found[f"{side} {number}"] = [(contents(tensor), tensor._version) for tensor in batch]
    return found | {"global " + key: value for key, value in settings().items()}


def settings() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), rest),
        "torch": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "fast attention": torch.backends.mha.get_fastpath_enabled(),
        "warnings": list(warnings.filters),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@contextmanager
def nothing_changes(name: str, model: nn.Module, images: secateur.Images) -> Iterator[None]:
    torch.set_num_threads(2)  # the config says one
    before = state(model, images)
    try:
        yield
        after = state(model, images)
    finally:
        torch.set_num_threads(1)
    assert after.keys() == before.keys(), name
    assert [key for key in before if not same(before[key], after[key])] == [], name


CONFIG = {
    "name": "mine",
    "threads": 1,
    "seed": 5,
    "budget": {"flops": 0.6},
    "agent": {"episodes": 2, "warmup": 1, "updates": 1, "hidden": [4], "rerank": 1},
    "latency": {"batch": 2, "repeats": 1},
}

Call = Callable[[secateur.Session, nn.Module, Path], Any]


def gradual(session: secateur.Session, model: nn.Module, out: Path) -> None:
    weights = session.beside(overrides=["method=weights", "gradual.every=1"])
    plan = secateur.compare((), weights, against=["uniform"], out=out / "wc").plans[0]
    secateur.apply(plan, weights, finetune=1, schedule="gradual", out=out / "ws")


def saved(session: secateur.Session, model: nn.Module, out: Path) -> None:
    rest = {"method": "weights", "recipe": {"masked": []}, "network": None, "input_shape": (3, 8, 8)}
    rest["objective"] = session.config.objective
    save_network(model, out, **rest)  # the caller's own
    assert sha256(out / "weights.safetensors")
    secateur.load(out, model=model)


def reduced(criterion: str) -> Call:
    return lambda session, model, out: session.beside(overrides=[f"criterion={criterion}"]).compress(
        session.structure.units // 2
    )


CALLS: dict[str, Call] = {
    "session": lambda session, model, out: (session.dense_latency, session.env().reset(seed=3)),
    "apply": lambda session, model, out: secateur.apply(out / "run", session, finetune=1, out=out / "small"),
    "apply gradually": gradual,
    "compare": lambda session, model, out: secateur.compare(
        (), session, against=["uniform", "random"], candidates=2, finetune=1, out=out / "c"
    ),
    "plan": lambda session, model, out: secateur.plan(out / "run", session, flops=0.7, out=out / "p"),
    "sensitivity": lambda session, model, out: secateur.sensitivity(session, sparsities=[0.5], out=out / "s"),
    "filters": lambda session, model, out: secateur.filters(session, out=out / "f"),
    "correlate": lambda session, model, out: secateur.correlate(
        session, plans=3, finetune_plans=3, finetune=1, out=out / "k"
    ),
    "make_env": lambda session, model, out: secateur.make_env(session).reset(seed=1),
    "find channels": lambda session, model, out: METHODS["channels"].find(model, (3, 8, 8), LayersConfig(cut="all")),
    "find weights": lambda session, model, out: METHODS["weights"].find(model, (3, 8, 8), LayersConfig()),
    "save and load": saved,
    "latency": lambda session, model, out: measure_latency({"his": model}, (3, 8, 8), LatencyConfig(batch=2), runs=1),
    "latency table": lambda session, model, out: session.beside(overrides=["budget.latency=0.99"]).budget,
    **{name: reduced(name) for name in ("taylor", "dcp", "lasso", "car", "apoz", "first_k")},
}


def test_the_callers_world_is_as_it_was(model, images, tmp_path):
    session = secateur.Session(secateur.Config.model_validate(CONFIG), model=model, images=images)
    with nothing_changes("train", model, images):
        secateur.train(session, out=tmp_path / "run")
    for name, call in CALLS.items():
        with nothing_changes(name, model, images):
            call(session, model, tmp_path / name.replace(" ", "-") if name == "save and load" else tmp_path)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    F.cross_entropy(model(images.train[0][0]), images.train[0][1]).backward()  # and he goes on
    optimizer.step()


def test_the_environments_steps_have_the_configs_threads(model, images, monkeypatch):
    env = secateur.make_env(secateur.Session(secateur.Config.model_validate(CONFIG), model=model, images=images))
    evaluate, threads = CandidateEvaluator.evaluate, []

    def watched(evaluator, kept):
        threads.append(torch.get_num_threads())
        torch.manual_seed(7)  # as a network's own forward might
        return evaluate(evaluator, kept)

    monkeypatch.setattr(CandidateEvaluator, "evaluate", watched)
    env.reset(seed=0)
    with nothing_changes("steps", model, images):
        assert torch.get_num_threads() == 2
        while not env.step(np.array([0.3], np.float32))[2]:
            pass
        list(env.evaluator.evaluate_all([env.budget.structure.units]))
    assert set(threads) == {1}
    assert len(threads) >= 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_also_when_it_is_stopped(error, model, images, tmp_path):
    def stop(_episode: object) -> None:
        raise error

    session = secateur.Session(secateur.Config.model_validate(CONFIG), model=model, images=images)
    with (
        nothing_changes("stopped", model, images),
        pytest.raises(ZeroDivisionError) if error is ZeroDivisionError else nullcontext(),
    ):
        secateur.train(session, out=tmp_path / "run", on_episode=stop)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(around, model, images, tmp_path):
    session = secateur.Session(secateur.Config.model_validate(CONFIG), model=model, images=images)
    with around(), nothing_changes(str(around), model, images):
        plan = secateur.compare((), session, against=["uniform"], out=tmp_path / "c").plans[0]
        small = secateur.apply(plan, session, finetune=1, out=tmp_path / "small").model
    assert not any(tensor.is_inference() for tensor in (*small.parameters(), *small.buffers()))
    assert small.anchors.kept is not None
    small.train()
    F.cross_entropy(
        small(images.train[0][0]), images.train[0][1]
    ).backward()  # what it has kept does not stand in the way


def test_a_session_is_of_the_network_as_it_was(model, images):
    session = secateur.Session(secateur.Config.model_validate(CONFIG), model=model, images=images)
    first = session.model.out.weight.clone()
    with torch.no_grad():
        model.out.weight.zero_()
    assert torch.equal(session.model.out.weight, first)
    assert first.abs().sum() > 0


def test_global_things_are_put_back():
    before = settings()

    def disturb() -> None:
        assert torch.get_num_threads() == 3
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(True)
        warnings.simplefilter("ignore")
        raise KeyError

    with pytest.raises(KeyError):
        undisturbed(threads=3)(disturb)()
    assert not torch.are_deterministic_algorithms_enabled()
    after = settings()
    assert [name for name in before if not same(before[name], after[name])] == []
