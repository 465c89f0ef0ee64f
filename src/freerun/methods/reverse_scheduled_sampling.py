"""Reverse scheduled sampling: the warm-up is fed own frames too, at first often, at last never."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun import draws
from freerun.arguments import Arguments
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.keys import uniform
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.multi_step import refuse_ids
from freerun.methods.scheduled_sampling import ScheduledSampling
from freerun.objectives import Objective
from freerun.rollin import Engine
from freerun.schedules import Schedule
from freerun.types import Outcome


@dataclass(frozen=True)
class _TwoRatios(Arguments):
    """A choice for every entry, the known ones with a ratio of their own."""

    known: Tensor
    context_ratio: float
    horizon_ratio: float

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        positions = torch.arange(batch.time, device=batch.history.device)
        ratio = torch.where(self.known, self.context_ratio, self.horizon_ratio)
        return uniform(key, batch.row_numbers[:, None], positions) < ratio


@dataclass(frozen=True, repr=False)
class ReverseScheduledSampling(TransformMethod):
    """Scheduled sampling whose warm-up is fed own entries as well: there P(gold) rises, in the horizon it falls.

    ``h_t = y_t`` with probability r_context(step) for the known entries before the horizon (never the first one) and
    ``teacher_forcing_ratio(step)`` in it, else ``f(h_<t)``, with the whole gradient. It makes the warm-up harder at
    first, so that the model learns to remember over longer times.

    Args:
        context_ratio: P(gold) for the leading entries that are otherwise never replaced, in [0, 1]; published: it
            rises.
        teacher_forcing_ratio: P(gold) for the others; published: it falls.
            ``freerun.methods.reverse(steps)`` gives
            both as published, scaled to a run.
        gradient: as in ``scheduled_sampling``; published: full.
        draw: ``"auto"`` feeds values as predicted.
        engine: as in ``scheduled_sampling``.
        objective: ``"auto"`` (MSE), or another. As published the loss counts the warm-up too: that is the batch's mask.

    Raises:
        UserError: arguments outside their range; targets that are ids; a batch without known entries to replace.

    What it is not: a change of prompts of symbols, which stay as they are.

    Reference: Wang, Wu, Zhang, Gao, Wang, Yu and Long 2022, PredRNN: a recurrent neural network for spatiotemporal
    predictive learning, TPAMI, arXiv:2103.09504.

    >>> ReverseScheduledSampling(0.5, 0.5)
    reverse_scheduled_sampling(context_ratio=0.5, teacher_forcing_ratio=0.5)
    """

    context_ratio: float | Schedule
    teacher_forcing_ratio: float | Schedule
    gradient: str | int = "auto"
    draw: str | draws.Draw = "auto"
    engine: Engine = "auto"
    objective: str | Objective = "auto"

    name: ClassVar[str] = "reverse_scheduled_sampling"
    summary: ClassVar[str] = "own entries in the warm-up too, there fewer and fewer"
    only_for: ClassVar[tuple[str, str] | None] = ("values", "scheduled_sampling")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "context_ratio": (0.0, 1.0), "teacher_forcing_ratio": (0.0, 1.0), **SHARED,
    }  # fmt: skip
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t with probability context_ratio(step) in the warm-up (t > 0), teacher_forcing_ratio(step) in "
        "the horizon, else f(h_<t);  loss = |f(h_<t) - y_t|^2",
        reference="Wang, Y., Wu, H., Zhang, J., Gao, Z., Wang, J., Yu, P. S. and Long, M. (2022). PredRNN: a recurrent "
        "neural network for spatiotemporal predictive learning. IEEE TPAMI. arXiv:2103.09504",
        bibtex="""@article{wang2022predrnn,
  author  = {Wang, Yunbo and Wu, Haixu and Zhang, Jianjin and Gao, Zhifeng and Wang, Jianmin and Yu, Philip S. and
             Long, Mingsheng},
  title   = {{PredRNN}: A Recurrent Neural Network for Spatiotemporal Predictive Learning},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year    = {2022}
}""",
    )

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: warm-up and horizon mixed, and the loss on the mask."""
        opened, inner, ratios = self._opened(batch, step, key)
        outcome = inner.compute(model, opened, step, key)
        fed = outcome.fed.made(eligible=batch.replaceable)
        report = {**outcome.report, "context_ratio": ratios[0], "teacher_forcing_ratio": ratios[1]}
        return outcome.made(fed=fed, report=report)

    def mixed_batch(self, model: Any, batch: Batch, step: int, key: int) -> Batch:
        """The batch that is fed."""
        opened, inner, _ = self._opened(batch, step, key)
        return inner.mixed_batch(model, opened, step, key).made(eligible=batch.replaceable)

    def _opened(self, batch: Batch, step: int, key: int) -> tuple[Batch, ScheduledSampling, tuple[float, float]]:
        """The batch with its warm-up replaceable, and the scheduled sampling that treats both parts."""
        refuse_ids(self.name, batch)
        known = (batch.replaceable.cumsum(1) == 0) & batch.replaceable.any(1, keepdim=True)
        known[:, 0] = False  # nothing is before it
        if not bool(known.any()):
            raise UserError(
                "reverse_scheduled_sampling feeds own entries in the warm-up, and no row has known entries before "
                "those that may be replaced: give batches whose history begins with a warm-up (eligible False), or use "
                "scheduled_sampling"
            )
        ratios = self.value("context_ratio", step, key), self.value("teacher_forcing_ratio", step, key)
        gate = _TwoRatios(known, *ratios)
        inner = ScheduledSampling(
            min(ratios),
            self.draw,
            gate,
            engine=self.engine,
            gradient=self.gradient,
            objective=self.objective,
            target=self.target,
        )
        return batch.made(eligible=batch.replaceable | known), inner, ratios


reverse_scheduled_sampling = ReverseScheduledSampling
