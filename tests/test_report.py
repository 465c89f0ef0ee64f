"""report.html: whole, offline, readable without JavaScript, small; and as a real browser shows it."""

import itertools
import json
import math
import re
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from builders import refused
from freerun import report
from freerun.comparison.results import read
from freerun.report import charts
from freerun.report.charts import Axes, Line, chart
from freerun.report.page import Raw, table
from freerun.report.run_data import curves, examples, load, shares
from freerun.report.run_data import test_items as items_of
from simulated_runs import ARMS, arm, write_comparison

VOID = {"meta", "br", "img", "input", "hr", "link"}


class Page(HTMLParser):
    """Tags as they are nested, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder, words=200)
    report.write(folder)
    return folder


@pytest.fixture(scope="module")
def html(out):
    return (out / "report.html").read_text(encoding="utf-8")


def check_page(html: str) -> int:
    """A page is small, loads nothing, and each figure has words and numbers; the number of figures."""
    assert len(html.encode()) < 1_000_000
    assert "default-src 'none'" in html[:300]
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", html, re.DOTALL)
    assert all("src" not in kind for kind, _ in scripts)
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon|https?:", scripts[-1][1])
    html = re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.DOTALL)
    assert re.findall(r"(?i)\b(?:src|href|srcset|action)\s*=", html) == []
    assert re.findall(r"(?i)https?:|//[a-z]|url\(|@import|<link", html) == []
    assert re.findall(r"#[0-9a-f]{6}", html[html.index("<body") :]) == []
    tags = Page(html).tags
    figures = sum(tag == "figure" for tag, _ in tags)
    drawings = [attrs for tag, attrs in tags if attrs.get("class") == "drawing"]
    assert figures == len(drawings) == sum(tag == "details" for tag, _ in tags)
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 30 for attrs in drawings)
    assert all(attrs.get("aria-hidden") == "true" for tag, attrs in tags if tag == "svg")
    return figures


def test_it_is_small_loads_nothing_and_has_its_colours_from_the_style_sheet(html):
    assert check_page(html) == 8
    used = set(re.findall(r"var\((--[\w-]+)\)", html[html.index("<body") :]))
    dark = html[html.index("prefers-color-scheme: dark") :]
    assert used
    assert all(f"{name}:" in dark for name in used)


def test_its_parts_are_there_in_order(html):
    text = " ".join(Page(html).words)
    assert html.index("not shown to differ") < html.index("<table") < html.index("<figure")
    heads = ["Scores", "Differences", "Examples", "Training", "Replaced entries", "Costs", "Words on which arms differ"]
    heads += ["Methods", "Runs and data", "Recipe"]
    positions = [html.index(f"<h2>{head}</h2>") for head in heads]
    assert positions == sorted(positions)
    parts = ("arXiv:1506.03099", "teacher_forcing_ratio", "0123abcd", "2.13.0", "kind = ", "scheduled_sampling(...)")
    assert all(part in text for part in parts)


def test_text_from_files_is_escaped_and_one_arm_of_one_seed_is_a_report_too(tmp_path):
    refused(r"holds no results\.json; make one with: freerun compare", report.write, tmp_path)
    arms = [ARMS[0], arm("<b>&amp", "scheduled_sampling")]
    write_comparison(tmp_path / "two", words=40, arms=arms, updates=20)
    write_comparison(tmp_path / "one", words=40, arms=ARMS[:1], seeds=(0,), updates=20)
    html, one = (report.write(tmp_path / name).read_text(encoding="utf-8") for name in ("two", "one"))
    Page(html)
    Page(one)
    assert "<b>&amp;<" not in html
    assert "&lt;b&gt;&amp;amp" in html


def test_realised_share_and_schedule_and_matched_noise(out):
    runs = load(read(out), out)
    replaced = {(curve.arm, curve.planned): dict(curve.points) for curve in shares(runs, "replaced")}
    assert ("teacher_forcing", False) not in replaced
    realised, planned = (replaced["scheduled_sampling", each] for each in (False, True))
    assert realised.keys() == planned.keys()
    # 5 updates x 600 entries x 2 seeds: standard deviation at most 0.65 points
    assert max(abs(realised[step] - planned[step]) for step in planned) < 3.5
    wrong = {curve.arm: dict(curve.points) for curve in shares(runs, "disagreeing")}
    assert max(abs(wrong["scheduled_sampling"][s] - wrong["token_noise"][s]) for s in wrong["token_noise"]) < 4
    lines = curves(runs, "free_running", "per")
    assert [line.number for line in lines] == [0, 1, -1] * 3


def test_examples_are_from_both_sides(out):
    found = examples(items_of(read(out), out), ("scheduled_sampling", "teacher_forcing"), each=3)
    rights = [not outputs["scheduled_sampling"][1] for _, _, outputs in found.words]
    assert rights == [True] * 3 + [False] * 3
    assert all(sum(counts) == 200 for counts in found.counts.values())


MEASURE = """<script>addEventListener("load", () => {
  const seen = [...document.querySelectorAll(".drawing svg")].filter(svg => svg.getBoundingClientRect().width > 200);
  const lines = [...document.querySelectorAll(".drawing path")].map(path => getComputedStyle(path).stroke);
  parent.document.body.innerText = JSON.stringify({
    inner: innerWidth, scroll: document.documentElement.scrollWidth, figures: seen.length,
    colours: new Set(lines.filter(colour => colour !== "none")).size,
    background: getComputedStyle(document.body).backgroundColor,
    loaded: performance.getEntriesByType("resource").length,
  });
})</script>"""


def measured(html: str, folder: Path, scheme: str, width: int) -> dict[str, Any]:
    """What the page's script printed as JSON in headless Chromium; in a frame: its windows have 500 pixels at least."""
    inside = escape(html)
    frame = f'<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{inside}"></iframe>'
    page = folder / "frame.html"
    page.write_text(f'<meta charset="utf-8"><meta name="color-scheme" content="light dark">{frame}', encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900", "--virtual-time-budget=2000"]
    flags += ["--blink-settings=preferredColorScheme=" + {"light": "1", "dark": "0"}[scheme]]
    done = subprocess.run(["chromium", *flags, page.as_uri()], check=True, capture_output=True, text=True, timeout=120)
    return json.loads(re.search(r'\{"inner.*\}', done.stdout)[0])  # type: ignore[index]


def check_browser(html: str, folder: Path, scheme: str, width: int) -> int:
    """A page fits its window, has colours of its scheme, and loads nothing; the number of figures."""
    found = measured(html + MEASURE, folder, scheme, width)
    assert found["inner"] == width
    assert found["scroll"] <= width
    assert found["colours"] >= 4
    assert found["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert found["loaded"] == 0
    return found["figures"]


@pytest.mark.slow(reason="opens the page in headless Chromium, which must be installed (Debian's package chromium)")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 400)])
def test_a_real_browser_displays_it(out, tmp_path, scheme, width):
    assert check_browser((out / "report.html").read_text(encoding="utf-8"), tmp_path, scheme, width) == 8


def test_a_table_of_numbers_has_true_minus_signs_and_one_of_words_what_was_written():
    row = ["run-1", "-0.5 [-0.7, -.3]", Raw("<b>-2</b> <small>1e-05 to x-1</small>")]
    numbers = re.sub(r"<[^>]+>", "|", table(["run", "gap", "score"], [row], "numbers"))
    assert numbers.endswith("|run-1||−0.5 [−0.7, −.3]|||−2| |1e-05 to x-1||||||")
    assert "-0.5 [-0.7, -.3]" in table(["run", "gap", "score"], [row], "cards")


def test_small_numbers_do_not_run_into_the_title_of_their_axis():
    svg = chart([Line([(0.0, 1.2e-5), (9.0, 1.3e-5)])], Axes("updates", "loss", y_domain=(1.2e-5, 1.3e-5)))
    labels = re.findall(r">([^<>]*e[^<>]*)</text>", svg)
    assert "1.2e-5" in labels
    assert "0.0000" not in svg


@pytest.mark.parametrize(("low", "high"), [(-0.0009, 0.0004), (-0.04, 0.01), (-0.3, 0.1), (-2.5, 0.4)])
def test_no_two_ticks_of_ratios_are_written_alike_and_each_is_right(low, high):
    row = charts.Difference("a / b", 0, (low + high) / 2, low, high, ())
    drawn = charts.differences([row], "ratio in NRMSE", log=True)
    ticks = [float(text) for text in re.findall(r">\N{MULTIPLICATION SIGN}([\d.]+)<", drawn)]
    assert len(set(ticks)) == len(ticks) >= 3
    assert 1.0 in ticks
    logs = [math.log(tick) for tick in ticks]
    steps = [b - a for a, b in itertools.pairwise(logs)]
    assert max(steps) < 1.3 * min(steps), "the axis is one of logarithms"
