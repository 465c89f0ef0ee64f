"""The naive, obviously right loops for values: only keys are shared with the library."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.keys import uniform


def gaussian_value(outputs: Tensor, width: int, key: int, row: Tensor, position: int) -> Tensor:
    """A sample of a Gaussian head at one place, number by number: Box and Muller's."""
    values = []
    for v in range(width):
        u1, u2 = (float(uniform(key, row, torch.tensor(position), torch.tensor(v), torch.tensor(n))) for n in (0, 1))
        scale = math.log1p(math.exp(float(outputs[width + v]))) + 1e-4
        values.append(float(outputs[v]) + scale * math.sqrt(-2 * math.log(1 - u1)) * math.cos(2 * math.pi * u2))
    return torch.tensor(values, dtype=outputs.dtype)


@torch.no_grad()
def full_prefix_values(
    model: Callable[[Batch], Tensor], batch: Batch, keep: Tensor, draw: str = "point", key: int = 0
) -> Tensor:
    """The mixed history, position by position, with a full forward for every one of them."""
    history, width = batch.history.clone(), batch.history.shape[2]
    for t in range(batch.time):
        outputs = model(batch.replace(history=history.clone()))
        for b in range(batch.size):
            if keep[b, t]:
                continue
            said = outputs[b, t]
            if draw == "gaussian":
                history[b, t] = gaussian_value(said, width, key, batch.row_numbers[b], t)
            else:
                history[b, t] = said[:width]
    return history
