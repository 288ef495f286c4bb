from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.stats import spearmanr
from torch import nn

import secateur
import zoo
from secateur.commands.filters import colour_finding
from secateur.reports.colour import colour_selectivity


def images(name: str = "residual") -> secateur.Images:
    return secateur.Images(calibration=zoo.batches(name), search=zoo.batches(name, (30, 10), seed=9))


def mine(model: nn.Module | None = None) -> secateur.Session:
    """No config: nothing here costs anything."""
    return secateur.Session(model=model or zoo.make("residual"), images=images())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> secateur.Filters:
    folder = tmp_path_factory.mktemp("f") / "out"
    return secateur.filters(mine(), criterion="rar", out=folder)


def silenced(gone: list[int]) -> nn.Module:
    """The residual network with filters of its first convolution gone; the trunk's other producers stay whole."""
    model = zoo.make("residual")
    model.bn1.weight.data[gone] = 0.0
    model.bn1.bias.data[gone] = 0.0
    return model


def loss_and_accuracy(model: nn.Module, batches: zoo.Batches) -> tuple[float, float]:
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _ in batches]).double()
    labels = torch.cat([y for _, y in batches])
    return float(nn.functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).double().mean())


def test_filters_go_in_the_order_of_a_greedy_search_by_hand(drawn):
    alive, gone = [0, 1, 2, 3], []
    while len(alive) > 1:
        least = min(alive, key=lambda unit: loss_and_accuracy(silenced([*gone, unit]), images().calibration)[0])
        alive.remove(least)
        gone.append(least)
    assert [entry["filter"] for entry in drawn.summary["filters"]] == [*gone, *alive]


def test_every_filter_has_its_selectivity_and_what_is_left_without_it(drawn):
    weights = zoo.make("residual").conv1.weight.detach().double().numpy()
    entries = drawn.summary["filters"]
    removed = [entry["filter"] for entry in entries]
    selectivity = [entry["colour_selectivity"] for entry in entries]
    assert selectivity == pytest.approx(colour_selectivity(weights)[removed])
    assert [entry["norm"] for entry in entries] == pytest.approx(
        np.linalg.norm(weights.reshape(4, -1), axis=1)[removed]
    )
    for count, entry in enumerate(entries, start=1):
        accuracy = 100.0 * loss_and_accuracy(silenced(removed[:count]), images().search)[1]
        assert entry["search_accuracy_without"] == pytest.approx(accuracy, abs=2.6)  # one tie of logits in 40 images
    dense = 100.0 * loss_and_accuracy(silenced([]), images().search)[1]
    assert drawn.summary["dense_search_accuracy"] == pytest.approx(dense, abs=2.6)


def test_what_is_written_is_what_is_returned(drawn):
    tree = json.loads((drawn.folder / "filters.json").read_text())
    assert tree == drawn.summary
    assert (tree["layer"], tree["criterion"], tree["first"], tree["threshold"]) == ("conv1", "rar", 2, 0.5)
    assert tree["images"] == {"source": "the caller's images", "calibration": 64, "search": 40}
    assert {"secateur", "torch"} <= tree["versions"].keys()
    assert (drawn.folder / "config.yaml").is_file()


def test_the_figure_shows_the_filters(drawn):
    pixels = imread(drawn.folder / "filters.png")[..., :3]
    saturated = pixels.max(-1) - pixels.min(-1) > 0.3
    assert saturated.mean() > 0.05


def test_the_finding_is_told_by_counting() -> None:
    selectivity = np.array([0.9, 0.8, 0.2, 0.6, 0.1, 0.3])
    found = colour_finding(selectivity, 2, 0.5)
    assert (found["colour_selective_first"], found["colour_selective"]) == (2, 3)
    assert (found["share_first"], found["share"]) == (1.0, 0.5)
    rho, p = spearmanr(range(6), selectivity)
    assert found["rank_correlation"] == {"rho": pytest.approx(rho), "p": pytest.approx(p)}
    assert found["rank_correlation"]["rho"] < 0.0  # colour goes first
    assert colour_finding(np.full(4, 0.7), 2, 0.5)["rank_correlation"] is None
    assert colour_finding(selectivity, 6, 0.85)["share_first"] == pytest.approx(1 / 6)


def test_colours_are_those_of_the_pixels_before_normalisation(tmp_path):
    """A config knows what its images were divided by; a filter that is grey for pixels is grey."""
    model = zoo.make("residual")
    std = [0.2, 0.4, 0.8]
    model.conv1.weight.data[1] = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        std
    ).view(3, 1, 1)
    config = secateur.Config.model_validate(
        {"name": "mine", "budget": {"flops": 1.0}, "data": {"name": "folder", "mean": [0.5] * 3, "std": std}}
    )
    done = secateur.filters(secateur.Session(config, model=model, images=images()), out=tmp_path / "out")
    entry = next(entry for entry in done.summary["filters"] if entry["filter"] == 1)
    assert entry["colour_selectivity"] == pytest.approx(0.0, abs=1e-6)
    assert done.summary["std"] == std


class Two(nn.Module):
    """Two convolutions of the image, the second one grey; and one of three channels that are no image."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 5, 3)
        self.colour = nn.Conv2d(3, 3, 3, padding=1)
        self.each = nn.Conv2d(3, 3, 3, padding=1, groups=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner((self.colour(x) + self.each(x)).relu()).mean((2, 3))


def test_a_layer_is_taken_by_name(tmp_path):
    done = secateur.filters(mine(Two().eval()), layer="colour", first=1, out=tmp_path / "out")
    assert done.summary["layer"] == "colour"
    assert len(done.summary["filters"]) == 3
    assert done.summary["share_first"] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "inner"}, "layer 'inner' is no convolution of the image: only colour, each"),
        ({"layer": "colou"}, "did you mean colour"),
        ({"layer": "each"}, "the filters of each take 1 channel of the image, and only those of three colours"),
        ({"criterion": "carr"}, "criterion = 'carr': only car or rar.*did you mean car"),
        ({"first": 4}, "first = 4: colour has 3 filters"),
        ({"threshold": 1.5}, r"threshold = 1.5 is outside \[0, 1\)"),
    ],
)
def test_a_users_mistake_is_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        secateur.filters(mine(Two().eval()), out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_grey_images_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="take 1 channel of the image, and only those of three colours can be drawn"):
        secateur.filters(run.folder / "config.yaml", out=tmp_path / "out")


def test_a_network_that_convolves_no_image_is_refused(tmp_path):
    class Flat(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(3 * 64, 6), nn.ReLU(), nn.Linear(6, 5))

    with pytest.raises(ValueError, match="no two-dimensional convolution of this network takes the image itself"):
        secateur.filters(mine(Flat().eval()), out=tmp_path / "out")
