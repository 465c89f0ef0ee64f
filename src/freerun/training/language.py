"""A text as a task: bits per character told gold, and what the model says when it goes on by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from freerun.data.text_coder import TextCoder
from freerun.data.text_windows import TextData
from freerun.draws import DRAWS, resolve
from freerun.errors import UserError
from freerun.generate import generate
from freerun.keys import fold
from freerun.metrics import correct
from freerun.rollin.modes import evaluating
from freerun.training.said import divergence, novelty, repetition, trigrams, words
from freerun.training.task import DataTask, Evaluation
from freerun.types import Batch

__all__ = ["SCORES", "TextSettings", "TextTask", "evaluate_text", "go_on"]

_OWN = ("trigram_divergence", "novel_words", "repetition")

SCORES = {
    "teacher_forced": ("loss", "bits_per_character", "token_accuracy"),
    "free_running": (*_OWN, *(f"text_{name}" for name in _OWN)),
}
"""What ``evaluate_text`` gives, by side; ``text_...`` are the same of the held-out text itself."""


@dataclass(frozen=True)
class TextSettings:
    """How a model of a text is scored.

    Args:
        block: characters of a block.
        draw: "sample" from what the model predicts, or "greedy".
        batch_size: windows, or blocks, at once; no score depends on it.
        blocks: blocks scored of dev, spread evenly; None: all. Test is always scored whole.

    Raises:
        UserError: values out of range; all problems at once.
    """

    block: int = 256
    draw: str = "sample"
    batch_size: int = 256
    blocks: int | None = None

    def __post_init__(self) -> None:
        given = {"block": self.block, "batch_size": self.batch_size, "blocks": self.blocks}
        problems = [f"{name} must be at least 1; got {n}" for name, n in given.items() if n is not None and n < 1]
        if self.draw not in DRAWS or resolve(self.draw).values:
            problems.append(f'draw must be "sample" or "greedy"; got {self.draw!r}')
        if problems:
            raise UserError(problems)


class TextTask(DataTask[TextData, TextSettings]):
    """A text to train on, scored by bits per character and by what the model says: a ``Task`` of the training loop.

    Args:
        data: the text.
        settings: of the evaluation; the defaults of ``TextSettings`` if left out.
    """

    def __init__(self, data: TextData, settings: TextSettings | None = None) -> None:
        super().__init__(data, settings or TextSettings())

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``settings.blocks`` of its blocks) or "test"; see ``evaluate_text``."""
        if split not in ("dev", "test"):
            raise UserError(f"split must be dev or test; got {split!r}")
        blocks = self.settings.blocks if split == "dev" else None
        settings = TextSettings(self.settings.block, self.settings.draw, self.settings.batch_size, blocks)
        return evaluate_text(model, self.data.coder, self.data.parts[split], self.data.parts["train"], settings)


def evaluate_text(
    model: Module, coder: TextCoder, text: str, training: str, settings: TextSettings | None = None
) -> Evaluation:
    """Scores of a model on a text, told gold and going on by itself.

    The text is cut into blocks; its first ``length // 2`` characters are context only. Told gold, each character of a
    block is predicted once, with at least the ``length // 2`` characters before it and at most ``length``: ``loss``
    in nats per character, ``bits_per_character = loss / ln 2``, ``token_accuracy`` in percent. Free-running, the
    model goes on from the ``length // 2`` characters before each block and says as many as the block has, under the
    same rule of what it is told (``go_on``), with one fixed key: ``trigram_divergence``, ``novel_words`` and
    ``repetition`` of all it said (see ``freerun.training.said``), and as ``text_...`` those of the blocks themselves:
    what a perfect model would come to.

    Args:
        model: from a Batch to (batch, time, vocab); its mode is restored afterwards.
        coder: the characters the model was trained with.
        text: what it is scored on.
        training: the text it was trained on.
        settings: of the evaluation.

    Raises:
        UserError: the text is shorter than a window, or has characters that training has not.
    """
    settings = settings or TextSettings()
    if len(text) < coder.length + 1:
        raise UserError(f"the text has {len(text)} characters; at least length + 1 = {coder.length + 1} are needed")
    ids = coder.ids(text)
    blocks = _blocks(len(ids), coder.length // 2, settings)
    nats, right = _teacher_forced(model, coder, ids, blocks, settings.batch_size)
    prompts = [text[start - coder.length // 2 : start] for start, _ in blocks]
    gold = [text[start:end] for start, end in blocks]
    said = go_on(model, coder, prompts, settings.block, draw=settings.draw, batch_size=settings.batch_size)
    said = [own[: len(given)] for own, given in zip(said, gold, strict=True)]
    known = words(training)
    characters = sum(map(len, gold))
    loss = float(nats.sum()) / characters
    teacher_forced = {
        "loss": loss,
        "bits_per_character": loss / math.log(2),
        "token_accuracy": 100 * int(right.sum()) / characters,
    }
    items = [
        {
            "source": f"characters {start} to {end - 1}",
            "prompt": prompt,
            "output": own,
            "references": [given],
            "errors": float(cost),
            "length": end - start,
            **novelty(own, known),
        }
        for (start, end), prompt, own, given, cost in zip(blocks, prompts, said, gold, nats, strict=True)
    ]
    free_running = _measures(said, training, known)
    free_running |= {f"text_{name}": value for name, value in _measures(gold, training, known).items()}
    return Evaluation(teacher_forced, free_running, items)


def go_on(
    model: Module,
    coder: TextCoder,
    prompts: Sequence[str],
    length: int,
    *,
    draw: str = "sample",
    key: int = 0,
    batch_size: int = 256,
) -> list[str]:
    """How a model goes on with some beginnings, running freely.

    It is told the last ``coder.length`` characters of the beginning, then its own; whenever it would be told more
    than ``coder.length``, it is told the last half of them instead and goes on from there.

    Args:
        model: from a Batch to (batch, time, vocab); its mode is restored afterwards.
        coder: the characters the model was trained with.
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
    problems += [text for n, prompt in enumerate(prompts) for text in coder.problems(prompt, f"beginning {n + 1}")]
    if problems:
        raise UserError(problems[:20])
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    told = [coder.ids(prompt[-coder.length :]) for prompt in prompts]
    said: list[str] = [""] * len(prompts)
    for chosen in _alike([len(ids) for ids in told], batch_size):
        rows = torch.tensor(chosen, device=device)
        start = torch.stack([told[n] for n in chosen]).to(device)
        entries = _continuation(model, start, (length, coder.length), draw, (fold(key, "go on"), rows))
        for n, row in zip(chosen, entries.tolist(), strict=True):
            said[n] = coder.text(row)
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


def _blocks(characters: int, context: int, settings: TextSettings) -> list[tuple[int, int]]:
    """Beginning and end of every block that is scored; the last one may be short."""
    starts = range(context, characters, settings.block)
    found = [(start, min(start + settings.block, characters)) for start in starts]
    if settings.blocks is None or settings.blocks >= len(found):
        return found
    return [found[number * len(found) // settings.blocks] for number in range(settings.blocks)]


def _teacher_forced(
    model: Module, coder: TextCoder, ids: Tensor, blocks: Sequence[tuple[int, int]], batch_size: int
) -> tuple[Tensor, Tensor]:
    """(blocks,) nats in float64 and right choices, from windows whose first ``length // 2`` entries are context."""
    context, width = coder.length // 2, coder.length + 1
    fresh = width - context
    starts = [(n, place - context, end) for n, (start, end) in enumerate(blocks) for place in range(start, end, fresh)]
    block, window, ends = torch.tensor(starts).unbind(1)
    nats, right = torch.zeros(len(blocks), dtype=torch.float64), torch.zeros(len(blocks), dtype=torch.int64)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with evaluating(model), torch.no_grad():
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
    found = [novelty(text, known) for text in said]
    counted = sum(each["words"] for each in found)
    return {
        "trigram_divergence": divergence(trigrams(said), trigrams([training])),
        "novel_words": 100 * sum(each["novel"] for each in found) / counted if counted else math.nan,
        "repetition": repetition(said),
    }


def _alike(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of the items in batches of one length."""
    for length in sorted(set(lengths)):
        same = [number for number, own in enumerate(lengths) if own == length]
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]
