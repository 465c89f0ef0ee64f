"""What is told of a comparison: which scores are compared, first the one that decides, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from freerun.training.task import higher_is_better

__all__ = ["PAIRS", "Measure", "OverItems", "Reported"]

Array = Any


@dataclass(frozen=True)
class OverItems:
    """How a score comes from sums over test items, so that items can be drawn again.

    ``scale * sum(part) / sum(whole)``, or ``pooled(sum(part))`` where an item's part is a list of numbers, or the
    median of the parts.

    Args:
        part: key of the items.
        whole: key of what it is counted against; None: each item counts one.
        scale: 100 for percent.
        pooled: (..., numbers) sums -> (...) scores.
        median: whether it is the median of the parts; a part that is null is infinite then.
    """

    part: str
    whole: str | None = None
    scale: float = 100.0
    pooled: Callable[[Array], Array] | None = None
    median: bool = False


@dataclass(frozen=True)
class Measure:
    """A score, and how it is called.

    Args:
        name: ``side.score``, or ``gap.score`` for free-running minus teacher-forced.
        title: in sentences.
        heading: of a column.
        axis: of its curve on dev; curves of one axis are drawn on one scale. "" where none is drawn.
        decimals: shown.
        unit: of a difference.
        sign: behind a value.
        most: the highest value there can be.
        zero: whether its curve is drawn from zero on.
        items: how it comes from test items; None: it varies over seeds alone.
        settled: whether the teacher-forced choices settle it under greedy decoding: it counts outputs that are
            entirely right, and nothing else of the others.
    """

    name: str
    title: str
    heading: str
    axis: str = ""
    decimals: int = 2
    unit: str = "points"
    sign: str = " %"
    most: float | None = None
    zero: bool = True
    items: OverItems | None = None
    settled: bool = False

    @property
    def side(self) -> str:
        """``free_running``, ``teacher_forced`` or ``gap``."""
        return self.name.partition(".")[0]

    @property
    def score(self) -> str:
        """The name without the side."""
        return self.name.partition(".")[2]

    @property
    def higher(self) -> bool:
        """Whether more of it is better."""
        return higher_is_better(self.score)

    @property
    def fixed(self) -> str:
        """Why exposure bias cannot move it under greedy decoding; "" where it can.

        >>> Measure("free_running.per", "", "").fixed, Measure("teacher_forced.per", "", "").fixed
        ('', 'it is measured on gold history')
        """
        if self.side == "teacher_forced":
            return "it is measured on gold history"
        if not self.settled:
            return ""
        return (
            "a greedy output is entirely right exactly where every teacher-forced choice is, so that it is the same "
            "number running freely and teacher-forced"
        )

    def shown(self, value: float, decimals: int | None = None) -> str:
        """A value with its sign.

        >>> Measure("free_running.wer", "free-running WER", "WER %").shown(30.04)
        '30.04 %'
        """
        return f"{value:.{self.decimals if decimals is None else decimals}f}{self.sign}"


@dataclass(frozen=True)
class Reported:
    """What is compared in a task, and told of it.

    Args:
        examples: what is trained on.
        items: what is tested on.
        others: the same in short, for "other words".
        measures: all that are named below.
        compared: names; the verdict is about the first that exposure bias can move.
        columns: names of the table's columns.
        curves: names of the scores drawn over training.
        differences: names of those whose differences are drawn.
        notes: what the numbers mean, in sentences.
        references: what stands below the arms: the data's own scores; what each goes by, and the prefix of its scores'
            names.
        baselines: the same of forecasts without a trained model, which an arm should beat.
    """

    examples: str
    items: str
    others: str
    measures: tuple[Measure, ...]
    compared: tuple[str, ...]
    columns: tuple[str, ...]
    curves: tuple[str, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    references: tuple[tuple[str, str], ...] = ()
    baselines: tuple[tuple[str, str], ...] = ()

    @property
    def beside(self) -> tuple[tuple[str, str], ...]:
        """References and baselines."""
        return (*self.references, *self.baselines)

    @property
    def primary(self) -> Measure:
        """The measure that the verdict is about."""
        return next(each for each in map(self.measure, self.compared) if not each.fixed)

    def measure(self, name: str) -> Measure:
        """A measure by name; one that is not declared goes by its name."""
        found = next((each for each in self.measures if each.name == name), None)
        return found or Measure(name, name, name, sign="", unit="")


_LOSS = Measure(
    "teacher_forced.loss", "teacher-forced loss", "teacher-forced loss", "nats per symbol, dev", 4, "nats", ""
)

PAIRS = Reported(
    examples="training pairs",
    items="test words",
    others="words",
    measures=(
        Measure("free_running.per", "free-running PER", "PER %", "PER on dev, %", items=OverItems("errors", "length")),
        Measure(
            "free_running.wer", "free-running WER", "WER %", "WER on dev, %", most=100.0, items=OverItems("wrong"),
            settled=True,
        ),
        Measure(
            "free_running.sequence_accuracy", "free-running share of right words", "right words %", most=100.0,
            settled=True,
        ),
        Measure("teacher_forced.per", "teacher-forced PER", "teacher-forced PER %", "PER on dev, %"),
        _LOSS,
        Measure("gap.per", "free-running gap in PER", "free-running gap"),
    ),
    # not the gap of WER: it is 0
    compared=("free_running.per", "free_running.wer", "teacher_forced.loss", "gap.per"),
    columns=("free_running.per", "free_running.wer", "teacher_forced.loss", "gap.per"),
    curves=("free_running.per", "teacher_forced.per", "free_running.wer", "teacher_forced.loss"),
    differences=("free_running.per", "free_running.wer"),
    notes=(
        "Free-running: the model goes on from its own output, as in use. Teacher-forced: its history is gold. PER: "
        "edit errors against the nearest reference, by its symbols; teacher-forced PER counts wrong choices, as "
        "nothing can shift there. Free-running gap: free-running minus teacher-forced PER, in points; freerun diagnose "
        "counts both position by position, so that its gap can have the other sign.",
        "WER: share of words whose output equals no reference. Under greedy decoding a word is right exactly where "
        "every teacher-forced choice is, so that free-running WER equals teacher-forced WER and no difference in it "
        "says anything of exposure bias. What happens after a first error shows in PER, and the verdict is about that.",
    ),
)  # fmt: skip
