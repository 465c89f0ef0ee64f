"""Numbers as people write them, in forms that a table is not read in: what a cell may mean, and what to set."""

from __future__ import annotations

import json
import re

_SPACES = " \u00a0\u2009\u202f'\u2019_"
"""Marks that group thousands, besides point and comma: spaces of four widths, apostrophes, the underscore."""

_DRESSED = re.compile(
    rf"(?P<sign>[+\-\u2212]?)\s?(?P<before>[$\u20ac\u00a3\u00a5\u20b9]?)\s?(?P<minus>[\-\u2212]?)"
    rf"(?P<whole>\d{{1,3}}(?:(?P<group>[{_SPACES}.,])\d{{3}})(?:(?P=group)\d{{3}})*|\d+)"
    rf"(?P<rest>[.,]\d+)?\s?(?P<after>[%\u2030$\u20ac\u00a3\u00a5\u20b9]?)"
)


def with_commas(text: str) -> list[str]:
    """What a number that is written with commas may mean, with a point: they mark its decimals, or thousands.

    >>> with_commas("1,234"), with_commas("1.234,5"), with_commas("1,234.5"), with_commas("a,b")
    (['1.234', '1234'], ['1234.5'], ['1234.5'], [])
    """
    decimal = re.fullmatch(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?", text)
    thousands = re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", text)
    return [text.replace(".", "").replace(",", ".")] * bool(decimal) + [text.replace(",", "")] * bool(thousands)


def with_points(text: str) -> list[str]:
    """The same where the comma marks decimals: points that group thousands.

    >>> with_points("1.234,5"), with_points("1.5")
    (['1234,5'], [])
    """
    return [text.replace(".", "")] if re.fullmatch(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?", text) else []


def remedy(text: str, decimal: str) -> str:
    """What to do about a number with spaces, apostrophes, a currency or a share sign in it; "" where it is none.

    >>> remedy("148 766,61", ".")
    'set thousands = " " and decimal = ","'
    >>> remedy("12.5 %", "."), remedy("$1'000", ".")
    ("take '%' out of the cells", 'set thousands = "\\'" and take \\'$\\' out of the cells')
    >>> remedy("3B", "."), remedy("2020-12-31", ".")
    ('', '')
    """
    found = _DRESSED.fullmatch(text)
    if found is None:
        return ""
    group, rest = found["group"], found["rest"] or ""
    marked = rest[:1]
    if marked and marked == group:  # 1,234,5 is none
        return ""
    settings: list[str] = []
    if group and group in _SPACES:
        settings.append(f"thousands = {json.dumps(group)}")
    if marked and marked != decimal:
        settings.append(f"decimal = {json.dumps(marked)}")
    steps = ["set " + " and ".join(settings)] if settings else []
    signs = [each for each in (found["before"], found["after"]) if each]
    if signs:
        steps.append(f"take {' and '.join(map(repr, signs))} out of the cells")
    if "\u2212" in (found["sign"], found["minus"]):
        steps.append("write the minus sign as '-'")
    return " and ".join(steps)
