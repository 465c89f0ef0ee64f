"""A recipe file and its overrides, checked as a whole and turned into a ``Recipe``; and back into TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.arguments import nearest
from freerun.errors import DATA, display, visible
from freerun.recipes.fields import check_keys, read_section, section_fields
from freerun.recipes.methods import read_compare, read_method
from freerun.recipes.recipe import MODEL_KINDS, CompareSettings, Recipe
from freerun.recipes.source import RecipeSource
from freerun.tasks import DATA_KINDS, TASKS, misfit, task_of, trained_on
from freerun.tasks.base import DataTask, TargetFacts

if TYPE_CHECKING:
    pass


_TOP = ("name", "seed", "data", "model", "method", "train", "evaluate", "compare")


def read_recipe(source: RecipeSource) -> Recipe:
    """A recipe from settings already read."""
    from freerun.training import TrainSettings
    from freerun.types import Step

    table = source.table
    elsewhere = _sections_of_keys(table, TrainSettings)
    check_keys(source, (), table, _TOP, elsewhere)
    name = _text(source, "name", table.get("name", Path(source.name).stem))
    seed = _seed(source, table.get("seed", 0))
    data = _kind_section(source, "data", DATA_KINDS, elsewhere)
    task = _task(table)
    model = _kind_section(source, "model", MODEL_KINDS, elsewhere, task.models[0])
    _check_fit(source, _model_kind(table))
    train = read_section(source, "train", TrainSettings, hidden=("seed",), elsewhere=_but("train", elsewhere))
    _check_select(source, task)
    evaluate = read_section(source, "evaluate", task.evaluate_section, elsewhere=_but("evaluate", elsewhere))
    run = None if train is None else Step(train.updates, sample=train.updates * train.batch_size * train.accumulate)
    trained = trained_on(str(_get(table, "data", "kind")), model) if data is not None else TargetFacts(task.real_valued)
    compare = read_compare(source, (run, trained), _but("compare", elsewhere)) if "compare" in table else None
    method = None
    if "method" in table:
        method = read_method(source, ("method",), table["method"], run, trained)
    elif compare is None or not compare.arms:
        source.add((), "[method] is missing", 'add [method] with name = "teacher_forcing"')
    else:
        method = compare.arms[0].method
    source.raise_problems()
    assert data is not None
    assert model is not None
    assert method is not None
    assert train is not None
    select = _get(table, "train", "select") or getattr(data, "select", None) or task.select
    train = replace(train, seed=seed, select=select)
    return Recipe(name, seed, data, model, method, train, evaluate, compare)


def _but(section: str, elsewhere: Mapping[str, str]) -> dict[str, str]:
    return {key: place for key, place in elsewhere.items() if place != f"in [{section}]"}


def _sections_of_keys(table: Mapping[str, Any], train: type[Any]) -> dict[str, str]:
    """Key -> where it belongs."""
    data = DATA_KINDS.get(str(_get(table, "data", "kind")))
    model = MODEL_KINDS[_model_kind(table)]
    known = {
        "[data]": _names(data) if data else ["kind", "path"],
        "[model]": _names(model),
        "[evaluate]": _names(_task(table).evaluate_section),
        "[compare]": _names(CompareSettings),
        "[train]": [name for name in _names(train) if name != "seed"],
        "[method]": ["teacher_forcing_ratio"],
    }
    places = {key: f"in {section}" for section, keys in known.items() for key in keys if key not in ("kind", "train")}
    return {**places, "seed": "at the top of the file", "name": "at the top of the file"}


def _names(cls: type[Any]) -> list[str]:
    return [each.name for each in section_fields(cls)]


def _task(table: Mapping[str, Any]) -> type[DataTask]:
    """The kind of task that the data are for; pairs where that cannot be read yet."""
    kind = _get(table, "data", "kind")
    return task_of(kind) if isinstance(kind, str) and kind in DATA_KINDS else TASKS["pairs"]


def _model_kind(table: Mapping[str, Any]) -> str:
    kind = _get(table, "model", "kind")
    return kind if isinstance(kind, str) and kind in MODEL_KINDS else _task(table).models[0]


def _check_fit(source: RecipeSource, model_kind: str) -> None:
    kind = _get(source.table, "data", "kind")
    if isinstance(kind, str) and kind in DATA_KINDS and (problem := misfit(kind, model_kind)):
        source.add(("model", "kind"), *problem)


def _get(table: Mapping[str, Any], section: str, key: str) -> Any:
    inside = table.get(section)
    return inside.get(key) if isinstance(inside, dict) else None


def _text(source: RecipeSource, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        quoted = None if isinstance(value, str | list | dict) else f'write it in quotes: {key} = "{display(value)}"'
        source.add((key,), f"`{key}` must be a string; got {display(value)}", quoted)
    elif visible(value) != value or len(value) > DATA:
        source.add((key,), f"`{key}` must be a line of up to {DATA} characters that are all seen; got {display(value)}")
    return str(value)


def _seed(source: RecipeSource, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        source.add(("seed",), f"`seed` must be a whole number from 0 on; got {display(value)}")
        return 0
    return value


def _check_select(source: RecipeSource, task: type[DataTask]) -> None:
    from freerun.tasks.base import full_score_name

    select = _get(source.table, "train", "select")
    names = [full_score_name(name) for name in task.report.selectable]
    if not isinstance(select, str) or full_score_name(select) in names:
        return
    told = [name for name in task.report.selectable if name.startswith("teacher_forced_")]
    short = [name for name in task.report.selectable if name not in told]
    near = nearest(select, [*short, *names])
    source.add(
        ("train", "select"),
        f"`select` must be one of {', '.join(short)} (free-running), {', '.join(told)}; got {display(select)}",
        f"did you mean {near}?" if near else None,
    )


def _kind_section(
    source: RecipeSource,
    section: str,
    kinds: Mapping[str, type[Any]],
    elsewhere: Mapping[str, str],
    usual: str | None = None,
) -> Any:
    """A section whose kind says its class; ``usual`` is the kind where none is named."""
    if section not in source.table and usual is None:
        source.add((), f"[{section}] is missing", f'add [{section}] with kind = "{next(iter(kinds))}"')
        return None
    inside = source.table.get(section, {})
    kind = inside.get("kind", usual) if isinstance(inside, dict) else None
    if isinstance(inside, dict) and (not isinstance(kind, str) or kind not in kinds):
        near = nearest(kind, kinds) if isinstance(kind, str) else None
        said = "it is missing" if kind is None else f"got {display(kind)}"
        source.add(
            (section, "kind") if "kind" in inside else (section,),
            f"`kind` of [{section}] must be one of {', '.join(kinds)}; {said}",
            f"did you mean {near}?" if near else None,
        )
        known = [name for cls in kinds.values() for name in _names(cls)]
        if near is None:
            check_keys(source, (section,), inside, known, _but(section, elsewhere))
        else:  # what else stands there is looked at as of the kind that was meant
            meant = {"kind": lambda value, path: near}
            read_section(source, section, kinds[near], elsewhere=_but(section, elsewhere), readers=meant)
        return None
    cls = kinds[kind or next(iter(kinds))]
    return read_section(source, section, cls, elsewhere=_but(section, elsewhere))


def recipe_table(recipe: Recipe, *, compare: bool = True) -> dict[str, Any]:
    """The resolved recipe as TOML values: every key with its value, defaults included."""
    table: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed}
    table["data"] = _section_table(recipe.data)
    table["model"] = _section_table(recipe.model)
    table["method"] = _plain(recipe.method.table())
    table["train"] = {key: value for key, value in _section_table(recipe.train).items() if key != "seed"}
    table["evaluate"] = _section_table(recipe.evaluate)
    if compare and recipe.compare is not None:
        arms = [{"label": arm.label, "method": _plain(arm.method.table())} for arm in recipe.compare.arms]
        table["compare"] = {
            "seeds": list(recipe.compare.seeds), "workers": recipe.compare.workers, "arms": arms
        }  # fmt: skip
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
