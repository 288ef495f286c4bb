"""Ranks: which layers, what they cost, the best factors, what a repair makes of them, saved and rebuilt."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from secateur.configs.schema import LayersConfig, Repair
from secateur.networks.factors import Factorised
from secateur.networks.inference import logits
from secateur.pruners import METHODS, Compressor, Context, PlanError
from secateur.pruners.lowrank import RankLayer
from secateur.pruners.masks import check_zeros
from secateur.pruners.repair.gram import output_error
from secateur.pruners.repair.reduced_rank import RankSolve, Reduced, Reduction
from secateur.testing import toy_images, toy_networks

LOWRANK = METHODS["lowrank"]
KINDS = ("channel", "spatial")


def context_of(model: nn.Module, kind: str = "channel", criterion: str = "", **config: Any) -> Context:
    structure = LOWRANK.find(model, (3, 8, 8), LayersConfig(factors=kind, **config))  # type: ignore[arg-type]
    return Context(model, structure, toy_images(model), criterion)


def wide() -> nn.Module:
    """Convolutions that see enough, with a stride, a bias and a batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 12, (1, 3), padding=(0, 1)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        ).eval()
        zoo.scramble(model)
        return model


@pytest.mark.parametrize("kind", KINDS)
def test_choices_are_the_ranks_that_cost_less_as_torch_counts(kind: str) -> None:
    model = wide()
    context = context_of(model, kind)
    dense = zoo.flops_counted(model), sum(p.numel() for p in model.parameters())
    structure = context.structure
    for index, layer in enumerate(structure.layers):
        assert isinstance(layer, RankLayer)
        assert layer.choices == (*range(1, layer.most + 1), layer.units)
        assert layer.kind == ("spatial" if kind == "spatial" and layer.name in ("0", "2") else "channel")
        for rank in (1, layer.most, layer.most + 1):
            kept = structure.units.copy()
            kept[index] = rank
            small = LOWRANK.apply(context, kept).model
            counted = zoo.flops_counted(small), sum(p.numel() for p in small.parameters())
            assert counted == (structure.cost("flops", kept), structure.cost("params", kept))
            assert (counted < dense) == (rank <= layer.most)
        two = LOWRANK.rebuild(
            copy.deepcopy(model), {"ranks": [{"module": layer.name, "rank": layer.most + 1, "kind": layer.kind}]}
        )
        more = zoo.flops_counted(two), sum(p.numel() for p in two.parameters())
        assert more[0] >= dense[0] or more[1] >= dense[1]  # one rank more would not cost less


def test_layers_that_stay_whole_are_named_with_the_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
            self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)
            self.twice = nn.Conv2d(8, 8, 3, padding=1)
            self.one, self.other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.other.weight = self.one.weight
            self.unused, self.last = nn.Linear(8, 8), nn.Linear(8, 5)
            self.score = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(self.grouped(self.stem(x)).relu()).relu()
            x = self.other(self.one(self.twice(self.twice(x)))).relu().mean((2, 3))
            return self.last(x) * self.score(x)

    found = LOWRANK.find(Odd().eval(), (3, 8, 8), LayersConfig(ignore=["last"]))
    assert [layer.name for layer in found.layers] == ["stem"]
    assert found.ignored == {
        "grouped": "grouped",
        "up": "transposed",
        "twice": "it is called 2 times",
        "one": "it shares its weight",
        "other": "it shares its weight",
        "unused": "it is not called",
        "last": "excluded by the config",
        "score": "no rank that may be kept costs less than the layer",
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tie": [["0", "2"]]}, r"layers\.tie: not for ranks"),
        ({"pattern": "2:4"}, r"layers\.pattern: not for ranks"),
        ({"ignore": ["Linnear"]}, "did you mean Linear"),
        ({"round_to": 64}, "no layer to factorise"),
    ],
)
def test_what_is_not_for_ranks_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        LOWRANK.find(wide(), (3, 8, 8), LayersConfig.model_validate(config))


def test_no_zeros() -> None:
    context = context_of(wide())
    with pytest.raises(ValueError, match="schedule = 'gradual' spreads zeros, and method lowrank changes"):
        check_zeros(context)
    model = toy_networks()["residual"]
    for method in ("channels", "weights"):
        check_zeros(Context(model, METHODS[method].find(model, (3, 8, 8), LayersConfig()), toy_images(model)))


@pytest.mark.parametrize("kernel", [None, (3, 2)])
def test_white_inputs_give_the_singular_value_decomposition(kernel: tuple[int, int] | None) -> None:
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white, plain = (Reduction.of(weight, gram, kernel) for gram in (torch.eye(24, dtype=torch.float64), None))
    shaped = weight if kernel is None else weight.reshape(5, 3, 2, 4).transpose(1, 2).reshape(10, 12)
    left, values, right = torch.linalg.svd(shaped, full_matrices=False)
    for rank in range(1, len(values) + 1):
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        best = best if kernel is None else best.reshape(5, 2, 3, 4).transpose(1, 2).reshape(5, 24)
        torch.testing.assert_close(plain.at(rank), best, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(white.at(rank), best, rtol=1e-6, atol=1e-6)
    tail = values.square().flip(0).cumsum(0).flip(0)[1:]
    torch.testing.assert_close(white.lost(len(tail)), tail, rtol=1e-5, atol=1e-5)


def test_the_best_map_of_a_rank_is_numpys() -> None:
    """Reduced-rank regression by whitening: the truncated SVD of W G^½, taken back."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12))
    weight, gram = rng.normal(size=(6, 12)), x.T @ x / 200
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(values) @ vectors.T
    left, singular, right = np.linalg.svd(weight @ root, full_matrices=False)
    reduction = Reduction.of(torch.from_numpy(weight), torch.from_numpy(gram))
    for rank in (1, 3, 6):
        expected = (left[:, :rank] * singular[:rank]) @ right[:rank] @ np.linalg.inv(root)
        np.testing.assert_allclose(reduction.at(rank), expected, atol=1e-8)
        missed = np.square(x @ (weight - expected).T).sum() / 200
        np.testing.assert_allclose(reduction.lost(rank)[-1], missed, atol=1e-8)


@pytest.mark.parametrize("kernel", [None, (3, 2)])
def test_a_step_is_the_least_of_its_rank(kernel: tuple[int, int] | None) -> None:
    """No other weights of the rank near by have less of ‖T − XV‖² + λ‖V − W‖²; of full rank it is ridge regression."""
    generator = torch.Generator().manual_seed(0)
    x, dense, noise = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((300, 24), (5, 24), (300, 5))
    )
    x = x @ torch.randn(24, 24, generator=generator, dtype=torch.float64)
    target, gram = x @ dense.T + noise, x.T @ x / 300
    full = 5 if kernel is None else 10
    ridge = 0.1
    penalty = ridge * gram.diagonal().mean()

    def solved(rank: int) -> Tensor:
        now = Reduction.of(dense, gram, kernel).at(rank)
        solve = RankSolve({"a": Reduced(dense, now, rank, kernel)})
        cross = x.T @ target / 300 - gram @ now.T
        return now + solve("a", gram[None], cross[None], ridge)[0].T

    def loss(weight: Tensor) -> float:
        missed = (target - x @ weight.T).square().sum() / 300
        return float(missed + penalty * (weight - dense).square().sum())

    system = gram + penalty * torch.eye(24, dtype=torch.float64)
    free = torch.linalg.solve(system, x.T @ target / 300 + penalty * dense.T).T
    torch.testing.assert_close(solved(full), free, rtol=1e-5, atol=1e-5)
    found = solved(2)
    assert loss(free) < loss(found)
    assert loss(found) < loss(Reduction.of(dense, gram, kernel).at(2))
    if kernel is None:  # the minimum over all of its rank: no step along either factor falls
        left, values, right = torch.linalg.svd(found, full_matrices=False)
        a, b = (left[:, :2] * values[:2]).requires_grad_(), right[:2].clone().requires_grad_()
        missed = (target - x @ (a @ b).T).square().sum() / 300 + penalty * (a @ b - dense).square().sum()
        slopes = torch.autograd.grad(missed, (a, b))
        assert max(float(slope.abs().max()) for slope in slopes) < 1e-8 * loss(found)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_are_the_error_that_is_measured(kind: str) -> None:
    model = wide()
    context = context_of(model, kind)
    inputs = torch.cat([x for x, _ in context.calibration])
    for index, (layer, curve) in enumerate(zip(context.structure.layers, LOWRANK.curves(context), strict=True)):
        seen: dict[str, Tensor] = {}
        hook = model.get_submodule(layer.name).register_forward_pre_hook(lambda _m, x, seen=seen: seen.update(x=x[0]))
        with torch.no_grad():
            model(inputs)
        hook.remove()
        for place in (0, len(layer.choices) // 2):
            kept = context.structure.units.copy()
            kept[index] = layer.choices[place]
            compressed = LOWRANK.apply(context, kept)
            with torch.no_grad():
                truth, got = (net.get_submodule(layer.name)(seen["x"]) for net in (model, compressed.model))
            dims = [d for d in range(truth.dim()) if d != 1]
            gap = (got - truth) - (got - truth).mean(dims, keepdim=True)  # what is constant is made good behind it
            spread = truth - truth.mean(dims, keepdim=True)
            measured = float(gap.square().sum() / spread.square().sum())
            assert measured == pytest.approx(curve[place], abs=1e-4)
            assert output_error(compressed, model, context.moments) == pytest.approx(curve[place], abs=1e-4)


@pytest.mark.parametrize("criterion", ["data", "svd"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_repair_of_either_kind_brings_the_network_nearer(kind: str, criterion: str) -> None:
    model = wide()
    context = context_of(model, kind, criterion)
    compressor = Compressor(context)
    kept = np.array([layer.choices[len(layer.choices) // 2] for layer in context.structure.layers])
    dense = logits(model, context.calibration)

    def distance(**repair: Any) -> float:
        small = compressor(kept, Repair(guard=False, **repair))
        assert any(isinstance(module, Factorised) for module in small.modules())
        return float((logits(small, context.calibration) - dense).square().sum())

    bare, gram, sequential = (distance(kind=name) for name in ("none", "gram", "sequential"))
    assert sequential < bare
    if criterion == "svd":
        assert gram < bare
    else:  # the moments are those that the factors were made by: nothing is left to repair, no constant counts twice
        assert gram == pytest.approx(bare, rel=0.05)


def test_the_mean_of_the_outputs_stays() -> None:
    context = context_of(wide())
    inputs = torch.cat([x for x, _ in context.calibration])
    kept = np.array([layer.choices[0] for layer in context.structure.layers])
    kept[1:] = context.structure.units[1:]
    small = LOWRANK.apply(context, kept).model
    with torch.no_grad():
        truth, got = context.model[0](inputs).mean((0, 2, 3)), small[0](inputs).mean((0, 2, 3))  # type: ignore[operator,index]
    torch.testing.assert_close(got, truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ([{"module": "9", "rank": 1, "kind": "channel"}], "has no convolution or linear layer '9'"),
        ([{"module": "", "rank": 1, "kind": "channel"}], "has no convolution or linear layer ''"),
        ([{"module": "3", "rank": 1, "kind": "channel"}], "has no convolution or linear layer '3'"),
        ([{"module": "0", "rank": 9, "kind": "channel"}], "layer 0: rank 9 is above 8, all it has"),
        ([{"module": "8", "rank": 1, "kind": "spatial"}], r"layer 8 cannot become two \(spatial\) here"),
        ([{"module": "0", "rank": 0, "kind": "channel"}], "no recipe of factorised layers"),
        ([{"module": "0", "rank": 1, "kind": "both"}], "no recipe of factorised layers"),
        (2 * [{"module": "0", "rank": 1, "kind": "channel"}], "factorises '0' twice"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(recipe: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LOWRANK.rebuild(wide(), {"ranks": recipe})


@pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n in ("residual", "inverted", "densenet", "conv1d") for k in KINDS]
)
def test_masked_is_factorised_in_networks_of_every_kind(name: str, kind: str) -> None:
    model, shape = zoo.make(name), zoo.ZOO[name].shape
    structure = LOWRANK.find(model, shape, LayersConfig(factors=kind))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    images = [(torch.randn(16, *shape, generator=generator), torch.zeros(16, dtype=torch.int64))]
    context = Context(model, structure, images)
    kept = np.array([layer.choices[len(layer.choices) // 2] for layer in structure.layers])
    small, masked = LOWRANK.apply(context, kept).model, LOWRANK.masked(context, kept).eval()
    expected = logits(masked, images)
    spread = float(expected.std())
    torch.testing.assert_close(logits(small, images), expected, rtol=0, atol=1e-3 * spread)
    assert structure.cost("flops", kept) == zoo.flops_counted(small, shape)
    assert structure.cost("params", kept) == sum(p.numel() for p in small.parameters())
