"""A compressed network on disk: a recipe (JSON) and weights (safetensors), from which `load` makes it again."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..configs.schema import NetworkConfig, ObjectiveConfig
from ..networks import build_network, load_tensors
from ..storage.files import check_sha256, sha256, write_json, write_tensors
from ..training.inputs import InputShape, as_json
from .method import METHODS

NETWORK_NAME = "network.json"
WEIGHTS_NAME = "weights.safetensors"
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
) -> None:
    """Write the weights, and what is needed to rebuild the smaller network round them.

    Args:
        model: the compressed network.
        folder: to write to.
        method: that made it.
        recipe: of `Compressed`.
        network: names the dense architecture; none where it was the caller's own module.
        input_shape: (C, H, W) of one image, or what `shape_of` says of other inputs.
        objective: what the network is for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_NAME, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    tree = {
        "schema_version": SCHEMA_VERSION,
        "network": None if network is None else {"name": network.name, "num_classes": network.num_classes},
        "kwargs": {} if network is None else network.kwargs,
        "input_shape": as_json(input_shape),
        "objective": objective.model_dump(mode="json"),
        "method": method,
        "recipe": dict(recipe),
        "sha256": sha256(folder / WEIGHTS_NAME),
    }
    write_json(folder / NETWORK_NAME, tree)


def load(folder: str | Path, model: nn.Module | None = None, *, trust_code: bool = False) -> nn.Module:
    """The compressed network that `apply` saved, in eval mode, on the CPU.

    Args:
        folder: that `apply` wrote.
        model: the dense architecture, where it was the caller's own module (its weights do not matter).
        trust_code: whether code that the folder names (`package.module:callable`) may run.

    Raises:
        ValueError, FileNotFoundError: nothing there, damaged, another run's weights, another architecture, or code that
            is not trusted.
    """
    folder = Path(folder)
    for name in (NETWORK_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}: give a folder that `secateur apply` wrote")
    try:
        tree = _as_schema_2(json.loads((folder / NETWORK_NAME).read_text(encoding="utf-8")))
        method, recipe, network = METHODS[tree["method"]], tree["recipe"], _network_of(tree)
        check_sha256(folder / WEIGHTS_NAME, tree.get("sha256"))
        state = load_file(folder / WEIGHTS_NAME)
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged ({error}): restore the file, or apply the plan anew") from error
    if model is None:
        if network is None:
            raise ValueError(f"{folder} holds a network of your own: pass load(folder, model=YourNetwork())")
        model = build_network(network, trust_code=trust_code)
    small = method.rebuild(copy.deepcopy(model).cpu(), recipe)
    try:
        load_tensors(small, state)
    except RuntimeError as error:
        raise ValueError(
            f"{folder} was made from another architecture: {str(error).splitlines()[-1].strip()}"
        ) from error
    return small.eval()


def _network_of(tree: Mapping[str, Any]) -> NetworkConfig | None:
    """The dense network that `network.json` names: checked as a config is, without its weights.

    Raises:
        ValueError, KeyError, TypeError: it is not what `save_network` writes.
    """
    if tree["network"] is None:
        return None
    named = NetworkConfig.model_validate({**tree["network"], "kwargs": tree["kwargs"], "weights": WEIGHTS_NAME})
    return named.model_copy(update={"weights": None})


def _as_schema_2(tree: dict[str, Any]) -> dict[str, Any]:
    """Version 0.1 wrote which positions of which tensors stay: none for single weights."""
    if tree.get("schema_version", 1) == 1:
        kept = tree["kept"]
        tree = {**tree, "method": "channels" if kept else "weights", "recipe": {"kept": kept, "masked": []}}
    return tree
