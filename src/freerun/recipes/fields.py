"""One reader: a table of TOML values against a class; objects in tables; rates measured in another run."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from freerun.arguments import MOST, Range, is_number, nearest
from freerun.draws import DRAWS
from freerun.errors import DATA, UserError, display, visible
from freerun.gates import GATES
from freerun.methods import ErrorLaw
from freerun.objectives import OBJECTIVES
from freerun.recipes.source import KeyPath, RecipeSource, dotted
from freerun.rollin import ENGINES
from freerun.schedules import SCHEDULES, Join, Table
from freerun.targets import TARGETS
from freerun.training.changes import RENAMED_KEYS
from freerun.training.files import read_lines
from freerun.types import Step

Report = Callable[[KeyPath, str, str | None], None]

INVALID = object()
"""Stands for a value whose problems were reported."""


def read_section(
    source: RecipeSource,
    section: str,
    cls: type[Any],
    *,
    hidden: Collection[str] = (),
    elsewhere: Mapping[str, str] | None = None,
    readers: Mapping[str, Callable[[Any, KeyPath], Any]] | None = None,
) -> Any:
    """An instance of ``cls`` from a section's table, or None where a value is wrong; every problem is noted."""
    table, path = source.table.get(section, {}), (section,)
    if not isinstance(table, dict):
        source.add(path, f"[{section}] must be a table of keys; got {show(table)}")
        return None
    hints = get_type_hints(cls)
    known = {each.name: each for each in section_fields(cls) if each.name not in hidden}

    def read(key: str, value: Any, where: KeyPath) -> Any:
        if readers and key in readers:
            return readers[key](value, where)
        return _read(source, where, value, hints[key], known[key])

    arguments, bad = read_table(
        table, path, known, source.add, read=read, unknown=lambda key: _unknown(path, key, known, elsewhere or {})
    )
    wrong = [key for key in bad if key in known]
    section_object = construct(cls, arguments, path, source.add, wrong)
    return None if wrong or section_object is INVALID else section_object


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
    values: dict[str, Any] = {}
    bad: list[str] = []
    for key, value in table.items():
        if key not in known:
            report((*path, key), *unknown(key))
            bad.append(key)
        elif (read_value := read(key, value, (*path, key))) is INVALID:
            bad.append(key)
        else:
            values[key] = read_value
    return values, bad


def construct(
    cls: type[Any], arguments: Mapping[str, Any], path: KeyPath, report: Report, without: Collection[str] = ()
) -> Any:
    """An object of its arguments, or ``INVALID``: its problems are reported."""
    try:
        return cls(**arguments)
    except UserError as error:
        for problem in error.problems:
            if not any(re.search(rf"\b{re.escape(key)}\b", problem) for key in without):
                function = "a function goes with Python: fr.fit and fr.compare" if "a function" in problem else None
                report(key_of(problem, path, arguments), problem, function)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        # of text in a list of numbers, a list where one number belongs
        report(path, f"`{path[-1]}`: {first_line(error)}", None)
    return INVALID


def key_of(problem: str, path: KeyPath, arguments: Mapping[str, Any]) -> KeyPath:
    """The key that a problem of an object is about: the one of its arguments that is named first."""
    words = re.sub("[`:',\"]", " ", problem).split()
    named = [word for word in words[:4] if word in arguments]
    return (*path, named[0]) if named else path


def first_line(error: Exception) -> str:
    """The message of another library's error, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_keys(
    source: RecipeSource,
    path: KeyPath,
    table: Mapping[str, Any],
    known: Collection[str],
    elsewhere: Mapping[str, str] | None = None,
) -> None:
    """Report every key that is not known, with the nearest one or the section it belongs to."""
    for key in table:
        if key not in known:
            source.add((*path, key), *_unknown(path, key, known, elsewhere or {}))


def _unknown(path: KeyPath, key: str, known: Collection[str], elsewhere: Mapping[str, str]) -> tuple[str, str]:
    new = RENAMED_KEYS.get(dotted((*path, key)), "").rpartition(".")[2]
    elsewhere = {name: where for name, where in elsewhere.items() if where != f"in [{dotted(path)}]"}
    if new in known:
        hint = f"`{key}` is now `{new}`"
    elif key in elsewhere:
        hint = f"`{key}` belongs {elsewhere[key]}"
    elif near := nearest(key, known):
        hint = f"did you mean `{near}`?"
    elif (far := nearest(key, elsewhere)) and len(key) > 2:
        hint = f"did you mean `{far}` {elsewhere[far]}?"
    else:
        hint = f"the keys here are {', '.join(known)}" if known else "there are no keys here"
    return f"unknown key `{key}` {f'in [{dotted(path)}]' if path else 'at the top of the recipe'}", hint


def section_fields(cls: type[Any]) -> list[Field[Any]]:
    """The fields of a section that a recipe may give, ``kind`` and ``path`` first."""
    own = [each for each in fields(cls) if each.init]
    return sorted(own, key=lambda each: (each.name != "kind", each.name != "path"))


def required(each: Field[Any]) -> bool:
    """Whether a dataclass field has no default."""
    return each.default is MISSING and each.default_factory is MISSING


def _read(source: RecipeSource, path: KeyPath, value: Any, hint: Any, each: Field[Any]) -> Any:
    fitted, expected = fit(value, hint)
    if expected:
        words = [choice for choice in choices(hint) if isinstance(choice, str)]
        near = nearest(value, words) if isinstance(value, str) else None
        quoted = f'write it in quotes: "{value}"' if hint is str and not isinstance(value, dict | list) else None
        problem = f"`{path[-1]}` must be {expected}; got {show(value)}"
        source.add(path, problem, f"did you mean {near}?" if near else quoted)
        return INVALID
    rule = each.metadata.get("rule")
    if isinstance(rule, Range):
        numbers = [entry for entry in (fitted if isinstance(fitted, tuple) else (fitted,)) if is_number(entry)]
        rule = replace(rule, whole=any(isinstance(entry, int) for entry in numbers))
        if problem := next(filter(None, (rule.problem(f"`{path[-1]}`", number) for number in numbers)), None):
            source.add(path, problem)
            return INVALID
    return fitted


def show(value: Any) -> str:
    """A value as TOML writes it, cut where it is long."""
    if isinstance(value, str):
        return f'"{visible(value[:DATA])}"' + ("..." if len(value) > DATA else "")
    return str(value).lower() if isinstance(value, bool) else display(value)


def choices(hint: Any) -> list[Any]:
    """The words a hint allows; [] where it is not a choice of words."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        parts = [choice for part in get_args(hint) for choice in choices(part)]
        return [*parts, "none"] if parts and type(None) in get_args(hint) and "none" not in parts else parts
    return []


_PLAIN: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def fit(value: Any, hint: Any) -> tuple[Any, str]:
    """(The value as the hint has it, "") or (None, what it should have been)."""
    origin, arguments = get_origin(hint), get_args(hint)
    if allowed := choices(hint):
        if value not in allowed or isinstance(value, bool):
            return None, "one of " + ", ".join(allowed)
        # a word of the choice itself stays what it is: left out, the key is None
        words = [choice for part in arguments for choice in choices(part)] if origin is not Literal else allowed
        return (None if value == "none" and "none" not in words else value), ""
    if origin in (Union, types.UnionType):
        if value == "none" and type(None) in arguments:
            return None, ""
        tried = [fit(value, part) for part in arguments if part is not type(None)]
        expected = " or ".join(words for _, words in tried) + (' or "none"' if type(None) in arguments else "")
        return next((pair for pair in tried if not pair[1]), (None, expected))
    if origin in (tuple, Sequence):
        entries = [fit(entry, arguments[0]) for entry in value] if isinstance(value, list) else []
        if not isinstance(value, list) or any(problem for _, problem in entries):
            return None, f"a list, each entry {_PLAIN.get(arguments[0], 'as its section describes')}"
        return tuple(entry for entry, _ in entries), ""
    if origin is Mapping and arguments[1] is Any:
        return (value, "") if isinstance(value, dict) else (None, "a table of arguments, as in { size = 32 }")
    if origin is Mapping:
        fits = isinstance(value, dict) and all(not fit(number, float)[1] for number in value.values())
        return (value, "") if fits else (None, "a table of numbers, as in { b = 0.1 }")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # of 64 bits at most: see Source
    if hint in _PLAIN and (not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))):
        return None, _PLAIN[hint]
    if isinstance(value, float) and not math.isfinite(value):
        return None, "a finite number"
    return value, ""


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


def read_parameter(value: Any, path: KeyPath, run: Step | None, report: Report) -> Any:
    """The object a parameter's TOML value stands for; numbers and words stand for themselves."""
    if isinstance(value, list):
        parts = tuple(read_parameter(part, (*path, i), run, report) for i, part in enumerate(value))
        return INVALID if any(part is INVALID for part in parts) else parts
    if not isinstance(value, dict):
        return value
    if "measured" in value:
        return _measured(value, path, report)
    families: dict[str, Mapping[str, type[Any]]] = {
        "schedule": SCHEDULES, "draw": DRAWS, "gate": GATES, "engine": ENGINES, "objective": OBJECTIVES,
        "target": TARGETS,
    }  # fmt: skip
    kinds = [kind for kind in families if kind in value]
    if len(kinds) != 1:
        names = " or ".join(f'{kind} = "..."' for kind in families)
        report(path, f"`{path[-1]}` is a table that does not name what it is", f"it needs one of {names}")
        return INVALID
    return _object(value, path, kinds[0], families[kinds[0]], run=run, report=report)


def _object(
    value: Mapping[str, Any],
    path: KeyPath,
    kind: str,
    known: Mapping[str, type[Any]],
    *,
    run: Step | None,
    report: Report,
) -> Any:
    name = value[kind]
    if not isinstance(name, str) or name not in known:
        near = nearest(name, known) if isinstance(name, str) else None
        hint = f"did you mean {near}?" if near else None
        report((*path, kind), f"{kind} must be one of {', '.join(known)}; got {display(name)}", hint)
        return INVALID
    cls, called = known[name], f"{kind} = {name}"
    written = {key: part for key, part in value.items() if key != kind}
    names = [each.name for each in fields(cls)]
    misspelt = any(nearest(key, names) == "steps" for key in written if key not in names)
    if run is not None and name in ("linear", "cosine") and "steps" not in written and not misspelt:
        unit = written.get("unit", "step")
        written["steps"] = getattr(run, unit, None) if unit in ("sample", "epoch") else int(run)
        if written["steps"] is None:
            report(path, f"`steps` must be set with unit = {unit!r}", f"add steps = ..., counted in {unit}s")
            written["steps"] = INVALID

    def unknown(key: str, takes: Sequence[str]) -> tuple[str, str]:
        near = nearest(key, takes)
        hint = f"did you mean `{near}`?" if near else f"it takes {', '.join(takes) or 'nothing'}"
        return f"`{key}` has no effect with {called}", hint

    # the schedules of a join count from their own beginnings
    inner = None if cls is Join else run
    arguments, bad = read_arguments(cls, called, written, path, report, run=inner, unknown=unknown)
    if any(required(each) and each.name in bad for each in fields(cls)):
        return INVALID
    parameter = construct(cls, arguments, path, report, bad)
    return INVALID if bad else parameter


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
        parameter = value if value is INVALID else read_parameter(value, where, run, report)
        expected = "" if parameter is INVALID else object_problem(parameter, hints[key]) or beyond_numbers(parameter)
        if expected:
            report(where, f"`{key}` must be {expected}; got {show(value)}", None)
        return INVALID if expected else parameter

    def refuse(key: str) -> tuple[str, str]:
        problem, hint = unknown(key, list(known))
        helped.append(hint)
        return problem, hint

    arguments, bad = read_table(table, path, known, report, read=read, unknown=refuse)
    for name, each in known.items():
        if required(each) and name not in arguments and name not in bad:
            bad.append(name)
            if not any(f"`{name}`" in hint for hint in helped):
                report(path, f"{called} needs `{name}`", f"add {name} = ...")
    return arguments, bad


def beyond_numbers(value: Any) -> str:
    """What a number, or every one of a list, should have been; "" where it is finite and can be counted to."""
    if isinstance(value, list | tuple):
        return next(filter(None, map(beyond_numbers, value)), "")
    if isinstance(value, float):
        return "" if math.isfinite(value) else "finite"
    return f"at most {MOST}" if isinstance(value, int) and abs(value) > MOST else ""


def _measured(value: Mapping[str, Any], path: KeyPath, report: Report) -> Any:
    if set(value) != {"measured"} or not isinstance(value["measured"], str):
        report(path, f'`{path[-1]}` must be {{ measured = "RUN/metrics.jsonl" }}; got {display(value)}', None)
        return INVALID
    try:
        read = measured_law if path[-1] == "law" else measured
        return read(Path(value["measured"]), str(path[-1]))
    except ValueError as error:
        report((*path, "measured"), str(error), "give the metrics.jsonl of a run that replaced entries")
        return INVALID


def measured(metrics: Path, parameter: str = "rate") -> Table:
    """The share of eligible entries that disagreed with gold at each update; for ``std`` how far replaced ones lay."""

    def value(event: Mapping[str, Any]) -> float:
        if parameter == "std":
            return float(event["deviation"]) if event["replaced"] else 0.0
        return float(event["disagreeing"]) / max(float(event["eligible"]), 1.0)

    return Table(values=tuple(_each_update(metrics, value)))


def measured_law(metrics: Path, parameter: str = "law") -> ErrorLaw:
    """The law of a run's own errors, which it recorded with ``train.record_errors``."""
    updates = _each_update(metrics, lambda event: event.get("errors"))
    if None in updates:
        raise ValueError(f"{metrics} has no own errors: the run must be trained with record_errors = true")
    try:
        return ErrorLaw.of(updates)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{metrics}: its own errors cannot be read: {error}") from None


def _each_update(metrics: Path, read: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    """What is read from the line of each update of a metrics.jsonl, in order; ValueError if it is none."""
    values: dict[int, Any] = {}
    if not metrics.exists():
        raise ValueError(f"there is no {metrics}")
    try:
        for event in read_lines(metrics.resolve(), dict[str, Any]):
            if event.get("event") == "update":
                values[int(event["step"])] = read(event)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{metrics} is not the metrics.jsonl of a run: {type(error).__name__}: {error}") from None
    if not values or sorted(values) != list(range(len(values))):
        raise ValueError(f"{metrics} must have an update line for each step from 0; it has {len(values)}")
    return [values[step] for step in range(len(values))]
