"""`secateur plan`: what a trained policy proposes for a budget, or for another network; no candidate is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..agents.policy import Policy, policy_path
from ..networks.world import undisturbed, use_threads
from ..pruners.plan import PLAN_NAME, RatioPlan
from ..reports.figures import plan_figure
from ..reports.handle import Opens
from ..storage.folders import check_free, new_folder
from .resolve import Given
from .session import Session


@dataclass(frozen=True)
class Proposal(Opens):
    """What a policy proposes.

    Attributes:
        plan: for the budget asked.
        folder: where it was written, with the config that names its network.
        trained_on_it: whether the policy was trained on this very network.
    """

    plan: RatioPlan
    folder: Path
    trained_on_it: bool


@undisturbed()
def plan(
    policy: str | Path,
    session: Session | Given = None,
    *,
    flops: float | str | None = None,
    params: float | str | None = None,
    latency: float | str | None = None,
    size: float | str | None = None,
    bops: float | str | None = None,
    out: str | Path | None = None,
) -> Proposal:
    """Ask a trained policy for a plan on a budget, without evaluating any candidate.

    Args:
        policy: `policy.safetensors`, or the run folder that holds it.
        session: a session, or a config, its name or its file; none takes the config beside the policy.
        flops: the budget, a fraction of the FLOPs, or an amount ("20M"); without any the config's own budget counts.
        params: of the parameters; of several budgets the plan meets all.
        latency: of the measured latency.
        size: of the bytes that the weights are stored in.
        bops: of the bit operations.
        out: an empty or new folder; none takes `plan` beside the policy.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    check_free(out)
    path = policy_path(policy)
    agent = Policy.load(path)
    budgets = {"flops": flops, "params": params, "latency": latency, "size": size, "bops": bops}
    asked = {kind: value for kind, value in budgets.items() if value is not None}
    overrides = [f"budget.{kind}={value}" for kind, value in asked.items()]
    session = Session.of(session).beside(path.parent, overrides=overrides)
    use_threads(session.config.threads)
    session.reporter.say(session.describe())
    env = session.env()
    known = agent.knows(env)
    if not known:
        session.reporter.say(
            "the policy was trained on another network: it carries over what does not depend on the layer"
        )
    found = session.plan_of(
        agent.plan(env),
        allocator=f"{agent.config.algorithm} policy",
        seed=session.config.seed,
        candidates=0,
    )
    folder = new_folder(out, path.parent / "plan")
    session.save(folder)
    found.save(folder / PLAN_NAME)
    plan_figure(found, folder / "plan.png")
    return Proposal(found, folder, known)
