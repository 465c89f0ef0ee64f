"""Records and a Hugging Face model that answers them, as a kind of task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from freerun.config.data_sections import DataFile
from freerun.config.huggingface_sections import HuggingFaceSettings
from freerun.config.records_asked import asked_of
from freerun.config.records_checks import (
    refuse_other_tokenizer,
    refuse_shape,
    refuse_without_template,
    without_effect,
)
from freerun.config.records_sections import PARTS, RecordsData, RecordsEvaluate
from freerun.config.text_kind import escaped
from freerun.errors import UserError, visible

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.data.records import Encoded, Record, RecordCoder, RecordData, RecordOptions, Records
    from freerun.training import Evaluation
    from freerun.training.finetuning import RecordTask
    from freerun.training.reported import Reported
    from freerun.types import Batch

__all__ = ["RecordsKind"]


class RecordsKind:
    """Sources and targets, prompts and completions, conversations or texts; see ``TaskKind``."""

    models = ("huggingface",)
    evaluate: type[Any] = RecordsEvaluate
    select = "chrf"
    # of length_ratio neither more nor less is better
    selectable = (
        "chrf", "bleu", "cer", "sequence_accuracy", "teacher_forced_loss", "teacher_forced_perplexity",
        "teacher_forced_token_accuracy",
    )  # fmt: skip
    values = False
    tables = False
    aligned = True
    needs_training_data = False

    def reported(self) -> Reported:
        """chrF, free-running, first."""
        from freerun.training.reported_texts import RECORDS

        return RECORDS

    def load(self, settings: RecordsData, model: HuggingFaceSettings) -> RecordData:
        """The records and their ids by the model's tokenizer.

        Raises:
            UserError: all problems of the files; a tokenizer that is not the model's, cannot pad or has no chat
                template; records that the model has no positions for, or that are of no use to it.
        """
        from freerun.data.records import Limits, RecordCoder, encoded_data, encoded_problems, load_records
        from freerun.training.pretrained import model_positions, read_config, read_tokenizer

        given = model.pretrained()
        config = read_config(given.path)
        tokenizer = read_tokenizer(given)
        refuse_other_tokenizer(tokenizer, config, given)
        limits = Limits(settings.max_source, settings.max_target, model_positions(config), settings.too_long)

        def coder(records: Records) -> RecordCoder:
            refuse_shape(records.shape, bool(config.is_encoder_decoder), given.path)
            made = RecordCoder(
                tokenizer,
                records.shape,
                records.columns,
                causal=not config.is_encoder_decoder,
                prefix=settings.prefix,
                chat=settings.chat,
                separator=settings.separator,
            )
            refuse_without_template(made, given)
            if problems := without_effect(settings, made):
                raise UserError(problems)
            return made

        # what is wrong with a row is said beside what is wrong with the others, though these are no records
        records = load_records(
            str(settings.path), _options(settings), lambda sound: encoded_problems(sound, coder(sound), limits)
        )
        return encoded_data(records, coder(records), limits)

    def make(self, data: RecordData, settings: RecordsEvaluate, items: int | None) -> RecordTask:
        """chrF, BLEU and character errors on so many records of dev."""
        from freerun.training.finetuning import RecordTask

        return RecordTask(data, _scoring(settings, items))

    def sizes(self, data: RecordData) -> tuple[int, ...]:
        """None: a saved model has its sizes."""
        return ()

    def positions(self, data: RecordData, settings: RecordsEvaluate) -> tuple[int, str]:
        """For what free running may say, after the longest prompt of a causal model."""
        most = _scoring(settings).most(data.coder)
        said = f"free running may say {most} tokens (evaluate.length)"
        if not data.coder.causal:
            return most, said
        told = max(len(one.told) for split in ("dev", "test") for one in data.splits[split].encoded)
        return told + most, f"the longest prompt of dev and test has {told} tokens and {said}"

    def frequencies(self, data: RecordData) -> tuple[float, ...]:
        """Of what is to be said in the training records."""
        return data.frequencies

    def coder(self, description: Mapping[str, Any]) -> RecordCoder:
        """Not from a description alone: see ``freerun.config.pretrained_run``."""
        raise UserError("a model of kind huggingface is read with its tokenizer")

    def score(
        self,
        model: Module,
        coder: RecordCoder,
        settings: RecordsEvaluate,
        data: RecordData | None,
        file: DataFile | None,
    ) -> tuple[dict[str, Any], Evaluation]:
        """On the test split, or on a file with the same columns.

        Raises:
            UserError: what is wrong with the file; its records are too long for the model.
        """
        from freerun.scores import bleu_signature
        from freerun.training.finetuning import evaluate_records

        scoring = _scoring(settings)
        if file is None:
            assert data is not None
            name, (records, encoded) = f"{data.name}, test", data.evaluation("test")
        else:
            name, (records, encoded) = str(file.path), _from_file(model, coder, scoring, file)
        found = evaluate_records(model, coder, records, encoded, scoring)
        facts = {"data": name, "records": len(records), "beams": settings.beams}
        return {**facts, "length": scoring.most(coder), "bleu": bleu_signature("13a")}, found

    def answer(
        self, model: Module, coder: RecordCoder, settings: RecordsEvaluate, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        r"""The answer to each line; to lines that are JSON objects, the same objects with an ``output``.

        A plain line is a source, a prompt, the user's first message or the beginning of a text; in it and in the answer
        a line break is written ``\n``, a tab ``\t``.

        Raises:
            UserError: empty lines, objects without the column that is told or with an ``output``, conversations that
                are none, prompts too long for the model; the first 20 of them.
        """
        from freerun.data.text import first_problems
        from freerun.training.finetuning import answers

        rows, told, problems = asked_of(coder, lines, places)
        prompts: list[list[int]] = []
        for place, text in zip(places, told, strict=True):
            try:
                prompts += coder.prompts([text]) if text else [[]]
            except ValueError as error:
                prompts.append([])
                problems.append(f"{place}: {error}")
        most = _scoring(settings).most(coder)
        problems += [
            f"{place}: {words}" for place, ids in zip(places, prompts, strict=True)
            if ids and (words := _beyond(model, coder, len(ids), most))
        ]  # fmt: skip
        problems += [
            f"{place}: the tokenizer makes nothing of it"
            for place, text, ids in zip(places, told, prompts, strict=True)
            if text and not ids and not any(problem.startswith(f"{place}: ") for problem in problems)
        ]
        if problems:
            raise UserError(first_problems("the input", problems))
        said = answers(model, coder, prompts, _scoring(settings))
        return [
            escaped(text) if row is None else _object_line({**row, "output": text})
            for row, text in zip(rows, said, strict=True)
        ]

    def trial_batch(self, coder: RecordCoder, rows: int) -> Batch:
        """Random ids, of different lengths."""
        from freerun.data.records import trial_encoded

        return coder.answer_batch(trial_encoded(coder.model.target_vocab, rows))


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
    from freerun.training.finetuning import AnswerSettings

    return AnswerSettings(
        beams=settings.beams,
        length_penalty=settings.length_penalty,
        length=settings.length,
        margin=settings.length_margin,
        batch_size=settings.batch_size,
        items=items,
    )


def _from_file(model: Module, coder: RecordCoder, scoring: Any, file: DataFile) -> tuple[list[Record], list[Encoded]]:
    from freerun.data.records import Limits, RecordOptions, fitted, read_records
    from freerun.data.text import first_problems

    made: Any = model

    def further(records: list[Record]) -> list[str]:
        return fitted(coder, records, Limits(positions=made.limit), str(file.path)).problems

    options = RecordOptions(encoding=file.encoding, separator=coder.separator)
    records = read_records(file.path, coder.shape, coder.columns, options, further)
    found = fitted(coder, records, Limits(positions=made.limit), str(file.path))
    problems = found.problems or [
        f"{record.place}: {words}" for record, one in zip(found.records, found.encoded, strict=True)
        if (words := _beyond(model, coder, len(one.told), scoring.most(coder)))
    ]  # fmt: skip
    if problems:
        raise UserError(first_problems(str(file.path), problems))
    return found.records, found.encoded


def _beyond(model: Any, coder: RecordCoder, told: int, said: int) -> str:
    """What is wrong with a prompt of so many tokens before an answer of so many; "" where nothing is."""
    limit = model.limit
    if limit is None:
        return f"has {told:,} tokens, and at most 20,000 are read at once: shorten it" if told > 20_000 else ""
    if told + said <= limit if coder.causal else max(told, said) <= limit:
        return ""
    return (
        f"has {told} tokens, its answer may have {said}, and the model has {limit} positions: shorten it, or lower "
        "evaluate.length (--length)"
    )
