"""From a recipe to what is trained: data, model, method and the loop's settings."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from freerun.config.methods import build_method
from freerun.config.recipe import CmudictData, DataSettings, EvaluateSettings, PairsData, Recipe, ToyData
from freerun.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.data import PairData
    from freerun.training import TrainSettings
    from freerun.training.evaluation import PairTask

__all__ = ["build", "build_data", "build_model", "check_model_arguments", "scoring"]


def build(recipe: Recipe) -> tuple[Module, PairTask, Any, TrainSettings]:
    """(model, task, method, settings) of a recipe.

    The weights are drawn under ``fold(seed, "init")``: runs with one seed and model begin equal, whatever their method.

    Raises:
        UserError: data that cannot be read, a measured rate that is gone.
    """
    from freerun.training.evaluation import PairTask
    from freerun.types import Step

    data = build_data(recipe.data)
    task = PairTask(data, scoring(recipe.evaluate, words=recipe.train.evaluate_words))
    train = recipe.train
    samples = train.updates * train.batch_size
    run = Step(train.updates, sample=samples, epoch=samples / len(data.lengths))
    return build_model(recipe, data), task, build_method(recipe.method, run, _frequencies(data)), train


def build_data(settings: DataSettings) -> PairData:
    """The data of a recipe.

    Raises:
        UserError: all problems of the files.
    """
    from freerun.data import PairOptions, load_cmudict, load_pairs, load_toy

    if isinstance(settings, ToyData):
        words = {"train": settings.train, "dev": settings.dev, "test": settings.test}
        return load_toy(
            settings.task, symbols=settings.symbols, longest=settings.longest, words=words, seed=settings.seed
        )
    shared: dict[str, Any] = {"limit": settings.limit, "max_length": settings.max_length, "too_long": settings.too_long}
    if isinstance(settings, CmudictData):
        return load_cmudict(PairOptions(unknown="drop", **shared))
    options = PairOptions(
        encoding=settings.encoding, drop_overlap=settings.drop_overlap, unknown=settings.unknown, **shared
    )
    return load_pairs(_paths(settings), options, language=settings.language)


def _paths(settings: PairsData) -> Any:
    if settings.path is not None:
        return settings.path
    return {"train": settings.train, "dev": settings.dev, "test": settings.test}


def build_model(recipe: Recipe, data: PairData) -> Module:
    """The untrained model of a recipe for some data."""
    import torch

    from freerun.keys import fold
    from freerun.models import MODELS

    arguments = {each.name: getattr(recipe.model, each.name) for each in fields(recipe.model)}
    kind = MODELS[arguments.pop("kind")]
    torch.manual_seed(fold(recipe.seed, "init"))
    return kind(len(data.source_vocab), len(data.target_vocab), **arguments)


def scoring(settings: EvaluateSettings, *, words: int | None = None, beams: int | None = None) -> Any:
    """The evaluation settings of the training part.

    Args:
        settings: of the recipe.
        words: dev words scored; None: all.
        beams: instead of the recipe's.
    """
    from freerun.training import evaluation

    return evaluation.EvaluateSettings(
        beams=settings.beams if beams is None else beams,
        length_penalty=settings.length_penalty,
        margin=settings.length_margin,
        batch_size=settings.batch_size,
        words=words,
    )


def _frequencies(data: PairData) -> tuple[float, ...]:
    """How often each target symbol stands in the training targets; the end symbol once in each."""
    counts = [0.0] * len(data.target_vocab)
    for _, target in data.examples:
        counts[0] += 1
        for symbol in target:
            counts[symbol] += 1
    return tuple(counts)


def check_model_arguments(settings: Any) -> None:
    """Raise the model's own complaints about its arguments, without making any weights.

    Raises:
        UserError: from the model's class.
    """
    import torch

    from freerun.models import MODELS

    arguments = {each.name: getattr(settings, each.name) for each in fields(settings)}
    kind = MODELS.get(arguments.pop("kind"))
    if kind is None:
        raise UserError(f"kind must be one of {', '.join(MODELS)}")
    with torch.device("meta"):
        kind(3, 3, **arguments)
