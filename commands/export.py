"""`secateur export`: a compressed network as a file for a runtime, checked there on real images, with a model card."""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..configs import ConfigError, did_you_mean
from ..configs.registry import admit
from ..configs.schema import DataConfig
from ..data.folders import open_images
from ..networks.copying import copied
from ..networks.inference import Batches, count_images
from ..networks.norms import fold_statistics
from ..networks.world import undisturbed
from ..pruners.plan import PLAN_NAME, RatioPlan
from ..pruners.saved import NETWORK_NAME, PACKED_NAME, WEIGHTS_NAME, load, pack_network
from ..reports.card import card
from ..reports.tables import Figures
from ..runtimes import RUNTIMES, Program, Runtime
from ..runtimes.parity import Network, Parity, compare
from ..storage.files import package_versions, sha256, write_json
from ..storage.folders import check_free, free_folder, whole_folder
from ..storage.packed import Coded
from ..training.inputs import call
from .resolve import Given
from .session import Session

EXPORT_NAME = "export.json"
CARD_NAME = "README.md"
WEIGHTS, PACKED = "safetensors", "packed"  # formats that are no runtime's
WEIGHTS_LOADING = """\
import secateur

network = secateur.load(".")"""
TOLERANCES = {"largest": 1e-4, "mean": 0.25}  # of float files and of 8-bit ones; over the outputs' spread


@dataclass(frozen=True)
class Exported:
    """What exporting leaves behind.

    Attributes:
        folder: with the files, `export.json` and a model card.
        report: what `export.json` holds.
    """

    folder: Path
    report: dict[str, Any]


@dataclass(frozen=True)
class _Ground:
    """What files are checked on.

    Attributes:
        images: that outputs are compared on.
        name: what they are.
        labelled: whether their targets are any.
        calibration: that 8-bit files get their ranges from.
        classes: their names, where they are known.
        data: how images become inputs, where the config says.
    """

    images: Batches
    name: str
    labelled: bool
    calibration: Batches
    classes: list[str]
    data: DataConfig | None


@undisturbed()
def export(
    run: str | Path,
    session: Session | Given = None,
    *,
    format: str = "onnx",
    int8: bool = False,
    normalise: bool = False,
    fold_norms: bool = False,
    tolerance: float | None = None,
    images: str | Path | None = None,
    out: str | Path | None = None,
) -> Exported:
    """Export a compressed network; its file is run in its runtime, and refused where it computes something else.

    Files take any number of images a batch. What is said of the network (plan, classes, versions) stands in the file
    itself, in `export.json` and in the model card `README.md`.

    Args:
        run: a folder that `apply` wrote.
        session: a session, or a config, its name or its file; none takes the config in the folder. A network of your
            own, or images of your own, come with it.
        format: `onnx`, `openvino`, `pt2`, `safetensors`, `packed` (as few bytes as the weights
            need), or a runtime as `package.module:callable`.
        int8: also a file of 8-bit integers, its ranges from the calibration images.
        normalise: whether the file takes pixels in [0, 1] and normalises them itself, by the config's mean and std.
        fold_norms: of a packed file, whether running statistics of batch norms go into their weights and biases: two
            numbers a channel less, outputs that are the same up to rounding.
        tolerance: the most that the largest difference of an output may be, over the standard deviation of all; of
            8-bit files the mean difference. None takes 1e-4, and 0.25.
        images: a folder of images in place of the run's data set: without labels, so that no accuracy is measured.
        out: an empty or new folder; none takes `exported-FORMAT` in the run's.

    Raises:
        ValueError, FileNotFoundError: bad input, a network that the format does not take, or a package that is missing.
        RuntimeError: the file computes something else than the network; nothing is left.
    """
    folder, session = Path(run), Session.of(session)
    runtime = _runtime(format, int8=int8, normalise=normalise, trust_code=session.trust_code)
    if fold_norms and format != PACKED:
        raise ValueError(f"fold_norms: only packed files are written so, not {format}: leave it out")
    check_free(out)
    if not (folder / NETWORK_NAME).is_file():  # before a config is asked for, which would help nobody
        raise FileNotFoundError(f"no {NETWORK_NAME} in {folder}: give a folder that `secateur apply` wrote")
    session = session.beside(folder, overrides=["device=cpu"], spends=False)
    own = session.model if session.config.network is None else None  # the caller's, else it is built by its name
    model = load(folder, own, trust_code=session.trust_code)
    session = session.beside(folder, spends=False, stand_in=model)
    ground = _ground(session, None if images is None else Path(images))
    place = free_folder(out, folder / f"exported-{format if runtime is None else runtime.format}")
    with whole_folder(place.absolute()) as temporary:
        job = _Job(session, model, ground, folder, temporary, tolerance)
        report = job.weights(own, format, fold_norms) if runtime is None else job.files(runtime, normalise, int8)
        write_json(temporary / EXPORT_NAME, report)
        (temporary / CARD_NAME).write_text(
            card(report, WEIGHTS_LOADING if runtime is None else runtime.loading), encoding="utf-8"
        )
    session.reporter.show(_table(report))
    return Exported(place, report)


def _runtime(format: str, *, int8: bool, normalise: bool, trust_code: bool) -> Runtime | None:
    """The runtime of a format, its packages there; none for weights.

    Raises:
        ValueError: no such format, or it cannot do what is asked.
    """
    admit({"format": format}, trust_code=trust_code)
    formats = {RUNTIMES[name].format: name for name in RUNTIMES}
    if format not in (WEIGHTS, PACKED) and ":" not in format and format not in formats:
        known = [*formats, WEIGHTS, PACKED]
        raise ValueError(f"no format {format!r}, only {', '.join(sorted(known))}{did_you_mean(format, known)}")
    runtime = None if format in (WEIGHTS, PACKED) else RUNTIMES[formats.get(format, format)]
    if runtime is None and normalise:
        raise ValueError(f"normalise: {format} files hold no operations: export onnx, openvino or pt2")
    if int8 and (runtime is None or not runtime.int8):
        able = [RUNTIMES[name].format for name in RUNTIMES if RUNTIMES[name].int8]
        raise ValueError(f"int8: {format} files are not quantised here: export {' or '.join(able)}")
    if runtime is not None:
        runtime.check_installed()
    return runtime


def _ground(session: Session, folder: Path | None) -> _Ground:
    data = session.config.data
    if folder is None:
        known = list(session.loaded.classes)
        name, batches = ("search", session.search) if session.test is None else ("test", session.test)
        return _Ground(batches, f"{name} images", True, session.calibration, known, data)
    if data is None:
        raise ConfigError("images: the config has no data section, which says how images are resized and normalised")
    given = open_images(folder, data)
    batches = given.batches(data.batch_size)
    return _Ground(batches, f"images of {folder.name}", False, batches, [], data)


@dataclass(frozen=True)
class _Job:
    """One export."""

    session: Session
    model: nn.Module
    ground: _Ground
    run: Path
    place: Path
    tolerance: float | None

    def files(self, runtime: Runtime, normalise: bool, int8: bool) -> dict[str, Any]:
        """Make the files of a runtime and check them; the report."""
        data, images = self.ground.data, self.ground.images[0][0]
        if normalise and data is None:
            raise ConfigError("normalise: the config has no data section, which holds mean and std")
        program = Program.of(self.model, images, (data.mean, data.std) if normalise and data is not None else None)
        told = self._told(runtime.format, runtime.versions()) | {
            "inputs": [
                {"name": name, "shape": list(t.shape[1:]), "dtype": str(t.dtype).removeprefix("torch.")}
                for name, t in zip(program.inputs, program.example, strict=True)
            ],
            "outputs": list(program.outputs),
            "normalises": normalise,
        }
        path = self.place / f"model{runtime.suffix}"
        with self.session.reporter.bar("export", 4 if int8 else 2) as advance:
            runtime.export(program, path, _about(told, "float32"))
            advance("checked")
            found = {"float32": self._checked(runtime, program, path, "largest")}
            advance("8-bit integers")
            if int8:
                small = self.place / f"model-int8{runtime.suffix}"
                seen = (program.inputs_of(images) for images, _ in self.ground.calibration)
                runtime.quantise(path, small, seen, _about(told, "int8"))
                advance("checked")
                found["int8"] = self._checked(runtime, program, small, "mean")
                advance("")
        return told | {"files": found}

    def weights(self, own: nn.Module | None, format: str, fold_norms: bool) -> dict[str, Any]:
        """Copy or pack weights and recipe and check them; the report. A dense network of the caller's own is given.

        Raises:
            RuntimeError: not every bit came back.
        """
        told, written = self._told(format, {}), self.model
        if format == PACKED:
            if fold_norms:
                written = copied(self.model)
                fold_statistics(written)
            files = [self.place / PACKED_NAME]
            coded = pack_network(self.run, self.place, written.state_dict())
            told["packing"] = _packing(coded, self.run / WEIGHTS_NAME, files[0])
        else:
            files = [self.place / WEIGHTS_NAME, self.place / NETWORK_NAME]
            for file in files:
                shutil.copyfile(self.run / file.name, file)
        again = load(self.place, own, trust_code=self.session.trust_code)
        given, state = written.state_dict(), again.state_dict()
        if odd := [name for name in given if not torch.equal(given[name], state[name])]:
            raise RuntimeError(f"{files[0].name}: {odd[0]} is not what was saved; nothing is kept")
        return told | {"files": {"float32": self._row(files, partial(call, again), "largest")}}

    def _told(self, format: str, versions: Mapping[str, str]) -> dict[str, Any]:
        plan = RatioPlan.load(self.run) if (self.run / PLAN_NAME).is_file() else None
        ground, objective = self.ground, self.session.objective
        data = ground.data
        return {
            "schema_version": 1,
            "format": format,
            "network": type(self.model).__name__ if plan is None else plan.architecture,
            "classes": ground.classes,
            "mean": None if data is None else list(data.mean),
            "std": None if data is None else list(data.std),
            "checked_on": f"{count_images(ground.images):,} {ground.name}",
            "measure": objective.measure if ground.labelled else None,
            "versions": package_versions() | dict(versions),
            "fingerprint": None if plan is None else plan.fingerprint,
            "plan": None if plan is None else plan.model_dump(mode="json"),
        }

    def _checked(self, runtime: Runtime, program: Program, path: Path, by: str) -> dict[str, Any]:
        run = runtime.open(path, self.session.config.threads)
        return self._row(runtime.files(path), lambda images: program.outputs_of(run(program.inputs_of(images))), by)

    def _row(self, files: list[Path], network: Network, by: str) -> dict[str, Any]:
        """What is found of one file.

        Args:
            files: that belong to it; it is the first.
            network: it, opened.
            by: which difference must be within the tolerance, `largest` or `mean`.

        Raises:
            RuntimeError: it is not.
        """
        ground = self.ground
        found = compare(self.model, network, ground.images, self.session.objective, labelled=ground.labelled)
        most = TOLERANCES[by] if self.tolerance is None else self.tolerance
        parity, told = found.parity, asdict(found.parity)
        if not told[by] <= most:
            apart = f"{parity.largest:.1e} of their spread at most, {parity.mean:.1e} on average{_changed(parity)}"
            raise RuntimeError(
                f"{files[0].name} does not compute what the network computes: its outputs differ by {apart}; the {by} "
                f"may be {most:g} (--tolerance); nothing is kept"
            )
        return {
            "file": files[0].name,
            "bytes": sum(file.stat().st_size for file in files),
            "sha256": {file.name: sha256(file) for file in files},
            "parity": told,
            "measure_in_torch": found.torch,
            "measure_in_runtime": found.runtime,
        }


def _packing(coded: Sequence[Coded], weights: Path, packed: Path) -> dict[str, Any]:
    """How small a packed file is, beside what else there is: floats, LZMA of them, and the entropy of what is told."""
    numbers = sum(part.numbers for part in coded)
    return {
        "float32_bytes": 4 * numbers,
        "lzma_bytes": len(lzma.compress(weights.read_bytes(), preset=9)),
        "entropy_bytes": sum(part.entropy for part in coded) / 8,
        "bytes": packed.stat().st_size,
        "tensors": [asdict(part) for part in coded],
    }


def _about(told: Mapping[str, Any], precision: str) -> dict[str, str]:
    """What is written into a file."""
    kept = ("network", "classes", "mean", "std", "normalises", "versions", "plan", "fingerprint")
    texts = {key: told[key] if isinstance(told[key], str) else json.dumps(told[key]) for key in kept}
    return texts | {"precision": precision}


def _changed(parity: Parity) -> str:
    return "" if parity.changed is None else f", {parity.changed} of {parity.answers} answers are other ones"


def _table(report: Mapping[str, Any]) -> Figures:
    rows = []
    for precision, row in report["files"].items():
        parity = Parity(**row["parity"])
        measures = ["–" if m is None else f"{m:.2f}" for m in (row["measure_in_torch"], row["measure_in_runtime"])]
        changed = "–" if parity.changed is None else f"{parity.changed} of {parity.answers}"
        sizes = [f"{row['bytes']:,}", f"{parity.largest:.1e}", f"{parity.mean:.1e}"]
        rows.append([f"{row['file']} ({precision})", *sizes, changed, *measures])
    measure = (report["measure"] or "").removesuffix(" %") or "measure"
    head = ("file", "bytes", "largest", "mean", "other answers", f"{measure} in torch", "in the runtime")
    note = f"on {report['checked_on']}; differences over the outputs' spread"
    return Figures(f"The network as {report['format']}", note, head, rows)
