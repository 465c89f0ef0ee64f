"""Pieces of HTML and the shell of a page; whatever is text is escaped here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape as escape_html
from importlib.resources import files
from pathlib import Path

from freerun.errors import visible

DASH = "\N{EN DASH}"
_ROWS = 12
_NEGATIVE = re.compile(r"(?<=[>\s\[])-(?=\.?\d)")
Values = Sequence[float | None]


def escape(text: object) -> str:
    """Return text as HTML; control characters, which no page may hold, are written as escapes."""
    return escape_html(visible(str(text), keep="\n"))


class Raw(str):
    """Text that is HTML already."""

    __slots__ = ()


def _html(value: object) -> str:
    return value if isinstance(value, Raw) else escape(value)


# nothing is loaded, not even where a text from the data would ask for it
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_page(path: Path, kind: str, name: str, verdict: object, sections: Iterable[tuple[str, str]]) -> Path:
    """Write a complete page or none, with style sheet and script inside and nothing to load; return its path."""
    style, script = ((files("freerun.report") / name).read_text(encoding="utf-8") for name in ("report.css", "page.js"))
    summary = verdict if isinstance(verdict, Raw) else paragraph(verdict, "verdict")
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections if content)
    title = {"compare": "comparison", "diagnose": "diagnosis", "evaluate": "evaluation"}[kind]
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}: {title}</title><style>{style}</style></head><body><main>"
        f'<header><p class="kind">freerun {kind}</p><h1>{escape(name)}</h1>{summary}</header>'
        f"{body}</main><script>{script}</script></body></html>\n",
        encoding="utf-8",
    )
    return partial.replace(path)


_NOTEBOOK = {"ink": "currentColor", "soft": "#7d7d7d", "grid": "#7d7d7d40", "page": "transparent"} | {
    f"arm-{n}": colour for n, colour in enumerate(("#1f83c6", "#d9691e", "#12936d", "#b0609c", "#a5841a", "#76808d"))
}


def snippet(html: str) -> Raw:
    """Return pieces of a page for a notebook, light or dark, which has no style sheet of ours."""
    colours = "; ".join(f"--{name}: {colour}" for name, colour in _NOTEBOOK.items())
    drawn = html.replace('<div class="drawing"', '<div style="max-width: 32em"')
    return Raw(f'<div style="{colours}">{drawn}</div>')


def _stroke(style: str, label: str) -> Raw:
    stroke = f'<svg class="swatch" aria-hidden="true" viewBox="0 0 26 8"><path class="{style}" d="M1 4H25"/></svg>'
    return Raw(f'<span class="arm">{stroke}{escape(label)}</span>')


def swatch(number: int, label: str) -> Raw:
    """Return an arm's name behind a stroke in its colour and pattern."""
    return _stroke(f"stroke-{number % 6}", label)


def legend(entries: Iterable[tuple[str, int, str]]) -> Raw:
    """Return the key of a figure's strokes: (kind, number, label) each."""
    styles = {"arm": "stroke-{0}", "band": "band-{0}", "naive": "stroke-naive stroke-naive-{0}"}
    strokes = (_stroke(styles.get(kind, f"stroke-{kind}").format(number % 6), label) for kind, number, label in entries)
    parts = "".join(f"<li>{stroke}</li>" for stroke in strokes)
    return Raw(f'<ul class="legend" aria-label="what the lines mean">{parts}</ul>')


def paragraph(text: object, kind: str = "") -> Raw:
    """Return a paragraph."""
    return Raw(f"<p{_class(kind)}>{_html(text)}</p>")


def notes(lines: Iterable[str]) -> Raw:
    """Return paragraphs in small print."""
    return Raw("".join(paragraph(line, "note") for line in lines))


def preformatted(text: object) -> Raw:
    """Return text whose line breaks are kept."""
    return Raw(f"<pre>{escape(text)}</pre>")


def facts(entries: Mapping[str, object]) -> Raw:
    """Return names with their values, those that are None left out; whole numbers with thousands separators."""
    texts = {name: f"{value:,}" if isinstance(value, int) else value for name, value in entries.items()}
    parts = (f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in texts.items() if v is not None)
    return Raw(f"<dl>{''.join(parts)}</dl>")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "", caption: str = "") -> Raw:
    """Return a table; the first cell of a row is its head, and each cell knows its column's name."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{_cells(heads, row)}</tr>" for row in rows)
    if kind.startswith("numbers"):
        body = _NEGATIVE.sub("\N{MINUS SIGN}", body)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    inside = f"<table{_class(kind)}>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return Raw(
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption or heads[0])}">{inside}</div>'
    )


def _cells(heads: Sequence[str], row: Sequence[object]) -> str:
    rest = zip(heads[1:], row[1:], strict=True)
    cells = "".join(f'<td data-label="{escape(name)}">{_html(value)}</td>' for name, value in rest)
    return f'<th scope="row">{_html(row[0])}</th>{cells}'


def thin_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Raw:
    """Return a table of numbers with at most about a dozen rows, at even distances, the last one among them."""
    kept = list(rows[:: max(1, -(-len(rows) // _ROWS))])
    if kept and kept[-1] is not rows[-1]:
        kept.append(rows[-1])
    return table(heads, kept, "numbers")


def numbers(columns: Mapping[str, Values], first: tuple[str, Sequence[str]] | None = None) -> Raw:
    """Return a table of columns by lead time, thinned to about a dozen rows."""
    length = len(next(iter(columns.values())))
    name, names = first or ("lead time", [str(n + 1) for n in range(length)])
    rows = [[names[n], *(number(values[n]) for values in columns.values())] for n in range(length)]
    return thin_table([name, *columns], rows)


def number(value: float | None, infinite: str = "\N{INFINITY}") -> str:
    """Return a number in four digits; None is infinite."""
    return infinite if value is None else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def numbers_at(columns: Mapping[str, Values], position: int = -1, infinite: str = "\N{INFINITY}") -> str:
    """Return the names of columns with their values at a position, the last by default; gold may be missing there."""

    def text(name: str, value: float | None) -> str:
        return "missing" if value is None and name.startswith("gold") else number(value, infinite)

    return ", ".join(f"{name} {text(name, values[position])}" for name, values in columns.items())


def figure(title: str, svg: str, texts: tuple[str, str], data: Raw) -> Raw:
    """Return a figure with its title, a description in words, and its numbers as a table."""
    reading, content = texts
    drawing = f'<div class="drawing" role="img" aria-label="{escape(f"{title}. {content}")}">{svg}</div>'
    caption = f"<figcaption><strong>{escape(title)}</strong> <span>{escape(reading)}</span></figcaption>"
    return Raw(f"<figure>{caption}{drawing}<details><summary>the numbers</summary>{data}</details></figure>")


def grid(figures: Iterable[Raw]) -> Raw:
    """Return figures side by side where there is room."""
    return Raw(f'<div class="grid">{"".join(figures)}</div>')
