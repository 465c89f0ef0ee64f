"""Records and a Hugging Face model that answers them, as a kind of task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from freerun.arguments import number_field
from freerun.data.files import DataFile
from freerun.data.records import Encoded, Record, RecordCodec, RecordData
from freerun.errors import UserError, visible
from freerun.generation import generate
from freerun.metrics.text import bleu_signature, score_texts
from freerun.models.pretrained import Pretrained
from freerun.rollin.model import eval_mode
from freerun.tasks.base import DataTask, Evaluation
from freerun.tasks.record_inputs import (
    check_vocabulary,
    inert_settings,
    parse_prompts,
    refuse_shape,
    refuse_without_template,
)
from freerun.tasks.sections import PARTS, RecordsData
from freerun.tasks.sequences import batches_by_length, teacher_forced_errors
from freerun.tasks.text import escaped

if TYPE_CHECKING:
    from freerun.batch import Batch
    from freerun.data.records import RecordOptions, Records
    from freerun.metrics.table import TaskReport


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

    def most(self, codec: RecordCodec) -> int:
        """Tokens that an answer may have."""
        return codec.longest + self.margin + 1 if self.length is None else self.length


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
        return evaluate_records(model, self.data.codec, records, encoded, self.settings)

    def saved_files(self, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
        """What ``from_pretrained`` reads: the model with these weights, and its tokenizer."""
        from freerun.models.pretrained import saved_files

        return saved_files(self.data.codec.model, weights, self.data.codec.tokenizer)


def evaluate_records(
    model: Module,
    codec: RecordCodec,
    records: Sequence[Record],
    encoded: Sequence[Encoded],
    settings: AnswerSettings | None = None,
) -> Evaluation:
    """Scores of a model on records, told gold and running freely.

    Teacher-forced, over the tokens of the answers, end symbols included (of plain text: over all tokens):
    ``loss`` in nats per token, ``perplexity = exp(loss)``, ``token_accuracy`` in percent. They depend on the tokenizer.
    Free-running, the model is told source or prompt (of a conversation all before the last answer, of plain text its
    first half) and goes on by itself; its text is compared with the record's: see ``freerun.metrics.text.score_texts``.

    Args:
        model: an adapted Hugging Face model; its mode is restored afterwards.
        codec: makes batches and text; bound to the model.
        records: as text.
        encoded: the same as ids.
        settings: of the evaluation.

    Raises:
        UserError: there is no record.
    """
    settings = settings or AnswerSettings()
    make = codec.training_batch if codec.shape == "text" else codec.answer_batch
    positions = sum(len(one.target) + (len(one.prompt) - 1 if codec.shape == "text" else 0) for one in encoded)
    losses, errors = teacher_forced_errors(
        model, lambda chosen: make([encoded[i] for i in chosen]), [len(one) for one in encoded], settings.batch_size
    )
    loss = float(losses.sum()) / positions
    gold = {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "token_accuracy": 100 - 100 * int(errors.sum()) / positions,
    }
    said = answers(model, codec, [one.prompt for one in encoded], settings)
    references = [codec.reference(record, one) for record, one in zip(records, encoded, strict=True)]
    own, parts = score_texts(said, references)
    items = [
        {"source": _shown(record), "output": output, "reference": reference, **part}
        for record, output, reference, part in zip(records, said, references, parts, strict=True)
    ]
    return Evaluation(gold, own, items)


def answers(
    model: Module, codec: RecordCodec, prompts: Sequence[Sequence[int]], settings: AnswerSettings | None = None
) -> list[str]:
    """What a model says after some prompts (or sources), running freely, as text.

    Args:
        model: an adapted Hugging Face model; its mode is restored afterwards.
        codec: bound to the model.
        prompts: ids, one list each.
        settings: how it says it.
    """
    settings = settings or AnswerSettings()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    said = [""] * len(prompts)
    with eval_mode(model), torch.no_grad():
        for chosen in batches_by_length([len(prompt) for prompt in prompts], settings.batch_size):
            found = generate(
                model,
                codec.prompt_batch([prompts[i] for i in chosen]).to(device),
                length=settings.most(codec),
                end=codec.end,
                beams=settings.beams,
                length_penalty=settings.length_penalty,
            )
            for i, entries in zip(chosen, found.entries.tolist(), strict=True):
                said[i] = codec.text(entries)
    return said


def _shown(record: Record) -> Any:
    return record.prompt if isinstance(record.prompt, str) else [dict(message) for message in record.prompt]


@dataclass(frozen=True)
class RecordsEvaluate:
    """How answers are scored, on dev while training and on test at the end.

    Args:
        beams: 1: greedy; more: beam search of that width.
        length_penalty: as in ``generate``: 0 compares beams by log-probability; no effect with one beam.
        length: tokens that an answer may have, the end symbol included (None: those of the longest training answer, and
            ``length_margin`` more).
        length_margin: see ``length``.
        batch_size: records at a time; changes no number.
    """

    beams: int = number_field(1, low=1, high=100)
    length_penalty: float = number_field(0.0, low=0.0, high=100.0)
    length: int | None = number_field(None, low=1, high=100_000)
    length_margin: int = number_field(5, low=0, high=10_000)
    batch_size: int = number_field(16, low=1, semantic=False)


class RecordsKind:
    """Sources and targets, prompts and completions, conversations or texts; see ``TaskKind``."""

    models = ("huggingface",)
    evaluate: type[Any] = RecordsEvaluate
    select = "chrf"
    values = False
    tables = False
    aligned = True
    needs_training_data = False

    def reported(self) -> TaskReport:
        """chrF, free-running, first."""
        from freerun.metrics.table import RECORDS

        return RECORDS

    def load(self, settings: RecordsData, given: Pretrained) -> RecordData:
        """The records and their ids by the model's tokenizer.

        Raises:
            UserError: all problems of the files; a tokenizer that is not the model's, cannot pad or has no chat
                template; records that the model has no positions for, or that are of no use to it.
        """
        from freerun.data.records import Limits, RecordCodec, encoded_data, encoded_problems, load_records
        from freerun.models.pretrained import model_positions, read_config, read_tokenizer

        config = read_config(given.path)
        tokenizer = read_tokenizer(given)
        check_vocabulary(tokenizer, config, given)
        limits = Limits(settings.max_source, settings.max_target, model_positions(config), settings.too_long)

        def codec(records: Records) -> RecordCodec:
            refuse_shape(records.shape, bool(config.is_encoder_decoder), given.path)
            made = RecordCodec(
                tokenizer,
                records.shape,
                records.columns,
                causal=not config.is_encoder_decoder,
                prefix=settings.prefix,
                chat=settings.chat,
                separator=settings.separator,
            )
            refuse_without_template(made, given)
            if problems := inert_settings(settings, made):
                raise UserError(problems)
            return made

        # what is wrong with a row is said beside what is wrong with the others, though these are no records
        records = load_records(
            str(settings.path), _options(settings), lambda sound: encoded_problems(sound, codec(sound), limits)
        )
        return encoded_data(records, codec(records), limits)

    def make(self, data: RecordData, settings: RecordsEvaluate, items: int | None) -> RecordTask:
        """chrF, BLEU and character errors on so many records of dev."""
        pass

        return RecordTask(data, _scoring(settings, items))

    def sizes(self, data: RecordData) -> tuple[int, ...]:
        """None: a saved model has its sizes."""
        return ()

    def positions(self, data: RecordData, settings: RecordsEvaluate) -> tuple[int, str]:
        """For what free running may say, after the longest prompt of a causal model."""
        most = _scoring(settings).most(data.codec)
        said = f"free running may say {most} tokens (evaluate.length)"
        if not data.codec.causal:
            return most, said
        told = max(len(one.prompt) for split in ("dev", "test") for one in data.splits[split].encoded)
        return told + most, f"the longest prompt of dev and test has {told} tokens and {said}"

    def frequencies(self, data: RecordData) -> tuple[float, ...]:
        """Of what is to be said in the training records."""
        return data.frequencies

    def codec(self, description: Mapping[str, Any]) -> RecordCodec:
        """Not from a description alone: see ``freerun.recipes.build``."""
        raise UserError("a model of kind huggingface is read with its tokenizer")

    def score(
        self,
        model: Module,
        codec: RecordCodec,
        settings: RecordsEvaluate,
        data: RecordData | None,
        file: DataFile | None,
    ) -> tuple[dict[str, Any], Evaluation]:
        """On the test split, or on a file with the same columns.

        Raises:
            UserError: what is wrong with the file; its records are too long for the model.
        """
        from freerun.metrics.text import bleu_signature

        pass

        scoring = _scoring(settings)
        if file is None:
            assert data is not None
            name, (records, encoded) = f"{data.name}, test", data.evaluation("test")
        else:
            name, (records, encoded) = str(file.path), _from_file(model, codec, scoring, file)
        found = evaluate_records(model, codec, records, encoded, scoring)
        facts = {"data": name, "records": len(records), "beams": settings.beams}
        return {**facts, "length": scoring.most(codec), "bleu": bleu_signature("13a")}, found

    def answer(
        self, model: Module, codec: RecordCodec, settings: RecordsEvaluate, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        r"""The answer to each line; to lines that are JSON objects, the same objects with an ``output``.

        A plain line is a source, a prompt, the user's first message or the beginning of a text; in it and in the answer
        a line break is written ``\n``, a tab ``\t``.

        Raises:
            UserError: empty lines, objects without the column that is told or with an ``output``, conversations that
                are none, prompts too long for the model; the first 20 of them.
        """
        from freerun.data.files import first_problems

        pass

        rows, told, problems = parse_prompts(codec, lines, places)
        prompts: list[list[int]] = []
        for place, text in zip(places, told, strict=True):
            try:
                prompts += codec.prompts([text]) if text else [[]]
            except ValueError as error:
                prompts.append([])
                problems.append(f"{place}: {error}")
        most = _scoring(settings).most(codec)
        problems += [
            f"{place}: {words}" for place, ids in zip(places, prompts, strict=True)
            if ids and (words := _beyond(model, codec, len(ids), most))
        ]  # fmt: skip
        problems += [
            f"{place}: the tokenizer makes nothing of it"
            for place, text, ids in zip(places, told, prompts, strict=True)
            if text and not ids and not any(problem.startswith(f"{place}: ") for problem in problems)
        ]
        if problems:
            raise UserError(first_problems("the input", problems))
        said = answers(model, codec, prompts, _scoring(settings))
        return [
            escaped(text) if row is None else _object_line({**row, "output": text})
            for row, text in zip(rows, said, strict=True)
        ]

    def trial_batch(self, codec: RecordCodec, rows: int) -> Batch:
        """Random ids, of different lengths."""
        from freerun.data.records import trial_encoded

        return codec.answer_batch(trial_encoded(codec.model.target_vocab, rows))


def _object_line(row: Mapping[str, Any]) -> str:
    """JSON as people read it; with escapes where a character would steer a terminal or cannot be written."""
    line = json.dumps(row, ensure_ascii=False)
    return line if visible(line) == line else json.dumps(row)


def _options(settings: RecordsData) -> RecordOptions:
    from freerun.data.records import RecordOptions

    return RecordOptions(
        columns={part: getattr(settings, part) for part in PARTS},
        format=settings.format,
        separator=settings.separator,
        encoding=settings.encoding,
        dev=settings.dev,
        test=settings.test,
        seed=settings.split_seed,
        empty=settings.empty,
        limit=settings.limit,
    )


def _scoring(settings: RecordsEvaluate, items: int | None = None) -> Any:
    pass

    return AnswerSettings(
        beams=settings.beams,
        length_penalty=settings.length_penalty,
        length=settings.length,
        margin=settings.length_margin,
        batch_size=settings.batch_size,
        items=items,
    )


def _from_file(model: Module, codec: RecordCodec, scoring: Any, file: DataFile) -> tuple[list[Record], list[Encoded]]:
    from freerun.data.files import first_problems
    from freerun.data.records import Limits, RecordOptions, fit_lengths, read_records

    made: Any = model

    def further(records: list[Record]) -> list[str]:
        return fit_lengths(codec, records, Limits(positions=made.limit), str(file.path)).problems

    options = RecordOptions(encoding=file.encoding, separator=codec.separator)
    records = read_records(file.path, codec.shape, codec.columns, options, further)
    found = fit_lengths(codec, records, Limits(positions=made.limit), str(file.path))
    problems = found.problems or [
        f"{record.place}: {words}" for record, one in zip(found.records, found.encoded, strict=True)
        if (words := _beyond(model, codec, len(one.prompt), scoring.most(codec)))
    ]  # fmt: skip
    if problems:
        raise UserError(first_problems(str(file.path), problems))
    return found.records, found.encoded


def _beyond(model: Any, codec: RecordCodec, told: int, said: int) -> str:
    """What is wrong with a prompt of so many tokens before an answer of so many; "" where nothing is."""
    limit = model.limit
    if limit is None:
        return f"has {told:,} tokens, and at most 20,000 are read at once: shorten it" if told > 20_000 else ""
    if told + said <= limit if codec.causal else max(told, said) <= limit:
        return ""
    return (
        f"has {told} tokens, its answer may have {said}, and the model has {limit} positions: shorten it, or lower "
        "evaluate.length (--length)"
    )
