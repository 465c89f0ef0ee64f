"""Write docs/methods.md from the library's own tables, so that it cannot go stale.

Run: python docs/make_methods.py          writes the page
     python docs/make_methods.py --check  exit code 1 where the page is not what the tables say
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import freerun as fr

PAGE = Path(__file__).parent / "methods.md"

HEAD = """\
<!-- written by docs/make_methods.py from METHODS, PRESETS, SCHEDULES, GATES and DRAWS; do not edit -->

# Methods, schedules, gates and draws

Everything here has the name it has in Python and in a recipe. In formulas `y` is gold, `x` the source, `h` the history
the model is told, `r(step)` the value of the method's ratio or rate at an optimizer step. `freerun methods NAME` prints
a method's BibTeX.
"""

SHARED = """\
Every method also takes `horizon` (`None`, or a schedule): only so many entries of each row that may be replaced are
used; and `loss_on` (`'all'`): which steps carry loss, `'all'`, `'last'`, `'own'` or a weight for each lead time. Who
feeds, where the gradient is cut, which steps carry loss and how long the horizon is are four independent choices: see
[vectors](vectors.md).
"""


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        "## Methods\n\n" + _methods(),
        SHARED,
        "## Presets\n\nPublished settings, as functions of the run's length: `fr.falling(steps)`.\n\n" + _presets(),
        "## Schedules\n\nThe value at position `s`, counted in optimizer steps (`unit`: or samples, or epochs). With\n"
        "a `floor` the value is never below it. A schedule may drive any parameter marked *or a schedule* above.\n\n"
        + _schedules(),
        "## Gates\n\nWhere gold is kept: the argument `coin`.\n\n" + _described(fr.GATES),
        "## Draws\n\nFrom a prediction to the entry that is fed back: the argument `draw`.\n\n" + _described(fr.DRAWS),
    ]
    return "\n".join(parts)


def _methods() -> str:
    rows = [
        (f"`{name}`<br>{cls.summary}", _formula(cls.citation.formula), _of_method(cls), cls.citation.reference)
        for name, cls in fr.METHODS.items()
    ]
    return _table(("method", "formula", "parameters (default)", "reference"), rows)


def _presets() -> str:
    rows = [(f"`{name}({_needed(make)})`", _first_sentence(make), paper) for name, (make, paper) in fr.PRESETS.items()]
    return _table(("preset", "what it is", "reference"), rows)


def _schedules() -> str:
    rows = [
        (f"`{name}`<br>{cls.summary}", _code(cls.formula), _parameters(cls, leave_out=("floor", "unit")), cls.reference)
        for name, cls in fr.SCHEDULES.items()
    ]
    return _table(("schedule", "formula", "parameters (default)", "reference"), rows)


def _described(catalogue: dict[str, type[Any]]) -> str:
    rows = [(f"`{name}`", _first_sentence(cls), _parameters(cls)) for name, cls in catalogue.items()]
    return _table(("name", "what it does", "parameters (default)"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _formula(text: str) -> str:
    lines = [part.strip() for line in text.splitlines() for part in line.split(";  ")]
    return "<br>".join(_code(line) for line in lines)


def _of_method(cls: type[Any]) -> str:
    """What all methods take is said once, below the table, unless a method needs it."""
    shared = [each.name for each in fields(cls) if each.name in ("horizon", "loss_on") and each.default is not MISSING]
    return _parameters(cls, leave_out=shared)


def _needed(make: Any) -> str:
    found = inspect.signature(make).parameters.values()
    return ", ".join(each.name for each in found if each.kind is each.POSITIONAL_OR_KEYWORD)


def _parameters(cls: type[Any], leave_out: Sequence[str] = ()) -> str:
    return "<br>".join(_parameter(cls, each) for each in fields(cls) if each.init and each.name not in leave_out)


def _parameter(cls: type[Any], each: Field[Any]) -> str:
    driven = ", or a schedule" if each.name in getattr(cls, "ranges", {}) else ""
    default = "required" if each.default is MISSING else f"`{each.default!r}`"
    return f"`{each.name}` ({default}{driven})"


def _first_sentence(documented: Any) -> str:
    """The docstring's first line; its double backquotes become single ones."""
    line = (inspect.getdoc(documented) or "").splitlines()[0]
    return line.replace("``", "`")


def main(arguments: Sequence[str]) -> int:
    """Write the page, or check it."""
    if list(arguments) not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    wanted = page()
    if not arguments:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{PAGE.name} is not what the library says: run python docs/make_methods.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
