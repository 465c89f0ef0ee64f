"""One reader: a table of TOML values against a class; objects in tables; rates measured in another run."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from freerun.arguments import MOST, Range, is_number, nearest
from freerun.errors import DATA, UserError, display, visible
from freerun.errors import display as in_python
from freerun.recipes.source import KeyPath, RecipeSource, dotted
from freerun.training.changes import RENAMED_KEYS

if TYPE_CHECKING:
    from freerun.types import Step


def read_section(
    source: RecipeSource,
    path: KeyPath,
    cls: type[Any],
    *,
    hidden: Collection[str] = (),
    elsewhere: Mapping[str, str] | None = None,
    readers: Mapping[str, Callable[[Any, KeyPath], Any]] | None = None,
) -> Any:
    """An instance of ``cls`` from the table at ``path``, or None where a value is wrong; every problem is noted."""
    table = _table_at(source, path)
    if table is None:
        return None
    hints = get_type_hints(cls)
    known = {each.name: each for each in section_fields(cls) if each.name not in hidden}

    def read(key: str, value: Any, where: KeyPath) -> Any:
        if readers and key in readers:
            return readers[key](value, where)
        return _read(source, where, value, hints[key], known[key])

    given, bad = read_table(
        table, path, known, source.add, read=read, unknown=lambda key: _unknown(path, key, known, elsewhere)
    )
    wrong = [key for key in bad if key in known]
    made = construct(cls, given, path, source.add, wrong)
    return None if wrong or made is INVALID else made


def read_table(
    table: Mapping[str, Any],
    path: KeyPath,
    known: Collection[str],
    report: Report,
    *,
    read: Callable[[str, Any, KeyPath], Any],
    unknown: Callable[[str], tuple[str, str | None]],
) -> tuple[dict[str, Any], list[str]]:
    """The values of a table, and its keys that are unknown or wrong, each of them reported."""
    given: dict[str, Any] = {}
    bad: list[str] = []
    for key, value in table.items():
        if key not in known:
            report((*path, key), *unknown(key))
            bad.append(key)
        elif (found := read(key, value, (*path, key))) is INVALID:
            bad.append(key)
        else:
            given[key] = found
    return given, bad


def construct(
    cls: type[Any], given: Mapping[str, Any], path: KeyPath, report: Report, without: Collection[str] = ()
) -> Any:
    """An object of its arguments, or ``INVALID``: its problems are reported."""
    try:
        return cls(**given)
    except UserError as error:
        for problem in error.problems:
            if not any(re.search(rf"\b{re.escape(key)}\b", problem) for key in without):
                report(key_of(problem, path, given), problem, None)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        # of text in a list of numbers, a list where one number belongs
        report(path, f"`{path[-1]}`: {first_line(error)}", None)
    return INVALID


def key_of(problem: str, path: KeyPath, given: Mapping[str, Any]) -> KeyPath:
    """The key that a problem of an object is about: the one of its arguments that is named first."""
    words = re.sub("[`:',\"]", " ", problem).split()
    named = [word for word in words[:4] if word in given]
    return (*path, named[0]) if named else path


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_keys(
    source: RecipeSource,
    path: KeyPath,
    table: Mapping[str, Any],
    known: Collection[str],
    elsewhere: Mapping[str, str] | None = None,
) -> None:
    """Report every key that is not known, with the nearest one or the section it belongs to."""
    read_table(
        table, path, known, source.add, read=lambda *_: None, unknown=lambda key: _unknown(path, key, known, elsewhere)
    )


def _unknown(
    path: KeyPath, key: str, known: Collection[str], elsewhere: Mapping[str, str] | None = None
) -> tuple[str, str]:
    new = RENAMED_KEYS.get(dotted((*path, key)), "").rpartition(".")[2]
    hint = f"`{key}` is now `{new}`" if new in known else _hint(key, known, elsewhere or {})
    return f"unknown key `{key}` {_within(path)}", hint


def _hint(key: str, known: Collection[str], elsewhere: Mapping[str, str]) -> str:
    if key in elsewhere:
        return f"`{key}` belongs {elsewhere[key]}"
    if near := nearest(key, known):
        return f"did you mean `{near}`?"
    if (far := nearest(key, elsewhere)) and len(key) > 2:
        return f"did you mean `{far}` {elsewhere[far]}?"
    return f"the keys here are {', '.join(known)}" if known else "there are no keys here"


def section_fields(cls: type[Any]) -> list[Field[Any]]:
    """The fields of a section that a recipe may give, ``kind`` and ``path`` first."""
    given = [each for each in fields(cls) if each.init]
    return sorted(given, key=lambda each: (each.name != "kind", each.name != "path"))


def required(each: Field[Any]) -> bool:
    """Whether a dataclass field has no default."""
    return each.default is MISSING and each.default_factory is MISSING


def _table_at(source: RecipeSource, path: KeyPath) -> dict[str, Any] | None:
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


def _read(source: RecipeSource, path: KeyPath, value: Any, hint: Any, each: Field[Any]) -> Any:
    found, wanted = fit(value, hint)
    if wanted:
        words = [choice for choice in choices(hint) if isinstance(choice, str)]
        near = nearest(value, words) if isinstance(value, str) else None
        quoted = f'write it in quotes: "{value}"' if hint is str and not isinstance(value, dict | list) else None
        source.add(
            path, f"`{path[-1]}` must be {wanted}; got {show(value)}", f"did you mean {near}?" if near else quoted
        )
        return INVALID
    rule = each.metadata.get("rule")
    if isinstance(rule, Range):
        entries = found if isinstance(found, tuple) else (found,)
        numbers = [entry for entry in entries if is_number(entry)]
        rule = replace(rule, whole=any(isinstance(entry, int) for entry in numbers))
        if problem := next(filter(None, (rule.problem(f"`{path[-1]}`", number) for number in numbers)), None):
            source.add(path, problem)
            return INVALID
    return found


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
    if origin in (tuple, Sequence):
        return _fit_list(value, arguments[0])
    if origin is Mapping:
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


Report = Callable[[KeyPath, str, str | None], None]


INVALID = object()
"""Stands for a value whose problems were reported."""


def read_parameter(value: Any, path: KeyPath, run: Step | None, report: Report) -> Any:
    """The object a parameter's TOML value stands for; numbers and words stand for themselves."""
    if isinstance(value, list):
        parts = tuple(read_parameter(part, (*path, i), None, report) for i, part in enumerate(value))
        return INVALID if any(part is INVALID for part in parts) else parts
    if not isinstance(value, dict):
        return value
    if "measured" in value:
        return _measured(value, path, report)
    families = _families()
    kinds = [kind for kind in families if kind in value]
    if len(kinds) != 1:
        names = " or ".join(f'{kind} = "..."' for kind in families)
        report(path, f"`{path[-1]}` is a table that does not say what it is", f"it needs one of {names}")
        return INVALID
    return _object(value, path, (kinds[0], families[kinds[0]]), run, report)


def _families() -> dict[str, Mapping[str, type[Any]]]:
    from freerun.draws import DRAWS
    from freerun.gates import GATES
    from freerun.rollin import ENGINES
    from freerun.schedules import SCHEDULES

    return {"schedule": SCHEDULES, "draw": DRAWS, "gate": GATES, "engine": ENGINES}


def _object(
    value: Mapping[str, Any],
    path: KeyPath,
    family: tuple[str, Mapping[str, type[Any]]],
    run: Step | None,
    report: Report,
) -> Any:
    kind, known = family
    name = value[kind]
    if not isinstance(name, str) or name not in known:
        near = nearest(name, known) if isinstance(name, str) else None
        hint = f"did you mean {near}?" if near else None
        report((*path, kind), f"{kind} must be one of {', '.join(known)}; got {display(name)}", hint)
        return INVALID
    cls = known[name]
    written = {key: part for key, part in value.items() if key != kind}
    called = f"{kind} = {name}"
    if (
        run is not None
        and name in ("linear", "cosine")
        and "steps" not in written
        and not _meant("steps", written, cls)
    ):
        written = _whole_run(written, path, run, report)
    given, bad = read_arguments(
        cls, called, written, path, report, unknown=lambda key, names: _no_effect(key, names, called)
    )
    if any(required(each) and each.name in bad for each in fields(cls)):
        return INVALID
    made = construct(cls, given, path, report, bad)
    return INVALID if bad else made


def _meant(name: str, written: Mapping[str, Any], cls: type[Any]) -> bool:
    names = [each.name for each in fields(cls)]
    return any(nearest(key, names) == name for key in written if key not in names)


def _no_effect(key: str, names: Sequence[str], called: str) -> tuple[str, str]:
    near = nearest(key, names)
    hint = f"did you mean `{near}`?" if near else f"it takes {', '.join(names) or 'nothing'}"
    return f"`{key}` has no effect with {called}", hint


def read_arguments(
    cls: type[Any],
    called: str,
    table: Mapping[str, Any],
    path: KeyPath,
    report: Report,
    *,
    run: Step | None = None,
    hidden: Collection[str] = (),
    unknown: Callable[[str, Sequence[str]], tuple[str, str]],
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a class from a table, and the keys that are unknown, missing or wrong, each of them reported."""
    own = sorted(fields(cls), key=lambda each: each.kw_only is True)  # what all methods share comes last
    known = {each.name: each for each in own if each.init and each.name not in hidden}
    hints = get_type_hints(cls)
    helped: list[str] = []

    def read(key: str, value: Any, where: KeyPath) -> Any:
        found = value if value is INVALID else read_parameter(value, where, run, report)
        wrong = "" if found is INVALID else object_problem(found, hints[key]) or beyond_numbers(found)
        if wrong:
            report(where, f"`{key}` must be {wrong}; got {show(value)}", None)
        return INVALID if wrong else found

    def refuse(key: str) -> tuple[str, str]:
        problem, hint = unknown(key, list(known))
        helped.append(hint)
        return problem, hint

    given, bad = read_table(table, path, known, report, read=read, unknown=refuse)
    for name, each in known.items():
        if required(each) and name not in given and name not in bad:
            bad.append(name)
            if not any(f"`{name}`" in hint for hint in helped):
                report(path, f"{called} needs `{name}`", f"add {name} = ...")
    return given, bad


def beyond_numbers(value: Any) -> str:
    """What a number, or every one of a list, should have been; "" where it is finite and can be counted to."""
    if isinstance(value, list | tuple):
        return next((wrong for part in value if (wrong := beyond_numbers(part))), "")
    if isinstance(value, float):
        return "" if math.isfinite(value) else "finite"
    return f"at most {MOST}" if isinstance(value, int) and abs(value) > MOST else ""


def _whole_run(given: dict[str, Any], path: KeyPath, run: Step, report: Report) -> dict[str, Any]:
    unit = given.get("unit", "step")
    length = getattr(run, unit, None) if unit in ("sample", "epoch") else int(run)
    if length is None:
        report(path, f"`steps` must be given with unit = {unit!r}", f"add steps = ..., counted in {unit}s")
        return {**given, "steps": INVALID}
    return {**given, "steps": length}


def _measured(value: Mapping[str, Any], path: KeyPath, report: Report) -> Any:
    if set(value) != {"measured"} or not isinstance(value["measured"], str):
        report(path, f'`{path[-1]}` must be {{ measured = "RUN/metrics.jsonl" }}; got {display(value)}', None)
        return INVALID
    measure = measured_deviation if path[-1] == "std" else measured_rate
    try:
        return measure(Path(value["measured"]))
    except ValueError as error:
        report((*path, "measured"), str(error), "give the metrics.jsonl of a run that replaced entries")
        return INVALID


def measured_rate(metrics: Path) -> Any:
    """The share of eligible entries that disagreed with gold at each update of a run, as a ``table`` schedule."""
    return _each_update(metrics, lambda event: float(event["disagreeing"]) / max(float(event["eligible"]), 1.0))


def measured_deviation(metrics: Path) -> Any:
    """How far the entries that were replaced lay from gold at each update of a run, as a ``table`` schedule."""
    return _each_update(metrics, lambda event: float(event["deviation"]) if event["replaced"] else 0.0)


def _each_update(metrics: Path, measure: Callable[[Mapping[str, Any]], float]) -> Any:
    from freerun.schedules import Table
    from freerun.training.files import read_lines

    found: dict[int, float] = {}
    if not metrics.exists():
        raise ValueError(f"there is no {metrics}")
    try:
        for event in read_lines(metrics.resolve(), dict[str, Any]):
            if event.get("event") == "update":
                found[int(event["step"])] = measure(event)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{metrics} is not the metrics.jsonl of a run: {type(error).__name__}: {error}") from None
    if not found or sorted(found) != list(range(len(found))):
        raise ValueError(f"{metrics} must have an update line for each step from 0; it has {len(found)}")
    return Table(values=tuple(found[step] for step in range(len(found))))
