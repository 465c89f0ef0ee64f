"""The pages as a person uses them in a real browser: keys, sorting, the browser of examples, axe-core, size."""

import json
import random
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from browser import Tab, chromium
from freerun import report
from freerun.diagnostics.tokens import align_row
from freerun.metrics.table import LEVELS, PARALLEL, TEXT
from freerun.metrics.text import alignment
from freerun.report.browser import LARGEST, Items, RunOutputs, browser, compared_items, diagnosed_items
from freerun.report.comparison import verdict_box
from freerun.report.page import table, write_page
from simulated_runs import write_comparison

SLOW = "opens the page in headless Chromium, which must be installed (Debian's package chromium)"
READY = "[...document.querySelectorAll('.browser')].every(each => !each.hidden)"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder, words=120, advantages={"scheduled_sampling": -0.5})
    report.write(folder)
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def items_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def state(tab: Tab) -> dict[str, Any]:
    """What the browser of examples holds: who is chosen, by position and name, and what stands beside."""
    return json.loads(
        tab.run("""JSON.stringify((() => {
          const list = document.querySelector('[role=listbox]');
          const chosen = document.getElementById(list.getAttribute('aria-activedescendant'));
          return {at: chosen && Number(chosen.dataset.at), name: document.querySelector('.two h3')?.textContent,
            selected: [...list.querySelectorAll('[aria-selected=true]')].map(each => each.id === chosen.id),
            count: document.querySelector('[data-part=count]').textContent,
            focus: document.activeElement.dataset?.part ?? '', runs: document.querySelectorAll('.run').length,
            notes: [...document.querySelectorAll('.run .note')].map(each => each.textContent)};
        })())""")
    )


def fill(tab: Tab, part: str, value: object) -> None:
    tab.run(
        f"(() => {{ const field = document.querySelector('[data-part={part}]'); field.value = '{value}';"
        "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true})); })()"
    )
    tab.run("new Promise(resolve => setTimeout(resolve, 200))")


@pytest.mark.slow(reason=SLOW)
def test_examples_are_read_by_keyboard(out, tab):
    tab.open(out / "report.html")
    tab.wait(READY)
    tab.run("document.querySelector('[role=listbox]').focus()")
    items = items_in(out / "runs/teacher_forcing-0/test-items.jsonl")
    by_arm = {
        arm: items_in(out / f"runs/{arm}-0/test-items.jsonl")
        for arm in ("teacher_forcing", "scheduled_sampling", "token_noise")
    }
    errors = [sum(run[n]["errors"] for run in by_arm.values()) for n in range(120)]
    order = sorted(range(120), key=lambda n: (-errors[n], n))  # worst first
    for key, at in (("", 0), ("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0), ("k", 0), ("End", 119),
                    ("Home", 0), ("PageDown", 10)):  # fmt: skip
        if key:
            tab.press(key)
        found = state(tab)
        assert (found["at"], found["name"], found["selected"]) == (at, items[order[at]]["source"], [True]), key
    assert found["runs"] == 3
    assert found["count"] == "120 of 120 items match"
    tab.press("/")
    assert state(tab)["focus"] == "search"
    word = items[7]["source"]
    for letter in word:
        tab.press(letter)
    tab.wait(f"document.querySelector('.two h3').textContent === '{word}'")
    assert state(tab)["count"] == f"{sum(word in item['source'] for item in items)} of 120 items match"
    tab.press("Escape")
    assert state(tab)["focus"] == "list"
    fill(tab, "search", "nothing holds this")
    assert (state(tab)["count"], state(tab)["at"]) == ("0 of 120 items match", None)
    fill(tab, "search", "")
    fill(tab, "order", "run:token_noise")
    fill(tab, "few", 1)
    assert state(tab)["count"].startswith(f"{sum(item['errors'] >= 1 for item in by_arm['token_noise'])} of ")
    fill(tab, "few", "")
    fill(tab, "short", 8)
    long = sum(len(item["references"][0].split()) >= 8 for item in items)
    assert 0 < long < 120
    assert state(tab)["count"].startswith(f"{long} of ")
    assert (tab.problems, tab.requests) == ([], [])


@pytest.mark.slow(reason=SLOW)
def test_tables_are_sorted_by_keyboard(out, tab):
    tab.open(out / "report.html")
    tab.wait(READY)
    ask = (
        "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[1].textContent.trim().split(' ')[0])"
    )
    before = [float(each) for each in tab.run(ask)]
    tab.run("document.querySelectorAll('table thead th button')[1].focus()")
    head = "document.querySelectorAll('table thead th')[1].getAttribute('aria-sort')"
    for press, way, expected in (("Enter", "ascending", sorted(before)), ("Enter", "descending", sorted(before)[::-1])):
        tab.press(press)
        assert (tab.run(head), [float(each) for each in tab.run(ask)]) == (way, expected)
    tab.run("document.querySelectorAll('table thead th button')[0].focus()")
    tab.press("Enter")
    assert tab.run("document.querySelectorAll('table [aria-sort]').length") == 1
    assert (tab.problems, tab.requests) == ([], [])


@pytest.mark.slow(reason=SLOW)
def test_numbers_are_sorted_by_value_and_dashes_last(tab, tmp_path):
    cells = ["−3", "1,200", "–", "0.5 [0.1, 2]", "\N{INFINITY}", "7 %", "\N{MULTIPLICATION SIGN}2.5", "1e-05"]
    page = write_page(
        tmp_path / "a.html",
        "compare",
        "sorting",
        "",
        [("Table", table(["name", "x"], [["-", each] for each in cells]))],
    )
    tab.open(page)
    click = "document.querySelectorAll('thead button')[1].click()"
    ask = "[...document.querySelectorAll('td')].map(cell => cell.textContent)"
    ordered = ["−3", "1e-05", "0.5 [0.1, 2]", "×2.5", "7 %", "1,200", "\N{INFINITY}"]
    assert tab.run(f"{click}, {ask}") == [*ordered, "–"]
    assert tab.run(f"{click}, {ask}") == [*ordered[::-1], "–"]


@pytest.mark.slow(reason=SLOW)
def test_the_page_aligns_as_the_library_does(out, tab):
    """300 random pairs: columns equal to rapidfuzz's, first error and where it rejoins equal to ``align_row``."""
    tab.open(out / "report.html")
    draw = random.Random(0)
    pairs = [["".join(draw.choices("abc", k=draw.randint(0, 9))) for _ in range(2)] for _ in range(300)]
    found = tab.run(
        f"{json.dumps(pairs)}.map(([own, gold]) => {{ const columns = align([...own], [...gold]);"
        "const result = compared([...own], [...gold], columns); const at = n => n < 0 ? null : result.cells[n].at;"
        "return [columns, result.errors, at(result.first), at(result.rejoins)]; })"
    )
    rejoined = 0
    for (own, gold), (columns, errors, first, rejoins) in zip(pairs, found, strict=True):
        expected = alignment(own, gold)
        o = g = 0
        for (a, b), (at, of, equal) in zip(columns, expected, strict=True):
            assert (o if a is None else a, g if b is None else b, a is not None and b is not None and own[a] == gold[b]) == (at, of, equal)  # fmt: skip # noqa: E501
            o, g = o + (a is not None), g + (b is not None)
        row = align_row(list(own), list(gold))
        assert (errors, first, rejoins) == (row.edits, row.first_error, row.rejoins), (own, gold)
        rejoined += rejoins is not None
    assert 50 < rejoined < 250


def violations(tab: Tab) -> list[Any]:
    tab.run((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8") + "; 0")
    return tab.run("axe.run().then(found => found.violations.map(each => [each.impact, each.id, each.nodes[0].html]))")


@pytest.mark.slow(reason=SLOW)
@pytest.mark.parametrize(
    ("scheme", "width", "media"), [("light", 1280, ""), ("dark", 1280, ""), ("light", 400, ""), ("light", 800, "print")]
)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(out, tab, tmp_path, scheme, width, media):
    bad = tmp_path / "bad.html"
    bad.write_text("<title>t</title><p style='color: #ddd'>pale</p><input>", encoding="utf-8")
    tab.open(bad)
    assert {"color-contrast", "label"} <= {name for _, name, _ in violations(tab)}
    tab.open(out / "report.html", width=width, scheme=scheme, media=media)
    tab.wait(READY)
    assert violations(tab) == []
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert (tab.problems, tab.requests) == ([], [])


@pytest.mark.slow(reason=SLOW)
def test_a_page_may_load_nothing(tab, tmp_path):
    page = write_page(tmp_path / "a.html", "compare", "x", "", [])
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", "<img src='b.png'></main>"), encoding="utf-8")
    tab.open(page)
    assert any("Content Security Policy" in each for each in tab.problems)
    tab.problems.clear()
    tab.requests.clear()


def test_ten_runs_of_100_000_items_are_a_page_below_5_mb():
    draw = random.Random(0)
    letters, phones = "abcdefghijklmnopqrstuvwxyz", [f"{a}{b}" for a in "ABCDEFGHIJ" for b in "XYZW"]
    sources = ["".join(draw.choices(letters, k=8)) for _ in range(100_000)]
    golds = [[" ".join(draw.choices(phones, k=7))] for _ in sources]
    runs: list[RunOutputs] = []
    for seed in range(10):  # three of ten outputs are wrong, and not alike
        wrong = [draw.random() < 0.3 for _ in sources]
        own = [" ".join(draw.choices(phones, k=7)) if bad else gold for bad, (gold,) in zip(wrong, golds, strict=True)]
        runs.append(RunOutputs("arm", own, [7 * bad for bad in wrong], seed))
    html = browser(Items(sources, golds, runs, "test words", "symbols"), "items")
    shown = int(
        re.search(r"([\d,]+) of 100,000 test words: the ([\d,]+) with the most errors", html)[1].replace(",", "")
    )  # type: ignore[index]
    assert len(html.encode()) < LARGEST + 10_000 < 5_000_000 - 500_000
    assert shown > 20_000
    few = Items(sources[:500], golds[:500], [RunOutputs("arm", runs[0].outputs[:500], None, 0)], "test words", "words")
    assert "All 500 test words." in browser(few, "items")


def test_items_are_cut_as_their_task_counts_them():
    def item(**more: Any) -> dict[str, Any]:
        return {"source": "s", "output": "a b c", "reference": "a x c", **more}

    tested = {("a", 0): [item(bleu=[1, 2])]}
    words = compared_items(PARALLEL, tested)
    assert words is not None
    assert (words.unit, words.runs[0].errors, words.runs[0].mode) == ("words", [1], "edit")
    text = compared_items(TEXT, {("a", 0): [item(prompt="before", errors=3.5)]})
    assert text is not None
    assert (text.unit, text.runs[0].errors, text.runs[0].mode, text.prompts) == (
        "characters",
        None,
        "plain",
        ["before"],
    )
    levels = compared_items(LEVELS, {("a", 0): [item(prompt="1 2", free_errors=2)]})
    assert levels is not None
    assert (levels.align, levels.runs[0].errors, levels.heading) == ("position", [2], "observed")
    assert compared_items(LEVELS, {("a", 0): [{"source": "s", "free_errors": 2}]}) is None


def test_rows_of_a_diagnosis_are_browsed_and_the_right_end_is_no_error():
    row = {"row": 4, "source": "", "gold": ["a", "b"], "greedy": ["a"], "sampled": ["c", "b", "b"], "edits": 1}
    ended, wrong = (row | {"teacher_forced": ["a", "b", last]} for last in ("(end)", "b"))
    found = diagnosed_items({"examples": [ended, wrong], "free_running": {}, "rows": 9}, "words")
    assert found is not None
    assert [run.outputs for run in found.runs] == [[["a", "b"], ["a", "b", "b"]], [["a"]] * 2, [["c", "b", "b"]] * 2]
    assert [(run.mode, run.errors) for run in found.runs] == [("position", None), ("edit", [1, 1]), ("edit", None)]
    assert "2 of 9 words, evenly spaced." in browser(found, "rows")
    text = diagnosed_items({"examples": [ended], "free_running": None, "rows": 1}, "texts")
    assert text is not None
    assert [run.mode for run in text.runs] == ["position", "plain", "plain"]
    assert diagnosed_items({"examples": [], "free_running": {}, "rows": 9}, "words") is None


def test_outputs_lie_as_text_an_item_a_line(out):
    lines = (out / "hypotheses" / "token_noise-1.txt").read_text(encoding="utf-8").splitlines()
    items = items_in(out / "runs/token_noise-1/test-items.jsonl")
    assert lines == [item["output"] for item in items]
    golds = (out / "hypotheses" / "references.txt").read_text(encoding="utf-8").splitlines()
    assert golds == [item["references"][0] for item in items]


def test_references_of_one_item_only_are_filled_and_line_breaks_are_none(tmp_path):
    results = write_comparison(tmp_path, words=20, seeds=(0,), updates=20)
    for run in results["runs"]:
        path = tmp_path / run["folder"] / "test-items.jsonl"
        items = items_in(path)
        items[0] |= {"references": ["A B", "C D"], "output": "two\nlines"}
        path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    report.write(tmp_path)
    folder = tmp_path / "hypotheses"
    second = (folder / "references-2.txt").read_text(encoding="utf-8").splitlines()
    first = (folder / "references.txt").read_text(encoding="utf-8").splitlines()
    assert (second[0], second[1:]) == ("C D", first[1:])
    assert (folder / "teacher_forcing-0.txt").read_text(encoding="utf-8").splitlines()[0] == "two lines"
    shutil.rmtree(folder)


@pytest.mark.parametrize(("answer", "sign"), [("yes", "✓"), ("no", "✕"), ("not decided", "?")])
def test_the_verdict_is_one_word_with_its_reason(answer, sign):
    found = {
        "answer": answer,
        "arm": "<a>",
        "baseline": "b",
        "reason": "because",
        "sentence": "1.5 better.",
        "naive": [],
    }
    text = re.sub(r"<[^>]+>", "|", verdict_box(found))
    assert f"{sign}| |{answer.capitalize()}|: because" in text
    assert "Did &lt;a&gt; pay, against b?" in text
    naive = verdict_box({**found, "naive": ["x"], "sentence": "No arm beats x: 0.5 against 0.6. a is better."})
    assert '<p class="beaten">No arm beats x: 0.5 against 0.6.</p><p>a is better.</p>' in naive
