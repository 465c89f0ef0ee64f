"""From a recipe to what is trained: data, model, method and the loop's settings."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from freerun.config.data_sections import DataSettings
from freerun.config.huggingface_sections import HuggingFaceSettings
from freerun.config.kinds import RecipeTask, task_of, trained_on
from freerun.config.methods import build_method
from freerun.config.model_sections import ModelSettings
from freerun.config.pretrained_run import build_pretrained
from freerun.config.recipe import Recipe
from freerun.errors import UserError, needing

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.training import TrainSettings

__all__ = ["build", "build_data", "build_model", "build_task", "check_model_arguments", "method_of", "rehearse"]


def build(recipe: Recipe) -> tuple[Module, RecipeTask, Any, TrainSettings]:
    """(model, task, method, settings) of a recipe.

    The weights are drawn under ``fold(seed, "init")``: runs with one seed and model begin equal, whatever their method.

    Raises:
        UserError: data that cannot be read, a model with fewer positions than they need, a measured rate that is gone.
    """
    data = build_data(recipe.data, recipe.model)
    task = build_task(recipe, data)
    return build_model(recipe, data), task, method_of(recipe, data, task), recipe.train


def method_of(recipe: Recipe, data: Any, task: RecipeTask) -> Any:
    """The method of a recipe, for its data and the length of its run.

    Raises:
        UserError: a measured rate that is gone.
    """
    from freerun.types import Step

    train = recipe.train
    samples = train.updates * train.batch_size
    run = Step(train.updates, sample=samples, epoch=samples / len(task.lengths))
    frequencies = task_of(recipe.data).frequencies(data)
    return build_method(recipe.method, run, trained_on(recipe.data.kind, recipe.model), frequencies)


def rehearse(recipe: Recipe, model: Module, task: RecipeTask, method: Any) -> None:
    """Refuse before the first update, and before anything is written, what the model cannot do for a method.

    Raises:
        UserError: what the method says of the model and the data.
    """
    import torch

    from freerun.methods.rehearsal import rehearsal

    tried: Any = rehearsal
    if isinstance(recipe.model, HuggingFaceSettings):  # its loss is divided by a count known before the forward
        with needing("hf", "a model of kind huggingface"):
            from freerun.integrations.transformers.preflight import rehearse as tried
    lengths = task.lengths
    shortest = min(range(len(lengths)), key=lengths.__getitem__)
    try:
        tried(method, model, task.batch([shortest], torch.arange(1)), recipe.train.updates, 0)
    except UserError as error:
        raise UserError([f"[method]: {problem}" for problem in error.problems]) from error


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
