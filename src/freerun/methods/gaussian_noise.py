"""Gaussian noise on the values that are fed: the control, plain or as large as the model's own error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.errors import UserError
from freerun.gates import Token
from freerun.keys import fold, uniform
from freerun.methods.base import SHARED, Citation, TransformMethod, change_report
from freerun.methods.first_pass import said
from freerun.methods.unrolled_loss import refuse_ids
from freerun.objectives import Objective
from freerun.rollin import some
from freerun.schedules import Schedule
from freerun.types import Batch

__all__ = ["GaussianNoise", "gaussian_noise"]


@dataclass(frozen=True, repr=False)
class GaussianNoise(TransformMethod):
    """Add noise to entries of the history; targets stay clean.

    ``h_t = y_t + std e_t``, e_t standard normal, with probability ``rate``, else ``y_t``. With ``std="matched"`` it is
    as large as the model's own one-step error at that update, channel by channel: the control that separates "own
    errors" from "any errors of that size". Its coins are those of scheduled sampling with ``teacher_forcing_ratio = 1 -
    rate``.

    Args:
        std: of the noise, in units of the values (normalised ones, where they are); a number of 0 or more, a schedule,
            or ``"matched"`` (one more forward: the root mean square of prediction minus gold, told gold, over the
            entries of the batch it is given that may be replaced; a micro-batch measures its own).
        rate: probability that an entry gets noise, in [0, 1]; a number or a schedule.
        objective: ``"auto"`` (MSE), or another.

    Raises:
        UserError: arguments outside their range; targets that are ids; a model that predicts a distribution, with
            ``"matched"``.

    What it is not: noise that grows along the sequence (the random walk of Sanchez-Gonzalez et al. 2020), nor noise on
    the targets.

    References: Sanchez-Gonzalez et al. 2020, Learning to simulate complex physics with graph networks, ICML,
    arXiv:2002.09405 (noise against the drift of rollouts); Bishop 1995 (noise as regularisation).

    >>> GaussianNoise("matched", rate=0.5)
    gaussian_noise(std='matched', rate=0.5)
    """

    std: float | str | Schedule
    rate: float | Schedule = 1.0
    objective: str | Objective = "auto"

    name: ClassVar[str] = "gaussian_noise"
    summary: ClassVar[str] = "Gaussian noise on the values fed: the noise control for values"
    only_for: ClassVar[tuple[str, str] | None] = ("values", "token_noise")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"std": (0.0, math.inf), "rate": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t + std e_t with probability rate(step), else y_t;  loss = |f(h_<t, x) - y_t|^2",
        reference="Sanchez-Gonzalez, A., Godwin, J., Pfaff, T., Ying, R., Leskovec, J. and Battaglia, P. W. (2020). "
        "Learning to simulate complex physics with graph networks. ICML. arXiv:2002.09405 (there the noise is a random "
        "walk)",
        bibtex="""@inproceedings{sanchez2020learning,
  author    = {Sanchez-Gonzalez, Alvaro and Godwin, Jonathan and Pfaff, Tobias and Ying, Rex and Leskovec, Jure
               and Battaglia, Peter W.},
  title     = {Learning to Simulate Complex Physics with Graph Networks},
  booktitle = {International Conference on Machine Learning},
  year      = {2020}
}""",
    )

    def __post_init__(self) -> None:
        problems: list[str] = []
        if isinstance(self.std, str) and self.std != "matched":
            problems.append(f"std must be a number of 0 or more, a schedule or 'matched'; got {self.std!r}")
        problems += self.problems() if not problems else []
        if problems:
            raise UserError(problems)

    def scheduled(self) -> Any:
        """The parameters that may be schedules; a matched std is none."""
        return ((name, given) for name, given in super().scheduled() if (name, given) != ("std", "matched"))

    @property
    def asks_model(self) -> bool:
        """Matched noise is measured on the model's error."""
        return self.std == "matched"

    def feed(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with noise on its history."""
        refuse_ids(self.name, batch)
        rate = self.value("rate", step)
        noisy = batch.replaceable & ~Token()(batch, 1.0 - rate, fold(key, "gate", int(step)))
        rows, times = noisy.nonzero(as_tuple=True)
        std, passes = self._std(model, batch, step, len(rows))
        history = batch.history
        if len(rows) and bool((std > 0).any()):
            drawn = _normal(fold(key, "noise", int(step)), batch.row_numbers[rows], times, history.shape[-1])
            history = history.index_put((rows, times), history[rows, times] + (std * drawn).to(history.dtype))
        report = change_report(batch, history, len(rows))
        level = float(std.square().mean().sqrt())
        return batch.made(history=history), {
            "std": level, "rate": rate, **report, "passes": passes, "work": float(passes), "engine": "none",
        }  # fmt: skip

    def _std(self, model: Any, batch: Batch, step: int, replaced: int) -> tuple[Tensor, int]:
        """(value,) or () float64 standard deviations, and the passes they took."""
        device = batch.history.device
        if self.std != "matched":
            return torch.tensor(self.value("std", step), dtype=torch.float64, device=device), 0
        if not some(model, replaced > 0):
            return torch.zeros((), dtype=torch.float64, device=device), 0
        outputs = said(model, batch)
        if not replaced:
            return torch.zeros((), dtype=torch.float64, device=device), 1
        if outputs.shape != batch.targets.shape:
            raise UserError(
                f"std='matched' compares predictions {tuple(outputs.shape)} with targets {tuple(batch.targets.shape)}: "
                "the model predicts a distribution; give std a number"
            )
        # where noise may fall, wherever the loss lies: the two are independent choices
        std = (outputs - batch.history)[batch.replaceable].double().square().mean(0).sqrt()
        if not bool(std.isfinite().all()):
            raise UserError(f"std='matched' cannot be measured: the model's one-step error is {std.tolist()}")
        return std, 1


def _normal(key: int, rows: Tensor, times: Tensor, channels: int) -> Tensor:
    """(n, channels) standard normal numbers, a function of (key, row, position, channel), by Box and Muller."""
    which = torch.arange(channels, device=rows.device)
    first, second = (uniform(key, rows[:, None], times[:, None], which, torch.full_like(which, n)) for n in range(2))
    # u = 0 has probability 2^-53 and would be infinite
    return (-2 * first.clamp_min(2.0**-54).log()).sqrt() * torch.cos(2 * math.pi * second)


gaussian_noise = GaussianNoise
