"""Whoever the workers are: every candidate is evaluated, once, in order; no death is the end but three of one plan."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.envs import Evaluation, ParallelEvaluator


class DiedError(Exception):
    """What has happened to a worker."""


class Serial:
    """What a parallel evaluator needs of the one that it stands for."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], Evaluation] = {}
        self.seconds = {"prune": 1.0}


class Crew:
    """Workers that do nothing by themselves: with every look at them, one that can do something does it.

    Attributes:
        fate: what evaluating a candidate comes to, if not to an evaluation; called with what it keeps and the attempt.
        starts: futures of starting workers, outcomes that are given to them in turn.
        hired: all workers there were.
        evaluated: how often each candidate was given to a worker.
        most: how many workers had something to do at once.
    """

    died = DiedError

    def __init__(
        self,
        seed: int = 0,
        fate: Callable[[tuple[int, ...], int], Exception | None] = lambda *_: None,
        starts: tuple[Exception | str | None, ...] = (),
    ):
        self.rng = np.random.default_rng(seed)
        self.fate = fate
        self.starts = list(starts)
        self.hired: list[FakeWorker] = []
        self.evaluated: Counter[tuple[int, ...]] = Counter()
        self.most = 0
        self.closed = False

    def hire(self) -> FakeWorker:
        self.hired.append(FakeWorker(self, self.starts.pop(0) if self.starts else None))
        return self.hired[-1]

    def close(self) -> None:
        assert all(worker.stopped for worker in self.hired)
        self.closed = True

    def look(self, futures, return_when):
        """Takes the place of `concurrent.futures.wait`: one of them is done, whichever."""
        assert len(futures) == len({id(worker) for worker, _ in futures.values()})  # one thing at a time
        self.most = max(self.most, sum(key is not None for _, key in futures.values()))
        able = [future for future in futures if hasattr(future, "outcome")]
        future = able[self.rng.integers(len(able))]
        if isinstance(future.outcome, Exception):
            future.set_exception(future.outcome)
        else:
            future.set_result(future.outcome)
        return type("Done", (), {"done": {future}})


class FakeWorker:
    def __init__(self, crew: Crew, start: Exception | str | None):
        self.crew = crew
        self.stopped = False
        self.started: Future[None] = Future()
        if start != "never":
            self.started.outcome = start  # type: ignore[attr-defined]

    def start(self) -> Future[None]:
        return self.started

    def evaluate(self, kept: tuple[int, ...]):
        assert not self.stopped
        assert self.started.done()
        self.crew.evaluated[kept] += 1
        future = Future()
        future.outcome = self.crew.fate(kept, self.crew.evaluated[kept]) or (worth(kept), {"prune": 0.5})
        return future

    def stop(self) -> None:
        self.stopped = True


def worth(kept: tuple[int, ...]) -> Evaluation:
    return Evaluation(float(sum(kept)), 0.0, 0.5, 0.5)


def plans(*kept: int) -> list[np.ndarray]:
    return [np.array([count, 7]) for count in kept]


@pytest.fixture
def evaluators(monkeypatch: pytest.MonkeyPatch):
    def make(crew: Crew, workers: int = 2) -> ParallelEvaluator:
        monkeypatch.setattr("secateur.envs.workers.parallel.wait", crew.look)
        return ParallelEvaluator(Serial(), crew, workers)  # type: ignore[arg-type]

    return make


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.integers(0, 8), max_size=12), workers=st.integers(1, 4), seed=st.integers(0, 99), dies=st.data()
)
def test_all_are_evaluated_in_order_whoever_is_first_and_whoever_dies(asked, workers, seed, dies):
    deaths = {count: dies.draw(st.integers(0, 2)) for count in set(asked)}
    crew = Crew(seed, lambda kept, attempt: DiedError() if attempt <= deaths[kept[0]] else None)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        patch.setattr("secateur.envs.workers.parallel.wait", crew.look)
        with ParallelEvaluator(Serial(), crew, workers) as evaluator:
            found = list(evaluator.evaluate_all(plans(*asked)))
            assert sum(not worker.stopped for worker in crew.hired) <= workers
    assert len(told) == sum(deaths.values())
    assert found == [worth((count, 7)) for count in asked]
    assert crew.evaluated == {(count, 7): 1 + died for count, died in deaths.items()}
    assert crew.most <= workers
    assert crew.closed


def test_what_is_known_or_asked_twice_is_not_evaluated_again(evaluators):
    crew = Crew()
    evaluator = evaluators(crew)
    evaluator.known[3, 7] = worth((0, 0))
    assert list(evaluator.evaluate_all(plans(5, 3, 5))) == [worth((5, 7)), worth((0, 0)), worth((5, 7))]
    assert evaluator.evaluate(plans(5)[0]) == worth((5, 7))
    assert crew.evaluated == {(5, 7): 1}
    assert len(crew.hired) == 1  # one candidate needs no second worker


def test_workers_work_at_the_same_time_and_stay(evaluators):
    crew = Crew()
    evaluator = evaluators(crew, 3)
    assert len(list(evaluator.evaluate_all(plans(*range(9))))) == 9
    assert crew.most == 3
    assert len(list(evaluator.evaluate_all(plans(*range(20, 29))))) == 9
    assert len(crew.hired) == 3


def test_an_evaluation_is_there_before_the_rest_are(evaluators):
    crew = Crew()
    found = evaluators(crew, 1).evaluate_all(plans(1, 2, 3))
    assert crew.evaluated == {}
    assert next(found) == worth((1, 7))
    assert crew.evaluated == {(1, 7): 1}


DIED = pytest.mark.filterwarnings("ignore:a worker died")


@DIED
def test_a_plan_that_three_workers_die_of_ends_the_run(evaluators):
    crew = Crew(fate=lambda kept, _: DiedError() if kept[0] == 4 else None)
    with (
        pytest.raises(RuntimeError, match=r"3 workers in a row died of the plan with kept \[4, 7\].*lower workers"),
        evaluators(crew) as evaluator,
    ):
        list(evaluator.evaluate_all(plans(1, 4, 2)))
    assert crew.evaluated[4, 7] == 3
    assert crew.closed


@DIED
def test_workers_that_do_not_start_end_the_run(evaluators):
    crew = Crew(starts=(DiedError(), DiedError(), DiedError()))
    with pytest.raises(RuntimeError, match="3 workers in a row died while starting"), evaluators(crew, 1) as evaluator:
        list(evaluator.evaluate_all(plans(1)))
    assert len(crew.hired) == 3
    crew = Crew(starts=(DiedError(), DiedError(), None))
    assert list(evaluators(crew, 1).evaluate_all(plans(1))) == [worth((1, 7))]


def test_others_go_on_without_a_worker_that_has_no_room_to_start(evaluators):
    """A Ray cluster that lost a node has none until another comes."""
    crew = Crew(starts=(None, "never"))
    with evaluators(crew) as evaluator:
        assert len(list(evaluator.evaluate_all(plans(*range(5))))) == 5
    assert len(crew.hired) == 2


def test_an_error_of_the_evaluation_is_the_callers(evaluators):
    crew = Crew(fate=lambda *_: ValueError("no such layer"))
    with pytest.raises(ValueError, match="no such layer"), evaluators(crew) as evaluator:
        list(evaluator.evaluate_all(plans(1)))
    assert crew.evaluated == {(1, 7): 1}
    assert crew.closed


def test_the_workers_time_counts(evaluators):
    evaluator = evaluators(Crew())
    assert len(list(evaluator.evaluate_all(plans(1, 2, 3)))) == 3
    assert evaluator.seconds == {"prune": 1.0 + 3 * 0.5}
