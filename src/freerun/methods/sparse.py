"""Sparse teacher forcing: gold every tau positions, the model's own output between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from freerun.errors import UserError
from freerun.gates import Every, Gate
from freerun.methods.base import Citation
from freerun.methods.scheduled_sampling import ScheduledSampling
from freerun.schedules import Schedule

__all__ = ["SparseTeacherForcing", "sparse_teacher_forcing"]


@dataclass(frozen=True, repr=False)
class SparseTeacherForcing(ScheduledSampling):
    """Gold at positions tau-1, 2 tau-1, ..., else the model's own output, with the whole gradient.

    ``h_t = y_t`` where tau divides t + 1, else ``f(h_<t)``. On chaotic systems gradients of free running explode;
    forcing once in a predictability time keeps them bounded and still shows the model its own errors.

    Args:
        tau: period in positions, at least 2; published: about the system's predictability time, ``ln 2 / exponent``
            in steps.
        teacher_forcing_ratio: P(gold) between the forced positions; published: 0.

    The other arguments are those of ``scheduled_sampling``.

    Raises:
        UserError: arguments outside their range.

    What it is not: truncated back-propagation (``gradient=tau``), which cuts the gradient and feeds no gold.

    Reference: Mikhaeil, Monfared and Durstewitz 2022, On the difficulty of learning chaotic dynamics with RNNs,
    NeurIPS, arXiv:2110.07238.

    >>> SparseTeacherForcing(tau=16)
    sparse_teacher_forcing(tau=16)
    """

    teacher_forcing_ratio: float | Schedule = 0.0
    coin: str | Gate = field(default="every", init=False, repr=False)
    tau: int = field(kw_only=True)

    name: ClassVar[str] = "sparse_teacher_forcing"
    summary: ClassVar[str] = "gold every tau positions, own between"
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t where tau divides t + 1, else f(h_<t, x);  loss = |f(h_<t, x) - y_t|^2",
        reference="Mikhaeil, J. M., Monfared, Z. and Durstewitz, D. (2022). On the difficulty of learning chaotic "
        "dynamics with RNNs. NeurIPS. arXiv:2110.07238",
        bibtex="""@inproceedings{mikhaeil2022difficulty,
  author    = {Mikhaeil, Jonas M. and Monfared, Zahra and Durstewitz, Daniel},
  title     = {On the Difficulty of Learning Chaotic Dynamics with {RNN}s},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {35},
  year      = {2022}
}""",
    )

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "coin", Every(self.tau))
        except UserError as error:
            raise UserError(error.problems + self.problems()) from None
        super().__post_init__()


sparse_teacher_forcing = SparseTeacherForcing
