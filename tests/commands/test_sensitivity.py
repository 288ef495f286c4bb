from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import secateur
import zoo
from secateur.configs import load_config
from secateur.pruners import Context
from secateur.pruners.channels.criteria import elimination
from secateur.pruners.channels.method import cut
from secateur.pruners.repair.gram import collect_moments, output_error, repair_from_moments

CRITERIA = ["first_k", "max_response", "obs"]
SPARSITIES = [0.25, 0.5, 0.75]


def images() -> secateur.Images:
    return secateur.Images(calibration=zoo.batches("residual"), search=zoo.batches("residual", (30, 10), seed=9))


def mine(config: secateur.Config | None = None) -> secateur.Session:
    """Without a config, too: nothing here costs anything."""
    return secateur.Session(config, model=zoo.make("residual"), images=images())


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> secateur.Sensitivity:
    return secateur.sensitivity(
        mine(),
        criteria=CRITERIA,
        sparsities=SPARSITIES,
        out=tmp_path_factory.mktemp("s") / "out",
    )


def test_one_point_a_layer_criterion_and_sparsity(measured):
    tree = json.loads((measured.folder / "sensitivity.json").read_text())
    layers = ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    assert tree["points"] == measured.points
    assert [(p["layer"], p["criterion"], p["asked"]) for p in measured.points] == [
        (layer, criterion, sparsity) for layer in layers for criterion in CRITERIA for sparsity in SPARSITIES
    ]
    assert tree["layers"] == [{"name": name, "units": units} for name, units in zip(layers, (4, 6, 8), strict=True)]
    assert (tree["repair"], tree["criteria"], tree["seed"]) == ("gram", CRITERIA, 0)
    assert tree["images"] == {"source": "the caller's images", "calibration": 64, "search": 40}
    assert {"secateur", "torch", "numpy"} <= tree["versions"].keys()
    assert tree["fingerprint"] == zoo.structure("residual").fingerprint
    assert load_config(measured.folder / "config.yaml").name == "CifarResNet"


def test_ctrl_c_keeps_the_points_measured(measured, monkeypatch, tmp_path):
    command, made = sys.modules["secateur.commands.sensitivity"], []
    measure = command._point

    def fifth(*args):
        made.append(1)
        if len(made) == 5:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(command, "_point", fifth)
    done = secateur.sensitivity(mine(), criteria=CRITERIA, sparsities=SPARSITIES, out=tmp_path / "out")
    assert done.points == measured.points[: len(done.points)]
    assert 4 <= len(done.points) < len(measured.points)
    assert json.loads((done.folder / "sensitivity.json").read_text())["points"] == done.points
    assert (done.folder / "sensitivity.png").is_file()


def test_a_point_is_a_network_cut_repaired_and_measured(measured):
    """Everything of one point, by hand."""
    model, structure = zoo.make("residual"), zoo.structure("residual")
    calibration, search = images().calibration, images().search
    order = elimination(Context(model, structure, calibration), structure.layers[1]).order
    compressed = cut(model, structure, structure.alone(1, order, 3))
    pruned, consumers = compressed.model, structure.layers[1].consumers
    repair_from_moments(compressed, model, collect_moments(model, consumers, calibration))
    error = output_error(compressed, model, collect_moments(model, consumers, search))
    with torch.no_grad():
        wanted, got = (torch.cat([network(x) for x, _ in search]) for network in (model, pruned))
    labels = torch.cat([y for _, y in search])
    drop = 100.0 * float((wanted.argmax(1) == labels).double().mean() - (got.argmax(1) == labels).double().mean())
    distance = (wanted - got).square().sum(1).mean() / wanted.var(0).sum()

    point = next(
        p for p in measured.points if (p["layer"], p["criterion"], p["asked"]) == ("layer2.0.conv1", "obs", 0.5)
    )
    assert (point["kept"], point["sparsity"]) == (3, 0.5)
    assert point["error"] == pytest.approx(error, rel=1e-5)
    assert point["reconstruction_loss"] == pytest.approx(float(distance), rel=1e-3)
    assert point["accuracy_drop"] == pytest.approx(drop, abs=2.6)  # a tie of logits may fall to either side
    assert point["flops"] == structure.fraction("flops", [4, 3, 8])


def test_the_figure_shows_every_curve(measured):
    pixels = imread(measured.folder / "sensitivity.png")[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    for colour in ("#7d858d", "#b23a48", "#2a6fbb"):  # of the three criteria
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert np.any(np.abs(pixels - wanted).max(-1) < 0.01)


def test_without_a_repair_more_is_lost_when_much_is_cut(measured, tmp_path):
    plain = secateur.sensitivity(
        mine(),
        layers=["layer3.0.conv1"],
        criteria=["obs"],
        sparsities=SPARSITIES,
        repair="none",
        out=tmp_path / "out",
    )
    repaired = [p for p in measured.points if (p["layer"], p["criterion"]) == ("layer3.0.conv1", "obs")]
    assert len(plain.points) == len(repaired) == 3
    for one, other in zip(plain.points, repaired, strict=True):
        assert one["kept"] == other["kept"]
    assert all(one["error"] > other["error"] for one, other in zip(plain.points[1:], repaired[1:], strict=True))
    assert json.loads((plain.folder / "sensitivity.json").read_text())["repair"] == "none"


def test_the_seed_draws_the_random_order(tmp_path):
    def errors(seed: int, folder: str) -> list[float]:
        config = secateur.Config.model_validate({"name": "mine", "seed": seed, "budget": {"flops": 1.0}})
        done = secateur.sensitivity(mine(config), criteria=["random"], sparsities=[0.5], out=tmp_path / folder)
        return [point["error"] for point in done.points]

    assert errors(0, "a") == errors(0, "b")
    assert errors(1, "c") != errors(0, "d")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"layers": ["layer1.0.conv2"]},
            r"no layer 'layer1.0.conv2' to cut: it is left whole \(it is coupled to conv1, .*did you mean",
        ),
        ({"layers": ["linear"]}, r"no layer 'linear' to cut: it is left whole \(.*output"),
        ({"layers": []}, "no layers to measure: name some of layer1.0.conv1"),
        ({"criteria": ["lass"]}, "did you mean lasso"),
        ({"criteria": []}, "at least one criterion"),
        ({"sparsities": []}, "at least one criterion and one sparsity"),
        ({"sparsities": [0.5, 1.0]}, r"sparsity 1 is outside \(0, 1\)"),
        ({"sparsities": [float("nan")]}, "sparsity nan is outside"),
        ({"repair": "sequential"}, "repair = 'sequential': only none or gram"),
    ],
)
def test_a_users_mistake_is_named_before_any_work(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        secateur.sensitivity(mine(), out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
