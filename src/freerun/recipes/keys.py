"""Every key of a recipe, read from the classes that its sections fill: value, default and meaning."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from freerun.arguments import Range
from freerun.draws import DRAWS
from freerun.gates import GATES
from freerun.methods import METHODS
from freerun.objectives import OBJECTIVES
from freerun.recipes.fields import required, section_fields
from freerun.recipes.read import SUPPLIED
from freerun.recipes.recipe import MODEL_KINDS, Arm, CompareSettings
from freerun.rollin import ENGINES
from freerun.schedules import SCHEDULES
from freerun.targets import TARGETS
from freerun.tasks import DATA_KINDS, TASKS
from freerun.training import TrainSettings

Row = tuple[str, str, str, str]


FAMILIES: dict[str, Mapping[str, type[Any]]] = {
    "method": METHODS, "schedule": SCHEDULES, "gate": GATES, "draw": DRAWS, "engine": ENGINES,
    "objective": OBJECTIVES, "target": TARGETS,
}  # fmt: skip
"""What stands in a method: the word that begins its table -> name -> class."""


def sections() -> dict[str, tuple[type[Any], tuple[str, ...]]]:
    """Section, or section and kind -> its class, and keys that are no recipe's.

    >>> [name for name in sections() if name.startswith(("t", "c", "data.t"))]
    ['train', 'compare', 'compare.arms', 'data.toy', 'data.text', 'target.optimal_completion']
    """
    found: dict[str, tuple[type[Any], tuple[str, ...]]] = {
        "train": (TrainSettings, ("seed",)),
        "compare": (CompareSettings, ("arms",)),
        "compare.arms": (Arm, ()),
    }
    for section, kinds in (("data", DATA_KINDS), ("model", MODEL_KINDS)):
        found |= {f"{section}.{kind}": (cls, ("kind",)) for kind, cls in kinds.items()}
    # tasks of one kind of data, which have a section in common, under its name
    kinds = {next(iter(task.data_sections)) if " " in name else name: task for name, task in TASKS.items()}
    found |= {f"evaluate.{name}": (task.evaluate_section, ()) for name, task in kinds.items()}
    for family, known in FAMILIES.items():
        found |= {f"{family}.{name}": (cls, SUPPLIED) for name, cls in known.items()}
    return found


def key_rows(cls: type[Any], leave_out: Sequence[str] = ()) -> list[Row]:
    """Key, value, default and meaning of each key of a section, but for those that it refuses.

    >>> key_rows(CompareSettings, ("arms", "seeds", "margin"))
    [('workers', 'whole number, from 1 to 1024', '1', 'runs at a time.')]
    """
    hints, known = get_type_hints(cls), meanings(cls)
    return [
        (each.name, _typed(hints[each.name], each) + _bounds(cls, each), _default(each), known.get(each.name, ""))
        for each in section_fields(cls)
        if each.name not in leave_out and each.name not in getattr(cls, "without", {})
    ]


def _typed(hint: Any, each: Field[Any]) -> str:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words = [_named(part) for part in parts if part is not NoneType]
    # where none is not the default, it is written as a word
    words += ['"none"'] if NoneType in parts and each.default is not None else []
    return " or ".join(dict.fromkeys(words)) + _span(each.metadata.get("rule"))


def _bounds(cls: type[Any], each: Field[Any]) -> str:
    """The range of a parameter of a method that a schedule may drive."""
    low, high = getattr(cls, "ranges", {}).get(each.name, (None, None))
    whole = 2**53 if high is None or math.isinf(high) else high
    return "" if isinstance(each.metadata.get("rule"), Range) else _span(Range(low, whole))


def _span(rule: Any) -> str:
    if not isinstance(rule, Range) or rule.low is None:
        return ""
    high = "" if rule.high is None or rule.high >= 2**53 else f"{rule.high:g}"
    to = f" {'to' if rule.ends[1] == ']' else 'to below'} {high}" if high else ""
    return f", {'from' if rule.ends[0] == '[' else 'above'} {rule.low:g}{to}"


def _named(part: Any) -> str:
    if get_origin(part) is Literal:
        return ", ".join(f'"{word}"' for word in get_args(part))
    if get_origin(part) in (Union, UnionType):
        return " or ".join(_named(each) for each in get_args(part))
    if get_origin(part) in (tuple, Sequence):
        return f"list of {_named(get_args(part)[0])}s"
    plain = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "text"}
    if part in plain:
        return plain[part]
    family = [word for word, known in FAMILIES.items() if part in known.values()]
    word = getattr(part, "__name__", "").lower()
    return family[0] if family else word if word in FAMILIES else "table"


def _default(each: Field[Any]) -> str:
    if each.name == "label":
        return "the method's name"
    if required(each):
        return "none: it is required"
    if each.name == "select":
        return "the usual score of the data; crps if evaluate.num_samples is above 0"
    if each.default is None or each.default_factory is not MISSING:
        return "none"
    value = list(each.default) if isinstance(each.default, tuple) else each.default
    return json.dumps(value, default=repr)


def meanings(cls: Any) -> dict[str, str]:
    """Key -> what the docstrings of a class, and of those it derives from, or of a function, hold of it."""
    found: dict[str, str] = {}
    model: Any = getattr(cls, "model", None)  # a section's docstring is that of its model
    for base in (
        *reversed(model.__mro__[:-1] if isinstance(model, type) else ()),
        *(reversed(cls.__mro__[:-1]) if isinstance(cls, type) else (cls,)),
    ):
        text = (inspect.getdoc(base) or "").partition("Args:\n")[2].partition("\n\n")[0]
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
            found[name] = " ".join(meaning.split()).replace("``", "`").replace("None: ", "none: ")
    return found
