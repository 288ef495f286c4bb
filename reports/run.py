"""A run folder as a report sees it: what is there is read and checked, what is not is absent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ..agents.log import CANDIDATES_NAME, LOG_NAME, read_candidates, read_episodes
from ..pruners.plan import PLAN_NAME, RatioPlan
from ..pruners.saved import NETWORK_NAME
from ..storage.folders import (
    ABOUT_NAME,
    BEGUN_NAME,
    CHAIN_BEGUN_NAME,
    CHAIN_STAGES_NAME,
    CONFIG_NAME,
    FINETUNED_NAME,
)
from ..storage.reading import parse_yaml, read_json, read_lines, read_text, validated

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

SUMMARY_NAME, COMPARE_NAME, TRAINING_NAME = "summary.json", "compare.json", "training.jsonl"
CHAIN_NAME = "chain.json"  # of several plans, one after the other
SWEEP_NAME = "sweep.json"  # of comparisons at several budgets, each in a folder of its own
_PLAN = re.compile(r"plans/[^/\\]+\.json")
KINDS = {"flops": "FLOPs", "params": "parameters", "latency": "latency", "size": "bytes", "bops": "bit operations"}
EXPORT_NAME = "export.json"
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    """What other versions add is left alone."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Figures(_Part):
    """What was found of one network: those figures that its command measures.

    Accuracies are the objective's measure in 0 … 100; flops, params and latency are fractions of the dense network's.
    """

    stage: str = ""
    allocator: str = ""
    schedule: str = ""
    seed: int | None = None
    candidates: Count | None = None
    episode: Count | None = None
    plan: str | int | None = None
    quality: float | None = None
    test_accuracy: float | None = None
    search_accuracy: float | None = None
    finetuned_test_accuracy: float | None = None
    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    size: float | None = None
    bops: float | None = None
    latency_ms: float | None = None
    bytes: Count | None = None
    flops_count: Count | None = None
    params_count: Count | None = None
    test_lead: float | None = None
    test_lead_standard_error: float | None = None
    test_gain_over_uniform: float | None = None
    test_gain_standard_error: float | None = None
    test_change: float | None = None
    test_change_standard_error: float | None = None
    trainings: Count | None = None
    test_spread: float | None = None
    behind: float | None = None
    behind_standard_error: float | None = None
    seconds: float | None = None


class Summary(_Part):
    """`summary.json` of a training or an application, `compare.json` of a comparison, `chain.json` of several plans."""

    measure: str = "top-1 %"
    dense: Figures | None = None
    best: Figures | None = None
    base: Figures | None = None
    masked: Figures | None = None
    repaired: Figures | None = None
    pruned: Figures | None = None
    rows: list[Figures] = []
    stages: list[Figures] = []
    reranked: list[Figures] = []
    trained_summary: list[Figures] = []
    trained_verdict: str | None = None
    finetune_epochs: Count | None = None
    schedule: str | None = None
    latency_batch: Count | None = None
    latency_runtime: str = "PyTorch"
    masked_difference: float | None = None
    images: dict[str, Count] = {}
    hand_set: dict[str, list[Count]] = {}
    seconds: float | None = None
    seconds_per_part: dict[str, float] = {}
    ignored: dict[str, str] = {}


class Epoch(_Part):
    """A line of `training.jsonl`."""

    round: int
    epoch: int
    loss: float | None = None
    score: float | None = None
    learning_rate: float | None = None


class _Parity(_Part):
    largest: float
    mean: float


class _ExportedFile(_Part):
    file: str
    bytes: Count
    parity: _Parity
    measure_in_torch: float | None = None
    measure_in_runtime: float | None = None


class Export(_Part):
    """`export.json`: the files of a network, by the kind of their numbers."""

    format: str = ""
    measure: str | None = None
    files: dict[str, _ExportedFile]


class Begin(_Part):
    """Where a command was begun, or gone on with."""

    command: str | None = None
    versions: dict[str, str] = {}
    machine: dict[str, str | int] = {}


class About(_Part):
    """`about.json`: a part each time that the run was begun or gone on with."""

    runs: list[Begin] = []


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: that was read.
        kind: the command that wrote it: train, apply, compare or plan; chain, of apply with several plans.
        finished: whether it has written its result.
        config: as plain values; `config_text` as it stands in the file.
        summary: its result; empty where it is not finished.
        plan: its own; of a comparison the first row's.
        plans: of a comparison's rows, of a chain's stages.
        episodes: lines of the search; of a comparison its candidates.
        training: name → epochs of a fine-tuning.
        exports: folder → what it was exported to.
        about: command, versions, machine.
        data: everything, as its files hold it, for machines.
    """

    folder: Path
    kind: str
    finished: bool
    config: Mapping[str, Any]
    config_text: str
    summary: Summary
    plan: RatioPlan | None
    plans: list[RatioPlan]
    episodes: list[dict[str, Any]]
    training: dict[str, list[Epoch]]
    exports: dict[str, Export]
    about: About
    data: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The folder's own."""
        return self.folder.resolve().name

    def setting(self, *path: str) -> Any:
        """A value of the config; none where there is none."""
        node: Any = self.config
        for step in path:
            node = node.get(step) if isinstance(node, dict) else None
        return node


def is_run(folder: Path) -> bool:
    """Whether one of the commands that have reports has begun something there."""
    return _kind(folder) is not None


def is_chain(folder: Path) -> bool:
    """Whether several plans were begun to be applied there."""
    return (folder / CHAIN_BEGUN_NAME).is_file()


def is_finished(folder: Path) -> bool:
    """Whether it has written its result."""
    kind = _kind(folder)
    return kind is not None and (folder / _result(kind)).is_file()


def read_run(folder: Path) -> Run:
    """What a run folder holds.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no run is there, or a file of it is damaged; in one line, with the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give one that secateur train, apply or compare wrote")
    kind = _kind(folder)
    if kind is None:
        raise ValueError(f"{folder}: no run there (no {CONFIG_NAME} with a plan, a log or a {COMPARE_NAME} beside it)")
    text = read_text(folder / CONFIG_NAME)
    config = parse_yaml(text, str(folder / CONFIG_NAME))
    tree = {} if kind == "plan" else _there(folder / _result(kind), read_json) or {}
    about = _there(folder / ABOUT_NAME, read_json) or {}
    summary = validated(Summary, tree, str(folder / _result(kind)))
    plans = [RatioPlan.load(folder / _inside(row.plan, folder)) for row in summary.rows if row.plan is not None]
    own = RatioPlan.load(folder / PLAN_NAME) if (folder / PLAN_NAME).is_file() else next(iter(plans), None)
    log, read = (CANDIDATES_NAME, read_candidates) if kind == "compare" else (LOG_NAME, read_episodes)
    episodes = _there(folder / log, read) or []
    training = _training(folder)
    of_stages = sorted(folder.glob(f"{CHAIN_STAGES_NAME}/*/{PLAN_NAME}")) if kind == "chain" else ()
    plans += [RatioPlan.load(path) for path in of_stages]
    deep = "*/*" if kind == "chain" else "*"
    exports = {
        path.parent.relative_to(folder).as_posix(): read_json(path)
        for path in sorted(folder.glob(f"{deep}/{EXPORT_NAME}"))
    }
    return Run(
        folder=folder,
        kind=kind,
        finished=(folder / _result(kind)).is_file(),
        config=config if isinstance(config, dict) else {},
        config_text=text,
        summary=summary,
        plan=own,
        plans=plans,
        episodes=episodes,
        training={name: [validated(Epoch, line, where) for line in lines] for name, (where, lines) in training.items()},
        exports={name: validated(Export, e, str(folder / name / EXPORT_NAME)) for name, e in exports.items()},
        about=validated(About, about, str(folder / ABOUT_NAME)),
        data={
            "command": kind,
            "config": _plain(config, str(folder / CONFIG_NAME)),
            "about": _plain(about, str(folder / ABOUT_NAME)),
            "result": _plain(tree, str(folder / _result(kind))),
            "plan": None if own is None else own.model_dump(mode="json"),
            "plans": [plan.model_dump(mode="json") for plan in plans],
            "candidates" if kind == "compare" else "episodes": _plain(episodes, str(folder / log)),
            "training": {name: _plain(lines, where) for name, (where, lines) in training.items()},
            "exports": {name: _plain(export, str(folder / name / EXPORT_NAME)) for name, export in exports.items()},
        },
    )


def _kind(folder: Path) -> str | None:
    """Of the files that each command writes first, and the others never do."""
    if not (folder / CONFIG_NAME).is_file():
        return None
    marks = {
        "chain": (CHAIN_BEGUN_NAME,),
        "compare": (COMPARE_NAME, CANDIDATES_NAME),
        "apply": (BEGUN_NAME, NETWORK_NAME),
        "train": (LOG_NAME, SUMMARY_NAME),
        "plan": (PLAN_NAME,),
    }
    return next((kind for kind, names in marks.items() if any((folder / name).is_file() for name in names)), None)


def _result(kind: str) -> str:
    return {"compare": COMPARE_NAME, "plan": PLAN_NAME, "chain": CHAIN_NAME}.get(kind, SUMMARY_NAME)


def _there(path: Path, read: Callable[[Path], T]) -> T | None:
    return read(path) if path.exists() or path.is_symlink() else None  # a link to nowhere is no absence


def _plain(tree: Any, where: str) -> Any:
    """A tree as JSON can hold it: what it cannot (YAML's dates, numbers that are not finite) as text.

    Raises:
        ValueError: it is nested too deeply to be written again.
    """
    try:
        return json.loads(json.dumps(_values(tree)))
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None


def _values(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _values(value) for key, value in node.items()}
    if isinstance(node, list | tuple | set):
        return [_values(value) for value in node]
    known = node is None or isinstance(node, bool | int | str) or (isinstance(node, float) and isfinite(node))
    return node if known else str(node)


def _inside(name: object, folder: Path) -> str:
    if not isinstance(name, str) or not _PLAN.fullmatch(name):
        raise ValueError(f"{folder / COMPARE_NAME}: plan = {name!r}: expected a file of its folder plans/")
    return name


def _training(folder: Path) -> dict[str, tuple[str, list[Any]]]:
    """Name → the log and its lines: the folder's own, or one a training of a comparison."""
    paths = {"": folder / TRAINING_NAME}
    if (folder / FINETUNED_NAME).is_dir():
        paths |= {own.name: own / TRAINING_NAME for own in sorted((folder / FINETUNED_NAME).iterdir())}
    return {name: (str(path), read_lines(path)) for name, path in paths.items() if path.is_file()}
