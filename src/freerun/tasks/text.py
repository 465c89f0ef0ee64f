"""A text, character by character, as a kind of task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from freerun.arguments import Arguments, at_least, between, one_of
from freerun.batch import Batch
from freerun.data.files import DataFile
from freerun.data.text import TextCodec, TextData, TextOptions, load_text, read_text
from freerun.diagnostics import DiagnosisOptions
from freerun.errors import UserError, collected, refuse
from freerun.generation import generate
from freerun.keys import bits, fold
from freerun.metrics.outputs import correct
from freerun.metrics.table import TEXT, TaskReport
from freerun.metrics.text import distinct_words, js_divergence, novel_words, repetition, trigrams
from freerun.rollin.model import eval_mode
from freerun.tasks.base import DataTask, DiagnosisInput, Evaluation, Examples, missing_path, model_device, parts
from freerun.types import evenly


@dataclass(frozen=True)
class TextSection(TextOptions):
    """Any text: its characters, in windows to train on; cut by position into train, dev and test.

    Args:
        path: a text file, or several, which are read one after the other.
    """

    kind: Literal["text"] = "text"
    path: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        problems = [] if self.path else [missing_path("the text file to train on", "FILE")]
        with collected(problems):
            super().__post_init__()
        refuse(problems)


@dataclass(frozen=True)
class TextSettings(Arguments):
    """How a model of a text is scored, on dev while training and on test at the end.

    Args:
        block: characters of a block: each is scored teacher-forced, and output once by the model running freely.
        draw: "sample" from what the model predicts, or "greedy".
        batch_size: windows and blocks at a time; changes no number.

    Raises:
        UserError: values out of range; all problems at once.
    """

    block: int = between(1, 100_000, 256)
    draw: Literal["sample", "greedy"] = one_of(("sample", "greedy"), "sample")
    batch_size: int = at_least(1, 256, semantic=False)


class TextTask(DataTask):
    """A text, scored by bits per character and by the model's own continuations."""

    data: TextData
    settings: TextSettings
    models = ("transformer_lm",)
    data_sections: ClassVar[Mapping[str, type[Any]]] = {"text": TextSection}
    evaluate_section = TextSettings
    report: ClassVar[TaskReport] = TEXT
    select = "teacher_forced_bits_per_character"
    needs_training_data = True  # the output is compared with the words of the training part

    def evaluate(self, model: Module, split: str) -> Evaluation:
        if split not in ("dev", "test"):
            raise UserError(f"split must be dev or test; got {split!r}")
        blocks = self.items if split == "dev" else None
        text, training = self.data.parts[split], self.data.parts["train"]
        return evaluate_text(model, self.data.codec, text, training, self.settings, items=blocks)

    def named(self, batch: Batch, numbers: Sequence[int]) -> Examples:
        return replace(super().named(batch, numbers), decode=lambda ids: list(self.data.codec.text(ids)))

    @staticmethod
    def load(settings: TextSection, model: object) -> TextData:
        return load_text(settings.path or (), settings)

    @staticmethod
    def sizes(data: TextData) -> tuple[int, ...]:
        return (len(data.codec),)

    @staticmethod
    def positions(data: TextData, settings: TextSettings) -> tuple[int, str]:
        # in training, scoring and free running what the model reads is cut to ``length``
        length = data.options.length
        return length + 1, f"a window has data.length = {length} characters and one before them"

    @staticmethod
    def codec(description: Mapping[str, Any]) -> TextCodec:
        return TextCodec.from_description(description)

    @staticmethod
    def score(
        model: Module, codec: TextCodec, settings: TextSettings, data: TextData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        text = data.parts["test"] if file is None else read_text(file.path, file.encoding)
        scores = evaluate_text(model, codec, text, data.parts["train"], settings)
        name = f"{data.name}, test part" if file is None else str(file.path)
        return {"data": name, "characters": len(text), "blocks": len(scores.items), "draw": settings.draw}, scores

    @staticmethod
    def line_problems(
        model: Module, codec: TextCodec, settings: TextSettings, lines: Sequence[str], origins: Sequence[str]
    ) -> list[list[str]]:
        return [codec.problems(unescaped(line), origin) for origin, line in zip(origins, lines, strict=True)]

    @classmethod
    def unanswered(cls, line: str) -> str:
        return f"{escaped(unescaped(line))}\t"

    @staticmethod
    def generate_lines(model: Module, codec: TextCodec, settings: TextSettings, lines: Sequence[str]) -> list[str]:
        r"""``beginning<TAB>continuation``; a line break within either is written ``\n``, a tab ``\t``."""
        prompts = [unescaped(line) for line in lines]
        outputs = free_outputs(model, codec, prompts, settings.block, draw=settings.draw)
        return [f"{escaped(prompt)}\t{escaped(text)}" for prompt, text in zip(prompts, outputs, strict=True)]

    @staticmethod
    def diagnosis_input(
        model: Module, codec: TextCodec, settings: TextSettings, data: TextData, items: int | None
    ) -> DiagnosisInput:
        """Windows of the test part: the first half is the prompt, and the rest is gold of no free run."""
        text, width, context = data.parts["test"], codec.length + 1, codec.length // 2
        ids = codec.ids(text)
        starts = torch.arange(0, len(ids) - width + 1, width - context)
        starts = starts[torch.tensor(evenly(len(starts), items))]
        entries = ids[starts[:, None] + torch.arange(width)]
        mask = (torch.arange(width) >= context).expand_as(entries)
        batches = [
            Batch(e, e, m).to(model_device(model)) for e, m in zip(entries.split(128), mask.split(128), strict=True)
        ]
        sources = [text[start : start + context] for start in starts.tolist()]
        decode = lambda ids: list(codec.text(ids))  # noqa: E731
        return f"{data.name}, test part", batches, DiagnosisOptions(reference=False, sources=sources, decode=decode)

    @staticmethod
    def trial_batch(codec: TextCodec, rows: int) -> Batch:
        drawn = bits(0, torch.arange(rows)[:, None], torch.arange(rows + 4)).abs() % len(codec)
        mask = torch.arange(rows + 4) < torch.arange(5, rows + 5)[:, None]
        ids = drawn.masked_fill(~mask, 0)
        return Batch(ids, ids, mask)


def evaluate_text(
    model: Module,
    codec: TextCodec,
    text: str,
    training: str,
    settings: TextSettings | None = None,
    *,
    items: int | None = None,
) -> Evaluation:
    """Scores of a model on a text, with gold and with its own output as input; see ``freerun.metrics.table``.

    The text is cut into blocks; its first ``length // 2`` characters are context only. Teacher-forced, each character
    of a block is predicted once, with ``length // 2`` to ``length`` characters before it as input. Free-running, the
    model goes on from the ``length // 2`` characters before each block and outputs as many as the block has, see
    ``free_outputs``. ``text_...`` are the scores of the blocks themselves: those of a perfect model.
    """
    settings = settings or TextSettings()
    if len(text) < codec.length + 1:
        raise UserError(f"the text has {len(text)} characters; at least length + 1 = {codec.length + 1} are needed")
    ids = codec.ids(text)
    starts = range(codec.length // 2, len(ids), settings.block)
    # the last one may be short
    blocks = [(starts[n], min(starts[n] + settings.block, len(ids))) for n in evenly(len(starts), items)]
    nats, right = _teacher_forced(model, codec, ids, blocks, settings.batch_size)
    prompts = [text[start - codec.length // 2 : start] for start, _ in blocks]
    gold = [text[start:end] for start, end in blocks]
    outputs = free_outputs(model, codec, prompts, settings.block, draw=settings.draw, batch_size=settings.batch_size)
    outputs = [own[: len(block)] for own, block in zip(outputs, gold, strict=True)]
    known = distinct_words(training)
    characters = sum(map(len, gold))
    loss = float(nats.sum()) / characters
    teacher_forced = {
        "loss": loss,
        "bits_per_character": loss / math.log(2),
        "token_accuracy": 100 * int(right.sum()) / characters,
    }
    scored = [
        {
            "source": f"characters {start} to {end - 1}",
            "prompt": prompt,
            "output": own,
            "references": [block],
            "errors": float(cost),
            "length": end - start,
            **novel_words(own, known),
        }
        for (start, end), prompt, own, block, cost in zip(blocks, prompts, outputs, gold, nats, strict=True)
    ]
    free_running = _measures(outputs, training, known)
    free_running |= {f"text_{name}": value for name, value in _measures(gold, training, known).items()}
    return Evaluation(teacher_forced, TEXT.with_items(free_running, scored), scored)


def free_outputs(
    model: Module,
    codec: TextCodec,
    prompts: Sequence[str],
    length: int,
    *,
    draw: str = "sample",
    key: int = 0,
    batch_size: int = 256,
) -> list[str]:
    """``length`` characters after each prompt, running freely; ``key``: of the draws.

    The input is the last ``codec.length`` characters of the prompt, then the output; whenever it would be longer than
    ``codec.length``, its last half is kept.
    """
    problems = [
        f"beginning {n + 1} is empty; give at least one character" for n, text in enumerate(prompts) if not text
    ]
    problems += [text for n, prompt in enumerate(prompts) for text in codec.problems(prompt, f"beginning {n + 1}")]
    refuse(problems[:20])
    inputs = [codec.ids(prompt[-codec.length :]) for prompt in prompts]
    lengths = [len(ids) for ids in inputs]
    outputs: list[str] = [""] * len(prompts)
    for same in sorted(set(lengths)):
        for chosen in parts([n for n, own in enumerate(lengths) if own == same], batch_size):
            rows = torch.tensor(chosen, device=model_device(model))
            start = torch.stack([inputs[n] for n in chosen]).to(rows.device)
            entries = _continuation(model, start, (length, codec.length), draw, (fold(key, "go on"), rows))
            for n, row in zip(chosen, entries.tolist(), strict=True):
                outputs[n] = codec.text(row)
    return outputs


def _continuation(
    model: Module, inputs: Tensor, lengths: tuple[int, int], draw: str, keys: tuple[int, Tensor]
) -> Tensor:
    """(rows, length) output ids after (rows, time) ids; lengths: of the output, and of the input at most."""
    (length, most), (key, rows) = lengths, keys
    output = inputs[:, :0]
    for stretch in range(length):
        if inputs.shape[1] > most:
            inputs = inputs[:, -(most // 2) :]
        more = min(most + 1 - inputs.shape[1], length - output.shape[1])
        history = F.pad(inputs, (0, more))
        mask = (torch.arange(history.shape[1], device=inputs.device) >= inputs.shape[1]).expand_as(history)
        batch = Batch(history, history, mask, rows=rows)
        entries = generate(model, batch, length=more, draw=draw, key=fold(key, stretch)).entries
        inputs, output = torch.cat([inputs, entries], 1), torch.cat([output, entries], 1)
        if output.shape[1] == length:
            break
    return output


def _teacher_forced(
    model: Module, codec: TextCodec, ids: Tensor, blocks: Sequence[tuple[int, int]], batch_size: int
) -> tuple[Tensor, Tensor]:
    """(blocks,) nats in float64 and right choices, from windows whose first ``length // 2`` entries are context."""
    context, width = codec.length // 2, codec.length + 1
    fresh = width - context
    starts = [(n, at - context, end) for n, (start, end) in enumerate(blocks) for at in range(start, end, fresh)]
    block, window, ends = torch.tensor(starts).unbind(1)
    nats, right = torch.zeros(len(blocks), dtype=torch.float64), torch.zeros(len(blocks), dtype=torch.int64)
    with eval_mode(model), torch.no_grad():
        for chosen in torch.arange(len(starts)).split(batch_size):
            positions = window[chosen, None] + torch.arange(width)
            mask = (positions < ends[chosen, None]) & (torch.arange(width) >= context)
            entries = ids[positions.clamp(max=len(ids) - 1)]
            batch = Batch(entries, entries, mask).to(model_device(model))
            outputs = model(batch).float()
            loss = F.cross_entropy(outputs.transpose(1, 2), batch.targets, reduction="none")
            nats.index_add_(0, block[chosen], loss.double().masked_fill(~batch.mask, 0).sum(1).cpu())
            right.index_add_(0, block[chosen], correct(outputs, batch.targets, batch.mask).sum(1).cpu())
    return nats, right


def _measures(texts: Sequence[str], training: str, known: frozenset[str]) -> dict[str, float]:
    words = [novel_words(text, known) for text in texts]
    counted = sum(each["words"] for each in words)
    return {
        "trigram_divergence": js_divergence(trigrams(texts), trigrams([training])),
        "novel_words": 100 * sum(each["novel"] for each in words) / counted if counted else math.nan,
        "repetition": repetition(texts),
    }


def escaped(text: str) -> str:
    """A text in one line: line breaks and tabs as two characters each."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def unescaped(text: str) -> str:
    """The inverse of ``escaped``."""
    pieces = text.split("\\\\")
    return "\\".join(piece.replace("\\n", "\n").replace("\\t", "\t") for piece in pieces)
