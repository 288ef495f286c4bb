"""What a config says of a training happens: its loss, its steps, its learning rate, what is kept of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.configs.schema import FitConfig
from secateur.training.checkpoint import state_of
from secateur.training.distillation import Imitation, Teacher, distillable, surroundings
from secateur.training.fit import Fitted, fit
from secateur.training.objective import Objective
from secateur.training.step import rate
from secateur.training.tasks import CrossEntropy, Multilabel, Regression, Segmentation

Pairs = list[tuple[Tensor, Tensor]]


def pairs(count: int = 3) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 4, 4, generator=generator), torch.arange(8) % 3) for _ in range(count)]


def network(seed: int = 1, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, 3)
    )
    return made.eval()


def train(model: nn.Module, **settings: Any) -> Fitted:
    options = {
        key: settings.pop(key) for key in ("evaluate", "keep_best", "ready", "teacher", "on_step") if key in settings
    }
    config = FitConfig(**{"epochs": 2, "learning_rate": 0.05, "weight_decay": 1e-3, **settings})
    return fit(model, pairs(), config, seed=0, **options)


def by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any, rates: list[float], clip: float | None
) -> None:
    model.train()
    batches = iter(pairs() * 2)
    for now in rates:
        images, labels = next(batches)
        optimizer.param_groups[0]["lr"] = now
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    model.eval()


def same(ours: nn.Module, theirs: nn.Module) -> None:
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


COSINE = [0.05 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
WARM = [0.0125, 0.025, 0.0375, *(0.05 * 0.5 * (1 + math.cos(math.pi * step / 3)) for step in range(3))]


@pytest.mark.parametrize(
    ("settings", "optimizer", "rates", "smoothing"),
    [
        ({}, lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=1e-3, nesterov=True), COSINE, 0.0),
        ({"nesterov": False}, lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=1e-3), COSINE, 0.0),
        ({"decay": "constant"}, lambda p: torch.optim.SGD(p, 0.05, 0.9, 0, 1e-3, nesterov=True), [0.05] * 6, 0.0),
        ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, 0.05, (0.9, 0.999), weight_decay=1e-3), COSINE, 0.0),
        ({"warmup": 1, "clip": 0.3}, lambda p: torch.optim.SGD(p, 0.05, 0.9, 0, 1e-3, nesterov=True), WARM, 0.0),
        ({"label_smoothing": 0.2}, lambda p: torch.optim.SGD(p, 0.05, 0.9, 0, 1e-3, nesterov=True), COSINE, 0.2),
    ],
)
def test_it_is_what_a_loop_by_hand_does(settings: dict[str, Any], optimizer: Any, rates: list[float], smoothing: float):
    ours, theirs = network(), network()
    train(ours, **settings)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, label_smoothing=smoothing)

    by_hand(theirs, optimizer(theirs.parameters()), loss, rates, settings.get("clip"))
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-6), name


def test_the_learning_rate_rises_and_falls_within_the_steps() -> None:
    config = FitConfig(learning_rate=0.1, warmup=2.0)
    rates = [rate(step, 50, config, 10) for step in range(50)]
    assert rates.index(max(rates)) == 20
    assert max(rates) == 0.1
    assert rates[:20] == pytest.approx([0.1 * (step + 1) / 21 for step in range(20)])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    whole = [rate(step, 10, config, 10) for step in range(10)]  # it would rise for longer than there is
    assert whole == sorted(whole)
    assert rate(0, 10, config.model_copy(update={"warmup": 0.0}), 10) == 0.1


def test_the_average_of_the_weights_is_kept_and_training_goes_on_from_the_weights() -> None:
    states: list[dict[str, Tensor]] = []
    plain, averaged = network(), network()
    train(plain, on_step=lambda *_: states.append(state_of(plain)))
    train(averaged, ema=0.5)
    for name, tensor in averaged.state_dict().items():
        if tensor.is_floating_point():
            expected = states[0][name]
            for state in states[1:]:
                expected = 0.5 * expected + 0.5 * state[name]
            assert torch.allclose(tensor, expected, atol=1e-6), name
        else:
            assert torch.equal(tensor, states[-1][name]), name


def test_the_best_epoch_is_kept_of_those_that_may_be() -> None:
    after: list[dict[str, Tensor]] = []

    def scored(scores: list[float], **options: Any) -> tuple[nn.Module, Fitted]:
        found, model = iter(scores), network()
        after.clear()

        def evaluate(current: nn.Module) -> float:
            assert not current.training
            after.append(state_of(current))
            return next(found)

        return model, train(model, epochs=4, evaluate=evaluate, **options)

    for scores, best in (([1, 5, 3, 4], 2), ([1, 5, 5, 4], 3), ([9, 1, 1, 1], 1), ([1, 2, 3, 4], 4)):
        model, done = scored(scores, keep_best=True)
        assert done.kept == best
        assert [row["score"] for row in done.epochs] == scores
        assert all(torch.equal(tensor, after[best - 1][name]) for name, tensor in model.state_dict().items())
    model, done = scored([9, 1, 1, 1])
    assert done.kept == 4
    same(model, train_only(4))
    turns = iter([False, False, True, True])
    model, done = scored([9, 8, 2, 1], keep_best=True, ready=lambda: next(turns))
    assert done.kept == 3


def train_only(epochs: int) -> nn.Module:
    model = network()
    train(model, epochs=epochs)
    return model


def test_weights_after_an_epoch_are_kept_for_later() -> None:
    model = network()
    start = state_of(model)
    assert not train(network()).early
    for epoch, expected in ((0, start), (1, None)):
        model, seen = network(), []
        done = train(
            model, keep_epoch=epoch, evaluate=lambda m, seen=seen: float(len(seen.append(state_of(m)) or seen))
        )
        wanted = expected or seen[0]
        assert done.early.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in done.early.items())


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mixed_images_have_mixed_labels(settings: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Watching(CrossEntropy):
        def loss(self, outputs: Any, targets: Any) -> Tensor:
            seen.append((outputs, targets))
            return super().loss(outputs, targets)

    model = network()
    before = model.training
    fit(model, pairs(), FitConfig(epochs=1, **settings), seed=0, objective=Watching())
    assert model.training == before
    assert len(seen) == 3
    for _, targets in seen:
        assert targets.shape == (8, 3)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        assert bool(((targets > 0).sum(1) <= 2).all())
    assert any(bool(((targets > 0) & (targets < 1)).any()) for _, targets in seen)
    again, other = network(), network()
    train(again, **settings)
    train(other, **settings)
    same(again, other)


def test_half_precision_trains_and_keeps_single_weights() -> None:
    half, single = network(), network()
    dtypes: set[torch.dtype] = set()
    half[0].register_forward_hook(lambda _m, _i, output: dtypes.add(output.dtype))
    train(half, precision="bfloat16")
    train(single)
    assert dtypes == {torch.bfloat16}
    for name, tensor in half.state_dict().items():
        theirs = single.state_dict()[name]
        assert tensor.dtype == theirs.dtype
        if tensor.is_floating_point():
            assert torch.allclose(tensor, theirs, atol=0.03), name
    with pytest.raises(ValueError, match=r"precision = 'float16' needs a GPU \(device: cuda\)"):
        train(network(), precision="float16")


@pytest.mark.parametrize("setting", ["mixup", "cutmix", "label_smoothing"])
@pytest.mark.parametrize("objective", [Regression(), Multilabel(), Segmentation()])
def test_what_is_for_classes_alone_is_refused_elsewhere(setting: str, objective: Objective) -> None:
    with pytest.raises(
        ValueError, match=rf"{setting} = 0\.3 is for cross-entropy, not for {objective.name}: set it to 0"
    ):
        fit(network(), pairs(), FitConfig(epochs=1, **{setting: 0.3}), seed=0, objective=objective)


def test_labels_that_are_left_out_cannot_be_mixed() -> None:
    spoilt = [(images, labels.clone()) for images, labels in pairs()]
    spoilt[1][1][2] = -100
    with pytest.raises(ValueError, match="mixup and cutmix: a label is -100, and none can be left out"):
        fit(network(), spoilt, FitConfig(epochs=1, mixup=0.2), seed=0)
    fit(network(), spoilt, FitConfig(epochs=1, label_smoothing=0.2), seed=0)


def test_the_dense_networks_outputs_are_learnt_as_the_paper_has_it() -> None:
    student, teacher = network(), network(2)
    images, labels = pairs()[0]
    before = state_of(teacher)
    found = Teacher(teacher, weight=0.3, temperature=5.0).loss(student, images, labels, CrossEntropy())
    with torch.no_grad():
        ours, theirs = student(images), teacher(images)
    soft = -(F.softmax(theirs / 5, 1) * (F.log_softmax(ours / 5, 1) - F.log_softmax(theirs / 5, 1))).sum(1).mean()
    assert found.item() == pytest.approx((0.7 * F.cross_entropy(ours, labels) + 0.3 * 25 * soft).item(), rel=1e-5)
    found.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    alone = Teacher(network(), weight=1.0).loss(network(), images, labels, CrossEntropy())
    assert alone.item() == pytest.approx(0.0, abs=1e-6)  # nothing is to be learnt from itself


def test_of_numbers_the_squared_distance_is_learnt() -> None:
    student, teacher = network(), network(2)
    images, _ = pairs()[0]
    truth = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    found = Teacher(teacher, weight=0.5).loss(student, images, truth, Regression())
    expected = 0.5 * F.mse_loss(student(images), truth) + 0.5 * F.mse_loss(student(images), teacher(images))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_hints_are_taken_where_channels_are_the_same() -> None:
    teacher = network()
    torch.manual_seed(1)
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    stay = torch.tensor([1, 3])
    with torch.no_grad():
        for key in ("weight", "bias"):
            getattr(student[0], key).copy_(getattr(teacher[0], key)[stay])
    images, labels = pairs()[0]
    plain = Teacher(teacher).loss(student, images, labels, CrossEntropy())
    channels = {"0": stay, "4": None}
    hinted = Teacher(teacher, hints=2.0, channels=channels).loss(student, images, labels, CrossEntropy())
    with torch.no_grad():
        last = F.mse_loss(student(images), teacher(images)) / teacher(images).var()
    assert (hinted - plain).item() == pytest.approx(2.0 * float(last) / 2, rel=1e-4)  # of the first nothing is missing
    assert not student[0]._forward_hooks
    assert not teacher[0]._forward_hooks
    with pytest.raises(ValueError, match=r"0 returns float32 \(8, 2, 2, 2\), in the dense network .*hints=0"):
        Teacher(teacher, hints=1.0, channels={"0": None}).loss(student, images, labels, CrossEntropy())


def test_outputs_of_another_form_are_not_compared() -> None:
    class Sum(Objective):
        name = "sum"

        def loss(self, outputs: Any, targets: Any) -> Tensor:
            return outputs.square().mean()

        def score(self, outputs: Any, targets: Any) -> Tensor:
            return outputs.sum(1)

    images, labels = pairs()[0]
    wide = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(ValueError, match=r"the network returns float32 \(8, 3\) in training, .*distill\.weight=0"):
        Teacher(wide).loss(network(), images, labels, Sum())
    assert distillable(Sum())

    class Inside(Sum):
        def training_loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
            return model(inputs).sum()

    assert not distillable(Inside())


def test_channels_last_is_the_same_training_in_another_order() -> None:
    seen: list[bool] = []
    images = [(images.expand(-1, 2, -1, -1).contiguous(), labels) for images, labels in pairs()]
    first, second = (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    second[0].register_forward_pre_hook(
        lambda _module, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    for model, last in ((first, False), (second, True)):
        fit(model, images, FitConfig(epochs=2, learning_rate=0.05, channels_last=last), seed=0)
    assert seen == [True] * 6
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
        assert second.state_dict()[name].is_contiguous()  # as it is saved


def imitated(channels: dict[str, Tensor | None]) -> tuple[nn.Sequential, nn.Sequential, Imitation]:
    """A smaller network, the dense one, and the task of computing what that does."""
    teacher = network()
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    return student, teacher, Imitation(teacher, CrossEntropy(), channels)


def test_imitation_is_the_mean_over_layers_and_outputs_and_needs_no_target() -> None:
    stay = torch.tensor([1, 3])
    student, teacher, task = imitated(
        {"0": stay, "1": None, "missing": None}
    )  # of 1 there are fewer channels: left out
    images, _ = pairs()[0]
    with torch.no_grad():
        (ours, out), (theirs, wanted) = ((model[0](images), model(images)) for model in (student, teacher))
    theirs = theirs[:, stay]
    expected = [F.mse_loss(out, wanted) / wanted.var(), F.mse_loss(ours, theirs) / theirs.var()]
    inputs, targets = task.split(images)
    found = task.training_loss(student, inputs, targets)
    assert found.item() == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    found.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert task.score(wanted, wanted).tolist() == [1.0] * len(images)
    assert task.loss(out, wanted).item() == pytest.approx(float(expected[0]), rel=1e-5)
    assert task.score(out, wanted).mean().item() == pytest.approx(1 - float(expected[0]), rel=1e-5)


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def test_features_are_compared_where_a_block_ends() -> None:
    dense, small = (nn.Sequential(Block(4, inner), nn.Sequential(Block(4, inner)), Block(4, inner)) for inner in (4, 2))
    stay = torch.tensor([0, 2])
    cut = {
        f"{block}.{part}": stay if part == "first" else None
        for block in ("0", "1.0", "2")
        for part in ("first", "second")
    }
    images = torch.randn(1, 4, 2, 2)
    assert surroundings(small, dense, cut, images) == {"0": None, "1.0": None, "2": None}
    plain = {name: chosen for name, chosen in cut.items() if name.startswith("1")}
    assert surroundings(small, dense, plain, images) == plain  # one module round all of them is nothing that is near
    assert not small[0]._forward_hooks


def test_a_layer_without_a_block_stands_for_itself() -> None:
    student, teacher, _ = imitated({})
    channels = {"0": torch.tensor([1, 3]), "4": None}
    assert surroundings(student, teacher, channels, pairs()[0][0]) == channels
