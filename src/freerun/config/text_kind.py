"""A text, character by character, as a kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from freerun.config.data_sections import DataFile
from freerun.config.data_sections import TextData as TextSection
from freerun.config.recipe import TextEvaluate
from freerun.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.data import TextCoder, TextData
    from freerun.training import Evaluation
    from freerun.training.language import TextTask
    from freerun.training.reported import Reported
    from freerun.types import Batch

__all__ = ["TextKind", "escaped", "unescaped"]

_ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t"))


class TextKind:
    """Any text, gone on with from its own beginning; see ``TaskKind``."""

    models = ("transformer_lm",)
    evaluate: type[Any] = TextEvaluate
    select = "teacher_forced_bits_per_character"
    # the text's own scores are constants, and novel words and repetition can be too few
    selectable = (
        "trigram_divergence", "teacher_forced_loss", "teacher_forced_bits_per_character",
        "teacher_forced_token_accuracy",
    )  # fmt: skip
    values = False
    tables = False
    aligned = False
    needs_training_data = True  # what the model says is compared with the words of the training part

    def reported(self) -> Reported:
        """Free-running trigram divergence first."""
        from freerun.training.reported_texts import TEXT

        return TEXT

    def load(self, settings: TextSection, model: object) -> TextData:
        """The text.

        Raises:
            UserError: all problems of the files.
        """
        from freerun.data import TextOptions, load_text

        options = TextOptions(
            length=settings.length,
            stride=settings.stride,
            dev=settings.dev,
            test=settings.test,
            encoding=settings.encoding,
            unknown=settings.unknown,
        )
        return load_text(settings.path or (), options)

    def make(self, data: TextData, settings: TextEvaluate, items: int | None) -> TextTask:
        """Bits per character and what the model says by itself, on so many blocks of dev."""
        from freerun.training.language import TextTask

        return TextTask(data, _scoring(settings, items))

    def sizes(self, data: TextData) -> tuple[int, ...]:
        """Of the characters."""
        return (len(data.coder),)

    def positions(self, data: TextData, settings: TextEvaluate) -> tuple[int, str]:
        """A window's, in training, scoring and going on alike: what is told is cut to ``length``."""
        length = data.options.length
        return length + 1, f"a window has data.length = {length} characters and one before them"

    def frequencies(self, data: TextData) -> tuple[float, ...]:
        """Of the training part."""
        return data.frequencies

    def coder(self, description: Mapping[str, Any]) -> TextCoder:
        """The characters and the length of a window."""
        from freerun.data import TextCoder

        return TextCoder.from_description(description)

    def score(
        self, model: Module, coder: TextCoder, settings: TextEvaluate, data: TextData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """On a whole file, or on the test part."""
        from freerun.data import read_text
        from freerun.training.language import evaluate_text

        text = data.parts["test"] if file is None else read_text(file.path, file.encoding)
        found = evaluate_text(model, coder, text, data.parts["train"], _scoring(settings))
        name = f"{data.name}, test part" if file is None else str(file.path)
        facts = {"data": name, "characters": len(text), "blocks": len(found.items), "draw": settings.draw}
        return facts, found

    def answer(
        self, model: Module, coder: TextCoder, settings: TextEvaluate, lines: Sequence[str], places: Sequence[str]
    ) -> list[str]:
        r"""``beginning<TAB>continuation``; a line break within either is written ``\n``, a tab ``\t``.

        Raises:
            UserError: characters never seen in training; those of all lines at once.
        """
        from freerun.data.text import first_problems
        from freerun.training.language import go_on

        problems: list[str] = []
        prompts = [unescaped(line) for line in lines]
        for place, prompt in zip(places, prompts, strict=True):
            problems += coder.problems(prompt, place)
        if problems:
            raise UserError(first_problems("the input", problems))
        said = go_on(model, coder, prompts, settings.block, draw=settings.draw)
        return [f"{escaped(prompt)}\t{escaped(text)}" for prompt, text in zip(prompts, said, strict=True)]

    def trial_batch(self, coder: TextCoder, rows: int) -> Batch:
        """Windows of random characters, of different lengths."""
        import torch

        from freerun.keys import bits
        from freerun.types import Batch

        drawn = bits(0, torch.arange(rows)[:, None], torch.arange(rows + 4)).abs() % len(coder)
        mask = torch.arange(rows + 4) < torch.arange(5, rows + 5)[:, None]
        ids = drawn.masked_fill(~mask, 0)
        return Batch(ids, ids, mask)


def _scoring(settings: TextEvaluate, blocks: int | None = None) -> Any:
    from freerun.training.language import TextSettings

    return TextSettings(block=settings.block, draw=settings.draw, batch_size=settings.batch_size, blocks=blocks)


def escaped(text: str) -> str:
    """A text in one line: line breaks and tabs as two characters each."""
    for plain, escaped in _ESCAPES:
        text = text.replace(plain, escaped)
    return text


def unescaped(text: str) -> str:
    """The text that ``escaped`` was given."""
    pieces = text.split("\\\\")
    return "\\".join(piece.replace("\\n", "\n").replace("\\t", "\t") for piece in pieces)
