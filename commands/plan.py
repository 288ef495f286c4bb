"""`secateur plan`: what a trained policy proposes for a budget, or for another network; no candidate is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..agents.policy import Policy, policy_path
from ..configs import Config
from ..envs import LayerSparsityEnv, layer_statistics
from ..pruners.loss_model import LossModel
from ..pruners.plan import PLAN_NAME, RatioPlan
from ..reports.figures import plan_figure
from ..reports.progress import Reporter
from .folders import check_free, new_folder
from .task import Images, describe, home_of, make_task, resolve_config


@dataclass(frozen=True)
class Proposal:
    """What a policy proposes.

    Attributes:
        plan: for the budget asked.
        folder: where it was written, with the config that names its network.
        trained_on_it: whether the policy was trained on this very network.
    """

    plan: RatioPlan
    folder: Path
    trained_on_it: bool


def plan(
    policy: str | Path,
    *,
    flops: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    config: Config | str | Path | None = None,
    model: nn.Module | None = None,
    images: Images | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    trust_code: bool = False,
) -> Proposal:
    """Ask a trained policy for a plan on a budget, without evaluating any candidate.

    Args:
        policy: `policy.safetensors`, or the run folder that holds it.
        flops: the budget, a fraction of the FLOPs; none takes the config's own budget.
        params: the budget, a fraction of the parameters.
        latency: the budget, a fraction of the measured latency.
        config: where network and images come from; none takes the config beside the policy.
        model: your own network instead of the config's.
        images: your own images instead of the config's.
        overrides: `section.key=value` on top of the config.
        out: an empty or new folder; none takes `plan` beside the policy.
        reporter: shows progress.
        trust_code: whether code that the config names (`package.module:callable`) may run.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    reporter = reporter or Reporter()
    check_free(out)
    path = policy_path(policy)
    agent = Policy.load(path)
    budgets = {"flops": flops, "params": params, "latency": latency}
    asked = {kind: value for kind, value in budgets.items() if value is not None}
    if len(asked) > 1:
        raise ValueError(f"one budget at a time, not {' and '.join(asked)}")
    overrides = [*overrides, *(f"budget.{kind}={value}" for kind, value in asked.items())]
    resolved = resolve_config(config, overrides, folder=path.parent)
    task = make_task(
        resolved,
        folder=home_of(config, path.parent),
        model=model,
        images=images,
        reporter=reporter,
        trust_code=trust_code,
    )
    reporter.say(describe(task))
    env = LayerSparsityEnv(
        task.budget, task.evaluator, layer_statistics(task.pruner), task.reward, LossModel.of(task.pruner.context)
    )
    known = agent.knows(env)
    if not known:
        reporter.say("the policy was trained on another network: it carries over what does not depend on the layer")
    found = RatioPlan.make(
        task.priced,
        agent.plan(env),
        architecture=task.architecture,
        criterion=task.config.pruning.criterion,
        budget=(task.budget.kind, task.budget.fraction),
        figures={},
        allocator=f"{agent.config.algorithm} policy",
        seed=task.config.seed,
        candidates=0,
    )
    folder = new_folder(out, path.parent / "plan")
    task.save(folder)
    found.save(folder / PLAN_NAME)
    plan_figure(found, folder / "plan.png")
    return Proposal(found, folder, known)
