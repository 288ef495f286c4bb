"""The plan file: read back as written; whatever is wrong with it is said in one line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zoo
from secateur.configs import load_config
from secateur.configs.schema import LayersConfig
from secateur.networks import CifarResNet
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.context import Context
from secateur.pruners.method import METHODS
from secateur.pruners.plan import LayerPlan, RatioPlan, plan_path
from secateur.pruners.structure import PlanError, Structure
from secateur.storage.files import write_json


def make(structure: Structure, kept: list[int] | None = None, **changes: Any) -> RatioPlan:
    arguments: dict[str, Any] = {
        "architecture": "toy",
        "criterion": "l1",
        "budget": ("flops", 0.5),
        "figures": {"reward": 0.25},
        "allocator": "ddpg",
        "seed": 3,
        "candidates": 7,
        **changes,
    }
    chosen = np.array(kept if kept is not None else np.maximum(1, structure.units // 2))
    return RatioPlan.make(structure, chosen, **arguments)


def test_several_budgets_are_written_and_one_as_before(tmp_path: Path) -> None:
    structure = zoo.structure("vgg")
    for besides in ({}, {"params": 0.25}):
        plan = make(structure, besides=besides)
        plan.save(tmp_path / "plan.json")
        written = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["budget"]
        assert written == {"kind": "flops", "fraction": 0.5} | ({"besides": besides} if besides else {})
        again = RatioPlan.load(tmp_path)
        assert again == plan
        assert load_config("digits", again.budget.overrides).budget.asked == {"flops": 0.5, **besides}


@pytest.mark.parametrize(("name", "cut"), zoo.few_cases())
def test_a_plan_is_read_back_as_it_was_written(name: str, cut: str, tmp_path: Path) -> None:
    structure = zoo.structure(name, cut)
    kept = zoo.kept_of(zoo.draw(structure, 0))
    plan = make(structure, kept)
    plan.save(tmp_path / "run" / "plan.json")
    for path in (tmp_path / "run" / "plan.json", tmp_path / "run", str(tmp_path / "run")):
        again = RatioPlan.load(path)
        assert again == plan
    again.check(structure)
    assert again.kept.tolist() == kept
    assert again.cost == {kind: structure.fraction(kind, kept) for kind in ("flops", "params")}
    assert list(again.sparsities) == [layer.name for layer in structure.layers]
    assert not list((tmp_path / "run").glob(".*"))
    assert set(plan.provenance.versions) >= {"secateur", "torch", "numpy"}


@given(dense=st.integers(2, 5000), data=st.data())
def test_what_is_kept_follows_from_sparsity_at_any_size(dense: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, dense))
    layer = LayerPlan(name="x", sparsity=1.0 - kept / dense, kept=kept, units=dense, members=[])
    assert 0.0 <= layer.sparsity <= 1.0


def test_bad_counts_make_no_plan() -> None:
    with pytest.raises(PlanError, match=r"layer 0.0: 9 units kept is outside 1 … 8"):
        make(zoo.structure("vgg"), [9, 1, 1])


Change = Callable[[dict[str, Any]], Any]


def edit(*path: str | int, to: Any) -> Change:
    def change(tree: dict[str, Any]) -> None:
        node: Any = tree
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = to

    return change


def drop(*path: str | int) -> Change:
    def change(tree: dict[str, Any]) -> None:
        node: Any = tree
        for step in path[:-1]:
            node = node[step]
        del node[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("layers", 1, "sparsity", to=1.0), r"layer 2.0: sparsity 1 of 6 units does not keep 3"),
        (
            edit("layers", 1, "sparsity", to=-0.1),
            r"layer 2.0.sparsity = -0.1: input should be greater than or equal to 0",
        ),
        (edit("layers", 1, "sparsity", to=1.5), r"layer 2.0.sparsity = 1.5: input should be less than or equal to 1"),
        (edit("layers", 1, "sparsity", to="much"), r"layer 2.0.sparsity = 'much': input should be a valid number"),
        (edit("layers", 1, "sparsity", to=None), r"layer 2.0.sparsity = None: input should be a valid number"),
        (edit("layers", 1, "kept", to=0), r"layer 2.0: sparsity 0.5 of 6 units does not keep 0"),
        (edit("layers", 1, "kept", to=-1), r"layer 2.0.kept = -1: input should be greater than or equal to 0"),
        (edit("layers", 1, "units", to=0), r"layer 2.0.units = 0: input should be greater than or equal to 1"),
        (edit("layers", 1, "kept", to=5), r"layer 2.0: sparsity 0.5 of 6 units does not keep 5"),
        (edit("layers", 1, "keep", to=5), r"layer 2.0.keep: extra inputs are not permitted"),
        (edit("note", to=5), r"note: extra inputs are not permitted"),
        (drop("layers", 2, "kept"), r"layer 5.kept: field required"),
        (drop("layers", 0, "name"), r"layer 0.name: field required"),
        (drop("fingerprint"), r"fingerprint: field required"),
        (edit("layers", to=[]), r"layers = \[\]: list should have at least 1 item"),
        (edit("layers", to={}), r"layers = \{\}: input should be a valid list"),
        (edit("layers", 0, to=7), r"layer 0 = 7: input should be a valid dictionary"),
        (edit("budget", "fraction", to=1.5), r"budget.fraction = 1.5: input should be less than or equal to 1"),
        (
            edit("budget", "kind", to="watts"),
            r"budget.kind = 'watts': input should be 'flops', 'params', 'latency', 'size' or 'bops'",
        ),
        (edit("method", to=7), r"method = 7: input should be a valid string"),
    ],
)
def test_a_faulty_plan_is_refused_in_one_line(change: Change, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    tree = make(zoo.structure("vgg")).model_dump(mode="json")
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(PlanError, match=rf"plan.json is not a ratio plan: {message}") as caught:
        RatioPlan.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["NaN", "Infinity"])
def test_sparsity_is_a_number(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(make(zoo.structure("vgg")).model_dump_json().replace('"sparsity":0.5', f'"sparsity":{text}', 1))
    with pytest.raises(PlanError, match=r"layer 0.0.sparsity = (nan|inf): "):
        RatioPlan.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", r"is not text in UTF-8 \(byte 0\)"),
        (b"[]", r"is not a ratio plan: the file = \[\]: input should be a valid dictionary"),
        (b"{}", "is not a ratio plan: architecture: field required"),
        (b'{"schema_version": 2}', "is not a ratio plan: architecture: field required"),
        (b'{"schema_version": 1}', "is not a ratio plan: architecture: field required"),
        (b'{"schema_version": 3}', "has schema version 3, this secateur reads 1 and 2: upgrade"),
        (b'{"schema_version": "1.0"}', "has schema version '1.0', this secateur reads 1 and 2: upgrade"),
    ],
)
def test_what_is_no_plan_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=message) as caught:
        RatioPlan.load(path)
    assert "\n" not in str(caught.value)


def test_no_plan_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.json", tmp_path / "nothing"):
        with pytest.raises(
            PlanError, match=r"no plan at .*: give a plan.json, or a folder that `secateur train` wrote"
        ):
            plan_path(path)


def test_a_crash_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(path, {"good": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"bad": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == {"good": 1}


class Wrapped(nn.Module):
    """`residual` under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = zoo.make("residual")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def other(**arguments: Any) -> Structure:
    return find_layers(CifarResNet(1, **{"num_classes": zoo.CLASSES, "widths": (4, 6, 8), **arguments}), zoo.RGB)


@pytest.mark.parametrize(
    ("plan", "structure", "message"),
    [
        ("residual", zoo.structure("vgg"), r"\(toy\) cuts layer 'layer1.0.conv1'; this network has no such layer$"),
        ("residual", find_layers(Wrapped(), zoo.RGB), r"this network has no .* – did you mean body.layer1.0.conv1\?"),
        ("residual", other(widths=(4, 7, 8)), r"layer layer2.0.conv1 has 6 channels in the plan \(toy\), 7 here"),
        (
            "residual",
            other(num_classes=6),
            r"its layers agree, but a tensor outside .* \(another number of classes\?\)",
        ),
        (
            "vgg",
            find_layers(zoo.make("vgg"), zoo.RGB, ignore=["2.0"]),
            r"'2.0'; here it is left whole: excluded by the",
        ),
    ],
)
def test_a_plan_for_another_network_is_refused(plan: str, structure: Structure, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        make(zoo.structure(plan)).check(structure)
    assert "\n" not in str(caught.value)


def test_a_trunk_of_the_plan_is_left_whole_here() -> None:
    with pytest.raises(PlanError, match=r"cuts layer 'conv1'; here it is left whole: it is a residual trunk"):
        make(zoo.structure("residual", "all")).check(zoo.structure("residual", "inner"))


def test_a_layer_the_plan_does_not_know() -> None:
    with pytest.raises(PlanError, match=r"is for another network: layer conv1 is not in the plan"):
        make(zoo.structure("residual", "inner")).check(zoo.structure("residual", "all"))


def test_layers_in_another_order() -> None:
    structure = zoo.structure("vgg")
    plan = make(structure)
    turned = plan.model_copy(update={"layers": plan.layers[::-1]})
    with pytest.raises(PlanError, match="its layers come in another order"):
        turned.check(structure)


def test_other_coupling_names_where() -> None:
    structure = zoo.structure("vgg")
    plan = make(structure)
    layer = plan.layers[1].model_copy(update={"members": [*plan.layers[1].members, "9.weight:1"]})
    changed = plan.model_copy(update={"layers": [plan.layers[0], layer, plan.layers[2]]})
    with pytest.raises(PlanError, match=r"layer 2.0 is coupled differently here \(at 9.weight:1\)"):
        changed.check(structure)


@pytest.mark.parametrize(("name", "cut"), zoo.few_cases())
def test_a_plan_fits_its_own_network_only(name: str, cut: str) -> None:
    plan = make(zoo.structure(name, cut))
    plan.check(find_layers(zoo.make(name, seed=9), zoo.ZOO[name].shape, cut=cut))
    for stranger in ("vgg", "digits"):
        if stranger != name and zoo.structure(stranger).fingerprint != plan.fingerprint:
            with pytest.raises(PlanError):
                plan.check(zoo.structure(stranger))


def find_weights(model: nn.Module, shape: tuple[int, ...], **layers: Any) -> Structure:
    return METHODS["weights"].find(model, shape, LayersConfig(**layers))


def fifth(structure: Structure) -> list[int]:
    """About a fifth of the units of every layer."""
    return [structure.snap(i, 0.2 * layer.units) for i, layer in enumerate(structure.layers)]


@pytest.mark.parametrize("name", zoo.FEW)
def test_a_weight_plan_is_read_back_and_gives_the_same_masks(name: str, tmp_path: Path) -> None:
    model = zoo.make(name)
    structure = find_weights(model, zoo.ZOO[name].shape)
    make(structure, fifth(structure), criterion="magnitude").save(tmp_path / "plan.json")
    again = RatioPlan.load(tmp_path)
    again.check(structure)
    assert again.method == "weights"
    assert [layer.units for layer in again.layers] == structure.units.tolist()
    assert again.kept.tolist() == fifth(structure)
    context = Context(model, structure, zoo.batches(name, (4,)))
    planned = METHODS["weights"].apply(context, again.kept).model
    zeros = [int((planned.get_parameter(layer.name) == 0).sum()) for layer in structure.layers]
    assert zeros == (structure.units - again.kept).tolist()
    assert again.cost["params"] == pytest.approx(1 - sum(zeros) / sum(p.numel() for p in model.parameters()))


def linear(*sizes: int) -> Structure:
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
    return find_weights(nn.Sequential(*layers), sizes[:1])


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (linear(4, 6, 5), r"layer 1.weight has 18 weights in the plan \(toy\), 30 here"),
        (linear(4, 6), r"\(toy\) cuts layer '1.weight'; this network has no such layer – did you mean 0.weight\?"),
        (linear(4, 6, 3, 2), r"is for another network: layer 2.weight is not in the plan"),
        (linear(6, 4), r"cuts layer '1.weight'"),
        (linear(2, 12), r"cuts layer '1.weight'"),
        (
            find_weights(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), (4,)),
            r"its layers agree, but a tensor outside them differs in shape",
        ),
        (
            find_weights(nn.Sequential(nn.Conv1d(1, 6, 4), nn.Conv1d(6, 3, 1)), (1, 9)),
            r"its layers agree, but a tensor outside them differs in shape",
        ),
        (
            find_weights(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), (4,), ignore=["1"]),
            r"cuts layer '1.weight'; here it is left whole: excluded by the config",
        ),
    ],
)
def test_a_weight_plan_for_another_network_is_refused(structure: Structure, message: str) -> None:
    plan = make(linear(4, 6, 3), [12, 2])
    plan.check(linear(4, 6, 3))
    with pytest.raises(PlanError, match=message) as caught:
        plan.check(structure)
    assert "\n" not in str(caught.value)


def test_a_plan_of_another_method_names_the_remedy() -> None:
    weights = find_weights(zoo.make("vgg"), zoo.RGB)
    with pytest.raises(PlanError, match=r"\(toy\) prunes weights, not channels: set method: weights$"):
        make(weights).check(zoo.structure("vgg"))
    with pytest.raises(PlanError, match=r"prunes channels, not weights: set method: channels$"):
        make(zoo.structure("vgg")).check(weights)
    odd = make(zoo.structure("vgg")).model_copy(update={"method": "magic"})
    assert odd.unit == "units"
    with pytest.raises(PlanError, match=r"prunes magic, not channels"):
        odd.check(zoo.structure("vgg"))


FIRST = {
    "schema_version": 1,
    "architecture": "toy",
    "fingerprint": "",
    "criterion": "obs",
    "budget": {"kind": "flops", "fraction": 0.5},
    "cost": {"flops": 0.25, "params": 0.3},
    "figures": {"reward": 0.5},
    "provenance": {"allocator": "ddpg", "seed": 1, "candidates": 9, "versions": {"secateur": "0.1.0"}},
}


def first_schema(structure: Structure, **changes: Any) -> dict[str, Any]:
    """As version 0.1 wrote it: half of every layer."""
    layers = [
        {
            "name": layer.name,
            "sparsity": 0.5,
            "width": layer.units // 2,
            "dense_width": layer.units,
            "members": list(layer.members),
        }
        for layer in structure.layers
    ]
    return {**FIRST, "fingerprint": structure.fingerprint, "layers": layers, **changes}


@pytest.mark.parametrize("given", [{}, {"method": "channel"}])
def test_a_channel_plan_of_the_first_schema_is_read(given: dict[str, Any], tmp_path: Path) -> None:
    structure = zoo.structure("vgg")
    (tmp_path / "plan.json").write_text(json.dumps(first_schema(structure, **given)))
    plan = RatioPlan.load(tmp_path)
    plan.check(structure)
    assert (plan.schema_version, plan.method, plan.criterion) == (2, "channels", "obs")
    assert plan.kept.tolist() == [4, 3, 5]
    assert plan.provenance.candidates == 9
    plan.save(tmp_path / "again.json")
    assert RatioPlan.load(tmp_path / "again.json") == plan


def test_a_weight_plan_of_the_first_schema_is_read(tmp_path: Path) -> None:
    structure = linear(4, 6, 3)
    tree = first_schema(structure, method="magnitude", criterion="magnitude")
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    plan = RatioPlan.load(tmp_path)
    plan.check(structure)
    assert (plan.method, plan.kept.tolist()) == ("weights", [12, 9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("layers", 1, "width", to=5), r"layer 2.0: sparsity 0.5 of 6 units does not keep 5"),
        (drop("layers", 1, "width"), r"layer 2.0.kept: field required"),
        (edit("layers", 0, to=7), r"layer 0 = 7: input should be a valid dictionary"),
        (edit("note", to=5), r"note: extra inputs are not permitted"),
    ],
)
def test_a_faulty_plan_of_the_first_schema_is_refused_in_one_line(change: Change, message: str, tmp_path: Path) -> None:
    tree = first_schema(zoo.structure("vgg"))
    tree = json.loads(json.dumps(tree))
    change(tree)
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    with pytest.raises(PlanError, match=rf"plan.json is not a ratio plan: {message}") as caught:
        RatioPlan.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_channel_plan_without_a_method_is_still_one(tmp_path: Path) -> None:
    tree = make(zoo.structure("vgg")).model_dump(mode="json")
    del tree["method"]
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    loaded = RatioPlan.load(tmp_path)
    assert loaded == make(zoo.structure("vgg"))
    loaded.check(zoo.structure("vgg"))
