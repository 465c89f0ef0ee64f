"""Small real models and batches that many tests use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from freerun.models import RecurrentSeq2Seq
from freerun.types import Batch

SOURCE_VOCAB, TARGET_VOCAB = 6, 5


def seq2seq(cell: str = "lstm", attention: str | None = "luong", **changes) -> RecurrentSeq2Seq:
    """A tiny recurrent encoder-decoder in float64, with weights large enough to depend on its history."""
    torch.manual_seed(7)
    settings = {"size": 8, "layers": 1} | changes
    model = RecurrentSeq2Seq(SOURCE_VOCAB, TARGET_VOCAB, cell=cell, attention=attention, **settings).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def ragged(size: int = 4, time: int = 7, source_time: int = 5, seed: int = 3) -> Batch:
    """Targets of differing lengths, the first row the longest; padding 0, masked."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(1, TARGET_VOCAB, (size, time), generator=g)
    lengths = torch.randint(2, time + 1, (size,), generator=g)
    lengths[0] = time
    mask = torch.arange(time) < lengths[:, None]
    targets = targets.masked_fill(~mask, 0)
    targets[torch.arange(size), lengths - 1] = 0  # the end symbol
    source = torch.randint(1, SOURCE_VOCAB, (size, source_time), generator=g)
    source_lengths = torch.randint(2, source_time + 1, (size,), generator=g)
    source_mask = torch.arange(source_time) < source_lengths[:, None]
    context = {"source": source.masked_fill(~source_mask, 0), "source_mask": source_mask}
    return Batch(targets, targets, mask, context, rows=torch.arange(size) + 10)


class ForwardOnly(nn.Module):
    """A model stripped to its forward: no encode, no step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of every parameter by name (zeros where there is none)."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_same_gradients(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Largest difference relative to the largest gradient, over all parameters."""
    largest = max(float(g.abs().max()) for g in b.values())
    for name, gradient in a.items():
        difference = float((gradient - b[name]).abs().max())
        assert difference <= tolerance * largest, f"{name}: {difference:.3e} of {largest:.3e}"
