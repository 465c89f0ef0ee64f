"""DAgger: histories of learner and demonstrator, each position against what an expert says on that history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from freerun import targets
from freerun.arguments import nearest, refused
from freerun.methods.base import Citation
from freerun.methods.scheduled_sampling import ScheduledSampling
from freerun.schedules import Schedule


@dataclass(frozen=True, repr=False)
class DAgger(ScheduledSampling):
    """Scheduled sampling's history, and at each position what an expert would do on that history.

    ``h_t = y_t`` with probability beta(step), else a draw from ``p(. | h_<t, x)``;
    ``loss = -sum_t log p(e(h)_t | h_<t, x)``, e the expert; for values ``sum_t |f(h_<t, x) - e(h)_t|^2``.

    Args:
        teacher_forcing_ratio: beta, the probability of the demonstrator's entry, which is gold's; a number or a
            schedule of the optimizer step. 0, as published beyond the first iteration.
        expert: ``(batch, history) -> ids, shares of symbols, or values`` (``freerun.targets.Target``), whose entry t
            reads the history before t alone; or ``"optimal_completion"``.
        gate: ``"token"``, a choice at each step as published, or ``"sequence"``, one for each row, or another of
            ``scheduled_sampling``.
        gradient: ``"none"`` as published: what was fed is data. Others as for ``scheduled_sampling``.

    The other arguments are those of ``scheduled_sampling``.

    Raises:
        UserError: arguments outside their range; an expert that is neither; one that returns something else.

    What it is not: the aggregated data set. The expert labels each batch anew, on histories of the present model, and
    keeps none of earlier models. Where the demonstrator acts its entry is gold's at that position, recorded before,
    and not the expert's answer to the history so far. With gold as expert it is ``scheduled_sampling``.

    Reference: Ross, Gordon and Bagnell 2011, arXiv:1011.0686.

    >>> DAgger(0.5, expert="optimal_completion")
    dagger(teacher_forcing_ratio=0.5, expert='optimal_completion')
    """

    teacher_forcing_ratio: float | Schedule = 0.0
    gradient: str | int = "none"
    expert: str | targets.Target = field(kw_only=True)
    target: str | targets.Target = field(default="gold", init=False, repr=False)

    name: ClassVar[str] = "dagger"
    summary: ClassVar[str] = "own and gold history; the target is what an expert says on it"
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t with probability beta(step), else a draw from p(. | h_<t, x);  "
        "loss = -sum_t log p(e(h)_t | h_<t, x), e the expert\n(published: on all histories of all models so far)",
        reference="Ross, S., Gordon, G. J. and Bagnell, J. A. (2011). A reduction of imitation learning and structured "
        "prediction to no-regret online learning. AISTATS. arXiv:1011.0686",
        bibtex="""@inproceedings{ross2011reduction,
  author    = {Ross, St{\\'e}phane and Gordon, Geoffrey J. and Bagnell, J. Andrew},
  title     = {A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning},
  booktitle = {Proceedings of the 14th International Conference on Artificial Intelligence and Statistics},
  year      = {2011}
}""",
    )

    @property
    def own_loss(self) -> tuple[str, ...]:
        """The expert says what is scored."""
        return tuple(each.replace("target changes", "expert changes") for each in super().own_loss)

    def problems(self) -> list[str]:
        """Return which arguments cannot be; the expert is the target."""
        hint = refused(self.expert, 2)
        if hint or not (callable(self.expert) or self.expert in tuple(targets.TARGETS)):
            near = nearest(self.expert, targets.TARGETS) if isinstance(self.expert, str) else None
            hint = hint or (": that is scheduled_sampling" if self.expert == "gold" else "")
            hint += f": did you mean {near!r}?" if near else ""
            rule = f"expert must be a function (batch, history) -> targets, or one of {', '.join(targets.TARGETS)}"
            return [f"{rule}; got {self.expert!r}{hint}", *super().problems()]
        object.__setattr__(self, "target", self.expert)
        return [each.replace("target=", "expert=", 1) for each in super().problems()]


dagger = DAgger
