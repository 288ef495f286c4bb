"""The console script. Every command is a function of `secateur` with the same name; here are only its options."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..configs.load import builtin_configs
from ..reports.progress import printable
from ..reports.tables import costs_line
from .options import (
    CONFIG_HELP,
    ConfigOption,
    Json,
    Out,
    Overrides,
    RayAddress,
    TrustCode,
    commanded,
    fractions,
    names,
    reporter_of,
    wrote,
)
from .studies import STUDIES

TRAINING = ("apply", "compare", "correlate")

app = typer.Typer(
    name="secateur",
    help="Learn how much of each layer of a neural network to prune. [bold]train[/bold] an agent and get a ratio plan, "
    "[bold]apply[/bold] the plan, [bold]compare[/bold] it with hand-set ratios.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command("train")
def train_command(
    config: Annotated[str | None, typer.Argument(help=CONFIG_HELP + " [default: the embedded one, digits]")] = None,
    overrides: Overrides = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the search.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Minutes after which the search ends; --resume goes on.")
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target", help="Ends where a plan has this much on the search images.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Begin with nothing that other networks have taught.")
    ] = False,
    ray_address: RayAddress = None,
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Train the agent for a network and write the best ratio plan it finds.

    Example: secateur train cifar10-resnet20 --set data.root=DIR --set budget.flops=0.5 --out runs/r20

    The run folder holds plan.json, policy.safetensors, episodes.jsonl (a line an episode), summary.json, config.yaml,
    TensorBoard events, two figures and report.html. Ctrl-C keeps what was found; --resume goes on, after a crash too.
    --set workers=N evaluates N candidates at a time.
    """
    from .session import Session
    from .train import train

    reporter = reporter_of(as_json=as_json)
    if resume is not None and (config is not None or out is not None):
        raise ValueError("--resume takes network, images and folder from the run itself: leave CONFIG and --out out")
    overrides = [*(overrides or ()), *(["agent.warm_start=false"] if from_scratch else [])]
    session = Session(
        config, overrides=overrides, seed=seed, ray_address=ray_address, reporter=reporter, trust_code=trust_code
    )
    done = train(session, out=out, resume=resume, timeout=timeout, target=target)
    best, base = done.summary["best"], done.summary["base"]
    reporter.say(
        f"best plan: episode {best['episode']}, search accuracy {best['search_accuracy']:.2f} % "
        f"(base plan {base['search_accuracy']:.2f} %, dense {done.summary['dense']['search_accuracy']:.2f} %), "
        f"{costs_line(best)}"
    )
    files = ("summary.json", "plan.json", "episodes.jsonl", "report.html")
    wrote(reporter, done.folder, *files, as_json=as_json)
    if done.summary["ended"] == "interrupted":
        raise typer.Exit(130)


@app.command("apply")
def apply_command(
    plans: Annotated[
        list[Path] | None,
        typer.Argument(help="A plan.json, or the run folder that holds it; several: one after the other."),
    ] = None,
    finetune: Annotated[
        int | None, typer.Option("--finetune", min=0, help="Epochs in all. [default: the config's finetune.epochs]")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help="one_shot, iterative, gradual, rewind, scratch_e, scratch_b. [default: finetune.schedule]",
        ),
    ] = None,
    train_fn: Annotated[
        str | None,
        typer.Option("--train-fn", help="package.module:callable, with --trust-code: your own loop instead of ours."),
    ] = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the one in this folder.")] = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Apply a plan: a smaller network, repaired, fine-tuned, measured and saved.

    Example: secateur apply runs/r20/plan.json --finetune 10 --out small

    It learns from the dense network and keeps the epoch that is best on the search images. secateur.load("small") gives
    the network back in Python. What was interrupted goes on: secateur apply --resume small

    Several plans are applied one after the other, each to what the one before it left (a plan for that is made with
    --set network.weights=FOLDER); behind the last one is fine-tuned.
    """
    from ..configs.registry import imported
    from ..reports.run import CHAIN_NAME, is_chain
    from .apply import apply
    from .chain import chain
    from .session import Session

    reporter = reporter_of(as_json=as_json)
    session = Session(config, overrides=overrides or (), reporter=reporter, trust_code=trust_code)
    own = None if train_fn is None else imported("--train-fn", train_fn, trust_code=trust_code)
    how: dict[str, Any] = {"finetune": finetune, "schedule": schedule, "train_fn": own, "out": out, "resume": resume}
    if len(plans or ()) > 1 or (resume is not None and is_chain(resume)):
        wrote(reporter, chain(plans or (), session, **how).folder, CHAIN_NAME, "report.html", as_json=as_json)
        return
    done = apply(plans[0] if plans else None, session, **how)
    wrote(reporter, done.folder, "summary.json", "weights.safetensors", "network.json", "report.html", as_json=as_json)


@app.command("compare")
def compare_command(
    plans: Annotated[list[Path] | None, typer.Argument(help="Plans or run folders.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Allocators, comma-separated; a wrong name lists all.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option("--candidates", min=1, help="For every search. [default: as many as the plan's own]")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Of allocators that draw, and of trainings.")] = 1,
    finetune: Annotated[int, typer.Option("--finetune", min=0, help="Epochs, the same for every row.")] = 0,
    schedules: Annotated[
        str, typer.Option("--schedules", help="With --finetune: every plan is trained by each, comma-separated.")
    ] = "one_shot",
    flops: Annotated[
        str | None, typer.Option("--flops", help="Compare at several budgets, comma-separated fractions: 0.2,0.3,0.5")
    ] = None,
    params: Annotated[str | None, typer.Option("--params", help="The same, of the parameters.")] = None,
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with the interrupted comparison in this folder.")
    ] = None,
    ray_address: RayAddress = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Compare plans with other allocators, rules and searches: same cost, same repair, same images.

    Example: secateur compare runs/r20/plan.json --against uniform,threshold,lamp,random,hill_climb

    Without a plan: secateur compare --config cifar10-resnet20 --set data.root=DIR --against uniform,deep

    Accuracy against cost: secateur compare --config digits --against uniform,knapsack --flops 0.2,0.3,0.5,0.7
    """
    from .compare import compare
    from .session import Session
    from .sweep import sweep

    if not plans and config is None and resume is None:
        raise ValueError("nothing to compare: give a plan, or --config")
    if resume is not None and (config is not None or overrides or out is not None):
        raise ValueError(
            "--resume takes config and folder from the comparison itself: leave --config, --set, --out out"
        )
    reporter = reporter_of(as_json=as_json)
    session = Session(
        config, overrides=overrides or (), ray_address=ray_address, reporter=reporter, trust_code=trust_code
    )
    how: dict[str, Any] = {
        "against": None if against is None else names(against),
        "candidates": candidates,
        "seeds": range(seeds),
        "finetune": finetune,
        "schedules": names(schedules),
        "out": out,
        "resume": resume,
    }
    if flops is None and params is None:
        done = compare(plans or (), session, **how)
        wrote(reporter, done.folder, "compare.json", "candidates.jsonl", "report.html", as_json=as_json)
        return
    if flops is not None and params is not None:
        raise ValueError("--flops and --params: budgets are of one of the two")
    how |= {"kind": "params"} if flops is None else {"kind": "flops"}
    swept = sweep(plans or (), session, budgets=fractions(f"--{how['kind']}", flops or params or ""), **how)
    wrote(reporter, swept.folder, "sweep.json", "sweep.png", "report.html", as_json=as_json)


@app.command("plan")
def plan_command(
    policy: Annotated[
        str, typer.Argument(help="A run folder, or its policy.safetensors; or a config, for what --allocator says.")
    ],
    flops: Annotated[str | None, typer.Option("--flops", help="The budget: 0.5, 50% or 20M FLOPs.")] = None,
    params: Annotated[str | None, typer.Option("--params", help="The budget: 0.5, 50% or 1.5M parameters.")] = None,
    latency: Annotated[str | None, typer.Option("--latency", help="The budget: of the measured latency; 5ms.")] = None,
    size: Annotated[str | None, typer.Option("--size", help="The budget: of the bytes stored; 100kB.")] = None,
    bops: Annotated[str | None, typer.Option("--bops", help="The budget: of the bit operations.")] = None,
    out: Out = None,
    config: Annotated[
        str | None, typer.Option("--config", help=CONFIG_HELP + " [default: the config beside the policy]")
    ] = None,
    allocator: Annotated[
        str | None,
        typer.Option("--allocator", help="With a config: policy, knapsack or another rule. [default: see below]"),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Ask a trained policy, or a rule, for a plan: any budget, also another network; no candidate is evaluated.

    Example: secateur plan runs/r20 --flops 0.4; secateur plan digits --allocator policy --flops 0.2

    A policy that was trained with --set agent.budgets=[0.3,0.7] has seen all budgets in between. The allocator policy
    asks what a population of other networks has taught; it is the default where a network is like those, else knapsack.
    """
    from .plan import plan
    from .session import Session

    named = policy in builtin_configs() or Path(policy).suffix in (".yaml", ".yml")
    if named and config is not None:
        raise ValueError(f"two configs, {policy} and --config {config}: leave one out")
    reporter = reporter_of(as_json=as_json)
    given = policy if named else config
    session = Session(given, overrides=overrides or (), reporter=reporter, trust_code=trust_code)
    budgets = {"flops": flops, "params": params, "latency": latency, "size": size, "bops": bops}
    done = plan(None if named else policy, session, allocator=allocator, out=out, **budgets)
    wrote(reporter, done.folder, "plan.json", "plan.png", as_json=as_json)


for name, command in STUDIES.items():
    app.command(name)(command)


def _version(show: bool) -> None:
    if show:
        typer.echo(metadata.version("secateur"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _run(arguments: list[str]) -> None:
    """The command; among the processes of `accelerate launch` the first runs it."""
    processes = int(os.environ.get("WORLD_SIZE", "1")) if {"RANK", "LOCAL_RANK"} <= os.environ.keys() else 1
    if processes == 1:
        app()
        return
    from ..training.team import distributed

    name = arguments[0] if arguments else ""
    if name not in TRAINING and os.environ["RANK"] == "0":
        what = "only trainings of networks are shared out, all else of secateur"
        print(f"{processes} processes: {what} {name} runs in one of them", file=sys.stderr)
    distributed(app)


def main() -> None:
    """Run a command; a user's mistake ends in one line and exit code 2 (SECATEUR_DEBUG=1 shows where)."""
    warnings.formatwarning = lambda message, *_where, **_line: f"warning: {message}\n"
    try:
        with commanded(sys.argv[1:]):
            _run(sys.argv[1:])
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        sys.exit(130)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("SECATEUR_DEBUG"):
            raise
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
