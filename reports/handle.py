"""A run folder, opened: its plan, its best network, its episodes and its figures, for whoever looks on in Python."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .charts import pareto_front
from .figures import Drawing, comparison_drawing, cost_drawing, plan_drawing, quality_drawing, training_drawing
from .pareto import against, measured, split
from .run import KINDS, SWEEP_NAME, Figures, Run, read_run


@dataclass(frozen=True)
class Handle(Run):
    """What `open_run` gives: all that `Run` holds, with the best of it found, and drawn.

    It is what the folder held when it was opened; nothing is written, and no code that the folder names runs. The
    figures are matplotlib's, which a notebook shows; `figure.savefig("file.png")` writes one.
    """

    @property
    def best(self) -> Figures | None:
        """Accuracy and costs of the best network; none where nothing is measured yet.

        Of a search the best plan, so far where it is not finished; of an application, of one plan or of several, the
        network it ends with; of a comparison the row that is best on the test images (on the search images where there
        are no others).
        """
        if self.kind == "compare":
            where = f"{split(measured(self))}_accuracy"
            return max(self.summary.rows, key=lambda row: getattr(row, where) or 0.0, default=None)
        if self.kind == "train" and self.summary.best is None and self.episodes:
            asked = [one for one in self.episodes if one.get("budget") == self.episodes[0].get("budget")]
            found = max(asked, key=lambda one: float(one["quality"]))
            return Figures.model_validate({**found, "search_accuracy": found["accuracy"]})
        if self.kind == "chain":
            return next(reversed(self.summary.stages), None)
        return self.summary.best or self.summary.pruned or self.summary.repaired

    def episodes_frame(self) -> Any:
        """The lines of the search (of a comparison its candidates), one a row; each term of the quality in a column.

        Returns:
            A pandas DataFrame where pandas is installed, else a list of dicts.
        """
        rows = [_flat(episode) for episode in self.episodes]
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            return rows
        return pandas.DataFrame(rows)

    def plot_plan(self) -> Drawing:
        """What the plan takes of each layer.

        Raises:
            ValueError: there is no plan yet.
        """
        if self.plan is None:
            raise self._nothing("plan", "train, apply or plan writes one")
        return plan_drawing(self.plan)

    def plot_search(self) -> Drawing:
        """The quality of every episode of a training, and the best so far.

        Raises:
            ValueError: there are no episodes.
        """
        if self.kind != "train" or not self.episodes:
            raise self._nothing("episodes", "train writes them (a comparison's candidates: episodes_frame())")
        return quality_drawing([float(episode["quality"]) for episode in self.episodes])

    def plot_comparison(self) -> Drawing:
        """Accuracy of every row of a comparison, and what each plan takes of each layer.

        Raises:
            ValueError: there is no finished comparison.
        """
        if not self.summary.rows:
            raise self._nothing("finished comparison", "compare writes one")
        rows = [row.model_dump() for row in self.summary.rows]
        return comparison_drawing(rows, self.plans, self.summary.measure)

    def plot_cost(self, kind: str = "flops") -> Drawing:
        """Accuracy against a cost: flops, params, latency, size or bops; the Pareto front is joined.

        Raises:
            ValueError: nothing was measured at such a cost.
        """
        found = measured(self)
        points = against(kind, found, self.summary.measure) if kind in KINDS else []
        if not points:
            raise self._nothing(f"cost {kind!r}", f"one of {', '.join(KINDS)} that its networks were measured by")
        series: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            series.setdefault(point.series, []).append((point.cost, point.accuracy))
        front = [(point.cost, point.accuracy) for point in pareto_front([p for p in points if not p.quick])]
        return cost_drawing(series, front, f"{KINDS[kind]} kept, %", f"{self.summary.measure} on {split(found)} images")

    def plot_training(self, name: str = "") -> Drawing:
        """Loss, score and learning rate, epoch by epoch.

        Args:
            name: of a training in `training`; a comparison has several.

        Raises:
            ValueError: there is no such training.
        """
        epochs = self.training.get(name, [])
        columns = {key: [getattr(epoch, key) for epoch in epochs] for key in ("loss", "score", "learning_rate")}
        known = {key.replace("_", " "): values for key, values in columns.items() if values and None not in values}
        if not known:
            there = ", ".join(map(repr, self.training)) or "none"
            raise self._nothing(f"training {name!r}", f"there is {there}; apply and compare write one with --finetune")
        return training_drawing(known)

    def _nothing(self, what: str, remedy: str) -> ValueError:
        return ValueError(f"{self.folder} has no {what} to draw: {remedy}")


def open_run(folder: str | Path) -> Handle:
    """Open the folder of a run: of `train`, `apply`, `compare` or `plan`, also one that still goes on.

    Args:
        folder: that the command wrote.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no run is there, or a file of it is damaged.
    """
    folder = Path(folder)
    if (folder / SWEEP_NAME).is_file():
        inner = ", ".join(sorted(str(path.parent) for path in folder.glob("*/compare.json")))
        raise ValueError(f"{folder} holds a comparison for each budget: open one of them, {inner}")
    run = read_run(folder)
    return Handle(**{one.name: getattr(run, one.name) for one in fields(run)})


class Opens:
    """What a command leaves behind in a folder, which can be opened."""

    folder: Path

    @property
    def run(self) -> Handle:
        """The folder as `open_run` gives it, read when it is asked for."""
        return open_run(self.folder)


def _flat(episode: Mapping[str, Any]) -> dict[str, Any]:
    terms: Mapping[str, float] = episode.get("terms", {})
    rest = {key: value for key, value in episode.items() if key != "terms"}
    return rest | {f"terms.{name}": value for name, value in terms.items()}
