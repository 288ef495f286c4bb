"""Verdicts claim what the figures bear, and no more."""

from __future__ import annotations

from pathlib import Path

from secateur.reports.run import About, Figures, Run, Summary
from secateur.reports.verdicts import scored, standing, verdict


def run(kind: str, *, finished: bool = True, **summary) -> Run:
    return Run(
        folder=Path("r"), kind=kind, finished=finished, config={}, config_text="", summary=Summary(**summary),
        plan=None, plans=[], episodes=[], training={}, exports={}, about=About(), data={},
    )  # fmt: skip


def row(allocator: str, seed: int, lead: float, error: float = 0.25) -> Figures:
    return Figures(
        allocator=allocator, seed=seed, test_accuracy=80 - lead, test_lead=lead, test_lead_standard_error=error
    )


FIRST = Figures(allocator="ddpg", seed=0, test_accuracy=80.0)


def test_ahead_is_beyond_two_standard_errors_with_every_seed():
    leads = [("far", 1.0, 0.25), ("near", 0.5, 0.25), ("mixed", 1.0, 0.25), ("mixed", 0.1, 0.25), ("better", -1.0, 0.2)]
    assert standing(leads) == (["far"], ["near", "mixed"], ["better"])
    assert standing([("same", 0.0, 0.0)]) == ([], ["same"], [])


def test_a_comparison_says_by_how_much_and_how_sure():
    rows = [FIRST, row("ddpg", 1, 3.0), row("uniform", 0, 4.03), row("deep", 0, 0.3), row("random", 0, -2.0),
            row("random", 1, -1.0)]  # fmt: skip
    first, seeds, caution = verdict(run("compare", rows=rows))
    assert first == (
        "ddpg scores 80.00 % top-1 on the test images: ahead of uniform (by 4.03 ± 0.25 points); level with deep (by "
        "0.30 ± 0.25 points); behind random (by 1.00 to 2.00 points over 2 seeds, ± 0.25 each)."
    )
    assert seeds == "Its other seeds score 77.00 (seed 1)."
    assert "beyond two of them" in caution


def test_without_test_images_nothing_is_claimed():
    rows = [Figures(allocator="ddpg", search_accuracy=90.0), Figures(allocator="uniform", search_accuracy=80.0)]
    (only,) = verdict(run("compare", rows=rows))
    assert "no test images" in only
    assert "ahead" not in only


def test_a_search_says_that_its_images_chose_the_plan():
    figures = {
        "best": Figures(episode=3, search_accuracy=90.0, flops=0.5),
        "base": Figures(search_accuracy=88.0),
        "dense": Figures(search_accuracy=95.0),
    }
    first, caution = verdict(run("train", images={"search": 400}, **figures))
    assert first == (
        "The best plan (episode 3) keeps 50.0 % of the FLOPs and scores 90.00 % top-1 on the 400 search images; the "
        "base plan 88.00 and the dense network 95.00."
    )
    assert "favourable" in caution
    assert "standard error of 1.50 points" in caution  # √(0.9 · 0.1 / 400)
    assert "standard error" not in verdict(run("train", images={"search": 400}, measure="mIoU %", **figures))[1]
    assert verdict(run("train")) == []


def test_an_application_says_what_was_lost_and_what_was_won():
    pruned = Figures(
        test_accuracy=85.0, flops=0.5, params=0.25, latency_ms=3.0, test_change=-5.0, test_change_standard_error=0.3
    )
    dense = Figures(test_accuracy=90.0, latency_ms=4.0)
    first, speed, caution = verdict(run("apply", pruned=pruned, dense=dense, latency_batch=32))
    assert first == (
        "The smaller network keeps 50.0 % of the FLOPs and 25.0 % of the parameters and scores 85.00 % top-1 on the "
        "test images, the dense one 90.00: −5.00 ± 0.30 points."
    )
    assert "3.00 ms instead of 4.00 ms, 0.75 of the time" in speed
    assert "same images" in caution
    (alone,) = verdict(run("apply", pruned=Figures(flops=0.5), dense=Figures()))
    assert alone == "The smaller network keeps 50.0 % of the FLOPs."


def test_what_is_not_finished_is_called_so():
    (only,) = verdict(run("apply", finished=False))
    assert "secateur apply --resume" in only


def test_a_score_has_the_name_of_its_measure():
    assert scored(12.25, "mIoU %") == "12.25 % mIoU"
    assert scored(1.0, "points") == "1.00 points"
