"""Records and a Hugging Face model that answers them, as a kind of task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import Module

from freerun.arguments import Arguments, at_least, between
from freerun.batch import Batch
from freerun.data.files import DataFile, first_problems
from freerun.data.records import (
    Encoded,
    Limits,
    Record,
    RecordCodec,
    RecordData,
    RecordOptions,
    Records,
    encoded_data,
    encoded_problems,
    fit_lengths,
    load_records,
    read_records,
    trial_encoded,
)
from freerun.diagnostics import DiagnosisOptions
from freerun.errors import UserError, visible
from freerun.metrics.table import RECORDS, TaskReport
from freerun.metrics.text import bleu_signature, score_texts
from freerun.models.pretrained import Pretrained, model_positions, read_config, read_tokenizer, saved_files
from freerun.tasks.base import DataTask, DiagnosisInput, Evaluation, collected, missing_path, parts
from freerun.tasks.record_inputs import (
    check_vocabulary,
    inert_settings,
    parse_prompts,
    refuse_shape,
    refuse_without_template,
)
from freerun.tasks.sequences import free_run, teacher_forced_errors
from freerun.tasks.text import escaped


@dataclass(frozen=True)
class RecordsSection(RecordOptions):
    """Records for a Hugging Face model: JSON lines, JSON, CSV, TSV, Parquet, or a data set of the library datasets.

    Args:
        path: the training file; a folder with ``train.*``, ``dev.*`` and ``test.*``, or one that
            ``Dataset.save_to_disk`` wrote; with ``format = "datasets"`` also a published data set's name.
        prefix: stands before every source and prompt ("translate English to German: ").
        chat: put prompts and completions into the tokenizer's chat template.
        max_source: tokens of a source or prompt (None: any that the model has positions for).
        max_target: tokens of the output, the end symbol included; of plain text all of it.
        too_long: "error", "drop" or "cut": records with more; of prompts the end is kept, else the beginning.
    """

    kind: Literal["records"] = "records"
    path: str | None = None
    prefix: str = ""
    chat: bool = False
    max_source: int | None = at_least(1, None)
    max_target: int | None = at_least(1, None)
    too_long: Literal["error", "drop", "cut"] = "error"

    def __post_init__(self) -> None:
        what = "the file, folder or data set with the training records"
        problems = [] if self.path else [missing_path(what, "FILE")]
        with collected(problems):
            super().__post_init__()
        named = list(self.columns)
        if named and named not in (["source", "target"], ["prompt", "completion"], ["messages"], ["text"]):
            problems.append(
                f"{named[0]} does not go with what else is named ({', '.join(named)}): name source and target, prompt "
                "and completion, messages, or text"
            )
        if self.chat and named and named != ["prompt", "completion"]:
            problems.append(f"chat = true is for prompt and completion; the columns named are {', '.join(named)}")
        if self.too_long == "cut" and (self.chat or self.messages is not None):
            problems.append('too_long = "cut" would cut a conversation within its template: use "drop"')
        if problems:
            raise UserError(problems)

    @property
    def select(self) -> str | None:
        """The dev score by which weights are chosen where the kind's usual one says little: a text has no answer."""
        return None if self.text is None else "teacher_forced_loss"


@dataclass(frozen=True)
class AnswerSettings(Arguments):
    """How answers are scored, on dev while training and on test at the end.

    Args:
        beams: 1: greedy; more: beam search of that width.
        length_penalty: as in ``generate``: 0 compares beams by log-probability; no effect with one beam.
        length: tokens that an answer may have, the end symbol included (None: those of the longest training answer, and
            ``length_margin`` more).
        length_margin: see ``length``.
        batch_size: records at a time; changes no number.

    Raises:
        UserError: values out of range; all problems at once.
    """

    beams: int = between(1, 100, 1)
    length_penalty: float = between(0, 100, 0.0)
    length: int | None = between(1, 100_000, None)
    length_margin: int = between(0, 10_000, 5)
    batch_size: int = at_least(1, 16, semantic=False)

    def most(self, codec: RecordCodec) -> int:
        """Tokens that an answer may have."""
        return codec.longest + self.length_margin + 1 if self.length is None else self.length


class RecordTask(DataTask[RecordData, AnswerSettings]):
    """Sources and targets, prompts and completions, conversations or texts, scored by the answers.

    The data are bound to the model before the first batch.

    Raises:
        UserError: the package sacrebleu is not installed.
    """

    models = ("huggingface",)
    data_sections: ClassVar[Mapping[str, type[Any]]] = {"records": RecordsSection}
    evaluate_section = AnswerSettings
    report: ClassVar[TaskReport] = RECORDS
    select = "chrf"
    one_output_per_line = True

    def __init__(self, data: RecordData, settings: AnswerSettings | None = None, items: int | None = None) -> None:
        super().__init__(data, settings, items)
        # a missing package is reported before training, not after the first thousand updates
        self.signature = bleu_signature("13a")

    def header(self) -> list[str]:
        """What the data are, and how BLEU is counted, in lines."""
        return [*super().header(), f"BLEU: {self.signature}"]

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``items`` of its records) or "test"; see ``evaluate_records``."""
        records, encoded = self.data.evaluation(split, self.items if split == "dev" else None)
        return evaluate_records(model, self.data.codec, records, encoded, self.settings)

    def saved_files(self, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
        """What ``from_pretrained`` reads: the model with these weights, and its tokenizer."""
        return saved_files(self.data.codec.model, weights, self.data.codec.tokenizer)

    @staticmethod
    def load(settings: RecordsSection, model: Pretrained) -> RecordData:
        """The records and their ids by the model's tokenizer.

        Raises:
            UserError: all problems of the files; a tokenizer that is not the model's, cannot pad or has no chat
                template; records that the model has no positions for, or that are of no use to it.
        """
        config = read_config(model.path)
        tokenizer = read_tokenizer(model)
        check_vocabulary(tokenizer, config, model)
        limits = Limits(settings.max_source, settings.max_target, model_positions(config), settings.too_long)

        def codec(records: Records) -> RecordCodec:
            refuse_shape(records.shape, bool(config.is_encoder_decoder), model.path)
            made = RecordCodec(
                tokenizer,
                records.shape,
                records.columns,
                causal=not config.is_encoder_decoder,
                prefix=settings.prefix,
                chat=settings.chat,
                separator=settings.separator,
            )
            refuse_without_template(made, model)
            if problems := inert_settings(settings, made):
                raise UserError(problems)
            return made

        # the problems of a row stand beside those of the others, though these are no records
        records = load_records(
            str(settings.path), settings, lambda sound: encoded_problems(sound, codec(sound), limits)
        )
        return encoded_data(records, codec(records), limits)

    @staticmethod
    def sizes(data: RecordData) -> tuple[int, ...]:
        """None: a saved model has its sizes."""
        return ()

    @staticmethod
    def positions(data: RecordData, settings: AnswerSettings) -> tuple[int, str]:
        """For the longest output of free running, after the longest prompt of a causal model."""
        most = settings.most(data.codec)
        words = f"free running may say {most} tokens (evaluate.length)"
        if not data.codec.causal:
            return most, words
        prompt = max(len(one.prompt) for split in ("dev", "test") for one in data.splits[split].encoded)
        return prompt + most, f"the longest prompt of dev and test has {prompt} tokens and {words}"

    @staticmethod
    def codec(description: Mapping[str, Any]) -> RecordCodec:
        """Not from a description alone: see ``freerun.recipes.build``."""
        raise UserError("a model of kind huggingface is read with its tokenizer")

    @staticmethod
    def score(
        model: Module, codec: RecordCodec, settings: AnswerSettings, data: RecordData | None, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """On the test split, or on a file with the same columns.

        Raises:
            UserError: what is wrong with the file; its records are too long for the model.
        """
        if file is None:
            assert data is not None
            name, (records, encoded) = f"{data.name}, test", data.evaluation("test")
        else:
            name, (records, encoded) = str(file.path), _from_file(model, codec, settings, file)
        found = evaluate_records(model, codec, records, encoded, settings)
        facts = {"data": name, "records": len(records), "beams": settings.beams}
        return {**facts, "length": settings.most(codec), "bleu": bleu_signature("13a")}, found

    @staticmethod
    def generate_lines(
        model: Module, codec: RecordCodec, settings: AnswerSettings, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        r"""The answer to each line; to lines that are JSON objects, the same objects with an ``output``.

        A plain line is a source, a prompt, the user's first message or the beginning of a text; in it and in the answer
        a line break is written ``\n``, a tab ``\t``.

        Raises:
            UserError: empty lines, objects without the input column or with an ``output``, conversations that are
                none, prompts too long for the model; the first 20 of them.
        """
        rows, texts, problems = parse_prompts(codec, lines, places)
        prompts: list[list[int]] = []
        for place, text in zip(places, texts, strict=True):
            try:
                prompts += codec.prompts([text]) if text else [[]]
            except ValueError as error:
                prompts.append([])
                problems.append(f"{place}: {error}")
        most = settings.most(codec)
        problems += [
            f"{place}: {words}" for place, ids in zip(places, prompts, strict=True)
            if ids and (words := _beyond(model, codec, len(ids), most))
        ]  # fmt: skip
        problems += [
            f"{place}: the tokenizer makes nothing of it"
            for place, text, ids in zip(places, texts, prompts, strict=True)
            if text and not ids and not any(problem.startswith(f"{place}: ") for problem in problems)
        ]
        if problems:
            raise UserError(first_problems("the input", problems))
        outputs = free_outputs(model, codec, prompts, settings)
        return [
            escaped(text) if row is None else _object_line({**row, "output": text})
            for row, text in zip(rows, outputs, strict=True)
        ]

    @staticmethod
    def trial_batch(codec: RecordCodec, rows: int) -> Batch:
        """Random ids, of different lengths."""
        return codec.answer_batch(trial_encoded(codec.model.target_vocab, rows))

    @staticmethod
    def diagnosis_input(
        model: Module, codec: RecordCodec, settings: AnswerSettings, data: RecordData, items: int | None
    ) -> DiagnosisInput:
        """Test records, those of like length in one batch."""
        encoded = sorted(data.evaluation("test", items)[1], key=len)
        limit: int | None = codec.model.limit
        tight = data.codec.causal and limit is not None and sum(data.longest) > limit
        # rows of a batch go on for the longest answer, for which a long prompt may leave no positions
        chosen = parts(range(len(encoded)), 1 if tight else settings.batch_size)
        batches = [codec.answer_batch([encoded[n] for n in part]) for part in chosen]
        return DiagnosisInput(f"{data.name}, test", batches, DiagnosisOptions(end_symbol=codec.end))


def evaluate_records(
    model: Module,
    codec: RecordCodec,
    records: Sequence[Record],
    encoded: Sequence[Encoded],
    settings: AnswerSettings | None = None,
) -> Evaluation:
    """Scores of a model on records, teacher-forced and free-running.

    Teacher-forced, over the tokens of the answers, end symbols included (of plain text: over all tokens):
    ``loss`` in nats per token, ``perplexity = exp(loss)``, ``token_accuracy`` in percent. They depend on the tokenizer.
    Free-running, the model reads source or prompt (of a conversation all before the last answer, of plain text its
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
    outputs = free_outputs(model, codec, [one.prompt for one in encoded], settings)
    references = [codec.reference(record, one) for record, one in zip(records, encoded, strict=True)]
    own, scores = score_texts(outputs, references)
    items = [
        {"source": _source(record), "output": output, "reference": reference, **part}
        for record, output, reference, part in zip(records, outputs, references, scores, strict=True)
    ]
    return Evaluation(gold, RECORDS.with_items(own, items), items)


def free_outputs(
    model: Module, codec: RecordCodec, prompts: Sequence[Sequence[int]], settings: AnswerSettings | None = None
) -> list[str]:
    """The free-running output after each prompt (or source), as text.

    Args:
        model: an adapted Hugging Face model; its mode is restored afterwards.
        codec: bound to the model.
        prompts: ids, one list each.
        settings: of the output.
    """
    settings = settings or AnswerSettings()
    outputs = free_run(
        model,
        lambda chosen: codec.prompt_batch([prompts[i] for i in chosen]),
        [len(prompt) for prompt in prompts],
        settings.batch_size,
        length=settings.most(codec),
        end=codec.end,
        beams=settings.beams,
        length_penalty=settings.length_penalty,
    )
    return [codec.text(entries) for entries in outputs]


def _source(record: Record) -> Any:
    return record.prompt if isinstance(record.prompt, str) else [dict(message) for message in record.prompt]


def _object_line(row: Mapping[str, Any]) -> str:
    """JSON as people read it; with escapes where a character would steer a terminal or cannot be written."""
    line = json.dumps(row, ensure_ascii=False)
    return line if visible(line) == line else json.dumps(row)


def _from_file(
    model: Any, codec: RecordCodec, settings: AnswerSettings, file: DataFile
) -> tuple[list[Record], list[Encoded]]:
    def fitted(records: list[Record]) -> Any:
        return fit_lengths(codec, records, Limits(positions=model.limit), str(file.path))

    options = RecordOptions(encoding=file.encoding, separator=codec.separator)
    records = read_records(file.path, codec.shape, codec.columns, options, lambda sound: fitted(sound).problems)
    found = fitted(records)
    problems = found.problems or [
        f"{record.place}: {words}" for record, one in zip(found.records, found.encoded, strict=True)
        if (words := _beyond(model, codec, len(one.prompt), settings.most(codec)))
    ]  # fmt: skip
    if problems:
        raise UserError(first_problems(str(file.path), problems))
    return found.records, found.encoded


def _beyond(model: Any, codec: RecordCodec, prompt: int, answer: int) -> str:
    """What is wrong with a prompt of so many tokens before an answer of so many; "" where nothing is."""
    limit = model.limit
    if limit is None:
        return f"has {prompt:,} tokens, and at most 20,000 are read at once: shorten it" if prompt > 20_000 else ""
    if prompt + answer <= limit if codec.causal else max(prompt, answer) <= limit:
        return ""
    return (
        f"has {prompt} tokens, its answer may have {answer}, and the model has {limit} positions: shorten it, or lower "
        "evaluate.length (--length)"
    )
