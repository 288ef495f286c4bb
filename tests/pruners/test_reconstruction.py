"""Least squares: the sampler reads what the module computes, the repair is what numpy's solver gives."""

from __future__ import annotations

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from secateur.networks.norms import following_norms
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.criteria import rank
from secateur.pruners.channels.method import cut as cut_channels
from secateur.pruners.channels.shrink import shrink
from secateur.pruners.channels.slices import ChannelStructure, Selection
from secateur.pruners.context import Context
from secateur.pruners.repair import gram, statistics
from secateur.pruners.repair.gram import output_error, repair_from_moments
from secateur.pruners.repair.solve import RIDGE, ridge_step
from secateur.pruners.repair.statistics import Moments, Sampler, repairable

FITTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
ODD = {"encoder", "recurrent"}  # tokens come before images; one layer's only consumer cannot be re-fitted
CASES = pytest.mark.parametrize(("name", "cut"), [case for case in zoo.small_cases() if case[0] not in ODD])
EVERY = pytest.mark.parametrize("name", zoo.ZOO)
PADDINGS = st.sampled_from(["zeros", "reflect", "replicate", "circular"])


def assert_reads_as_regression(module: nn.Module, x: Tensor, samples: int) -> None:
    """inputs · weightᵀ + bias = outputs, at the same positions."""
    module = module.double()
    with torch.no_grad():
        y = module(x)
    sampler = Sampler(module, samples)
    inputs, outputs, weight = sampler.inputs(x), sampler.outputs(y), sampler.weight(module.weight.detach())
    bias = 0.0 if module.bias is None else module.bias.detach().reshape(sampler.groups, 1, -1)
    torch.testing.assert_close(inputs @ weight.transpose(1, 2) + bias, outputs)
    assert torch.equal(sampler.unweight(weight, module.weight), module.weight)
    if not isinstance(module, nn.Linear):
        assert inputs.shape[1] == len(x) * min(samples, y[0, 0].numel())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 3)), st.just("same"), st.just("valid")),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    mode=PADDINGS,
    bias=st.booleans(),
    samples=st.integers(1, 60),
)
def test_sampler_reads_conv2d(groups, channels, kernel, stride, padding, dilation, mode, bias, samples):
    assume(padding != "same" or stride == (1, 1))
    module = nn.Conv2d(
        groups * channels[0],
        groups * channels[1],
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias,
        padding_mode=mode,
    )
    assert_reads_as_regression(module, torch.randn(2, groups * channels[0], 8, 9, dtype=torch.float64), samples)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 2),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    mode=PADDINGS,
    bias=st.booleans(),
    samples=st.integers(1, 20),
)
def test_sampler_reads_conv1d(groups, kernel, stride, padding, dilation, mode, bias, samples):
    module = nn.Conv1d(2 * groups, 3 * groups, kernel, stride, padding, dilation, groups, bias, padding_mode=mode)
    assert_reads_as_regression(module, torch.randn(3, 2 * groups, 11, dtype=torch.float64), samples)


@settings(max_examples=20, deadline=None)
@given(
    groups=st.integers(1, 2),
    kernel=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    mode=PADDINGS,
    bias=st.booleans(),
    samples=st.integers(1, 60),
)
def test_sampler_reads_conv3d(groups, kernel, stride, padding, dilation, mode, bias, samples):
    module = nn.Conv3d(2 * groups, 3 * groups, kernel, stride, padding, dilation, groups, bias, padding_mode=mode)
    assert_reads_as_regression(module, torch.randn(2, 2 * groups, 4, 6, 5, dtype=torch.float64), samples)


@pytest.mark.parametrize("shape", [(7, 4), (3, 5, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_sampler_reads_linear(shape: tuple[int, ...], bias: bool) -> None:
    module = nn.Linear(4, 6, bias)
    assert_reads_as_regression(module, torch.randn(shape, dtype=torch.float64), 5)
    assert Sampler(module).inputs(torch.randn(shape)).shape[1] == int(np.prod(shape[:-1]))


def test_sampled_positions_are_spread_and_the_same_every_time() -> None:
    module = nn.Conv2d(1, 1, 1)
    x = torch.arange(400.0).reshape(1, 1, 20, 20)
    first, second = (Sampler(module, 40).inputs(x).flatten() for _ in range(2))
    assert torch.equal(first, second)
    assert len(first.unique()) == 40
    assert first.min() < 100 < 300 < first.max()


def test_moments_are_means_and_covariances() -> None:
    x, t = torch.randn(2, 50, 4, dtype=torch.float64) + 3, torch.randn(2, 50, 3, dtype=torch.float64) - 1
    moments = Moments()
    moments.add(x[:, :20], t[:, :20])
    moments.add(x[:, 20:], t[:, 20:])
    mean_x, mean_t, xx, xt = moments.centered()
    torch.testing.assert_close(mean_x, x.mean(1))
    torch.testing.assert_close(mean_t, t.mean(1))
    for group in range(2):
        both = np.cov(x[group].T, t[group].T, bias=True)
        np.testing.assert_allclose(xx[group], both[:4, :4], atol=1e-10)
        np.testing.assert_allclose(xt[group], both[:4, 4:], atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(p=st.integers(1, 6), q=st.integers(1, 4), rank_of=st.integers(0, 6), seed=st.integers(0, 1000))
def test_ridge_step_minimises(p: int, q: int, rank_of: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, min(rank_of, p))) @ rng.normal(size=(min(rank_of, p), p))
    r = rng.normal(size=(20, q))
    ridge = 0.01 * np.trace(x.T @ x) / p
    expected = np.linalg.lstsq(
        np.vstack([x, np.sqrt(ridge) * np.eye(p)]), np.vstack([r, np.zeros((p, q))]), rcond=None
    )[0]
    step = ridge_step(torch.from_numpy(x.T @ x), torch.from_numpy(x.T @ r), 0.01)
    np.testing.assert_allclose(step, expected, atol=1e-8)


def test_ridge_step_of_singular_systems_is_finite() -> None:
    x = torch.randn(30, 1, dtype=torch.float64).repeat(1, 4)
    gram = torch.stack([x.T @ x, torch.zeros(4, 4, dtype=torch.float64)])
    cross = torch.stack([x.T @ x[:, :2], torch.zeros(4, 2, dtype=torch.float64)])
    for ridge in (RIDGE, 0.0):
        step = ridge_step(gram, cross, ridge)
        torch.testing.assert_close(step[0], torch.full((4, 2), 0.25, dtype=torch.float64), rtol=1e-3, atol=1e-6)
        assert torch.equal(step[1], torch.zeros(4, 2, dtype=torch.float64))


def test_a_step_that_would_not_help_is_not_taken() -> None:
    # rounding errors larger than the ridge: an indefinite "Gram matrix"; the group beside it is solved all the same
    gram = torch.stack([torch.diag(torch.tensor([1.0, d], dtype=torch.float64)) for d in (1.0, -0.5)])
    cross = torch.ones(2, 2, 1, dtype=torch.float64)
    step = ridge_step(gram, cross, 1e-9)
    torch.testing.assert_close(step[0], cross[0])
    assert torch.equal(step[1], torch.zeros(2, 1, dtype=torch.float64))
    for huge in (torch.inf, torch.nan):
        assert torch.equal(ridge_step(gram * huge, cross), torch.zeros_like(cross))


@pytest.mark.parametrize("value", [0.0, 0.2094, -3e4])
def test_an_input_that_is_constant_says_nothing_about_the_target(value: float) -> None:
    # behind a dead layer all images look alike: what is left are rounding errors, of which a step of 1e290 was made
    moments, constant = Moments(), torch.full((1, 30, 3), value)
    for _ in range(3):
        moments.add(torch.cat([constant, torch.randn(1, 30, 1)], 2), torch.randn(1, 30, 2))
    _, _, xx, xt = moments.centered()
    assert torch.equal(xx[:, :3], torch.zeros(1, 3, 4, dtype=torch.float64))
    assert torch.equal(xt[:, :3], torch.zeros(1, 3, 2, dtype=torch.float64))
    assert torch.equal(ridge_step(xx, xt)[:, :3], torch.zeros(1, 3, 2, dtype=torch.float64))
    assert (xx[:, 3, 3] > 0.5).all()


def fit(x: np.ndarray, target: np.ndarray, old: np.ndarray, intercept: bool, ridge: float) -> tuple[np.ndarray, ...]:
    """numpy's answer to min ‖target − x v − b‖² + λ‖v − old‖²: v (inputs, outputs) and b."""
    if intercept:
        mean_x, mean_t = x.mean(0), target.mean(0)
    else:
        mean_x, mean_t = np.zeros(x.shape[1]), np.zeros(target.shape[1])
    x, target = x - mean_x, target - mean_t
    damp = np.sqrt(ridge * np.square(x).sum(0).mean()) * np.eye(x.shape[1])
    v = np.linalg.lstsq(np.vstack([x, damp]), np.vstack([target, damp @ old]), rcond=None)[0]
    return v, mean_t - mean_x @ v


class Watch:
    """Inputs and outputs of modules, by name, over a pass."""

    def __init__(self, model: nn.Module, x: Tensor):
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

        def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str) -> None:
            self.inputs[name], self.outputs[name] = inputs[0].clone(), output.clone()

        hooks = [m.register_forward_hook(functools.partial(record, name=n)) for n, m in model.named_modules()]
        with torch.no_grad():
            self.result = model(x)
        for hook in hooks:
            hook.remove()


def stack(name: str, *, bias: bool, norm: bool, **conv: int) -> nn.Module:
    """Producer, consumer (a convolution or a linear layer), and what may follow it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        consumer = nn.Linear(6 * 16, 8, bias) if name == "linear" else nn.Conv2d(6, 8, **conv, bias=bias)
        behind: list[nn.Module] = []
        if norm:
            behind.append(nn.BatchNorm1d(8) if name == "linear" else nn.BatchNorm2d(8))
        behind += [nn.ReLU()]
        head = [nn.Linear(8, zoo.CLASSES)] if name == "linear" else [*zoo.Head(8)]
        between = [nn.AdaptiveMaxPool2d(4), nn.Flatten()] if name == "linear" else []
        model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *between, consumer, *behind, *head)
        zoo.scramble(model)
    return model.eval()


def rows(module: nn.Module, x: Tensor) -> np.ndarray:
    """Unfolded inputs (samples, columns) in the order of the weight's own columns."""
    if isinstance(module, nn.Linear):
        return x.double().numpy()
    columns = nn.functional.unfold(x.double(), module.kernel_size, module.dilation, module.padding, module.stride)
    return columns.transpose(1, 2).flatten(0, 1).numpy()


def values(y: Tensor) -> np.ndarray:
    """Outputs (samples, channels)."""
    return (y if y.dim() == 2 else y.flatten(2).transpose(1, 2).flatten(0, 1)).double().numpy()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "conv"),
    [
        ("3×3", {"kernel_size": 3, "padding": 1}),
        ("strided", {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 1}),
        ("1×1", {"kernel_size": 1}),
        ("linear", {}),
    ],
)
@pytest.mark.parametrize("ridge", [RIDGE, 1e-12])
def test_repair_is_least_squares(
    kind: str, conv: dict[str, int], bias: bool, norm: bool, ridge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "damping", lambda _samples, _inputs: ridge)
    model = stack(kind, bias=bias, norm=norm, **conv)
    structure = find_layers(model, zoo.RGB)
    name = structure.layers[0].weights("in")[0].module
    selection = zoo.whole(structure)
    selection[0], selection[1] = np.array([0, 2, 5]), np.array([1, 2, 3, 6])  # the consumer's own outputs, too
    batches = zoo.batches("vgg", (40, 20))
    compressed = cut_channels(model, structure, selection)
    pruned = compressed.model
    before = copy.deepcopy(pruned)
    repair_from_moments(compressed, model, zoo.moments(model, structure, batches))

    x = torch.cat([images for images, _ in batches])
    small = Watch(before, x).inputs[name]  # of a first layer's consumer: the dense ones that stay
    target = values(Watch(model, x).outputs[name])[:, selection[1]]
    old, new = before.get_submodule(name), pruned.get_submodule(name)
    constant = 0.0 if old.bias is None else old.bias.detach().double().numpy()
    v, b = fit(
        rows(old, small),
        target - constant,
        old.weight.detach().double().flatten(1).T.numpy(),
        bias or norm,
        ridge,
    )
    np.testing.assert_allclose(new.weight.detach().flatten(1).T, v, atol=3e-4)
    if bias:
        np.testing.assert_allclose(new.bias.detach().numpy() - constant, b, atol=1e-3)
    elif norm:
        norm_name = following_norms(model, x[:1])[name]
        shift = before.get_submodule(norm_name).running_mean - pruned.get_submodule(norm_name).running_mean
        np.testing.assert_allclose(shift, b, atol=1e-3)
    if bias and norm:  # the bias takes it all
        norm_name = following_norms(model, x[:1])[name]
        assert torch.equal(before.get_submodule(norm_name).running_mean, pruned.get_submodule(norm_name).running_mean)


def consumers_behind(
    model: nn.Module, structure: ChannelStructure, index: int, norms: dict[str, str]
) -> dict[str, str]:
    """Consumers of a layer → where a shift shows: behind the batch norm, if there is one."""
    names = [part.module for part in structure.layers[index].weights("in")]
    return {name: norms.get(name, name) for name in names if repairable(model.get_submodule(name))}


@CASES
def test_repair_never_loses_on_its_own_objective(name: str, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # with one layer cut, its consumers see the dense inputs that stay; every output channel must come nearer
    monkeypatch.setattr(Sampler.__init__, "__defaults__", (10_000,))
    model, structure = zoo.make(name), zoo.structure(name, cut)
    batches = zoo.batches(name, (10, 6))
    x = torch.cat([images for images, _ in batches])
    moments = zoo.moments(model, structure, batches)
    dense = Watch(model, x)
    compared = 0
    for index, layer in enumerate(structure.layers):
        if layer.trunk or {p.module for p in layer.weights("in")} & {p.module for p in layer.weights("out")}:
            continue  # the consumers' inputs are changed by other consumers' repairs
        selection = zoo.whole(structure)
        selection[index] = zoo.draw(structure, 5 + index)[index][:-1] if layer.units > 1 else selection[index]
        if not len(selection[index]):
            selection[index] = np.array([0])
        compressed = cut_channels(model, structure, selection)
        pruned = compressed.model
        before = Watch(pruned, x)
        repair_from_moments(compressed, model, moments)
        after = Watch(pruned, x)
        for consumer, behind in consumers_behind(model, structure, index, dict(moments.norms)).items():
            if not torch.equal(before.inputs[consumer], after.inputs[consumer]):
                continue  # it consumes the output of another consumer of this layer
            truth, unrepaired, repaired = (values(w.outputs[behind]) for w in (dense, before, after))
            lost, kept = (np.square(y - truth).mean(0) for y in (unrepaired, repaired))
            assert np.all(kept <= lost * (1 + 1e-4) + 1e-7), (consumer, lost, kept)
            compared += 1
    assert compared or name == "tied" or cut == "all"


@CASES
def test_nothing_cut_nothing_changed(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    batches = zoo.batches(name, (8,))
    compressed = cut_channels(model, structure, zoo.whole(structure))
    repair_from_moments(compressed, model, zoo.moments(model, structure, batches))
    zoo.assert_same_network(compressed.model, model, batches[0][0])


@CASES
def test_the_dense_network_is_untouched(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    before = copy.deepcopy(model.state_dict())
    selection = zoo.draw(structure, 1)
    moments = zoo.moments(model, structure, zoo.batches(name, (4, 8)))
    repair_from_moments(cut_channels(model, structure, selection), model, moments)
    for key, tensor in before.items():
        assert torch.equal(model.state_dict()[key], tensor), key
    for module in model.modules():
        assert not module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def repaired_error(
    model: nn.Module,
    structure: ChannelStructure,
    index: int,
    order: np.ndarray,
    count: int,
    moments: gram.DenseMoments,
) -> float:
    """What one layer's consumers lose where it keeps its first so many units and they are re-fitted."""
    compressed = cut_channels(model, structure, structure.alone(index, order, count))
    repair_from_moments(compressed, model, moments)
    return output_error(compressed, model, moments)


UNFITTED = {"shared", "shared_two_norms", "transposed", "norms"}  # consumers that cannot be, or called twice
ONCE = [case for case in zoo.small_cases() if case[0] not in ODD | UNFITTED]


@pytest.mark.parametrize(("name", "cut"), ONCE)
def test_repair_error_is_the_variance_left_unexplained(name: str, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "damping", lambda _samples, _inputs: RIDGE)
    monkeypatch.setattr(Sampler.__init__, "__defaults__", (10_000,))
    model, structure = zoo.make(name), zoo.structure(name, cut)
    batches = zoo.batches(name, (5, 3))
    moments = zoo.moments(model, structure, batches)
    ranking = rank(Context(model, structure, batches), "l1")
    module_inputs = Watch(model, torch.cat([images for images, _ in batches])).inputs
    compared = 0
    for index, layer in enumerate(structure.layers[:4]):
        order = ranking[index]
        keep = np.sort(order[: max(1, round(0.5 * layer.units))])
        shares = []
        for part in layer.weights("in"):
            lost = total = 0.0
            module = model.get_submodule(part.module)
            if not repairable(module):
                continue
            sampler = Sampler(module)
            inputs = sampler.inputs(module_inputs[part.module]).double().numpy()
            weight = sampler.weight(module.weight.detach()).numpy()
            kernel = weight.shape[2] // module.weight.shape[1]
            stay = np.setdiff1d(np.arange(module.weight.shape[1]), np.delete(part.positions, keep, axis=0))
            columns = (np.arange(kernel)[:, None] * module.weight.shape[1] + stay).ravel()
            for matrix, group in zip(inputs, weight, strict=True):
                if moments.has_intercept(model, part.module):
                    matrix = matrix - matrix.mean(0)
                truth = matrix @ group.T
                v, _ = fit(matrix[:, columns], truth, group[:, columns].T, False, RIDGE)
                lost += np.square(truth - matrix[:, columns] @ v).sum() / len(truth)
                total += truth.var(0).sum()
            if total > 0.0:
                shares.append(lost / total)
        if not shares:
            continue
        found = repaired_error(model, structure, index, order, len(keep), moments)
        assert found == pytest.approx(np.mean(shares), rel=1e-3, abs=1e-5)
        compared += 1
    assert compared


@pytest.mark.parametrize(("name", "cut"), ONCE)
def test_repair_error_grows_with_sparsity(name: str, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "damping", lambda _samples, _inputs: RIDGE)
    model, structure = zoo.make(name), zoo.structure(name, cut)
    batches = zoo.batches(name, (24,))
    moments = zoo.moments(model, structure, batches)
    for index, order in enumerate(rank(Context(model, structure, batches), "l1")):
        counts = [max(1, round(share * len(order))) for share in (1.0, 0.75, 0.5, 0.25, 0.01)]
        errors = [repaired_error(model, structure, index, order, count, moments) for count in counts]
        assert errors[0] == pytest.approx(0.0, abs=1e-9)
        assert all(less <= more + 1e-4 for less, more in itertools.pairwise(errors))
        absorbed = all(moments.has_intercept(model, consumer) for consumer in structure.layers[index].consumers)
        assert min(errors) >= 0.0
        assert max(errors) <= 1.0 + 1e-9 or not absorbed


def doubled(dead: bool = False) -> nn.Module:
    """Channels 4 to 7 repeat channels 0 to 3; dead, all of them are 0 behind the ReLU."""
    model = stack("3×3", bias=False, norm=True, kernel_size=3, padding=1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        producer = nn.Conv2d(3, 8, 3, padding=1)
        consumer = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        producer.weight[4:], producer.bias[4:] = producer.weight[:4], producer.bias[:4]
        if dead:
            producer.bias -= 1e3
    model[0], model[2] = producer, consumer
    return model


def pruned_by_half(
    model: nn.Module, sequential: bool = False, images: int = 64
) -> tuple[ChannelStructure, Selection, nn.Module]:
    structure = find_layers(model, zoo.RGB)
    selection = zoo.whole(structure)
    selection[0] = np.arange(4)
    compressed = cut_channels(model, structure, selection)
    batches = zoo.batches("vgg", (images,))
    if sequential:
        zoo.repair_sequentially(compressed, model, batches)
    else:
        repair_from_moments(compressed, model, zoo.moments(model, structure, batches))
    return structure, selection, compressed.model


@pytest.mark.parametrize("sequential", [False, True])
def test_a_doubled_channel_is_removed_without_loss(sequential: bool) -> None:
    model = doubled()
    structure, selection, pruned = pruned_by_half(model, sequential, images=512)
    x = zoo.images("vgg", 16, seed=99)  # none of the calibration images
    with torch.no_grad():
        dense, repaired, unrepaired = model(x), pruned(x), shrink(model, structure, selection)(x)
    spread = dense.std()
    assert (repaired - dense).abs().max() < 1e-2 * spread
    assert (unrepaired - dense).abs().max() > 0.2 * spread


@pytest.mark.parametrize("sequential", [False, True])
def test_dead_channels_are_removed_without_loss(sequential: bool) -> None:
    model = doubled(dead=True)
    _, _, pruned = pruned_by_half(model, sequential)
    x = zoo.images("vgg", 16, seed=99)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x))
    assert all(bool(torch.isfinite(p).all()) for p in pruned.parameters())


def test_doubled_channels_that_stay_keep_the_system_solvable() -> None:
    model = doubled()
    structure = find_layers(model, zoo.RGB)
    selection = zoo.whole(structure)
    selection[0] = np.array([0, 1, 2, 4, 5, 6])
    compressed = cut_channels(model, structure, selection)
    repair_from_moments(compressed, model, zoo.moments(model, structure, zoo.batches("vgg", (3,))))
    pruned = compressed.model
    assert all(bool(torch.isfinite(p).all()) for p in pruned.parameters())
    assert max(float(p.detach().abs().max()) for p in pruned.parameters()) < 100.0


def test_a_mean_far_from_zero_does_not_drown_the_variance() -> None:
    x = torch.randn(1, 4000, 3) @ torch.randn(3, 6)
    far = Moments()
    far.add(x[:, :2000] + 300.0)
    far.add(x[:, 2000:] + 300.0)
    centred = x - x.mean(1, keepdim=True)
    expected = (centred.transpose(1, 2) @ centred)[0].double() / 4000
    torch.testing.assert_close(far.centered()[2][0], expected, rtol=1e-2, atol=1e-2)


def test_a_layer_too_wide_for_a_gram_matrix_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repairable(nn.Linear(8192, 2))
    assert not repairable(nn.Linear(8193, 2))
    assert not repairable(nn.Conv2d(1000, 2, 3))
    monkeypatch.setattr(statistics, "MOST_INPUTS", 23)
    model, structure = zoo.make("vgg"), zoo.structure("vgg")
    batches = zoo.batches("vgg")
    moments = zoo.moments(model, structure, batches)
    assert set(moments.inputs) == {"7"}  # 10 inputs; the others have 72 and 24
    selection = [np.arange(8), np.arange(3), np.arange(5)]
    compressed, before = cut_channels(model, structure, selection), shrink(model, structure, selection)
    repair_from_moments(compressed, model, moments)
    pruned = compressed.model
    assert torch.equal(pruned[5].weight, before[5].weight)
    assert not torch.equal(pruned[7].weight, before[7].weight)


def test_following_norms_are_those_that_alone_take_an_output() -> None:
    def norms(name: str) -> dict[str, str]:
        return following_norms(zoo.make(name), zoo.images(name, 1))

    assert norms("bias_and_norm") == {"0": "1", "3": "4"}
    assert norms("preactivation") == {"conv1": "bn2"}  # the stem's output goes round bn1, too
    assert norms("own_shortcut") == {}
    assert norms("densenet") == {}
    assert norms("shared_two_norms") == {"stem.0": "stem.1", "last.0": "last.1"}
    assert norms("grouped") == {f"{i}.0": f"{i}.1" for i in range(4)}
    assert len(norms("resnet20")) == 19


@pytest.mark.parametrize("size", [32, 64, 96])
def test_following_norms_of_many_short_lived_tensors(size: int) -> None:
    # a freed tensor's id comes back as another's: pairs must be those of objects that lived at the same time
    model = torchvision.models.DenseNet(4, (6, 12, 8), num_init_features=8, bn_size=2, num_classes=5).eval()
    blocks = [
        name for name, module in model.named_modules() if isinstance(module, torchvision.models.densenet._DenseLayer)
    ]
    expected = {f"{block}.conv1": f"{block}.norm2" for block in blocks} | {"features.conv0": "features.norm0"}
    assert following_norms(model, torch.randn(1, 3, size, size)) == expected


@EVERY
def test_moments_are_collected_for_every_consumer_that_can_be_repaired(name: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, "all")
    consumers = {part.module for layer in structure.layers for part in layer.weights("in")}
    moments = zoo.moments(model, structure, zoo.batches(name, (4,)))
    assert set(moments.inputs) == {n for n in consumers if isinstance(model.get_submodule(n), FITTED)}
