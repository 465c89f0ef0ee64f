"""A recipe file and its overrides, checked as a whole and turned into a ``Recipe``; and back into TOML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.config.check import check_keys, construct, read_section
from freerun.config.data_sections import DATA_KINDS
from freerun.config.kinds import TASKS, TaskKind, misfit, task_of, trained_on
from freerun.config.methods import read_method
from freerun.config.model_sections import MODEL_KINDS
from freerun.config.recipe import Arm, CompareSettings, Recipe
from freerun.config.source import Source, nearest, read_source
from freerun.config.toml_lines import KeyPath
from freerun.config.trained import Trained

if TYPE_CHECKING:
    from freerun.types import Step

__all__ = ["differences", "load_recipe", "read_recipe", "recipe_table"]

_TOP = ("name", "seed", "data", "model", "method", "train", "evaluate", "compare")
_LABEL = re.compile(r".*[A-Za-z0-9].*")


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a TOML file, every key checked.

    Args:
        path: the file, or the name of a recipe that comes with freerun.
        overrides: ``key=value`` each, with dotted keys and TOML values; bare words are strings.

    Raises:
        UserError: with all problems of the file and the overrides at once, each with file and line.
    """
    from freerun.config.shipped import find_recipe

    return read_recipe(read_source(find_recipe(path), overrides))


def read_recipe(source: Source) -> Recipe:
    """A recipe from settings already read.

    Raises:
        UserError: with all problems at once.
    """
    # torch is first needed here: what tomllib refuses is refused without it
    from freerun.config.build import check_model_arguments
    from freerun.training import TrainSettings
    from freerun.types import Step

    table = source.table
    elsewhere = _sections_of_keys(table, TrainSettings)
    check_keys(source, (), table, _TOP, elsewhere)
    name = _text(source, "name", table.get("name", Path(source.name).stem))
    seed = _seed(source, table.get("seed", 0))
    data = _kind_section(source, "data", DATA_KINDS, None, elsewhere)
    task = _task(table)
    model = _kind_section(source, "model", MODEL_KINDS, task.models[0], elsewhere)
    if model is not None:
        _check_fit(source, model.kind)
        construct(source, ("model",), lambda: check_model_arguments(model), source.table.get("model", {}))
    train = read_section(source, ("train",), TrainSettings, hidden=("seed",), elsewhere=_but("train", elsewhere))
    _check_select(source, task)
    evaluate = read_section(source, ("evaluate",), task.evaluate, elsewhere=_but("evaluate", elsewhere))
    run = None if train is None else Step(train.updates, sample=train.updates * train.batch_size * train.accumulate)
    trained = trained_on(str(_get(table, "data", "kind")), model) if data is not None else Trained(task.values)
    compare = _read_compare(source, run, trained, elsewhere) if "compare" in table else None
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
    train = type(train)(**{**_as_dict(train), "seed": seed, "select": select})
    return Recipe(name, seed, data, model, method, train, evaluate, compare)


def _as_dict(settings: Any) -> dict[str, Any]:
    return {each.name: getattr(settings, each.name) for each in fields(settings)}


def _but(section: str, elsewhere: Mapping[str, str]) -> dict[str, str]:
    return {key: place for key, place in elsewhere.items() if place != f"in [{section}]"}


def _sections_of_keys(table: Mapping[str, Any], train: type[Any]) -> dict[str, str]:
    """Key -> where it belongs."""
    data = DATA_KINDS.get(str(_get(table, "data", "kind")))
    model = MODEL_KINDS[_model_kind(table)]
    known = {
        "[data]": [each.name for each in fields(data)] if data else ["kind", "path"],
        "[model]": [each.name for each in fields(model)],
        "[evaluate]": [each.name for each in fields(_task(table).evaluate)],
        "[compare]": [each.name for each in fields(CompareSettings)],
        "[train]": [each.name for each in fields(train) if each.name != "seed"],
        "[method]": ["teacher_forcing_ratio"],
    }
    places = {key: f"in {section}" for section, keys in known.items() for key in keys if key not in ("kind", "train")}
    return {**places, "seed": "at the top of the file", "name": "at the top of the file"}


def _task(table: Mapping[str, Any]) -> TaskKind:
    """The kind of task that the data are for; pairs where that cannot be read yet."""
    kind = _get(table, "data", "kind")
    return task_of(kind) if isinstance(kind, str) and kind in DATA_KINDS else TASKS["pairs"]


def _model_kind(table: Mapping[str, Any]) -> str:
    kind = _get(table, "model", "kind")
    return kind if isinstance(kind, str) and kind in MODEL_KINDS else _task(table).models[0]


def _check_fit(source: Source, model_kind: str) -> None:
    kind = _get(source.table, "data", "kind")
    if isinstance(kind, str) and kind in DATA_KINDS and (problem := misfit(kind, model_kind)):
        source.add(("model", "kind"), *problem)


def _get(table: Mapping[str, Any], section: str, key: str) -> Any:
    inside = table.get(section)
    return inside.get(key) if isinstance(inside, dict) else None


def _text(source: Source, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        source.add((key,), f"`{key}` must be a string; got {value!r}", f'write it in quotes: {key} = "{value}"')
    return str(value)


def _seed(source: Source, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        source.add(("seed",), f"`seed` must be a whole number from 0 on; got {value!r}")
        return 0
    return value


def _check_select(source: Source, task: TaskKind) -> None:
    from freerun.training.task import full_name

    select = _get(source.table, "train", "select")
    names = [full_name(name) for name in task.selectable]
    if not isinstance(select, str) or full_name(select) in names:
        return
    told = [name for name in task.selectable if name.startswith("teacher_forced_")]
    short = [name for name in task.selectable if name not in told]
    near = nearest(select, [*short, *names])
    source.add(
        ("train", "select"),
        f"`select` must be one of {', '.join(short)} (free-running), {', '.join(told)}; got {select!r}",
        f"did you mean {near}?" if near else None,
    )


def _kind_section(
    source: Source, section: str, kinds: Mapping[str, type[Any]], usual: str | None, elsewhere: Mapping[str, str]
) -> Any:
    if section not in source.table and usual is None:
        source.add((), f"[{section}] is missing", f'add [{section}] with kind = "{next(iter(kinds))}"')
        return None
    inside = source.table.get(section, {})
    kind = inside.get("kind", usual) if isinstance(inside, dict) else None
    if isinstance(inside, dict) and (not isinstance(kind, str) or kind not in kinds):
        near = nearest(kind, kinds) if isinstance(kind, str) else None
        said = "it is missing" if kind is None else f"got {kind!r}"
        source.add(
            (section, "kind") if "kind" in inside else (section,),
            f"`kind` of [{section}] must be one of {', '.join(kinds)}; {said}",
            f"did you mean {near}?" if near else None,
        )
        return None
    cls = kinds[kind or next(iter(kinds))]
    return read_section(source, (section,), cls, elsewhere=_but(section, elsewhere))


def _read_compare(
    source: Source, run: Step | None, trained: Trained, elsewhere: Mapping[str, str]
) -> CompareSettings | None:
    entries = _get(source.table, "compare", "arms")
    labels = [_label(entry) for entry in entries] if isinstance(entries, list) else []
    free = [label for entry, label in zip(entries or [], labels, strict=False) if label and not _is_matched(entry)]

    def arms(value: Any, path: KeyPath) -> tuple[Arm, ...]:
        if not isinstance(value, list):
            source.add(path, "arms must be tables: [[compare.arms]]", "each has a `method` and a `label`")
            return ()
        read = [_read_arm(source, (*path, i), entry, (run, trained), free) for i, entry in enumerate(value)]
        for i, label in enumerate(labels):
            if label and label in labels[:i]:
                source.add((*path, i, "label"), f"two arms are called {label!r}", "give each its own `label`")
        return tuple(arm for arm in read if arm is not None)

    settings = read_section(
        source, ("compare",), CompareSettings, elsewhere=_but("compare", elsewhere), readers={"arms": arms}
    )
    if settings is not None and (not settings.seeds or len(set(settings.seeds)) < len(settings.seeds)):
        source.add(("compare", "seeds"), f"`seeds` must be different numbers, at least one; got {list(settings.seeds)}")
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
    source: Source, path: KeyPath, entry: Any, known: tuple[Step | None, Trained], labels: list[str]
) -> Arm | None:
    if not isinstance(entry, dict):
        source.add(path, f"an arm is a table with `method` and `label`; got {entry!r}")
        return None
    check_keys(source, path, entry, ("method", "label"))
    label = _label(entry)
    if "method" not in entry:
        source.add(path, "an arm needs a `method`", 'add method = { name = "teacher_forcing" }')
        return None
    method = read_method(source, (*path, "method"), entry["method"], *known, labels=labels)
    if "label" in entry and (label is None or not _LABEL.fullmatch(label)):
        source.add((*path, "label"), f"`label` must be a string with a letter or digit; got {entry['label']!r}")
        return None
    return Arm(method, label) if method is not None and label is not None else None


def recipe_table(recipe: Recipe, *, compare: bool = True) -> dict[str, Any]:
    """The resolved recipe as TOML values: every key with its value, defaults included.

    Args:
        recipe: the recipe.
        compare: whether [compare] is part of it; a single run does not depend on it.
    """
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
    for each in fields(settings):
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """The dotted keys in which two tables differ, with both values.

    >>> differences({"train": {"lr": 0.1}, "seed": 0}, {"train": {"lr": 0.2}, "seed": 0})
    ['train.lr: 0.1 there, 0.2 now']
    """
    found: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key, "nothing"), new.get(key, "nothing")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{path}{key}.")
        elif before != after:
            found.append(f"{path}{key}: {before} there, {after} now")
    return found
