"""Translation as a task: training batches of subwords; loss told gold, BLEU and chrF running freely."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Module

from freerun.data.parallel_data import ParallelCoder, ParallelData
from freerun.data.parallel_files import Sentences
from freerun.scores import bleu_signature, score_translations
from freerun.training.both_sides import free_running, teacher_forced
from freerun.training.evaluation import EvaluateSettings
from freerun.training.task import DataTask, Evaluation

__all__ = ["SCORES", "TranslateTask", "evaluate_translations", "translate"]

SCORES = {"teacher_forced": ("loss", "token_accuracy"), "free_running": ("bleu", "chrf", "length_ratio")}
"""What ``evaluate_translations`` gives, by side."""


class TranslateTask(DataTask[ParallelData, EvaluateSettings]):
    """Parallel text to train on, scored by BLEU and chrF: a ``Task`` of the training loop.

    Args:
        data: sentences and translations.
        settings: of the evaluation, ``words`` being sentences and ``margin`` subwords; the defaults of
            ``EvaluateSettings`` if left out.

    Raises:
        UserError: the package sacrebleu is not installed.
    """

    def __init__(self, data: ParallelData, settings: EvaluateSettings | None = None) -> None:
        super().__init__(data, settings or EvaluateSettings())
        # a missing package is said before training, not after the first thousand updates
        self.signature = bleu_signature()

    def header(self) -> list[str]:
        """What the data are, and how BLEU is counted, in lines."""
        return [*super().header(), f"BLEU: {self.signature}"]

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``settings.words`` of its sentences) or "test"; see ``evaluate_translations``."""
        sentences = self.settings.words if split == "dev" else None
        return evaluate_translations(model, self.data.coder, self.data.evaluation(split, sentences), self.settings)


def evaluate_translations(
    model: Module, coder: ParallelCoder, sentences: Sentences, settings: EvaluateSettings | None = None
) -> Evaluation:
    """Scores of a model on sentences with translations, told gold and running freely.

    Teacher-forced, over all positions, end symbols included: ``loss`` in nats per subword (it depends on the
    subwords, so it compares models of one encoding), ``token_accuracy`` in percent. Free-running: ``bleu``, ``chrf``
    and ``length_ratio`` = output words / reference words; see ``freerun.scores.score_translations``. An item holds
    source, output, reference and ``bleu``, the numbers that BLEU is made of.

    Args:
        model: from a Batch to (batch, time, vocab); its mode is restored afterwards.
        coder: the subwords the model was trained with.
        sentences: sources and translations, tokenised as the training text was.
        settings: of the evaluation.

    Raises:
        UserError: a sentence is empty.
    """
    settings = settings or EvaluateSettings()
    sources, targets = sentences.sources, sentences.targets
    losses, errors = teacher_forced(
        model,
        lambda chosen: coder.pair_batch([sources[i] for i in chosen], [targets[i] for i in chosen]),
        [len(target.split()) for target in targets],
        settings.batch_size,
    )
    positions = sum(len(ids) + 1 for ids in coder.subwords.encode(targets))
    gold = {"loss": float(losses.sum()) / positions, "token_accuracy": 100 - 100 * int(errors.sum()) / positions}
    outputs = translate(model, coder, sources, settings)
    own, parts = score_translations(outputs, targets)
    items = [
        {"source": source, "output": output, "reference": target, **part}
        for source, output, target, part in zip(sources, outputs, targets, parts, strict=True)
    ]
    return Evaluation(gold, own, items)


def translate(
    model: Module, coder: ParallelCoder, sources: Sequence[str], settings: EvaluateSettings | None = None
) -> list[str]:
    """What a model says to some sources, running freely: words with single blanks between them.

    Raises:
        UserError: a source is empty.
    """
    settings = settings or EvaluateSettings()
    # the end symbol may follow the last one
    length = coder.longest + settings.margin + 1
    said = free_running(
        model,
        lambda chosen: coder.source_batch([sources[i] for i in chosen], length),
        [len(source.split()) for source in sources],
        settings.batch_size,
        length=length,
        beams=settings.beams,
        length_penalty=settings.length_penalty,
    )
    return [coder.text(entries) for entries in said]
