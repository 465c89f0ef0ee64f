"""What is told of a comparison of models of text: language, translation, records."""

from __future__ import annotations

from typing import Any

import numpy as np

from freerun.training.reported import Measure, OverItems, Reported

__all__ = ["PARALLEL", "RECORDS", "TEXT", "bleu"]

Array = Any

_TEXT = (
    "free_running.trigram_divergence", "teacher_forced.bits_per_character", "free_running.novel_words",
    "free_running.repetition",
)  # fmt: skip

TEXT = Reported(
    examples="training windows",
    items="blocks of test text",
    others="blocks",
    measures=(
        Measure(
            _TEXT[0], "free-running trigram divergence", "trigram divergence", "trigram divergence on dev, bits", 4,
            "bits", "", most=1.0,
        ),
        Measure(
            _TEXT[1], "teacher-forced bits per character", "bits per character", "bits per character, dev", 4, "bits",
            "", zero=False, items=OverItems("errors", "length", float(1 / np.log(2))),
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
            "equal answers on dev, %", most=100.0, items=OverItems("right"), settled=True,
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
        "Equal answers: under greedy decoding an answer equals its reference where every teacher-forced choice is "
        "right (or spells it with other tokens), so that their share says nothing of exposure bias. "
        "The interval of chrF holds for other seeds alone, those of the others also for other records.",
    ),
)  # fmt: skip
