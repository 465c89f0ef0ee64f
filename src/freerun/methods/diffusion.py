"""Noise of a drawn level on each entry of the history, with the level known to the model: diffusion forcing's noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.batch import Batch, shape_of
from freerun.errors import UserError, whole
from freerun.gates import Token
from freerun.keys import fold, uniform
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.multi_step import refuse_ids
from freerun.methods.noise import standard_normal
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.rollin import unwrap
from freerun.schedules import Schedule


def _cosine(level: Tensor) -> Tensor:
    """Nichol and Dhariwal 2021: ``cos^2((u + s) / (1 + s) pi / 2)``, divided by its value at 0; s = .008."""
    return (((level + 0.008) / 1.008 * math.pi / 2).cos() / math.cos(0.008 / 1.008 * math.pi / 2)).square()


def _linear(level: Tensor) -> Tensor:
    """Ho et al. 2020: variances that grow linearly, .1 to 20 a unit of u; for 1,000 levels theirs of 1e-4 to .02."""
    return (-(0.1 * level + (20.0 - 0.1) / 2 * level.square())).exp()


SIGNALS: dict[str, Callable[[Tensor], Tensor]] = {"cosine": _cosine, "linear": _linear}
"""Which share of an entry's variance is left at a level u in [0, 1): 1 at 0."""


@dataclass(frozen=True, repr=False)
class DiffusionNoise(TransformMethod):
    """Noise each entry of the history by a level of its own, which the model reads; targets stay clean.

    ``h_t = c + sqrt(abar(u)) (y_t - c) + sqrt(1 - abar(u)) s e_t``, ``u = k / K``, with k drawn evenly from 0 to K - 1
    for each entry and e_t standard normal; with probability 1 - rate, and where there is no gold, k = 0: the entry is
    clean. c and s are the units that the network reads, as the noise is made for values of unit variance: 0 and 1, the
    batch's own (normalised ones, where they are); in a ``WindowScaled`` model centre and scale of the row's window. The
    level reaches the model as ``context["level"]``, u (batch, time), aligned with the history. Where a context has no
    level every entry is clean, so evaluation and free running are with level 0.

    Args:
        levels: K; 1: no noise, which is teacher forcing.
        noise: how much of an entry is left: ``"cosine"`` (Nichol and Dhariwal 2021, arXiv:2102.09672) or ``"linear"``
            (Ho et al. 2020, arXiv:2006.11239).
        rate: probability that an entry draws a level, in [0, 1]; a number or a schedule.
        objective: ``"auto"`` (MSE, or the likelihood of the head), or another.

    Raises:
        UserError: arguments outside their range; targets that are ids; a model without the attribute ``reads_level``
            (forecasters have it with ``level=True``); a context that cannot hold a level, or does.

    What it is not: diffusion. Each prediction is one forward that outputs the next entry, and no noise is taken off in
    several steps; nothing is drawn when it generates. ``gaussian_noise`` is noise that the model does not know of.

    References: Chen et al. 2024, Diffusion forcing, NeurIPS, arXiv:2407.01392 (levels drawn for each entry).

    >>> model = lambda batch: torch.zeros_like(batch.targets)
    >>> model.reads_level = True
    >>> fed = DiffusionNoise(levels=4).transform(model, Batch(torch.ones(1, 3, 2)), step=0, key=1)
    >>> fed.context["level"].tolist(), (fed.history != 1).all(-1).tolist()
    ([[0.0, 0.25, 0.5]], [[False, True, True]])
    """

    levels: int = 1000
    noise: str = "cosine"
    rate: float | Schedule = 1.0
    objective: str | Objective = "auto"

    name: ClassVar[str] = "diffusion_noise"
    summary: ClassVar[str] = "noise of a drawn level on each value fed, and the model reads the level"
    feeds_own: ClassVar[bool] = False
    only_for: ClassVar[tuple[str, str] | None] = ("values", "token_noise")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"rate": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="h_t = sqrt(abar_k) y_t + sqrt(1 - abar_k) e_t, k ~ U{0, ..., K-1} for each entry, read by the model; "
        "loss = |f(h_<t, k_<t, x) - y_t|^2",
        reference="Chen, B., Marti Monso, D., Du, Y., Simchowitz, M., Tedrake, R. and Sitzmann, V. (2024). Diffusion "
        "forcing: next-token prediction meets full-sequence diffusion. NeurIPS. arXiv:2407.01392 (there the model "
        "denoises the entry itself; here it predicts the next one)",
        bibtex="""@inproceedings{chen2024diffusion,
  author    = {Chen, Boyuan and Mart{\\'i} Mons{\\'o}, Diego and Du, Yilun and Simchowitz, Max and Tedrake, Russ
               and Sitzmann, Vincent},
  title     = {Diffusion Forcing: Next-token Prediction Meets Full-Sequence Diffusion},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024}
}""",
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        problems: list[str] = []
        if whole(self.levels) is None or self.levels < 1:
            problems.append(f"levels must be a whole number of at least 1; got {self.levels!r}")
        if self.noise not in SIGNALS:
            problems.append(f"noise must be one of {', '.join(SIGNALS)}; got {self.noise!r}")
        return problems + super().problems()

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with noise on its history and the levels in its context; no model call."""
        refuse_ids(self.name, batch)
        rate, inner = self.value("rate", step, key), unwrap(model)
        drawn = batch.replaceable & ~Token()(batch, 1.0 - rate, fold(key, "gate", int(step)))
        if batch.present is not None:
            drawn = drawn & batch.present.any(-1)
        index = torch.arange(batch.time, device=drawn.device)
        number = uniform(fold(key, "level", int(step)), batch.row_numbers[:, None], index) * self.levels
        level = number.floor().clamp_max(self.levels - 1) / self.levels * drawn
        noisy, history, context = level > 0, batch.history, batch.context
        if self.levels > 1 and rate > 0:
            context = _with_level(inner, context, level.to(history.dtype))
            history = self._noised(inner, batch, level, noisy, fold(key, "noise", int(step)))
        report = {"rate": rate, **replacement_counts(batch, history, int(noisy.sum())), "passes": 0, "engine": "none"}
        return batch.made(history=history, context=context, replaced=noisy), report

    def _noised(self, model: Any, batch: Batch, level: Tensor, noisy: Tensor, key: int) -> Tensor:
        """(batch, time, value): the history with noise at the entries ``noisy``."""
        rows, times = noisy.nonzero(as_tuple=True)
        if not len(rows):
            return batch.history
        units: Any = getattr(model, "history_units", None)
        centre, scale = (each[rows, times] for each in units(batch)) if units is not None else (0.0, 1.0)
        left = SIGNALS[self.noise](level[rows, times])[:, None]
        normal = standard_normal(key, batch.row_numbers[rows], times, batch.history.shape[-1])
        gold = batch.history[rows, times]
        mixed = centre + left.sqrt() * (gold - centre) + (1 - left).sqrt() * scale * normal
        return batch.history.index_put((rows, times), mixed.to(gold.dtype))


def _with_level(model: Any, context: Any, level: Tensor) -> dict[str, Any]:
    """The context with the levels, if the model reads them."""
    problems: list[str] = []
    if not getattr(model, "reads_level", False):
        name = getattr(model, "__name__", type(model).__name__)
        problems.append(
            f"diffusion_noise puts the noise level of every entry into context['level'], and {name} reads none: "
            "make a forecaster with level=True (in a recipe: level = true below [model]); a model of yours reads it "
            "beside the entry, absent = 0, and has the attribute reads_level = True; noise without a level is "
            "gaussian_noise"
        )
    if context is not None and not isinstance(context, Mapping):
        problems.append(
            f"diffusion_noise adds 'level' to a context that is a mapping or None; got {shape_of(context)}: put it "
            "into a dict, {'source': ...}"
        )
    elif context is not None and "level" in context:
        problems.append("the batch's context has a 'level', which diffusion_noise would replace: leave it out")
    if problems:
        raise UserError(problems)
    return {**(context or {}), "level": level}


diffusion_noise = DiffusionNoise
