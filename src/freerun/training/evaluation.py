"""Pairs of sequences as a task: training batches, and scores teacher-forced and free-running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import Module

from freerun.data.pair_data import PairCoder, PairData
from freerun.data.pairs import Pairs
from freerun.data.vocabulary import Symbols
from freerun.errors import UserError
from freerun.scores import score
from freerun.training.both_sides import free_running, teacher_forced
from freerun.training.task import DataTask, Evaluation

__all__ = ["SCORES", "EvaluateSettings", "PairTask", "evaluate_pairs", "say"]

SCORES = {
    "teacher_forced": ("loss", "token_accuracy", "sequence_accuracy", "per", "wer"),
    "free_running": ("per", "wer", "sequence_accuracy"),
}
"""What ``evaluate_pairs`` gives, by side."""


@dataclass(frozen=True)
class EvaluateSettings:
    """How a model is scored.

    Args:
        beams: 1 is greedy; more is beam search of that width.
        length_penalty: as in ``generate``; 0 compares log-probabilities; no effect with one beam.
        margin: free running may say this many symbols more than the longest training target.
        batch_size: words scored at once; no score depends on it.
        words: dev words scored, spread evenly over the split; None: all. Test is always scored whole.

    Raises:
        UserError: values out of range; all problems at once.
    """

    beams: int = 1
    length_penalty: float = 0.0
    margin: int = 5
    batch_size: int = 512
    words: int | None = None

    def __post_init__(self) -> None:
        least = {"beams": 1, "length_penalty": 0, "margin": 0, "batch_size": 1, "words": 1}
        given = {name: getattr(self, name) for name in least}
        problems = [
            f"evaluate.{name} must be at least {least[name]}; got {value}"
            for name, value in given.items()
            if value is not None and not value >= least[name]
        ]
        if problems:
            raise UserError(problems)


class PairTask(DataTask[PairData, EvaluateSettings]):
    """Pairs to train on, scored by PER and WER: a ``Task`` of the training loop.

    Args:
        data: the pairs.
        settings: of the evaluation; the defaults of ``EvaluateSettings`` if left out.
    """

    def __init__(self, data: PairData, settings: EvaluateSettings | None = None) -> None:
        super().__init__(data, settings or EvaluateSettings())

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``settings.words`` of its words) or "test"; see ``evaluate_pairs``."""
        words = self.settings.words if split == "dev" else None
        return evaluate_pairs(model, self.data.coder, self.data.evaluation(split, words), self.settings)


def evaluate_pairs(
    model: Module, coder: PairCoder, pairs: Pairs, settings: EvaluateSettings | None = None
) -> Evaluation:
    """Scores of a model on words with references, told gold and running freely.

    Teacher-forced: ``loss`` in nats per symbol over every (word, reference) pair, end symbol included;
    ``token_accuracy`` over the same positions. ``sequence_accuracy``, ``wer`` and ``per`` take for each word
    the reference with the fewest wrong choices: ``per`` = wrong choices (the end symbol's too) / symbols of
    that reference, so that it is measured like the free-running PER. All but the loss are in percent.

    Free-running: ``per``, ``wer``, ``sequence_accuracy`` = 100 - wer, in percent; see ``freerun.scores``.

    What leaving gold costs shows in ``per``, not in ``wer``: greedy free running says exactly a reference if
    and only if every teacher-forced choice along it is right, so the two WERs are equal for one beam.

    Args:
        model: from a Batch to (batch, time, vocab); its mode is restored afterwards.
        coder: the vocabularies the model was trained with.
        pairs: words and references.
        settings: of the evaluation.

    Raises:
        UserError: symbols were never seen in training.
    """
    settings = settings or EvaluateSettings()
    gold = _teacher_forced(model, coder, pairs, settings.batch_size)
    outputs = say(model, coder, pairs.sources, settings)
    own, found = score(outputs, pairs.references)
    own["sequence_accuracy"] = 100 - own["wer"]
    items = [
        {
            "source": "".join(source),
            "output": " ".join(output),
            "references": [" ".join(reference) for reference in references],
            **item,
        }
        for source, output, references, item in zip(pairs.sources, outputs, pairs.references, found, strict=True)
    ]
    return Evaluation(gold, own, items)


def say(
    model: Module, coder: PairCoder, sources: Sequence[Symbols], settings: EvaluateSettings | None = None
) -> list[Symbols]:
    """What a model says to some sources, running freely: the symbols before the end symbol.

    Raises:
        UserError: symbols of a source were never seen in training.
    """
    settings = settings or EvaluateSettings()
    # the end symbol may follow the last one
    length = coder.longest + settings.margin + 1
    said = free_running(
        model,
        lambda chosen: coder.source_batch([sources[i] for i in chosen], length),
        [len(source) for source in sources],
        settings.batch_size,
        length=length,
        beams=settings.beams,
        length_penalty=settings.length_penalty,
    )
    return [coder.target_vocab.symbols_of(entries) for entries in said]


def _teacher_forced(model: Module, coder: PairCoder, pairs: Pairs, batch_size: int) -> dict[str, float]:
    flat = list(pairs.flat())
    losses, errors = teacher_forced(
        model,
        lambda chosen: coder.pair_batch([flat[i][0] for i in chosen], [flat[i][1] for i in chosen]),
        [len(source) for source, _ in flat],
        batch_size,
    )
    positions = sum(len(target) for _, target in flat) + len(flat)
    wrong_choices, symbols, wrong_words = _nearest_counts(pairs, errors.tolist())
    wer = 100 * wrong_words / len(pairs)
    return {
        "loss": float(losses.sum()) / positions,
        "token_accuracy": 100 - 100 * int(errors.sum()) / positions,
        "sequence_accuracy": 100 - wer,
        "per": 100 * wrong_choices / symbols,
        "wer": wer,
    }


def _nearest_counts(pairs: Pairs, errors: list[int]) -> tuple[int, int, int]:
    """Wrong choices, symbols and wrong words, each word by the reference with the fewest wrong choices."""
    rest = iter(errors)
    wrong_choices = symbols = wrong_words = 0
    for references in pairs.references:
        found, length = min(((next(rest), len(reference)) for reference in references), key=lambda two: two[0])
        wrong_choices += found
        symbols += length
        wrong_words += found > 0
    return wrong_choices, symbols, wrong_words
