"""Rules of what a method says of a network: layers, choices, costs, curves, features."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ..envs.observation import METHOD_FEATURES, layer_statistics
from ..pruners.loss_model import LossModel
from ..pruners.structure import PlanError
from .method_case import Case
from .rules import require

COUNTED = 0.01  # by which a dense cost may differ from what torch counts
OPTIONAL_FEATURES = {"trunk", "bn_scale", "bn_spread"}


def knows_its_criterion(case: Case) -> None:
    """Its own criterion is known to it, and an unknown one is refused."""
    case.method.check_criterion(case.method.criterion)
    try:
        case.method.check_criterion("no-such-criterion")
    except ValueError:
        return
    raise AssertionError("check_criterion('no-such-criterion') raised no ValueError")


def finds_layers(case: Case) -> None:
    """Layers and structure name what is there, the same every time."""
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


def ignores_what_it_is_told(case: Case) -> None:
    """A layer that the user ignores is left whole, with the reason; a name that fits nothing is refused."""
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


def choices_rise(case: Case) -> None:
    """Every layer's choices rise and end in all its units."""
    for layer in case.structure.layers:
        choices = layer.choices
        require(len(choices) > 0 and choices[-1] == layer.units, f"{layer.name}: {choices} do not end in {layer.units}")
        require(choices[0] >= 0, f"{layer.name}: less than nothing is kept: {choices[0]}")
        require(all(a < b for a, b in pairwise(choices)), f"{layer.name}: {choices} do not rise")


def costs_never_fall(case: Case) -> None:
    """FLOPs and parameters are among the costs; no cost falls where a layer keeps more."""
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


def counts_the_dense_network(case: Case) -> None:
    """What the dense network costs is what torch counts."""
    structure = case.structure
    counted = {
        "flops": case.counted(case.model),
        "params": sum(parameter.numel() for parameter in case.model.parameters()),
    }
    for kind, expected in counted.items():
        told = structure.cost(kind, structure.units)
        require(
            abs(told - expected) <= COUNTED * expected,
            f"{kind}: the dense network costs {told}, counted are {expected}: a fraction of it would flatter, or deter",
        )


def sizes_are_per_unit(case: Case) -> None:
    """A squared norm for every unit."""
    for layer in case.structure.layers:
        sizes = np.asarray(case.method.sizes(case.context, layer))
        require(sizes.shape == (layer.units,), f"{layer.name}: shape {sizes.shape} for {layer.units} units")
        require(
            np.isfinite(sizes).all() and (sizes >= 0).all(), f"{layer.name}: a squared norm is negative or not finite"
        )


def curves_fall_to_nothing(case: Case) -> None:
    """A curve for every layer, a loss for every choice, falling from 1 at most to 0."""
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


def features_are_known(case: Case) -> None:
    """The observation gets the numbers that it knows."""
    for layer in case.structure.layers:
        told = case.method.features(case.context, layer)
        odd, missing = set(told) - set(METHOD_FEATURES), set(METHOD_FEATURES) - OPTIONAL_FEATURES - set(told)
        require(not odd, f"{layer.name}: {sorted(odd)} are not among {METHOD_FEATURES}")
        require(not missing, f"{layer.name}: {sorted(missing)} are missing")
        require(all(np.isfinite(value) for value in told.values()), f"{layer.name}: not finite: {dict(told)}")
    require(np.isfinite(layer_statistics(case.context)).all(), "the observation is not finite")
