"""A compressed network on disk: a recipe (JSON) and weights (safetensors), from which `load` makes it again."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue
from torch import Tensor, nn

from ..configs.registry import admit
from ..configs.schema import NetworkConfig, ObjectiveConfig
from ..networks import build_network, check_tensors, load_tensors
from ..networks.attention import open_attention
from ..networks.checks import check_weights, made_by, unwrapped
from ..networks.copying import copied
from ..networks.opened import opened
from ..networks.world import undisturbed
from ..storage.files import check_finite, check_sha256, read_tensors, sha256, write_json, write_tensors
from ..storage.folders import check_free
from ..storage.packed import Coded, Packed, pack
from ..storage.reading import read_json, shown, validated
from ..training.inputs import InputShape, as_json, check_json
from .method import METHODS, Step

NETWORK_NAME = "network.json"
WEIGHTS_NAME = "weights.safetensors"
PACKED_NAME = "network.packed"  # recipe and weights in one file, as small as they are
REPAIRED_NAME = "repaired"  # the network before it is fine-tuned, in the folder of the one that is
SCHEMA_VERSION = 2


def save_network(
    model: nn.Module,
    folder: Path,
    *,
    method: str,
    recipe: Mapping[str, Any],
    network: NetworkConfig | None,
    input_shape: InputShape,
    objective: ObjectiveConfig,
    before: Sequence[Step] = (),
) -> None:
    """Write the weights, and what is needed to rebuild the smaller network round them; a frozen parameter stays frozen.

    Args:
        model: the compressed network.
        folder: to write to.
        method: that made it.
        recipe: of `Compressed`, or several of them, `chained`.
        network: names the dense architecture; none where it was the caller's own module.
        input_shape: (C, H, W) of one image, or what `shape_of` says of other inputs.
        objective: what the network is for.
        before: the steps by which the network that was compressed now had been made of its architecture.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    tree = {
        "schema_version": SCHEMA_VERSION,
        "network": None if network is None else {"name": network.name, "num_classes": network.num_classes},
        "kwargs": {} if network is None else network.kwargs,
        "input_shape": as_json(input_shape),
        "objective": objective.model_dump(mode="json"),
        "method": method,
        "recipe": dict(recipe),
        **({"before": [step.model_dump(mode="json") for step in before]} if before else {}),
    }
    _write(model, folder, tree)


def _write(model: nn.Module, folder: Path, tree: Mapping[str, Any]) -> None:
    tensors = {  # minus zero, which a mask makes of a negative weight, is zero: none of it need be told
        name: tensor + 0.0 if tensor.is_floating_point() else tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    check_finite(folder / WEIGHTS_NAME, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_NAME, tensors)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    write_json(folder / NETWORK_NAME, {**tree, "frozen": frozen, "sha256": sha256(folder / WEIGHTS_NAME)})


def save(model: nn.Module, folder: str | Path, *, like: str | Path) -> Path:
    """Save a compressed network that was trained on outside of secateur, so that `load` gives it back.

    Args:
        model: as `load` or `apply` gave it, with other weights.
        folder: an empty or new one.
        like: the folder that it came from: how the dense network is cut is copied from there.

    Returns:
        The folder.

    Raises:
        ValueError, FileNotFoundError: the folder is taken, nothing is at `like`, it is of a network of other tensors,
            or a weight is NaN or infinite.

    Warns:
        RuntimeWarning: weights that were zero there are not any more: pruning that is made of zeros is undone.
    """
    folder, like, model = Path(folder), Path(like), unwrapped(model)
    check_free(folder)
    found = _opened(like)
    state = found.state(math.inf)
    try:
        check_tensors(found.path, state, model)
        _check_indices(model, state)
    except ValueError as error:
        raise ValueError(f"the network is not the one in {like}: {' '.join(str(error).split())}") from None
    own = model.state_dict()
    filled = sum(int(((state[name] == 0) & (own[name].cpu() != 0)).sum()) for name in own if state[name].dim() > 1)
    if filled:
        warnings.warn(
            f"{filled:,} weights that are zero in {like} are not any more: if zeros are what was pruned, train with "
            "apply(train_fn=…), which keeps them",
            RuntimeWarning,
            stacklevel=2,
        )
    _write(model, folder, found.told.model_dump(mode="json", exclude={"frozen", "sha256"}))
    return folder


def pack_network(folder: Path, out: Path, changed: Mapping[str, Tensor] | None = None) -> list[Coded]:
    """Write the network that `save_network` wrote into a folder as one packed file, `PACKED_NAME`, into another.

    Nothing is lost: `load` of it gives the same weights, bit for bit.

    Args:
        folder: of the network.
        out: the other folder.
        changed: weights by name that are written in the place of the folder's.

    Returns:
        How each tensor was written.

    Raises:
        ValueError, FileNotFoundError: nothing there, or damaged.
    """
    found = _opened(folder)
    state = {name: (changed or {}).get(name, tensor) for name, tensor in found.state(math.inf).items()}
    return pack(out / PACKED_NAME, state, found.told.model_dump(mode="json", exclude={"sha256"}))


@undisturbed()
def load(
    folder: str | Path, model: nn.Module | Callable[[], nn.Module] | None = None, *, trust_code: bool = False
) -> nn.Module:
    """The compressed network that `apply` saved, in eval mode, on the CPU.

    Args:
        folder: that `apply` wrote, or that holds a packed network.
        model: the dense architecture, where it was the caller's own module: one (its weights do not matter, and it
            stays as it is), its class, or another function without arguments that makes one.
        trust_code: whether code that the folder names (`package.module:callable`) may run.

    Raises:
        ValueError, FileNotFoundError: nothing there, damaged, another run's weights, another architecture, or code that
            is not trusted.
        TypeError: `model` makes no network.
    """
    folder = Path(folder)
    if not (folder / NETWORK_NAME).is_file() and (folder / REPAIRED_NAME / NETWORK_NAME).is_file():
        raise FileNotFoundError(
            f"no {NETWORK_NAME} in {folder}: its fine-tuning is not finished; go on with secateur apply --resume "
            f"{folder}, or load {folder / REPAIRED_NAME}"
        )
    found = _opened(folder)
    told = found.told
    for step in told.steps:
        admit({"method": step.method}, trust_code=trust_code)
    with _undamaged(folder):
        recipes = [(METHODS[step.method], recipe) for step in told.steps for recipe in step.recipes]
        network = told.named(found.path)
        if network is not None and not trust_code:  # before a network of any size is made
            _check_classes(network.num_classes, found)
    if model is None:
        if network is None:
            raise ValueError(f"{folder} holds a network of your own: pass load(folder, model=YourNetwork)")
        model = build_network(network, trust_code=trust_code)
    model = unwrapped(model if isinstance(model, nn.Module) else made_by(model))
    check_weights(model)
    try:
        small = opened(copied(model).cpu())
        if not found.shapes.keys() <= small.state_dict().keys():  # saved before standardised weights were opened
            small = open_attention(copied(model).cpu())
        for method, recipe in recipes:
            small = method.rebuild(small, recipe)
        state = found.state(sum(tensor.numel() for tensor in small.state_dict().values()))
        check_tensors(found.path, state, small)
        _check_indices(small, state)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:  # a plug-in may raise any
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} was made from another architecture, or is damaged: {reason}") from error
    load_tensors(small, state)
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in told.frozen)
    return small.eval()


def is_saved(folder: Path) -> bool:
    """Whether there is a network of `apply`, or a packed one."""
    return (folder / NETWORK_NAME).is_file() or (folder / PACKED_NAME).is_file()


def load_further(folder: Path, network: NetworkConfig, *, trust_code: bool = False) -> tuple[nn.Module, list[Step]]:
    """The network that is compressed further, and the steps that made it of its architecture.

    Args:
        folder: that `apply` wrote.
        network: the architecture that a config names.
        trust_code: as in `load`.

    Raises:
        ValueError, FileNotFoundError: see `load`; or it is of another architecture, or of the caller's own.
    """
    told = _opened(folder).told
    theirs = told.network and {**told.network, "kwargs": told.kwargs}
    ours = {"name": network.name, "num_classes": network.num_classes, "kwargs": network.kwargs}
    if theirs is None:
        raise ValueError(
            f"{folder} holds a network of your own: pass it, Session(model=secateur.load({str(folder)!r}, …))"
        )
    if theirs != ours:
        raise ValueError(f"network.weights = {folder} holds {shown(theirs)}, the config names {shown(ours)}")
    return load(folder, trust_code=trust_code), told.steps


@contextlib.contextmanager
def _undamaged(folder: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{folder} is damaged ({error}): restore the file, or apply the plan anew") from error


@dataclass(frozen=True)
class _Opened:
    """What a folder holds; of a packed network nothing is decoded yet.

    Attributes:
        told: how the network is made.
        path: of the weights.
        shapes: of the tensors, by name.
        state: reads them, where they hold no more numbers than that.
    """

    told: _Saved
    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    state: Callable[[float], dict[str, Tensor]]


def _opened(folder: Path) -> _Opened:
    packed = folder / PACKED_NAME
    if packed.is_file() and not (folder / NETWORK_NAME).exists():
        with _undamaged(folder):
            file = Packed.open(packed)
            return _Opened(validated(_Saved, file.about, str(packed)), packed, file.shapes, file.tensors)
    for name in (NETWORK_NAME, WEIGHTS_NAME):
        if not (folder / name).exists():
            raise FileNotFoundError(f"no {name} in {folder}: give a folder that `secateur apply` wrote")
    with _undamaged(folder):
        told, weights = _read(folder / NETWORK_NAME), folder / WEIGHTS_NAME
        check_sha256(weights, told.sha256)
        state, _ = read_tensors(weights, ours=False)
    return _Opened(told, weights, {name: tuple(tensor.shape) for name, tensor in state.items()}, lambda _most: state)


class _Saved(BaseModel):
    """`network.json`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Literal[2]
    network: dict[str, JsonValue] | None
    kwargs: dict[str, JsonValue]
    input_shape: Annotated[JsonValue, AfterValidator(check_json)]
    objective: ObjectiveConfig = ObjectiveConfig()  # 0.1 knew no other
    method: str
    recipe: dict[str, JsonValue]
    before: list[Step] = []
    frozen: list[str] = []
    sha256: str | None = None

    @property
    def steps(self) -> list[Step]:
        """That make the network of its architecture, one after the other."""
        return [*self.before, Step(method=self.method, recipe=self.recipe)]

    def named(self, path: Path) -> NetworkConfig | None:
        """The dense network: checked as a config is, without its weights.

        Raises:
            ValueError: it is not what `save_network` writes.
        """
        if self.network is None:
            return None
        tree = {**self.network, "kwargs": self.kwargs, "weights": Path(WEIGHTS_NAME)}
        return validated(NetworkConfig, tree, f"{path}, network").model_copy(update={"weights": None})


def _read(path: Path) -> _Saved:
    """Of this version or of 0.1, which wrote which positions of which tensors stay: none for single weights."""
    tree = read_json(path)
    if isinstance(tree, dict) and tree.get("schema_version", 1) == 1 and "kept" in tree:
        kept = tree["kept"]
        tree = {key: value for key, value in tree.items() if key != "kept"}
        tree["schema_version"] = SCHEMA_VERSION
        tree |= {"method": "channels" if kept else "weights", "recipe": {"kept": kept} if kept else {"masked": []}}
    return validated(_Saved, tree, str(path))


def _check_classes(classes: int, found: _Opened) -> None:
    if classes not in {shape[0] for shape in found.shapes.values() if shape}:
        raise ValueError(f"network.num_classes = {classes}: no tensor of {found.path.name} has so many rows")


def _check_indices(small: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Buffers of integers say which channels go where: they follow from the recipe, and must not say otherwise."""
    for name, buffer in small.named_buffers():
        if (
            name in state
            and buffer.dim()
            and not buffer.is_floating_point()
            and not torch.equal(buffer.cpu(), state[name])
        ):
            raise ValueError(f"{name} in {WEIGHTS_NAME} is not what {NETWORK_NAME} says")
