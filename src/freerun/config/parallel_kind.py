"""Parallel text, translated, as a kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from freerun.config.data_sections import DataFile
from freerun.config.data_sections import ParallelData as ParallelSection
from freerun.config.pairs_kind import positions_for, scoring, too_long
from freerun.config.recipe import EvaluateSettings
from freerun.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.data import ParallelCoder, ParallelData
    from freerun.training import Evaluation
    from freerun.training.reported import Reported
    from freerun.training.translation import TranslateTask
    from freerun.types import Batch

__all__ = ["ParallelKind"]


class ParallelKind:
    """Sentences -> translations, from line-aligned files; see ``TaskKind``."""

    models = ("transformer", "recurrent")
    evaluate: type[Any] = EvaluateSettings
    select = "bleu"
    # of length_ratio neither more nor less is better
    selectable = ("bleu", "chrf", "teacher_forced_loss", "teacher_forced_token_accuracy")
    values = False
    tables = False
    aligned = True
    needs_training_data = False

    def reported(self) -> Reported:
        """BLEU, free-running, first."""
        from freerun.training.reported_texts import PARALLEL

        return PARALLEL

    def load(self, settings: ParallelSection, model: object) -> ParallelData:
        """The sentences and their subwords.

        Raises:
            UserError: all problems of the files; the package tokenizers is not installed.
        """
        from freerun.data import ParallelOptions, load_parallel

        options = ParallelOptions(
            source=settings.source,
            target=settings.target,
            encoding=settings.encoding,
            subwords=settings.subwords,
            max_length=settings.max_length,
            too_long=settings.too_long,
            empty=settings.empty,
            limit=settings.limit,
        )
        given = {"train": settings.train, "dev": settings.dev, "test": settings.test}
        files = {split: pair for split, pair in given.items() if pair is not None}
        return load_parallel(settings.path, options, files=files)

    def make(self, data: ParallelData, settings: EvaluateSettings, items: int | None) -> TranslateTask:
        """BLEU and chrF on so many sentences of dev."""
        from freerun.training.translation import TranslateTask

        return TranslateTask(data, scoring(settings, words=items))

    def sizes(self, data: ParallelData) -> tuple[int, ...]:
        """Of source and target, which share their subwords."""
        return data.coder.sizes

    def positions(self, data: ParallelData, settings: EvaluateSettings) -> tuple[int, str]:
        """For every source, every target with its end, and what free running may say, in subwords."""
        return positions_for(data.longest_sides, data.coder.longest, settings.length_margin)

    def frequencies(self, data: ParallelData) -> tuple[float, ...]:
        """The end symbol counts once in each target."""
        return data.frequencies

    def coder(self, description: Mapping[str, Any]) -> ParallelCoder:
        """The subwords and the longest target."""
        from freerun.data import ParallelCoder

        return ParallelCoder.from_description(description)

    def score(
        self,
        model: Module,
        coder: ParallelCoder,
        settings: EvaluateSettings,
        data: ParallelData | None,
        file: DataFile | None,
    ) -> tuple[dict[str, Any], Evaluation]:
        """On the test split, or on a file of ``source<TAB>translation`` lines.

        Raises:
            UserError: what is wrong with the file; its sentences are too long for the model.
        """
        from freerun.data import read_sentences
        from freerun.data.text import first_problems
        from freerun.scores import bleu_signature
        from freerun.training.translation import evaluate_translations

        if file is not None:
            sentences = read_sentences(file.path, encoding=file.encoding)
            # every line is a sentence, or the file is refused
            places = [f"{file.path}:{number}" for number in range(1, len(sentences) + 1)]
            sides = {"source": sentences.sources, "target": sentences.targets}
            lengths = {side: [len(ids) for ids in coder.subwords.encode(texts)] for side, texts in sides.items()}
            if problems := too_long(model, lengths, places):
                raise UserError(first_problems(str(file.path), problems))
        else:
            assert data is not None  # see needs_own_data
            sentences = data.evaluation("test")
        found = evaluate_translations(model, coder, sentences, scoring(settings))
        facts = {"data": sentences.origin, "sentences": len(sentences), "beams": settings.beams}
        return {**facts, "bleu": bleu_signature()}, found

    def answer(
        self,
        model: Module,
        coder: ParallelCoder,
        settings: EvaluateSettings,
        lines: Sequence[str],
        places: Sequence[str],
    ) -> list[str]:
        """Translations alone, line by line.

        Raises:
            UserError: blank lines, or lines too long for the model; the first 20 of them.
        """
        from freerun.data.text import first_problems
        from freerun.training.translation import translate

        problems = [
            f"{place}: the line is empty; expected a sentence"
            for place, line in zip(places, lines, strict=True)
            if not line.strip()
        ]
        problems += too_long(model, {"source": [len(ids) for ids in coder.subwords.encode(lines)]}, places)
        if problems:
            raise UserError(first_problems("the input", problems))
        return translate(model, coder, lines, scoring(settings))

    def trial_batch(self, coder: ParallelCoder, rows: int) -> Batch:
        """Random subwords, of different lengths."""
        import torch

        from freerun.keys import bits
        from freerun.types import Batch

        def ragged(key: int, shortest: int) -> tuple[torch.Tensor, torch.Tensor]:
            drawn = 1 + bits(key, torch.arange(rows)[:, None], torch.arange(rows + shortest)) % (
                len(coder.subwords) - 1
            )
            mask = torch.arange(rows + shortest) <= torch.arange(shortest, rows + shortest)[:, None]
            return drawn.masked_fill(~mask, 0), mask

        source, source_mask = ragged(1, 3)
        targets, mask = ragged(2, 2)
        return Batch(targets, targets, mask, {"source": source, "source_mask": source_mask})
