"""A report in a real browser: no errors, none wider than a phone, values by hover and keyboard, dark and light."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.reports.html import write_page
from secateur.reports.run import read_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")

LOOK = """<!DOCTYPE html><meta charset="utf-8"><title>frames</title><body>
<script>
const pages = PAGES, widths = [390, 1280], found = [];
const look = (frame, page, width) => {
  const inner = frame.contentWindow, root = inner.document, plot = root.querySelector(".plot");
  const wide = [...root.querySelectorAll("main *")].filter((part) => {
    const box = part.getBoundingClientRect();
    return box.right > width + 1 && !part.closest(".scroll");
  });
  const tip = root.getElementById("tip"), marks = plot.querySelectorAll(".mark");
  plot.focus();
  const press = (key) => root.activeElement.dispatchEvent(new inner.KeyboardEvent("keydown", { key, bubbles: true }));
  press("ArrowRight"); press("ArrowRight");
  const second = tip.textContent, at = tip.getBoundingClientRect();
  const told = marks[1].getAttribute("aria-label"), reached = root.activeElement === marks[1] && !tip.hidden;
  press("End");
  const last = root.activeElement === marks[marks.length - 1];
  press("Escape");
  const gone = tip.hidden;
  marks[0].dispatchEvent(new inner.MouseEvent("mouseover", { bubbles: true }));
  found.push({
    page, width, scroll: root.documentElement.scrollWidth, wide: wide.map((part) => part.outerHTML.slice(0, 120)),
    reached, second, told, last, gone, inside: at.left >= 0 && at.right <= width,
    hovered: tip.textContent === marks[0].getAttribute("aria-label") && !tip.hidden,
    ground: inner.getComputedStyle(root.body).backgroundColor, plots: root.querySelectorAll(".plot").length,
    evil: inner.evil === undefined,
  });
  if (found.length === pages.length * widths.length) document.body.textContent = JSON.stringify(found);
};
for (const page of pages) for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900;
  frame.onload = () => look(frame, page, width);
  frame.src = page;
  document.body.append(frame);
}
</script>"""


def browse(folder: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """What the pages look like from inside, and what the console says."""
    assert BROWSER is not None
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    arguments += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    arguments += ["--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    arguments += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", *options]
    done = subprocess.run(
        [BROWSER, *arguments, (folder / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    text = done.stdout
    return json.loads(text[text.index("<body>") + 6 : text.index("</body>")].replace("&lt;", "<").replace(
        "&gt;", ">").replace("&amp;", "&")), done.stderr  # fmt: skip


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    hostile = Path(shutil.copytree(run.folder, folder / "hostile"))
    name = "</script><script>window.evil=1</script><svg onload='window.evil=1'>" + "long_" * 60
    (hostile / "config.yaml").write_text(json.dumps({"name": name, "network": {"name": name}}))
    plan = json.loads((hostile / "plan.json").read_text())
    plan["layers"][0]["name"] = name
    (hostile / "plan.json").write_text(json.dumps(plan))
    compared = secateur.compare([run.folder], against=["uniform"], out=folder / "compare").folder
    write_page([read_run(hostile)], folder / "one.html")
    write_page([read_run(each) for each in (run.folder, compared)], folder / "two.html")
    (folder / "frames.html").write_text(LOOK.replace("PAGES", json.dumps(["one.html", "two.html"])), encoding="utf-8")
    return folder


def test_in_a_browser(pages):
    light, console = browse(pages, "--blink-settings=preferredColorScheme=1")
    assert len(light) == 4
    assert "CONSOLE" not in console, console
    for found in light:
        assert found["scroll"] <= found["width"], found
        assert found["wide"] == []
        assert found["plots"] >= 5
        assert found["reached"]
        assert found["second"] == found["told"]
        assert found["last"]
        assert found["gone"]
        assert found["hovered"]
        assert found["inside"]
        assert found["evil"], "code of a name ran"
    dark, _ = browse(pages, "--blink-settings=preferredColorScheme=0")
    assert {found["ground"] for found in light} == {"rgb(251, 251, 249)"}
    assert {found["ground"] for found in dark} == {"rgb(20, 24, 28)"}
