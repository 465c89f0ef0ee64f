"""From a recipe to what is trained: data, model, method and the loop's settings."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from freerun.config.data_sections import DataSettings
from freerun.config.huggingface_sections import HuggingFaceSettings
from freerun.config.kinds import RecipeTask, task_of, trained_on
from freerun.config.methods import build_method
from freerun.config.model_sections import ModelSettings
from freerun.config.pretrained_run import build_pretrained, rehearsed
from freerun.config.recipe import Recipe
from freerun.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.training import TrainSettings

__all__ = ["build", "build_data", "build_model", "build_task", "check_model_arguments"]


def build(recipe: Recipe) -> tuple[Module, RecipeTask, Any, TrainSettings]:
    """(model, task, method, settings) of a recipe.

    The weights are drawn under ``fold(seed, "init")``: runs with one seed and model begin equal, whatever their method.

    Raises:
        UserError: data that cannot be read, a model with fewer positions than they need, a measured rate that is gone.
    """
    from freerun.types import Step

    data = build_data(recipe.data, recipe.model)
    task = build_task(recipe, data)
    train = recipe.train
    samples = train.updates * train.batch_size
    run = Step(train.updates, sample=samples, epoch=samples / len(task.lengths))
    frequencies = task_of(recipe.data).frequencies(data)
    trained = trained_on(recipe.data.kind, recipe.model)
    model, method = build_model(recipe, data), build_method(recipe.method, run, trained, frequencies)
    if isinstance(recipe.model, HuggingFaceSettings):
        rehearsed(method, model, task, train.updates)
    return model, task, method, train


def build_data(settings: DataSettings, model: ModelSettings) -> Any:
    """The data of a recipe, in the shape that its model reads.

    Raises:
        UserError: all problems of the files.
    """
    return task_of(settings).load(settings, model)


def build_task(recipe: Recipe, data: Any) -> RecipeTask:
    """The task of a recipe for its data."""
    return task_of(recipe.data).make(data, recipe.evaluate, recipe.train.evaluate_words)


def build_model(recipe: Recipe, data: Any) -> Module:
    """The untrained model of a recipe for some data.

    Raises:
        UserError: the model has fewer positions than the data need.
    """
    import torch

    from freerun.keys import fold
    from freerun.models import MODELS

    torch.manual_seed(fold(recipe.seed, "init"))
    if isinstance(recipe.model, HuggingFaceSettings):
        return build_pretrained(recipe, data)
    _check_positions(recipe, data)
    arguments = {each.name: getattr(recipe.model, each.name) for each in fields(recipe.model)}
    kind = MODELS[arguments.pop("kind")]
    return kind(*task_of(recipe.data).sizes(data), **arguments)


def _check_positions(recipe: Recipe, data: Any) -> None:
    """Refuse a model that would run out of positions, maybe hours later at the test."""
    longest = getattr(recipe.model, "longest", None)
    if longest is None:
        return
    needed, words = task_of(recipe.data).positions(data, recipe.evaluate)
    if longest < needed:
        raise UserError(
            f"model.longest = {longest} is too small: {words}, so {needed} positions are needed"
            f"\n  help: --set model.longest={needed}"
        )


def check_model_arguments(settings: Any) -> None:
    """Raise the model's own complaints about its arguments, without making any weights.

    Raises:
        UserError: from the model's class.
    """
    import torch

    from freerun.models import MODELS

    if isinstance(settings, HuggingFaceSettings):
        return  # what it is, its own files say
    arguments = {each.name: getattr(settings, each.name) for each in fields(settings)}
    kind = MODELS.get(arguments.pop("kind"))
    if kind is None:
        raise UserError(f"kind must be one of {', '.join(MODELS)}")
    with torch.device("meta"):
        kind(*settings.trial, **arguments)
