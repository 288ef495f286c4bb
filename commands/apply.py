"""`secateur apply`: a plan makes a physically smaller network, repaired, fine-tuned, measured and saved."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..configs import Config
from ..configs.schema import NetworkConfig
from ..networks import build_network, load_tensors
from ..pruners.files import check_sha256, sha256, write_tensors
from ..pruners.inference import accuracy, first_images, logits
from ..pruners.latency import measure_latency
from ..pruners.plan import PLAN_NAME, RatioPlan, plan_path, write_json
from ..pruners.shrink import narrow
from ..reports.figures import plan_figure
from ..reports.progress import Reporter
from .folders import check_free, new_folder
from .task import CONFIG_NAME, Images, Task, home_of, make_task, resolve_config
from .train import SUMMARY_NAME

NETWORK_NAME = "network.json"
WEIGHTS_NAME = "weights.safetensors"
TOLERANCE = 1e-4
WHOLE = {"flops": 1.0, "params": 1.0}  # what the dense network costs


@dataclass(frozen=True)
class Applied:
    """What applying a plan leaves behind.

    Attributes:
        model: the smaller network, in eval mode.
        folder: where it was saved; `secateur.load(folder)` gives it back.
        summary: what `summary.json` holds.
    """

    model: nn.Module
    folder: Path
    summary: dict[str, Any]


def apply(
    plan: RatioPlan | str | Path,
    *,
    config: Config | str | Path | None = None,
    model: nn.Module | None = None,
    images: Images | None = None,
    overrides: Sequence[str] = (),
    finetune: int | None = None,
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    trust_code: bool = False,
) -> Applied:
    """Apply a plan: shrink, check against the masked network, repair, fine-tune, measure, save.

    Args:
        plan: a plan, its file, or the run folder that holds it.
        config: where network and images come from; none takes the config beside the plan.
        model: your own network instead of the config's.
        images: your own images instead of the config's.
        overrides: `section.key=value` on top of the config.
        finetune: epochs; none takes the config's `finetune.epochs`.
        out: an empty or new folder; none takes `applied` beside the plan.
        reporter: shows progress.
        trust_code: whether code that the config names (`package.module:callable`) may run.

    Raises:
        PlanError: the plan is for another network.
        ValueError, FileNotFoundError: other bad input, in one line.
    """
    reporter = reporter or Reporter()
    if finetune is not None and finetune < 0:
        raise ValueError(f"finetune = {finetune}: a number of epochs, 0 or more")
    check_free(out)
    beside = None if isinstance(plan, RatioPlan) else plan_path(plan).parent
    plan = plan if isinstance(plan, RatioPlan) else RatioPlan.load(plan)
    task = task_for_plans([plan], config, beside, model, images, overrides, reporter, trust_code)
    folder = new_folder(out, (beside or Path("runs") / task.config.name) / "applied")

    masked = task.pruner.masked(plan.widths)
    difference = _largest_difference(task, masked, task.pruner.prune(plan.widths))
    reporter.say(f"masked and shrunk network agree: logits differ by at most {difference:.1e} of their spread")
    pruned = task.prune(plan.widths)
    repaired = None
    epochs = task.config.finetune.epochs if finetune is None else finetune
    if epochs:
        repaired = copy.deepcopy(pruned)
        task.finetune(pruned, epochs, reporter)

    models = {"dense": task.model, "masked": masked, "pruned": pruned}
    if repaired is not None:
        models["repaired"] = repaired
    reached = {kind: task.structure.fraction(kind, plan.widths) for kind in WHOLE}
    costs = {name: WHOLE if name in ("dense", "masked") else reached for name in models}
    rows = measure(task, models, costs, reporter)
    summary = {
        **rows,
        "finetune_epochs": epochs,
        "latency_batch": task.config.latency.batch,
        "masked_difference": difference,
        "plan": plan.provenance.model_dump(),
    }
    if task.config.budget.kind == "latency":
        found = summary["latency"] = _table_error(task, plan.widths, rows)
        reporter.say(
            "latency kept: {predicted:.1%} by the table, {measured:.1%} measured; dense: {dense_predicted_ms:.2f} ms "
            "by the table, {dense_measured_ms:.2f} ms measured".format(**found)
        )
    save_network(pruned, folder, task, task.structure.kept_positions(task.pruner.selection(plan.widths)))
    write_json(folder / SUMMARY_NAME, summary)
    plan.save(folder / PLAN_NAME)
    task.save(folder)
    plan_figure(plan, folder / "plan.png")
    titles = {
        "dense": "dense",
        "masked": "masked, nothing repaired",
        "repaired": "pruned and repaired",
        "pruned": f"… and fine-tuned, {epochs} epochs" if epochs else "pruned and repaired",
    }
    reporter.show(
        figures_table("The plan, applied", rows, titles, f"ms: one pass of {summary['latency_batch']} images")
    )
    return Applied(pruned, folder, summary)


def task_for_plans(
    plans: Sequence[RatioPlan],
    config: Config | str | Path | None,
    beside: Path | None,
    model: nn.Module | None,
    images: Images | None,
    overrides: Sequence[str],
    reporter: Reporter,
    trust_code: bool = False,
) -> Task:
    """The task that plans are applied to; each is checked against its layers.

    Raises:
        PlanError: a plan is for another network.
    """
    for plan in plans:
        plan.check_method("channel")
    config = config_for(model, config, beside, plans[0] if plans else None)
    resolved = resolve_config(config, overrides, folder=beside)
    if plans:
        asked = plans[0]
        resolved = resolved.model_copy(
            update={"pruning": resolved.pruning.model_copy(update={"criterion": asked.criterion})}
        )
    task = make_task(
        resolved, folder=home_of(config, beside), model=model, images=images, reporter=reporter, trust_code=trust_code
    )
    for plan in plans:
        plan.check(task.structure)
    return task


def config_for(
    model: nn.Module | None, config: Config | str | Path | None, beside: Path | None, plan: RatioPlan | None
) -> Config | str | Path | None:
    """The config given, or a minimal one for the caller's own network where there is none beside the plan."""
    if model is None or config is not None or (beside is not None and (beside / CONFIG_NAME).is_file()):
        return config
    budget = {"flops": 1.0} if plan is None else {plan.budget.kind: plan.budget.fraction}
    return Config.model_validate({"name": type(model).__name__, "budget": budget})


def save_network(model: nn.Module, folder: Path, task: Task, kept: Mapping[tuple[str, int], NDArray[np.int64]]) -> None:
    """Write the weights, and what is needed to rebuild the smaller network round them.

    Args:
        model: the pruned network.
        folder: to write to.
        task: that names the dense network.
        kept: as `narrow` takes it; empty where only single weights were pruned, and the network kept its shape.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = task.config.network
    tree: dict[str, Any] = {
        "schema_version": 1,
        "network": None if network is None else {"name": network.name, "num_classes": network.num_classes},
        "kwargs": {} if network is None else network.kwargs,
        "input_shape": list(task.input_shape),
        "kept": [{"tensor": name, "dim": dim, "positions": [int(p) for p in at]} for (name, dim), at in kept.items()],
    }
    write_tensors(folder / WEIGHTS_NAME, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    tree["sha256"] = sha256(folder / WEIGHTS_NAME)
    write_json(folder / NETWORK_NAME, tree)


def load(folder: str | Path, model: nn.Module | None = None, *, trust_code: bool = False) -> nn.Module:
    """The pruned network that `apply` or `magnitude` saved, in eval mode, on the CPU.

    Args:
        folder: that one of them wrote.
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
        tree = json.loads((folder / NETWORK_NAME).read_text(encoding="utf-8"))
        kept = {(entry["tensor"], entry["dim"]): np.array(entry["positions"]) for entry in tree["kept"]}
        network = _network_of(tree)
        check_sha256(folder / WEIGHTS_NAME, tree.get("sha256"))
        state = load_file(folder / WEIGHTS_NAME)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged ({error}): restore the file, or apply the plan anew") from error
    if model is None:
        if network is None:
            raise ValueError(f"{folder} holds a network of your own: pass load(folder, model=YourNetwork())")
        model = build_network(network, trust_code=trust_code)
    small = narrow(copy.deepcopy(model).cpu(), kept)
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


def _largest_difference(task: Task, masked: nn.Module, shrunk: nn.Module) -> float:
    """Over the logits' spread. The masked network is the oracle.

    Raises:
        RuntimeError: they do not agree; nothing is saved.
    """
    images = first_images(task.search, 100)
    expected = logits(masked, images)
    difference = (logits(shrunk, images) - expected).abs().max() / expected.std().clamp_min(torch.finfo().tiny)
    if not difference <= TOLERANCE:
        raise RuntimeError(
            "the shrunk network does not compute what the masked one computes (logits differ by "
            f"{float(difference):.1e} of their spread): leave layers out with layers.exclude until it does, "
            "and please report this network"
        )
    return float(difference)


def measure(
    task: Task, models: Mapping[str, nn.Module], costs: Mapping[str, Mapping[str, float]], reporter: Reporter
) -> dict[str, dict[str, float | None]]:
    """Test accuracy, the costs as given, and latency of every network; they are timed in turn."""
    with reporter.bar("measure", len(models)) as advance:
        latency = measure_latency(models, task.input_shape, task.config.latency)
        rows: dict[str, dict[str, float | None]] = {}
        for name, model in models.items():
            rows[name] = {
                "test_accuracy": None if task.test is None else accuracy(model, task.test),
                **costs[name],
                "latency_ms": latency[name],
            }
            advance(name)
    return rows


def _table_error(task: Task, widths: NDArray[np.int64], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What this machine's table says of the plan and of the dense network, beside what `measure` found."""
    dense, pruned = (float(rows[name]["latency_ms"]) for name in ("dense", "pruned"))
    return {
        "predicted": task.priced.fraction("latency", widths),
        "measured": pruned / dense,
        "dense_predicted_ms": task.priced.cost("latency", task.structure.widths) / 1e6,
        "dense_measured_ms": dense,
    }


def figures_table(
    title: str, rows: Mapping[str, Mapping[str, float | None]], titles: Mapping[str, str], note: str
) -> Table:
    """What `measure` found, side by side: a row for every title there are figures for."""
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        caption=f"test accuracy, FLOPs and parameters kept in per cent; {note}",
    )
    for column in ("network", "test", "FLOPs", "params", "ms"):
        table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
    for name, label in titles.items():
        if name in rows:
            row = rows[name]
            shown = row["test_accuracy"]
            table.add_row(
                label,
                "–" if shown is None else f"{shown:.2f}",
                f"{100 * (row['flops'] or 0):.1f}",
                f"{100 * (row['params'] or 0):.1f}",
                f"{row['latency_ms']:.2f}",
            )
    return table
