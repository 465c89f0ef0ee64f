"""Every score of every task: its name, unit, direction, range, average, and where it is displayed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from freerun.metrics.reduction import ItemReduction
from freerun.metrics.text import bleu


@dataclass(frozen=True)
class Metric:
    """A score of a task.

    Args:
        name: ``side.score``, or ``gap.score`` for free-running minus teacher-forced.
        title: in sentences.
        heading: of a column.
        axis: of its curve on dev; curves of one axis share a scale. "" where none is drawn.
        role: "listed" with a run's scores; "column" of a comparison's table; "compared" as well, with a verdict;
            "drawn": its differences as a figure, too.
        decimals: displayed.
        unit: of a difference.
        sign: text after a value.
        higher: True if more of it is better.
        select: True if ``train.select`` may name it: more, or less, of it is always better.
        most: the highest possible value; the lowest is 0.
        scale: "log": it is positive and without a bound, so that arms are compared by their ratio, on logarithms.
        zero: True if its curve is drawn from zero on.
        items: how it is computed from test items; None: it varies over seeds alone.
        optional: True if it is measured on demand, and left out of tables where no run has it.
        note: its meaning, in sentences, printed where it stands.
        settled: True if the teacher-forced choices determine it under greedy decoding: it counts only outputs that
            are entirely right.
    """

    name: str
    title: str
    heading: str
    axis: str = ""
    role: Literal["listed", "column", "compared", "drawn"] = "listed"
    decimals: int = 2
    unit: str = "points"
    sign: str = " %"
    higher: bool = False
    select: bool = True
    most: float | None = None
    scale: Literal["linear", "log"] = "linear"
    zero: bool = True
    items: ItemReduction | None = None
    settled: bool = False
    optional: bool = False
    note: str = ""

    @property
    def units(self) -> str:
        """The unit of an axis or a column, as against that of a number in a sentence.

        >>> Metric("free_running.nrmse", "", "", unit="of a standard deviation").units
        'standard deviations'
        """
        return "standard deviations" if self.unit == "of a standard deviation" else self.unit

    @property
    def side(self) -> str:
        """``free_running``, ``teacher_forced`` or ``gap``."""
        return self.name.partition(".")[0]

    @property
    def score(self) -> str:
        return self.name.partition(".")[2]

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
            "a greedy output is entirely right exactly where every teacher-forced choice is, so the free-running and "
            "the teacher-forced number are equal"
        )

    @property
    def definition(self) -> str:
        """How it is computed, in one formula.

        >>> Metric("free_running.per", "", "", items=ItemReduction("errors", "length")).definition
        '100*sum(errors)/sum(length)'
        """
        rule = self.items
        if rule is None:
            return "mean of the runs' own"
        if rule.median:
            return f"median({rule.numerator})"
        if rule.pooled is not None:
            return f"{getattr(rule.pooled, '__name__', 'function')}(sum({rule.numerator}))"
        scale = "" if rule.scale == 1 else f"{rule.scale:.4g}*"
        return f"{scale}sum({rule.numerator})/{'items' if rule.denominator is None else f'sum({rule.denominator})'}"

    def to_text(self, value: float, decimals: int | None = None) -> str:
        return f"{value:.{self.decimals if decimals is None else decimals}f}{self.sign}"


@dataclass(frozen=True)
class TaskReport:
    """The scores of a task, and the nouns and notes that describe them.

    Args:
        training_noun: what is trained on.
        test_noun: what is tested on.
        item_noun: the same in short, for "other words".
        metrics: in the order of tables; the verdict is about the first one compared that exposure bias can move.
        notes: the meaning of the numbers, in sentences.
        outputs: what a free run is cut into beside gold: symbols, words, characters, or "positions" (symbols that are
            counted position by position); "continuation" is text without gold, "" no text.
        references: rows below the arms, with the data's own scores: name of the row, prefix of its scores' names.
        baselines: rows of forecasts without a trained model, which an arm should beat.
    """

    training_noun: str
    test_noun: str
    item_noun: str
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]
    outputs: Literal["symbols", "words", "characters", "positions", "continuation", ""] = ""
    references: tuple[tuple[str, str], ...] = ()
    baselines: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[Metric, ...]:
        return tuple(each for each in self.metrics if each.role != "listed")

    @property
    def compared(self) -> tuple[Metric, ...]:
        """Scores with a verdict."""
        return tuple(each for each in self.columns if each.role != "column")

    def notes_of(self, names: Collection[str]) -> list[str]:
        """The notes, and those of the scores that are there, by their full names."""
        return [*self.notes, *(each.note for each in self.metrics if each.note and each.name in names)]

    @property
    def curves(self) -> tuple[Metric, ...]:
        """Scores drawn over training."""
        return tuple(each for each in self.metrics if each.axis)

    @property
    def selectable(self) -> tuple[str, ...]:
        """Names that ``train.select`` accepts: free-running scores bare, then teacher-forced ones in full."""
        chosen = [each for each in self.metrics if each.select]
        free = [each.score for each in chosen if each.side == "free_running"]
        return (*free, *(f"teacher_forced_{each.score}" for each in chosen if each.side == "teacher_forced"))

    @property
    def beside(self) -> tuple[tuple[str, str], ...]:
        return (*self.references, *self.baselines)

    def with_items(self, scores: Mapping[str, float], items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return free-running scores, with those added that only a reduction of the items computes."""
        reduced = (each for each in self.metrics if each.side == "free_running" and each.items is not None)
        more = {each.score: each.items.value(items) for each in reduced if each.score not in scores and each.items}
        return {**scores, **more}

    @property
    def primary(self) -> Metric:
        """The score that the verdict is about."""
        return next(each for each in self.compared if not each.fixed)

    def metric(self, name: str) -> Metric:
        """Return a score by its full name; an undeclared one is titled by that name."""
        declared = next((each for each in self.metrics if each.name == name), None)
        return declared or Metric(name, name, name, sign="", unit="")


_LOSS = Metric(
    "teacher_forced.loss", "teacher-forced loss", "teacher-forced loss", role="compared", decimals=4, unit="nats",
    sign="",
)  # fmt: skip
_TOKEN_ACCURACY = Metric(
    "teacher_forced.token_accuracy", "teacher-forced token accuracy", "teacher-forced accuracy %", higher=True,
    most=100.0,
)  # fmt: skip
_WER = Metric(
    "free_running.wer", "free-running WER", "WER %", "WER on dev, %", "drawn", most=100.0,
    items=ItemReduction("wrong"), settled=True,
)  # fmt: skip
_BLEU = Metric(
    "free_running.bleu", "free-running BLEU", "BLEU", role="compared", sign="", higher=True, most=100.0,
    items=ItemReduction("bleu", pooled=bleu),
)  # fmt: skip
_CHRF = Metric(
    "free_running.chrf", "free-running chrF", "chrF", "chrF on dev", "compared", sign="", higher=True, most=100.0
)
# neither more nor less of it is better
_LENGTH_RATIO = Metric(
    "free_running.length_ratio", "free-running length ratio", "length ratio", decimals=4, unit="", sign="",
    select=False,
)  # fmt: skip

PAIRS = TaskReport(
    training_noun="training pairs",
    test_noun="test words",
    item_noun="words",
    outputs="symbols",
    metrics=(
        Metric(
            "free_running.per", "free-running PER", "PER %", "PER on dev, %", "drawn",
            items=ItemReduction("errors", "length"),
        ),
        Metric("teacher_forced.per", "teacher-forced PER", "teacher-forced PER %", "PER on dev, %"),
        _WER,
        replace(_WER, name="teacher_forced.wer", title="teacher-forced WER", axis="", role="listed", items=None),
        Metric(
            "free_running.sequence_accuracy", "free-running share of right words", "right words %", higher=True,
            most=100.0, settled=True,
        ),
        Metric(
            "teacher_forced.sequence_accuracy", "teacher-forced share of right words", "right words %", higher=True,
            most=100.0,
        ),
        replace(_LOSS, axis="nats per symbol, dev"),
        _TOKEN_ACCURACY,
        # not the gap of WER: it is 0
        Metric("gap.per", "free-running gap in PER", "free-running gap", role="compared", select=False),
    ),
    notes=(
        "Free-running: the history is the model's own output, as in use. Teacher-forced: the history is gold. PER: "
        "edit errors against the nearest reference, divided by its symbols; teacher-forced PER counts wrong choices, "
        "because nothing can shift there. Free-running gap: free-running minus teacher-forced PER, in points; freerun "
        "diagnose has this gap as edit errors; its gap position by position can have the other sign.",
        "WER: share of words whose output equals no reference. Under greedy decoding a word is right exactly where "
        "every teacher-forced choice is, so free-running WER equals teacher-forced WER, and a difference in it is no "
        "evidence of exposure bias. PER measures what happens after a first error, and the verdict is about PER.",
    ),
)  # fmt: skip

_NRMSE = Metric(
    "free_running.nrmse", "free-running NRMSE", "NRMSE", "NRMSE on dev", "drawn", 4, "of a standard deviation", "",
    scale="log", items=ItemReduction("nrmse", median=True),
)  # fmt: skip


def _laws(denominator: str, naive: str = "") -> tuple[Metric, ...]:
    """Scores of the law that sample paths are drawn from."""
    return (
        Metric(
            "free_running.crps", "CRPS of sample paths", "CRPS", "", "compared", 4, "", "", scale="log",
            items=ItemReduction("crps", denominator, 1.0), optional=True,
            note="CRPS: how far the law that sample paths are drawn from is off, in units of the MAE; of one that is "
            f"a point it is the MAE.{naive}",
        ),
        Metric(
            "free_running.pinball", "pinball loss of quantiles of sample paths", "", decimals=4, unit="", sign="",
            optional=True,
            note="Pinball loss: of the levels of the recipe, or of the deciles; over levels close together it tends to "
            "half the CRPS.",
        ),
        Metric(
            "free_running.coverage_80", "share in the central 80 % of sample paths", "in the 80 % band, %",
            "", "column", 1, select=False, most=100.0, items=ItemReduction("covered_80", denominator), optional=True,
            note="In the 80 % band: 80 % where the law is right; fewer where it is too narrow, more where too wide.",
        ),
        Metric(
            "free_running.coverage_50", "share in the central 50 % of sample paths", "", select=False, most=100.0,
            optional=True,
        ),
    )  # fmt: skip


SERIES = TaskReport(
    training_noun="training windows",
    test_noun="test windows",
    item_noun="windows",
    metrics=(
        _NRMSE,
        replace(
            _NRMSE, name="free_running.nrmse_last_tenth", title="free-running NRMSE of the last tenth",
            heading="NRMSE, last tenth", axis="", role="listed", items=None,
        ),
        Metric(
            "free_running.mse", "free-running mean squared error", "MSE", "squared error on dev", "compared", 4, "", "",
            scale="log", items=ItemReduction("squared", "length", 1.0),
        ),
        Metric(
            "free_running.mae", "free-running mean absolute error", "MAE", "", "compared", 4, "", "",
            scale="log", items=ItemReduction("absolute", "length", 1.0),
        ),
        *_laws(
            "length",
            " Rows without a model have a law, too: their forecast plus the quantiles, by lead time, of what it was "
            "off in training windows.",
        ),
        Metric("free_running.valid_time", "valid time", "valid time", "", "column", 1, "steps", " steps", higher=True),
        Metric(
            "free_running.diverged", "share of diverged windows", "diverged %", "diverged on dev, %", "column", 1,
            select=False, most=100.0,
        ),
        replace(
            _NRMSE, name="teacher_forced.nrmse", title="teacher-forced one-step NRMSE", heading="one-step NRMSE",
            items=ItemReduction("one_step_nrmse", median=True),
        ),
        replace(_LOSS, role="listed", unit=""),
    ),
    notes=(
        "Free-running: the history is the model's own forecasts over the complete horizon, as in use. Teacher-forced: "
        "the history is the true values. All errors are in standard deviations of the training part. NRMSE: "
        "the root mean squared error of a window over its horizon, median over windows; of the mean of the training "
        "part it is about 1. MSE and MAE: means over windows. Valid time: steps until the error first passes "
        "the threshold of the recipe, median over windows.",
        "A free run that diverges counts as infinite in every median and has no mean: MSE and MAE are then left out, "
        "and NRMSE too where half of the windows diverged.",
    ),
    baselines=(
        ("last value", "last_value_"), ("last period", "last_period_"), ("mean", "mean_"),
        ("linear regression", "linear_"),
    ),
)  # fmt: skip

TEXT = TaskReport(
    training_noun="training windows",
    test_noun="blocks of test text",
    item_noun="blocks",
    outputs="continuation",
    # no verdict on novel words and repetition: less is better only down to the text's own share, which stands beside
    metrics=(
        Metric(
            "free_running.trigram_divergence", "free-running trigram divergence", "trigram divergence",
            "trigram divergence on dev, bits", "drawn", 4, "bits", "", most=1.0,
        ),
        Metric(
            "teacher_forced.bits_per_character", "teacher-forced bits per character", "bits per character",
            "bits per character, dev", "drawn", 4, "bits", "", zero=False,
            items=ItemReduction("errors", "length", 1 / math.log(2)),
        ),
        Metric(
            "free_running.novel_words", "free-running share of words never seen in training", "novel words %",
            "novel words on dev, %", "column", select=False, most=100.0, items=ItemReduction("novel", "words"),
        ),
        Metric(
            "free_running.repetition", "free-running repetition", "repetition %", "repetition on dev, %", "column",
            select=False, most=100.0,
        ),
        replace(_LOSS, role="listed"),
        _TOKEN_ACCURACY,
    ),
    notes=(
        "Free-running: the model continues the text before each block on its own. Trigram divergence: "
        "Jensen-Shannon divergence, in bits, between the three-character strings of its output and those of the "
        "training text; it varies over seeds alone. The verdict is about it. Teacher-forced: the history is the text "
        "itself, and bits per character measure the prediction; exposure bias cannot move them. Novel words: words in "
        "the output that the training text does not contain. Repetition: strings of ten characters that occurred "
        "earlier in the same block.",
        "The values of the text itself, for as many characters, show where a perfect model would lie: held-out text "
        "also has words that are new. (Its trigram divergence is that of the held-out part from the training part; a "
        "model of the training part can lie below it.) A model can have too many or too few novel words and "
        "repetitions, so these are displayed beside the text's own values and get no verdict.",
    ),
    references=(("the text itself", "text_"),),
)  # fmt: skip

PARALLEL = TaskReport(
    training_noun="training pairs",
    test_noun="test sentences",
    item_noun="sentences",
    outputs="words",
    metrics=(
        replace(_BLEU, axis="BLEU on dev", role="drawn"),
        _CHRF,
        replace(_LOSS, axis="nats per subword, dev"),
        replace(_TOKEN_ACCURACY, axis="accuracy on dev, %", role="column"),
        _LENGTH_RATIO,
    ),
    notes=(
        "Free-running: the history is the model's own output, as in use. Teacher-forced: the history is gold. "
        "BLEU and chrF: sacreBLEU's, over the complete test set, from 0 to 100; BLEU's signature is listed with the "
        "data. The interval of chrF holds for other seeds only, that of BLEU also for other sentences.",
    ),
)  # fmt: skip

RECORDS = TaskReport(
    training_noun="training records",
    test_noun="test records",
    item_noun="records",
    outputs="characters",
    metrics=(
        replace(_CHRF, role="drawn"),
        _BLEU,
        Metric(
            "free_running.cer", "free-running character error rate", "CER %", "CER on dev, %", "drawn",
            items=ItemReduction("errors", "length"),
        ),
        Metric(
            "free_running.sequence_accuracy", "free-running share of equal answers", "equal %", role="compared",
            higher=True, most=100.0, items=ItemReduction("right"), settled=True,
        ),
        replace(_LOSS, axis="nats per token, dev"),
        Metric(
            "teacher_forced.perplexity", "teacher-forced perplexity", "teacher-forced perplexity", decimals=4, unit="",
            sign="",
        ),
        replace(_TOKEN_ACCURACY, axis="accuracy on dev, %"),
        _LENGTH_RATIO,
    ),
    notes=(
        "Free-running: after the source or the prompt, the history is the model's own output, as in use. "
        "Teacher-forced: the history is gold. chrF and BLEU: sacreBLEU's, of raw text, over the complete test set. "
        "CER: edit errors in characters, divided by the references' characters; an answer that is far too long can "
        "exceed 100 %. Equal answers: under greedy decoding an answer equals its reference where every teacher-forced "
        "choice is right (or spells it with other tokens), so their share is no evidence of exposure bias. "
        "The interval of chrF holds for other seeds only, those of the others also for other records.",
    ),
)  # fmt: skip

_TOKEN_ERROR = Metric(
    "free_running.token_error", "free-running token error", "token error %", "token error on dev, %", "drawn",
    most=100.0, items=ItemReduction("free_errors", "positions"),
)  # fmt: skip
_EXACT_MATCH = Metric(
    "free_running.exact_match", "free-running exact matches", "exact %", role="column", higher=True, most=100.0,
    items=ItemReduction("right"), settled=True,
)  # fmt: skip

BATCHES_OF_IDS = TaskReport(
    training_noun="training batches",
    test_noun="test rows",
    item_noun="rows",
    outputs="symbols",
    metrics=(
        Metric(
            "free_running.edit_error", "free-running edit error", "edit error %", "edit error on dev, %", "drawn",
            items=ItemReduction("edits", "length"),
        ),
        _TOKEN_ERROR,
        _EXACT_MATCH,
        replace(
            _TOKEN_ERROR, name="teacher_forced.token_error", title="teacher-forced token error",
            heading="teacher-forced token error %", role="column", items=ItemReduction("forced_errors", "positions"),
        ),
        replace(
            _EXACT_MATCH, name="teacher_forced.exact_match", title="teacher-forced exact matches", role="listed",
            items=None,
        ),
        replace(_LOSS, axis="nats per entry, dev"),
    ),
    notes=(
        "Free-running: the model goes on from its own output, as in use. Teacher-forced: its history is gold. Edit "
        "error: edit distance to the reference by the reference's length. Token error: share of the entries that "
        "differ, position by position, so that a shift counts at every position after it. Exact matches: under greedy "
        "decoding a row is right exactly where every teacher-forced choice is, so that their share says nothing of "
        "exposure bias.",
    ),
    baselines=(("most frequent", "most_frequent_"),),
)  # fmt: skip

BATCHES_OF_VALUES = TaskReport(
    training_noun="training batches",
    test_noun="test rows",
    item_noun="rows",
    metrics=(
        _NRMSE,
        Metric(
            "free_running.mse", "free-running mean squared error", "MSE", "squared error on dev", "compared", 4, "", "",
            scale="log", items=ItemReduction("squared", "positions", 1.0),
        ),
        *_laws("positions"),
        Metric(
            "free_running.diverged", "share of diverged rows", "diverged %", "", "column", 1, select=False, most=100.0
        ),
        replace(
            _NRMSE, name="teacher_forced.nrmse", title="teacher-forced one-step NRMSE", heading="one-step NRMSE",
            items=ItemReduction("one_step_nrmse", median=True),
        ),
    ),
    notes=(
        "Free-running: the model goes on from its own outputs over the whole row, as in use. Teacher-forced: it reads "
        "the true value before each step. All errors are in standard deviations of the training targets. NRMSE: the "
        "root mean squared error of a row, median over rows. MSE: mean over rows and positions; a row that left the "
        "finite numbers leaves no mean.",
    ),
    baselines=(("last value", "last_value_"), ("mean", "mean_")),
)  # fmt: skip

_POSITION_ERROR = replace(
    _TOKEN_ERROR, title="free-running error by position", heading="wrong %", axis="wrong positions on dev, %"
)
_FORCED_POSITION_ERROR = replace(
    _POSITION_ERROR, name="teacher_forced.token_error", title="teacher-forced error by position",
    heading="teacher-forced wrong %", role="column", items=ItemReduction("forced_errors", "positions"),
)  # fmt: skip

LEVELS = TaskReport(
    training_noun="training windows",
    test_noun="test windows",
    item_noun="windows",
    outputs="positions",
    metrics=(
        _POSITION_ERROR,
        Metric(
            "free_running.within_one", "free-running share within one level", "within one level %", "", "compared",
            higher=True, most=100.0, items=ItemReduction("near", "positions"),
        ),
        Metric(
            "free_running.level_error", "free-running mean error", "error, levels", "", "compared", 3,
            "levels", "", items=ItemReduction("distance", "positions", 1.0),
        ),
        _FORCED_POSITION_ERROR,
        replace(_LOSS, axis="nats per level, dev"),
    ),
    notes=(
        "Free-running: the history is the model's own output over the complete horizon, as in use, one greedy run of "
        "each window. Teacher-forced: the history is the true levels. Error by position: share of positions whose "
        "level is not the true one. Within one level: share of positions at most one level from it. Error in levels: "
        "mean distance from it.",
        "Rows without a model: the last level, repeated; the level that is most frequent in training; the last period, "
        "repeated, of the length that is best in training; an n-gram, which goes on with what followed the longest "
        "context most often in training, of the length that is best on dev.",
    ),
    baselines=(
        ("last value", "last_value_"), ("most frequent", "most_frequent_"), ("cycle", "cycle_"), ("n-gram", "ngram_"),
    ),
)  # fmt: skip

LABELS = TaskReport(
    training_noun="training sequences",
    test_noun="test sequences",
    item_noun="sequences",
    outputs="positions",
    metrics=(_POSITION_ERROR, _FORCED_POSITION_ERROR, replace(_LOSS, axis="nats per label, dev")),
    notes=(
        "Free-running: the history is the model's own labels, as in use, one greedy run of each sequence. "
        "Teacher-forced: the history is the true labels. Error by position: share of positions whose label is not the "
        "true one.",
        "Rows without a model: the label that is most frequent in training; an n-gram of what is observed, which "
        "predicts the label that stood after the longest context most often in training, of the length that is best on "
        "dev. Exact filter: the most probable label from all that is observed up to a position, by the law that made "
        "the data; no labeller can expect fewer errors.",
    ),
    references=(("exact filter", "exact_"),),
    baselines=(("most frequent", "most_frequent_"), ("n-gram", "ngram_")),
)  # fmt: skip

REPORTS = (PAIRS, PARALLEL, TEXT, RECORDS, SERIES, LEVELS, LABELS, BATCHES_OF_IDS, BATCHES_OF_VALUES)

GAPS = tuple(dict.fromkeys(each.score for report in REPORTS for each in report.metrics if each.side == "gap"))
"""Scores with a gap: the free-running minus the teacher-forced value."""

# a task of the user's own may have any accuracy
_HIGHER = ("accuracy", *dict.fromkeys(each.score for report in REPORTS for each in report.metrics if each.higher))


def higher_is_better(score: str) -> bool:
    """Return True if more of a score is better: any accuracy, and the scores of ``REPORTS`` with ``higher``.

    >>> higher_is_better("token_accuracy"), higher_is_better("free_running_bleu"), higher_is_better("per")
    (True, True, False)
    """
    return score.endswith(_HIGHER)


def improves(select: str, value: float, best: float | None, share: float = 0.0) -> bool:
    """Return True if weights with this score replace those with the best so far; NaN never does.

    Of equal scores the first is kept; but the last where nothing is right (accuracy, BLEU or chrF 0, errors 100 %),
    which was trained for longer. A better score must be better by a share of the best.

    >>> improves("per", 7.0, 8.0), improves("sequence_accuracy", 7.0, 8.0), improves("per", float("nan"), None)
    (True, False, False)
    >>> improves("bleu", 0.0, 0.0), improves("wer", 100.0, 100.0), improves("bleu", 7.0, 7.0)
    (True, True, False)
    >>> improves("mse", 0.99, 1.0), improves("mse", 0.99, 1.0, 0.02), improves("mse", 0.97, 1.0, 0.02)
    (True, False, True)
    """
    if not math.isfinite(value) or best is None:
        return best is None and math.isfinite(value)
    higher = higher_is_better(select)
    if value == best:
        return value == (0 if higher else 100)
    return (value - best if higher else best - value) > share * abs(best)
