"""Teacher forcing: the model is told the gold history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from freerun.errors import UserError
from freerun.methods.base import Citation, TransformMethod, change_report
from freerun.objectives import Objective
from freerun.types import Batch

__all__ = ["TeacherForcing", "teacher_forcing"]


@dataclass(frozen=True, repr=False)
class TeacherForcing(TransformMethod):
    """Maximum likelihood with the gold history: ``loss = -sum_t log p(y_t | y_<t, x)``.

    Args:
        objective: ``"auto"`` (cross-entropy for ids, MSE for values), ``"cross_entropy"``, ``"mse"`` or a function
            ``(outputs, batch) -> (total, count)``.

    What it is not: a promise about free running. The model never sees its own mistakes.

    Reference: Williams and Zipser 1989, A learning algorithm for continually running fully recurrent neural
    networks.

    >>> import torch
    >>> model = lambda batch: torch.zeros(batch.size, batch.time, 4)
    >>> ids = torch.tensor([[2, 1, 0]])
    >>> round(float(TeacherForcing()(model, Batch(ids, ids, ids >= 0), step=0)), 4)
    1.3863
    """

    objective: str | Objective = "auto"

    name: ClassVar[str] = "teacher_forcing"
    summary: ClassVar[str] = "the gold history, always"
    citation: ClassVar[Citation] = Citation(
        formula="loss = -sum_t log p(y_t | y_<t, x)",
        reference="Williams, R. J. and Zipser, D. (1989). A learning algorithm for continually running fully "
        "recurrent neural networks. Neural Computation 1(2).",
        bibtex="""@article{williams1989learning,
  author  = {Williams, Ronald J. and Zipser, David},
  title   = {A Learning Algorithm for Continually Running Fully Recurrent Neural Networks},
  journal = {Neural Computation},
  volume  = {1},
  number  = {2},
  pages   = {270--280},
  year    = {1989}
}""",
    )

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise UserError(problems)

    @property
    def asks_model(self) -> bool:
        """The history is gold."""
        return False

    def feed(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch as it is."""
        report = change_report(batch, batch.history, 0)
        return batch, {"teacher_forcing_ratio": 1.0, **report, "passes": 0, "engine": "none"}


teacher_forcing = TeacherForcing
