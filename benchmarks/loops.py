"""The loops people write: a step with scheduled sampling as it stands in tutorials and issue threads.

They throw their own coins and draw by ``torch.multinomial``, so their histories are not those of the engines.
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

__all__ = ["cached_loop", "full_prefix_loop", "recurrent_loop", "replayed_masks"]


def _loss(logits: Tensor, batch: fr.Batch) -> Tensor:
    return F.cross_entropy(logits[batch.mask], batch.targets[batch.mask])


def _mixed(logits: Tensor, batch: fr.Batch, t: int, ratio: float) -> Tensor:
    """(batch,) entry fed at position t: gold or a sample, one coin per row."""
    own = torch.multinomial(logits.detach().float().softmax(-1), 1)[:, 0]
    keep = (torch.rand(batch.size, device=logits.device) < ratio) | ~batch.replaceable[:, t]
    return torch.where(keep, batch.history[:, t], own)


def recurrent_loop(model: RecurrentSeq2Seq, batch: fr.Batch, ratio: float) -> Tensor:
    """Cell, attention, projection and a sample at every step, with the graph kept; the loss."""
    source: Encoded = batch.context
    layer = model.decoder
    weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
    h, c = source.hidden[0], source.cell[0]
    x = model.start_vector.expand(batch.size, -1)
    outputs: list[Tensor] = []
    for t in range(batch.time):
        h, c = torch.lstm_cell(x, (h, c), *weights)
        scores = torch.bmm(source.memory, model.query(h)[:, :, None])[:, :, 0]
        attended = torch.bmm(scores.softmax(-1)[:, None], source.memory)[:, 0]
        logits = model.out(torch.tanh(model.combine(torch.cat([h, attended], -1))))
        outputs.append(logits)
        if t + 1 < batch.time:
            x = model.embedding(_mixed(logits, batch, t, ratio))
    return _loss(torch.stack(outputs, 1), batch)


def cached_loop(model: Any, batch: fr.Batch, ratio: float) -> Tensor:
    """A loop over a key-value cache without gradient, every row and the whole vocabulary at every step; the loss.

    The cache is the library's, which is allocated once and not concatenated step by step: kind to the loop.
    """
    history = batch.history.clone()
    with torch.no_grad(), eval_mode(model):
        state = model.start(batch)
        for t in range(batch.time - 1):
            history[:, t] = _mixed(model.output(state), batch, t, ratio)
            state = model.step(state, model.embed(history[:, t]))
    return _loss(model(batch.replace(history=history)), batch)


def full_prefix_loop(model: Any, batch: fr.Batch, ratio: float, graph: bool) -> Tensor:
    """A forward of the whole prefix for every position; the loss.

    With ``graph`` the outputs of all these forwards are what is differentiated; without, one more forward is.
    """
    history = batch.history.clone()
    outputs: list[Tensor] = []
    with torch.set_grad_enabled(graph):
        for t in range(batch.time if graph else batch.time - 1):
            logits = model(_prefix(batch, history, t + 1))[:, t]
            outputs.append(logits)
            # out of place: with a graph the history fed before is still needed
            history = history.index_copy(
                1, torch.tensor([t]).to(logits.device), _mixed(logits, batch, t, ratio)[:, None]
            )
    return _loss(torch.stack(outputs, 1) if graph else model(batch.replace(history=history)), batch)


def _prefix(batch: fr.Batch, history: Tensor, time: int) -> fr.Batch:
    return fr.Batch(batch.targets[:, :time], history[:, :time], batch.mask[:, :time], batch.context)


def replayed_masks(model: Any, batch: fr.Batch, ratio: float, key: int) -> fr.Outcome:
    """Parallel passes *with* dropout on, the same masks in each and in the forward that is differentiated.

    The masks come from the global generator, seeded anew before every forward, so every pass has to have the shape
    of the training forward: no rows are dropped. Measured here only; the library rolls in without dropout. The law
    is another: own entries are what the model with these masks would say.
    """
    keep = fr.gates.resolve("token")(batch, ratio, fold(key, "gate", 0))
    plan = Replacement.of(batch, keep, Sample(coupling="gumbel"), fold(key, "draw", 0))
    every = torch.arange(plan.number, device=batch.history.device)
    history, passes = batch.history, 0
    with torch.no_grad():
        for _ in range(plan.longest + 1):
            torch.manual_seed(key)
            own = plan.choose(model.hidden(batch.replace(history=history))[plan.positions], model.head, every)
            passes += 1
            if torch.equal(own, history[plan.positions]):
                break
            history = history.index_put(plan.positions, own)
    torch.manual_seed(key)
    fed = batch.replace(history=history)
    report = {"passes": passes, "work": float(passes), "certified": "fixed point", "replaced": plan.number}
    return fr.teacher_forcing().finish(model(fed), fed, report)
