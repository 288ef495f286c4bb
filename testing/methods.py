"""What every method must keep to; see `secateur.pruners.method`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from ..configs.schema import LayersConfig
from ..networks.inference import Batches
from ..pruners.method import METHODS, Method
from . import method_does as does
from . import method_says as says
from .method_case import Case
from .rules import check_rules, require
from .toys import toy_images, toy_networks

METHOD_RULES: Mapping[str, Callable[[Case], None]] = {
    "criterion": says.knows_its_criterion,
    "find": says.finds_layers,
    "ignore": says.ignores_what_it_is_told,
    "choices": says.choices_rise,
    "costs": says.costs_never_fall,
    "counts": says.counts_the_dense_network,
    "whole": does.keeping_all_is_dense,
    "oracle": does.masked_is_the_oracle,
    "no dearer": does.costs_no_more_than_dense,
    "recipe": does.recipe_makes_it_again,
    "repair": does.repair_is_finite,
    "sizes": says.sizes_are_per_unit,
    "curves": says.curves_fall_to_nothing,
    "features": says.features_are_known,
    "deterministic": does.says_the_same_twice,
}


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
        ValueError: a model without images, or the other way round; or one in training mode.
    """
    if (model is None) != (images is None):
        raise ValueError("give a model and its images, or neither: check_method(method, model, images)")
    if model is not None and model.training:
        raise ValueError("the model is in training mode, where batch norms change with every image: model.eval() first")
    name = method if isinstance(method, str) else str(getattr(method, "name", type(method).__name__))
    check_rules(f"method {name}", {"registered": _is_registered}, method, None)
    cases = toy_networks() if model is None else {type(model).__name__: model}
    for toy, network in cases.items():
        case = Case(METHODS[name], network, images or toy_images(network), config or LayersConfig(), seed)
        check_rules(f"method {name}, network {toy},", METHOD_RULES, case, network)


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
