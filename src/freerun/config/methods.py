"""The ``[method]`` section against ``METHODS``: names, parameters, ranges over the run, schedules that do nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from freerun.config.check import first_line, required
from freerun.config.parameters import UNREADABLE, Report, Wanted, key_of, make, read_arguments, read_parameter
from freerun.config.recipe import MethodSettings
from freerun.config.source import Source, nearest
from freerun.config.toml_lines import KeyPath
from freerun.config.trained import Trained, draw_problem, name_problem, objective_problem
from freerun.errors import UserError, shown

if TYPE_CHECKING:
    from freerun.types import Step

__all__ = ["SUPPLIED", "build_method", "read_method"]

SUPPLIED = ("vocabulary", "frequencies")
"""Parameters that come from the training data, not from the recipe."""

_STAND_IN = (1.0, 1.0)  # frequencies while only the recipe is checked

_OTHER_NAMES = ("ratio", "epsilon", "eps", "p", "tf_ratio", "sampling_probability")


def read_method(
    source: Source,
    path: KeyPath,
    value: Any,
    run: Step | None,
    trained: Trained,
    *,
    labels: Collection[str] | None = None,
) -> MethodSettings | None:
    """A method's settings from its table (or its name alone), checked; None with the problems noted.

    Args:
        source: the settings the table is part of.
        path: where the table stands.
        value: the table.
        run: length of the run; None where it is not known (then no schedule is checked over it).
        trained: what it trains, and on what.
        labels: arms whose measured rate may be asked for by ``matched_to``; None: not part of a comparison.
    """
    from freerun.methods import METHODS
    from freerun.types import Step

    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        source.add(path, f"a method is a table with a `name`; got {shown(value)}")
        return None
    name = table.get("name")
    if not isinstance(name, str) or name not in METHODS:
        near = nearest(name, METHODS) if isinstance(name, str) else None
        said = "it has no `name`" if name is None else f"got {shown(name)}"
        source.add(
            (*path, "name"),
            f"method must be one of {', '.join(METHODS)}; {said}",
            f"did you mean {near}?" if near else "`freerun methods` describes them",
        )
        if near is None:
            _check_unowned(table, path, run or Step(1, sample=1), source.add)
            return None
        name = near  # its parameters are looked at as those of the method that was meant
    settings = MethodSettings(name, MappingProxyType({key: part for key, part in table.items() if key != "name"}))
    parameters = _without_match(settings.parameters, path, labels, source.add)
    # where [train] is wrong the run's length is not known: any will do to build, none to check over
    method = _build(MethodSettings(name, parameters), path, (run or Step(1, sample=1), trained), source.add)
    if method is None:
        return None
    if run is not None:
        _check_over_run(method, path, run, source.add)
    return settings


def _check_unowned(table: Mapping[str, Any], path: KeyPath, run: Step, report: Report) -> None:
    """What is wrong with the parameters of a method that nothing is known of: no method has them, or no value fits."""
    from freerun.methods import METHODS

    known = {key for cls in METHODS.values() for key in cls.__dataclass_fields__ if key not in SUPPLIED}
    for key, value in table.items():
        if key == "name":
            continue
        if key in known:
            read_parameter(value, (*path, key), run, report)
        else:
            report((*path, key), f"no method has a parameter `{key}`", _parameter_hint(key, "a method", sorted(known)))


def build_method(
    settings: MethodSettings, run: Step, trained: Trained, frequencies: tuple[float, ...] | None = None
) -> Any:
    """The method object of a recipe.

    Args:
        settings: checked settings.
        run: length of the run.
        trained: what it trains, and on what.
        frequencies: how often each target symbol stands in the training data, for unigram noise.

    Raises:
        UserError: for what can only be seen now (a measured rate that is gone), or settings not checked before.
    """
    problems: list[str] = []

    def report(path: KeyPath, message: str, hint: str | None = None) -> None:
        problems.append(f"[method]: {message}" + (f"\n  help: {hint}" if hint else ""))

    for key, value in settings.parameters.items():
        if isinstance(value, dict) and "matched_to" in value:
            report(
                (), f"`{key}` is matched to the arm {value['matched_to']!r}", "only `freerun compare` knows its arms"
            )
    method = None if problems else _build(settings, (), (run, trained), report, frequencies)
    if problems or method is None:
        raise UserError(problems)
    return method


def _without_match(
    parameters: Mapping[str, Any], path: KeyPath, labels: Collection[str] | None, report: Report
) -> dict[str, Any]:
    """``{matched_to = ARM}`` is checked and a number in range put in its place: its value is not known yet."""
    given = dict(parameters)
    named = {
        str(value["matched_to"]) for value in parameters.values() if isinstance(value, dict) and "matched_to" in value
    }
    if len(named) > 1:
        report(path, f"all `matched_to` of a method must name one arm; got {', '.join(sorted(named))}", None)
    for key, value in parameters.items():
        if not (isinstance(value, dict) and "matched_to" in value):
            continue
        given[key] = 0.5
        where, arm = (*path, key, "matched_to"), value["matched_to"]
        if labels is None:
            report(where, "`matched_to` names an arm of [compare], which this method is not part of",
                   'give a number, or { measured = "RUN/metrics.jsonl" }')  # fmt: skip
        elif arm not in labels or set(value) != {"matched_to"}:
            near = nearest(arm, labels) if isinstance(arm, str) else None
            report(where, f"`matched_to` must be the label of an arm that is not matched itself; got {shown(arm)}",
                   f"did you mean {near}?" if near else f"such arms are {', '.join(labels) or 'none'}")  # fmt: skip
    return given


def _build(
    settings: MethodSettings,
    path: KeyPath,
    known: tuple[Step, Trained],
    report: Report,
    frequencies: tuple[float, ...] | None = None,
) -> Any:
    from freerun.methods import METHODS

    name, cls = settings.name, METHODS[settings.name]
    run, trained = known
    if problem := name_problem(name, trained):
        report((*path, "name"), *problem)
        trained = Trained(not trained.values)  # so that the parameters are looked at as those of such a method
    wanted = Wanted(cls, name, lambda key, known: _unknown_parameter(key, name, known), SUPPLIED)
    given, bad = read_arguments(wanted, settings.parameters, path, run, report)
    # a parameter that is wrong does not hide what is wrong with the others
    given |= {each.name: 0.5 for each in fields(cls) if required(each) and each.name in bad}
    if given.get("noise") == "unigram":
        given["frequencies"] = _STAND_IN if frequencies is None else frequencies
    if problem := objective_problem(given.get("objective", "auto"), trained):
        report((*path, "objective"), *problem)
        given["objective"] = "auto"  # so that the others are still looked at
    if problem := draw_problem(given.get("draw", "auto"), trained):
        report((*path, "draw"), *problem)
        given["draw"] = "auto"
    given = trained.settled(cls, given)
    made = make(cls, given, path, report, [key for key in bad if key in cls.__dataclass_fields__])
    return None if made is UNREADABLE or bad or problem else made


def _unknown_parameter(key: str, name: str, known: Sequence[str]) -> tuple[str, str]:
    return f"{name} has no parameter `{key}`", _parameter_hint(key, name, known)


def _parameter_hint(key: str, name: str, known: Sequence[str]) -> str:
    from freerun.methods import METHODS

    if key in _OTHER_NAMES and "teacher_forcing_ratio" in known:
        return "the probability of feeding gold is called `teacher_forcing_ratio`"
    if near := nearest(key, known):
        return f"did you mean `{near}`?"
    owners = [other for other, cls in METHODS.items() if key in cls.__dataclass_fields__ and key not in SUPPLIED]
    if owners:
        return f"`{key}` is a parameter of {', '.join(owners)}; {name} takes {', '.join(known) or 'none'}"
    return f"{name} takes {', '.join(known) or 'no parameters'}"


def _check_over_run(method: Any, path: KeyPath, run: Step, report: Report) -> None:
    try:
        _look_over_run(method, path, run, report)
    except ArithmeticError as error:  # a schedule of numbers near the limits
        report(path, f"{method!r} cannot be computed over {int(run)} updates: {first_line(error)}", None)


def _look_over_run(method: Any, path: KeyPath, run: Step, report: Report) -> None:
    from freerun.schedules import Constant, Schedule, moves, value_at
    from freerun.types import Step

    given = {each.name: getattr(method, each.name) for each in fields(method) if each.init}
    try:
        method.check(run)
    except UserError as error:
        for problem in error.problems:
            report(key_of(problem, path, given), problem, None)
        return
    for problem in _other_units(method, run):
        report(key_of(problem, path, given), problem, None)
    for key, value in given.items():
        if isinstance(value, Schedule) and not isinstance(value, Constant) and not moves(value, run):
            _report_inert((*path, key), value, value_at(value, Step(0, sample=0, epoch=0)), run, report)


def _other_units(method: Any, run: Step) -> Iterator[str]:
    """Range problems of schedules that count samples or epochs, which a method alone cannot see."""
    from freerun.schedules import Schedule, extremes

    for name, given in method.scheduled():
        if isinstance(given, Schedule) and given.unit != "step":
            lowest, at_lowest, highest, at_highest = extremes(given, run)
            low, high = method.ranges[name]
            for value, place in ((lowest, at_lowest), (highest, at_highest)):
                if not low <= value <= high:
                    yield f"{name} must lie in [{low:g}, {high:g}]; {given!r} gives {value:g} at {given.unit} {place}"


def _report_inert(path: KeyPath, schedule: Any, value: float, run: Step, report: Report) -> None:
    key = str(path[-1])
    plain = {("teacher_forcing_ratio", 1.0): "train plain teacher forcing", ("rate", 0.0): "add no noise at all"}
    what = plain.get((key, value), "be the same as the constant")
    hint = "shorten its `steps`, train longer, or write the number itself"
    report(path, f"`{key}` {schedule!r} stays at {value:g} for all {int(run)} updates: it would {what}", hint)
