"""A run goes on with what it was begun with, or says what is other; what is logged is not mixed, edited or cut back."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur
import zoo
from secateur.agents.fingerprint import Fingerprint
from secateur.agents.log import Line, PlanLog
from secateur.commands import fingerprints
from secateur.storage.files import package_versions

AGENT = {"episodes": 5, "warmup": 1, "updates": 1, "hidden": [4], "rerank": 1}
SEARCH = zoo.batches("residual", (30, 10), seed=9)
DATA = {"calibration": zoo.batches("residual"), "search": SEARCH, "test": zoo.batches("residual", (20,), seed=5)}


def session(*overrides: str, model=None, **images) -> secateur.Session:
    tree = {"name": "mine", "budget": {"flops": 0.6}, "agent": AGENT, "correlate": {"plans": 3, "finetune_plans": 3}}
    config = secateur.Config.model_validate(tree)
    given = secateur.Images(**{**DATA, **images})
    return secateur.Session(config, model=model or zoo.make("residual"), images=given, overrides=overrides)


def text(folder: Path, name: str = "episodes.jsonl") -> str:
    return (folder / name).read_text()


def figures(folder: Path) -> list[dict]:
    """The lines but for their times."""
    return [{**json.loads(line), "seconds": 0} for line in text(folder).splitlines()]


@pytest.fixture(scope="module")
def base() -> secateur.Session:
    return session()


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> secateur.Training:
    return secateur.train(base, out=tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def begun(whole, tmp_path) -> Path:
    """A run that was killed after three episodes."""
    shutil.copytree(whole.folder, tmp_path / "run")
    log = tmp_path / "run" / "episodes.jsonl"
    log.write_text("".join(text(tmp_path / "run").splitlines(keepends=True)[:3]))
    return tmp_path / "run"


def shuffled(batches, seed=1):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return [(x[order], y[order])]


def other_weights():
    model = zoo.make("residual")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    return model


def other_buffer():
    model = zoo.make("residual")
    next(buffer for buffer in model.buffers() if buffer.is_floating_point())[0] += 1e-3
    return model


OTHER = {
    "other search images": (
        {"search": [(0.2 * x.flip(1), y) for x, y in SEARCH]},
        "images",
        "search images was '40 of",
    ),
    "one pixel": ({"search": [(x + (torch.arange(x.numel()).view_as(x) == 7), y) for x, y in SEARCH]}, "images", ""),
    "other labels": ({"search": [(x, (y + 1) % 5) for x, y in SEARCH]}, "images", "search images was '40 of"),
    "fewer images": ({"search": SEARCH[:1]}, "images", "is '30 of"),
    "shuffled": ({"calibration": shuffled(DATA["calibration"])}, "images", "calibration images was '64 of .* order"),
    "other weights": ({"model": other_weights()}, "network", "weights was"),
    "other statistics": ({"model": other_buffer()}, "network", "weights was"),
    "reward": (["reward.flops=5"], "reward", r"reward\.flops was 0\.0, is 5\.0 now"),
    "search repair": (["repair.search.kind=none"], "repair", r"repair\.search\.kind was 'sequential', is 'none' now"),
    "final repair": (["repair.final.refit=false"], "repair", r"repair\.final\.refit was True, is False now"),
    "criterion": (["criterion=l1"], "method", "criterion was 'obs', is 'l1' now"),
    "method": (["method=weights", "budget.params=0.6"], "method", "method was 'channels', is 'weights' now"),
    "layers": (["layers.round_to=2"], "method", r"layers\.round_to was 1, is 2 now"),
    "bounds": (["layers.max_sparsity=0.5"], "method", r"layers\.max_sparsity was None, is 0\.5 now"),
    "budget": (["budget.flops=0.61"], "budget", r"budget\.flops was 0\.6, is 0\.61 now"),
    "seed": (["seed=1"], "agent", "seed was 0, is 1 now"),
    "workers": (["workers=2"], "agent", "workers was 1, is 2 now"),
    "agent": (["agent.hidden=[5]"], "agent", r"agent\.hidden was \[4\], is \[5\] now"),
    "a higher rate": (["agent.learning_rate=0.1"], "agent", r"agent\.learning_rate was 0\.001, is 0\.1 now"),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_other_is_named_and_nothing_is_touched(begun, base, name):
    given, part, message = OTHER[name]
    other = base.beside(overrides=given) if isinstance(given, list) else session(**given)
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    expected = (
        rf"episodes\.jsonl was made with .*other {part} \(.*{message}.*start a new run in another folder \(--out\)$"
    )
    with pytest.raises(ValueError, match=expected) as refused:
        secateur.train(other, resume=begun)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


def test_what_may_differ_changes_nothing_that_is_logged(begun, whole):
    one = [(torch.cat([x for x, _ in SEARCH]), torch.cat([y for _, y in SEARCH]))]  # the same in another batch
    done = secateur.train(
        session("agent.rerank=3", "agent.learning_rate=0.0009", "name=hers", search=one), resume=begun
    )
    assert done.summary["replayed"] == 3
    assert text(begun).splitlines()[:3] == text(whole.folder).splitlines()[:3]


def test_a_longer_search_goes_on_from_what_is_there(begun, whole):
    secateur.train(session(), resume=begun)
    assert figures(begun) == figures(whole.folder)
    short = text(begun).splitlines()
    done = secateur.train(session("agent.episodes=7"), resume=begun)
    assert done.finished
    assert (done.summary["replayed"], done.summary["episodes"]) == (5, 7)
    assert text(begun).splitlines()[:5] == short
    assert len(figures(begun)) == 7
    before = {path.name: path.read_bytes() for path in begun.glob("*.*")}
    with pytest.raises(ValueError, match=r"jsonl holds 7 episodes, agent\.episodes = 5 asks for fewer: nothing is cut"):
        secateur.train(session(), resume=begun)
    assert {path.name: path.read_bytes() for path in begun.glob("*.*")} == before


def test_a_longer_search_keeps_the_budgets_that_were_walked_on(tmp_path):
    drawn = "agent.budgets=[0.5,0.8]"
    secateur.train(session(drawn), out=tmp_path / "run")
    short = figures(tmp_path / "run")
    done = secateur.train(session(drawn, "agent.episodes=7"), resume=tmp_path / "run")
    assert figures(tmp_path / "run")[:5] == short
    assert [e["budget"] for e in short][-1] == 0.6 != figures(tmp_path / "run")[5]["budget"]
    assert done.summary["replayed"] == 5


@pytest.mark.parametrize(
    ("version", "kind", "message"),
    [
        ({"secateur": "0.3.0"}, ValueError, r"other versions \(secateur was '0\.2\.\d+', is '0\.3\.0' now\)"),
        ({"secateur": "1.2.0"}, ValueError, r"other versions \(secateur was"),
        ({"secateur": "0.2.99"}, RuntimeWarning, r"secateur was .*, is 0\.2\.99 now: figures may differ in their last"),
        ({"torch": "3.0"}, RuntimeWarning, r"torch was .*, is 3\.0 now: figures may differ in their last digits"),
    ],
)
def test_versions(begun, base, monkeypatch, version, kind, message):
    monkeypatch.setattr(fingerprints, "package_versions", lambda: {**package_versions(), **version})
    log = PlanLog(begun / "episodes.jsonl", Line, fingerprints.of_training(base))
    with pytest.raises(kind, match=message):
        log.read(3)


def test_another_number_of_threads_is_named_and_goes_on(begun):
    torch.set_num_threads(2)
    try:
        log = PlanLog(begun / "episodes.jsonl", Line, fingerprints.of_training(session("threads=2")))
        with pytest.warns(RuntimeWarning, match="threads was 1, is 2 now"):
            assert len(log.read(len(figures(begun)[0]["kept"]))) == 3
    finally:
        torch.set_num_threads(1)


def test_every_key_of_a_config_is_compared_or_has_a_reason_not_to_be():
    tables = (fingerprints.PARTS, fingerprints.LEARNT, fingerprints.CORRELATED)
    compared = {name for table in tables for names in table.values() for name in names}
    assert compared | fingerprints.ELSEWHERE.keys() == secateur.Config.model_fields.keys()


def test_a_key_that_was_not_yet_known_is_not_compared(tmp_path):
    today = Fingerprint({"reward": {"flops": 0.0, "new": 1.0}, "more": {"key": 1}})
    today.check({"reward": {"flops": 0.0, "old": 2.0}}, tmp_path)
    with pytest.raises(ValueError, match=r"other reward \(flops was 1\.0, is 0\.0 now\)"):
        today.check({"reward": {"flops": 1.0}}, tmp_path)


def edited(lines: list[str], name: str) -> list[str]:
    one = json.loads(lines[1])
    changed = {
        "accuracy": {**one, "accuracy": one["accuracy"] + 1e-9},
        "quality": {**one, "quality": 3.0},
        "action": {**one, "actions": [0.5, *one["actions"][1:]]},
        "more": {**one, "remark": "better"},
        "no check": {key: value for key, value in one.items() if key != "check"},
    }
    return {
        **{key: [lines[0], json.dumps(value), lines[2]] for key, value in changed.items()},
        "swapped": [lines[0], lines[2], lines[1]],
        "taken out": [lines[0], lines[2]],
        "doubled": [lines[0], lines[1], lines[1], lines[2]],
        "first taken out": lines[1:],
    }[name]


@pytest.mark.parametrize(
    "name", ["accuracy", "quality", "action", "more", "no check", "swapped", "taken out", "doubled", "first taken out"]
)
def test_a_line_that_was_edited_is_refused(begun, name):
    log = begun / "episodes.jsonl"
    log.write_text("".join(f"{line}\n" for line in edited(text(begun).splitlines(), name)))
    before = log.read_bytes()
    line = {"doubled": 3, "first taken out": 1}.get(name, 2)
    with pytest.raises(
        ValueError, match=rf"episodes\.jsonl, line {line} is (damaged|not what was written there): .*delete"
    ):
        secateur.train(session(), resume=begun)
    assert log.read_bytes() == before


def write_log(path: Path, qualities: list[float]) -> list[bytes]:
    path.unlink(missing_ok=True)
    log = PlanLog(path, Line, Fingerprint({"part": {"key": 1}}))
    for number, quality in enumerate(qualities):
        log.write({"kept": [number], "quality": quality, "note": None, "seconds": 0.1})
    return path.read_bytes().splitlines(keepends=True)


@settings(max_examples=30)
@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=6), st.data())
def test_any_edit_but_cutting_lines_off_the_end_is_seen(tmp_path_factory, qualities, data):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    lines = write_log(path, qualities)
    place = data.draw(st.integers(0, len(lines) - 1))
    other = data.draw(st.floats(allow_nan=False).filter(lambda value: value != qualities[place]))
    record = json.loads(lines[place]) | {"quality": other}
    spoilt = {
        "changed": [*lines[:place], json.dumps(record).encode() + b"\n", *lines[place + 1 :]],
        "moved": [*lines[:place], *lines[place + 1 :], lines[place]],
        "doubled": [*lines[: place + 1], *lines[place:]],
    }[data.draw(st.sampled_from(["changed", "moved", "doubled"]))]
    path.write_bytes(b"".join(spoilt))
    if spoilt == lines[: len(spoilt)]:
        return
    with pytest.raises(ValueError, match=r"line \d is (not what was written there|damaged)"):
        PlanLog(path, Line).read(1)


@settings(max_examples=30)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5), st.data())
def test_whatever_was_cut_off_the_end_the_log_goes_on_as_it_would_have(tmp_path_factory, qualities, data):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    whole = b"".join(write_log(path, qualities))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    log = PlanLog(path, Line, Fingerprint({"part": {"key": 1}}))
    for number in range(len(log.read(1)), len(qualities)):
        log.write({"kept": [number], "quality": qualities[number], "note": None, "seconds": 0.1})
    assert path.read_bytes() == whole


def interrupted(folder: Path, name: str, result: str, keep: int) -> None:
    log = folder / name
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:keep]))
    (folder / result).unlink()


@pytest.fixture(scope="module")
def compared(whole, base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "compare"
    secateur.compare([whole.plan], base, against=["random"], candidates=3, seeds=[0, 1], out=folder)
    interrupted(folder, "candidates.jsonl", "compare.json", 2)
    return folder


@pytest.mark.parametrize(
    ("given", "arguments", "message"),
    [
        ({}, {"candidates": 4}, r"other comparison \(candidates was 3, is 4 now\)"),
        ({}, {"seeds": [0]}, r"other comparison \(seeds was \[0, 1\], is \[0\] now\)"),
        ({}, {"against": ["hill_climb"]}, r"other comparison \(against was \['random'\], is \['hill_climb'\] now\)"),
        ({}, {"finetune": 0, "plans": []}, r"other comparison \(plans was \["),
        ({"search": shuffled(SEARCH)}, {}, r"other images \(search images was"),
        ({"model": other_weights()}, {}, r"other network \(weights was"),
    ],
)
def test_a_comparison_goes_on_with_its_own_arguments_and_images(compared, whole, base, given, arguments, message):
    before = text(compared, "candidates.jsonl")
    asked = {"plans": [whole.plan], "against": ["random"], "candidates": 3, "seeds": [0, 1], **arguments}
    with pytest.raises(ValueError, match=rf"candidates\.jsonl was made with {message}"):
        secateur.compare(asked.pop("plans"), session(**given) if given else base, **asked, resume=compared)
    assert text(compared, "candidates.jsonl") == before
    assert not (compared / "compare.json").exists()


class Streaming(torch.utils.data.IterableDataset):
    """Has no length, though a DataLoader of it has the method."""

    def __iter__(self):
        return iter(zip(*SEARCH[0], strict=True))


def test_training_images_are_told_by_what_there_is_of_their_loader():
    loaders = {"2 batches": SEARCH, "the caller's": torch.utils.data.DataLoader(Streaming(), batch_size=10)}
    assert [session(train=loader).train_loader.identity for loader in loaders.values()] == list(loaders)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("against", "message"),
    [
        (["random"], r"other training images \(training images was '2 batches', is '1 batches' now"),
        ([], r"row\.safetensors is of another plan, or of a training with other images or settings: delete its folder"),
    ],
)
def test_a_comparison_trains_on_with_its_own_images(whole, base, tmp_path, monkeypatch, against, message):
    def given(train):
        return session("finetune.batch_size=10", train=train)

    arguments = {"against": against, "candidates": 1, "finetune": 1}
    folder = tmp_path / "compare"
    with monkeypatch.context() as patch:  # as if it was stopped between the last training and its end
        patch.setattr(importlib.import_module("secateur.commands.compare"), "remove_checkpoints", str)
        secateur.compare([whole.plan], given(SEARCH), out=folder, **arguments)
    (folder / "compare.json").unlink()
    with pytest.raises(ValueError, match=message):
        secateur.compare([whole.plan], given(SEARCH[:1]), resume=folder, **arguments)
    secateur.compare([whole.plan], given(SEARCH), resume=folder, **arguments)
    assert (folder / "compare.json").is_file()


def test_a_correlation_goes_on_with_its_own_images(base, tmp_path):
    folder = tmp_path / "run"
    secateur.correlate(base, out=folder)
    interrupted(folder, "rows.jsonl", "correlate.json", 2)
    with pytest.raises(ValueError, match=r"rows\.jsonl was made with other test \(test images was '20 of"):
        secateur.correlate(session(test=SEARCH), resume=folder)
