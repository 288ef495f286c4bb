"""What all tests need: one thread, the same random numbers in any order, the real images."""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the networks are small, and the machine may be shared
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
hypothesis.settings.register_profile(
    "shared",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,  # the same examples in every run of CI, new ones elsewhere
)
hypothesis.settings.load_profile("shared")


class TorchRandom:
    """Torch's generator as hypothesis handles those of Python and numpy: every example begins with the same seed."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH = TorchRandom()
hypothesis.register_random(TORCH)


def seed() -> None:
    """Whatever a module draws when it is imported, a fixture when it is made or a test when it runs, it draws the same,
    whichever came before it and in whichever process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report() -> None:
    seed()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    seed()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    seed()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images and pretrained networks: SECATEUR_DATA, or ../shared/data beside the repository."""
    given = os.environ.get("SECATEUR_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "cifar10-lossless").is_dir():
        pytest.skip(f"no real data in {folder}: set SECATEUR_DATA")
    return folder


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is kept in the user's own cache; processes that tests start share this one."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SECATEUR_CACHE"] = str(folder)
    return folder
