"""A schedule that follows scores on dev data: the one whose value depends on more than the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from freerun.arguments import COUNT, above, at_least, finite, one_of, rule_field
from freerun.errors import UserError
from freerun.schedules.base import Schedule
from freerun.types import step_number


@dataclass(frozen=True, repr=False)
class Plateau(Schedule):
    """From start to end, a ``change`` further each time a dev score has not got better ``patience`` times in a row.

    ``value(s) = start - m(s) change``, or plus where end is above start, and never beyond end; m(s) counts plateaus in
    the scores of updates up to s. Of the scores in order: one that is better than the best so far by more than
    ``min_delta`` times that becomes the best, and the count of others begins at 0; when it is ``patience``, m rises by
    one, and it begins at 0. What is not finite is no better.

    Args:
        change: of the value at a plateau, above 0.
        start: the value until the first plateau.
        end: the value that it stays at once it is reached.
        patience: scores in a row that are no better; 1 changes at the first.
        min_delta: share of the best score by which a better one is better.
        signal: ``"score"``: what selects the weights, ``train.select``; ``"gap"``: this score free-running minus the
            same teacher-forced.

    Raises:
        UserError: as for every schedule; another unit than the step; scores out of order, or that are no numbers.

    What it is not: a function of the step alone. The scores are a state of this object, ``scores``, which our loop's
    checkpoints hold; one object, one run. ``freerun train``, ``fr.fit`` and ``fr.compare`` pass on every score, in all
    processes the same; in a loop of your own call ``observe``. No paper has this rule. For scores above 0 it is that of
    PyTorch's ``ReduceLROnPlateau``, with steps of one size, of which ``patience`` is one less: it lets as many scores
    pass, and changes at the next.

    >>> ratio = Plateau(change=0.25)
    >>> for step, loss in enumerate([3.0, 2.0, 2.5, 1.0, 1.0]):
    ...     ratio.observe(loss, step)
    >>> [ratio(step) for step in range(6)]
    [1.0, 1.0, 0.75, 0.75, 0.5, 0.5]
    """

    name: ClassVar[str] = "plateau"
    formula: ClassVar[str] = "start -+ change * (times that the dev score has not got better), at most to end"
    summary: ClassVar[str] = "a change further whenever the dev score stops getting better"
    observes: ClassVar[bool] = True

    change: float = above(0)
    start: float = finite(1.0)
    end: float = finite(0.0)
    patience: int = rule_field(COUNT, 1)
    min_delta: float = at_least(0, 0.0)
    signal: str = one_of(("score", "gap"), "score")

    def problems(self) -> Iterable[str]:
        if self.unit != "step":
            yield f"plateau follows scores of updates; got unit={self.unit!r}: leave it out"

    @cached_property
    def _seen(self) -> list[tuple[int, float]]:
        """Updates and scores, the lower the better."""
        return []

    def observe(self, score: float, step: int, *, higher: bool = False) -> None:
        """Take in the score of the weights after so many updates; the value may change from this step on.

        Args:
            score: any number; NaN is no better than any.
            step: updates made; of two scores of one step the last counts.
            higher: more of the score is better.
        """
        step = step_number(step)
        try:
            value = float(score)
        except (TypeError, ValueError):
            raise UserError(f"plateau: a score must be a number; got {score!r}") from None
        if self._seen and self._seen[-1][0] == step:
            self._seen.pop()
        if self._seen and self._seen[-1][0] > step:
            raise UserError(
                f"plateau: scores come in the order of the updates; got one of {step} after one of "
                f"{self._seen[-1][0]}: for another run make another object, or load_scores(None)"
            )
        self._seen.append((step, -value if higher else value))

    @property
    def scores(self) -> Tensor:
        """(n, 2) float64, a row of update and score each: the state."""
        return torch.tensor(self._seen, dtype=torch.float64).reshape(-1, 2)

    def load_scores(self, scores: Tensor | None) -> None:
        """Go on from a state; None begins anew."""
        self._seen[:] = [] if scores is None else [(int(step), float(score)) for step, score in scores.tolist()]

    def at(self, position: float) -> float:
        best, stale, moved = math.inf, 0, 0
        for _, score in (each for each in self._seen if each[0] <= position):
            margin = 0.0 if best == math.inf else self.min_delta * abs(best)
            if math.isfinite(score) and best - score > margin:
                best, stale = score, 0
            else:
                stale += 1
            if stale == self.patience:
                moved, stale = moved + 1, 0
        way = min(moved * self.change, abs(self.end - self.start))
        return self.end if way == abs(self.end - self.start) else self.start + math.copysign(way, self.end - self.start)

    def span(self, position: float) -> Sequence[float]:
        return self.start, self.end


def followed(method: Any) -> dict[str, Plateau]:
    """The schedules of a method that follow a dev score, by parameter."""
    scheduled: Any = getattr(method, "scheduled", tuple)
    return {name: setting for name, setting in scheduled() if isinstance(setting, Plateau)}


class Following:
    """What has parameters that may follow a dev score: these scores are its state, or a part of it."""

    def state_dict(self) -> dict[str, float | Tensor]:
        """The scores that its schedules follow, by parameter; {} where none does."""
        return {f"{name}.scores": schedule.scores for name, schedule in followed(self).items()}

    def load_state_dict(self, state: Mapping[str, float | Tensor]) -> None:
        """Go on from a state; {} begins anew."""
        for name, schedule in followed(self).items():
            schedule.load_scores(cast("Tensor | None", state.get(f"{name}.scores")))
