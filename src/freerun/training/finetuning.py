"""Records as a task: what a Hugging Face model answers, told gold and running freely."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from freerun.data.records import Encoded, Record, RecordCoder, RecordData
from freerun.errors import UserError
from freerun.generate import generate
from freerun.rollin.modes import evaluating
from freerun.scores import bleu_signature, score_texts
from freerun.training.both_sides import by_length, teacher_forced
from freerun.training.task import DataTask, Evaluation

__all__ = ["SCORES", "AnswerSettings", "RecordTask", "answers", "evaluate_records"]

SCORES = {
    "teacher_forced": ("loss", "perplexity", "token_accuracy"),
    "free_running": ("chrf", "bleu", "cer", "sequence_accuracy", "length_ratio"),
}
"""What ``evaluate_records`` gives, by side."""


@dataclass(frozen=True)
class AnswerSettings:
    """How a model's answers are scored.

    Args:
        beams: 1 is greedy; more is beam search of that width.
        length_penalty: as in ``generate``; no effect with one beam.
        length: tokens that an answer may have, the end symbol included; None: those of the longest training answer, its
            end and ``margin`` more.
        margin: see ``length``.
        batch_size: records at once; no score depends on it.
        items: dev records scored, spread evenly; None: all. Test is always scored whole.

    Raises:
        UserError: values out of range; all problems at once.
    """

    beams: int = 1
    length_penalty: float = 0.0
    length: int | None = None
    margin: int = 5
    batch_size: int = 32
    items: int | None = None

    def __post_init__(self) -> None:
        least = {"beams": 1, "length_penalty": 0, "length": 1, "margin": 0, "batch_size": 1, "items": 1}
        problems = [
            f"evaluate.{name} must be at least {least[name]}; got {value}"
            for name in least
            if (value := getattr(self, name)) is not None and not value >= least[name]
        ]
        if problems:
            raise UserError(problems)

    def most(self, coder: RecordCoder) -> int:
        """Tokens that an answer may have."""
        return coder.longest + self.margin + 1 if self.length is None else self.length


class RecordTask(DataTask[RecordData, AnswerSettings]):
    """Records to train on, scored by what is answered: a ``Task`` of the training loop.

    Args:
        data: the records, bound to the model before the first batch is asked for.
        settings: of the evaluation; the defaults of ``AnswerSettings`` if left out.

    Raises:
        UserError: the package sacrebleu is not installed.
    """

    def __init__(self, data: RecordData, settings: AnswerSettings | None = None) -> None:
        super().__init__(data, settings or AnswerSettings())
        # a missing package is said before training, not after the first thousand updates
        self.signature = bleu_signature("13a")

    def header(self) -> list[str]:
        """What the data are, and how BLEU is counted, in lines."""
        return [*super().header(), f"BLEU: {self.signature}"]

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``settings.items`` of its records) or "test"; see ``evaluate_records``."""
        records, encoded = self.data.evaluation(split, self.settings.items if split == "dev" else None)
        return evaluate_records(model, self.data.coder, records, encoded, self.settings)

    def saved_files(self, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
        """What ``from_pretrained`` reads: the model with these weights, and its tokenizer."""
        from freerun.training.pretrained import saved_files

        return saved_files(self.data.coder.model, weights, self.data.coder.tokenizer)


def evaluate_records(
    model: Module,
    coder: RecordCoder,
    records: Sequence[Record],
    encoded: Sequence[Encoded],
    settings: AnswerSettings | None = None,
) -> Evaluation:
    """Scores of a model on records, told gold and running freely.

    Teacher-forced, over the tokens of the answers, end symbols included (of plain text: over all tokens):
    ``loss`` in nats per token, ``perplexity = exp(loss)``, ``token_accuracy`` in percent. They depend on the tokenizer.
    Free-running, the model is told source or prompt (of a conversation all before the last answer, of plain text its
    first half) and goes on by itself; its text is compared with the record's: see ``freerun.scores.score_texts``.

    Args:
        model: an adapted Hugging Face model; its mode is restored afterwards.
        coder: makes batches and text; bound to the model.
        records: as text.
        encoded: the same as ids.
        settings: of the evaluation.

    Raises:
        UserError: there is no record.
    """
    settings = settings or AnswerSettings()
    make = coder.training_batch if coder.shape == "text" else coder.answer_batch
    positions = sum(len(one.said) + (len(one.told) - 1 if coder.shape == "text" else 0) for one in encoded)
    losses, errors = teacher_forced(
        model, lambda chosen: make([encoded[i] for i in chosen]), [len(one) for one in encoded], settings.batch_size
    )
    loss = float(losses.sum()) / positions
    gold = {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "token_accuracy": 100 - 100 * int(errors.sum()) / positions,
    }
    said = answers(model, coder, [one.told for one in encoded], settings)
    references = [coder.reference(record, one) for record, one in zip(records, encoded, strict=True)]
    own, parts = score_texts(said, references)
    items = [
        {"source": _shown(record), "output": output, "reference": reference, **part}
        for record, output, reference, part in zip(records, said, references, parts, strict=True)
    ]
    return Evaluation(gold, own, items)


def answers(
    model: Module, coder: RecordCoder, prompts: Sequence[Sequence[int]], settings: AnswerSettings | None = None
) -> list[str]:
    """What a model says after some prompts (or sources), running freely, as text.

    Args:
        model: an adapted Hugging Face model; its mode is restored afterwards.
        coder: bound to the model.
        prompts: ids, one list each.
        settings: how it says it.
    """
    settings = settings or AnswerSettings()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    said = [""] * len(prompts)
    with evaluating(model), torch.no_grad():
        for chosen in by_length([len(prompt) for prompt in prompts], settings.batch_size):
            found = generate(
                model,
                coder.prompt_batch([prompts[i] for i in chosen]).to(device),
                length=settings.most(coder),
                end=coder.end,
                beams=settings.beams,
                length_penalty=settings.length_penalty,
            )
            for i, entries in zip(chosen, found.entries.tolist(), strict=True):
                said[i] = coder.text(entries)
    return said


def _shown(record: Record) -> Any:
    return record.told if isinstance(record.told, str) else [dict(message) for message in record.told]
