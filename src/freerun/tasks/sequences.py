"""A model told gold, and told its own output, over many examples in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from freerun.batch import Batch
from freerun.generation import generate
from freerun.metrics.outputs import sequence_errors
from freerun.rollin.model import eval_mode

Make = Callable[[list[int]], Batch]
"""From numbers of examples to their batch."""


def teacher_forced_errors(model: Module, make: Make, lengths: Sequence[int], batch_size: int) -> tuple[Tensor, Tensor]:
    """What each example costs, the model told the gold history.

    Args:
        model: from a Batch to (batch, time, vocab); its mode is restored afterwards.
        make: the batch of some examples, by number.
        lengths: by which batches are put together; one for each example.
        batch_size: examples at once.

    Returns:
        (n,) float64 summed loss in nats; (n,) int64 wrong choices; both over the positions that count.
    """
    losses = torch.zeros(len(lengths), dtype=torch.float64)
    errors = torch.zeros(len(lengths), dtype=torch.int64)
    with eval_mode(model), torch.no_grad():
        for chosen in batches_by_length(lengths, batch_size):
            batch = make(chosen).to(_device(model))
            outputs = model(batch).float()
            loss = F.cross_entropy(outputs.transpose(1, 2), batch.targets, reduction="none")
            losses[chosen] = loss.double().masked_fill(~batch.mask, 0).sum(1).cpu()
            errors[chosen] = sequence_errors(outputs, batch.targets, batch.mask).cpu()
    return losses, errors


def free_run(
    model: Module,
    make: Make,
    lengths: Sequence[int],
    batch_size: int,
    *,
    length: int,
    end: int | None = 0,
    beams: int = 1,
    length_penalty: float = 0.0,
) -> list[list[int]]:
    """What a model says to each example, told its own output: ids up to the end symbol 0 and zeros after it.

    Args:
        model: its mode is restored afterwards.
        make: the batch of some examples' sources, by number.
        lengths: by which batches are put together; one for each example.
        batch_size: examples at once.
        length: ids at most, the end symbol included.
        end: the end symbol; None: there is none.
        beams: 1 is greedy.
        length_penalty: as in ``generate``.
    """
    said: list[list[int]] = [[]] * len(lengths)
    with eval_mode(model), torch.no_grad():
        for chosen in batches_by_length(lengths, batch_size):
            batch = make(chosen).to(_device(model))
            found = generate(model, batch, length=length, end=end, beams=beams, length_penalty=length_penalty)
            for i, entries in zip(chosen, found.entries.tolist(), strict=True):
                said[i] = entries
    return said


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of the examples in batches of like length, so that little is padding.

    >>> list(batches_by_length([3, 1, 2], 2))
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _device(model: Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
