"""Whose loss a trainer's step takes: the method's, token-exact, or the trainer's own on swapped ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.methods.report import replacement_counts
from freerun.objectives import CrossEntropy

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


def has_targets(adapter: Any, inputs: Mapping[str, Any]) -> bool:
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


def loss_count(method: Any, batch: Batch, step: int) -> Tensor:
    """What a method's total on a batch will be divided by: positions of the mask, or the sum of their weights."""
    shaped: Batch = method.apply_horizon(batch, step) if hasattr(method, "apply_horizon") else batch
    return shaped.mask.sum() if shaped.weights is None else shaped.weights[shaped.mask].sum()


def open_window(counts: Sequence[Tensor], sizes: Sequence[int], size: int, ranks: Ranks) -> AccumulationWindow:
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


LOSSES = ("auto", "method", "trainer")
"""What ``loss_from`` may be."""


def chosen_loss(asked: str, *, own: bool, function: bool, router: bool) -> str:
    """``"method"`` or ``"trainer"``.

    Args:
        asked: one of ``LOSSES``.
        own: the trainer has a ``compute_loss`` of its own (TRL's have).
        function: it was given a ``compute_loss_func``.
        router: the model adds a loss on its routing to that on its labels.

    Raises:
        UserError: not one of them, or ``"method"`` where a function was given that would never be called.

    >>> chosen_loss("auto", own=True, function=False, router=False)
    'trainer'
    """
    if asked not in LOSSES:
        raise UserError(f"loss_from must be one of {', '.join(LOSSES)}; got {asked!r}")
    if asked == "method" and function:
        raise UserError(
            "loss_from='method' never calls compute_loss_func: leave one of them out. With loss_from='auto' the "
            "function is given the outputs on the method's history"
        )
    if asked != "auto":
        return asked
    return "trainer" if own or function or router else "method"


def smoothed(method: Any, label_smoothing: float) -> Any:
    """The method with the trainer's ``label_smoothing_factor`` in its cross-entropy.

    Raises:
        UserError: the method has another objective, or a smoothing of its own.

    >>> from freerun.methods import teacher_forcing
    >>> smoothed(teacher_forcing(), 0.1)
    teacher_forcing(objective=CrossEntropy(label_smoothing=0.1))
    """
    if not label_smoothing:
        return method
    objective = getattr(method, "objective", None)
    if (isinstance(objective, str) and objective in ("auto", "cross_entropy")) or objective == CrossEntropy():
        return replace(method, objective=CrossEntropy(label_smoothing))
    raise UserError(
        f"label_smoothing_factor={label_smoothing} in the arguments and objective={objective!r} in the method are two "
        "losses: set label_smoothing_factor=0, or leave the method's objective out"
    )


def swap_problems(method: Any) -> list[str]:
    """What of a method is lost where only ids are swapped and the loss is the trainer's."""
    unknown = "its class does not declare own_loss, the phrases that say what of its loss is its own (): nothing"
    problems = [f"{method!r}: {lost}" for lost in getattr(method, "own_loss", (unknown,))]
    if not problems:
        return []
    return [
        *problems,
        "the loss of this trainer is its own (its compute_loss, compute_loss_func, or the model's loss on routing): "
        "only the ids that the model is told are the method's. Leave these arguments out, or, where the trainer's is "
        "plain cross-entropy, set loss_from = 'method' in your class",
    ]


def swap(method: Any, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
    """The batch that a method feeds, and its report."""
    if hasattr(method, "mix_history"):
        return method.mix_history(model, batch, step, key)
    fed: Batch = method.transform(model, batch, step, key)
    changed = int((fed.history != batch.history).sum())
    return fed, replacement_counts(batch, fed.history, changed)
