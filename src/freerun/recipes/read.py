"""A recipe file and its overrides, checked in full and turned into a ``Recipe``; and back into TOML."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from freerun.arguments import nearest
from freerun.draws import DRAWS
from freerun.errors import DATA, UserError, display, listed, visible
from freerun.methods import METHODS, ErrorLaw
from freerun.objectives import OBJECTIVES
from freerun.recipes.fields import (
    INVALID,
    Report,
    check_keys,
    construct,
    first_line,
    key_of,
    read_arguments,
    read_section,
    required,
    section_fields,
)
from freerun.recipes.recipe import CONTROLS, MODEL_KINDS, Arm, CompareSettings, MethodSettings, Recipe, matched_label
from freerun.recipes.source import KeyPath, RecipeSource
from freerun.schedules import Constant, Schedule, extremes, moves, value_at
from freerun.tasks import DATA_KINDS, TASKS, misfit, task_of, trained_on
from freerun.tasks.base import DataTask, TargetFacts, full_score_name
from freerun.training import TrainSettings
from freerun.types import Step

_TOP = ("name", "seed", "data", "model", "method", "train", "evaluate", "compare")
_LABEL = re.compile(r"(?=.*[A-Za-z0-9]).{1,100}")
_OTHER_NAMES = ("ratio", "epsilon", "eps", "p", "tf_ratio", "sampling_probability")
_STAND_IN = (1.0, 1.0)  # frequencies while only the recipe is checked

SUPPLIED = ("vocabulary", "frequencies")
"""Parameters that come from the training data, not from the recipe."""


def read_recipe(source: RecipeSource) -> Recipe:
    """A recipe from settings already read."""
    table = source.table
    data_kind = _known_kind(table, "data", DATA_KINDS)
    # of pairs where it cannot be read yet
    task = TASKS["pairs"] if data_kind is None else task_of(table["data"])
    model_kind = _known_kind(table, "model", MODEL_KINDS) or task.models[0]
    elsewhere = _sections_of_keys(data_kind, model_kind, task)
    check_keys(source, (), table, _TOP, elsewhere)
    name, seed = table.get("name", Path(source.name).stem), table.get("seed", 0)
    _check_name_and_seed(source, name, seed)
    for section in ("data", "model"):
        make = _get(table, section, "make")
        if _get(table, section, "kind") == "python" and isinstance(make, str):
            table[section]["make"] = source.beside((section, "make"), make)
    data = _kind_section(source, "data", DATA_KINDS, elsewhere)
    model = _kind_section(source, "model", MODEL_KINDS, elsewhere, task.models[0])
    if data_kind is not None and (problem := misfit(table["data"], model_kind)):
        source.add(("model", "kind"), *problem)
    if data is not None:
        task = task_of(data)
    train = read_section(source, "train", TrainSettings, hidden=("seed",), elsewhere=elsewhere)
    _check_select(source, task)
    evaluate = read_section(source, "evaluate", task.evaluate_section, elsewhere=elsewhere)
    run = None if train is None else Step(train.updates, sample=train.updates * train.batch_size * train.accumulate)
    trained = TargetFacts(task.real_valued) if data is None else trained_on(data, model)
    if evaluate is not None and data is not None:
        select = str(_get(table, "train", "select")).removeprefix("free_running_")
        for key, *problem in task.evaluate_problems(evaluate, getattr(model, "head", None), select):
            source.add(tuple(key.split(".")), *problem)
    compare = _read_compare(source, run, trained, elsewhere) if "compare" in table else None
    method = None
    if "method" in table:
        method = _read_method(source, ("method",), table["method"], run, trained)
    elif compare is None or not compare.arms:
        source.add((), "[method] is missing", 'add [method] with name = "teacher_forcing"')
    else:
        method = compare.arms[0].method
    source.raise_problems()
    assert data is not None
    assert model is not None
    assert method is not None
    assert train is not None
    # where a law is scored, its weights are chosen by it: those with the best mean may have the scale of the start
    usual_select = "crps" if getattr(evaluate, "num_samples", 0) else task.select
    select = _get(table, "train", "select") or getattr(data, "select", None) or usual_select
    usual = {key: value for key, value in task.train_defaults.items() if _get(table, "train", key) is None}
    train = replace(train, seed=seed, select=select, **usual)
    return Recipe(name, seed, data, model, method, train, evaluate, compare)


def _get(table: Mapping[str, Any], section: str, key: str) -> Any:
    inside = table.get(section)
    return inside.get(key) if isinstance(inside, dict) else None


def _known_kind(table: Mapping[str, Any], section: str, kinds: Mapping[str, Any]) -> str | None:
    kind = _get(table, section, "kind")
    return kind if isinstance(kind, str) and kind in kinds else None


def _sections_of_keys(data_kind: str | None, model_kind: str, task: type[DataTask]) -> dict[str, str]:
    """Key -> where it belongs."""
    known = {
        "[data]": ["kind", "path"] if data_kind is None else _names(DATA_KINDS[data_kind]),
        "[model]": _names(MODEL_KINDS[model_kind]),
        "[evaluate]": _names(task.evaluate_section),
        "[compare]": _names(CompareSettings),
        "[train]": _names(TrainSettings),
        "[method]": ["teacher_forcing_ratio"],
    }
    sections = {key: f"in {section}" for section, keys in known.items() for key in keys if key not in ("kind", "train")}
    return {**sections, "seed": "at the top of the file", "name": "at the top of the file"}


def _names(cls: type[Any]) -> list[str]:
    return [each.name for each in section_fields(cls)]


def _check_name_and_seed(source: RecipeSource, name: Any, seed: Any) -> None:
    if not isinstance(name, str) or not name:
        quoted = None if isinstance(name, str | list | dict) else f'write it in quotes: name = "{display(name)}"'
        source.add(("name",), f"`name` must be a string; got {display(name)}", quoted)
    elif visible(name) != name or len(name) > DATA:
        source.add(
            ("name",), f"`name` must be a line of up to {DATA} characters that are all seen; got {display(name)}"
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        source.add(("seed",), f"`seed` must be a whole number from 0 on; got {display(seed)}")


def _check_select(source: RecipeSource, task: type[DataTask]) -> None:
    select = _get(source.table, "train", "select")
    names = [full_score_name(name) for name in task.report.selectable]
    if not isinstance(select, str) or full_score_name(select) in names:
        return
    teacher_forced = [name for name in task.report.selectable if name.startswith("teacher_forced_")]
    short = [name for name in task.report.selectable if name not in teacher_forced]
    near = nearest(select, [*short, *names])
    allowed = f"{', '.join(short)} (free-running), {', '.join(teacher_forced)}"
    source.add(
        ("train", "select"),
        f"`select` must be one of {allowed}; got {display(select)}",
        f"did you mean {near}?" if near else None,
    )


def _kind_section(
    source: RecipeSource,
    section: str,
    kinds: Mapping[str, type[Any]],
    elsewhere: Mapping[str, str],
    usual: str | None = None,
) -> Any:
    """A section whose kind names its class; ``usual`` is the kind where none is named."""
    if section not in source.table and usual is None:
        source.add((), f"[{section}] is missing", f'add [{section}] with kind = "{next(iter(kinds))}"')
        return None
    table = source.table.get(section, {})
    kind = table.get("kind", usual) if isinstance(table, dict) else next(iter(kinds))
    if isinstance(kind, str) and kind in kinds:
        return read_section(source, section, kinds[kind], elsewhere=elsewhere)
    near = nearest(kind, kinds) if isinstance(kind, str) else None
    got = "it is missing" if kind is None else f"got {display(kind)}"
    source.add(
        (section, "kind") if "kind" in table else (section,),
        f"`kind` of [{section}] must be one of {', '.join(kinds)}; {got}",
        f"did you mean {near}?" if near else None,
    )
    if near is None:
        check_keys(source, (section,), table, [name for cls in kinds.values() for name in _names(cls)], elsewhere)
    else:  # the other keys are read as those of the kind that was meant
        read_section(source, section, kinds[near], elsewhere=elsewhere, readers={"kind": lambda value, path: near})
    return None


def _read_method(
    source: RecipeSource,
    path: KeyPath,
    value: Any,
    run: Step | None,
    trained: TargetFacts,
    *,
    labels: Collection[str] | None = None,
) -> MethodSettings | None:
    """A method's settings from its table (or its name alone), checked; None with the problems noted."""
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        source.add(path, f"a method is a table with a `name`; got {display(value)}")
        return None
    name = table.get("name")
    parameters = {key: part for key, part in table.items() if key != "name"}
    # where [train] is wrong the run's length is not known: any will do to build, none to check over
    length = run or Step(1, sample=1)
    if not isinstance(name, str) or name not in METHODS:
        near = nearest(name, METHODS) if isinstance(name, str) else None
        got = "it has no `name`" if name is None else f"got {display(name)}"
        source.add(
            (*path, "name"),
            f"method must be one of {listed(METHODS)}; {got}",
            f"did you mean {near}?" if near else "`freerun methods` describes them",
        )
        if near is None:
            unmatched = _without_match(parameters, path, labels, source.add)
            _check_unowned(unmatched, path, (length, trained), source.add)
            return None
        name = near  # its parameters are read as those of the method that was meant
    unmatched = _without_match(parameters, path, labels, source.add)
    method = _build(MethodSettings(name, unmatched), path, length, trained, report=source.add)
    if method is None:
        return None
    if run is not None:
        try:
            _check_over_run(method, path, run, source.add)
        except ArithmeticError as error:  # a schedule of numbers near the limits
            source.add(path, f"{method!r} cannot be computed over {int(run)} updates: {first_line(error)}")
    return MethodSettings(name, MappingProxyType(parameters))


def _check_unowned(
    parameters: Mapping[str, Any], path: KeyPath, known: tuple[Step, TargetFacts], report: Report
) -> None:
    """Report parameters of an unknown method that no method has, or whose value fits none that has them."""
    takes = {name: [each.name for each in _parameters(cls)] for name, cls in METHODS.items()}
    every = sorted({key for keys in takes.values() for key in keys})
    for key, value in parameters.items():
        owners = [name for name, keys in takes.items() if key in keys]
        if not owners:
            report((*path, key), f"no method has a parameter `{key}`", _parameter_hint(key, "a method", every))
        refused = [_refused(name, key, value, path, known) for name in owners]
        if all(refused):
            for problem in next(iter(refused), []):
                report(*problem)


def _refused(
    name: str, key: str, value: Any, path: KeyPath, known: tuple[Step, TargetFacts]
) -> list[tuple[KeyPath, str, str | None]]:
    """What is wrong with one parameter of a method, whatever the others are."""
    found: list[tuple[KeyPath, str, str | None]] = []
    cls, (run, trained) = METHODS[name], known
    others = {each.name: 0.5 for each in _parameters(cls) if required(each)}

    def report(where: KeyPath, problem: str, hint: str | None = None) -> None:
        if where[: len(path) + 1] == (*path, key):
            found.append((where, problem, hint))

    method = _build(MethodSettings(name, {**others, key: value}), path, run, trained, report=report)
    if method is not None:
        _check_over_run(method, path, run, report)
    return found


def _parameters(cls: type[Any]) -> list[Field[Any]]:
    return [each for each in fields(cls) if each.init and each.name not in SUPPLIED]


def build_method(
    settings: MethodSettings, run: Step, trained: TargetFacts, frequencies: tuple[float, ...] | None = None
) -> Any:
    """The method object of a recipe."""
    problems: list[str] = []

    def report(path: KeyPath, message: str, hint: str | None = None) -> None:
        problems.append(f"[method]: {message}" + (f"\n  help: {hint}" if hint else ""))

    for key, value in settings.parameters.items():
        if (label := matched_label(value)) is not None:
            report((), f"`{key}` is matched to the arm {label!r}", "only `freerun compare` knows its arms")
    method = None if problems else _build(settings, (), run, trained, report=report, frequencies=frequencies)
    if problems or method is None:
        raise UserError(problems)
    return method


def _without_match(
    parameters: Mapping[str, Any], path: KeyPath, labels: Collection[str] | None, report: Report
) -> dict[str, Any]:
    """The parameters with a number in range for each ``{matched_to = ARM}``: its value is not known yet."""
    if parameters.get("rate") == "matched" and labels is None:
        problem = '`rate` = "matched" is the rate of an arm of [compare], which this method is not part of'
        report((*path, "rate"), problem, 'give a number, or { measured = "RUN/metrics.jsonl" }')
        parameters = {**parameters, "rate": 0.5}
    matched = {key: value for key, value in parameters.items() if matched_label(value) is not None}
    named = {str(matched_label(value)) for value in matched.values()}
    if len(named) > 1:
        report(path, f"all `matched_to` of a method must name one arm; got {', '.join(sorted(named))}", None)
    for key, value in matched.items():
        where, arm = (*path, key, "matched_to"), value["matched_to"]
        if labels is None:
            problem = "`matched_to` names an arm of [compare], which this method is not part of"
            report(where, problem, 'give a number, or { measured = "RUN/metrics.jsonl" }')
        elif arm not in labels or set(value) != {"matched_to"}:
            near = nearest(arm, labels) if isinstance(arm, str) else None
            problem = f"`matched_to` must be the label of an arm that is not matched itself; got {display(arm)}"
            report(where, problem, f"did you mean {near}?" if near else f"such arms are {', '.join(labels) or 'none'}")
    return {**parameters, **{key: stand_in(key) for key in matched}}


def stand_in(key: str) -> Any:
    """A value in range for a parameter that is measured in another arm's run later."""
    return ErrorLaw() if key == "law" else 0.5


def _build(
    settings: MethodSettings,
    path: KeyPath,
    run: Step,
    trained: TargetFacts,
    *,
    report: Report,
    frequencies: tuple[float, ...] | None = None,
) -> Any:
    name, cls = settings.name, METHODS[settings.name]
    kind = _kind_of_targets(trained.values)
    only, instead = cls.only_for or (kind, "")
    if only != kind:
        report((*path, "name"), f"{name} is for {only}; the data of this recipe are {kind}", f"use {instead}")
        trained = TargetFacts(not trained.values)  # the parameters are read as those of such a method

    def unknown(key: str, known: Sequence[str]) -> tuple[str, str]:
        return f"{name} has no parameter `{key}`", _parameter_hint(key, name, known)

    arguments, bad = read_arguments(
        cls, name, settings.parameters, path, report, run=run, hidden=SUPPLIED, unknown=unknown
    )
    # a parameter that is wrong does not hide what is wrong with the others
    arguments |= {each.name: 0.5 for each in fields(cls) if required(each) and each.name in bad}
    if arguments.get("noise") == "unigram":
        arguments["frequencies"] = _STAND_IN if frequencies is None else frequencies
    problem = None
    for key, problem_of in (("objective", _objective_problem), ("draw", _draw_problem)):
        if problem := problem_of(arguments.get(key, "auto"), trained):
            report((*path, key), *problem)
            arguments[key] = "auto"
    method = construct(
        cls, trained.settled(cls, arguments), path, report, [key for key in bad if key in cls.__dataclass_fields__]
    )
    return None if method is INVALID or bad or problem else method


def _kind_of_targets(values: bool) -> str:
    return "values" if values else "symbols"


def _objective_problem(objective: Any, trained: TargetFacts) -> tuple[str, str | None] | None:
    """Problem and help where a loss does not fit the data or the model's head."""
    allowed = ["auto", *trained.objectives]
    objective = next((name for name, cls in OBJECTIVES.items() if type(objective) is cls), objective)
    if objective in allowed:
        return None
    use = f"use {' or '.join(allowed)}"
    if objective == "cross_entropy" or (objective in OBJECTIVES and not trained.values):
        own, other = _kind_of_targets(trained.values), _kind_of_targets(not trained.values)
        return f"`objective` {objective} is for {other}; the data of a recipe are {own}", use
    if objective in OBJECTIVES:
        return f"`objective` {objective} does not fit a model with head {trained.head}", use
    near = nearest(objective, allowed) if isinstance(objective, str) else None
    help_line = f"did you mean {near}?" if near else None
    return f"`objective` must be one of {', '.join(allowed)}; got {objective!r}", help_line


def _draw_problem(draw: Any, trained: TargetFacts) -> tuple[str, str | None] | None:
    """Problem and help where a draw does not fit the data or the model's head."""
    names = {cls: name for name, cls in DRAWS.items()}
    name = draw if isinstance(draw, str) else names.get(type(draw), "")
    if name == "auto" or name not in DRAWS:
        return None  # what is no draw at all, the method refuses
    if DRAWS[name].values != trained.values:
        own, other = _kind_of_targets(trained.values), _kind_of_targets(not trained.values)
        allowed = ["auto", *(each for each, cls in DRAWS.items() if cls.values == trained.values)]
        return f"`draw` {name} is for {other}; the data of a recipe are {own}", f"use one of {', '.join(allowed)}"
    if not trained.values:
        return None
    fitting = {"point": ["point"], "quantiles": ["expected", "quantile_sample"]}
    allowed = fitting.get(trained.head, ["expected", trained.head])
    if name in allowed and (name != "expected" or getattr(draw, "head", trained.head) == trained.head):
        return None
    return f"`draw` {name} does not fit a model with head {trained.head}", f"use auto, {' or '.join(allowed)}"


def _parameter_hint(key: str, name: str, known: Sequence[str]) -> str:
    if key in _OTHER_NAMES and "teacher_forcing_ratio" in known:
        return "the probability of feeding gold is called `teacher_forcing_ratio`"
    if near := nearest(key, known):
        return f"did you mean `{near}`?"
    owners = [other for other, cls in METHODS.items() if key in [each.name for each in _parameters(cls)]]
    if owners:
        return f"`{key}` is a parameter of {', '.join(owners)}; {name} takes {listed(known) or 'none'}"
    return f"{name} takes {listed(known) or 'no parameters'}"


def _check_over_run(method: Any, path: KeyPath, run: Step, report: Report) -> None:
    """Report what a method cannot do at some update, and schedules that never move."""
    arguments = {each.name: getattr(method, each.name) for each in fields(method) if each.init}
    try:
        method.check(run)
    except UserError as error:
        for problem in error.problems:
            report(key_of(problem, path, arguments), problem, None)
        return
    for name, schedule in method.scheduled():
        # a method alone sees no samples or epochs
        if isinstance(schedule, Schedule) and schedule.unit != "step":
            lowest, at_lowest, highest, at_highest = extremes(schedule, run)
            low, high = method.range_of(name)
            for value, at in ((lowest, at_lowest), (highest, at_highest)):
                if not low <= value <= high:
                    got = f"{schedule!r} gives {value:g} at {schedule.unit} {at}"
                    report((*path, name), f"{name} must lie in [{low:g}, {high:g}]; {got}", None)
    plain = {("teacher_forcing_ratio", 1.0): "train plain teacher forcing", ("rate", 0.0): "add no noise at all"}
    for key, value in arguments.items():
        if isinstance(value, Schedule) and not isinstance(value, Constant) and not moves(value, run):
            level = value_at(value, Step(0, sample=0, epoch=0))
            effect = f"it would {plain.get((key, level), 'be the same as the constant')}"
            report(
                (*path, key),
                f"`{key}` {value!r} stays at {level:g} for all {int(run)} updates: {effect}",
                "shorten its `steps`, train longer, or write the number itself",
            )


def _read_compare(
    source: RecipeSource, run: Step | None, trained: TargetFacts, elsewhere: Mapping[str, str]
) -> CompareSettings | None:
    """The section ``[compare]`` with its arms, or None where a value is wrong; every problem is noted."""
    entries = _get(source.table, "compare", "arms")
    entries = entries if isinstance(entries, list) else []
    labels = [_label(entry) for entry in entries]
    _expand_controls(source, entries, labels, trained)
    _name_matched(source, entries, labels)
    free = [label for entry, label in zip(entries, labels, strict=True) if label and not _is_matched(entry)]

    def arms(value: Any, path: KeyPath) -> tuple[Arm, ...]:
        if not isinstance(value, list):
            source.add(path, "arms must be tables: [[compare.arms]]", "each has a `method` and a `label`")
            return ()
        read = [_read_arm(source, (*path, i), entry, (run, trained), free) for i, entry in enumerate(value)]
        for i, label in enumerate(labels):
            if label and label in labels[:i]:
                source.add((*path, i, "label"), f"two arms are called {display(label)}", "give each its own `label`")
        return tuple(arm for arm in read if arm is not None)

    settings = read_section(source, "compare", CompareSettings, elsewhere=elsewhere, readers={"arms": arms})
    if settings is not None and (not settings.seeds or len(set(settings.seeds)) < len(settings.seeds)):
        got = display([*settings.seeds])
        source.add(("compare", "seeds"), f"`seeds` must be different numbers, at least one; got {got}")
    if settings is not None and source.sound and not settings.arms:
        source.add(("compare",), "[compare] needs at least one [[compare.arms]]", "each has a `method` and a `label`")
    return settings


def _own_arms(entries: list[Any], labels: list[str | None], own_lengths: bool = False) -> list[str]:
    """Labels of the arms that feed the model's own outputs; of those, the ones with lengths of their own."""
    classes = [METHODS.get(str(_method_table(entry).get("name"))) for entry in entries]
    name = "own_lengths" if own_lengths else "feeds_own"
    return [label for label, cls in zip(labels, classes, strict=True) if label and cls and getattr(cls, name)]


def _expand_controls(source: RecipeSource, entries: list[Any], labels: list[str | None], trained: TargetFacts) -> None:
    """Write the method of each arm that is a control by its word, and the label of the arm that it is one of."""
    own = _own_arms(entries, labels)
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or "control" not in entry:
            continue
        path, word, of = ("compare", "arms", i), entry["control"], entry.get("of")
        if not isinstance(word, str) or word not in CONTROLS:
            near = nearest(word, CONTROLS) if isinstance(word, str) else None
            hint = f"did you mean {near}?" if near else None
            source.add((*path, "control"), f"`control` must be one of {', '.join(CONTROLS)}; got {display(word)}", hint)
        elif "method" in entry:
            source.add((*path, "method"), "an arm has a `method` or a `control`, which is a method by its word", None)
            continue
        elif of is not None and of not in own:
            hint = f"such arms are {', '.join(own) or 'none'}"
            problem = f"`of` must be the label of an arm that feeds the model's own outputs; got {display(of)}"
            source.add((*path, "of"), problem, hint)
        elif of is None and len(own) != 1:
            which = f"{', '.join(own)} do" if own else "there is none"
            hint = f'name it: of = "{own[0]}"' if own else "add an arm such as scheduled_sampling"
            problem = f'`control` = "{word}" is one of the arm that feeds the model\'s own outputs; {which}'
            source.add((*path, "control"), problem, hint)
        elif word == "confusion" and (label := of or own[0]) in _own_arms(entries, labels, own_lengths=True):
            problem = (
                f"runs of {display(label)} are of their own lengths, so no entry of theirs stands in place of gold's"
            )
            source.add((*path, "control"), problem, "take another control, equal_cost or no_history")
        else:
            entry["of"] = of or own[0]
            entry["method"] = CONTROLS[word](entry["of"], trained.values)
            continue
        entry["method"] = {"name": "teacher_forcing"}  # so that its other keys are read


def _name_matched(source: RecipeSource, entries: list[Any], labels: list[str | None]) -> None:
    """Replace ``rate = "matched"`` of a noise method by the label of the one arm that feeds the model's own outputs."""
    methods = [_method_table(entry) for entry in entries]
    classes = [METHODS.get(str(method.get("name"))) for method in methods]
    own = _own_arms(entries, labels)
    for i, (method, cls) in enumerate(zip(methods, classes, strict=True)):
        if method.get("rate") != "matched" or cls is None or cls.feeds_own:
            continue
        method["rate"] = {"matched_to": own[0]} if len(own) == 1 else 0.5
        if len(own) != 1:
            which = f"{', '.join(own)} do" if own else "there is none"
            problem = f'`rate` = "matched" means the one arm that feeds the model\'s own outputs; {which}'
            hint = f'name it: {{ matched_to = "{own[0]}" }}' if own else "add an arm such as scheduled_sampling"
            source.add(("compare", "arms", i, "method", "rate"), problem, hint)


def _method_table(entry: Any) -> dict[str, Any]:
    method = entry.get("method") if isinstance(entry, dict) else None
    return method if isinstance(method, dict) else {"name": method}


def _label(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    method = entry.get("method")
    named = method.get("name") if isinstance(method, dict) else method
    label = entry.get("label", entry.get("control", named))
    return label if isinstance(label, str) else None


def _is_matched(entry: Any) -> bool:
    return any(matched_label(value) is not None for value in _method_table(entry).values())


def _read_arm(
    source: RecipeSource, path: KeyPath, entry: Any, known: tuple[Step | None, TargetFacts], labels: list[str]
) -> Arm | None:
    if not isinstance(entry, dict):
        source.add(path, f"an arm is a table with `method` and `label`; got {display(entry)}")
        return None
    check_keys(source, path, entry, ("method", "control", "of", "label"))
    if "of" in entry and "control" not in entry:
        source.add((*path, "of"), "`of` names the arm of a control, and this arm has no `control`", None)
    label = _label(entry)
    if "method" not in entry:
        hint = f'add method = {{ name = "teacher_forcing" }}, or control = one of {", ".join(CONTROLS)}'
        source.add(path, "an arm needs a `method`", hint)
        return None
    method = _read_method(source, (*path, "method"), entry["method"], *known, labels=labels)
    if "label" in entry and (label is None or not _LABEL.fullmatch(label) or visible(label) != label):
        allowed = "up to 100 characters, among them a letter or digit"
        source.add((*path, "label"), f"`label` must be {allowed}; got {display(entry['label'])}")
        return None
    if method is None or label is None:
        return None
    return Arm(label, method, entry.get("control"), entry.get("of"))


def recipe_table(recipe: Recipe, *, compare: bool = True) -> dict[str, Any]:
    """The resolved recipe as TOML values: every key with its value, defaults included."""
    table: dict[str, Any] = {
        "name": recipe.name,
        "seed": recipe.seed,
        "data": _section_table(recipe.data),
        "model": _section_table(recipe.model),
        "method": _plain(recipe.method.table()),
        "train": {key: value for key, value in _section_table(recipe.train).items() if key != "seed"},
        "evaluate": _section_table(recipe.evaluate),
    }
    if compare and recipe.compare is not None:
        arms = [
            {"label": arm.label, "method": _plain(arm.method.table())}
            if arm.of is None
            else {"label": arm.label, "control": arm.control, "of": arm.of}
            for arm in recipe.compare.arms
        ]
        seeds, workers = list(recipe.compare.seeds), recipe.compare.workers
        margin = {} if recipe.compare.margin is None else {"margin": recipe.compare.margin}
        table["compare"] = {"seeds": seeds, "workers": workers, "arms": arms, **margin}
    return table


def _section_table(settings: Any) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for each in section_fields(type(settings)):
        value = getattr(settings, each.name)
        if value is None and each.default is not None and each.default is not MISSING:
            table[each.name] = "none"
        elif value is not None:
            table[each.name] = _plain(value)
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
