"""The interface of a method: its choices, what they cost, what they are predicted to lose, how to apply them.

Budget, loss model, allocators, environment, learner, log and plan know a method by this page alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor, nn

from ..configs.registry import Registry
from ..configs.schema import LayersConfig
from ..training.inputs import InputShape
from .costs.measures import Measured
from .structure import Floats, Kept, Layer, Structure

if TYPE_CHECKING:
    from .context import Context

Solve = Callable[[str, Tensor, Tensor, float], Tensor]

STEPS = "steps"  # of a recipe that is several, one after the other


@dataclass(frozen=True)
class Compressed:
    """A network of which only a part is kept; nothing has been fitted yet.

    Attributes:
        model: the smaller network, in eval mode; it may share with the dense one what is the same in both.
        recipe: what `Method.rebuild` needs to make the same of the dense architecture; JSON.
        columns: module → (k,) input channels that stay, ascending, where some went.
        rows: module → (k,) output channels that stay, ascending, where some went.
        cut: modules whose weights no longer compute what the dense ones did, and can be re-fitted.
        solve: (module, Gram matrix (groups, p, p), cross moments (groups, p, q), relative ridge) → the step
            (groups, p, q) of its weights that lowers the error most, among those of the method's form. None where any
            step is (ridge regression).
        hold: puts a network back into the method's form, in place; what is in it stays as it is. None where any weights
            are of it. One that trains in a form of its own has `trained`, see `training.step.TrainedForm`.
    """

    model: nn.Module
    recipe: dict[str, Any]
    columns: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    cut: frozenset[str] = frozenset()
    solve: Solve | None = None
    hold: Callable[[nn.Module], None] | None = None

    @property
    def channels(self) -> dict[str, Tensor | None]:
        """Module that was cut → which of the dense one's output channels it has; none for all."""
        found: dict[str, Tensor | None] = dict.fromkeys(sorted(self.cut))
        return found | {name: torch.from_numpy(rows) for name, rows in self.rows.items()}


class Method(Protocol):
    """A way to make a network smaller.

    Attributes:
        name: in configs, plans and logs.
        unit: what is counted, in the plural.
        criterion: the default one, and the one that `curves` are for.
        max_sparsity: of any one layer, unless the user says otherwise.
    """

    name: str
    unit: str
    criterion: str
    max_sparsity: float

    def find(self, model: nn.Module, input_shape: InputShape, config: LayersConfig) -> Structure:
        """The network's layers and their costs; the network is left as it was.

        Raises:
            PlanError: there is nothing to compress, or the config names what is not there.
            ValueError: the network does not run on images (C, H, W) of this shape, or on inputs of what other shape
                `example_images` makes.
        """
        ...

    def check_criterion(self, name: str) -> None:
        """Whether there is such a criterion, before anything takes long.

        Raises:
            ValueError: there is none; the near miss is named.
        """
        ...

    def curves(self, context: Context) -> list[Floats]:
        """For every layer, (choices,): what its consumers' output loses once re-fitted, 1 − R² in [0, 1].

        Never rises with the choice; the last is 0.
        """
        ...

    def sizes(self, context: Context, layer: Layer) -> Floats:
        """(units,) squared norm of every unit: what magnitude rules (LAMP, global magnitude) compare."""
        ...

    def features(self, context: Context, layer: Layer) -> Mapping[str, float]:
        """What the observation says of a layer's shape and weights; see `secateur.envs.observation.METHOD_FEATURES`."""
        ...

    def apply(self, context: Context, kept: Kept) -> Compressed:
        """The network that keeps so many units (layers,), by the context's criterion; nothing is fitted."""
        ...

    def masked(self, context: Context, kept: Kept) -> nn.Module:
        """The dense-shaped network that computes the same with zeros: the oracle `apply` must agree with."""
        ...

    def rebuild(self, model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
        """The smaller network round a dense architecture, ready for saved weights.

        Raises:
            ValueError: the recipe is not this method's, or is for another architecture.
        """
        ...


@runtime_checkable
class Leader(Protocol):
    """What a method has besides, that makes the weights smaller which another then does its own to.

    Attributes:
        own_settings: keys of the config's section `layers` that are for it alone.
    """

    own_settings: tuple[str, ...]

    def measured(self, structure: Structure, names: Sequence[str]) -> Measured:
        """What the tensors of these names, each once, measure, as a function of what it keeps."""
        ...


@runtime_checkable
class Follower(Protocol):
    """What a method has besides, that can do its own to a network which another has cut; it cuts no tensor itself.

    Its costs are `FollowingCost`; the first of a layer's parameters is the weight that it is about. A layer that can be
    its own but nothing besides has a reason, `alone`, and is left whole.

    Attributes:
        own_settings: keys of the config's section `layers` that are for it alone.
    """

    own_settings: tuple[str, ...]

    def narrowed(self, structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> Structure:
        """The same layers where parameters have these shapes, for the units kept that the dense network's have."""
        ...


def _made(name: str, maker: Callable[..., Any], _known: Mapping[str, Method]) -> Method:
    """The method that a class, or a function, of the user's makes without arguments."""
    try:
        method = maker()
    except TypeError as error:
        raise ValueError(f"method={name}: {error}; name what makes a method of no arguments, as a class does") from None
    wanted = [*Method.__annotations__, *(part for part in vars(Method) if not part.startswith("_"))]
    if missing := [part for part in wanted if not hasattr(method, part)]:
        raise ValueError(
            f"method={name} makes a {type(method).__name__} without {', '.join(missing)}: a method has all that "
            "secateur.pruners.Method has"
        )
    return cast(Method, method)


METHODS: Registry[Method] = Registry("method", _made)


class Step(BaseModel):
    """One application of a plan, by which a network on disk was made of another.

    Attributes:
        method: that made it.
        recipe: of `Compressed`, or several of them, `chained`.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: str
    recipe: dict[str, JsonValue]

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """One after the other.

        Raises:
            ValueError: they are not what `save_network` writes.
        """
        if self.recipe.keys() != {STEPS}:
            return [self.recipe]
        steps = self.recipe[STEPS]
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise ValueError(f"the recipe's {STEPS} are no list of recipes")
        return [step for step in steps if isinstance(step, dict)]


def chained(recipes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """One recipe of several by which the dense network is cut, one after the other."""
    return recipes[0] if len(recipes) == 1 else {STEPS: [dict(recipe) for recipe in recipes]}
