"""From a TOML table to a frozen dataclass: unknown and missing keys, types, ranges; problems are noted, not raised."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from freerun.config.source import Source, nearest
from freerun.config.toml_lines import KeyPath
from freerun.config.values import choices, fit, show
from freerun.errors import UserError

__all__ = ["check_keys", "construct", "first_line", "read_section", "required"]


def read_section(
    source: Source,
    path: KeyPath,
    cls: type[Any],
    *,
    hidden: Collection[str] = (),
    elsewhere: Mapping[str, str] | None = None,
    readers: Mapping[str, Callable[[Any, KeyPath], Any]] | None = None,
    check: Callable[[Any], object] | None = None,
) -> Any:
    """An instance of ``cls`` from the table at ``path``, or None where a value is wrong; every problem is noted.

    Args:
        source: the settings.
        path: where the table stands; a table that is not there counts as empty.
        cls: a dataclass; its type hints and its ``low``/``high`` field metadata are what is allowed.
        hidden: fields a recipe cannot set.
        elsewhere: key -> where it belongs ("in [train]"), for keys of other sections.
        readers: field -> how to read its value where a plain type does not do.
        check: raises ``UserError`` for what does not go together; of wrong values it sees the defaults.
    """
    table = _table_at(source, path)
    if table is None:
        return None
    known = [each for each in fields(cls) if each.init and each.name not in hidden]
    check_keys(source, path, table, [each.name for each in known], elsewhere)
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for each in known:
        where = (*path, each.name)
        if each.name not in table:
            continue
        if readers and each.name in readers:
            values[each.name] = readers[each.name](table[each.name], where)
            continue
        value, fine = _read(source, where, table[each.name], hints[each.name], each)
        if fine:
            values[each.name] = value
        else:
            wrong.append(each.name)
    made = construct(source, path, lambda: cls(**values), values, without=wrong)
    if made is not None and check is not None:
        construct(source, path, lambda: check(made), values, without=wrong)
    return None if wrong else made


def construct(
    source: Source, path: KeyPath, make: Callable[[], Any], keys: Collection[str], without: Collection[str] = ()
) -> Any:
    """``make()``, or None: its own complaints are noted, at the key each begins with where that was given.

    Args:
        source: where problems are noted.
        path: the section.
        make: raises ``UserError`` for what it does not like.
        keys: those given.
        without: keys whose values are known to be wrong and were left out; what is said of them is not repeated.
    """
    try:
        return make()
    except UserError as error:
        for problem in error.problems:
            if any(re.search(rf"\\b{key}\\b", problem) for key in without):
                continue
            word = problem.split()[0].strip("`:'\",") if problem.split() else ""
            source.add((*path, word) if word in keys else path, problem)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        source.add(path, f"{_called(path)}: {first_line(error)}")
    return None


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_keys(
    source: Source,
    path: KeyPath,
    table: Mapping[str, Any],
    known: Collection[str],
    elsewhere: Mapping[str, str] | None = None,
) -> bool:
    """Note every key that is not known, with the nearest one or the section it belongs to."""
    unknown = [key for key in table if key not in known]
    for key in unknown:
        source.add((*path, key), f"unknown key `{key}` {_within(path)}", _hint(key, known, elsewhere or {}))
    return not unknown


def _hint(key: str, known: Collection[str], elsewhere: Mapping[str, str]) -> str:
    if key in elsewhere:
        return f"`{key}` belongs {elsewhere[key]}"
    if near := nearest(key, known):
        return f"did you mean `{near}`?"
    if (far := nearest(key, elsewhere)) and len(key) > 2:
        return f"did you mean `{far}` {elsewhere[far]}?"
    return f"the keys here are {', '.join(known)}" if known else "there are no keys here"


def required(each: Field[Any]) -> bool:
    """Whether a dataclass field has no default."""
    return each.default is MISSING and each.default_factory is MISSING


def _table_at(source: Source, path: KeyPath) -> dict[str, Any] | None:
    inside: Any = source.table
    for part in path:
        inside = inside[int(part)] if isinstance(inside, list) else inside.get(part, {})
    if isinstance(inside, dict):
        return inside
    source.add(path, f"{_called(path)} must be a table of keys; got {show(inside)}")
    return None


def _called(path: KeyPath) -> str:
    return f"[{'.'.join(str(part) for part in path)}]"


def _within(path: KeyPath) -> str:
    return f"in {_called(path)}" if path else "at the top of the recipe"


def _read(source: Source, path: KeyPath, value: Any, hint: Any, each: Field[Any]) -> tuple[Any, bool]:
    found, wanted = fit(value, hint)
    if wanted:
        words = [choice for choice in choices(hint) if isinstance(choice, str)]
        near = nearest(value, words) if isinstance(value, str) else None
        quoted = f'write it in quotes: "{value}"' if hint is str and not isinstance(value, dict | list) else None
        source.add(
            path, f"`{path[-1]}` must be {wanted}; got {show(value)}", f"did you mean {near}?" if near else quoted
        )
        return None, False
    low, high = each.metadata.get("low"), each.metadata.get("high")
    for number in found if isinstance(found, tuple) else (found,):
        if _outside(number, low, high):
            source.add(path, f"`{path[-1]}` must be {_range(low, high, number)}; got {number}")
            return None, False
    return found, True


def _outside(number: Any, low: float | None, high: float | None) -> bool:
    if not isinstance(number, int | float) or isinstance(number, bool):
        return False
    return (low is not None and number < low) or (high is not None and number > high)


def _range(low: float | None, high: float | None, number: float) -> str:
    if high is None or (low is not None and number < low and isinstance(high, int)):
        return f"at least {low}"
    return f"at most {high}" if low is None else f"from {low} to {high}"
