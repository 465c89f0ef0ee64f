"""What is told of a comparison of models of text: language, translation, records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any


@dataclass(frozen=True)
class ItemReduction:
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
class Metric:
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
    items: ItemReduction | None = None
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

        >>> Metric("free_running.per", "", "").fixed, Metric("teacher_forced.per", "", "").fixed
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

        >>> Metric("free_running.wer", "free-running WER", "WER %").shown(30.04)
        '30.04 %'
        """
        return f"{value:.{self.decimals if decimals is None else decimals}f}{self.sign}"


@dataclass(frozen=True)
class TaskReport:
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
    measures: tuple[Metric, ...]
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
    def primary(self) -> Metric:
        """The measure that the verdict is about."""
        return next(each for each in map(self.measure, self.compared) if not each.fixed)

    def measure(self, name: str) -> Metric:
        """A measure by name; one that is not declared goes by its name."""
        found = next((each for each in self.measures if each.name == name), None)
        return found or Metric(name, name, name, sign="", unit="")


_LOSS = Metric(
    "teacher_forced.loss", "teacher-forced loss", "teacher-forced loss", "nats per symbol, dev", 4, "nats", ""
)


PAIRS = TaskReport(
    examples="training pairs",
    items="test words",
    others="words",
    measures=(
        Metric(
            "free_running.per", "free-running PER", "PER %", "PER on dev, %", items=ItemReduction("errors", "length")
        ),
        Metric(
            "free_running.wer", "free-running WER", "WER %", "WER on dev, %", most=100.0, items=ItemReduction("wrong"),
            settled=True,
        ),
        Metric(
            "free_running.sequence_accuracy", "free-running share of right words", "right words %", most=100.0,
            settled=True,
        ),
        Metric("teacher_forced.per", "teacher-forced PER", "teacher-forced PER %", "PER on dev, %"),
        _LOSS,
        Metric("gap.per", "free-running gap in PER", "free-running gap"),
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


_OF_STD = "of a standard deviation"


SERIES = TaskReport(
    examples="training windows",
    items="test windows",
    others="windows",
    measures=(
        Metric(
            "free_running.nrmse", "free-running NRMSE", "NRMSE", "NRMSE on dev", 4, _OF_STD, "",
            items=ItemReduction("nrmse", median=True),
        ),
        Metric("free_running.nrmse_last_tenth", "free-running NRMSE of the last tenth", "NRMSE, last tenth",
                "NRMSE on dev", 4, _OF_STD, ""),
        Metric("free_running.mse", "free-running mean squared error", "MSE", "squared error on dev", 4, "", "",
                items=ItemReduction("squared", "length", 1.0)),
        Metric("free_running.mae", "free-running mean absolute error", "MAE", "absolute error on dev", 4, "", "",
                items=ItemReduction("absolute", "length", 1.0)),
        Metric(
            "free_running.valid_time", "valid time", "valid time", "steps on dev", 1, "steps", " steps",
        ),
        Metric("free_running.diverged", "share of diverged windows", "diverged %", "diverged on dev, %", 1,
                most=100.0),
        Metric(
            "teacher_forced.nrmse", "teacher-forced one-step NRMSE", "one-step NRMSE", "NRMSE on dev", 4, _OF_STD, "",
            items=ItemReduction("one_step_nrmse", median=True),
        ),
    ),
    compared=("free_running.nrmse", "free_running.mse", "free_running.mae", "teacher_forced.nrmse"),
    columns=(
        "free_running.nrmse", "free_running.mse", "free_running.mae", "free_running.valid_time",
        "free_running.diverged", "teacher_forced.nrmse",
    ),
    curves=("free_running.nrmse", "teacher_forced.nrmse", "free_running.mse", "free_running.diverged"),
    differences=("free_running.nrmse", "teacher_forced.nrmse"),
    notes=(
        "Free-running: the model goes on from its own forecasts over the whole horizon, as in use. Teacher-forced: it "
        "is told the true value before each step. All errors are in standard deviations of the training part. NRMSE: "
        "the root mean squared error of a window over its horizon, median over windows; of the mean of the training "
        "part it is about 1. MSE and MAE: means over windows. Valid time: steps until the error first passes "
        "the threshold of the recipe, median over windows.",
        "A free run that leaves the finite numbers counts as infinite in every median, and leaves no mean: MSE and MAE "
        "are not given then, nor NRMSE where half of the windows diverged.",
    ),
    baselines=(
        ("last value", "last_value_"), ("last period", "last_period_"), ("mean", "mean_"),
        ("linear regression", "linear_"),
    ),
)  # fmt: skip


_TEXT = (
    "free_running.trigram_divergence", "teacher_forced.bits_per_character", "free_running.novel_words",
    "free_running.repetition",
)  # fmt: skip


TEXT = TaskReport(
    examples="training windows",
    items="blocks of test text",
    others="blocks",
    measures=(
        Metric(
            _TEXT[0], "free-running trigram divergence", "trigram divergence", "trigram divergence on dev, bits", 4,
            "bits", "", most=1.0,
        ),
        Metric(
            _TEXT[1], "teacher-forced bits per character", "bits per character", "bits per character, dev", 4, "bits",
            "", zero=False, items=ItemReduction("errors", "length", float(1 / np.log(2))),
        ),
        Metric(
            _TEXT[2], "free-running share of words never seen in training", "novel words %", "novel words on dev, %",
            most=100.0, items=ItemReduction("novel", "words"),
        ),
        Metric(
            _TEXT[3], "free-running repetition", "repetition %", "repetition on dev, %", most=100.0
        ),
    ),
    # not novel words, not repetition: less is better only down to the text's own share, which stands beside them
    compared=_TEXT[:2],
    columns=_TEXT,
    curves=_TEXT,
    differences=_TEXT[:2],
    notes=(
        "Free-running: the model goes on from what stands before each block by itself. Trigram divergence: "
        "Jensen-Shannon divergence, in bits, between the strings of three characters that it outputs and those of the "
        "training text; it varies over seeds alone. The verdict is about it. Teacher-forced: the history is the text "
        "itself, and bits per character measure the prediction; exposure bias cannot move them. Novel words: words in "
        "the output that do not stand in the training text. Repetition: strings of ten characters that stood in the "
        "same block before.",
        "The text's own values, of as many characters, show where a perfect model would lie: held-out text has words "
        "that training had not, too. (Its trigram divergence is that of the held-out part from the training part; a "
        "model of the training part can lie below it.) So novel words and repetition, of which a model may have too "
        "many or too few, stand beside the text's own and get no verdict.",
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


PARALLEL = TaskReport(
    examples="training pairs",
    items="test sentences",
    others="sentences",
    measures=(
        Metric(
            "free_running.bleu", "free-running BLEU", "BLEU", "BLEU on dev", sign="", most=100.0,
            items=ItemReduction("bleu", pooled=bleu),
        ),
        Metric("free_running.chrf", "free-running chrF", "chrF", "chrF on dev", sign="", most=100.0),
        Metric("teacher_forced.loss", "teacher-forced loss", "teacher-forced loss", "nats per subword, dev", 4,
                "nats", ""),
        Metric("teacher_forced.token_accuracy", "teacher-forced accuracy", "teacher-forced accuracy %",
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


RECORDS = TaskReport(
    examples="training records",
    items="test records",
    others="records",
    measures=(
        Metric("free_running.chrf", "free-running chrF", "chrF", "chrF on dev", sign="", most=100.0),
        Metric(
            "free_running.bleu", "free-running BLEU", "BLEU", "BLEU on dev", sign="", most=100.0,
            items=ItemReduction("bleu", pooled=bleu),
        ),
        Metric(
            "free_running.cer", "free-running character error rate", "CER %", "CER on dev, %",
            items=ItemReduction("errors", "length"),
        ),
        Metric(
            "free_running.sequence_accuracy", "free-running share of equal answers", "equal %",
            "equal answers on dev, %", most=100.0, items=ItemReduction("right"), settled=True,
        ),
        Metric("teacher_forced.loss", "teacher-forced loss", "teacher-forced loss", "nats per token, dev", 4, "nats",
                ""),
        Metric("teacher_forced.token_accuracy", "teacher-forced accuracy", "teacher-forced accuracy %",
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
        "Equal answers: under greedy decoding an answer equals its reference where every teacher-forced choice is "
        "right (or spells it with other tokens), so that their share says nothing of exposure bias. "
        "The interval of chrF holds for other seeds alone, those of the others also for other records.",
    ),
)  # fmt: skip


def higher_is_better(score: str) -> bool:
    """Whether more of a score is better: accuracies, BLEU, chrF and the valid time; all others are errors.

    >>> higher_is_better("token_accuracy"), higher_is_better("free_running_bleu"), higher_is_better("per")
    (True, True, False)
    """
    return score.endswith(("accuracy", "bleu", "chrf", "valid_time"))


def improves(select: str, value: float, best: float | None) -> bool:
    """Whether the weights of a score are kept, given the best so far, see ``higher_is_better``; never those of NaN.

    Of equal scores the first is kept, but the last where nothing is right: at 0 of an accuracy, BLEU or chrF, or at
    100 % errors. A model that says nothing right yet is rather one that was trained than one that was not.

    >>> improves("per", 7.0, 8.0), improves("sequence_accuracy", 7.0, 8.0), improves("per", float("nan"), None)
    (True, False, False)
    >>> improves("bleu", 0.0, 0.0), improves("wer", 100.0, 100.0), improves("bleu", 7.0, 7.0)
    (True, True, False)
    """
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    higher = higher_is_better(select)
    if value == best:
        return value == (0 if higher else 100)
    return value > best if higher else value < best
