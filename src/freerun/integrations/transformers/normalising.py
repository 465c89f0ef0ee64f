"""One optimizer step of a trainer: its rows' numbers, and the count its loss is divided by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freerun.types import Batch

__all__ = ["AccumulationWindow", "Ranks", "collated_batch", "counted", "learns", "opened"]

Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that share an optimizer step.

    Args:
        rank: of this process.
        world: how many there are.
        gather: from a tensor of this process to those of all, one after the other.
        share: whether the count is that of all ranks (``average_tokens_across_devices``, the default of trainers), or
            each rank's own, so that a step is the mean of the ranks' means.
    """

    rank: int
    world: int
    gather: Gather
    share: bool = True


@dataclass(eq=False)
class AccumulationWindow:
    """The micro-batches of one optimizer step on this rank.

    Args:
        size: rows that a micro-batch is given numbers for.
        ranks: who else takes part.
        count: what the step's loss is divided by.
        number: of its micro-batches.
        micro: the number of the micro-batch that is next.
    """

    size: int
    ranks: Ranks
    count: Tensor
    number: int
    micro: int = 0

    @property
    def over(self) -> bool:
        """Whether its last micro-batch has been taken."""
        return self.micro >= self.number

    def rows(self, labels: Tensor) -> Tensor:
        """(batch,) int64: the next micro-batch's rows in the optimizer step's global batch.

        A sampler deals batches out in turn: micro-batch j of rank r is batch ``j * world + r`` of the step.
        """
        place = self.micro * self.ranks.world + self.ranks.rank
        self.micro += 1
        return place * self.size + torch.arange(len(labels), device=labels.device)

    def loss(self, total: Tensor) -> Tensor:
        """A micro-batch's share of the step's mean loss; over micro-batches and ranks the shares' gradients make it.

        Gradients are summed over micro-batches and averaged over ranks: hence the factor ``world``.
        """
        loss = total / self.count.to(total.dtype)
        return loss * self.ranks.world if self.ranks.share else loss


def learns(adapter: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether a collated batch has a label that is predicted; the first token of a row or document is not."""
    labels: Tensor = inputs["labels"]
    counts = labels != -100
    if adapter.is_encoder_decoder or labels.dim() != 2:
        return bool(counts.any())
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    # of another shape: refused where the batch is made
    present = mask.bool() if mask is not None and mask.shape == labels.shape else torch.ones_like(counts)
    first = present.cumsum(1) == 1
    if positions is not None and positions.shape[1:] == labels.shape[1:]:
        first = first | (positions == 0)
    return bool((counts & present & ~first).any())


def collated_batch(adapter: Any, inputs: Mapping[str, Any], rows: Tensor | None = None) -> Batch:
    """A collated batch as a Batch; a column ``replaceable`` may hold 0 and 1, and less where a collator pads."""
    replaceable = inputs.get("replaceable")
    if isinstance(replaceable, Tensor) and not replaceable.is_floating_point():
        inputs = {**inputs, "replaceable": replaceable > 0}
    return adapter.batch(**inputs, rows=rows)


def counted(method: Any, batch: Batch, step: int) -> Tensor:
    """What a method's total on a batch will be divided by: positions of the mask, or the sum of their weights."""
    shaped: Batch = method.shaped(batch, step) if hasattr(method, "shaped") else batch
    return shaped.mask.sum() if shaped.weights is None else shaped.weights[shaped.mask].sum()


def opened(counts: Sequence[Tensor], sizes: Sequence[int], size: int, ranks: Ranks) -> AccumulationWindow:
    """The window of micro-batches with such counts.

    Args:
        counts: of each micro-batch of this rank.
        sizes: rows of each.
        size: rows that a micro-batch has by the trainer's arguments; those of a sampler of one's own may have more.
        ranks: who else takes part.
    """
    count = torch.stack(list(counts)).sum()
    most = torch.tensor([max(size, *sizes)], device=count.device)
    if ranks.world > 1:
        most = ranks.gather(most)
        if ranks.share:
            count = ranks.gather(count[None]).sum()
    # where nothing counts the loss is 0, and so is its gradient
    return AccumulationWindow(int(most.max()), ranks, torch.where(count == 0, 1, count), len(sizes))
