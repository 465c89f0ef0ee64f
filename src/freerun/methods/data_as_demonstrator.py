"""Data as Demonstrator: free-running predictions become inputs, with the recorded next value as target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch

from freerun import draws
from freerun.batch import Batch
from freerun.errors import UserError, whole
from freerun.methods.base import Citation, TransformMethod, encode_once, zero_unused
from freerun.methods.multi_step import refuse_ids
from freerun.methods.report import replacement_counts
from freerun.methods.scheduled_sampling import FreeRunning
from freerun.objectives import Objective
from freerun.rollin import Engine
from freerun.rollin.training import counted_forward
from freerun.types import Outcome

Model = TypeVar("Model")


def demonstrations(model: Any, batch: Batch, draw: str | draws.Draw = "auto", key: int = 0) -> Batch:
    """The batch with the model's own free run for history and the recorded values for targets; no gradient.

    Args:
        model: the model.
        batch: values; its replaceable entries become the model's own.
        draw: ``"auto"`` feeds values as predicted.
        key: for draws with noise.
    """
    refuse_ids("data_as_demonstrator", batch)
    with torch.no_grad():
        return FreeRunning(draw, gradient="none").transform(model, batch, step=0, key=key)


def data_as_demonstrator(
    learn: Callable[[Sequence[Batch]], Model], data: Batch, rounds: int, score: Callable[[Model], float]
) -> tuple[Model, list[float]]:
    """The published algorithm: learn, roll out, add what was visited with its recorded answers, learn again.

    ``D = data; f_0 = learn(D); for n = 1..rounds: D = D + demonstrations(f_{n-1}, data); f_n = learn(D)``; the f_n with
    the least score is returned (NaN is the worst).

    Args:
        learn: from batches to a model trained on all of them by one-step prediction (``teacher_forcing`` on batches
            whose history is gold), anew or from the last one.
        data: all training sequences.
        rounds: how often to roll out, at least 1; D grows by ``data`` each time.
        score: a model's multi-step error on validation data.

    Returns:
        the best model, and the scores of f_0 ... f_rounds.

    Raises:
        UserError: no rounds; targets that are ids.

    What it is not: a gradient through roll-outs; nor ``data_as_demonstrator_online``, which keeps no old roll-outs.

    Reference: Venkatraman, Hebert and Bagnell 2015, Improving multi-step prediction of learned time series models,
    AAAI.

    >>> values = torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> data = Batch(values, values, torch.ones(1, 3, dtype=torch.bool))
    >>> class Doubles:  # twice the previous entry, 1 at first
    ...     def __call__(self, batch):
    ...         return torch.cat([torch.ones(1, 1, 1), 2 * batch.history[:, :-1]], 1)
    >>> best, scores = data_as_demonstrator(lambda batches: Doubles(), data, 2, lambda model: 0.0)
    >>> scores
    [0.0, 0.0, 0.0]
    """
    if whole(rounds) is None or rounds < 1:
        raise UserError(f"rounds must be at least 1, a whole number; got {rounds!r}")
    refuse_ids("data_as_demonstrator", data)
    gathered = [data]
    models = [learn(gathered)]
    scores = [score(models[0])]
    for _ in range(rounds):
        gathered.append(demonstrations(models[-1], data))
        models.append(learn(gathered))
        scores.append(score(models[-1]))
    # a free run that has left all bounds may score NaN, which compares with nothing
    return models[min(range(len(scores)), key=lambda n: (math.isnan(scores[n]), scores[n]))], scores


@dataclass(frozen=True, repr=False)
class DataAsDemonstratorOnline(TransformMethod):
    """Data as Demonstrator, update by update: one-step loss on gold and on the model's present free run, both.

    ``loss = (sum_t |f(y_<t) - y_t|^2 + sum_t |f(x_<t) - y_t|^2) / (2 T)``, x the model's own free run, without gradient
    through it. Where the published algorithm gathers the roll-outs of all earlier models and learns anew, this one has
    those of the present model only, hence its suffix.

    Args:
        draw: ``"auto"`` feeds values as predicted.
        engine: as in ``scheduled_sampling``.
        objective: ``"auto"`` (MSE), or another.

    With ``horizon`` roll-outs are capped: once a free run has left the neighbourhood of the recorded one, its recorded
    answers lead back to it in one step, which no dynamics does.

    Raises:
        UserError: arguments outside their range; targets that are ids.

    What it is not: the published algorithm, which is ``freerun.methods.data_as_demonstrator``.

    Reference: Venkatraman, Hebert and Bagnell 2015, Improving multi-step prediction of learned time series models,
    AAAI.

    >>> DataAsDemonstratorOnline(horizon=10)
    data_as_demonstrator_online(horizon=10)
    """

    draw: str | draws.Draw = "auto"
    engine: Engine = "auto"
    objective: str | Objective = "auto"

    name: ClassVar[str] = "data_as_demonstrator_online"
    summary: ClassVar[str] = "one-step loss on gold and on the present model's free run"
    only_for: ClassVar[tuple[str, str] | None] = ("values", "scheduled_sampling")
    citation: ClassVar[Citation] = Citation(
        formula="loss = (sum_t |f(y_<t) - y_t|^2 + sum_t |f(x_<t) - y_t|^2) / 2T, x_t = sg[f(x_<t)]",
        reference="Venkatraman, A., Hebert, M. and Bagnell, J. A. (2015). Improving multi-step prediction of learned "
        "time series models. AAAI (there roll-outs of all earlier models are gathered)",
        bibtex="""@inproceedings{venkatraman2015improving,
  author    = {Venkatraman, Arun and Hebert, Martial and Bagnell, J. Andrew},
  title     = {Improving Multi-Step Prediction of Learned Time Series Models},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2015}
}""",
    )

    @property
    def own_loss(self) -> tuple[str, ...]:
        """The loss is a sum over two histories."""
        return (*super().own_loss, "the loss is on gold history and on the free run, both")

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with the model's free run for history."""
        refuse_ids(self.name, batch)
        return FreeRunning(self.draw, engine=self.engine, gradient="none").mix_history(model, batch, step, key)

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: the loss on gold and on the free run; outputs and history are the free run's."""
        shared = encode_once(model, zero_unused(batch))
        mixed, report = self.mix_history(model, shared, step, key)
        own = self.finish(counted_forward(model, mixed, self.objective), mixed.made(context=batch.context), report)
        if shared.missing is not None:
            gold = self.fill(model, shared, {}, step, key)
        else:
            gold = self.finish(
                counted_forward(model, shared, self.objective), shared, replacement_counts(shared, shared.history, 0)
            )
        more = {name: float(report[name]) + 1 for name in ("passes", "work")}
        return own.made(total=own.total + gold.total, count=own.count + gold.count, report={**report, **more})


data_as_demonstrator_online = DataAsDemonstratorOnline
