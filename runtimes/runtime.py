"""What a runtime is: it makes a file of a network, runs it, says what is written in it, and may quantise it."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..training.inputs import Inputs
from .program import Program
from .timing import Run, milliseconds

About = Mapping[str, str]
"""What is written into a file beside the network, by name."""

KEY = "secateur"  # what the names begin with in the file, where others write, too


class Runtime(ABC):
    """One runtime. Derive from it and write `export`, `open` and `about`; `quantise` where there is a way.

    Attributes:
        format: what its files are called in `--format`.
        suffix: that they end in.
        extra: of secateur, that installs what it needs; none where torch is enough.
        packages: that it needs, as they are imported.
        int8: whether it can quantise.
        loading: lines of Python that run a file; `{file}`, `{inputs}` (name: array, …) and `{arrays}` are filled in.
    """

    format: str
    suffix: str
    extra: str | None = None
    packages: tuple[str, ...] = ()
    int8: bool = False
    loading: str = ""

    @abstractmethod
    def export(self, program: Program, path: Path, about: About) -> None:
        """Write the network to a file, with any number of images a batch, and what is to be said of it.

        Raises:
            ValueError: the runtime's converter does not take it; in one line.
        """

    @abstractmethod
    def open(self, path: Path, threads: int | None = None) -> Run:
        """A file ready to run on the CPU, with so many threads; none leaves the runtime its own number."""

    @abstractmethod
    def about(self, path: Path) -> dict[str, str]:
        """What `export` wrote into the file beside the network."""

    def quantise(self, path: Path, to: Path, images: Iterable[Sequence[Tensor]], about: About) -> None:
        """Write a file of 8-bit integers.

        Args:
            path: of the float file.
            to: of the new one.
            images: input tensors of calibration images, a batch at a time.
            about: what is to be said of it.

        Raises:
            ValueError: there is no way, or it fails.
        """
        raise ValueError(f"int8: {self.format} files are not quantised here; export onnx or openvino")

    def write(
        self, networks: Sequence[nn.Module], images: Sequence[Inputs], paths: Sequence[Path], *, int8: bool = False
    ) -> None:
        """Write a file of each network, with nothing said of it, to be timed.

        Here one after the other. Most of what an exporter takes for a layer is spent before it looks at it, so that a
        runtime that can does many at once.

        Args:
            networks: in eval mode, on the CPU.
            images: for each a batch that it takes; 8-bit files are quantised on these.
            paths: of the files.
            int8: whether they are of 8-bit integers.

        Raises:
            ValueError: see `Program.of`, `export` and `quantise`.
        """
        for network, given, path in zip(networks, images, paths, strict=True):
            whole = floats(path) if int8 else path
            program = Program.of(network, given)
            self.export(program, whole, {})
            if int8:
                self._quantise_alone(whole, path, program.inputs_of(given))

    def _quantise_alone(self, whole: Path, path: Path, tensors: Sequence[Tensor]) -> None:
        """The float file is gone afterwards: dozens of large networks are timed together, and disks are small."""
        self.quantise(whole, path, [tensors], {})
        for file in self.files(whole):
            file.unlink(missing_ok=True)  # a quantiser of your own may have moved it

    def _makes_files_as(self, runtime: type[Runtime]) -> bool:
        """Whether a class derived from one that can do many at once has left alone how it makes one."""
        return all(getattr(type(self), name) is getattr(runtime, name) for name in ("export", "quantise"))

    def milliseconds(
        self, paths: Mapping[str, Path], images: Mapping[str, Sequence[Tensor]], *, threads: int, passes: int
    ) -> dict[str, float]:
        """Median milliseconds of a pass of each file, here and in turns; where they run on a board, ask the board.

        Args:
            paths: of files that `export` or `quantise` wrote, by name.
            images: input tensors for each.
            threads: that it may have.
            passes: counted ones.
        """
        runs = {name: self.open(path, threads) for name, path in paths.items()}
        return milliseconds(runs, images, threads=threads, passes=passes)

    def files(self, path: Path) -> list[Path]:
        """All that belongs to a file: itself, and what lies beside it."""
        return [path]

    def versions(self) -> dict[str, str]:
        """Of the packages that make and run its files."""
        found = {}
        for name in ("torch", *self.packages):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        return found

    def check_installed(self) -> None:
        """Whether its packages are there.

        Raises:
            ValueError: one is not; the message says how it is installed.
        """
        for name in self.packages:
            needed(name, self.extra)


def floats(path: Path) -> Path:
    """Where the network stands in single precision that a file of 8-bit integers is made of."""
    return path.with_name(f"float-{path.name}")


def needed(name: str, extra: str | None) -> Any:
    """A module of an extra.

    Raises:
        ValueError: it is not installed.
    """
    try:
        with quietly():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise  # it is there, and misses one of its own
        raise ValueError(f"{name} is not installed: pip install 'secateur[{extra}]'") from None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """For the length of a block another library's warnings, log lines below errors and progress bars are not shown.

    What they log on the root logger gives it a handler, which is taken away again.
    """
    root = logging.getLogger()
    handlers, disabled = list(root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers


@contextlib.contextmanager
def converted(what: str, remedy: str) -> Iterator[None]:
    """Another library's failure in a line: which, why, and what helps. Converters fail in any way there is.

    Raises:
        ValueError: the block failed.
    """
    try:
        with quietly():
            yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__
        raise ValueError(f"{what} does not take this network ({reason}): {remedy}") from error
