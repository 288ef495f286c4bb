"""Training: it learns, repeats with its seed, and says what went wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.configs.schema import FitConfig
from secateur.networks import fit
from secateur.training.step import cosine
from secateur.training.tasks import CrossEntropy

Pairs = list[tuple[Tensor, Tensor]]


def halves(batches: int = 4) -> Pairs:
    """Two classes: bright on the left, bright on the right."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(batches):
        labels = torch.arange(16) % 2
        images = 0.3 * torch.randn(16, 1, 4, 4, generator=generator)
        images[labels == 0, :, :, :2] += 1
        images[labels == 1, :, :, 2:] += 1
        made.append((images, labels))
    return made


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2)
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_it_learns_and_ends_in_eval_mode() -> None:
    model, batches, losses = small(), halves(), []
    fit(model, batches, FitConfig(epochs=10, learning_rate=0.1), seed=0, on_step=lambda *step: losses.append(step))
    assert not model.training
    with torch.no_grad():
        assert all((model(images).argmax(1) == labels).all() for images, labels in batches)
    assert [step for step, _, _ in losses] == list(range(1, 41))
    assert {total for _, total, _ in losses} == {40}
    assert losses[-1][2] < 0.2 < losses[0][2]


def test_it_repeats_with_its_seed_and_leaves_torch_alone() -> None:
    # dropout and the DataLoader's own shuffling both draw from torch's state
    images, labels = (torch.cat(part) for part in zip(*halves(), strict=True))
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True)
    results = []
    for seed in (5, 5, 6):
        model = small()
        before = torch.get_rng_state()
        fit(model, loader, FitConfig(epochs=2), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(weights(model))
        torch.rand(3)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_batches_may_be_made_every_epoch() -> None:
    calls = 0

    def make() -> Pairs:
        nonlocal calls
        calls += 1
        return halves()

    listed, made = small(), small()
    fit(listed, halves(), FitConfig(epochs=3), seed=0)
    fit(made, make, FitConfig(epochs=3), seed=0)
    assert calls == 3
    assert torch.equal(weights(listed), weights(made))


def test_no_epochs_change_nothing() -> None:
    model = small().train()
    before = weights(model)
    fit(model, halves(), FitConfig(epochs=0), seed=0)
    assert torch.equal(weights(model), before)
    assert not model.training


def test_without_momentum_it_still_trains() -> None:
    model = small()
    before = weights(model)
    fit(model, halves(1), FitConfig(epochs=1, momentum=0.0), seed=0)
    assert not torch.equal(weights(model), before)
    assert bool(torch.isfinite(weights(model)).all())


def test_learning_rate_falls_as_a_cosine() -> None:
    assert cosine(0, 10, 0.4) == 0.4
    assert cosine(5, 10, 0.4) == pytest.approx(0.2)
    assert cosine(10, 10, 0.4) == cosine(11, 10, 0.4) == 0.0


def test_every_step_takes_its_learning_rate() -> None:
    # One weight, a constant gradient of -1/2 towards class 0 while the logits are near 0: the steps are the rates.
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([self.shift.expand(len(images)), torch.zeros(len(images))], dim=1)

    model, seen = Shift(), [0.0]
    batch = (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    config = FitConfig(epochs=2, learning_rate=1e-4, momentum=0.0, weight_decay=0.0)
    fit(model, [batch, batch], config, seed=0, on_step=lambda *_: seen.append(model.shift.item()))
    steps = [later - earlier for earlier, later in itertools.pairwise(seen)]
    expected = [0.5e-4 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert steps == pytest.approx(expected, rel=1e-3)


def test_a_diverging_loss_names_step_and_remedy() -> None:
    batches = halves()
    batches[2] = (batches[2][0] * math.inf, batches[2][1])
    model = small()
    with pytest.raises(RuntimeError, match=r"loss is nan at step 3 of 8: lower the learning rate \(it is 0.01\)"):
        fit(model, batches, FitConfig(epochs=2), seed=0)
    assert not model.training
    assert torch.isfinite(weights(model)).all()


def test_what_cannot_be_trained_on() -> None:
    def generator() -> Iterator[tuple[Tensor, Tensor]]:
        yield from halves()

    with pytest.raises(ValueError, match="batches: there are none"):
        fit(small(), [], FitConfig(epochs=1), seed=0)
    with pytest.raises(TypeError, match="a generator has no length"):
        fit(small(), generator(), FitConfig(epochs=1), seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Flatten has no parameter to train"):
        fit(nn.Flatten(), halves(), FitConfig(epochs=1), seed=0)


def test_an_output_that_is_no_tensor() -> None:
    class Heads(nn.Linear):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            logits = super().forward(images.flatten(1))
            return logits, logits[:, :1]

    with pytest.raises(
        ValueError, match=r"returns a tuple \(0 float32 \(16, 2\), 1 .* say which with objective.kwargs.output"
    ):
        fit(Heads(16, 2), halves(), FitConfig(epochs=1), seed=0)
    fit(Heads(16, 2), halves(), FitConfig(epochs=1), seed=0, objective=CrossEntropy(output=0))


def parts() -> nn.Sequential:
    """Two of each; the second are trained in every test below."""

    def block(inputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)]

    torch.manual_seed(1)
    return nn.Sequential(*block(1), *block(4), nn.Flatten(), nn.Linear(64, 2))


def moved(model: nn.Module, *, at_rest: tuple[str, ...] = ()) -> set[str]:
    """Names of what training changed; weight decay alone would move any parameter."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, halves(), FitConfig(epochs=1, learning_rate=0.1, weight_decay=0.1), seed=0, at_rest=at_rest)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def names_of(model: nn.Module, *modules: str) -> set[str]:
    return {name for name in model.state_dict() if name.split(".")[0] in modules}


def test_without_anything_frozen_everything_moves() -> None:
    for mode in (True, False):
        model = parts().train(mode)
        assert moved(model) == set(model.state_dict())


def test_a_frozen_norm_in_eval_mode_keeps_its_statistics_and_frozen_parameters_stay() -> None:
    model = parts().eval()
    model[:2].requires_grad_(False)
    assert moved(model) == names_of(model, "3", "4", "7")
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 6
    training = parts().train()
    training[:2].requires_grad_(False)  # its weights alone: in training mode the statistics go on, as everywhere
    statistics = {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved(training) == names_of(training, "3", "4", "7") | statistics


def test_what_the_caller_set_apart_in_eval_mode_stays_there() -> None:
    seen: list[bool] = []
    model = parts().train()
    model[1].eval()
    model[2].eval()
    model[2].register_forward_hook(lambda module, _inputs, _output: seen.append(module.training))
    statistics = {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved(model) == set(model.state_dict()) - statistics
    assert seen == [False] * 4
    named = parts().eval()  # as a session says it, whose networks are all in eval mode
    assert moved(named, at_rest=("1", "2", "gone")) == set(named.state_dict()) - statistics
    for (name, ours), theirs in zip(named.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
