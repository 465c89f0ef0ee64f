"""Checks of what a model reads besides its history: source, prompt, covariates, and their padding."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch, select_rows
from freerun.checks.report import (
    Probe,
    Raised,
    Verdict,
    difference,
    map_tree,
    raised,
    snapshot,
    tree_leaves,
)
from freerun.errors import UserError

# what a mask's name has beside that of its source: source_mask, src_key_padding_mask, input_lengths
_ABOUT = re.compile(r"_?(key)?_?(pad|padding|attention)?_?(mask|length|len)s?$")


def inputs_untouched(probe: Probe, before: dict[str, Any]) -> Verdict:
    """The batch is left as it is."""
    if changed := difference(before, probe.batch, "batch"):
        return (
            f"the forward changes {changed} in place: a batch is read several times in one step; compute a new tensor "
            "(masked_fill, not masked_fill_; the other checks need this one)"
        )
    return None


def uses_context(probe: Probe) -> Verdict:
    """The context moves outputs."""
    batch = probe.batch
    if batch.context is None or batch.size < 2:
        return ("not applicable", "the batch has no context, or one row")
    turned = torch.arange(batch.size, device=batch.history.device).roll(1)
    context = select_rows(batch.context, turned)
    if difference(snapshot(batch.context, ""), context, "") is None:
        return ("not applicable", "all rows have the same context")
    try:
        outputs = probe.run(batch.replace(context=context), "contexts of other rows")
    except Raised as error:
        return ("not applicable", str(error))
    if probe.moved(outputs) == 0:
        return ("warning", "no output moves when every row gets another row's context: feed batch.context to the model")
    return None


def holds_targets(probe: Probe) -> Verdict:
    """The context does not hold the targets."""
    batch = probe.batch
    for at, leaf in tree_leaves(batch.context):
        if not isinstance(leaf, Tensor) or leaf.dim() != batch.targets.dim() or leaf.dtype != batch.targets.dtype:
            continue
        extra = leaf.shape[1] - batch.time
        if not 0 <= extra <= 2 or leaf.shape[2:] != batch.targets.shape[2:] or batch.time < 2:
            continue
        if not any(
            torch.equal(leaf[:, o : o + batch.time][batch.mask], batch.targets[batch.mask]) for o in range(extra + 1)
        ):
            continue
        turned = map_tree(batch.context, lambda path, x, at=at: x.flip(1) if path == at else x)
        if probe.moved(probe.run(batch.replace(context=turned), f"{at} turned round")):
            return (
                "warning",
                f"{at} holds the targets, and outputs depend on it: if the task is not to copy, the model sees what it "
                "must predict; leave the targets out of the context",
            )
    return None


@dataclass(frozen=True, eq=False)
class _Padded:
    """Which entries of a source are no padding."""

    there: Tensor  # (batch, n) bool, True = there
    path: str  # of the mask or lengths in the context, or of ids that look padded
    aligned: tuple[str, ...]  # paths of the tensors of which dimension 1 is the source's
    pad: int | None = None  # the id that looks like padding, where no mask marks it

    def picked(self, batch: Batch, row: int) -> Batch:
        """One row without its padding."""
        kept = self.there[row].nonzero()[:, 0]
        one = batch.select(torch.tensor([row], device=kept.device))
        return one.replace(context=map_tree(one.context, lambda at, x: x[:, kept] if at in self.aligned else x))


def _padded(batch: Batch) -> list[_Padded]:
    """The paddings that masks and lengths in the context mark, or ids that end rows and stand nowhere else."""
    tensors = [(at, leaf) for at, leaf in tree_leaves(batch.context) if isinstance(leaf, Tensor)]
    paddings: list[_Padded] = []
    for at, leaf in tensors:
        name = _last(at)
        if leaf.dim() == 2 and (leaf.dtype == torch.bool or ("mask" in name and not leaf.is_floating_point())):
            there = leaf.bool()
            # a batch is padded to its longest row, which has no padding
            full, empty = bool(there.all(1).any()), bool((~there).all(1).any())
            if empty > full or (empty == full and "pad" in name):
                there = ~there
        elif leaf.dim() == 1 and "len" in name and not leaf.is_floating_point():
            there = torch.arange(int(leaf.max()), device=leaf.device) < leaf[:, None]
        else:
            continue
        aligned = tuple(path for path, x in tensors if x.dim() > 1 and x.shape[1] == there.shape[1])
        named = tuple(path for path in aligned if _ABOUT.sub("", name) in _last(path))
        aligned = named if set(named) - {at} else aligned
        ends = bool((there[:, 1:] != there[:, :-1]).sum(1).le(1).all())  # padding is on one side; gaps are none
        if set(aligned) - {at} and ends and bool(there.any(1).all()):
            paddings.append(_Padded(there, at, aligned))
    ids = ((at, leaf) for at, leaf in tensors if leaf.dim() == 2 and leaf.dtype == torch.int64)
    return paddings or [padded for at, leaf in ids for padded in _guessed(at, leaf)]


def _guessed(path: str, ids: Tensor) -> list[_Padded]:
    """Ids with one symbol at an end of rows and nowhere else: not of all, or several times."""
    for turn in ((), (1,)):
        x = ids.flip(turn)
        for pad in x[:, -1].unique().tolist():
            tail = (x == pad).flip(1).int().cumprod(1).flip(1).bool()
            # an end symbol ends all rows, once
            padded = (~tail).all(1).any() | (tail.sum(1) > 1).any()
            if bool(padded & ((x == pad) == tail).all() & (~tail).any(1).all()):
                return [_Padded(~tail.flip(turn), path, (path,), pad)]
    return []


def _last(path: str) -> str:
    return re.sub(r"\W", "", re.split(r"[\[.]", path)[-1]).lower()


def source_padding(probe: Probe) -> Verdict:
    """Padding of the source moves no output."""
    batch, tried = probe.batch, False
    for padding in _padded(batch):
        short = (~padding.there.all(1) & batch.mask.any(1)).nonzero()[:4, 0].tolist()
        try:
            for row in short:
                outputs = probe.run(padding.picked(batch, row), f"row {row} without its source padding")
                if far := probe.apart(outputs[0, batch.mask[row]], probe.outputs[row, batch.mask[row]]):
                    reason = _reads_padding(padding.path, f"row {row} alone, without its source padding", far)
                    if padding.pad is None:
                        return reason
                    return (
                        "warning",
                        f"{reason}. (No mask tells of it: id {padding.pad} ends rows and looks like one)",
                    )
            tried = tried or bool(short)
        except Raised:
            continue  # a source of fixed length
    if tried:
        return None
    return (
        "not applicable",
        "no mask or lengths in the context tell of padding in this batch, or its length is fixed; "
        "check_model(model, examples=..., collate=...) compares each example alone with itself in a batch",
    )


def _reads_padding(path: str, tried: str, far: float) -> str:
    return (
        f"tried on {tried}, outputs move by {far:.2g}: padding of the source reaches them. {path} must hide it from "
        "attention, means and recurrent layers (masked_fill(~mask, -inf) before the softmax; pack_padded_sequence; "
        "divide by the number of entries that are there; positions that do not count padding, or padding on the "
        "right), and must not be inverted: nn.MultiheadAttention's key_padding_mask is True at padding"
    )


def source_order(probe: Probe) -> Verdict:
    """The order of the source moves outputs."""
    batch = probe.batch
    if batch.context is None:
        return ("not applicable", "the batch has no context")
    known = {path: padding.there for padding in _padded(batch) for path in padding.aligned}
    turned = map_tree(batch.context, lambda at, x: _turned(x, known.get(at)))
    if difference(snapshot(batch.context, ""), turned, "") is None:
        return ("not applicable", "the context has no sequence that changes when it is turned round")
    try:
        far = probe.moved(probe.run(batch.replace(context=turned), "sources turned round"))
        other = map_tree(batch.context, lambda at, x: x if _turned(x, None) is x else x.roll(1, 0))
        matters = bool(far) or bool(probe.moved(probe.run(batch.replace(context=other), "sources of other rows")))
    except Raised as error:
        return ("not applicable", str(error))
    if matters and not far:
        return (
            "warning",
            "outputs depend on the source, and not on its order (each turned round, nothing moves): a Transformer's "
            "encoder needs positions; a bag of symbols may be meant so",
        )
    return None


def _turned(x: Tensor, there: Tensor | None) -> Tensor:
    """A sequence with the entries that are there in reverse order; a vector of features is left as it is."""
    if x.dim() < 2 or x.dtype == torch.bool or (x.dim() == 2 and x.is_floating_point()):
        return x
    if there is None:
        return x.flip(1)
    kept = x.clone()
    for row, where in enumerate(there):
        kept[row, where] = x[row, where].flip(0)
    return kept


def alone_equals_batch(probe: Probe, examples: Sequence[Any], collate: Callable[[list[Any]], Any]) -> Verdict:
    """Each example alone equals itself in a batch."""
    together = collated(examples, collate)
    outputs = probe.model(together)
    for n, example in enumerate(examples):
        one = collated([example], collate)
        try:
            alone = probe.model(one)
        except Exception as error:  # whatever a model raises
            return f"{raised(f'example {n} alone', error)}; the forward must take a batch of one row"
        if not torch.equal(one.targets[one.mask], together.targets[n][together.mask[n]]):
            return (
                f"example {n} has other targets (or other positions that count) alone than in a batch of "
                f"{len(examples)}: what collate makes of an example may not depend on the others, but for padding"
            )
        if far := probe.apart(alone[0][one.mask[0]], outputs[n][together.mask[n]]):
            return (
                f"outputs of example {n} alone are {far:.2g} away from its outputs in a batch of {len(examples)}: "
                "padding of source, prompt or history reaches them. Hide it from attention, means and recurrent "
                "layers, count positions without it, and check that no mask is inverted"
            )
    return None


def collated(examples: Sequence[Any], collate: Callable[[list[Any]], Any]) -> Batch:
    """Examples as a Batch."""
    try:
        batch = collate(list(examples))
    except TypeError as error:
        raise UserError(f"collate could not take a list of {len(examples)} examples: {error}") from error
    if not isinstance(batch, Batch):
        raise UserError(f"collate must make a freerun.Batch of a list of examples; got {type(batch).__name__}")
    if batch.size != len(examples):
        raise UserError(f"collate made {batch.size} rows of {len(examples)} examples: one row an example")
    return batch
