"""What each arm fed some training examples at its end: gold, with the entries in place of gold marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from freerun.report.browser import FED, Items, RunOutputs, browser
from freerun.report.charts import DASHES, Line, arm, ranges, window_chart
from freerun.report.page import Raw, figure, grid, legend, numbers, paragraph
from freerun.training.fed import FILE
from freerun.training.files import Count, read_json

_FIGURES = 4


class _Row(TypedDict):
    source: str
    gold: list[Any]
    fed: list[list[Any]]


class _Fed(TypedDict):
    kind: Literal["ids", "values"]
    step: Count
    sample: str
    teacher_forcing_ratio: float | None
    channels: list[str]
    rows: list[_Row]


def fed_section(results: Mapping[str, Any], out: Path) -> Raw:
    """The histories fed at the end of training, by arm; "" where no run has recorded them, or they have other rows."""
    read = {
        (run["label"], run["seed"]): _whole(out / run["folder"] / FILE)
        for run in results["runs"]
        if (out / run["folder"] / FILE).exists()
    }
    first = next(iter(read.values()), None)
    if first is None or not first["rows"]:
        return Raw("")
    gold = [(row["source"], row["gold"]) for row in first["rows"]]
    # arms of one comparison have the same examples; of finished runs that need not be
    read = {run: fed for run, fed in read.items() if [(row["source"], row["gold"]) for row in fed["rows"]] == gold}
    note = paragraph(
        f"{first['sample']}: what each arm feeds them with the ratio, gates and draws of its last update and the "
        f"weights after it. {_updates(read)} The last entry of a row is left out, as nothing is predicted from it.",
        "note",
    )
    return Raw(note + (_browser(read) if first["kind"] == "ids" else _figures(read)))


def _whole(path: Path) -> _Fed:
    return read_json(path, _Fed)


Read = Mapping[tuple[str, int], _Fed]


def _updates(read: Read) -> str:
    """The update, and the ratio of gold where there is one, of every arm."""
    seen: dict[str, str] = {}
    for (label, _), fed in read.items():
        ratio = fed["teacher_forcing_ratio"]
        gold = "" if ratio is None else f", teacher_forcing_ratio {ratio:.3g}"
        seen.setdefault(label, f"{label}: update {fed['step'] + 1:,}{gold}")
    return f"{'; '.join(seen.values())}."


def _browser(read: Read) -> Raw:
    rows = next(iter(read.values()))["rows"]
    runs: list[RunOutputs] = []
    for (label, seed), fed in read.items():
        own = [_entries(row) for row in fed["rows"]]
        outputs = [
            [each.get(n, gold) for n, gold in enumerate(row["gold"])] for row, each in zip(rows, own, strict=True)
        ]
        wrong = [sum(row["gold"][n] != entry for n, entry in each.items()) for row, each in zip(rows, own, strict=True)]
        runs.append(RunOutputs(label, outputs, wrong, seed, "fed", [list(each) for each in own]))
    items = Items([row["source"] for row in rows], [[row["gold"]] for row in rows], runs, "rows", "symbols", "position")
    return browser(items, "fed", FED)


def _figures(read: Read) -> Raw:
    """A figure a row: gold, and dots where another value was fed; of the first seed."""
    seed = next(iter(read))[1]
    by_arm = {label: fed["rows"] for (label, each), fed in read.items() if each == seed}
    first = next(iter(read.values()))
    rows = [row for row in first["rows"] if all(None not in entry for entry in row["gold"])][:_FIGURES]
    if not rows:
        return Raw("")
    channels = first["channels"] or [f"value {n + 1}" for n in range(len(rows[0]["gold"][0]))]
    drawn: list[Raw] = []
    for row in rows:
        number = first["rows"].index(row)
        own = {label: _entries(each[number]) for label, each in by_arm.items()}
        drawn.append(_figure(row, own, channels))
    strokes = legend([("gold", 0, "gold"), *(("arm", n, f"fed by {label}") for n, label in enumerate(by_arm))])
    text = f"Dots: values fed in place of gold, seed {seed}; elsewhere gold was fed. In the units of the data."
    return Raw(strokes + paragraph(text, "note") + grid(drawn))


def _entries(row: _Row) -> dict[int, Any]:
    return {int(position): entry for position, entry in row["fed"]}


def _figure(row: _Row, own: Mapping[str, Mapping[int, Any]], channels: Sequence[str]) -> Raw:
    """A row with the values that each arm fed in place of gold; those far outside are in the table."""
    gold, none = row["gold"], [None] * len(channels)
    length = len(gold)
    fed = [entry for each in own.values() for entry in each.values()]
    room = [2 * max(abs(entry[n]) for entry in gold) for n in range(len(channels))]
    near = [entry for entry in fed if all(e is not None and abs(e) <= r for e, r in zip(entry, room, strict=True))]
    domains = ranges([{"past": near, "gold": gold}])
    dots = {label: [each.get(t, none) for t in range(length)] for label, each in own.items()}
    styles = {label: Line((), arm(n), DASHES[n % 6], 1.25, dots=True) for n, label in enumerate(own)}
    svg, _ = window_chart({"past": [], "gold": gold}, channels, domains, dots, styles, title="position")
    columns = {
        f"{name}, {channel}" if channels[1:] else name: [each.get(t, entry)[n] for t, entry in enumerate(gold)]
        for n, channel in enumerate(channels)
        for name, each in {"gold (reference)": {}, **own}.items()
    }
    counts = "; ".join(f"{label}: {len(each)} of {length} entries in place of gold" for label, each in own.items())
    table = numbers(columns, ("position", [str(t + 1) for t in range(length)]))
    return figure(row["source"][0].upper() + row["source"][1:], svg, ("", f"{counts}."), table)
