"""`secateur correlate`: whether what a search pays for agrees with what a finished plan is worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torch import nn

from ..agents import Allocation
from ..agents.allocators.searches import random_plans
from ..agents.log import WidthsLog
from ..configs import Config, check_config
from ..envs import CandidateEvaluator
from ..pruners.inference import accuracy, count_images
from ..pruners.plan import package_versions, write_json
from ..reports.coefficients import coefficients
from ..reports.figures import correlation_figure
from ..reports.progress import Reporter
from .apply import config_for
from .folders import check_free, claimed, free_folder, interrupted_run
from .task import CONFIG_NAME, Images, Task, describe, home_of, make_task, resolve_config

CORRELATE_NAME = "correlate.json"
ROWS_NAME = "rows.jsonl"
FEWEST = 3  # plans; two always correlate perfectly

PROXIES = {  # on the search images: of a row → what it is, {} being the search's repair
    "none_accuracy": "nothing repaired: accuracy",
    "adaptive_bn_accuracy": "adaptive BN: accuracy",
    "accuracy": "{}: accuracy",
    "reconstruction_loss": "{}: logit distance",
    "reward": "{}: reward",
}
TARGETS = {  # on the test images
    "test_accuracy": "final repair: accuracy",
    "test_reconstruction_loss": "final repair: logit distance",
    "finetuned_test_accuracy": "fine-tuned: accuracy",
}
LOSSES = {"reconstruction_loss", "test_reconstruction_loss"}  # the lower the better


@dataclass(frozen=True)
class Correlation:
    """What a correlation leaves behind.

    Attributes:
        rows: one a plan, as `rows.jsonl` holds them.
        coefficients: one a proxy and target, as `correlate.json` holds them.
        folder: where everything was written.
    """

    rows: list[dict[str, Any]]
    coefficients: list[dict[str, Any]]
    folder: Path


def correlate(
    config: Config | str | Path | None = None,
    *,
    plans: int | None = None,
    finetune_plans: int | None = None,
    finetune: int | None = None,
    model: nn.Module | None = None,
    images: Images | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    reporter: Reporter | None = None,
    trust_code: bool = False,
) -> Correlation:
    """Judge random plans on the budget by what a search looks at and by what counts in the end, and correlate.

    EagleEye's question (Li et al., ECCV 2020, sec. 3): does the accuracy of an unfinished candidate rank plans as their
    accuracy after fine-tuning does? Its two answers, with stale batch-norm statistics (no) and with adaptive ones
    (yes), stand beside the evaluation that the agent is paid by. Proxies are measured on the search images, repairs
    and batch-norm statistics use the calibration images, targets are measured on the test images. Fine-tuning starts
    from the final repair and uses the training split, which a pretrained network has seen before.

    Every plan's row is on disk before the next is judged; an interrupted run goes on with `resume`.

    Args:
        config: a built-in name, a YAML file or a `Config`; none is the embedded default.
        plans: random plans to judge, drawn by the config's seed; none takes the config's `correlate.plans`.
        finetune_plans: of them, the first so many are fine-tuned; none takes the config's.
        finetune: epochs, 0 for no fine-tuning; none takes the config's `correlate.finetune`.
        model: your own network instead of the config's.
        images: your own images instead of the config's.
        overrides: `section.key=value` on top of the config.
        out: an empty or new folder; none takes `runs/NAME-correlate`.
        resume: the folder of an interrupted run; config and numbers are its own.
        reporter: shows progress.
        trust_code: whether code that the config names (`package.module:callable`) may run.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    reporter = reporter or Reporter()
    asked = {"plans": plans, "finetune_plans": finetune_plans, "finetune": finetune}
    given = {name: value for name, value in asked.items() if value is not None}
    if resume is not None and (given or overrides or config is not None or out is not None):
        raise ValueError("--resume takes config, folder and numbers of plans from the run itself: leave them out")
    check_free(out)
    previous = interrupted_run(resume, "correlate", CORRELATE_NAME) if resume is not None else None
    source = previous / CONFIG_NAME if previous else config_for(model, config, None, None)
    resolved = resolve_config(source, overrides)
    if given:
        section = {**resolved.correlate.model_dump(), **given}
        resolved = check_config({**resolved.model_dump(), "correlate": section})
    _check_budget(resolved)
    task = make_task(
        resolved, folder=home_of(source, None), model=model, images=images, reporter=reporter, trust_code=trust_code
    )
    if task.test is None:
        raise ValueError("there are no test images to judge finished plans on: pass images.test")
    task.check_finetune(resolved.correlate.finetune)
    reporter.say(describe(task))
    drawn = random_plans(
        Allocation(task.budget, task.pruner.context, rng=np.random.default_rng(resolved.seed)), resolved.correlate.plans
    )
    default = Path("runs") / f"{task.config.name}-correlate"
    with claimed(previous or free_folder(out, default), "correlate", ROWS_NAME) as folder:
        task.save(folder)
        rows = _judge_all(task, drawn, folder, reporter)
        tree = _tree(task, rows)
        write_json(folder / CORRELATE_NAME, tree)
        correlation_figure(tree, folder / "correlate.png")
    reporter.show(correlation_table(tree))
    return Correlation(rows, tree["coefficients"], folder)


def _check_budget(config: Config) -> None:
    budget = config.budget
    if budget.fraction >= 1.0:
        raise ValueError(
            f"budget.{budget.kind} = {budget.fraction:g}: every plan on it is the dense network, and nothing can be "
            f"correlated; set budget.{budget.kind} below 1"
        )


def _judge_all(
    task: Task, drawn: Sequence[NDArray[np.int64]], folder: Path, reporter: Reporter
) -> list[dict[str, Any]]:
    log = WidthsLog(folder / ROWS_NAME, {*PROXIES, *TARGETS})
    rows = log.read(len(task.structure.layers))
    if [row["widths"] for row in rows] != [widths.tolist() for widths in drawn[: len(rows)]]:
        raise ValueError(f"{log.path} holds other plans than {CONFIG_NAME} beside it draws: start anew with --out")
    settings = task.config.correlate
    assert task.test is not None
    test = CandidateEvaluator(task.pruner, task.test)
    try:
        with reporter.bar("judge", len(drawn), len(rows)) as advance:
            for number, widths in enumerate(drawn[len(rows) :], len(rows)):
                start = time.perf_counter()
                row = judge(task, test, widths, settings.finetune if number < settings.finetune_plans else 0, reporter)
                row["seconds"] = round(time.perf_counter() - start, 3)
                log.write(row)
                rows.append(row)
                advance(f"reward {row['reward']:+.3f} test {row['test_accuracy']:.1f}%")
    except KeyboardInterrupt:
        reporter.say(f"stopped after {len(rows)} plans; go on with: secateur correlate --resume {folder}")
        raise
    return rows


def judge(
    task: Task, test: CandidateEvaluator, widths: NDArray[np.int64], epochs: int, reporter: Reporter
) -> dict[str, Any]:
    """A plan's proxies and targets.

    Args:
        task: whose evaluator is the search's.
        test: judges on the test images.
        widths: (layers,) of the plan.
        epochs: of fine-tuning; 0 for none, and then that target is none.
        reporter: shows the fine-tuning.
    """
    pruner, search = task.pruner, task.evaluator
    bare = search.judge(pruner.prune(widths), widths)
    adapted = search.judge(pruner.prune(widths, adaptive_bn=count_images(task.calibration), guard=False), widths)
    candidate = search.evaluate(widths)
    final = task.prune(widths)
    finished = test.judge(final, widths)
    task.finetune(final, epochs, reporter)
    return {
        "widths": widths.tolist(),
        "flops": candidate.flops,
        "params": candidate.params,
        "none_accuracy": bare.accuracy,
        "adaptive_bn_accuracy": adapted.accuracy,
        "accuracy": candidate.accuracy,
        "reconstruction_loss": candidate.reconstruction_loss,
        "reward": task.reward.reward(candidate),
        "test_accuracy": finished.accuracy,
        "test_reconstruction_loss": finished.reconstruction_loss,
        "finetuned_test_accuracy": accuracy(final, test.search) if epochs else None,
    }


def correlations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The coefficients of every proxy and target, over the rows that have both.

    Distances count with their sign turned, so that +1 always means: what the proxy prefers is better in the end.
    """
    found = []
    for target in TARGETS:
        judged = [row for row in rows if row[target] is not None]
        if len(judged) < FEWEST:
            continue
        for proxy in PROXIES:
            x, y = (
                np.array([row[key] for row in judged]) * (-1.0 if key in LOSSES else 1.0) for key in (proxy, target)
            )
            found.append({"proxy": proxy, "target": target, "n": len(judged), **coefficients(x, y)})
    return found


def _tree(task: Task, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `correlate.json` holds; all that the figure and the table need."""
    pruning, settings = task.config.pruning, task.config.correlate
    assert task.test is not None
    return {
        "config": task.config.name,
        "fingerprint": task.structure.fingerprint,
        "budget": {"kind": task.budget.kind, "fraction": task.budget.fraction},
        "criterion": pruning.criterion,
        "search_repair": pruning.search_repair,
        "final_repair": pruning.final_repair,
        "finetune_epochs": settings.finetune,
        "seed": task.config.seed,
        "images": {
            "source": task.source,
            "calibration": count_images(task.calibration),
            "search": count_images(task.search),
            "test": count_images(task.test),
        },
        "dense_search_accuracy": task.evaluator.dense.accuracy,
        "dense_test_accuracy": accuracy(task.model, task.test),
        "proxies": {key: label.format(pruning.search_repair) for key, label in PROXIES.items()},
        "targets": TARGETS,
        "losses": sorted(LOSSES),
        "versions": package_versions(),
        "coefficients": correlations(rows),
        "rows": list(rows),
    }


def correlation_table(tree: Mapping[str, Any]) -> Table:
    """A section a target, one row a proxy. Takes what `correlate.json` holds."""
    table = Table(
        title="Does the search pay for what counts?",
        box=box.SIMPLE_HEAD,
        caption="ρ Spearman with its 95 % bootstrap interval, r Pearson, τ Kendall: +1 where both prefer the same of n "
        "plans; rows on the search images, sections on the test images",
    )
    for column in ("", "ρ", "95 %", "r", "τ", "n"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for target in dict.fromkeys(entry["target"] for entry in tree["coefficients"]):
        table.add_row(tree["targets"][target], style="bold")
        for entry in tree["coefficients"]:
            if entry["target"] == target:
                interval = entry["spearman_interval"]
                table.add_row(
                    f"  {tree['proxies'][entry['proxy']]}",
                    _signed(entry["spearman"]),
                    "–" if interval is None else " … ".join(map(_signed, interval)),
                    _signed(entry["pearson"]),
                    _signed(entry["kendall"]),
                    str(entry["n"]),
                )
    return table


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"
