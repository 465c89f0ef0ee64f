"""What there is: methods, schedules and recipes, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any

import freerun
from freerun.config.check import required
from freerun.config.methods import SUPPLIED
from freerun.config.shipped import shipped_recipes
from freerun.config.source import nearest
from freerun.errors import UserError

__all__ = [
    "describe_method", "describe_recipe", "describe_schedule", "list_methods", "list_recipes", "list_schedules",
]  # fmt: skip


def list_methods() -> str:
    """Every method with its one line, and the presets with their papers."""
    from freerun.methods import METHODS, PRESETS

    lines = _columns((name, cls.summary) for name, cls in METHODS.items())
    lines += ["", "Presets in Python (methods with their published settings, made for a number of updates):"]
    lines += _columns((f"{name}({', '.join(_needed(make))})", paper) for name, (make, paper) in PRESETS.items())
    return "\n".join([*lines, "", "freerun methods NAME shows formula, reference, parameters and BibTeX."])


def describe_method(name: str) -> str:
    """Formula, parameters, reference and BibTeX of a method, or what a preset makes.

    Raises:
        UserError: there is no such method.
    """
    from freerun.methods import METHODS, PRESETS

    if name in PRESETS:
        return _preset(name, *PRESETS[name])
    cls = METHODS[name] if name in METHODS else _one(dict.fromkeys([*METHODS, *PRESETS]), name, "method")
    citation = cls.citation
    parts = [f"{name}: {cls.summary}", _indented(citation.formula), _parameters(cls)]
    return "\n\n".join([*parts, citation.reference, citation.bibtex])


_EXAMPLE = {"steps": 1000, "length": 20}


def _needed(make: Callable[..., Any]) -> list[str]:
    return [each.name for each in signature(make).parameters.values() if each.kind is not each.VAR_KEYWORD]


def _preset(name: str, make: Callable[..., Any], paper: str) -> str:
    """What a preset is: its line, the method that it makes, and its paper."""
    given = {each: _EXAMPLE[each] for each in _needed(make)}
    example, first = make(**given), (make.__doc__ or "").splitlines()[0]
    call = f"freerun.{name}({', '.join(f'{key}={value}' for key, value in given.items())})"
    if not hasattr(freerun, name):
        call = call.replace("freerun.", "freerun.methods.", 1)
    return "\n\n".join(
        [
            f"{name}: a preset. {first}",
            _indented(f"{call}\n= {example!r}"),
            f"It makes the method {example.name} (freerun methods {example.name}); a recipe writes that method out.",
            paper,
        ]
    )


def list_schedules() -> str:
    """Every schedule with its one line and formula."""
    from freerun.schedules import SCHEDULES

    lines = _columns((name, f"{cls.summary}:  {cls.formula}") for name, cls in SCHEDULES.items())
    return "\n".join([*lines, "", "freerun schedules NAME shows its parameters."])


def describe_schedule(name: str) -> str:
    """Formula, parameters and reference of a schedule, and how a recipe writes it.

    Raises:
        UserError: there is no such schedule.
    """
    from freerun.schedules import SCHEDULES

    cls = _one(SCHEDULES, name, "schedule")
    needed = "".join(f", {each.name} = ..." for each in fields(cls) if required(each))
    recipe = f'In a recipe: teacher_forcing_ratio = {{ schedule = "{name}"{needed} }}'
    parts = [f"{name}: {cls.summary}", _indented(f"value(s) = {cls.formula}"), _parameters(cls), cls.reference, recipe]
    return "\n\n".join(part for part in parts if part)


def list_recipes() -> str:
    """Every recipe that comes with freerun, with the first line of its comments."""
    found = shipped_recipes()
    lines = _columns((name, _first_comment(path.read_text(encoding="utf-8"))) for name, path in found.items())
    return "\n".join([*lines, "", "freerun recipes NAME prints one; freerun train NAME --out RUN runs it."])


def describe_recipe(name: str) -> str:
    """The text of a recipe.

    Raises:
        UserError: there is no such recipe.
    """
    return _one(shipped_recipes(), name.removesuffix(".toml"), "recipe").read_text(encoding="utf-8")


def _one(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name in known:
        return known[name]
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
    raise UserError(f"there is no {what} {name!r}\n  help: {hint}")


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return [f"{name:<{width}}  {text}" for name, text in listed]


def _parameters(cls: type[Any]) -> str:
    shown = [each for each in fields(cls) if each.init and each.name not in SUPPLIED]
    rows = [(each.name, "required" if required(each) else f"default {each.default!r}") for each in shown]
    return "\n".join(["Parameters:", *(f"  {line}" for line in _columns(rows))])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _first_comment(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return first.removeprefix("#").strip()
