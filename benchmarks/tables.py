"""The measurements as tables, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "count",
    "counts_table",
    "dropout_table",
    "markdown",
    "plain",
    "prices_table",
    "sections",
    "size",
    "slow_table",
    "wrong_table",
]  # fmt: skip

Table = tuple[list[str], list[list[str]]]


def sections(measured: dict[str, list[dict[str, Any]]]) -> list[tuple[str, Table]]:
    """(title, table) of all measurements."""
    found: list[tuple[str, Table]] = []
    for group in _grouped(measured["lines"]):
        first = group[0]
        title = f"{first['model']}, {size(first)}, weights: {first['weights']}"
        found.append((f"{title}: price", prices_table(group)))
        found.append((f"{title}: passes (work in forwards)", counts_table(group)))
    if measured["lines"]:
        found.append(("own entries that two passes get wrong (inverse CDF / Gumbel)", wrong_table(measured["lines"])))
    if measured["slow"]:
        found.append(("a forward of the full prefix for every position", slow_table(measured["slow"])))
    if measured["dropout"]:
        rate = measured["dropout"][0]["dropout"]
        found.append((f"dropout {rate:g} in teacher forcing and training forward", dropout_table(measured["dropout"])))
    return found


def _grouped(lines: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in lines:
        groups.setdefault((each["model"], size(each), each["weights"]), []).append(each)
    return list(groups.values())


def size(line: dict[str, Any]) -> str:
    """A model's and a batch's sizes in short, and what else is not as usual."""
    letters = {"hidden": "d", "layers": "L", "batch": "B", "time": "T", "vocab": "V"}
    sizes = " ".join(f"{letter}{line[name]}" for name, letter in letters.items())
    return f"{sizes} {line.get('how', '')}".strip()


def prices_table(group: Sequence[dict[str, Any]]) -> Table:
    """Prices, by ratio."""
    engines = [name for name in group[0]["engines"] if name not in ("auto", "two passes")]
    head = ["ratio", "auto", "it took", *engines, "by hand", "two passes", "auto / best", "whole step, auto"]
    rows: list[list[str]] = []
    for each in group:
        own = [_price(each["engines"][name]) for name in (*engines, "two passes")]
        hand = each["hand_written_price"]
        own.insert(-1, "-" if hand is None else f"{hand:.2f}")
        last = [f"{each[name]:.2f}" for name in ("auto_over_best", "training_step_price")]
        rows.append([f"{each['teacher_forcing_ratio']:g}", f"{each['price']:.2f}", each["engine"], *own, *last])
    return head, rows


def wrong_table(lines: Sequence[dict[str, Any]]) -> Table:
    """Shares of own entries that two passes get wrong, by case and ratio: inverse CDF / Gumbel."""
    ratios = sorted({each["teacher_forcing_ratio"] for each in lines}, reverse=True)
    rows: list[list[str]] = []
    for group in _grouped(lines):
        by_ratio = {each["teacher_forcing_ratio"]: each["two_passes_wrong"].values() for each in group}
        shares = [" / ".join(f"{100 * share:.1f} %" for share in by_ratio.get(ratio, ())) or "-" for ratio in ratios]
        rows.append([group[0]["model"], size(group[0]), group[0]["weights"], *shares])
    return ["model", "size", "weights", *[f"ratio {ratio:g}" for ratio in ratios]], rows


def counts_table(group: Sequence[dict[str, Any]]) -> Table:
    """Passes, work, certificates and redone rows, by ratio."""
    engines = [name for name in group[0]["engines"] if name != "two passes"]
    head = ["ratio", *engines, "redone: float32 / bfloat16", "unequal entries"]
    rows: list[list[str]] = []
    for each in group:
        own = [_count(each["engines"][name]) for name in engines]
        redone = " / ".join(f"{100 * share:.0f} %" for share in each["rows_redone"].values()) or "-"
        differ = f"{each['differing_entries']} of {each['compared_entries']:,}"
        rows.append([f"{each['teacher_forcing_ratio']:g}", *own, redone, differ])
    first = group[0]["engines"]
    rows.append(["certified by", *[first[name].get("certified", "-") for name in engines], "", ""])
    return head, rows


def slow_table(lines: Sequence[dict[str, Any]]) -> Table:
    """Full-prefix loops."""
    names = ["auto", "without graph", "graph kept"]
    rows = [
        [
            each["model"],
            size(each),
            f"{each['teacher_forcing_ratio']:g}",
            *[f"{each['full_prefix'][n]:.1f}" for n in names],
        ]
        for each in lines
    ]
    return ["model", "size", "ratio", *names], rows


def dropout_table(lines: Sequence[dict[str, Any]]) -> Table:
    """Prices with dropout."""
    names = list(dict.fromkeys(name for each in lines for name in each["engines"]))
    rows = [
        [
            each["model"],
            size(each),
            f"{each['teacher_forcing_ratio']:g}",
            *[_both(each["engines"].get(n)) for n in names],
        ]
        for each in lines
    ]
    return ["model", "size", "ratio", *names], rows


def _price(engine: dict[str, Any]) -> str:
    return f"{engine['price']:.2f}" if "price" in engine else "failed"


def _count(engine: dict[str, Any]) -> str:
    if "price" not in engine:
        return "failed"
    return count(engine["passes"], engine["work"]) if engine["work"] is not None else "-"


def count(calls: float, work: float) -> str:
    """Calls and, in brackets, work, to about two digits."""
    return " ".join(
        (f"{calls:.0f}" if calls >= 10 else f"{calls:.3g}", f"({work:.0f})" if work >= 10 else f"({work:.2g})")
    )


def _both(engine: dict[str, Any] | None) -> str:
    if engine is None:
        return "-"
    return f"{_price(engine)}, {_count(engine)}"


def markdown(table: Table) -> str:
    """A Markdown table."""
    head, rows = table
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)) + "\n"


def plain(table: Table) -> str:
    """Columns for a terminal; long heads on lines of their own."""
    head, rows = table
    heads = [name.split() for name in head]
    widths = [max(map(len, [*heads[i], *(row[i] for row in rows)])) for i in range(len(head))]
    depth = max(map(len, heads))
    tops = [[(["" for _ in range(depth - len(words))] + words)[n] for words in heads] for n in range(depth)]
    return (
        "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [*tops, *rows]
        )
        + "\n"
    )
