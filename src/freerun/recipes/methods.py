"""The section ``[compare]``: its arms, each with a method and a label."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from freerun.arguments import nearest
from freerun.errors import UserError, display, visible
from freerun.recipes.fields import (
    INVALID,
    Report,
    check_keys,
    construct,
    first_line,
    key_of,
    read_arguments,
    read_parameter,
    read_section,
    required,
)
from freerun.recipes.recipe import Arm, CompareSettings, MethodSettings
from freerun.recipes.source import KeyPath, RecipeSource
from freerun.tasks.base import TargetFacts

if TYPE_CHECKING:
    from freerun.types import Step

_IDS, _VALUES = "symbols", "values"


def name_problem(name: str, trained: TargetFacts) -> tuple[str, str | None] | None:
    """Problem and help where a method is for the other kind of targets.

    >>> name_problem("two_pass", TargetFacts(values=True))[1]
    'use scheduled_sampling'
    """
    from freerun.methods import METHODS

    kind = _VALUES if trained.values else _IDS
    only, instead = METHODS[name].only_for or (kind, "")
    return None if only == kind else (f"{name} is for {only}; the data of this recipe are {kind}", f"use {instead}")


def objective_problem(given: Any, trained: TargetFacts) -> tuple[str, str | None] | None:
    """Problem and help where a loss does not fit."""
    from freerun.objectives import OBJECTIVES

    allowed = ["auto", *trained.objectives]
    if given in allowed:
        return None
    use = f"use {' or '.join(allowed)}"
    if given == "cross_entropy":
        return "`objective` cross_entropy is for symbols; the data of a recipe are values", use
    if given in OBJECTIVES and not trained.values:
        return f"`objective` {given} is for values; the data of a recipe are symbols", use
    if given in OBJECTIVES:
        return f"`objective` {given} does not fit a model with head {trained.head}", use
    near = nearest(given, allowed) if isinstance(given, str) else None
    return (
        f"`objective` must be one of {', '.join(allowed)}; got {given!r}",
        f"did you mean {near}?" if near else None,
    )


def draw_problem(given: Any, trained: TargetFacts) -> tuple[str, str | None] | None:
    """What a draw says that the data, or the model's head, do not bear out."""
    from freerun.draws import DRAWS

    names = {cls: name for name, cls in DRAWS.items()}
    name = given if isinstance(given, str) else names.get(type(given), "")
    if name == "auto" or name not in DRAWS:
        return None  # what is no draw at all, the method says
    if DRAWS[name].values != trained.values:
        allowed = ["auto", *(other for other, cls in DRAWS.items() if cls.values == trained.values)]
        kinds = (_VALUES, _IDS) if DRAWS[name].values else (_IDS, _VALUES)
        return (
            f"`draw` {name} is for {kinds[0]}; the data of a recipe are {kinds[1]}",
            f"use one of {', '.join(allowed)}",
        )
    if not trained.values:
        return None
    fitting = {"point": ["point"], "quantiles": ["expected", "quantile_sample"]}
    allowed = fitting.get(trained.head, ["expected", trained.head])
    if name in allowed and (name != "expected" or getattr(given, "head", trained.head) == trained.head):
        return None
    return f"`draw` {name} does not fit a model with head {trained.head}", f"use auto, {' or '.join(allowed)}"


SUPPLIED = ("vocabulary", "frequencies")
"""Parameters that come from the training data, not from the recipe."""


_STAND_IN = (1.0, 1.0)  # frequencies while only the recipe is checked


_OTHER_NAMES = ("ratio", "epsilon", "eps", "p", "tf_ratio", "sampling_probability")


def read_method(
    source: RecipeSource,
    path: KeyPath,
    value: Any,
    run: Step | None,
    trained: TargetFacts,
    *,
    labels: Collection[str] | None = None,
) -> MethodSettings | None:
    """A method's settings from its table (or its name alone), checked; None with the problems noted."""
    from freerun.methods import METHODS
    from freerun.types import Step

    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        source.add(path, f"a method is a table with a `name`; got {display(value)}")
        return None
    name = table.get("name")
    if not isinstance(name, str) or name not in METHODS:
        near = nearest(name, METHODS) if isinstance(name, str) else None
        said = "it has no `name`" if name is None else f"got {display(name)}"
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
    settings: MethodSettings, run: Step, trained: TargetFacts, frequencies: tuple[float, ...] | None = None
) -> Any:
    """The method object of a recipe."""
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
            report(where, f"`matched_to` must be the label of an arm that is not matched itself; got {display(arm)}",
                   f"did you mean {near}?" if near else f"such arms are {', '.join(labels) or 'none'}")  # fmt: skip
    return given


def _build(
    settings: MethodSettings,
    path: KeyPath,
    known: tuple[Step, TargetFacts],
    report: Report,
    frequencies: tuple[float, ...] | None = None,
) -> Any:
    from freerun.methods import METHODS

    name, cls = settings.name, METHODS[settings.name]
    run, trained = known
    if problem := name_problem(name, trained):
        report((*path, "name"), *problem)
        trained = TargetFacts(not trained.values)  # so that the parameters are looked at as those of such a method
    given, bad = read_arguments(
        cls, name, settings.parameters, path, report,
        run=run, hidden=SUPPLIED, unknown=lambda key, known: _unknown_parameter(key, name, known),
    )  # fmt: skip
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
    made = construct(cls, given, path, report, [key for key in bad if key in cls.__dataclass_fields__])
    return None if made is INVALID or bad or problem else made


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


_LABEL = re.compile(r"(?=.*[A-Za-z0-9]).{1,100}")


def read_compare(
    source: RecipeSource, known: tuple[Step | None, TargetFacts], elsewhere: Mapping[str, str]
) -> CompareSettings | None:
    """The section ``[compare]`` with its arms, or None where a value is wrong; every problem is noted."""
    section = source.table.get("compare")
    entries = section.get("arms") if isinstance(section, dict) else None
    entries = entries if isinstance(entries, list) else []
    labels = [_label(entry) for entry in entries]
    free = [label for entry, label in zip(entries, labels, strict=True) if label and not _is_matched(entry)]

    def arms(value: Any, path: KeyPath) -> tuple[Arm, ...]:
        if not isinstance(value, list):
            source.add(path, "arms must be tables: [[compare.arms]]", "each has a `method` and a `label`")
            return ()
        read = [_read_arm(source, (*path, i), entry, known, free) for i, entry in enumerate(value)]
        for i, label in enumerate(labels):
            if label and label in labels[:i]:
                source.add((*path, i, "label"), f"two arms are called {display(label)}", "give each its own `label`")
        return tuple(arm for arm in read if arm is not None)

    settings = read_section(source, "compare", CompareSettings, elsewhere=elsewhere, readers={"arms": arms})
    if settings is not None and (not settings.seeds or len(set(settings.seeds)) < len(settings.seeds)):
        said = f"`seeds` must be different numbers, at least one; got {display([*settings.seeds])}"
        source.add(("compare", "seeds"), said)
    if settings is not None and source.sound and not settings.arms:
        source.add(("compare",), "[compare] needs at least one [[compare.arms]]", "each has a `method` and a `label`")
    return settings


def _label(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    method = entry.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    label = entry.get("label", name)
    return label if isinstance(label, str) else None


def _is_matched(entry: Any) -> bool:
    method = entry.get("method") if isinstance(entry, dict) else None
    values = method.values() if isinstance(method, dict) else ()
    return any(isinstance(value, dict) and "matched_to" in value for value in values)


def _read_arm(
    source: RecipeSource, path: KeyPath, entry: Any, known: tuple[Step | None, TargetFacts], labels: list[str]
) -> Arm | None:
    if not isinstance(entry, dict):
        source.add(path, f"an arm is a table with `method` and `label`; got {display(entry)}")
        return None
    check_keys(source, path, entry, ("method", "label"))
    label = _label(entry)
    if "method" not in entry:
        source.add(path, "an arm needs a `method`", 'add method = { name = "teacher_forcing" }')
        return None
    method = read_method(source, (*path, "method"), entry["method"], *known, labels=labels)
    if "label" in entry and (label is None or not _LABEL.fullmatch(label) or visible(label) != label):
        said = f"`label` must be up to 100 characters, among them a letter or digit; got {display(entry['label'])}"
        source.add((*path, "label"), said)
        return None
    return Arm(label, method) if method is not None and label is not None else None
