"""Measured cases: models with random weights or from finished runs, and their batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import freerun as fr
from freerun.models import RecurrentSeq2Seq, TransformerLM, TransformerSeq2Seq
from freerun.types import Encoder

__all__ = ["KINDS", "PRESETS", "Case", "Shape", "case_of_run", "random_case"]

KINDS: dict[str, type[Any]] = {
    "lstm-attention": RecurrentSeq2Seq,
    "encoder-decoder": TransformerSeq2Seq,
    "decoder-only": TransformerLM,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model with random weights and of its batches.

    Args:
        size: width.
        layers: of the decoder.
        batch: rows.
        time: positions.
        vocab: target symbols.
        source_time: positions of the source, where there is one.
        heads: of the attention.
    """

    size: int
    layers: int
    batch: int
    time: int
    vocab: int
    source_time: int = 20
    heads: int = 4


# the first shape of each kind is measured at every ratio, the others at some
PRESETS: dict[str, dict[str, tuple[Shape, ...]]] = {
    "cpu": {
        "lstm-attention": (Shape(512, 1, 32, 20, 50), Shape(128, 1, 32, 20, 50), Shape(512, 1, 32, 20, 8000)),
        "encoder-decoder": (Shape(128, 4, 32, 64, 1000), Shape(128, 4, 16, 128, 1000), Shape(256, 4, 16, 64, 1000)),
        "decoder-only": (Shape(128, 4, 32, 64, 100), Shape(128, 4, 16, 128, 100), Shape(256, 4, 16, 64, 100)),
    },
    "gpu": {
        "encoder-decoder": (Shape(512, 6, 64, 128, 32000, 128, 8),),
        "decoder-only": (Shape(512, 6, 64, 128, 32000, 0, 8), Shape(768, 12, 32, 256, 32000, 0, 12)),
    },
    "tiny": {
        "lstm-attention": (Shape(8, 1, 3, 6, 7, 4),),
        "encoder-decoder": (Shape(16, 1, 3, 8, 7, 4, 2),),
        "decoder-only": (Shape(16, 1, 3, 8, 7, 0, 2),),
    },
}


@dataclass(frozen=True, eq=False)
class Case:
    """A model, and batches to take its training steps on.

    Args:
        kind: of model, one of ``KINDS``.
        model: in training mode, without dropout.
        batches: repetition n takes the n-th, cyclically.
        weights: "random", or the recipe and its updates.
        facts: sizes, for the table.
        decoder: the same batches with encoded sources, so that a step runs the decoder only. The encoding requires
            gradients, as in a training step.
    """

    kind: str
    model: nn.Module
    batches: Sequence[fr.Batch]
    weights: str
    facts: dict[str, Any]
    decoder: Sequence[fr.Batch]

    def with_dropout(self, rate: float) -> Case:
        """The same case, its model a copy with dropout."""
        model = copy.deepcopy(self.model)
        _set_dropout(model, rate)
        return replace(self, model=model)

    def rows(self, count: int) -> Case:
        """The same case with fewer rows in a batch."""
        rows = torch.arange(count, device=self.batches[0].history.device)
        batches = [batch.select(rows[: batch.size]) for batch in self.batches]
        return replace(self, batches=batches, decoder=[_encoded(self.model, batch) for batch in batches])

    @property
    def title(self) -> str:
        """Sizes in short."""
        letters = {"hidden": "d", "layers": "L", "batch": "B", "time": "T", "vocab": "V"}
        return " ".join(f"{letter}{self.facts[name]}" for name, letter in letters.items())


def _case(kind: str, model: nn.Module, batches: Sequence[fr.Batch], weights: str) -> Case:
    _set_dropout(model, 0.0)
    settings = cast(Any, model).settings()
    times = sorted(batch.time for batch in batches)
    facts = {
        "hidden": settings["size"],
        "layers": settings["layers"],
        "batch": batches[0].size,
        "time": times[0] if times[0] == times[-1] else f"{times[0]}-{times[-1]}",
        "vocab": settings["vocab"] if kind == "decoder-only" else settings["target_vocab"],
    }
    decoder = [_encoded(model, batch) for batch in batches]
    return Case(kind, model.train(), batches, weights, facts, decoder)


def random_case(kind: str, shape: Shape, device: str = "cpu") -> Case:
    """Random weights, one batch of random ids without padding."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    targets = torch.randint(0, shape.vocab, (shape.batch, shape.time), generator=g)
    mask = torch.ones_like(targets, dtype=torch.bool)
    if kind == "decoder-only":
        model, context = TransformerLM(shape.vocab, size=shape.size, layers=shape.layers, heads=shape.heads), None
    else:
        source = torch.randint(1, 30, (shape.batch, shape.source_time), generator=g)
        context = {"source": source, "source_mask": torch.ones_like(source, dtype=torch.bool)}
        heads = {} if kind == "lstm-attention" else {"heads": shape.heads}
        model = KINDS[kind](30, shape.vocab, size=shape.size, layers=shape.layers, **heads)
    return _case(kind, model.to(device), [fr.Batch(targets, targets, mask, context).to(device)], "random")


def case_of_run(folder: str | Path, count: int, device: str = "cpu") -> Case:
    """The best weights of a run, on the first ``count`` training batches of its own plan.

    Args:
        folder: of a run with at least one evaluation, whose recipe's data files exist.
        count: batches.
        device: to measure on.

    Raises:
        UserError: the folder is not a run, its data are missing, or its model is none of ``KINDS``.
    """
    from freerun.recipes import load_recipe
    from freerun.recipes.load import load_run
    from freerun.recipes.train import build_data, build_task
    from freerun.training.plan import BatchPlan

    run = load_run(folder)
    recipe = load_recipe(str(Path(folder) / "recipe.toml"))
    task = build_task(recipe, build_data(recipe.data, recipe.model))
    plan = BatchPlan(task.lengths, recipe.train.batch_size, seed=recipe.seed)
    planned = [plan.at(step).indices for step in range(count)]
    batches = [task.batch(indices.tolist(), torch.arange(len(indices))).to(device) for indices in planned]
    kind = next((name for name, cls in KINDS.items() if isinstance(run.model, cls)), None)
    if kind is None:
        raise fr.UserError(f"{folder}: holds a {type(run.model).__name__}; measured are {', '.join(KINDS)}")
    return _case(kind, run.model.to(device), batches, f"{recipe.name}, {recipe.train.updates:,} updates")


def _set_dropout(model: nn.Module, rate: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


def _encoded(model: nn.Module, batch: fr.Batch) -> fr.Batch:
    if not isinstance(model, Encoder):
        return batch
    with torch.no_grad():
        context = model.eval().encode(batch).context
    model.train()
    return batch.replace(context=_leaves(context))


def _leaves(tree: Any) -> Any:
    """Detach an encoding from the encoder; its real-valued tensors require gradients."""
    if isinstance(tree, Tensor):
        return tree.detach().clone().requires_grad_(tree.is_floating_point())
    if isinstance(tree, tuple):
        return tuple(_leaves(part) for part in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{each.name: _leaves(getattr(tree, each.name)) for each in fields(tree)})
    return tree
