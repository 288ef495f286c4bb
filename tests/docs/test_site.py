"""The site of pages and docstrings: complete, and built without a warning."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from small import make, plan_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import secateur
from secateur.agents import ALLOCATORS
from secateur.agents.learner import ALGORITHMS
from secateur.commands import apply as applying
from secateur.commands import compared, trained
from secateur.pruners import METHODS
from secateur.reports.tables import COSTS
from secateur.storage.reading import read_lines
from secateur.training.schedules import SCHEDULES

DOCS = Path(__file__).parents[2] / "docs"


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def first_cells(page: str, heading: str) -> list[str]:
    """The names in the first column of the table under a heading."""
    part = re.split(r"^## ", text_of(page), flags=re.MULTILINE)
    (section,) = (one for one in part if one.startswith(heading))
    cells = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_every_page_is_in_the_contents():
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", text_of("index.md"), re.DOTALL | re.MULTILINE)
    told = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    assert sorted(told) == sorted(pages)


def test_the_reference_names_all_that_is_public():
    told = re.findall(r"^\.\. auto(class|function):: secateur\.(\w+)$", text_of("reference.md"), re.MULTILINE)
    kinds = {name: "class" if inspect.isclass(getattr(secateur, name)) else "function" for name in secateur.__all__}
    del kinds["ENV_ID"]
    assert {name: kind for kind, name in told} == kinds
    assert len(told) == len(kinds)


@pytest.mark.parametrize(
    ("heading", "registered"),
    [("Methods", METHODS), ("Allocators", {**ALLOCATORS, "ddpg": ALGORITHMS["ddpg"]}), ("Schedules", SCHEDULES)],
)
def test_which_one_when_names_all(heading: str, registered: Iterable[str]):
    assert sorted(first_cells("which.md", heading)) == sorted(registered)


def test_every_allocator_is_called_what_it_is():
    for name, kind in re.findall(r"^\| `(\w+)` \| (rule|search) \|", text_of("which.md"), re.MULTILINE):
        assert name in ALGORITHMS or ALLOCATORS[name].searches == (kind == "search"), name


def test_every_logged_number_is_explained(tmp_path: Path):
    sections = {"agent": {"episodes": 2, "warmup": 1, "updates": 1, "hidden": [4], "rerank": 1}}
    session = make(tmp_path, "channels", **sections)
    run = secateur.train(session, out=tmp_path / "train").folder
    small = secateur.apply(plan_of(session), session, finetune=1, out=tmp_path / "apply").folder
    both = secateur.compare((), session, against=["random"], candidates=1, out=tmp_path / "compare").folder
    tags = [EventAccumulator(str(home / "tensorboard")).Reload().Tags()["scalars"] for home in (run, small)]
    assert sorted(first_cells("logged.md", "TensorBoard")) == sorted(tags[0] + tags[1])
    lines = [line for log in (run / "episodes.jsonl", both / "candidates.jsonl") for line in read_lines(log)]
    assert set(first_cells("logged.md", "A line of `episodes")) == {key for line in lines for key in line}
    epochs = read_lines(small / "training.jsonl")
    assert set(first_cells("logged.md", "A line of `training")) == {key for line in epochs for key in line}


def test_every_column_is_explained():
    costs = dict.fromkeys(COSTS, 0.5)
    row = {**costs, "allocator": "a", "seed": 0, "candidates": 1, "search_accuracy": 1.0, "test_accuracy": 1.0}
    tables = (
        compared.compare_table([{**row, "finetuned_test_accuracy": 1.0}], "top-1 %"),
        applying.figures_table("", {"a": {**row, "latency_ms": 1.0}}, {"a": "a"}, "", "top-1 %"),
        trained.trained_table([], "top-1 %"),
    )
    columns = {column for table in tables for column in table.columns[1:]} - {"seed", "top-1"}
    assert set(first_cells("logged.md", "Columns")) == columns


@pytest.mark.slow
def test_it_is_built_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "reference.html").read_text(encoding="utf-8")
    assert all(f'id="secateur.{name}"' in page for name in set(secateur.__all__) - {"ENV_ID"})
    tasks = re.sub(r"<[^>]+>", "", (tmp_path / "how-to" / "tasks.html").read_text(encoding="utf-8"))
    assert tasks.count("def main(") == 3
