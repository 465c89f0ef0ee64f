"""Recipes: one TOML file of settings, checked as a whole, with dotted overrides; and what is built from it."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.recipes.source import find_recipe, read_source, shipped_recipes

if TYPE_CHECKING:
    from freerun.recipes.read import recipe_table
    from freerun.recipes.recipe import Recipe

__all__ = ["Recipe", "find_recipe", "load_recipe", "recipe_table", "shipped_recipes"]

_HOMES = {"Recipe": "freerun.recipes.recipe", "recipe_table": "freerun.recipes.read"}


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> "Recipe":
    """Read a recipe from a TOML file and check every key.

    Args:
        path: the file, or the name of a recipe that comes with freerun.
        overrides: ``key=value`` each, with dotted keys and TOML values; bare words are strings. ``key=`` removes a key.

    Raises:
        UserError: with all problems of the file and the overrides at once, each with file and line.
    """
    source = read_source(find_recipe(path), overrides)
    # torch is first needed here: what tomllib refuses is refused without it
    from freerun.recipes.read import read_recipe

    return read_recipe(source)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'freerun.recipes' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
