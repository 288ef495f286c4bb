from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

import secateur
import zoo
from secateur.commands import correlate as module
from secateur.commands.correlate import PROXIES, TARGETS, correlations
from secateur.commands.session import Session
from secateur.configs import Repair, load_config
from secateur.networks.inference import accuracy, logits

COUNTS = {"plans": 4, "finetune_plans": 3, "finetune": 1}


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def written(folder):
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("check", "fingerprint")} for line in lines]


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory) -> secateur.Correlation:
    """On the network that `run` trained."""
    return secateur.correlate(run.folder / "config.yaml", **COUNTS, out=tmp_path_factory.mktemp("c") / "out")


@pytest.fixture(scope="module")
def session(run) -> Session:
    return Session(run.folder / "config.yaml")


def made_up(count, tuned):
    rng = np.random.default_rng(3)
    rows = [{key: float(rng.normal()) for key in (*PROXIES, *TARGETS)} for _ in range(count)]
    for i, row in enumerate(rows):
        row["test_reconstruction_loss"] = -row["reconstruction_loss"]
        row["none_accuracy"] = 10.0
        if i >= tuned:
            row["finetuned_test_accuracy"] = None
    return rows


def test_every_proxy_meets_every_target_and_distances_count_backwards():
    rows = made_up(7, tuned=4)
    found = {(entry["proxy"], entry["target"]): entry for entry in correlations(rows)}
    assert list(found) == [(proxy, target) for target in TARGETS for proxy in PROXIES]
    assert {target: found["accuracy", target]["n"] for target in TARGETS} == dict(zip(TARGETS, (7, 7, 4), strict=True))
    # one distance is the other's negative: what one prefers, the other does not
    assert found["reconstruction_loss", "test_reconstruction_loss"]["spearman"] == pytest.approx(-1.0)
    for proxy, target, sign, n in (
        ("quality", "test_accuracy", 1, 7),
        ("quality", "test_reconstruction_loss", -1, 7),
        ("reconstruction_loss", "finetuned_test_accuracy", -1, 4),
    ):
        x, y = (np.array([row[key] for row in rows[:n]]) for key in (proxy, target))
        assert found[proxy, target]["pearson"] == pytest.approx(sign * np.corrcoef(x, y)[0, 1])
    assert found["none_accuracy", "test_accuracy"] == {
        **{"proxy": "none_accuracy", "target": "test_accuracy", "n": 7, "spearman_interval": None},
        **{f"{name}{p}": None for name in ("spearman", "pearson", "kendall") for p in ("", "_p")},
    }


def test_a_target_that_fewer_than_three_plans_have_is_left_out():
    assert {entry["target"] for entry in correlations(made_up(5, tuned=2))} == set(list(TARGETS)[:2])


def test_a_row_is_what_compressor_and_evaluator_give_when_asked_directly(measured, session):
    assert [row["finetuned_test_accuracy"] is None for row in measured.rows] == [False] * 3 + [True]
    for row in measured.rows[:: len(measured.rows) - 1]:
        kept = np.array(row["kept"])
        assert row["none_accuracy"] == accuracy(session.compressor.compress(kept).model, session.search)
        adapted = session.compressor(kept, Repair(kind="none", adaptive_bn=100, guard=False))
        assert row["adaptive_bn_accuracy"] == accuracy(adapted, session.search)
        evaluated = session.evaluator.evaluate(kept)
        assert row["accuracy"] == evaluated.accuracy
        assert row["reconstruction_loss"] == pytest.approx(evaluated.reconstruction_loss)
        assert row["quality"] == pytest.approx(evaluated.accuracy / 100 - evaluated.reconstruction_loss)
        final = session.compressor(kept, Repair(kind="sequential", refit=True))
        dense, got = logits(session.model, session.test), logits(final, session.test)
        distance = (got - dense).square().sum(1).mean() / dense.var(0).sum()
        assert row["test_reconstruction_loss"] == pytest.approx(float(distance), rel=1e-3)
        assert row["test_accuracy"] == pytest.approx(
            accuracy(final, session.test), abs=1.1
        )  # a tie may fall either way
        assert row["flops"] <= 0.14


def test_the_fine_tuned_target_is_the_fine_tuned_network(measured, session):
    pruned = session.compress(np.array(measured.rows[0]["kept"]))
    before = torch.cat([p.detach().flatten() for p in session.model.parameters()])
    session.finetune(pruned, 1)
    assert measured.rows[0]["finetuned_test_accuracy"] == pytest.approx(accuracy(pruned, session.test), abs=1.1)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in session.model.parameters()]))


def test_everything_is_written(measured):
    tree = json.loads((measured.folder / "correlate.json").read_text())
    assert tree["rows"] == measured.rows == written(measured.folder)
    assert tree["coefficients"] == measured.coefficients == correlations(measured.rows)
    assert (tree["search_repair"], tree["final_repair"], tree["finetune_epochs"]) == ("sequential", "sequential", 1)
    assert tree["images"]["calibration"] == tree["images"]["search"] == tree["images"]["test"] == 100
    assert tree["proxies"].keys() == PROXIES.keys()
    assert load_config(measured.folder / "config.yaml").correlate.model_dump() == COUNTS
    pixels = imread(measured.folder / "correlate.png")[..., :3]
    blue = np.array([0x2A, 0x6F, 0xBB]) / 255
    seen = 0.7 * blue + 0.3  # through its transparency, on white
    assert np.sum(np.abs(pixels - seen).max(-1) < 0.02) > 4 * 15


def test_the_table_fits_a_narrow_terminal_and_marks_what_is_undefined():
    rows = made_up(7, tuned=4)
    tree = {"coefficients": correlations(rows), "proxies": PROXIES, "targets": TARGETS}
    console = Console(width=80, file=io.StringIO())
    console.print(module.correlation_table(tree))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert "…" not in [part[-1] for line in lines for part in line if len(part) > 1]  # nothing was cut short
    found = {(entry["proxy"], entry["target"]): entry for entry in tree["coefficients"]}
    shown = [line for line in lines if line[1:2] == ["quality"]]
    assert [line[-1] for line in shown] == ["7", "7", "4"]
    assert shown[0][2] == f"{found['quality', 'test_accuracy']['spearman']:+.2f}"
    assert [line[3:] for line in lines if line[:2] == ["nothing", "repaired:"]] == [
        ["–", "–", "–", "–", n] for n in ("7", "7", "4")
    ]


def test_an_interrupted_run_goes_on_and_ends_the_same(run, measured, tmp_path, monkeypatch):
    measure, evaluated = module.measure_plan, []

    def interrupted(*arguments):
        evaluated.append(arguments)
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(module, "measure_plan", interrupted)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        secateur.correlate(run.folder / "config.yaml", **COUNTS, out=folder)
    assert without_seconds(written(folder)) == without_seconds(measured.rows[:2])
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"kept": [1, ')  # torn
    resumed = secateur.correlate(resume=folder)
    assert len(evaluated) == 3 + 2
    assert without_seconds(resumed.rows) == without_seconds(measured.rows)
    assert resumed.coefficients == measured.coefficients
    assert (folder / "correlate.png").exists()
    with pytest.raises(ValueError, match="is finished"):
        secateur.correlate(resume=folder)
    (folder / "correlate.json").unlink()
    with pytest.raises(ValueError, match="leave them out"):
        secateur.correlate(resume=folder, plans=9)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0\n", "seed: 1\n", 1))
    with pytest.raises(ValueError, match="holds other plans"):
        secateur.correlate(resume=folder)


def images(**changes) -> secateur.Images:
    given = {"test": zoo.batches("residual", (20,), seed=5), "train": zoo.batches("residual", (16,), seed=6), **changes}
    return secateur.Images(
        calibration=zoo.batches("residual"), search=zoo.batches("residual", (30, 10), seed=9), **given
    )


def test_your_own_network_and_images(tmp_path):
    config = secateur.Config.model_validate({"name": "mine", "budget": {"params": 0.6}})
    session = Session(config, model=zoo.make("residual"), images=images(train=None))
    done = secateur.correlate(session, plans=5, out=tmp_path / "out")
    assert len(done.rows) == 5
    assert all(row["params"] <= 0.6 for row in done.rows)
    assert {entry["target"] for entry in done.coefficients} == set(list(TARGETS)[:2])  # nothing was fine-tuned
    assert json.loads((done.folder / "correlate.json").read_text())["proxies"]["quality"] == "sequential: quality"


@pytest.mark.parametrize(
    ("budget", "changes", "arguments", "message"),
    [
        (1.0, {}, {}, "budget.flops = 1: every plan on it is the dense network"),
        (0.5, {}, {"plans": 2}, "correlate.plans = 2: .*greater than or equal to 3"),
        (0.5, {}, {"finetune_plans": 1}, "correlate.finetune_plans = 1: .*greater than or equal to 3"),
        (0.5, {}, {"finetune": -1}, "correlate.finetune = -1"),
        (0.5, {"test": None}, {}, "no test images"),
        (0.5, {"train": None}, {"finetune": 1}, "no training images"),
        (0.5, {}, {"plans": 100_000}, "only .* differ on this budget: ask for fewer"),
    ],
)
def test_a_users_mistake_is_named_before_any_work(budget, changes, arguments, message, tmp_path):
    config = secateur.Config.model_validate({"name": "mine", "budget": {"flops": budget}})
    session = Session(config, model=zoo.make("residual"), images=images(**changes))
    with pytest.raises(ValueError, match=message):
        secateur.correlate(session, out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
