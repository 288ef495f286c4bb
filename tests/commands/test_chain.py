"""Plans one after the other: a network that is compressed already is compressed further, by another method."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import secateur
from secateur.agents import SearchProblem, get_allocator
from secateur.commands.cli import app
from secateur.networks.factors import Factorised
from secateur.pruners.method import Step
from secateur.reports.html import page


def planned(session: secateur.Session, rule: str = "uniform") -> secateur.RatioPlan:
    kept = get_allocator(rule, session.config.method).allocate(SearchProblem(session.budget, session.context))
    return session.plan_of(kept, allocator=rule, seed=0, candidates=0)


@pytest.fixture(scope="module")
def settings(quick, run) -> list[str]:
    return [*quick, f"network.weights={run.folder / 'dense.safetensors'}"]


BUDGETS = {"channels": "budget.flops=0.5", "weights": "budget.params=0.5", "bits": "budget.size=0.2"}


def made(settings: list[str], home: Path, *methods: str) -> list[Path]:
    """Plans, each made on the network that the one before it leaves."""
    found, weights = [], settings[-1]
    for name in methods:
        session = secateur.Session("digits", overrides=[*settings, weights, f"method={name}", BUDGETS[name]])
        found.append(home / f"{name}.json")
        planned(session).save(found[-1])
        applied = secateur.apply(found[-1], session, finetune=0, out=home / name)
        weights = f"network.weights={applied.folder}"
    return found


@pytest.fixture(scope="module")
def plans(settings, tmp_path_factory) -> list[Path]:
    return made(settings, tmp_path_factory.mktemp("plans"), "channels", "bits")


@pytest.fixture(scope="module")
def chained(plans, settings, tmp_path_factory) -> secateur.Chain:
    session = secateur.Session("digits", overrides=settings)
    return secateur.chain(plans, session, finetune=1, out=tmp_path_factory.mktemp("chain") / "out")


def require_chain(chained: secateur.Chain, settings: list[str], methods: list[str], home: Path) -> None:
    """The last folder alone holds all of it: what is gone, zeros, grids."""
    shutil.copytree(chained.folder / chained.stages[-1]["stage"], home)
    again = secateur.load(home)
    session = secateur.Session("digits", overrides=settings)
    with torch.no_grad():
        assert torch.equal(again(session.test[0][0]), chained.model(session.test[0][0]))
    told = json.loads((home / "network.json").read_text())
    assert [*(Step(**step).method for step in told["before"]), told["method"]] == methods
    parameters = [sum(p.numel() for p in model.parameters()) for model in (session.model, again)]
    assert (parameters[1] < 0.8 * parameters[0]) == ("channels" in methods)
    kernels = [m.weight for m in again.modules() if isinstance(m, torch.nn.Conv2d)]
    zeros = sum(int((w == 0).sum()) for w in kernels) / sum(w.numel() for w in kernels)
    assert (zeros > 0.4) == ("weights" in methods)
    assert all(len(row.unique()) <= 256 for w in kernels for row in w.flatten(1)) == ("bits" in methods)


def test_the_last_network_is_all_of_them_and_loads_alone(chained, settings, tmp_path):
    require_chain(chained, settings, ["channels", "bits"], tmp_path / "alone")


@pytest.mark.slow
def test_three_methods(settings, tmp_path):
    methods = ["channels", "weights", "bits"]
    plans = made(settings, tmp_path, *methods)
    chained = secateur.chain(plans, secateur.Session("digits", overrides=settings), finetune=1, out=tmp_path / "out")
    require_chain(chained, settings, methods, tmp_path / "alone")
    params = [row["params"] for row in chained.stages]
    assert params[2] == params[3] == pytest.approx(params[1] * 0.5, rel=0.1)


@pytest.mark.slow
def test_spatial_factors_then_factors_of_those_then_channels(settings, tmp_path):
    """3C: He, Zhang, Sun, ICCV 2017. Each plan lies beside the config that says which factors it is for."""
    plans, weights = [], settings[-1]
    for i, how in enumerate([["method=lowrank", "layers.factors=spatial"], ["method=lowrank"], ["method=channels"]]):
        session = secateur.Session("digits", overrides=[*settings, weights, *how])
        plans.append(secateur.plan(None, session, allocator="knapsack", flops=0.8, out=tmp_path / f"plan{i}").folder)
        applied = secateur.apply(plans[-1], session, finetune=0, out=tmp_path / f"network{i}")
        weights = f"network.weights={applied.folder}"
    session = secateur.Session("digits", overrides=settings)
    chained = secateur.chain(plans, session, finetune=0, out=tmp_path / "out")
    require_chain(chained, settings, ["lowrank", "lowrank", "channels"], tmp_path / "alone")
    for name, tensor in applied.model.state_dict().items():
        assert torch.equal(chained.model.state_dict()[name], tensor), name
    assert [row["flops"] <= 0.8**i for i, row in enumerate(chained.stages)] == [True] * 4
    twos = {name: module for name, module in chained.model.named_modules() if isinstance(module, Factorised)}
    inner = [name for name in twos if name.rpartition(".")[0] in twos]
    assert inner
    assert {(twos[name.rpartition(".")[0]].kind, twos[name].kind) for name in inner} == {("spatial", "channel")}


@pytest.mark.slow
def test_zeros_that_another_method_fills_are_told(settings, tmp_path):
    with pytest.warns(RuntimeWarning, match=r"came with [4-6]\d% of its weights at zero, and \d% are zero now"):
        made(settings, tmp_path, "weights", "channels")


def test_the_table_counts_from_the_dense_network(chained):
    rows = chained.stages
    assert [row["stage"] for row in rows] == ["dense", "1-channels", "2-bits"]
    assert rows[0]["flops"] == 1.0
    assert rows[1]["flops"] == rows[2]["flops"] <= 0.5
    for number, row in enumerate(rows[1:], 1):
        summary = json.loads((chained.folder / row["stage"] / "summary.json").read_text())
        assert summary["pruned"]["test_accuracy"] == row["test_accuracy"]
        assert summary["finetune_epochs"] == number - 1
    assert json.loads((chained.folder / "chain.json").read_text()) == {"measure": "top-1 %", "stages": rows}


def test_bytes_are_counted_as_they_are_stored(chained, plans, settings):
    dense, cut, few = (row["bytes"] for row in chained.stages)
    session = secateur.Session("digits", overrides=settings)
    for found, model in ((dense, session.model), (cut, secateur.load(chained.folder / "1-channels"))):
        assert found == 4 * sum(parameter.numel() for parameter in model.parameters())
    before = f"network.weights={chained.folder / '1-channels'}"
    session = secateur.Session("digits", overrides=[*settings, before, "method=bits", "budget.size=0.2"])
    assert few == session.structure.cost("size", secateur.RatioPlan.load(plans[1]).kept)


def test_the_report_shows_every_stage_and_the_packed_file(chained, settings, tmp_path):
    """What was not measured has no chart."""
    folder = shutil.copytree(chained.folder, tmp_path / "out")
    before = (folder / "report.html").read_text(encoding="utf-8")
    assert "digits: plans applied one after the other" in before
    for row in chained.stages:
        times = chained.stages[0]["bytes"] / row["bytes"]
        assert f"{row['stage']}: {row['bytes']:,} bytes, {times:.1f} times fewer than dense" in before
        assert f"{row['stage']}: {row['test_accuracy']:.2f} (top-1 %)" in before
    assert "packed: " not in before
    out = folder / "2-bits" / "small"
    secateur.export(folder / "2-bits", secateur.Session("digits", overrides=settings), format="packed", out=out)
    assert secateur.report(folder) == folder / "report.html"
    size = (out / "network.packed").stat().st_size
    assert f"packed: {size:,} bytes, {chained.stages[0]['bytes'] / size:.1f} times fewer than dense" in (
        folder / "report.html"
    ).read_text(encoding="utf-8")
    assert f"packed: {chained.stages[-1]['test_accuracy']:.2f} (top-1 %)" in (folder / "report.html").read_text("utf-8")
    run = secateur.open_run(folder)
    assert run.best.test_accuracy == chained.stages[-1]["test_accuracy"]
    for absent, others in (("test_accuracy", " bytes, "), ("bytes", "(top-1 %)")):
        stages = [stage.model_copy(update={absent: None}) for stage in run.summary.stages]
        less = page([replace(run, exports={}, summary=run.summary.model_copy(update={"stages": stages}))])
        assert [sign for sign in (" bytes, ", "(top-1 %)") if sign in less] == [others]
    shutil.copytree(chained.folder, tmp_path / "begun")
    (tmp_path / "begun" / "chain.json").unlink()
    assert "secateur apply --resume goes on with it" in page([secateur.open_run(tmp_path / "begun")])


def test_interrupted_between_two_or_in_the_last_it_ends_the_same(chained, plans, settings, tmp_path, monkeypatch):
    session = secateur.Session("digits", overrides=settings)
    from secateur.commands import chain as module

    calls, apply = [], module.apply

    def stopping(*given, **how):
        calls.append(how)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return apply(*given, **how)

    monkeypatch.setattr(module, "apply", stopping)
    with pytest.raises(KeyboardInterrupt):
        secateur.chain(plans, session, finetune=1, out=tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "2-bits", ignore_errors=True)
    done = secateur.chain(session=session, resume=tmp_path / "out")
    assert len(calls) == 3  # the first plan was not applied again
    for name, tensor in chained.model.state_dict().items():
        assert torch.equal(done.model.state_dict()[name], tensor), name
    told = [{k: v for k, v in row.items() if k != "latency_ms"} for row in done.stages]
    assert told == [{k: v for k, v in row.items() if k != "latency_ms"} for row in chained.stages]


def test_on_the_command_line(plans, settings, tmp_path):
    arguments = ["apply", *map(str, plans), "--config", "digits", "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, [*arguments, *(part for key in settings for part in ("--set", key))])
    assert done.exit_code == 0, done.output
    assert [row["stage"] for row in json.loads(done.stdout)["stages"]] == ["dense", "1-channels", "2-bits"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": slice(1)}, "two plans or more"),
        ({"plans": slice(None, None, -1)}, "plan"),  # bits of the pruned network do not fit the dense one
        ({"schedule": "rewound"}, "no schedule 'rewound'"),
        ({"resume": "elsewhere"}, "resume takes plans"),
    ],
)
def test_what_does_not_fit_is_named(plans, settings, change, message, tmp_path):
    how = {"schedule": change.get("schedule"), "resume": change.get("resume"), "out": tmp_path / "out"}
    with pytest.raises(ValueError, match=message):
        secateur.chain(plans[change.get("plans", slice(None))], secateur.Session("digits", overrides=settings), **how)
    assert not (tmp_path / "out").exists()  # it can be begun again there


def test_a_compressed_network_has_no_other_weights_to_begin_with(plans, settings, chained):
    before = f"network.weights={chained.folder / '1-channels'}"
    session = secateur.Session("digits", overrides=[*settings, before, "method=bits", "budget.size=0.2"])
    with pytest.raises(ValueError, match="compressed already: take another schedule"):
        secateur.apply(plans[1], session, finetune=1, schedule="scratch_e")
    wide = secateur.Session("digits", overrides=[*settings, before, "network.name=cifar_resnet20"])
    with pytest.raises(ValueError, match=r"network.weights = .*1-channels holds .*, the config names"):
        _ = wide.model
    whole = secateur.Session("digits", overrides=[*settings, "method=bits", "budget.size=0.2"])
    assert secateur.inspect(session).budgets["size"].whole < 0.8 * secateur.inspect(whole).budgets["size"].whole


def test_a_file_names_no_folder_elsewhere(plans, settings, tmp_path):
    (tmp_path / "out").mkdir()
    begun = {"stages": ["1-channels", "../elsewhere"], "finetune": 0, "schedule": None}
    (tmp_path / "out" / "chain-begun.json").write_text(json.dumps(begun))
    with pytest.raises(ValueError, match=r"chain-begun.json.*stages.*elsewhere"):
        secateur.chain(session=secateur.Session("digits", overrides=settings), resume=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"chain-begun\.json"):
        secateur.chain(resume=tmp_path / "nowhere")
