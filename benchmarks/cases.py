"""Measured cases: models with random weights, trained on text, or from finished runs, and their batches."""

from __future__ import annotations

import copy
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import freerun as fr
from freerun.models import RecurrentSeq2Seq, TransformerLM, TransformerSeq2Seq
from freerun.types import Encoder

__all__ = ["ADAPTED", "KINDS", "PRESETS", "Case", "Shape", "case_of_run", "library_text", "made_case", "tiny"]

KINDS: dict[str, type[Any]] = {
    "lstm-attention": RecurrentSeq2Seq,
    "encoder-decoder": TransformerSeq2Seq,
    "decoder-only": TransformerLM,
}
ADAPTED = ("gpt2", "t5")
"""Kinds that are built by transformers and adapted; a t5 has as many layers on both sides."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its batches, and how they are measured.

    Args:
        size: width.
        layers: of the decoder.
        batch: rows.
        time: positions.
        vocab: target symbols.
        source_time: positions of the source, where there is one.
        heads: of the attention.
        amp: under bfloat16 autocast.
        whole: the timed step begins with the source as it is; else with its encoding, and is the decoder's alone.
        dropout: rate in the training forward.
        ratios: to measure; none: the usual ones.
    """

    size: int
    layers: int
    batch: int
    time: int
    vocab: int
    source_time: int = 20
    heads: int = 4
    amp: bool = False
    whole: bool = False
    dropout: float = 0.0
    ratios: tuple[float, ...] = ()

    @property
    def title(self) -> str:
        """Sizes in short."""
        return f"d{self.size} L{self.layers} B{self.batch} T{self.time} V{self.vocab} {self.how}".strip()

    @property
    def how(self) -> str:
        """What is not as usual."""
        rate = f"dropout {self.dropout:g}" if self.dropout else ""
        return ", ".join(filter(None, ("bf16" if self.amp else "", "with encoder" if self.whole else "", rate)))


ENDS = (0.9, 0.5)
SPREAD = (0.9, 0.75, 0.5, 0.0)

# the first shape of each kind is measured at every ratio, the others at some
PRESETS: dict[str, dict[str, tuple[Shape, ...]]] = {
    "cpu": {
        "lstm-attention": (Shape(512, 1, 32, 20, 50), Shape(128, 1, 32, 20, 50), Shape(512, 1, 32, 20, 8000)),
        "encoder-decoder": (
            Shape(128, 4, 32, 64, 1000),
            Shape(128, 4, 16, 128, 1000),
            Shape(256, 4, 16, 64, 1000),
            *(Shape(128, 3, 32, 32, 1000, 32, whole=True, dropout=rate, ratios=(0.75,)) for rate in (0.0, 0.1)),
        ),
        "decoder-only": (
            Shape(128, 4, 32, 64, 100),
            Shape(128, 4, 16, 128, 100),
            Shape(256, 4, 16, 64, 100),
            Shape(256, 4, 16, 128, 1000, ratios=(0.75, 0.0)),
            *(Shape(128, 2, batch, 64, 65, ratios=ENDS) for batch in (1, 2, 4, 8)),
            *(Shape(128, 2, 8, time, 65, ratios=ENDS) for time in (256, 1024)),
            Shape(128, 2, 4, 2048, 65, ratios=(0.9,)),
            Shape(256, 4, 16, 128, 1000, amp=True, ratios=(0.75,)),
            Shape(512, 6, 8, 256, 8000, heads=8, amp=True, ratios=(0.75,)),
        ),
    },
    "gpu": {
        "lstm-attention": (Shape(512, 1, 64, 50, 8000, 50, ratios=SPREAD), Shape(128, 1, 32, 50, 50, 50, ratios=ENDS)),
        "encoder-decoder": (Shape(512, 6, 64, 128, 32000, 128, 8, amp=True, ratios=SPREAD),),
        "decoder-only": (
            Shape(768, 12, 32, 256, 32000, heads=12, amp=True, ratios=SPREAD),
            Shape(768, 12, 8, 1024, 32000, heads=12, amp=True, ratios=SPREAD),
            Shape(512, 6, 64, 128, 32000, heads=8, amp=True, ratios=ENDS),
            Shape(128, 4, 32, 64, 100, ratios=SPREAD),
        ),
        "gpt2": (Shape(768, 12, 16, 512, 50257, heads=12, amp=True, ratios=SPREAD),),
        "t5": (Shape(512, 6, 32, 128, 32128, 128, 8, amp=True, ratios=SPREAD),),
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
        amp: under bfloat16 autocast.
        whole: steps are timed with their encoder.
    """

    kind: str
    model: nn.Module
    batches: Sequence[fr.Batch]
    weights: str
    facts: dict[str, Any]
    decoder: Sequence[fr.Batch]
    amp: bool = False
    whole: bool = False

    @property
    def timed(self) -> Sequence[fr.Batch]:
        """The batches that a timed step begins with."""
        return self.batches if self.whole else self.decoder

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
        sizes = " ".join(f"{letter}{self.facts[name]}" for name, letter in letters.items())
        return f"{sizes} {self.facts['how']}".strip()


def tiny(shape: Shape, kind: str) -> Shape:
    """The same, to be tried rather than measured."""
    sizes = {name: getattr(PRESETS["tiny"].get(kind, PRESETS["tiny"]["decoder-only"])[0], name) for name in _SIZES}
    return replace(shape, **sizes, batch=min(shape.batch, 3), source_time=min(shape.source_time, 4))


_SIZES = ("size", "layers", "time", "vocab", "heads")


def made_case(kind: str, shape: Shape, device: str = "cpu", updates: int = 0) -> Case:
    """A model with random weights on random ids, or trained for some updates on source code of Python; no padding.

    A trained model has a source that says a part of what its targets are.
    """
    torch.manual_seed(0)
    model = (_adapted if kind in ADAPTED else _built)(kind, shape).to(device)
    _set_dropout(model, shape.dropout)

    def batch(number: int) -> fr.Batch:
        return _batch(model, kind, _ids(shape, number, bool(updates)), shape.source_time).to(device)

    _train(model, batch, updates)
    weights = f"source code, {updates:,} updates" if updates else "random"
    sizes = (shape.size, shape.layers, shape.batch, shape.time, shape.vocab)
    facts = dict(zip(("hidden", "layers", "batch", "time", "vocab"), sizes, strict=True)) | {"how": shape.how}
    batches = [batch(-1 - number) for number in range(3 if updates else 1)]
    decoder = batches if shape.whole else [_encoded(model, each) for each in batches]
    return Case(kind, model.train(), batches, weights, facts, decoder, shape.amp, shape.whole)


def _built(kind: str, shape: Shape) -> nn.Module:
    if kind == "decoder-only":
        return TransformerLM(shape.vocab, size=shape.size, layers=shape.layers, heads=shape.heads)
    heads = {} if kind == "lstm-attention" else {"heads": shape.heads}
    return KINDS[kind](_SOURCES, shape.vocab, size=shape.size, layers=shape.layers, **heads)


_SOURCES = 30


def _adapted(kind: str, shape: Shape) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    if kind == "t5":
        sizes: Any = {"d_model": shape.size, "d_kv": shape.size // shape.heads, "d_ff": 4 * shape.size}
        sizes |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": None}
        inner = T5ForConditionalGeneration(T5Config(
            **sizes, vocab_size=shape.vocab, num_layers=shape.layers, num_heads=shape.heads,
            dropout_rate=shape.dropout,
        ))  # fmt: skip
    else:
        inner = GPT2LMHeadModel(GPT2Config(
            vocab_size=shape.vocab, n_positions=shape.time + 1, n_embd=shape.size, n_layer=shape.layers,
            n_head=shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        ))  # fmt: skip
    return fr.hf.adapt(inner)


@cache
def library_text() -> Tensor:
    """Bytes of the source of Python's standard library, (n,)."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return torch.tensor(list(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"))[:120])))


def _ids(shape: Shape, key: int, text: bool) -> Tensor:
    """(batch, time) ids: at random, or bytes of text; where the vocabulary is large, pairs of bytes."""
    g = torch.Generator().manual_seed(key % 2**31)
    if not text:
        return torch.randint(0, shape.vocab, (shape.batch, shape.time), generator=g)
    known, width = library_text(), 2 if shape.vocab > 256 else 1
    starts = torch.randint(len(known) - width * shape.time, (shape.batch,), generator=g)
    found = torch.stack([known[start : start + width * shape.time] for start in starts.tolist()])
    return (found.unflatten(1, (-1, width)) * torch.tensor([257, 1])[-width:]).sum(-1) % shape.vocab


def _batch(model: Any, kind: str, ids: Tensor, source_time: int) -> fr.Batch:
    source = (ids.repeat(1, -(-source_time // ids.shape[1]))[:, :source_time] % (_SOURCES - 1)) + 1
    if kind in ADAPTED:
        given = {"labels": ids.clamp_min(1), "input_ids": ids}
        if kind == "t5":
            given |= {"input_ids": source % model.inner.config.vocab_size, "attention_mask": torch.ones_like(source)}
        return model.batch(**{name: each.to(model.inner.device) for name, each in given.items()})
    mask = torch.ones_like(ids, dtype=torch.bool)
    context = {"source": source, "source_mask": torch.ones_like(source, dtype=torch.bool)}
    return fr.Batch(ids, ids, mask, None if kind == "decoder-only" else context)


def _train(model: nn.Module, batch: Any, updates: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for n in range(updates):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (n + 1) / 30)
        optimizer.zero_grad()
        fr.teacher_forcing()(model, batch(n), step=0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


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
    model, times = run.model.to(device), sorted(batch.time for batch in batches)
    _set_dropout(model, 0.0)
    settings = cast(Any, model).settings()
    facts = {
        "hidden": settings["size"],
        "layers": settings["layers"],
        "batch": batches[0].size,
        "time": times[0] if times[0] == times[-1] else f"{times[0]}-{times[-1]}",
        "vocab": settings["vocab"] if kind == "decoder-only" else settings["target_vocab"],
        "how": "",
    }
    decoder = [_encoded(model, batch) for batch in batches]
    return Case(kind, model.train(), batches, f"{recipe.name}, {recipe.train.updates:,} updates", facts, decoder)


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
