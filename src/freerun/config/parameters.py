"""Parameters of a method: from what a recipe writes to what its class takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from freerun.config.check import first_line, required
from freerun.config.ranged import MOST
from freerun.config.source import nearest
from freerun.config.toml_lines import KeyPath
from freerun.config.values import object_problem, show
from freerun.errors import UserError, shown

if TYPE_CHECKING:
    from freerun.types import Step

__all__ = [
    "UNREADABLE", "Report", "Wanted", "key_of", "make", "measured_deviation", "measured_rate", "read_arguments",
    "read_parameter",
]  # fmt: skip

Report = Callable[[KeyPath, str, str | None], None]

UNREADABLE = object()
"""Stands for a value whose problems were reported."""


def read_parameter(value: Any, path: KeyPath, run: Step | None, report: Report) -> Any:
    """The object a parameter's TOML value stands for; numbers and words stand for themselves.

    ``{schedule = "linear", ...}``, ``{draw = "sample", ...}`` and ``{gate = "every", ...}`` name a class and give its
    fields; ``{measured = "RUN/metrics.jsonl"}`` is the rate of disagreeing entries of another run, step by step, or as
    ``std`` how far they were from gold.

    Args:
        value: from TOML.
        path: its key, for problems.
        run: length of the run, which a schedule without ``steps`` takes; None: ``steps`` has to be given.
        report: called with key, problem and help; ``UNREADABLE`` is returned then.
    """
    if isinstance(value, list):
        parts = tuple(read_parameter(part, (*path, i), None, report) for i, part in enumerate(value))
        return UNREADABLE if any(part is UNREADABLE for part in parts) else parts
    if not isinstance(value, dict):
        return value
    if "measured" in value:
        return _measured(value, path, report)
    families = _families()
    kinds = [kind for kind in families if kind in value]
    if len(kinds) != 1:
        names = " or ".join(f'{kind} = "..."' for kind in families)
        report(path, f"`{path[-1]}` is a table that does not say what it is", f"it needs one of {names}")
        return UNREADABLE
    return _object(value, path, (kinds[0], families[kinds[0]]), run, report)


def _families() -> dict[str, Mapping[str, type[Any]]]:
    from freerun.draws import DRAWS
    from freerun.gates import GATES
    from freerun.schedules import SCHEDULES

    return {"schedule": SCHEDULES, "draw": DRAWS, "gate": GATES}


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
        report((*path, kind), f"{kind} must be one of {', '.join(known)}; got {shown(name)}", hint)
        return UNREADABLE
    cls = known[name]
    written = {key: part for key, part in value.items() if key != kind}
    wanted = Wanted(cls, f"{kind} = {name}", lambda key, names: _no_effect(key, names, f"{kind} = {name}"))
    if (
        run is not None
        and name in ("linear", "cosine")
        and "steps" not in written
        and not _meant("steps", written, cls)
    ):
        written = _whole_run(written, path, run, report)
    given, bad = read_arguments(wanted, written, path, None, report)
    if any(required(each) and each.name in bad for each in fields(cls)):
        return UNREADABLE
    made = make(cls, given, path, report, bad)
    return UNREADABLE if bad else made


def _meant(name: str, written: Mapping[str, Any], cls: type[Any]) -> bool:
    names = [each.name for each in fields(cls)]
    return any(nearest(key, names) == name for key in written if key not in names)


def _no_effect(key: str, names: Sequence[str], called: str) -> tuple[str, str]:
    near = nearest(key, names)
    hint = f"did you mean `{near}`?" if near else f"it takes {', '.join(names) or 'nothing'}"
    return f"`{key}` has no effect with {called}", hint


@dataclass(frozen=True, eq=False)
class Wanted:
    """A class whose fields a table gives.

    Args:
        cls: a dataclass.
        called: what it is called in problems.
        unknown: (key, known names) -> problem and help for a key that is not known.
        hidden: fields that a recipe does not give.
    """

    cls: type[Any]
    called: str
    unknown: Callable[[str, Sequence[str]], tuple[str, str]]
    hidden: Collection[str] = ()


def read_arguments(
    wanted: Wanted, table: Mapping[str, Any], path: KeyPath, run: Step | None, report: Report
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a class from a table, and the keys that are unknown, missing or wrong, each of them reported."""
    own = sorted(fields(wanted.cls), key=lambda each: each.kw_only is True)  # what all methods share comes last
    known = {each.name: each for each in own if each.init and each.name not in wanted.hidden}
    hints = get_type_hints(wanted.cls)
    given: dict[str, Any] = {}
    bad: list[str] = []
    helped = ""
    for key, value in table.items():
        if key not in known:
            bad.append(key)
            problem, hint = wanted.unknown(key, list(known))
            helped += hint
            report((*path, key), problem, hint)
            continue
        read = value if value is UNREADABLE else read_parameter(value, (*path, key), run, report)
        wrong = "" if read is UNREADABLE else object_problem(read, hints[key]) or beyond_numbers(read)
        if wrong:
            report((*path, key), f"`{key}` must be {wrong}; got {show(value)}", None)
        if wrong or read is UNREADABLE:
            bad.append(key)
        else:
            given[key] = read
    for name, each in known.items():
        if required(each) and name not in given and name not in bad:
            bad.append(name)
            if f"`{name}`" not in helped:
                report(path, f"{wanted.called} needs `{name}`", f"add {name} = ...")
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
        return {**given, "steps": UNREADABLE}
    return {**given, "steps": length}


def make(cls: type[Any], given: Mapping[str, Any], path: KeyPath, report: Report, without: Collection[str] = ()) -> Any:
    """An object of its arguments, or ``UNREADABLE``: what it says against them is reported.

    Args:
        cls: a dataclass.
        given: its arguments.
        path: where they stand.
        report: called with key, problem and help.
        without: arguments that were left out as wrong; what is said of them is not repeated.
    """
    try:
        return cls(**given)
    except UserError as error:
        for problem in error.problems:
            if any(re.search(rf"\b{re.escape(key)}\b", problem) for key in without):
                continue
            report(key_of(problem, path, given), problem, None)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        # of text in a list of numbers, a list where one number belongs
        report(path, f"`{path[-1]}`: {first_line(error)}", None)
    return UNREADABLE


def key_of(problem: str, path: KeyPath, given: Mapping[str, Any]) -> KeyPath:
    """The key that a problem of an object is about: the one of its arguments that is named first."""
    words = problem.replace("`", " ").replace(":", " ").replace("'", " ").split()
    named = [word for word in words[:4] if word in given]
    return (*path, named[0]) if named else path


def _measured(value: Mapping[str, Any], path: KeyPath, report: Report) -> Any:
    if set(value) != {"measured"} or not isinstance(value["measured"], str):
        report(path, f'`{path[-1]}` must be {{ measured = "RUN/metrics.jsonl" }}; got {shown(value)}', None)
        return UNREADABLE
    measure = measured_deviation if path[-1] == "std" else measured_rate
    try:
        return measure(Path(value["measured"]))
    except ValueError as error:
        report((*path, "measured"), str(error), "give the metrics.jsonl of a run that replaced entries")
        return UNREADABLE


def measured_rate(metrics: Path) -> Any:
    """The share of eligible entries that disagreed with gold at each update of a run, as a ``table`` schedule.

    ``rate(step) = disagreeing / eligible``: what a matched noise control replaces, so that it differs from the run
    in *which* wrong entries are fed, not in how many.

    Args:
        metrics: ``metrics.jsonl`` of the run.

    Raises:
        ValueError: where the file is missing, is not a run's, or misses updates.
    """
    return _each_update(metrics, lambda event: float(event["disagreeing"]) / max(float(event["eligible"]), 1.0))


def measured_deviation(metrics: Path) -> Any:
    """How far the entries that were replaced lay from gold at each update of a run, as a ``table`` schedule.

    ``std(step) = sqrt(mean over replaced entries of (fed - gold)^2)``, 0 where none was: matched Gaussian noise is as
    large as the run's own errors, and differs from them in its direction.

    Args:
        metrics: ``metrics.jsonl`` of the run.

    Raises:
        ValueError: where the file is missing, is not a run's on values, or misses updates.
    """
    return _each_update(metrics, lambda event: float(event["deviation"]) if event["replaced"] else 0.0)


def _each_update(metrics: Path, measure: Callable[[Mapping[str, Any]], float]) -> Any:
    from freerun.schedules import Table
    from freerun.training.shapes import read_lines

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
