"""Hugging Face models in recipes: from a ``[model]`` section to a model, and from a run's folder back to one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.config.huggingface_sections import HuggingFaceSettings
from freerun.errors import UserError, needing

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.config.recipe import Recipe
    from freerun.data.records import RecordCoder, RecordData

__all__ = ["build_pretrained", "load_pretrained", "within_run"]


def build_pretrained(recipe: Recipe, data: RecordData) -> Module:
    """The adapted model of a recipe; the data's batches are made by it from then on.

    Raises:
        UserError: it cannot be loaded, has too few positions for free running, begins otherwise in training than in
            free running, or breaks the contract.
    """
    from freerun.config.kinds import task_of
    from freerun.training.pretrained import model_positions, quiet, read_config, read_model

    with needing("hf", "a model of kind huggingface"):
        from freerun.integrations.transformers.adapt import adapt
    assert isinstance(recipe.model, HuggingFaceSettings)
    given = recipe.model.pretrained()
    config = read_config(given.path)
    needed, words = task_of(recipe.data).positions(data, recipe.evaluate)
    limit = model_positions(config)
    if limit is not None and limit < needed:
        raise UserError(
            f"the model has {limit} positions: {words}, so {needed} are needed\n  help: lower evaluate.length (or "
            "evaluate.length_margin), or data.max_source"
        )
    model = read_model(given, config)
    _settled(model, data.coder)
    with quiet():
        adapted: Module = adapt(model)
    data.bind(adapted)
    if not data.coder.causal:
        _check_start(adapted, data, given.path)
    return adapted


def _settled(model: Any, coder: RecordCoder) -> None:
    """Tell the model's configuration what the tokenizer knows and it does not; what it says itself stays."""
    tokenizer = coder.tokenizer
    for config in (model.config, model.generation_config):
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
    if not coder.causal and model.config.decoder_start_token_id is None:
        start = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
    ends = model.generation_config.eos_token_id
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if coder.end is not None and coder.end not in known:
        # so that the saved model stops where it was taught to
        model.generation_config.eos_token_id = [*known, coder.end] if known else coder.end


def _check_start(adapted: Any, data: RecordData, path: str) -> None:
    """Refuse a decoder that begins with another symbol in training than in free running: with another language's."""
    import torch

    # some models take it from the labels' end, which a cut takes away: of the longest first
    labels = max((one.said for one in data.splits["train"].encoded), key=len)
    told = int(adapted.shifted(torch.tensor([labels], device=adapted.inner.device), 1)[0, 0])
    own = int(adapted.shifted(None, 1)[0, 0])
    if told == own:
        return
    name = data.coder.tokenizer.convert_ids_to_tokens
    raise UserError(
        f"{path}: in training its decoder begins with {name(told)!r}, taken from the targets, and in free running with "
        f"{name(own)!r}, the configuration's decoder_start_token_id ({own})\n  help: set tokenizer.tgt_lang to the "
        "language of the targets and config.decoder_start_token_id to its symbol, and save both into the folder; "
        'targets that too_long = "cut" shortens have lost theirs: use "drop"'
    )


def within_run(settings: HuggingFaceSettings, folder: Path) -> HuggingFaceSettings:
    """The section that loads a run's own saved model, wherever it was once loaded from."""
    return replace(
        settings, path=str(folder / "model"), tokenizer=None, random=False, dtype="auto", pad=None, chat_template=None
    )  # fmt: skip


def load_pretrained(folder: Path, describe: dict[str, Any]) -> tuple[Module, RecordCoder]:
    """The model of a run, in evaluation mode, and its coder.

    Args:
        folder: the run.
        describe: of its data, from model.json.

    Raises:
        UserError: its files are not those that were saved.
    """
    from freerun.data.records import RecordCoder
    from freerun.training.pretrained import quiet, read_config, read_model, read_tokenizer

    with needing("hf", "a model of kind huggingface"):
        from freerun.integrations.transformers.adapt import adapt
    given = within_run(HuggingFaceSettings(path=str(folder / "model")), folder).pretrained()
    with quiet():
        model: Module = adapt(read_model(given, read_config(given.path))).eval()
    return model, RecordCoder.from_description(describe, read_tokenizer(given), model)
