"""What every method must keep to; see `secateur.pruners.method`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from ..configs.schema import LayersConfig, Repair
from ..envs.observation import METHOD_FEATURES, layer_statistics
from ..networks import load_tensors
from ..networks.inference import Batches, first_images, logits
from ..pruners.compressor import Compressor
from ..pruners.context import Context
from ..pruners.costs.counts import uncounted_flops
from ..pruners.loss_model import LossModel
from ..pruners.method import METHODS, Method
from ..pruners.structure import Kept, PlanError, Structure
from .rules import check_rules, require
from .toys import global_random, toy_images, toy_networks

TOLERANCE = 1e-3  # of the logits' spread; `secateur apply` asks for the same
COUNTED = 0.01  # by which a dense cost may differ from what torch counts
PLANS = 3  # random ones, beside the smallest
OPTIONAL_FEATURES = {"trunk", "bn_scale", "bn_spread"}


def check_method(
    method: str | Method,
    model: nn.Module | None = None,
    images: Batches | None = None,
    *,
    config: LayersConfig | None = None,
    seed: int = 0,
) -> None:
    """Check a method against every rule of `METHOD_RULES`, on toy networks or on one of your own.

    Args:
        method: a registered method or its name.
        model: a network in eval mode; none takes the toys.
        images: calibration images (N, C, H, W) and labels in batches, where a model is given.
        config: what the user says of the layers.
        seed: of the random plans.

    Raises:
        AssertionError: a rule is broken; the message names it.
        ValueError: a model without images, or the other way round.
    """
    if (model is None) != (images is None):
        raise ValueError("give a model and its images, or neither: check_method(method, model, images)")
    name = method if isinstance(method, str) else str(getattr(method, "name", type(method).__name__))
    check_rules(f"method {name}", {"registered": _is_registered}, method, None)
    cases = toy_networks() if model is None else {type(model).__name__: model}
    for toy, network in cases.items():
        case = Case(METHODS[name], network, images or toy_images(network), config or LayersConfig(), seed)
        check_rules(f"method {name}, network {toy},", METHOD_RULES, case, network)


@dataclass(frozen=True)
class Case:
    """One method on one network.

    Attributes:
        method: that is checked.
        model: the dense network.
        images: calibration images and labels, in batches.
        config: what the user says of the layers.
        seed: of the random plans.
    """

    method: Method
    model: nn.Module
    images: Batches
    config: LayersConfig
    seed: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images[0][0].shape[1:])

    @cached_property
    def structure(self) -> Structure:
        """The layers that the method finds."""
        return self.method.find(self.model, self.input_shape, self.config)

    @cached_property
    def context(self) -> Context:
        """What the method is shown."""
        return self.fresh()

    def fresh(self) -> Context:
        """A context that nothing was computed for yet."""
        return Context(self.model, self.structure, self.images, "", self.seed)

    @cached_property
    def plans(self) -> list[Kept]:
        """(layers,) kept each: the smallest plan, and some at random."""
        rng = np.random.default_rng(self.seed)
        layers = self.structure.layers
        drawn = [[int(rng.choice(layer.choices)) for layer in layers] for _ in range(PLANS)]
        return [np.array(kept, dtype=np.int64) for kept in ([layer.choices[0] for layer in layers], *drawn)]

    def outputs(self, network: nn.Module) -> Tensor:
        """(images, classes)."""
        return logits(network, self.images)

    def difference(self, one: nn.Module, other: nn.Module) -> float:
        """The largest of two networks' outputs, over their spread."""
        expected = self.outputs(other)
        spread = expected.std().clamp_min(torch.finfo(expected.dtype).tiny)
        return float((self.outputs(one) - expected).abs().max() / spread)

    def require_same(self, one: nn.Module, other: nn.Module, what: str) -> None:
        """Two networks compute the same."""
        difference = self.difference(one, other)
        require(difference <= TOLERANCE, f"{what}: outputs differ by {difference:.2g} of their spread")


def _is_registered(method: str | Method) -> None:
    if isinstance(method, str):
        require(method in METHODS, f"METHODS knows no {method!r}: METHODS.register({method!r})(YourMethod()) first")
        method = METHODS[method]
    require(
        METHODS.get(method.name) is method,
        f"METHODS does not hold it under its own name: METHODS.register({method.name!r})(method) first",
    )
    require(bool(method.unit), "`unit` is empty: what is counted, in the plural")
    require(0.0 < method.max_sparsity < 1.0, f"max_sparsity = {method.max_sparsity}: must lie in (0, 1)")


def _knows_its_criterion(case: Case) -> None:
    case.method.check_criterion(case.method.criterion)
    try:
        case.method.check_criterion("no-such-criterion")
    except ValueError:
        return
    raise AssertionError("check_criterion('no-such-criterion') raised no ValueError")


def _finds_layers(case: Case) -> None:
    structure, method = case.structure, case.method.name
    names = [layer.name for layer in structure.layers]
    require(structure.method == method, f"the structure says it was found by {structure.method!r}")
    require(names, "there are no layers, and no PlanError either")
    require(len(set(names)) == len(names), f"two layers bear one name: {names}")
    both = sorted(set(names) & set(structure.ignored))
    require(not both, f"{both} are layers, and ignored as well")
    require(structure.input_shape == case.input_shape, f"input_shape = {structure.input_shape}, not {case.input_shape}")
    shapes = {name: tuple(parameter.shape) for name, parameter in case.model.named_parameters()}
    require(dict(structure.shapes) == shapes, "shapes are not those of all the dense network's parameters")
    modules = dict(case.model.named_modules())
    for layer in structure.layers:
        require(
            layer.parameters and set(layer.parameters) <= set(shapes), f"{layer.name}: parameters {layer.parameters}"
        )
        require(set(layer.consumers) <= set(modules), f"{layer.name}: consumers {layer.consumers} are no modules")
    again = case.method.find(case.model, case.input_shape, case.config)
    require(again.fingerprint == structure.fingerprint, "the same network has another fingerprint the second time")


def _ignores_what_it_is_told(case: Case) -> None:
    first, *others = (layer.name for layer in case.structure.layers)
    if others:
        found = case.method.find(case.model, case.input_shape, case.config.model_copy(update={"ignore": [first]}))
        left = [layer.name for layer in found.layers]
        require(first not in left, f"layers.ignore: [{first}] leaves it in")
        require(first in found.ignored, f"layers.ignore: [{first}] – but `ignored` does not say why it is whole")
    try:
        case.method.find(case.model, case.input_shape, case.config.model_copy(update={"ignore": ["no-such-layer"]}))
    except PlanError:
        return
    raise AssertionError(
        "layers.ignore: [no-such-layer] raised no PlanError (see secateur.pruners.scope.ignored_names)"
    )


def _choices_rise(case: Case) -> None:
    for layer in case.structure.layers:
        choices = layer.choices
        require(len(choices) > 0 and choices[-1] == layer.units, f"{layer.name}: {choices} do not end in {layer.units}")
        require(choices[0] >= 0, f"{layer.name}: less than nothing is kept: {choices[0]}")
        require(all(a < b for a, b in pairwise(choices)), f"{layer.name}: {choices} do not rise")


def _costs_never_fall(case: Case) -> None:
    structure = case.structure
    missing = {"flops", "params"} - set(structure.costs)
    require(not missing, f"no {' and '.join(sorted(missing))} among its costs: every evaluation reports both")
    for kind, cost in structure.costs.items():
        table = np.stack([*case.plans, structure.units])
        together = np.asarray(cost(table))
        require(together.shape == (len(table),), f"{kind}: (plans, layers) gave shape {together.shape}, not (plans,)")
        alone = [float(cost(kept)) for kept in table]
        require(np.allclose(together, alone), f"{kind}: several plans at once cost {together}, one by one {alone}")
        require(alone[-1] > 0, f"{kind}: the dense network costs {alone[-1]}")
        for kept in table:
            for index, layer in enumerate(structure.layers):
                walk = np.tile(kept, (len(layer.choices) + 1, 1))
                walk[:, index] = [0, *layer.choices]  # the observation asks what the network costs without a layer
                costs = np.asarray(cost(walk), dtype=np.float64)
                require(np.isfinite(costs).all() and costs.min() >= 0, f"{kind}: {layer.name} costs {costs}")
                require(
                    (np.diff(costs) >= -1e-9 * alone[-1]).all(), f"{kind} falls where {layer.name} keeps more: {costs}"
                )


def _counts_the_dense_network(case: Case) -> None:
    structure = case.structure
    counted = {
        "flops": _counted(case, case.model),
        "params": sum(parameter.numel() for parameter in case.model.parameters()),
    }
    for kind, expected in counted.items():
        told = structure.cost(kind, structure.units)
        require(
            abs(told - expected) <= COUNTED * expected,
            f"{kind}: the dense network costs {told}, counted are {expected}: a fraction of it would flatter, or deter",
        )


def _curves_fall_to_nothing(case: Case) -> None:
    curves = case.method.curves(case.context)
    layers = case.structure.layers
    require(len(curves) == len(layers), f"{len(curves)} curves for {len(layers)} layers")
    for layer, curve in zip(layers, curves, strict=True):
        about = f"{layer.name}: {np.array2string(np.asarray(curve), precision=4, threshold=12)}"
        shape = np.shape(curve)
        require(shape == (len(layer.choices),), f"{layer.name}: shape {shape} for {len(layer.choices)} choices")
        require(np.isfinite(curve).all() and curve.min() >= 0 and curve.max() <= 1, f"{about} is not within [0, 1]")
        require(curve[-1] == 0, f"{about} does not end in 0, where all is kept")
        require((np.diff(curve) <= 0).all(), f"{about} rises where more is kept")
    losses = LossModel.of(case.context)
    require(np.isfinite(losses.predict(case.structure.units)), "the loss that is predicted is not finite")


def _sizes_are_per_unit(case: Case) -> None:
    for layer in case.structure.layers:
        sizes = np.asarray(case.method.sizes(case.context, layer))
        require(sizes.shape == (layer.units,), f"{layer.name}: shape {sizes.shape} for {layer.units} units")
        require(
            np.isfinite(sizes).all() and (sizes >= 0).all(), f"{layer.name}: a squared norm is negative or not finite"
        )


def _features_are_known(case: Case) -> None:
    for layer in case.structure.layers:
        told = case.method.features(case.context, layer)
        odd, missing = set(told) - set(METHOD_FEATURES), set(METHOD_FEATURES) - OPTIONAL_FEATURES - set(told)
        require(not odd, f"{layer.name}: {sorted(odd)} are not among {METHOD_FEATURES}")
        require(not missing, f"{layer.name}: {sorted(missing)} are missing")
        require(all(np.isfinite(value) for value in told.values()), f"{layer.name}: not finite: {dict(told)}")
    require(np.isfinite(layer_statistics(case.context)).all(), "the observation is not finite")


def _keeping_all_is_dense(case: Case) -> None:
    whole = case.method.apply(case.context, case.structure.units).model
    case.require_same(whole, case.model, "all units kept, against the dense network")


def _masked_is_the_oracle(case: Case) -> None:
    shapes = {name: parameter.shape for name, parameter in case.model.named_parameters()}
    for kept in case.plans:
        small, masked = case.method.apply(case.context, kept).model, case.method.masked(case.context, kept).eval()
        require(not any(module.training for module in small.modules()), "apply's network is not in eval mode")
        same = {name: parameter.shape for name, parameter in masked.named_parameters()} == shapes
        require(same, "the masked network has not the dense network's shapes")
        case.require_same(small, masked, f"kept {kept.tolist()}, apply against masked")


def _says_the_same_twice(case: Case) -> None:
    found = []
    for seed in (1, 2):
        with global_random(seed):
            context = case.fresh()
            found.append((case.method.apply(context, case.plans[-1]).model, case.method.curves(context)))
    (one, curves), (other, again) = found
    case.require_same(one, other, "the same plan applied twice")
    same = all(np.array_equal(a, b) for a, b in zip(curves, again, strict=True))
    require(same, "the curves are others the second time: draw from context.seed")


def _costs_no_more_than_dense(case: Case) -> None:
    dense = _counted(case, case.model)
    for kept in case.plans:
        counted = _counted(case, case.method.apply(case.context, kept).model)
        require(
            counted <= dense, f"kept {kept.tolist()}: {counted} multiply-accumulates, the dense network has {dense}"
        )


def _recipe_makes_it_again(case: Case) -> None:
    for kept in case.plans:
        compressed = case.method.apply(case.context, kept)
        _require_rebuilt(case, compressed.model, compressed.recipe, f"kept {kept.tolist()}, rebuilt from its recipe")
    try:
        case.method.rebuild(copy.deepcopy(case.model), {"of": "no method"})
    except ValueError:
        return
    raise AssertionError("rebuild took a recipe that is not its own: raise ValueError")


def _repair_is_finite(case: Case) -> None:
    compressor = Compressor(case.context)
    for kind in ("gram", "sequential"):
        for kept in case.plans:
            about = f"kept {kept.tolist()}, repaired ({kind})"
            repaired = compressor(kept, Repair.model_validate({"kind": kind, "guard": False}))
            require(bool(case.outputs(repaired).isfinite().all()), f"{about}: outputs are not finite")
            compressed = case.method.apply(case.context, kept)
            _require_rebuilt(case, repaired, compressed.recipe, f"{about} and rebuilt")
            if compressed.hold is not None:
                held = copy.deepcopy(repaired)
                compressed.hold(held)
                case.require_same(
                    held, repaired, f"{about}, before and after `hold`: the repair left the method's form"
                )


METHOD_RULES: Mapping[str, Callable[[Case], None]] = {
    "criterion": _knows_its_criterion,
    "find": _finds_layers,
    "ignore": _ignores_what_it_is_told,
    "choices": _choices_rise,
    "costs": _costs_never_fall,
    "counts": _counts_the_dense_network,
    "whole": _keeping_all_is_dense,
    "oracle": _masked_is_the_oracle,
    "no dearer": _costs_no_more_than_dense,
    "recipe": _recipe_makes_it_again,
    "repair": _repair_is_finite,
    "sizes": _sizes_are_per_unit,
    "curves": _curves_fall_to_nothing,
    "features": _features_are_known,
    "deterministic": _says_the_same_twice,
}


def _counted(case: Case, network: nn.Module) -> int:
    """Multiply-accumulates an image, by torch's own counter."""
    return uncounted_flops(network, first_images(case.images, 1)[0][0][:1], ())


def _require_rebuilt(case: Case, network: nn.Module, recipe: Mapping[str, object], what: str) -> None:
    """A recipe as JSON, the dense architecture with weights that do not matter, and the saved tensors make it again."""
    told = json.loads(json.dumps(recipe))
    require(told == recipe, f"{what}: the recipe changes on its way through JSON: {recipe}")
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    again = case.method.rebuild(other, told)
    load_tensors(again, {name: tensor.clone() for name, tensor in network.state_dict().items()})
    case.require_same(again.eval(), network, what)
