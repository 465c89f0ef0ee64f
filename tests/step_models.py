"""Models written as a decoder step: the translation tutorial's, two LSTM layers, and real values."""

from typing import Any, ClassVar

import torch
from torch import nn

import freerun as fr
from builders import SOURCE_VOCAB, TARGET_VOCAB

SIZE = 8


class Bahdanau(fr.StepModel):
    """The decoder of the translation tutorial: additive attention, a GRU cell's hidden state of (1, batch, size)."""

    batch_dim: ClassVar[Any] = {"hidden": 1}

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.source, self.encoder = nn.Embedding(SOURCE_VOCAB, SIZE), nn.GRU(SIZE, SIZE, batch_first=True)
        self.embedding, self.gru = nn.Embedding(TARGET_VOCAB + 1, SIZE), nn.GRU(2 * SIZE, SIZE, batch_first=True)
        self.query, self.keys, self.score = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 1)
        self.out, self.dropout = nn.Linear(SIZE, TARGET_VOCAB), nn.Dropout(dropout)

    def start(self, batch):
        memory, hidden = self.encoder(self.source(batch.context["source"]))
        state = {"hidden": hidden, "memory": memory, "mask": batch.context["source_mask"]}
        return torch.full((batch.size,), TARGET_VOCAB), state

    def step(self, entries, state):
        memory = state["memory"]
        scores = self.score(torch.tanh(self.query(state["hidden"].transpose(0, 1)) + self.keys(memory)))[..., 0]
        weights = scores.masked_fill(~state["mask"], -torch.inf).softmax(-1)
        attended = weights[:, None] @ memory
        inputs = torch.cat([self.dropout(self.embedding(entries))[:, None], attended], -1)
        outputs, hidden = self.gru(inputs, state["hidden"])
        return self.out(outputs[:, 0]), state | {"hidden": hidden}, {"attention": weights}


class TwoLayers(fr.StepModel):
    """An ``nn.LSTM`` of two layers, whose state is a tuple with the batch in dimension 1."""

    batch_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(TARGET_VOCAB + 1, SIZE), nn.LSTM(SIZE, SIZE, 2)
        self.source, self.out = nn.Embedding(SOURCE_VOCAB, SIZE), nn.Linear(SIZE, TARGET_VOCAB)

    def start(self, batch):
        first = self.source(batch.context["source"]).mean(1).expand(2, -1, -1).contiguous()
        return torch.full((batch.size,), TARGET_VOCAB), (first, torch.zeros_like(first))

    def step(self, entries, state):
        hidden, state = self.lstm(self.embedding(entries)[None], state)
        return self.out(hidden[0]), state


class Values(fr.StepModel):
    """A real-valued decoder step with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(2, SIZE), nn.Linear(SIZE, 2)

    def start(self, batch):
        return torch.zeros(batch.size, 2, dtype=torch.float64), batch.context

    def step(self, entries, state):
        state = self.cell(entries, state)
        return entries + self.out(state), state


def lively(cls, **arguments):
    torch.manual_seed(4)
    model = cls(**arguments).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def numbers(size: int = 4, time: int = 6) -> fr.Batch:
    g = torch.Generator().manual_seed(0)
    values = torch.randn(size, time, 2, generator=g, dtype=torch.float64)
    mask = torch.arange(time) < torch.randint(2, time + 1, (size,), generator=g)[:, None]
    context = torch.randn(size, SIZE, generator=g, dtype=torch.float64)
    return fr.Batch(values, mask=mask, context=context, rows=torch.arange(size) + 10)
