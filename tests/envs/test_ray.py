"""A real Ray cluster on this machine, of two nodes, one of which is killed. Where Ray is not installed: skipped."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import zoo
from secateur.configs.schema import SearchRepair
from secateur.envs import CandidateEvaluator, ParallelEvaluator
from secateur.envs.workers import ray as module
from secateur.envs.workers.ray import Actors
from secateur.pruners import Compressor, Context


def make(kind: type[CandidateEvaluator] = CandidateEvaluator) -> CandidateEvaluator:
    context = Context(zoo.make("residual"), zoo.structure("residual"), zoo.batches("residual"), "l1")
    return kind(Compressor(context), zoo.batches("residual", (20, 20), seed=9), SearchRepair(kind="sequential"))


def draw(count: int) -> list[np.ndarray]:
    rng, dense = np.random.default_rng(0), zoo.structure("residual").units
    return [rng.integers(1, dense + 1) for _ in range(count)]


def test_a_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need ray: pip install 'secateur\[ray\]'"):
        Actors(make(), 1, 2, "auto")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with room for one worker each."""
    pytest.importorskip("ray", reason="ray is an extra: pip install 'secateur[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


ray_warns = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")


@ray_warns
def test_a_node_that_is_killed_takes_no_candidate_with_it(cluster, tmp_path: Path) -> None:
    (doomed,) = cluster.worker_nodes
    name = doomed.node_id

    class Doomed(CandidateEvaluator):  # local, so that it is sent whole
        def evaluate(self, kept):
            import ray

            node = ray.get_runtime_context().get_node_id()
            (tmp_path / f"{node}-{time.monotonic_ns()}").touch()
            while node == name or not list(tmp_path.glob(f"{name}-*")):  # it is in a candidate when it is killed
                time.sleep(0.05)
            return super().evaluate(kept)

    def kill() -> None:
        while not list(tmp_path.glob(f"{name}-*")):
            time.sleep(0.05)
        cluster.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    plans, evaluator = draw(10), make(Doomed)
    with (
        pytest.warns(RuntimeWarning, match="a worker died of the plan"),
        ParallelEvaluator(evaluator, Actors(evaluator, 1, 2, cluster.address), 2) as workers,
    ):
        found = list(workers.evaluate_all(plans))
    killer.join()
    assert found == list(make().evaluate_all(plans))  # the numbers of this process, too
    assert len(list(tmp_path.glob(f"{name}-*"))) == 1
    assert len(list(tmp_path.iterdir())) == 11


@ray_warns
def test_an_error_on_an_actor_is_told_as_it_is_here(cluster) -> None:
    evaluator = make()
    with (
        pytest.raises(ValueError, match="3 layers") as raised,
        ParallelEvaluator(evaluator, Actors(evaluator, 1, 1, cluster.address), 1) as workers,
    ):
        workers.evaluate(np.array([1, 2, 3, 4]))
    assert "\n" not in str(raised.value)


@ray_warns
def test_workers_that_no_node_has_room_for_are_refused(cluster) -> None:
    with pytest.raises(ValueError, match=r"threads = 99 CPUs, the Ray cluster has \d: lower threads"):
        Actors(make(), 99, 1, cluster.address)
