"""Hugging Face models in recipes: from a ``[model]`` section to a model, and from a run's folder back to one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.errors import UserError, needing
from freerun.models.pretrained import Pretrained
from freerun.recipes.read import build_method
from freerun.recipes.recipe import ModelSettings, Recipe
from freerun.tasks import task_of, trained_on
from freerun.tasks.base import DataTask

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.data.records import RecordCodec, RecordData
    from freerun.training import TrainSettings


def build(recipe: Recipe) -> tuple[Module, DataTask, Any, TrainSettings]:
    """(model, task, method, settings) of a recipe."""
    data = build_data(recipe.data, recipe.model)
    task = build_task(recipe, data)
    return build_model(recipe, data), task, method_of(recipe, data, task), recipe.train


def method_of(recipe: Recipe, data: Any, task: DataTask) -> Any:
    """Return the method of a recipe, for its data and the length of its run."""
    from freerun.types import Step

    train = recipe.train
    samples = train.updates * train.batch_size
    run = Step(train.updates, sample=samples, epoch=samples / len(task.lengths))
    frequencies = task_of(recipe.data).frequencies(data)
    return build_method(recipe.method, run, trained_on(recipe.data.kind, recipe.model), frequencies)


def rehearse(recipe: Recipe, model: Module, task: DataTask, method: Any) -> None:
    """Refuse before the first update, and before anything is written, what the model cannot do for a method."""
    import torch

    from freerun.methods.base import rehearsal

    tried: Any = rehearsal
    if isinstance(recipe.model, Pretrained):  # its loss is divided by a count known before the forward
        with needing("hf", "a model of kind huggingface"):
            from freerun.integrations.hf_runner import rehearse as tried
    lengths = task.lengths
    shortest = min(range(len(lengths)), key=lengths.__getitem__)
    try:
        tried(method, model, task.batch([shortest], torch.arange(1)), recipe.train.updates, 0)
    except UserError as error:
        raise UserError([f"[method]: {problem}" for problem in error.problems]) from error


def build_data(settings: Any, model: ModelSettings) -> Any:
    """Return the data of a recipe, in the shape that its model reads."""
    return task_of(settings).load(settings, model)


def build_task(recipe: Recipe, data: Any) -> DataTask:
    """Return the task of a recipe for its data."""
    return task_of(recipe.data)(data, recipe.evaluate, recipe.train.evaluate_items)


def build_model(recipe: Recipe, data: Any) -> Module:
    """Return the untrained model of a recipe for some data."""
    import torch

    from freerun.keys import fold

    torch.manual_seed(fold(recipe.seed, "init"))
    if isinstance(recipe.model, Pretrained):
        return build_pretrained(recipe, data)
    _check_positions(recipe, data)
    return recipe.model.make(*task_of(recipe.data).sizes(data))


def _check_positions(recipe: Recipe, data: Any) -> None:
    """Refuse a model that would run out of positions, maybe hours later at the test."""
    limit = getattr(recipe.model, "max_positions", None)
    if limit is None:
        return
    needed, words = task_of(recipe.data).positions(data, recipe.evaluate)
    if limit < needed:
        raise UserError(
            f"model.max_positions = {limit} is too small: {words}, so {needed} positions are needed"
            f"\n  help: --set model.max_positions={needed}"
        )


def build_pretrained(recipe: Recipe, data: RecordData) -> Module:
    """Return the adapted model of a recipe; the data's batches are made by it from then on."""
    from freerun.models.pretrained import model_positions, quiet, read_config, read_model
    from freerun.tasks import task_of

    with needing("hf", "a model of kind huggingface"):
        from freerun.integrations.hf_adapt import adapt
    assert isinstance(recipe.model, Pretrained)
    given = recipe.model
    config = read_config(given.path)
    needed, words = task_of(recipe.data).positions(data, recipe.evaluate)
    limit = model_positions(config)
    if limit is not None and limit < needed:
        raise UserError(
            f"the model has {limit} positions: {words}, so {needed} are needed\n  help: lower evaluate.length (or "
            "evaluate.length_margin), or data.max_source"
        )
    model = read_model(given, config)
    _settled(model, data.codec)
    with quiet():
        adapted: Module = adapt(model)
    data.bind(adapted)
    if not data.codec.causal:
        _check_start(adapted, data, given.path)
    return adapted


def _settled(model: Any, codec: RecordCodec) -> None:
    """Tell the model's configuration what the tokenizer knows and it does not; what it says itself stays."""
    tokenizer = codec.tokenizer
    for config in (model.config, model.generation_config):
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
    if not codec.causal and model.config.decoder_start_token_id is None:
        start = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
    ends = model.generation_config.eos_token_id
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if codec.end is not None and codec.end not in known:
        # so that the saved model stops where it was taught to
        model.generation_config.eos_token_id = [*known, codec.end] if known else codec.end


def _check_start(adapted: Any, data: RecordData, path: str) -> None:
    """Refuse a decoder that begins with another symbol in training than in free running: with another language's."""
    import torch

    # some models take it from the labels' end, which a cut takes away: of the longest first
    labels = max((one.target for one in data.splits["train"].encoded), key=len)
    told = int(adapted.shifted(torch.tensor([labels], device=adapted.inner.device), 1)[0, 0])
    own = int(adapted.shifted(None, 1)[0, 0])
    if told == own:
        return
    name = data.codec.tokenizer.convert_ids_to_tokens
    raise UserError(
        f"{path}: in training its decoder begins with {name(told)!r}, taken from the targets, and in free running with "
        f"{name(own)!r}, the configuration's decoder_start_token_id ({own})\n  help: set tokenizer.tgt_lang to the "
        "language of the targets and config.decoder_start_token_id to its symbol, and save both into the folder; "
        'targets that too_long = "cut" shortens have lost theirs: use "drop"'
    )


def within_run(settings: Pretrained, folder: Path) -> Pretrained:
    """Return the section that loads a run's own saved model, wherever it was once loaded from."""
    return replace(
        settings, path=str(folder / "model"), tokenizer=None, random=False, dtype="auto", pad=None, chat_template=None
    )  # fmt: skip


def load_pretrained(folder: Path, describe: dict[str, Any]) -> tuple[Module, RecordCodec]:
    """Return the model of a run, in evaluation mode, and its codec."""
    from freerun.data.records import RecordCodec
    from freerun.models.pretrained import quiet, read_config, read_model, read_tokenizer

    with needing("hf", "a model of kind huggingface"):
        from freerun.integrations.hf_adapt import adapt
    given = within_run(Pretrained(path="."), folder)
    with quiet():
        model: Module = adapt(read_model(given, read_config(given.path))).eval()
    return model, RecordCodec.from_description(describe, read_tokenizer(given), model)
