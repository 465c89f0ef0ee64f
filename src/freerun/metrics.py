"""Numbers about outputs beside targets, for ids: what is right, per position and per sequence.

They are teacher-forced or free-running according to the history that the outputs were computed on; whoever
reports them says which.
"""

from __future__ import annotations

import torch
from torch import Tensor

from freerun.errors import UserError

__all__ = ["correct", "sequence_accuracy", "sequence_correct", "sequence_errors", "token_accuracy"]


def correct(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Where the largest output is the target: (batch, time) bool, False outside the mask.

    Args:
        outputs: (batch, time, vocab) logits or probabilities.
        targets: (batch, time) ids.
        mask: (batch, time) bool: positions that count.

    Raises:
        UserError: the shapes do not fit.
    """
    if outputs.dim() != 3 or targets.shape != outputs.shape[:2] or mask.shape != targets.shape:
        raise UserError(
            f"outputs must be (batch, time, vocab), targets and mask (batch, time); got "
            f"{tuple(outputs.shape)}, {tuple(targets.shape)}, {tuple(mask.shape)}"
        )
    return (outputs.argmax(-1) == targets) & mask


def token_accuracy(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Share of the positions in the mask whose largest output is the target; scalar, NaN for an empty mask.

    >>> outputs = torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])
    >>> token_accuracy(outputs, torch.tensor([[0, 0]]), torch.tensor([[True, True]]))
    tensor(0.5000)
    """
    return correct(outputs, targets, mask).sum() / mask.sum()


def sequence_errors(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Number of wrong positions of each row: (batch,) int64."""
    return mask.sum(-1) - correct(outputs, targets, mask).sum(-1)


def sequence_correct(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Rows that are right at every position of the mask: (batch,) bool.

    On gold history (teacher forcing) this says more than it seems: greedy free running gives exactly the
    target if and only if every teacher-forced choice along the target is right.

    >>> outputs = torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])
    >>> sequence_correct(outputs, torch.tensor([[0, 0]]), torch.tensor([[True, False]]))
    tensor([True])
    """
    return sequence_errors(outputs, targets, mask) == 0


def sequence_accuracy(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Share of the rows that are right everywhere; rows with an empty mask do not count; scalar.

    >>> outputs = torch.tensor([[[2.0, 1.0]], [[2.0, 1.0]]])
    >>> sequence_accuracy(outputs, torch.tensor([[0], [1]]), torch.tensor([[True], [True]]))
    tensor(0.5000)
    """
    counted = mask.any(-1)
    return (sequence_correct(outputs, targets, mask) & counted).sum() / counted.sum().to(torch.float32)
