"""`secateur magnitude`: the smallest weights become zeros, at once or while training; measured and saved."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..configs import Config
from ..pruners.batchnorm import adapt_batchnorm
from ..pruners.inference import first_images
from ..pruners.layers import WeightStructure
from ..pruners.magnitude import (
    GradualPruner,
    Masks,
    Sparsity,
    check_scope,
    check_sparsity,
    find_weights,
    kept_weights,
    prune_weights,
    weight_widths,
)
from ..pruners.plan import PLAN_NAME, RatioPlan, plan_path, write_json
from ..reports.progress import Reporter
from .apply import WHOLE, Applied, config_for, figures_table, measure, save_network
from .folders import check_free, new_folder
from .task import Images, Task, home_of, make_task, resolve_config
from .train import SUMMARY_NAME


def magnitude(
    config: Config | str | Path | None = None,
    *,
    sparsity: Sparsity | None = None,
    scope: str | None = None,
    plan: RatioPlan | str | Path | None = None,
    model: nn.Module | None = None,
    images: Images | None = None,
    overrides: Sequence[str] = (),
    finetune: int | None = None,
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    trust_code: bool = False,
) -> Applied:
    """Prune single weights by magnitude: at once, or gradually while fine-tuning, if there are epochs for it.

    The network keeps its shape, so that it is smaller only when compressed, and no faster on dense kernels.

    Args:
        config: where network and images come from; none takes the config beside the plan, else the embedded default.
            `layers.exclude` names weights that stay dense, `magnitude` says how fast the sparsity rises in training.
        sparsity: the fraction of the weights to remove, in [0, 1); or one a tensor, by parameter name.
        scope: `layer` (the default), every tensor the same; or `global`, one threshold over all weights.
        plan: instead of a sparsity: a plan of method `magnitude`, its file, or the folder that holds it.
        model: your own network instead of the config's.
        images: your own images instead of the config's.
        overrides: `section.key=value` on top of the config.
        finetune: epochs; none takes the config's `finetune.epochs`.
        out: an empty or new folder; none takes `magnitude` beside the plan, else `runs/NAME-magnitude`.
        reporter: shows progress.
        trust_code: whether code that the config names (`package.module:callable`) may run.

    Raises:
        PlanError: the plan is for another network, or of another method.
        ValueError, FileNotFoundError: other bad input, in one line.
    """
    reporter = reporter or Reporter()
    _check(sparsity, scope, plan, finetune)
    check_free(out)
    beside = None if plan is None or isinstance(plan, RatioPlan) else plan_path(plan).parent
    given = plan if plan is None or isinstance(plan, RatioPlan) else RatioPlan.load(plan)
    if given is not None:
        given.check_method("magnitude")
    resolved = resolve_config(config_for(model, config, beside, given), overrides, folder=beside)
    task = make_task(
        resolved, folder=home_of(config, beside), model=model, images=images, reporter=reporter, trust_code=trust_code
    )
    structure = find_weights(task.model, task.input_shape, exclude=task.config.layers.exclude)
    if given is not None:
        given.check(structure)
    asked = sparsity if given is None else given.sparsities
    assert asked is not None, "checked above"
    scope = scope or "layer"
    weight_widths(task.model, structure, asked, scope)  # a wrong name is said before any work
    folder = new_folder(out, beside / "magnitude" if beside else Path("runs") / f"{task.config.name}-magnitude")

    models = {"dense": task.model, "pruned": copy.deepcopy(task.model)}
    masks = {"pruned": prune_weights(models["pruned"], structure, asked, scope)}
    if task.config.pruning.final_adaptive_bn:
        adapt_batchnorm(models["pruned"], first_images(task.calibration, task.config.pruning.final_adaptive_bn))
    epochs = task.config.finetune.epochs if finetune is None else finetune
    if epochs:
        models["at_once"], masks["at_once"] = models["pruned"], masks["pruned"]
        models["pruned"] = copy.deepcopy(task.model)
        masks["pruned"] = _train(task, models["pruned"], structure, asked, scope, epochs, reporter)

    kept = {name: kept_weights(structure, mask) for name, mask in masks.items()}
    costs = {name: {kind: structure.fraction(kind, widths) for kind in WHOLE} for name, widths in kept.items()}
    rows = measure(task, models, {"dense": WHOLE, **costs}, reporter)
    made = given or RatioPlan.make(
        structure,
        kept["pruned"],
        architecture=task.architecture,
        criterion="magnitude",
        budget=("params", costs["pruned"]["params"]),
        figures={},
        allocator=scope,
        seed=task.config.seed,
        candidates=0,
    )
    removed = 1.0 - int(kept["pruned"].sum()) / int(structure.widths.sum())
    summary = {
        **rows,
        "scope": scope if given is None else "plan",
        "total_sparsity": removed,
        "sparsity": made.sparsities,
        "finetune_epochs": epochs,
        "latency_batch": task.config.latency.batch,
        "plan": made.provenance.model_dump(),
    }
    save_network(models["pruned"], folder, task, {})
    write_json(folder / SUMMARY_NAME, summary)
    made.save(folder / PLAN_NAME)
    task.save(folder)
    titles = {
        "dense": "dense",
        "at_once": "pruned at once",
        "pruned": f"pruned while trained, {epochs} epochs" if epochs else "pruned at once",
    }
    batch = task.config.latency.batch
    note = f"ms: one pass of {batch} images; FLOPs without the zeros: dense kernels multiply them"
    reporter.show(figures_table(f"{100 * removed:.4g} % of the weights removed", rows, titles, note))
    return Applied(models["pruned"], folder, summary)


def _check(
    sparsity: Sparsity | None, scope: str | None, plan: RatioPlan | str | Path | None, finetune: int | None
) -> None:
    """What can be refused before network and images are read."""
    if (sparsity is None) == (plan is None):
        raise ValueError("how much to remove? give a sparsity (--sparsity 0.8) or a plan (--plan FILE), one of the two")
    if plan is not None and scope is not None:
        raise ValueError(f"scope = {scope!r}: a plan says itself what every tensor keeps; leave --scope out")
    if scope is not None:
        check_scope(scope)
    if isinstance(sparsity, float | int):
        check_sparsity(sparsity)
    if finetune is not None and finetune < 0:
        raise ValueError(f"finetune = {finetune}: a number of epochs, 0 or more")


def _train(
    task: Task,
    model: nn.Module,
    structure: WeightStructure,
    sparsity: Sparsity,
    scope: str,
    epochs: int,
    reporter: Reporter,
) -> Masks:
    """Prune in place while training."""
    pace = task.config.magnitude
    pruner = GradualPruner(model, structure, sparsity, scope, ramp=pace.ramp, every=pace.every)
    task.finetune(model, epochs, reporter, pruner.on_step)
    pruner.finish()
    return pruner.masks
