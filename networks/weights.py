"""Read weights into a network: safetensors, or checkpoints torch can load without running code."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..storage.files import read_tensors
from ..storage.reading import regular

SUFFIXES = (".safetensors", ".th", ".pt", ".pth", ".tar")
_NESTED = ("state_dict", "model")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def load_weights(model: nn.Module, path: str | Path, search_folders: Sequence[Path] = ()) -> None:
    """Load weights strictly: every tensor of the network, and no other.

    A `{"state_dict": …}` around the tensors and DataParallel's `module.` before their names are taken off. Batch
    norm's step counters may be missing, and so may a place for the auxiliary heads of a GoogLeNet or Inception
    built without them.

    Args:
        model: changed in place; left as it was where anything is wrong.
        path: `.safetensors`, or `.th`, `.pt`, `.pth`, `.tar`.
        search_folders: where a relative path is looked for, after the working directory.

    Raises:
        FileNotFoundError: no such file; the message names every place.
        ValueError: not a checkpoint, a missing or unexpected tensor, a wrong shape, NaN or infinity.
    """
    file = find_weights(path, search_folders)
    state = _fitted(_read(file), model)
    check_tensors(file, state, model)
    load_tensors(model, state)


def check_tensors(file: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Whether tensors are a network's: their names, shapes and kinds of numbers, all of them finite.

    Raises:
        ValueError: they are not; the first fault is named.
    """
    expected = model.state_dict()
    _check_names(file, state, expected, model)
    _check_shapes(file, state, expected, model)
    for name, tensor in state.items():
        mine = expected[name]
        kinds = [(t.is_floating_point(), t.is_complex()) for t in (tensor, mine)]
        if mine.dim() and kinds[0] != kinds[1]:  # a counter may have been written as any number
            raise ValueError(f"{file}: {name} holds {tensor.dtype} numbers, the network's are {mine.dtype}")
        if mine.is_floating_point() and not bool(torch.isfinite(tensor.to(mine.dtype)).all()):
            raise ValueError(f"{file}: {name} holds NaN or infinity: the training that made it diverged")


def load_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` for tensors that come without the versions of their modules, which MNASNet insists on.

    Raises:
        RuntimeError: they do not fit.
    """
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned)


def find_weights(path: str | Path, search_folders: Sequence[Path] = ()) -> Path:
    """The file: as given, else in the first of the folders that has it.

    Raises:
        FileNotFoundError: nowhere; the message names every place.
        ValueError: it is a folder, or no file.
    """
    given = Path(path).expanduser()
    candidates = [given, *([] if given.is_absolute() else [folder / given for folder in search_folders])]
    for place in candidates:
        if place.is_file():
            return place
    if given.is_dir():
        raise ValueError(f"network.weights={given} is a folder: give the file ({', '.join(SUFFIXES)})")
    if given.exists():
        return regular(given)
    looked = ", ".join(str(place.absolute()) for place in candidates)
    raise FileNotFoundError(f"no weights {given}: looked at {looked}; set network.weights=FILE")


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name."""
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: unknown kind of checkpoint {file.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    if file.suffix == ".safetensors":
        return read_tensors(file, ours=False)[0]
    try:
        content = torch.load(regular(file), map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file makes the unpickler fail in any way there is
        raise ValueError(
            f"{file} is not a checkpoint that loads safely (weights_only=True): {_one_line(error)}; "
            "save model.state_dict() and nothing else"
        ) from error
    return _state_dict(file, content)


def _state_dict(file: Path, content: Any) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a state_dict: tensors by name")
    if not content:
        raise ValueError(f"{file} holds no tensors")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{file} holds no state_dict: {name!r} is a {type(value).__name__}, expected a tensor")
    return {str(name): tensor for name, tensor in content.items()}


def _fitted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Names as the network has them, with what may be missing or too much put right."""
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if getattr(model, "aux_logits", None) is False:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_AUXILIARY)}
    counters = {name: t for name, t in model.state_dict().items() if name.endswith("num_batches_tracked")}
    return {**counters, **state}


def _check_names(file: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: nn.Module) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    faults = []
    if missing:
        faults.append(f"{missing[0]} is missing{_more(missing)}")
    if unexpected:
        faults.append(f"{unexpected[0]} is not in the network{_more(unexpected)}")
    if faults:
        raise ValueError(f"{file} is not of this network ({type(model).__name__}): {', '.join(faults)}")


def _check_shapes(file: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: nn.Module) -> None:
    wrong = [name for name, tensor in expected.items() if state[name].shape != tensor.shape]
    if not wrong:
        return
    last = _last_layer(model)
    if all(name.rpartition(".")[0] == last and state[name].shape[1:] == expected[name].shape[1:] for name in wrong):
        found, wanted = len(state[wrong[0]]), len(expected[wrong[0]])
        raise ValueError(
            f"{file}: checkpoint has {found} classes, network.num_classes is {wanted}: set network.num_classes={found}"
        )
    name = wrong[0]
    raise ValueError(
        f"{file}: {name} has shape {tuple(state[name].shape)}, the network's is {tuple(expected[name].shape)}"
        f"{_more(wrong)}"
    )


def _last_layer(model: nn.Module) -> str:
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers else ""


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
