"""Whether a value from TOML is what a type hint asks for, and how to say what it should have been."""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

from freerun.errors import DATA, visible
from freerun.errors import shown as in_python

__all__ = ["choices", "fit", "object_problem", "show"]


def show(value: Any) -> str:
    """A value as TOML writes it, cut where it is long."""
    if isinstance(value, str):
        return f'"{visible(value[:DATA])}"' + ("..." if len(value) > DATA else "")
    return str(value).lower() if isinstance(value, bool) else in_python(value)


def choices(hint: Any) -> list[Any]:
    """The words a hint allows; [] where it is not a choice of words."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        parts = [choice for part in get_args(hint) for choice in choices(part)]
        return [*parts, "none"] if parts and type(None) in get_args(hint) else parts
    return []


_PLAIN: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def fit(value: Any, hint: Any) -> tuple[Any, str]:
    """(The value as the hint wants it, "") or (None, what it should have been)."""
    origin, arguments = get_origin(hint), get_args(hint)
    if allowed := choices(hint):
        if value not in allowed or isinstance(value, bool):
            return None, "one of " + ", ".join(allowed)
        # a word of the choice itself stays what it is
        return (None if value == "none" and origin is not Literal else value), ""
    if origin in (Union, types.UnionType):
        if value == "none" and type(None) in arguments:
            return None, ""
        tried = [fit(value, part) for part in arguments if part is not type(None)]
        fitting = [pair for pair in tried if not pair[1]]
        wanted = " or ".join(wanted for _, wanted in tried) + (' or "none"' if type(None) in arguments else "")
        return fitting[0] if fitting else (None, wanted)
    if origin is tuple:
        return _fit_list(value, arguments[0])
    if origin is dict:
        return _fit_numbers(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # of 64 bits at most: see Source
    if hint in _PLAIN and (not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))):
        return None, _PLAIN[hint]
    if isinstance(value, float) and not math.isfinite(value):
        return None, "a finite number"
    return value, ""


def _fit_list(value: Any, part: Any) -> tuple[Any, str]:
    wanted = f"a list, each entry {_PLAIN.get(part, 'as its section says')}"
    if not isinstance(value, list):
        return None, wanted
    found = [fit(entry, part) for entry in value]
    return (None, wanted) if any(problem for _, problem in found) else (tuple(v for v, _ in found), "")


def _fit_numbers(value: Any) -> tuple[Any, str]:
    wanted = "a table of numbers, as in { b = 0.1 }"
    fine = isinstance(value, dict) and all(not fit(number, float)[1] for number in value.values())
    return (value, "") if fine else (None, wanted)


def object_problem(value: Any, hint: Any) -> str | None:
    """What a parameter should have been, None where it may be what it is.

    Plain values must be among the plain types of the hint; objects are left to the class that takes them.

    >>> object_problem("yes", bool), object_problem(1, float), object_problem(None, int | None)
    ('true or false', None, None)
    """
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    plain = [part for part in parts if part in _PLAIN]
    if not isinstance(value, bool | int | float | str) or not plain:
        return None
    if any(not fit(value, part)[1] for part in plain):
        return None
    objects = [part for part in parts if part not in _PLAIN and part is not type(None)]
    names = [_PLAIN[part] for part in plain] + [
        f"a {part.__name__.lower()}" for part in objects if isinstance(part, type)
    ]
    return " or ".join(dict.fromkeys(names))
