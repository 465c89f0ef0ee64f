"""What is told of a comparison: which scores are compared, first the one that decides, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from freerun.training.task import higher_is_better

__all__ = ["PAIRS", "PARALLEL", "RECORDS", "TEXT", "Measure", "OverItems", "Reported", "bleu"]

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
        compared: names, the first of which the verdict is about.
        columns: names of the table's columns.
        curves: names of the scores drawn over training.
        differences: names of those whose differences are drawn.
        notes: what the numbers mean, in sentences.
        references: what stands below the arms: the data's own scores, or forecasts without a model; what each goes by,
            and the prefix of its scores' names.
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

    @property
    def primary(self) -> Measure:
        """The measure that the verdict is about."""
        return self.measure(self.compared[0])

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
        Measure("free_running.wer", "free-running WER", "WER %", "WER on dev, %", most=100.0, items=OverItems("wrong")),
        Measure("free_running.per", "free-running PER", "PER %", "PER on dev, %", items=OverItems("errors", "length")),
        Measure("teacher_forced.per", "teacher-forced PER", "teacher-forced PER %", "PER on dev, %"),
        _LOSS,
        Measure("gap.per", "free-running gap in PER", "free-running gap"),
    ),
    # not the gap of WER: with one beam a word is free-running right exactly where every teacher-forced choice is
    compared=("free_running.wer", "free_running.per", "teacher_forced.loss", "gap.per"),
    columns=("free_running.per", "free_running.wer", "teacher_forced.loss", "gap.per"),
    curves=("free_running.per", "teacher_forced.per", "free_running.wer", "teacher_forced.loss"),
    differences=("free_running.wer", "free_running.per"),
    notes=(
        "Free-running: the model goes on from its own output, as in use. Teacher-forced: it is told the gold history. "
        "WER: share of words with no pronunciation entirely right. PER: edit errors against the nearest reference, by "
        "its symbols. Free-running gap: free-running minus teacher-forced PER, in points.",
    ),
)

_TEXT = (
    "teacher_forced.bits_per_character", "free_running.trigram_divergence", "free_running.novel_words",
    "free_running.repetition",
)  # fmt: skip

TEXT = Reported(
    examples="training windows",
    items="blocks of test text",
    others="blocks",
    measures=(
        Measure(
            _TEXT[0], "teacher-forced bits per character", "bits per character", "bits per character, dev", 4, "bits",
            "", zero=False, items=OverItems("errors", "length", float(1 / np.log(2))),
        ),
        Measure(
            _TEXT[1], "free-running trigram divergence", "trigram divergence", "trigram divergence on dev, bits", 4,
            "bits", "", most=1.0,
        ),
        Measure(
            _TEXT[2], "free-running share of words never seen in training", "novel words %", "novel words on dev, %",
            most=100.0, items=OverItems("novel", "words"),
        ),
        Measure(
            _TEXT[3], "free-running repetition", "repetition %", "repetition on dev, %", most=100.0
        ),
    ),
    # not novel words, not repetition: less is better only down to the text's own share, which stands beside them
    compared=_TEXT[:2],
    columns=_TEXT,
    curves=_TEXT,
    differences=_TEXT[:2],
    notes=(
        "Teacher-forced: the model is told the text, and bits per character say how well it foretells it; the verdict "
        "is about them, since what a model says by itself has no reference. Free-running: the model goes on from what "
        "stands before each block by itself. Trigram divergence: Jensen-Shannon divergence, in bits, between the "
        "strings of three characters that it says and those of the training text; it varies over seeds alone. Novel "
        "words: words it says that do not stand in the training text. Repetition: strings of ten characters that stood "
        "in the same block before.",
        "The text's own values, of as many characters, show where a perfect model would lie: held-out text has words "
        "that training had not, too. So novel words and repetition, of which a model may have too many or too few, "
        "stand beside the text's own and get no verdict.",
    ),
    references=(("the text itself", "text_"),),
)  # fmt: skip


def bleu(sums: Array) -> Array:
    """Corpus BLEU from summed statistics, as sacreBLEU computes it (exponential smoothing), in percent.

    ``100 * min(1, exp(1 - r/c)) * (p_1 p_2 p_3 p_4)^(1/4)``; a p_n without a match counts ``1 / (2^k total_n)``, k
    the number of such n so far.

    Args:
        sums: (..., 10): system length c, reference length r, matches and totals of n = 1..4, sacreBLEU's order.

    >>> round(float(bleu(np.array([4.0, 4, 4, 3, 2, 1, 4, 3, 2, 1]))), 6)
    100.0
    """
    sums = np.asarray(sums, dtype=np.float64)
    said, wanted, matches, totals = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    none = matches == 0
    halvings = 2.0 ** np.cumsum(none, -1)
    safe = np.maximum(totals, 1.0)
    precisions = np.where(none, 1.0 / (halvings * safe), matches / safe)
    penalty = np.exp(np.minimum(0.0, 1.0 - wanted / np.maximum(said, 1.0)))
    found = 100.0 * penalty * np.exp(np.log(precisions).mean(-1))
    return np.where((totals > 0).all(-1) & (matches > 0).any(-1), found, 0.0)


PARALLEL = Reported(
    examples="training pairs",
    items="test sentences",
    others="sentences",
    measures=(
        Measure(
            "free_running.bleu", "free-running BLEU", "BLEU", "BLEU on dev", sign="", most=100.0,
            items=OverItems("bleu", pooled=bleu),
        ),
        Measure("free_running.chrf", "free-running chrF", "chrF", "chrF on dev", sign="", most=100.0),
        Measure("teacher_forced.loss", "teacher-forced loss", "teacher-forced loss", "nats per subword, dev", 4,
                "nats", ""),
        Measure("teacher_forced.token_accuracy", "teacher-forced accuracy", "teacher-forced accuracy %",
                "accuracy on dev, %", most=100.0),
    ),
    compared=("free_running.bleu", "free_running.chrf", "teacher_forced.loss"),
    columns=("free_running.bleu", "free_running.chrf", "teacher_forced.loss", "teacher_forced.token_accuracy"),
    curves=("free_running.bleu", "free_running.chrf", "teacher_forced.loss", "teacher_forced.token_accuracy"),
    differences=("free_running.bleu",),
    notes=(
        "Free-running: the model goes on from its own output, as in use. Teacher-forced: it is told the gold history. "
        "BLEU and chrF: sacreBLEU's, of the whole test set, from 0 to 100; how BLEU is counted stands with the data. "
        "The interval of chrF holds for other seeds alone, those of BLEU also for other sentences.",
    ),
)  # fmt: skip


RECORDS = Reported(
    examples="training records",
    items="test records",
    others="records",
    measures=(
        Measure("free_running.chrf", "free-running chrF", "chrF", "chrF on dev", sign="", most=100.0),
        Measure(
            "free_running.bleu", "free-running BLEU", "BLEU", "BLEU on dev", sign="", most=100.0,
            items=OverItems("bleu", pooled=bleu),
        ),
        Measure(
            "free_running.cer", "free-running character error rate", "CER %", "CER on dev, %",
            items=OverItems("errors", "length"),
        ),
        Measure(
            "free_running.sequence_accuracy", "free-running share of equal answers", "equal %",
            "equal answers on dev, %", most=100.0, items=OverItems("right"),
        ),
        Measure("teacher_forced.loss", "teacher-forced loss", "teacher-forced loss", "nats per token, dev", 4, "nats",
                ""),
        Measure("teacher_forced.token_accuracy", "teacher-forced accuracy", "teacher-forced accuracy %",
                "accuracy on dev, %", most=100.0),
    ),
    compared=(
        "free_running.chrf", "free_running.bleu", "free_running.cer", "free_running.sequence_accuracy",
        "teacher_forced.loss",
    ),
    columns=(
        "free_running.chrf", "free_running.bleu", "free_running.cer", "free_running.sequence_accuracy",
        "teacher_forced.loss",
    ),
    curves=("free_running.chrf", "free_running.cer", "teacher_forced.loss", "teacher_forced.token_accuracy"),
    differences=("free_running.chrf", "free_running.cer"),
    notes=(
        "Free-running: the model is told the source or the prompt and goes on from its own output, as in use. "
        "Teacher-forced: it is told the gold history. chrF and BLEU: sacreBLEU's, of raw text and the whole test set. "
        "CER: edit errors in characters by the references' characters; an answer far too long counts more than 100 %. "
        "The interval of chrF holds for other seeds alone, those of the others also for other records.",
    ),
)  # fmt: skip
