"""Records and a Hugging Face model that answers them, as a kind of task."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import Module

from freerun.arguments import Arguments, at_least, between, one_of
from freerun.batch import Batch
from freerun.data.files import DataFile, content_ending, first_problems, user_path
from freerun.data.records import (
    SHAPES,
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
    load_rows,
    read_records,
    trial_encoded,
    with_end,
)
from freerun.data.records.codec import language_problem
from freerun.data.records.columns import fields_of
from freerun.data.records.files import LANGUAGES, more_of
from freerun.data.records.messages import conversation_of, text_problem
from freerun.data.tables import ENDINGS, parsed, read_rows
from freerun.diagnostics import DiagnosisOptions
from freerun.errors import UserError, display, listed, refuse, visible
from freerun.metrics.table import RECORDS, TaskReport
from freerun.metrics.text import TOKENIZERS, Tokenizer, bleu_signature, score_texts, tokenizer_of, unspaced
from freerun.models.pretrained import (
    Pretrained,
    end_ids,
    model_positions,
    read_config,
    read_tokenizer,
    saved_files,
)
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
from freerun.tasks.text import escaped, unescaped
from freerun.types import evenly


@dataclass(frozen=True)
class RecordsSection(RecordOptions):
    """Records for a Hugging Face model: JSON lines, JSON, CSV, TSV, Parquet, Arrow, or a data set of datasets.

    Args:
        path: the training file; a folder with ``train.*``, ``dev.*`` and ``test.*``, or one that
            ``Dataset.save_to_disk`` wrote; with ``format = "datasets"`` also a published data set's name.
        prefix: stands before every source and prompt ("translate English to German: ").
        max_source: tokens of a source or prompt (None: any that the model has positions for).
        max_target: tokens of the output, the end symbol included; of plain text all of it.
        too_long: "error", "drop" or "cut": records with more; of prompts the end is kept, else the beginning.
    """

    kind: Literal["records"] = "records"
    path: str | None = None
    prefix: str = ""
    max_source: int | None = at_least(1, None)
    max_target: int | None = at_least(1, None)
    too_long: Literal["error", "drop", "cut"] = "error"

    def problems(self) -> Iterator[str]:
        """Return which fields do not go together, a line each."""
        if not self.path:
            yield missing_path("the file, folder or data set with the training records", "FILE")
        yield from super().problems()
        named = tuple(self.columns)
        if named and named not in SHAPES.values():
            yield (
                f"{named[0]} does not go with what else is named ({', '.join(named)}): name source and target, prompt "
                "and completion, messages, or text"
            )
        if self.chat and named and named != SHAPES["completions"]:
            yield f"chat = true is for prompt and completion; the columns named are {', '.join(named)}"
        if self.too_long == "cut" and (self.chat or self.messages is not None):
            yield 'too_long = "cut" would cut a conversation within its template: use "drop"'

    @property
    def select(self) -> str | None:
        """The dev score by which weights are chosen where the kind's usual one means little: a text has no answer."""
        return None if self.text is None else "teacher_forced_loss"


@dataclass(frozen=True)
class AnswerSettings(Arguments):
    """How answers are scored, on dev while training and on test at the end.

    Args:
        beams: 1: greedy; more: beam search of that width; None: the number in the model's own generation settings,
            with their length penalty and stopping.
        length_penalty: as in ``generate``: 0 compares beams by log-probability; no effect with one beam; None: the
            model's own.
        length: tokens that an answer may have, the end symbol included (None: those of the longest training answer, and
            ``length_margin`` more).
        length_margin: see ``length``.
        batch_size: records at a time; changes no number.
        bleu_tokenizer: sacreBLEU's, for BLEU; None: by the language of each row ("zh", "ja-mecab", "ko-mecab"), and
            "13a" of others and where there is no column of languages.

    Raises:
        UserError: values out of range; all problems at once.
    """

    beams: int | None = between(1, 100, None)
    length_penalty: float | None = between(0, 100, None)
    length: int | None = between(1, 100_000, None)
    length_margin: int = between(0, 10_000, 5)
    batch_size: int = at_least(1, 16, semantic=False)
    bleu_tokenizer: Literal["13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "none"] | None = one_of(
        TOKENIZERS, None
    )

    def tokenizers(self, encoded: Sequence[Encoded]) -> list[Tokenizer]:
        """sacreBLEU's tokenizer of each record."""
        return [self.bleu_tokenizer or tokenizer_of(one.language) for one in encoded]

    def most(self, codec: RecordCodec) -> int:
        """Tokens that an answer may have."""
        return codec.longest + self.length_margin + 1 if self.length is None else self.length


class RecordTask(DataTask):
    """Sources and targets, prompts and completions, conversations or texts, scored by the answers."""

    data: RecordData
    settings: AnswerSettings
    models = ("huggingface",)
    data_sections: ClassVar[Mapping[str, type[Any]]] = {"records": RecordsSection}
    evaluate_section = AnswerSettings
    report: ClassVar[TaskReport] = RECORDS
    select = "chrf"
    one_output_per_line = True

    @property
    def tokenizers(self) -> tuple[str, ...]:
        every = (one for split in ("dev", "test") for one in self.data.splits[split].encoded)
        return tuple(sorted(set(self.settings.tokenizers(list(every)))))

    def header(self) -> list[str]:
        lines = super().header()
        part = self.data.splits["test"]
        texts = [self.data.codec.reference(record, one) for record, one in zip(part.records, part.encoded, strict=True)]
        if self.tokenizers == ("13a",) and unspaced(texts):
            lines.append(
                'BLEU counts words between blanks, which the references lack: set evaluate.bleu_tokenizer = "zh", '
                '"ja-mecab" or "char"'
            )
        return lines

    def evaluate(self, model: Module, split: str) -> Evaluation:
        records, encoded = self.data.evaluation(split, self.items if split == "dev" else None)
        return evaluate_records(model, self.data.codec, records, encoded, self.settings)

    def named(self, batch: Batch, numbers: Sequence[int]) -> Examples:
        records, tokenizer = self.data.splits["train"].records, self.data.codec.tokenizer
        prompts = [records[n].prompt for n in numbers]
        sources = [each if isinstance(each, str) else str(each[-1].get("content", "")) for each in prompts]
        decode = lambda ids: [tokenizer.decode([each]) for each in ids]  # noqa: E731
        return replace(super().named(batch, numbers), sources=sources, decode=decode)

    def saved_files(self, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
        """What ``from_pretrained`` reads: the model with these weights, and its tokenizer."""
        return saved_files(self.data.codec.model, weights, self.data.codec.tokenizer)

    @staticmethod
    def load(settings: RecordsSection, model: Pretrained) -> RecordData:
        tokenizer, causal, limits = _sides(settings, model)
        # the problems of a row stand beside those of the others, though these are no records
        records = load_records(
            str(settings.path),
            settings,
            lambda sound: encoded_problems(sound, _codec(settings, model, tokenizer, causal, sound), limits),
        )
        return encoded_data(records, _codec(settings, model, tokenizer, causal, records), limits)

    @staticmethod
    def end(data: RecordData) -> int | None:
        return data.codec.end

    @staticmethod
    def sizes(data: RecordData) -> tuple[int, ...]:
        return ()  # a saved model has its sizes

    @staticmethod
    def positions(data: RecordData, settings: AnswerSettings) -> tuple[int, str]:
        most = settings.most(data.codec)
        words = f"free running may output {most} tokens (evaluate.length)"
        if not data.codec.causal:
            return most, words
        prompt = max(len(one.prompt) for split in ("dev", "test") for one in data.splits[split].encoded)
        return prompt + most, f"the longest prompt of dev and test has {prompt} tokens and {words}"

    @staticmethod
    def codec(description: Mapping[str, Any]) -> RecordCodec:
        """Not from a description alone: see ``freerun.recipes.train``."""
        raise UserError("a model of kind huggingface is read with its tokenizer")

    @staticmethod
    def score(
        model: Module, codec: RecordCodec, settings: AnswerSettings, data: RecordData | None, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        if file is None:
            assert data is not None
            name, (records, encoded) = f"{data.name}, test", data.evaluation("test")
        else:
            name, (records, encoded) = str(file.path), _from_file(model, codec, settings, file)
        scores = evaluate_records(model, codec, records, encoded, settings)
        facts = {"data": name, "records": len(records), "beams": own_beams(model, settings)}
        signature = bleu_signature(*sorted(set(settings.tokenizers(encoded))))
        return {**facts, "length": settings.most(codec), "bleu": signature}, scores

    @staticmethod
    def table_lines(codec: RecordCodec, file: DataFile) -> tuple[list[str], list[str]] | None:
        path = user_path(file.path)
        kind, source = ENDINGS.get(content_ending(path)), next(iter(codec.columns.values()))
        if kind in (None, "jsonl") or (kind == "txt" and not source.isdecimal()):
            return None
        how: dict[str, Any] = {name: getattr(codec, name) for name in ("separator", "quoting", "header")}
        table, problems = read_rows(path, known=fields_of(source), **how)
        if kind == "txt" and table.columns == ("text",):
            return None  # a source a line
        refuse(problems)
        file.notes.extend(table.notes)
        lines = [json.dumps(row, ensure_ascii=False, default=str) for row in table.rows]
        return lines, [table.locate(number) for number in range(len(lines))]

    @staticmethod
    def line_problems(
        model: Module, codec: RecordCodec, settings: AnswerSettings, lines: Sequence[str], origins: Sequence[str]
    ) -> list[list[str]]:
        found: list[list[str]] = []
        objects = _are_objects(lines)
        for origin, line in zip(origins, lines, strict=True):
            found.append([])
            try:
                row, text = _read_object(codec, line) if objects else (None, codec.prompt_of_line(unescaped(line)))
                if row is None and "\t" in line:
                    raise ValueError(
                        "holds a tab, which is written \\t in a line; a table is read by its name, .tsv or .csv"
                    )
                if not text or (isinstance(text, str) and not text.strip()):
                    raise ValueError("is empty; expected a source or prompt")
                _, source = _languages(codec, row)
                (ids,) = codec.prompts([text], source, _more(codec, row))
                _check_positions(model, codec, len(ids), settings)
            except ValueError as error:
                found[-1].append(f"{origin}: {error}")
        return found

    @staticmethod
    def generate_lines(model: Module, codec: RecordCodec, settings: AnswerSettings, lines: Sequence[str]) -> list[str]:
        r"""The answer to each line; to lines that are JSON objects, the same objects with an ``output``.

        A plain line is a source, a prompt, the user's first message or the beginning of a text; in it and in the answer
        a line break is written ``\n``, a tab ``\t``.
        """
        objects = _are_objects(lines)
        read = [
            _read_object(codec, line) if objects else (None, codec.prompt_of_line(unescaped(line))) for line in lines
        ]
        languages = [_languages(codec, row) for row, _ in read]
        prompts = [
            codec.prompts([text], source, _more(codec, row))[0]
            for (row, text), (_, source) in zip(read, languages, strict=True)
        ]
        outputs = free_outputs(model, codec, prompts, settings, [target for target, _ in languages])
        return [
            escaped(text) if row is None else _object_line({**row, "output": text})
            for (row, _), text in zip(read, outputs, strict=True)
        ]

    @staticmethod
    def trial_batch(codec: RecordCodec, rows: int) -> Batch:
        return codec.answer_batch(trial_encoded(codec.model.target_vocab, rows))

    @staticmethod
    def diagnosis_input(
        model: Module, codec: RecordCodec, settings: AnswerSettings, data: RecordData, items: int | None
    ) -> DiagnosisInput:
        # records of similar length in one batch
        encoded = sorted(data.evaluation("test", items)[1], key=len)
        limit: int | None = codec.model.limit
        tight = data.codec.causal and limit is not None and sum(data.longest) > limit
        # rows of a batch go on for the longest answer, for which a long prompt may leave no positions
        chosen = parts(range(len(encoded)), 1 if tight else settings.batch_size)
        batches = [codec.answer_batch([encoded[n] for n in part]) for part in chosen]
        return f"{data.name}, test", batches, DiagnosisOptions(end_symbol=codec.end)


def load_answers(settings: RecordsSection, model: Pretrained, items: int | None = None) -> tuple[RecordData, int]:
    """Records that a model is only measured on, as the split "test" (see ``load_rows``), and how many there are.

    Args:
        settings: the file, its columns, limits of length.
        model: its tokenizer needs no pad symbol.
        items: number of records to use, at even distances; None: all.

    Raises:
        UserError: what is wrong with the file, its rows, or the tokenizer.
    """
    tokenizer, causal, limits = _sides(settings, model, pads=False)
    found = load_rows(str(settings.path), settings)
    rows = found.splits["test"]
    chosen = replace(found, splits={"test": [rows[n] for n in evenly(len(rows), items)]})
    codec = _codec(settings, model, tokenizer, causal, chosen)
    fitted = fit_lengths(codec, chosen.splits["test"], limits, found.name)
    refuse(fitted.problems)
    notes = [*(f"dropped: {text}" for text in found.dropped["test"]), *fitted.notes]
    data = RecordData({"test": fitted}, with_end(codec, fitted.encoded), found.name, {"test": notes}, found.notes)
    return data, len(rows)


def _sides(settings: RecordsSection, model: Pretrained, *, pads: bool = True) -> tuple[Any, bool, Limits]:
    """The tokenizer, if the model has all its ids; whether the model is causal; and how long records may be."""
    config, tokenizer = read_config(model.path), read_tokenizer(model, pads=pads)
    known = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if known is not None and len(tokenizer) > known:
        whose = f"{model.tokenizer}, of the tokenizer" if model.tokenizer else f"{model.path}"
        raise UserError(
            f"{whose}: the tokenizer has {len(tokenizer):,} symbols and the model {known:,}: ids from {known:,} on "
            "mean nothing to it\n  help: give the model's own tokenizer (leave model.tokenizer out), or save the "
            "model after model.resize_token_embeddings(len(tokenizer))"
        )
    limits = Limits(settings.max_source, settings.max_target, model_positions(config), settings.too_long)
    return tokenizer, not config.is_encoder_decoder, limits


def evaluate_records(
    model: Module,
    codec: RecordCodec,
    records: Sequence[Record],
    encoded: Sequence[Encoded],
    settings: AnswerSettings | None = None,
) -> Evaluation:
    """Scores of a model on records, teacher-forced (of plain text over all tokens) and free-running."""
    settings = settings or AnswerSettings()
    positions = 0  # that are predicted: not what generation forces

    def make(chosen: list[int]) -> Batch:
        nonlocal positions
        batched = codec.training_batch if codec.shape == "text" else codec.answer_batch
        batch = batched([encoded[i] for i in chosen])
        positions += int(batch.mask.sum())
        return batch

    losses, errors = teacher_forced_errors(model, make, [len(one) for one in encoded], settings.batch_size)
    loss = float(losses.sum()) / positions
    gold = {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "token_accuracy": 100 - 100 * int(errors.sum()) / positions,
    }
    languages = [one.language for one in encoded]
    outputs = free_outputs(model, codec, [one.prompt for one in encoded], settings, languages)
    references = [codec.reference(record, one) for record, one in zip(records, encoded, strict=True)]
    own, scores = score_texts(outputs, references, settings.tokenizers(encoded))
    items = [
        {"source": _source(record), "output": output, "reference": reference, **part}
        for record, output, reference, part in zip(records, outputs, references, scores, strict=True)
    ]
    return Evaluation(gold, RECORDS.with_items(own, items), items)


def free_outputs(
    model: Module,
    codec: RecordCodec,
    prompts: Sequence[Sequence[int]],
    settings: AnswerSettings | None = None,
    languages: Sequence[str] = (),
) -> list[str]:
    """The free-running output after each prompt (or source), as text, each in its language."""
    settings = settings or AnswerSettings()
    named = list(languages) or [""] * len(prompts)
    make = lambda chosen: codec.prompt_batch([prompts[i] for i in chosen], [named[i] for i in chosen])  # noqa: E731
    lengths = [len(prompt) for prompt in prompts]
    known: Any = getattr(model, "generation_config", None)
    ends = [end for end in (codec.end, *(end_ids(known) if known is not None else ())) if end is not None]
    outputs = free_run(model, make, lengths, settings, settings.most(codec), end=list(dict.fromkeys(ends)) or None)
    return [codec.text(entries) for entries in outputs]


def own_beams(model: Any, settings: AnswerSettings) -> int:
    """Beams of the search: those of the settings, or of the model's own."""
    config = getattr(model, "generation_config", None)
    return settings.beams or getattr(config, "num_beams", None) or 1


def _codec(settings: RecordsSection, model: Pretrained, tokenizer: Any, causal: bool, records: Records) -> RecordCodec:
    """The codec of records; UserError if records, settings, tokenizer and model do not go together."""
    shape = records.shape
    if causal == (shape == "pairs"):
        kind, needed = ("an encoder-decoder", "source and target")
        if causal:
            kind, needed = "a causal model", "prompt and completion, messages, or text"
        raise UserError(
            f"{model.path} is {kind}, and the records are {shape}: name the columns for {needed} under [data]"
        )
    codec = RecordCodec(
        tokenizer,
        shape,
        records.columns,
        causal=causal,
        prefix=settings.prefix,
        chat=settings.chat,
        separator=settings.separator,
        quoting=settings.quoting,
        header=settings.header,
    )
    if codec.uses_chat_template and not tokenizer.chat_template:
        raise UserError(
            f"{model.tokenizer or model.path}: the tokenizer has no chat template, which conversations need\n  help: "
            "give one with model.chat_template = FILE (Jinja), or train on prompt and completion without chat"
        )
    problems: list[str] = []
    if settings.languages and shape != "pairs":
        problems.append(f"data.{next(iter(settings.languages))}_column is for source and target: leave it out")
    if settings.prefix and (codec.uses_chat_template or shape == "text"):
        what = "a chat" if codec.uses_chat_template else "plain text"
        problems.append(f"data.prefix has no effect on {what}: leave it out")
    if settings.chat and shape != "completions":
        problems.append(f"data.chat is for prompts and completions; the records are {shape}: leave it out")
    if settings.too_long == "cut" and codec.uses_chat_template:
        problems.append('data.too_long = "cut" would cut a conversation within its template: use "drop"')
    if shape == "text" and settings.max_source is not None:
        problems.append("data.max_source has no effect on plain text: data.max_target limits it")
    refuse(problems)
    return codec


def _are_objects(lines: Sequence[str]) -> bool:
    """Return True if the first line that holds anything begins a JSON object."""
    return next((line for line in lines if line.strip()), "").lstrip().startswith("{")


def _read_object(codec: RecordCodec, line: str) -> tuple[dict[str, Any] | None, Any]:
    """A line's JSON object and the source or prompt in it; ValueError if there is none."""
    column = fields_of(next(iter(codec.columns.values())))[0]
    if not line.strip():
        return None, ""
    try:
        row = parsed(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}; the first line is an object, so all must be") from None
    if not isinstance(row, dict):
        raise ValueError(f"is no object; the first line is one, so all must be: {{{json.dumps(column)}: ...}}")
    if column.partition(".")[0] not in row and column not in row:
        raise ValueError(f"has no {column!r}; it has {listed(row) or 'nothing'}")
    if "output" in row:
        raise ValueError("has an 'output' already, where the answer is written: rename it, or leave it out")
    cell = codec.prompt_of(row)
    if cell is None or isinstance(cell, str):
        problem = text_problem(cell)
    elif codec.shape == "messages":
        cell = conversation_of(cell)
        problem = cell if isinstance(cell, str) else ""
    else:
        problem = f"holds a {type(cell).__name__}, {display(cell, 40)}; expected text"
    if problem:
        raise ValueError(f"column {column!r} {problem}")
    if cell is None or isinstance(cell, str):
        return row, cell
    answered = bool(cell) and cell[-1]["role"] == "assistant"
    if answered and "completion" in codec.columns:
        raise ValueError(f"column {column!r} ends with a message of the assistant, which is no prompt")
    return row, tuple(cell[:-1] if answered else cell)


def _more(codec: RecordCodec, row: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a row has for the chat template beside messages; ValueError if it is none."""
    more = more_of(row or {}, codec.columns)
    if isinstance(more, str):
        raise ValueError(more)
    return more


def _languages(codec: RecordCodec, row: Mapping[str, Any] | None) -> tuple[str, str]:
    """The languages of a row's target and source; ValueError if it names none and the codec needs one."""
    found: list[str] = []
    for part in LANGUAGES:
        column = codec.columns.get(part)
        if column is None:
            found.append("")
            continue
        if row is None:
            first = next(iter(codec.columns.values()))
            example = json.dumps({first: "...", column: "..."})
            raise ValueError(f"the language of each line is needed: give lines of JSON, {example}")
        name = row.get(column)
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"has no language in {column!r}; it has {listed(row)}")
        if problem := language_problem(codec.tokenizer, name.strip()):
            raise ValueError(problem)
        found.append(name.strip())
    return found[0], found[1]


def _source(record: Record) -> Any:
    return record.prompt if isinstance(record.prompt, str) else [dict(message) for message in record.prompt]


def _object_line(row: Mapping[str, Any]) -> str:
    """JSON as people read it; with escapes where a character would steer a terminal or cannot be written."""
    line = json.dumps(row, ensure_ascii=False)
    return line if visible(line) == line else json.dumps(row)


def _from_file(
    model: Any, codec: RecordCodec, settings: AnswerSettings, file: DataFile
) -> tuple[list[Record], list[Encoded]]:
    limits = Limits(positions=model.limit)
    how: dict[str, Any] = {name: getattr(codec, name) for name in ("separator", "quoting", "header")}
    options = RecordOptions(encoding=file.encoding, **how)
    further = lambda sound: fit_lengths(codec, sound, limits, str(file.path)).problems  # noqa: E731
    records = read_records(file.path, codec.shape, codec.columns, options, further, notes=file.notes)
    fitted = fit_lengths(codec, records, limits, str(file.path))
    refuse(fitted.problems)
    problems: list[str] = []
    for record, one in zip(fitted.records, fitted.encoded, strict=True):
        try:
            _check_positions(model, codec, len(one.prompt), settings)
        except ValueError as error:
            problems.append(f"{record.origin}: {error}")
    refuse(first_problems(str(file.path), problems))
    return fitted.records, fitted.encoded


def _check_positions(model: Any, codec: RecordCodec, prompt: int, settings: AnswerSettings) -> None:
    """Raise ValueError if a prompt of so many tokens is empty, or too long before the longest answer."""
    limit, answer = model.limit, settings.most(codec)
    if not prompt:
        raise ValueError("the tokenizer makes nothing of it")
    if limit is None:
        if prompt > 20_000:
            raise ValueError(f"has {prompt:,} tokens, and at most 20,000 are read at once: shorten it")
    elif prompt + answer > limit if codec.causal else max(prompt, answer) > limit:
        raise ValueError(
            f"has {prompt} tokens, its answer may have {answer}, and the model has {limit} positions: shorten it, or "
            "lower evaluate.length (--length)"
        )
