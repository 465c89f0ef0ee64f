"""Loops by hand: a step with scheduled sampling as a person writes it who knows what costs, and as in tutorials.

The good ones draw gates and noise in advance, embed gold at once, compute the vocabulary only for the rows whose next
entry is their own, end after the last of these, and train in one forward. Gates and draws are the loops' own, so their
histories are not those of the engines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import freerun as fr
from freerun.draws import Sample
from freerun.keys import fold
from freerun.models import RecurrentSeq2Seq
from freerun.models.recurrent import Encoded
from freerun.rollin import Replacement, eval_mode

__all__ = ["HAND", "cached_loop", "full_prefix_loop", "recurrent_loop", "replayed_masks"]


def _loss(logits: Tensor, batch: fr.Batch) -> Tensor:
    return F.cross_entropy(logits[batch.mask], batch.targets[batch.mask])


def _mixed(logits: Tensor, batch: fr.Batch, t: int, ratio: float) -> Tensor:
    """(batch,) entry fed at position t: gold or a sample, one gate per row."""
    own = torch.multinomial(logits.detach().float().softmax(-1), 1)[:, 0]
    keep = (torch.rand(batch.size, device=logits.device) < ratio) | ~batch.replaceable[:, t]
    return torch.where(keep, batch.history[:, t], own)


class _Own:
    """Which entries are a model's own, and the noise of their draws, both in advance."""

    def __init__(self, batch: fr.Batch, ratio: float) -> None:
        own = (torch.rand(batch.targets.shape, device=batch.targets.device) >= ratio) & batch.replaceable
        times, rows = own.t().nonzero(as_tuple=True)
        counts = torch.bincount(times, minlength=batch.time).tolist()
        self.rows, self.noise = rows.split(counts), torch.rand(len(rows), 1, device=rows.device).split(counts)
        self.last = max((t for t, count in enumerate(counts) if count), default=-1)

    def draw(self, logits: Tensor, t: int) -> Tensor:
        """(rows,) ids by the inverse of the distribution function."""
        sums = logits.float().softmax(-1).cumsum(-1)
        return torch.searchsorted(sums, self.noise[t] * sums[:, -1:])[:, 0].clamp_max(sums.shape[-1] - 1)


def recurrent_loop(model: RecurrentSeq2Seq, batch: fr.Batch, ratio: float) -> Tensor:
    """A loop of cells without gradient, attention and projection for the rows that need them; the loss."""
    history, own = batch.history.clone(), _Own(batch, ratio)
    with torch.no_grad(), eval_mode(model):
        source, weights = _started(model, batch)
        h, c = source.hidden[0], source.cell[0]
        inputs = model.embedding(history)
        x = model.start_vector.expand(batch.size, -1)
        for t in range(own.last + 1):
            h, c = torch.lstm_cell(x, (h, c), *weights)
            rows = own.rows[t]
            if len(rows):
                drawn = own.draw(_read(model, h[rows], source.memory[rows], source.padding[rows]), t)
                history[rows, t] = drawn
                inputs[rows, t] = model.embedding(drawn).to(inputs.dtype)
            x = inputs[:, t]
    return _loss(model(batch.replace(history=history)), batch)


def _started(model: RecurrentSeq2Seq, batch: fr.Batch) -> tuple[Encoded, tuple[Tensor, ...]]:
    layer = model.decoder
    encoded = batch.context if isinstance(batch.context, Encoded) else model.encode(batch).context
    return encoded, (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)


def _read(model: RecurrentSeq2Seq, h: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
    scores = torch.bmm(memory, model.query(h)[:, :, None])[:, :, 0].masked_fill_(padding, -torch.inf)
    attended = torch.bmm(scores.softmax(-1)[:, None], memory)[:, 0]
    return model.out(torch.tanh(model.combine(torch.cat([h, attended], -1))))


def recurrent_loop_with_graph(model: RecurrentSeq2Seq, batch: fr.Batch, ratio: float) -> Tensor:
    """Cell, attention, projection and a sample at every step, with the graph kept: no second forward; the loss."""
    source, weights = _started(model, batch)
    h, c = source.hidden[0], source.cell[0]
    x = model.start_vector.expand(batch.size, -1)
    outputs: list[Tensor] = []
    for t in range(batch.time):
        h, c = torch.lstm_cell(x, (h, c), *weights)
        logits = _read(model, h, source.memory, source.padding)
        outputs.append(logits)
        if t + 1 < batch.time:
            x = model.embedding(_mixed(logits, batch, t, ratio))
    return _loss(torch.stack(outputs, 1), batch)


def cached_loop(model: Any, batch: fr.Batch, ratio: float) -> Tensor:
    """A loop over a static key-value cache without gradient, the vocabulary for the rows that need it; the loss.

    The cache is the library's, which is allocated once.
    """
    history, own = batch.history.clone(), _Own(batch, ratio)
    with torch.no_grad(), eval_mode(model):
        state = model.start(batch)
        inputs = model.embed(history[:, : max(1, own.last)])
        for t in range(own.last + 1):
            rows = own.rows[t]
            if len(rows):
                drawn = own.draw(model.output(state, None if len(rows) == batch.size else rows), t)
                history[rows, t] = drawn
                if t < own.last:
                    inputs[rows, t] = model.embed(drawn).to(inputs.dtype)
            if t < own.last:
                state = model.step(state, inputs[:, t])
    return _loss(model(batch.replace(history=history)), batch)


def full_prefix_loop(model: Any, batch: fr.Batch, ratio: float, graph: bool) -> Tensor:
    """A forward of the full prefix for every position; the loss.

    With ``graph`` the loss is of the outputs of all these forwards; without, of one more forward.
    """
    history = batch.history.clone()
    outputs: list[Tensor] = []
    with torch.set_grad_enabled(graph):
        for t in range(batch.time if graph else batch.time - 1):
            logits = model(_prefix(batch, history, t + 1))[:, t]
            outputs.append(logits)
            # not in-place: with a graph the history fed before is still needed
            history = history.index_copy(
                1, torch.tensor([t]).to(logits.device), _mixed(logits, batch, t, ratio)[:, None]
            )
    return _loss(torch.stack(outputs, 1) if graph else model(batch.replace(history=history)), batch)


def _prefix(batch: fr.Batch, history: Tensor, time: int) -> fr.Batch:
    return fr.Batch(batch.targets[:, :time], history[:, :time], batch.mask[:, :time], batch.context)


def replayed_masks(model: Any, batch: fr.Batch, ratio: float, key: int) -> fr.Outcome:
    """Parallel passes *with* dropout, with the same masks in each pass and in the training forward.

    The masks come from the global generator, seeded again before every forward, so every pass must have the shape of
    the training forward: no rows are dropped. Measured here only: the library rolls in without dropout. Own entries
    follow another law, that of the model with these masks.
    """
    keep = fr.gates.resolve("token")(batch, ratio, fold(key, "gate", 0))
    plan = Replacement.of(batch, keep, Sample(coupling="gumbel"), fold(key, "draw", 0))
    every = torch.arange(plan.number, device=batch.history.device)
    history, passes = batch.history, 0
    with torch.no_grad():
        for _ in range(plan.longest + 1):
            torch.manual_seed(key)
            hidden = model.hidden(batch.replace(history=history))[plan.positions]
            own = plan.choose(hidden, model.head, every, history)
            passes += 1
            if torch.equal(own, history[plan.positions]):
                break
            history = history.index_put(plan.positions, own)
    torch.manual_seed(key)
    fed = batch.replace(history=history)
    report = {"passes": passes, "work": float(passes), "certified": "fixed point", "replaced": plan.number}
    return fr.teacher_forcing().finish(model(fed), fed, report)


HAND: dict[str, dict[str, Any]] = {
    "lstm-attention": {"by hand": recurrent_loop, "by hand, graph kept": recurrent_loop_with_graph},
}
"""The loops by kind of model; others have the one over a cache."""
