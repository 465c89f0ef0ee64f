"""A text, character by character, as a kind of task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from freerun.arguments import Arguments, at_least, between, one_of
from freerun.batch import Batch
from freerun.data.files import DataFile, first_problems
from freerun.data.text import TextCodec, TextData, TextOptions, load_text, read_text
from freerun.errors import UserError
from freerun.generation import generate
from freerun.keys import bits, fold
from freerun.metrics.outputs import correct
from freerun.metrics.table import TEXT, TaskReport
from freerun.metrics.text import distinct_words, js_divergence, novel_words, repetition, trigrams
from freerun.rollin.model import eval_mode
from freerun.tasks.base import DataTask, Evaluation, collected, missing_path
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
        if problems:
            raise UserError(problems)


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


class TextTask(DataTask[TextData, TextSettings]):
    """A text, scored by bits per character and by the model's own continuations."""

    models = ("transformer_lm",)
    data_sections: ClassVar[Mapping[str, type[Any]]] = {"text": TextSection}
    evaluate_section = TextSettings
    report: ClassVar[TaskReport] = TEXT
    select = "teacher_forced_bits_per_character"
    diagnosed = False
    needs_training_data = True  # the output is compared with the words of the training part

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``items`` of its blocks) or "test"; see ``evaluate_text``."""
        if split not in ("dev", "test"):
            raise UserError(f"split must be dev or test; got {split!r}")
        blocks = self.items if split == "dev" else None
        parts = self.data.parts
        return evaluate_text(model, self.data.codec, parts[split], parts["train"], self.settings, items=blocks)

    @staticmethod
    def load(settings: TextSection, model: object) -> TextData:
        """The text.

        Raises:
            UserError: all problems of the files.
        """
        return load_text(settings.path or (), settings)

    @staticmethod
    def sizes(data: TextData) -> tuple[int, ...]:
        """Of the characters."""
        return (len(data.codec),)

    @staticmethod
    def positions(data: TextData, settings: TextSettings) -> tuple[int, str]:
        """A window's, in training, scoring and free running alike: what the model reads is cut to ``length``."""
        length = data.options.length
        return length + 1, f"a window has data.length = {length} characters and one before them"

    @staticmethod
    def codec(description: Mapping[str, Any]) -> TextCodec:
        """The characters and the length of a window."""
        return TextCodec.from_description(description)

    @staticmethod
    def score(
        model: Module, codec: TextCodec, settings: TextSettings, data: TextData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """On a whole file, or on the test part."""
        text = data.parts["test"] if file is None else read_text(file.path, file.encoding)
        found = evaluate_text(model, codec, text, data.parts["train"], settings)
        name = f"{data.name}, test part" if file is None else str(file.path)
        return {"data": name, "characters": len(text), "blocks": len(found.items), "draw": settings.draw}, found

    @staticmethod
    def generate_lines(
        model: Module, codec: TextCodec, settings: TextSettings, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        r"""``beginning<TAB>continuation``; a line break within either is written ``\n``, a tab ``\t``.

        Raises:
            UserError: characters never seen in training; those of all lines at once.
        """
        prompts = [unescaped(line) for line in lines]
        problems = [
            problem for place, prompt in zip(places, prompts, strict=True) for problem in codec.problems(prompt, place)
        ]
        if problems:
            raise UserError(first_problems("the input", problems))
        outputs = free_outputs(model, codec, prompts, settings.block, draw=settings.draw)
        return [f"{escaped(prompt)}\t{escaped(text)}" for prompt, text in zip(prompts, outputs, strict=True)]

    @staticmethod
    def trial_batch(codec: TextCodec, rows: int) -> Batch:
        """Windows of random characters, of different lengths."""
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
    """Scores of a model on a text, told gold and going on by itself.

    The text is cut into blocks; its first ``length // 2`` characters are context only. Told gold, each character of a
    block is predicted once, with at least the ``length // 2`` characters before it and at most ``length``: ``loss``
    in nats per character, ``bits_per_character = loss / ln 2``, ``token_accuracy`` in percent. Free-running, the
    model goes on from the ``length // 2`` characters before each block and says as many as the block has, under the
    same rule of what it is told (``free_outputs``), with one fixed key: ``trigram_divergence``, ``novel_words`` and
    ``repetition`` of all it said (see ``freerun.metrics.text``), and as ``text_...`` those of the blocks themselves:
    what a perfect model would come to.

    Args:
        model: from a Batch to (batch, time, vocab); its mode is restored afterwards.
        codec: the characters the model was trained with.
        text: what it is scored on.
        training: the text it was trained on.
        settings: of the evaluation.
        items: blocks scored, spread evenly; None: all.

    Raises:
        UserError: the text is shorter than a window, or has characters that training has not.
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
    said = free_outputs(model, codec, prompts, settings.block, draw=settings.draw, batch_size=settings.batch_size)
    said = [own[: len(given)] for own, given in zip(said, gold, strict=True)]
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
            "references": [given],
            "errors": float(cost),
            "length": end - start,
            **novel_words(own, known),
        }
        for (start, end), prompt, own, given, cost in zip(blocks, prompts, said, gold, nats, strict=True)
    ]
    free_running = _measures(said, training, known)
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
    """How a model goes on with some beginnings, running freely.

    It is told the last ``codec.length`` characters of the beginning, then its own; whenever it would be told more
    than ``codec.length``, it is told the last half of them instead and goes on from there.

    Args:
        model: from a Batch to (batch, time, vocab); its mode is restored afterwards.
        codec: the characters the model was trained with.
        prompts: beginnings.
        length: characters to say.
        draw: "sample" or "greedy".
        key: randomness is a function of (key, number of the beginning, character).
        batch_size: beginnings at once; no character depends on it.

    Raises:
        UserError: an empty beginning, or characters that training has not; all problems at once.
    """
    problems = [
        f"beginning {n + 1} is empty; give at least one character" for n, text in enumerate(prompts) if not text
    ]
    problems += [text for n, prompt in enumerate(prompts) for text in codec.problems(prompt, f"beginning {n + 1}")]
    if problems:
        raise UserError(problems[:20])
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    told = [codec.ids(prompt[-codec.length :]) for prompt in prompts]
    said: list[str] = [""] * len(prompts)
    for chosen in _alike([len(ids) for ids in told], batch_size):
        rows = torch.tensor(chosen, device=device)
        start = torch.stack([told[n] for n in chosen]).to(device)
        entries = _continuation(model, start, (length, codec.length), draw, (fold(key, "go on"), rows))
        for n, row in zip(chosen, entries.tolist(), strict=True):
            said[n] = codec.text(row)
    return said


def _continuation(model: Module, told: Tensor, lengths: tuple[int, int], draw: str, keys: tuple[int, Tensor]) -> Tensor:
    """(rows, characters) ids said after (rows, told) ids.

    ``lengths``: characters to say, and to be told at most; ``keys``: of the noise, and the rows' numbers.
    """
    (length, most), (key, rows) = lengths, keys
    said = told[:, :0]
    for stretch in range(length):
        if told.shape[1] > most:
            told = told[:, -(most // 2) :]
        more = min(most + 1 - told.shape[1], length - said.shape[1])
        history = F.pad(told, (0, more))
        mask = (torch.arange(history.shape[1], device=told.device) >= told.shape[1]).expand_as(history)
        batch = Batch(history, history, mask, rows=rows)
        found = generate(model, batch, length=more, draw=draw, key=fold(key, stretch)).entries
        told, said = torch.cat([told, found], 1), torch.cat([said, found], 1)
        if said.shape[1] == length:
            break
    return said


def _teacher_forced(
    model: Module, codec: TextCodec, ids: Tensor, blocks: Sequence[tuple[int, int]], batch_size: int
) -> tuple[Tensor, Tensor]:
    """(blocks,) nats in float64 and right choices, from windows whose first ``length // 2`` entries are context."""
    context, width = codec.length // 2, codec.length + 1
    fresh = width - context
    starts = [(n, place - context, end) for n, (start, end) in enumerate(blocks) for place in range(start, end, fresh)]
    block, window, ends = torch.tensor(starts).unbind(1)
    nats, right = torch.zeros(len(blocks), dtype=torch.float64), torch.zeros(len(blocks), dtype=torch.int64)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with eval_mode(model), torch.no_grad():
        for chosen in torch.arange(len(starts)).split(batch_size):
            places = window[chosen, None] + torch.arange(width)
            mask = (places < ends[chosen, None]) & (torch.arange(width) >= context)
            entries = ids[places.clamp(max=len(ids) - 1)]
            batch = Batch(entries, entries, mask).to(device)
            outputs = model(batch).float()
            loss = F.cross_entropy(outputs.transpose(1, 2), batch.targets, reduction="none")
            nats.index_add_(0, block[chosen], loss.double().masked_fill(~batch.mask, 0).sum(1).cpu())
            right.index_add_(0, block[chosen], correct(outputs, batch.targets, batch.mask).sum(1).cpu())
    return nats, right


def _measures(said: Sequence[str], training: str, known: frozenset[str]) -> dict[str, float]:
    found = [novel_words(text, known) for text in said]
    counted = sum(each["words"] for each in found)
    return {
        "trigram_divergence": js_divergence(trigrams(said), trigrams([training])),
        "novel_words": 100 * sum(each["novel"] for each in found) / counted if counted else math.nan,
        "repetition": repetition(said),
    }


def _alike(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of the items in batches of one length."""
    for length in sorted(set(lengths)):
        same = [number for number, own in enumerate(lengths) if own == length]
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


_ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t"))


def escaped(text: str) -> str:
    """A text in one line: line breaks and tabs as two characters each."""
    for plain, escaped in _ESCAPES:
        text = text.replace(plain, escaped)
    return text


def unescaped(text: str) -> str:
    """The text that ``escaped`` was given."""
    pieces = text.split("\\\\")
    return "\\".join(piece.replace("\\n", "\n").replace("\\t", "\t") for piece in pieces)
