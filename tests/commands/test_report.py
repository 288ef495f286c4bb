"""A run's report: one page that opens offline, holds all its data, and never takes a name for markup."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import secateur
from secateur.commands import cli
from secateur.reports.html import page
from secateur.reports.run import read_run
from secateur.storage.files import is_temporary

VOID = {"br", "col", "hr", "meta", "link", "img", "input"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"


class Page(HTMLParser):
    """A page as a browser reads it; what is not nested as it should be fails."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.words: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append((self.stack[-1] if self.stack else "", data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def data(self) -> dict:
        (text,) = (data for tag, data in self.words if tag == "script" and data.startswith("{"))
        return json.loads(text)

    @property
    def text(self) -> str:
        return " ".join(data for tag, data in self.words if tag not in ("script", "style")).replace("\xa0", " ")


def opened(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def applied(run, tmp_path_factory) -> Path:
    return secateur.apply(run.folder, finetune=2, out=tmp_path_factory.mktemp("report") / "applied").folder


@pytest.fixture(scope="module")
def compared(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report") / "compare"
    return secateur.compare([run.folder], against=["uniform", "random"], candidates=3, out=out).folder


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_every_command_leaves_a_report(run, applied, compared):
    for folder, heading, shown in (
        (run.folder, "digits: search", {"network", "search", "figures", "made"}),
        (applied, "digits: plan applied", {"network", "figures", "training", "made"}),
        (compared, "digits: comparison", {"network", "search", "figures", "made"}),
    ):
        read = opened(folder / "report.html")
        assert ("h1", heading) in read.words
        assert shown <= {str(part.get("id")).removeprefix("r0-") for part in read.of("section")}
        assert not any(is_temporary(path) for path in folder.iterdir())


def test_the_page_says_what_the_files_say(run, applied, compared):
    search, small, plans = (opened(folder / "report.html") for folder in (run.folder, applied, compared))
    best = run.summary["best"]
    assert f"scores {best['search_accuracy']:.2f} % top-1 on the 100 search images" in search.text
    tips = [mark["aria-label"] for mark in search.of("circle") if "aria-label" in mark]
    for episode in search.data()["digits"]["episodes"]:
        assert any(str(tip).startswith(f"episode {episode['episode']}: quality") for tip in tips)
    for layer in run.plan.layers:
        assert f"{layer.kept:,} of {layer.units:,}" in search.text
    assert {"uniform", "shallow", "deep", "base plan"} <= {data for _, data in search.words}

    summary = json.loads((applied / "summary.json").read_text())
    change, error = summary["pruned"]["test_change"], summary["pruned"]["test_change_standard_error"]
    assert change == pytest.approx(summary["pruned"]["test_accuracy"] - summary["dense"]["test_accuracy"])
    assert f"{change:+.2f} ± {error:.2f}".replace("-", "−") in small.text
    assert f"{summary['pruned']['bytes']:,}" in small.text
    assert summary["pruned"]["bytes"] < summary["dense"]["bytes"]
    assert f"{summary['pruned']['latency_ms']:.2f} ms instead of" in small.text

    for row in json.loads((compared / "compare.json").read_text())["rows"][1:]:
        lead = f"{row['test_lead']:+.2f} ± {row['test_lead_standard_error']:.2f}".replace("-", "−")
        assert lead in plans.text


def test_the_paired_error_is_that_of_the_images(applied):
    """The change is a mean over images of −1, 0 and 1: so is its error, which no pairing could give otherwise."""
    pruned = json.loads((applied / "summary.json").read_text())["pruned"]
    change, error = pruned["test_change"] / 100, pruned["test_change_standard_error"] / 100
    changed = error**2 * 99 + change**2  # the share of images whose answer changed, of a hundred images
    assert 100 * changed == pytest.approx(round(100 * changed), abs=1e-3)


def test_all_data_is_in_the_page(run, compared):
    tree = opened(run.folder / "report.html").data()["digits"]
    assert tree["command"] == "train"
    assert tree["result"] == run.summary
    assert tree["plan"] == json.loads((run.folder / "plan.json").read_text())
    assert tree["config"] == yaml.safe_load((run.folder / "config.yaml").read_text())
    lines = [json.loads(line) for line in (run.folder / "episodes.jsonl").read_text().splitlines()]
    assert [episode["kept"] for episode in tree["episodes"]] == [line["kept"] for line in lines]
    tree = opened(compared / "report.html").data()["compare"]
    assert [plan["provenance"]["allocator"] for plan in tree["plans"]] == ["ddpg", "uniform", "random"]


@pytest.fixture(scope="module")
def joined(run, applied, compared, tmp_path_factory) -> Path:
    return secateur.report(run.folder, applied, compared, out=tmp_path_factory.mktemp("joined") / "all.html")


def test_a_page_is_complete_and_can_be_used_by_everybody(run, applied, compared, joined):
    for path in (run.folder / "report.html", applied / "report.html", compared / "report.html", joined):
        read = opened(path)
        ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert all(str(link["href"]).removeprefix("#") in ids for link in read.of("a"))
        named = [attributes["aria-labelledby"] for _, attributes in read.tags if "aria-labelledby" in attributes]
        assert set(named) <= set(ids)
        levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert all(len(read.of(tag)) == 1 for tag in ("header", "main", "footer", "nav"))
        assert read.of("html")[0]["lang"] == "en"
        assert all(cell["scope"] in ("col", "row") for cell in read.of("th"))
        assert len(read.of("caption")) == len(read.of("table"))
        plots = [svg for svg in read.of("svg") if svg.get("class") == "plot"]
        assert plots
        assert all(svg["aria-label"] and svg["tabindex"] == "0" for svg in plots)
        signs = [svg for svg in read.of("svg") if svg.get("class") != "plot"]
        assert all(svg["aria-hidden"] == "true" for svg in signs)


def test_a_page_asks_for_nothing_from_anywhere(joined):
    read = opened(joined)
    assert not any(name in attributes for _, attributes in read.tags for name in ("src", "style", "onclick", "srcset"))
    assert all(str(link["href"]).startswith("#") for link in read.of("a"))
    assert not read.of("link")
    text = joined.read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = (meta["content"] for meta in read.of("meta") if "http-equiv" in meta)
    assert str(policy).startswith("default-src 'none'")
    assert "unsafe" not in str(policy)


def test_the_same_run_gives_the_same_bytes(run, joined, applied, compared, tmp_path):
    path = run.folder / "report.html"
    before = path.read_bytes()
    assert secateur.report(run.folder) == path
    assert path.read_bytes() == before
    again = secateur.report(run.folder, applied, compared, out=tmp_path / "again.html")
    assert again.read_bytes() == joined.read_bytes()


def test_names_are_never_markup(run, compared, tmp_path):
    folder = copied(compared, tmp_path / "<b>x&y")
    text = (folder / "compare.json").read_text()
    tree = json.loads(text)
    tree["measure"] = EVIL
    tree["rows"][1]["allocator"] = EVIL
    tree["note"] = {EVIL: EVIL}
    (folder / "compare.json").write_text(json.dumps(tree))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["name"] = f"{EVIL}\u202e\x1b[2J"
    config["data"]["name"] = EVIL
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    plan = next((folder / "plans").glob("0-*"))
    tree = json.loads(plan.read_text())
    tree["layers"][0]["name"] = tree["architecture"] = EVIL
    plan.write_text(json.dumps(tree))
    (folder / "about.json").write_text(json.dumps({"runs": [{"command": EVIL, "versions": {EVIL: EVIL}}]}))

    clean, read = opened(compared / "report.html"), opened(secateur.report(folder))
    assert len(read.of("script")) == len(clean.of("script")) == 2
    assert not read.of("img")
    assert not read.of("b")
    assert EVIL in read.text
    assert read.data()["<b>x&y"]["result"]["note"] == {EVIL: EVIL}
    page_text = (folder / "report.html").read_text(encoding="utf-8")
    assert "\u202e" not in page_text
    assert "\x1b" not in page_text


@pytest.mark.parametrize("gone", ["summary.json", "episodes.jsonl", "about.json", "plan.json"])
def test_what_a_run_does_not_have_is_absent(run, tmp_path, gone):
    folder = copied(run.folder, tmp_path / "digits")
    (folder / gone).unlink()
    read = opened(secateur.report(folder))
    shown = {str(part.get("id")).removeprefix("r0-") for part in read.of("section")}
    assert "made" in shown
    assert ("search" in shown) == (gone != "episodes.jsonl")
    assert ("network" in shown) == (gone != "plan.json")
    assert ("figures" in shown) == (gone != "summary.json")
    assert ("is not finished" in read.text) == (gone == "summary.json")


def test_a_killed_run_shows_what_is_there(run, tmp_path):
    folder = copied(run.folder, tmp_path / "digits")
    (folder / "summary.json").unlink()
    log = folder / "episodes.jsonl"
    log.write_text(log.read_text()[:-40])  # the last line was being written
    torn = log.read_bytes()
    tree = opened(secateur.report(folder)).data()["digits"]
    assert len(tree["episodes"]) == 5
    assert log.read_bytes() == torn  # a reader changes nothing


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "{", r"summary\.json is not JSON"),
        ("summary.json", '{"best": {"flops": "half"}}', r"summary\.json: best\.flops = 'half': input should be"),
        ("summary.json", '{"best": {"flops": NaN}}', r"summary\.json: best\.flops = nan: input should be a finite"),
        ("about.json", '{"runs": 3}', r"about\.json: runs = 3: input should be a valid list"),
        ("episodes.jsonl", "x\n", r"episodes\.jsonl, line 1 is damaged"),
        ("training.jsonl", "{}\n", r"training\.jsonl: round: field required"),
        ("training.jsonl", "{}\nx\n", r"training\.jsonl, line 2 is not JSON"),
        ("compare.json", '{"rows": [{"plan": "../../plan.json"}]}', r"plan = '\.\./\.\./plan\.json': expected a file"),
    ],
)
def test_a_damaged_file_is_named(run, tmp_path, name, text, message):
    folder = copied(run.folder, tmp_path / "digits")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        secateur.report(folder)
    assert "\n" not in str(refused.value)


def test_what_was_exported_is_shown(applied, tmp_path):
    folder = copied(applied, tmp_path / "small")
    row = {
        "file": "model.onnx",
        "bytes": 12_345,
        "parity": {"largest": 2e-6, "mean": 1e-7},
        "measure_in_runtime": 88.25,
    }
    (folder / "exported-onnx").mkdir()
    export = folder / "exported-onnx" / "export.json"
    export.write_text(json.dumps({"files": {"float32": row}}))
    read = opened(secateur.report(folder))
    cells = [data for _, data in read.words]
    assert {"exported-onnx/model.onnx", "12,345", "2.0e−06", "88.25"} <= set(cells)
    assert read.data()["small"]["exports"]["exported-onnx"]["files"]["float32"] == row
    export.write_text('{"files": {"float32": {"file": 3}}}')
    with pytest.raises(ValueError, match=r"export\.json: files\.float32\.file = 3"):
        secateur.report(folder)


def test_runs_below_a_folder_are_found_and_get_reports(run, applied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = copied(run.folder, tmp_path / "runs" / "digits")
    copied(applied, whole / "applied")
    unfinished = copied(run.folder, tmp_path / "runs" / "unfinished")
    (unfinished / "summary.json").unlink()
    for folder in (whole, whole / "applied", unfinished):
        (folder / "report.html").unlink()
    path = secateur.report("runs")
    assert path == Path("report.html")
    assert list(opened(path).data()) == ["digits", "digits/applied", "unfinished"]
    assert (whole / "report.html").exists()
    assert (whole / "applied" / "report.html").exists()
    assert not (unfinished / "report.html").exists()


def test_nothing_but_a_report_is_overwritten(run, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<!DOCTYPE html>\n<p>mine")
    with pytest.raises(ValueError, match=r"mine\.html is no report, and nothing is overwritten"):
        secateur.report(run.folder, out=mine)
    assert mine.read_text() == "<!DOCTYPE html>\n<p>mine"
    with pytest.raises(ValueError, match="it is a folder; give a file"):
        secateur.report(run.folder, out=tmp_path)
    with pytest.raises(ValueError, match="no run of train, apply, compare or plan is there"):
        secateur.report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        secateur.report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nothing to report on"):
        secateur.report()


def test_the_command_is_in_the_page(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "compare it"
    arguments = ["compare", str(run.folder), "--against", "uniform", "--out", str(folder)]
    monkeypatch.setattr(sys, "argv", ["secateur", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "report.html" in capsys.readouterr().out
    read = opened(folder / "report.html")
    command = shlex.join(["secateur", *arguments])
    assert ("code", command) in read.words
    (begun,) = read.data()["compare it"]["about"]["runs"]
    assert begun["command"] == command
    assert begun["machine"]["threads"] == 1
    assert begun["versions"].keys() >= {"secateur", "torch"}
    assert json.loads((run.folder / "about.json").read_text())["runs"][0]["command"] is None  # called in Python

    monkeypatch.setattr(sys, "argv", ["secateur", "report", str(folder), "--out", str(tmp_path / "one.html"), "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out) == {"page": str(tmp_path / "one.html")}
    assert (tmp_path / "one.html").read_bytes() == (folder / "report.html").read_bytes()


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        colour = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_told_from_their_ground(run):
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    text = (run.folder / "report.html").read_text(encoding="utf-8")
    grounds = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)]
    assert len(grounds) == 3  # light, dark, print
    for colours in grounds:
        for ground in (colours["back"], colours["card"]):
            for name in ("ink", "soft", "link"):
                assert contrast(colours[name], ground) >= 4.5, (name, colours[name], ground)
            for i in range(6):
                assert contrast(colours[f"c{i}"], ground) >= 3.0, (i, colours[f"c{i}"], ground)


def test_a_page_of_one_run_is_what_its_folder_has(run):
    assert page([read_run(run.folder)]).encode() == (run.folder / "report.html").read_bytes()


def test_what_the_page_writes_of_python_and_machines(run, tmp_path, monkeypatch):
    """The blocks of docs/report.md, on a run of these tests."""
    text = (Path(secateur.__file__).parent / "docs" / "report.md").read_text(encoding="utf-8")
    python, machines = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    copied(run.folder, tmp_path / "runs" / "r20")
    given: dict = {}
    exec(python, given)
    assert given["run"].best.flops == run.summary["best"]["flops"]
    secateur.report("runs/r20", out="r20.html")
    exec(machines, given)
    assert given["runs"]["r20"]["result"]["best"] == run.summary["best"]
    drawn = set(re.findall(r"^\| `(plot_\w+)\(", text, re.MULTILINE))
    assert drawn == {name for name in dir(secateur.Handle) if name.startswith("plot_")}
