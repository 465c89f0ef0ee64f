"""Recipes: one TOML file of settings, checked as a whole, with dotted overrides; and what is built from it."""

from freerun.config.read import load_recipe, recipe_table
from freerun.config.recipe import Recipe
from freerun.config.shipped import find_recipe, shipped_recipes

__all__ = ["Recipe", "find_recipe", "load_recipe", "recipe_table", "shipped_recipes"]
