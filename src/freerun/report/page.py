"""Pieces of HTML; whatever is text is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as escaped

from freerun.errors import visible


def escape(text: str) -> str:
    """Text as HTML; control characters, which no page may hold, are written as escapes."""
    return escaped(visible(text, keep="\n"))


class Raw(str):
    """Text that is HTML already."""

    __slots__ = ()


def _html(value: object) -> str:
    return value if isinstance(value, Raw) else escape(str(value))


def swatch(number: int, label: str) -> Raw:
    """An arm's name behind a stroke in its colour and pattern."""
    index = number % 6
    stroke = (
        f'<svg class="swatch" aria-hidden="true" viewBox="0 0 26 8"><path class="stroke-{index}" d="M1 4H25"/></svg>'
    )
    return Raw(f'<span class="arm">{stroke}{escape(label)}</span>')


def legend(arms: Sequence[str]) -> Raw:
    """What the colours of the figures mean."""
    entries = "".join(f"<li>{swatch(number, arm)}</li>" for number, arm in enumerate(arms))
    return Raw(f'<ul class="legend" aria-label="colours of the arms">{entries}</ul>')


def line_legend(entries: Iterable[tuple[str, int, str]]) -> Raw:
    """What the strokes of figures mean: (kind, number, label) each."""
    parts: list[str] = []
    for kind, number, label in entries:
        if kind == "arm":
            parts.append(f"<li>{swatch(number, label)}</li>")
            continue
        name = {"band": f"band-{number % 6}", "naive": f"stroke-naive stroke-naive-{number % 6}"}.get(
            kind, f"stroke-{kind}"
        )
        stroke = f'<svg class="swatch" aria-hidden="true" viewBox="0 0 26 8"><path class="{name}" d="M1 4H25"/></svg>'
        parts.append(f'<li><span class="arm">{stroke}{escape(label)}</span></li>')
    return Raw(f'<ul class="legend" aria-label="what the lines mean">{"".join(parts)}</ul>')


def paragraph(text: object, kind: str = "") -> Raw:
    """A paragraph."""
    return Raw(f"<p{_class(kind)}>{_html(text)}</p>")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "", caption: str = "") -> Raw:
    """A table; the first cell of a row is its head, and each cell knows its column's name."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{_cells(heads, row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    inside = f"<table{_class(kind)}>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return Raw(
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption or heads[0])}">{inside}</div>'
    )


def _cells(heads: Sequence[str], row: Sequence[object]) -> str:
    first = f'<th scope="row">{_html(row[0])}</th>'
    rest = zip(heads[1:], row[1:], strict=True)
    return first + "".join(f'<td data-label="{escape(name)}">{_html(value)}</td>' for name, value in rest)


def figure(title: str, svg: str, texts: tuple[str, str], data: Raw) -> Raw:
    """A figure with its title, a description in words, and its numbers as a table."""
    reading, seen = texts
    drawing = f'<div class="drawing" role="img" aria-label="{escape(f"{title}. {seen}")}">{svg}</div>'
    caption = f"<figcaption><strong>{escape(title)}</strong> <span>{escape(reading)}</span></figcaption>"
    return Raw(f"<figure>{caption}{drawing}<details><summary>the numbers</summary>{data}</details></figure>")


def grid(figures: Iterable[Raw]) -> Raw:
    """Figures side by side where there is room."""
    return Raw(f'<div class="grid">{"".join(figures)}</div>')
