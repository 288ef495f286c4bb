"""`secateur compare`: plans against hand-set ratios and random search, at the same cost, on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torch import Tensor, nn

from ..agents import Allocation, Allocator, get_allocator
from ..agents.log import CANDIDATES_NAME, CandidateLog
from ..configs import Config
from ..envs import Evaluation, Evaluator
from ..pruners.inference import logits
from ..pruners.layers import PlanError
from ..pruners.plan import RatioPlan, plan_path, write_json
from ..reports.figures import comparison_figure
from ..reports.progress import Reporter
from .apply import task_for_plans
from .folders import check_free, claimed, free_folder, interrupted_run
from .task import CONFIG_NAME, Images, Task, check_workers, describe, judge_finalists

COMPARE_NAME = "compare.json"
DEFAULT_CANDIDATES = 100


@dataclass(frozen=True)
class Comparison:
    """What a comparison leaves behind.

    Attributes:
        rows: one an allocator and seed, as `compare.json` holds them.
        plans: the plans behind the rows.
        folder: where everything was written.
    """

    rows: list[dict[str, Any]]
    plans: list[RatioPlan]
    folder: Path


def compare(
    plans: Sequence[RatioPlan | str | Path] = (),
    *,
    config: Config | str | Path | None = None,
    model: nn.Module | None = None,
    images: Images | None = None,
    against: Sequence[str] | None = None,
    candidates: int | None = None,
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    finetune: int = 0,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    ray_address: str | None = None,
    reporter: Reporter | None = None,
    trust_code: bool = False,
) -> Comparison:
    """Judge plans and other allocators alike: same cost, same repair, same search and test images.

    Every candidate that an allocator judges is on disk before the next (with workers: before the next of its
    generation is looked at); an interrupted comparison goes on with `resume` and the same arguments, and judges none
    of them again.

    Args:
        plans: plans, their files or run folders; may be none if a config is given.
        config: where network and images come from; none takes the config beside the first plan.
        model: your own network instead of the config's.
        images: your own images instead of the config's.
        against: allocators; none takes the config's `compare.against`.
        candidates: a search allocator may judge; none takes the config's, else as many as the plans' own searches.
        seeds: of the allocators that draw; the others get one row.
        overrides: `section.key=value` on top of the config.
        finetune: epochs every row is fine-tuned for, alike.
        out: an empty or new folder; none takes `compare` beside the first plan, else `runs/NAME-compare`.
        resume: the folder of an interrupted comparison; config and overrides are its own.
        ray_address: of a Ray cluster that judges candidates, instead of the config's.
        reporter: shows progress.
        trust_code: whether code that the config names (`package.module:callable`) may run.

    Raises:
        PlanError: a plan is for another network, or the plans have different budgets or criteria.
        ValueError, FileNotFoundError: other bad input, in one line.
        ImportError: an allocator is made with an extra that is not installed.
    """
    reporter = reporter or Reporter()
    if finetune < 0:
        raise ValueError(f"finetune = {finetune}: a number of epochs, 0 or more")
    for name in against or ():
        get_allocator(name)  # unknown, or not installed: said before the network is looked at
    check_free(out)
    previous = interrupted_run(resume, "compare", COMPARE_NAME) if resume is not None else None
    if previous:
        config, overrides = previous / CONFIG_NAME, ()
    paths = [plan for plan in plans if not isinstance(plan, RatioPlan)]
    beside = plan_path(paths[0]).parent if paths else None
    loaded = [plan if isinstance(plan, RatioPlan) else RatioPlan.load(plan) for plan in plans]
    _check_alike(loaded)
    if loaded:
        overrides = [*overrides, f"budget.{loaded[0].budget.kind}={loaded[0].budget.fraction}"]
    task = task_for_plans(loaded, config, beside, model, images, overrides, reporter, trust_code)
    chosen = [get_allocator(name) for name in (task.config.compare.against if against is None else against)]
    check_workers(task.config, ray_address, trust_code)
    reporter.say(describe(task))
    if candidates is None:
        candidates = task.config.compare.candidates or max(
            (plan.provenance.candidates for plan in loaded), default=DEFAULT_CANDIDATES
        )
    default = beside / "compare" if beside else Path("runs") / f"{task.config.name}-compare"
    with claimed(previous or free_folder(out, default), "compare", CANDIDATES_NAME) as folder:
        task.save(folder)
        return _compare(task, loaded, chosen, seeds, candidates, finetune, folder, ray_address, reporter)


def _compare(
    task: Task,
    loaded: list[RatioPlan],
    chosen: Sequence[Allocator],
    seeds: Sequence[int],
    candidates: int,
    finetune: int,
    folder: Path,
    ray_address: str | None,
    reporter: Reporter,
) -> Comparison:
    log = CandidateLog(folder / CANDIDATES_NAME, len(task.structure.layers))
    task.evaluator.known.update(log.known)
    with task.judges(ray_address) as evaluator:
        for allocator in chosen:
            for seed in seeds if allocator.searches else seeds[:1]:
                loaded.append(_allocate(task, evaluator, allocator, seed, candidates, log, reporter))

    rows: list[dict[str, Any]] = []
    correct: list[Tensor | None] = []
    with reporter.bar("judge", len(loaded)) as advance:
        for i, plan in enumerate(loaded):
            row, hits = _judge(task, plan, finetune, reporter)
            name = f"plans/{i}-{plan.provenance.allocator}-{plan.provenance.seed}.json"
            plan.save(folder / name)
            rows.append({**row, "plan": name})
            correct.append(hits)
            advance(plan.provenance.allocator)
    _add_gains(rows, correct)
    write_json(
        folder / COMPARE_NAME,
        {
            "config": task.config.name,
            "budget": {"kind": task.budget.kind, "fraction": task.budget.fraction},
            "repair": task.config.pruning.final_repair,
            "finetune_epochs": finetune,
            "candidates": candidates,
            "rows": rows,
        },
    )
    comparison_figure(rows, loaded, folder / "compare.png")
    reporter.show(compare_table(rows))
    return Comparison(rows, loaded, folder)


def _check_alike(plans: Sequence[RatioPlan]) -> None:
    for plan in plans[1:]:
        if plan.budget != plans[0].budget or plan.criterion != plans[0].criterion:
            mine, theirs = (f"{p.budget.kind} {p.budget.fraction:g}, {p.criterion}" for p in (plans[0], plan))
            raise PlanError(f"plans can only be compared at the same budget and criterion: {mine} against {theirs}")


def _allocate(
    task: Task,
    evaluator: Evaluator,
    allocator: Allocator,
    seed: int,
    candidates: int,
    log: CandidateLog,
    reporter: Reporter,
) -> RatioPlan:
    rewards: dict[tuple[int, ...], float] = {}
    with reporter.bar(allocator.name, candidates if allocator.searches else 1) as advance:

        def judged(plans: Sequence[NDArray[np.int64]]) -> Iterator[Evaluation]:
            for widths, evaluation in zip(plans, evaluator.evaluate_all(plans), strict=True):
                found = task.reward.reward(evaluation)
                rewards[tuple(widths.tolist())] = found
                log.append(allocator.name, seed, widths, evaluation, found)
                advance(f"reward {found:+.3f} best {max(rewards.values()):+.3f}")
                yield evaluation

        rng = np.random.default_rng(seed)
        widths = allocator.allocate(Allocation(task.budget, task.pruner.context, judged, task.reward, candidates, rng))
        if not allocator.searches:
            advance("")
    if allocator.searches:
        widths = judge_finalists(task, rewards, reporter)[0].widths
    return RatioPlan.make(
        task.priced,
        widths,
        architecture=task.architecture,
        criterion=task.config.pruning.criterion,
        budget=(task.budget.kind, task.budget.fraction),
        figures={},
        allocator=allocator.name,
        seed=seed,
        candidates=len(rewards),
    )


def _judge(task: Task, plan: RatioPlan, finetune: int, reporter: Reporter) -> tuple[dict[str, Any], Tensor | None]:
    pruned = task.prune(plan.widths)
    judged = task.evaluator.judge(pruned, plan.widths)
    hits = None if task.test is None else _correct(pruned, task)
    row: dict[str, Any] = {
        "allocator": plan.provenance.allocator,
        "seed": plan.provenance.seed,
        "candidates": plan.provenance.candidates,
        **task.priced.fractions(plan.widths),
        "search_accuracy": judged.accuracy,
        "reconstruction_loss": judged.reconstruction_loss,
        "test_accuracy": None if hits is None else 100.0 * float(hits.mean()),
    }
    if finetune:
        task.finetune(pruned, finetune, reporter)
        row["finetuned_test_accuracy"] = None if task.test is None else 100.0 * float(_correct(pruned, task).mean())
    return row, hits


def _correct(model: nn.Module, task: Task) -> Tensor:
    """(test images,) 1 where the answer is right."""
    assert task.test is not None
    labels = torch.cat([labels for _, labels in task.test])
    return (logits(model, task.test).argmax(1) == labels).float()


def _add_gains(rows: list[dict[str, Any]], correct: Sequence[Tensor | None]) -> None:
    """Test accuracy over the uniform plan's, with the standard error of the difference on the same images."""
    base = next((hits for row, hits in zip(rows, correct, strict=True) if row["allocator"] == "uniform"), None)
    for row, hits in zip(rows, correct, strict=True):
        if base is not None and hits is not None:
            gain = 100.0 * (hits - base)
            row["test_gain_over_uniform"] = float(gain.mean())
            row["test_gain_standard_error"] = float(gain.std() / len(gain) ** 0.5)


def compare_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row an allocator and seed, in the order given."""
    tuned = any("finetuned_test_accuracy" in row for row in rows)
    table = Table(
        title="Same cost, same repair, same images",
        box=box.SIMPLE_HEAD,
        caption="judged: candidates a search looked at; FLOPs, params and latency (by the table) kept, accuracies and "
        "gains in per cent",
    )
    timed = any("latency" in row for row in rows)
    columns = ["allocator", "seed", "judged", "FLOPs", "params", *(["latency"] if timed else [])]
    columns += ["search", "test", "over uniform"]
    for column in [*columns, "tuned"] if tuned else columns:
        table.add_column(column, justify="left" if column == "allocator" else "right", no_wrap=True)
    for row in rows:
        gain = row.get("test_gain_over_uniform")
        cells = [
            row["allocator"],
            str(row["seed"]),
            str(row["candidates"]),
            f"{100 * row['flops']:.1f}",
            f"{100 * row['params']:.1f}",
            *([f"{100 * row['latency']:.1f}"] if timed else []),
            f"{row['search_accuracy']:.2f}",
            _percent(row["test_accuracy"]),
            "–" if gain is None else f"{gain:+.2f} ± {row['test_gain_standard_error']:.2f}",
        ]
        if tuned:
            cells.append(_percent(row.get("finetuned_test_accuracy")))
        table.add_row(*cells)
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
