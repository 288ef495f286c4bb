"""What a task is: its loss, its score, and the features whose distance from the dense network's counts.

Nothing outside this module knows that a network tells classes apart. An objective says how a batch is taken apart, what
is trained and what criteria look at (`loss`), what plans are paid by (`score`, `total`), and what a repaired network
should still compute (`features`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..configs.registry import Registry, UnknownNameError, imported
from ..configs.schema import ObjectiveConfig
from .inputs import Detector, Inputs, call, count, describe, flat, leaves, parts, taken
from .part import whole

TARGETS = (
    "labels",
    "label",
    "targets",
    "target",
    "masks",
    "mask",
)  # of a batch that is a dict, the first that is there
OUTPUTS = ("logits", "out")  # of a network that returns several


class Objective(ABC):
    """A task. Derive from it and write `loss` and `score`; the rest has defaults.

    Attributes:
        name: in configs, plans and summaries.
        measure: what `total` is, with its unit, as tables call it.
    """

    name: str = "own"
    measure: str = "score %"

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of what the network returns for some images: a scalar, the mean over what counts."""

    @abstractmethod
    def score(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) how well each image is answered: higher is better, 1 at most; NaN where an image does not count."""

    def features(self, outputs: Any) -> Tensor:
        """(N, d) what the squared distance from the dense network is taken over: all floats that it returns."""
        return flat(outputs)

    def statistics(self, outputs: Any, targets: Any) -> Tensor:
        """(N, …) what `total` needs to know of each image: its score."""
        return self.score(outputs, targets)

    def total(self, statistics: Tensor) -> float:
        """The measure of many images, 0 … 100: here the mean of their scores in per cent.

        An objective whose measure is no mean (mIoU, mAP, R²) says other statistics, and sums them up here.
        """
        return 100.0 * float(statistics.double().nanmean())

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) the loss of every image alone."""
        alone = [slice(number, number + 1) for number in range(count(targets))]
        return torch.stack([self.loss(taken(outputs, one), taken(targets, one)) for one in alone])

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """What the network is called with, and the targets, of what a loader yields.

        Of a tuple or list the last is the targets; of a dict `labels`, `targets` or `masks` (or one of these). What is
        left is one input, or several: a tuple is passed by position, a dict by name, see `secateur.training.inputs`.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(batch, Mapping):
            found = [key for key in TARGETS if key in batch]
            if not found or len(batch) < 2:
                raise ValueError(f"is {describe(batch)}: expected inputs by name and {', '.join(TARGETS[:-1])} or mask")
            return {key: value for key, value in batch.items() if key != found[0]}, batch[found[0]]
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise ValueError(f"is {describe(batch)}: expected a pair (inputs, targets)")
        inputs, targets = (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
        if isinstance(inputs, list) and not isinstance(targets, list):
            inputs = tuple(inputs)  # DataLoader makes lists of tuples; a list of images comes with a list of targets
        return inputs, targets

    def outputs(self, model: nn.Module, inputs: Inputs) -> Any:
        """What score and statistics are of: what the network returns in evaluation mode."""
        return call(model, inputs)

    def training_loss(self, model: nn.Module, inputs: Inputs, targets: Any) -> Tensor:
        """The loss that a step of training lowers, of a network in training mode (detectors compute it themselves)."""
        return self.loss_in_training(whole(call(model, inputs)), targets)

    def loss_in_training(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of what a network returns in training mode, which may be more than what it returns otherwise."""
        return self.loss(outputs, targets)

    def answers(self, outputs: Any) -> Tensor | None:
        """(N, …) what a network decides, so that two can be told apart; none where it decides nothing."""
        return None

    def imitation(self, outputs: Any, wanted: Any, temperature: float) -> Tensor:
        """How far outputs are from the dense network's for the same images, a scalar: what distillation lowers.

        Here the mean squared error of the features. The temperature is of class scores.
        """
        ours, theirs = self.features(outputs), self.features(wanted)
        if ours.shape != theirs.shape:
            raise ValueError(
                f"the network returns {describe(outputs)} in training, the dense one {describe(wanted)}: one cannot be "
                "learnt from the other; set finetune.distill.weight=0"
            )
        return functional.mse_loss(ours, theirs)

    def smoothed(self, amount: float) -> Objective:
        """This objective with label smoothing.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(f"label_smoothing = {amount:g} is for cross-entropy, not for {self.name}: set it to 0")

    def check(self, outputs: Any, targets: Any) -> None:
        """Whether outputs and targets of the first images go together; nothing is ever broadcast.

        Raises:
            ValueError: they do not; in one line, with the shapes.
        """
        images = count(targets)
        checked = {"score": self.score(outputs, targets), "losses": self.losses(outputs, targets)}
        for what, values in checked.items():
            if tuple(values.shape) != (images,):
                raise ValueError(f"{self.name}: {what} of {images} images are {describe(values)}: expected ({images},)")
        if bool((checked["score"] > 1.0).any()):
            best = float(checked["score"].nan_to_num().max())
            raise ValueError(f"{self.name}: the score of an image is {best:g}: it must be 1 at most")
        if (rows_ := len(self.features(outputs))) != images:
            raise ValueError(f"{self.name}: features of {images} images have {rows_} rows: expected one for each")

    def check_targets(self, outputs: Any, targets: Any) -> None:  # noqa: B027 – many have nothing to check
        """Whether targets, of whichever images, are such as a network can answer that returns these outputs for some.

        Raises:
            ValueError: they are not; in one line.
        """

    def chance(self, targets: Any) -> float | None:
        """The measure of the best answer that looks at no image, for all targets together; none where it is unknown."""
        return None

    def influence(self, statistics: Tensor) -> Tensor:
        """(N,) what each image adds to the measure: their spread over √N is its standard error.

        Of a mean its terms. Otherwise the jackknife's pseudo-values (Tukey 1958): N · total − (N − 1) · the total
        without the image.
        """
        if type(self).total is Objective.total:
            return 100.0 * statistics.double()
        size, whole = len(statistics), self.total(statistics)
        stay = ~torch.eye(size, dtype=torch.bool)
        left = [self.total(statistics[row.to(statistics.device)]) for row in stay] if size > 1 else [whole]
        return size * whole - (size - 1) * torch.tensor(left, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class OneOutput(Objective):
    """An objective that looks at one tensor; in training also at those of auxiliary heads, which evaluation ignores.

    Auxiliary is what a network returns beside that tensor under a name that begins with `aux` (torchvision's GoogLeNet,
    Inception v3 and segmentation networks); or, in training mode alone, behind it in a tuple, of its shape (timm's).

    Attributes:
        output: of a network that returns several tensors, the one that counts, by its name or number; none takes
            `logits` or `out`, or the only one.
        auxiliary: weight of the loss of every auxiliary output, beside 1 of the other.
    """

    output: str | int | None = None
    auxiliary: float = 0.4

    def __post_init__(self) -> None:
        if not 0.0 <= self.auxiliary < float("inf"):
            raise ValueError(f"objective.kwargs.auxiliary = {self.auxiliary}: must be 0 or more")

    def outputs(self, model: nn.Module, inputs: Inputs) -> Any:
        """What the network returns.

        Raises:
            ValueError: it is a detector.
        """
        if isinstance(model, Detector):
            raise ValueError(f"the network is a detector ({type(model).__name__}): set objective: detection")
        return super().outputs(model, inputs)

    def loss_in_training(self, outputs: Any, targets: Any) -> Tensor:
        """With auxiliary · the loss of each auxiliary output.

        Source: Szegedy et al., CVPR 2015 (0.3, GoogLeNet); CVPR 2016 (0.4, Inception v3).
        """
        main, others = self._heads(outputs)
        loss = self.loss(main, targets)
        for tensor in others if self.auxiliary else ():
            loss = loss + self.auxiliary * self.loss(tensor, targets)
        return loss

    def _heads(self, outputs: Any) -> tuple[Any, list[Tensor]]:
        """What the loss is of, and the auxiliary outputs."""
        if isinstance(outputs, Tensor):
            return outputs, []
        unnamed = self.output is None and type(outputs) in (tuple, list)
        if unnamed and len({getattr(tensor, "shape", tensor) for tensor in outputs}) == 1:
            return outputs[0], list(outputs[1:])  # in evaluation it returns one tensor, or it would be asked which
        main = one_tensor(outputs, self.output, "the task's")
        return main, [part for name, part in parts(outputs) if name.startswith("aux") and part is not main]


OBJECTIVES: Registry[Callable[..., Objective]] = Registry("objective")


def make_objective(config: ObjectiveConfig, given: Objective | None = None, *, trust_code: bool = False) -> Objective:
    """The objective that a config names, or the caller's own.

    Args:
        config: its name and settings.
        given: the caller's; it takes the config's place.
        trust_code: whether a `package.module:callable` may be imported and called.

    Raises:
        ValueError: no such objective (the near miss is named), settings it does not take, code that is not trusted, or
            that makes no `Objective`.
        TypeError: what is given is no `Objective`.
    """
    if given is not None:
        return _checked(given, "objective=")
    name = config.name
    try:
        maker = imported("objective.name", name, trust_code=trust_code) if ":" in name else OBJECTIVES[name]
    except UnknownNameError as error:
        raise ValueError(f"{error}; one of your own: package.module:callable, or Session(…, objective=…)") from None
    try:
        made = maker(**config.kwargs)
    except TypeError as error:
        raise ValueError(f"objective.kwargs={config.kwargs} for {name}: {error}") from error
    try:
        return _checked(made, f"objective.name={name}")
    except TypeError as error:  # of what a file names, not of an argument
        raise ValueError(str(error)) from None


def _checked(objective: object, where: str) -> Objective:
    if not isinstance(objective, Objective):
        kind = objective.__name__ if isinstance(objective, type) else type(objective).__name__
        what = f"the class {kind}: make one, {kind}()" if isinstance(objective, type) else f"a {kind}"
        raise TypeError(f"{where} is {what}; an objective derives from secateur.Objective and has loss and score")
    return objective


def settings_of(objective: Objective) -> ObjectiveConfig:
    """What a config says of an objective: of one of the caller's own its name alone."""
    known: Any = objective
    kwargs = asdict(known) if is_built_in(objective) else {}
    return ObjectiveConfig(name=objective.name, kwargs=kwargs)


def identity(objective: Objective) -> str:
    """What tells an objective from another, as far as it can be told: class, name and settings; not its code."""
    return f"{type(objective).__qualname__} {settings_of(objective).model_dump_json()}"


def is_built_in(objective: Objective) -> bool:
    """Whether name and settings say all that it computes."""
    return type(objective).__module__.startswith(f"{__package__}.")


def one_tensor(outputs: Any, key: str | int | None, wanted: str) -> Tensor:
    """The tensor that an objective looks at, among all that a network returns.

    Args:
        outputs: a tensor, or several in a dict, list, tuple or dataclass.
        key: its name or number there; none takes `logits` or `out`, or the only one.
        wanted: what it should be, for the message.

    Raises:
        ValueError: it cannot be told which, or there is none of that name.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = dict(parts(outputs))
    if key is None:
        names = [name for name in OUTPUTS if isinstance(found.get(name), Tensor)]
        tensors: list[Tensor] = [*(found[name] for name in names), *leaves(outputs).values()]
        if names or len(tensors) == 1:
            return tensors[0]
        raise ValueError(
            f"the network returns {describe(outputs)}, expected {wanted}: say which with objective.kwargs.output"
        )
    tensor = found.get(str(key))
    if not isinstance(tensor, Tensor):
        raise ValueError(f"objective.kwargs.output={key!r}: the network returns {describe(outputs)}")
    return tensor


def check_labels(labels: Tensor, classes: int, ignore: int) -> None:
    """Whether labels, of any shape, are classes that a network tells; `ignore` stands for none.

    Raises:
        ValueError: one is not.
    """
    counted = labels[labels != ignore]
    if not counted.numel():
        return
    least, most = int(counted.min()), int(counted.max())
    if least < 0 or most >= classes:
        odd = least if least < 0 else most
        raise ValueError(
            f"a label is {odd}, but the network tells {classes} classes (0 … {classes - 1}): "
            "check num_classes and the data set"
        )
