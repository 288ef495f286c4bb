"""`secateur plan`: what a trained policy proposes for a budget, or a rule; no candidate is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..agents import SearchProblem, get_allocator
from ..agents.policy import Policy, policy_path
from ..agents.start import doubt
from ..configs.registry import admit
from ..networks.world import undisturbed, use_threads
from ..pruners.plan import PLAN_NAME, RatioPlan
from ..reports.figures import plan_figure
from ..reports.handle import Opens
from ..storage.folders import check_free, new_folder
from .resolve import Given
from .session import Session

LEARNT, RULE = "policy", "knapsack"  # allocators: the first where it can be relied on, if nobody names one


@dataclass(frozen=True)
class Proposal(Opens):
    """What a policy or a rule proposes.

    Attributes:
        plan: for the budget asked.
        folder: where it was written, with the config that names its network.
        trained_on_it: whether a policy of one's own was trained on this very network.
    """

    plan: RatioPlan
    folder: Path
    trained_on_it: bool


@undisturbed()
def plan(
    policy: str | Path | None = None,
    session: Session | Given = None,
    *,
    allocator: str | None = None,
    flops: float | str | None = None,
    params: float | str | None = None,
    latency: float | str | None = None,
    size: float | str | None = None,
    bops: float | str | None = None,
    out: str | Path | None = None,
) -> Proposal:
    """Ask a trained policy, or a rule, for a plan on a budget, without evaluating any candidate.

    Args:
        policy: `policy.safetensors`, or the run folder that holds it; none asks the allocator.
        session: a session, or a config, its name or its file; none takes the config beside the policy.
        allocator: one that evaluates nothing, in the place of a policy; none is `policy`, what a population of other
            networks has taught, and `knapsack` where the network is unlike all of those (which is said).
        flops: the budget, a fraction of the FLOPs, or an amount ("20M"); without any the config's own budget counts.
        params: of the parameters; of several budgets the plan meets all.
        latency: of the measured latency.
        size: of the bytes that the weights are stored in.
        bops: of the bit operations.
        out: an empty or new folder; none takes `plan` beside the policy, else `runs/NAME-plan`.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    check_free(out)
    if policy is not None and allocator is not None:
        raise ValueError(f"a policy ({policy}) and allocator {allocator}: one of the two chooses, leave the other out")
    budgets = {"flops": flops, "params": params, "latency": latency, "size": size, "bops": bops}
    overrides = [f"budget.{kind}={value}" for kind, value in budgets.items() if value is not None]
    if policy is None:
        session = Session.of(session).beside(overrides=overrides)
        default = Path("runs") / f"{session.config.name}-plan"
        found, known = _of_rule(session, allocator)
    else:
        path = policy_path(policy)
        agent = Policy.load(path)
        session = Session.of(session).beside(path.parent, overrides=overrides)
        default = path.parent / "plan"
        found, known = _of_policy(session, agent)
    folder = new_folder(out, default)
    session.save(folder)
    found.save(folder / PLAN_NAME)
    plan_figure(found, folder / "plan.png")
    return Proposal(found, folder, known)


def _of_policy(session: Session, agent: Policy) -> tuple[RatioPlan, bool]:
    """The plan, and whether the policy was trained on this network."""
    _begin(session)
    env = session.env()
    known = agent.knows(env)
    env.set_loss_model(agent.began(session.context, session.budget))
    if not known:
        session.reporter.say(
            "the policy was trained on another network: it carries over what does not depend on the layer"
        )
    name = f"{agent.config.algorithm} policy"
    return session.plan_of(agent.plan(env), allocator=name, seed=session.config.seed, candidates=0), known


def _of_rule(session: Session, name: str | None) -> tuple[RatioPlan, bool]:
    """The plan of an allocator that evaluates nothing; it was trained on no network of the user's."""
    if name is not None:
        admit({"allocator": name}, trust_code=session.trust_code)
        allocator = get_allocator(name, session.config.method)
        if allocator.searches:
            raise ValueError(
                f"allocator {name} evaluates candidates: `secateur compare --against {name}` gives its plan"
            )
    _begin(session)
    if name is None:
        why = _doubt(session)
        name = LEARNT if why is None else RULE
        session.reporter.say(f"allocator {name}" + (f", not {LEARNT}: {why}" if why else ""))
    kept = get_allocator(name).allocate(SearchProblem(session.budget, session.context))
    return session.plan_of(kept, allocator=name, seed=session.config.seed, candidates=0), False


def _doubt(session: Session) -> str | None:
    """Why the learnt allocator is not asked; none where it is."""
    kind = session.config.repair.final.kind
    if kind != "sequential":
        return f"it was learnt from networks that were repaired in sequence, not with repair.final.kind={kind}"
    return doubt(session.context, session.budget)


def _begin(session: Session) -> None:
    use_threads(session.config.threads)
    session.reporter.say(session.describe())
