"""Any text as data: its characters, cut by position into train, dev and test, in windows to train on."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from freerun.arguments import at_least, between, brief, field_problems, one_of
from freerun.batch import Batch
from freerun.data.files import SPLITS, check_description, counted, first_problems, read_each, read_lines, user_path
from freerun.errors import UserError, refuse


@dataclass(frozen=True)
class TextCodec:
    """What a trained model needs of its text: the characters, and how many a window holds.

    Args:
        symbols: the characters; a character's position is its id.
        length: of the training windows.

    Raises:
        UserError: there are no characters, they are not single ones, or one stands twice.

    >>> codec = TextCodec(("a", "b"), 8)
    >>> codec.ids("abba").tolist(), codec.text([1, 0]), len(codec)
    ([0, 1, 1, 0], 'ba', 2)
    >>> TextCodec.from_description(codec.describe()) == codec
    True
    """

    __repr__ = brief

    symbols: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        if not self.symbols or len(set(self.symbols)) < len(self.symbols) or any(len(s) != 1 for s in self.symbols):
            raise UserError(f"symbols must be different single characters, at least one; got {self.symbols[:20]}")

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def _codes(self) -> tuple[Tensor, Tensor]:
        codes = torch.tensor([ord(symbol) for symbol in self.symbols])
        order = codes.argsort()
        return codes[order], order

    def ids(self, text: str, where: str = "text") -> Tensor:
        """Return (characters,) int64 ids; raise UserError for characters that training has not."""
        if not text:
            return torch.zeros(0, dtype=torch.int64)
        codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32).long()
        known, order = self._codes
        positions = torch.searchsorted(known, codes).clamp(max=len(known) - 1)
        if not torch.equal(known[positions], codes):
            raise UserError(self.problems(text, where))
        return order[positions]

    def text(self, ids: Sequence[int]) -> str:
        """The characters of some ids."""
        return "".join(self.symbols[number] for number in ids)

    def problems(self, text: str, where: str) -> list[str]:
        """Return a message for every character that training has not."""
        unknown = sorted(set(text) - set(self.symbols))
        known = "".join(self.symbols[:100]) + ("..." if len(self.symbols) > 100 else "")
        return [f"{where}: character {symbol!r} was never seen in training; known are {known!r}" for symbol in unknown]

    def describe(self) -> dict[str, Any]:
        """Return what is saved with a model, as JSON types."""
        return {"kind": "text", "symbols": list(self.symbols), "length": self.length}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> TextCodec:
        """Return the codec of a description; raise UserError if it is of something else or incomplete."""
        check_description(description, "text", {"symbols": list, "length": int})
        return cls(tuple(description["symbols"]), description["length"])


@dataclass(frozen=True)
class TextOptions:
    """How a text becomes windows and parts.

    Args:
        length: characters predicted in a window, each from the 1 to ``length`` characters before it in the window.
        stride: characters between the beginnings of two windows; None: half of ``length``, so that nearly every
            character is predicted twice an epoch, early in one window and late in another.
        dev: share of the text behind the training part that is dev.
        test: share of the text, at its end, that is test.
        encoding: of the files, as Python names it.
        unknown: "error" or "drop": what to do with characters of dev and test that training has not.

    Raises:
        UserError: a value is not allowed; all of them at once.
    """

    __repr__ = brief

    length: int = at_least(2, 64)
    stride: int | None = at_least(1, None)
    dev: float = between(0, 1, 0.05, ends="()")
    test: float = between(0, 1, 0.05, ends="()")
    encoding: str = "utf-8"
    unknown: Literal["error", "drop"] = one_of(("error", "drop"), "error")

    def __post_init__(self) -> None:
        problems = field_problems(self)
        if not problems and self.dev + self.test >= 1:
            problems.append(f"dev and test must leave something to train on; got {self.dev} and {self.test}")
        refuse(problems)


@dataclass(frozen=True, eq=False)
class TextData:
    """Training, dev and test parts of a text, and training windows by index.

    Window i holds the ``length + 1`` characters from ``i * stride`` on, the same ones in every epoch; the loop plans
    their order. Its first character is known: it is fed, never replaced, and carries no loss. Its last one is fed
    to no position. Up to ``stride`` characters at the end of the training part are in no window.

    Args:
        parts: "train", "dev" and "test"; the characters are those of "train".
        options: length and stride of the windows.
        name: what the text is called in the header.
        dropped: for each part what was dropped from it, in words.

    Raises:
        UserError: a part is shorter than a window, or has characters that training has not.

    >>> data = TextData({"train": "abcabcab", "dev": "abc", "test": "cab"}, TextOptions(length=2, stride=2))
    >>> batch = data.batch([0, 2])
    >>> [data.codec.text(row) for row in batch.targets.tolist()], data.lengths
    (['abc', 'bca'], [2, 2, 2])
    >>> batch.mask.tolist()[0], batch.eligible.tolist()[0]
    ([False, True, True], [False, True, False])
    """

    __repr__ = brief

    parts: Mapping[str, str]
    options: TextOptions = field(default_factory=TextOptions)
    name: str = "text"
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def __post_init__(self) -> None:
        need = self.options.length + 1
        problems = [
            f"{self.name}: the {part} part has {counted(len(self.parts.get(part, '')), 'character')}, and a window "
            f"needs length + 1 = {need}: give a longer text, a larger share, or a smaller length"
            for part in SPLITS
            if len(self.parts.get(part, "")) < need
        ]
        if not problems:
            problems = [text for part in ("dev", "test") for text in self.codec.problems(self.parts[part], part)]
        refuse(problems)

    @property
    def stride(self) -> int:
        """Characters between the beginnings of two windows."""
        return self.options.stride or self.options.length // 2

    @cached_property
    def codec(self) -> TextCodec:
        """The characters of the training part, sorted, and the length of a window."""
        return TextCodec(tuple(sorted(set(self.parts["train"]))), self.options.length)

    @cached_property
    def _ids(self) -> Tensor:
        return self.codec.ids(self.parts["train"])

    @cached_property
    def lengths(self) -> list[int]:
        """Characters predicted in every training window: ``length``."""
        return [self.options.length] * ((len(self.parts["train"]) - self.options.length - 1) // self.stride + 1)

    @cached_property
    def frequencies(self) -> tuple[float, ...]:
        """How often each character stands in the training part."""
        return tuple(torch.bincount(self._ids, minlength=len(self.codec)).double().tolist())

    def batch(self, indices: Sequence[int] | Tensor, rows: Tensor | None = None) -> Batch:
        """Return the training batch of some windows; rows: their numbers in the global batch."""
        starts = torch.as_tensor(indices, dtype=torch.int64) * self.stride
        ids = self._ids[starts[:, None] + torch.arange(self.options.length + 1)]
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 0] = False
        eligible = mask.clone()
        eligible[:, -1] = False
        return Batch(ids, ids, mask, eligible=eligible, rows=rows)

    @cached_property
    def fingerprint(self) -> str:
        """Return the first 8 hexadecimal digits of the SHA-256 of the parts and of how windows are cut."""
        digest = hashlib.sha256(f"{self.options.length} {self.stride}\n".encode())
        for part in SPLITS:
            digest.update(f"{part}\n{self.parts[part]}\n".encode())
        return digest.hexdigest()[:8]

    def header(self) -> list[str]:
        """Return lines about the data: parts, windows, what was dropped, characters, fingerprint."""
        lines = [f"data: {self.name}, fingerprint {self.fingerprint}"]
        for part in SPLITS:
            text = f"{part}: {counted(len(self.parts[part]), 'character')}"
            if part == "train":
                text += f", {counted(len(self.lengths), 'window')} of {self.options.length}, one every {self.stride}"
            dropped = "; ".join(self.dropped.get(part, ()))
            lines.append(text + (f" (dropped: {dropped})" if dropped else ""))
        return [*lines, f"symbols: {counted(len(self.codec), 'character')}"]


def load_text(path: str | Path | Sequence[str | Path], options: TextOptions | None = None) -> TextData:
    """A text from a file, or from several that are read one after the other.

    The first ``1 - dev - test`` of the characters are the training part, then come dev and test; order is kept, line
    ends become ``\\n``.

    Args:
        path: a text file, or several.
        options: windows and shares; the defaults of ``TextOptions`` if left out.

    Raises:
        UserError: files that are missing, empty or not in their encoding; parts shorter than a window; characters of
            dev and test that training has not, each with file and line: all problems at once.
    """
    options = options or TextOptions()
    missing = "there is no text file; give at least one"
    paths, texts, problems = read_each(path, lambda file: read_text(file, options.encoding), missing)
    refuse(problems)
    text = "".join(texts)
    dev, test = round(len(text) * options.dev), round(len(text) * options.test)
    first, second = len(text) - dev - test, len(text) - test
    parts = {"train": text[:first], "dev": text[first:second], "test": text[second:]}
    name = ", ".join(map(str, paths))
    unknown = set(text[first:]) - set(parts["train"])
    if unknown and options.unknown == "error":
        raise UserError(_unknown_characters(paths, texts, unknown, first))
    kept = {part: "".join(character for character in text if character not in unknown) for part, text in parts.items()}
    lost = {part: len(parts[part]) - len(text) for part, text in kept.items()}
    dropped = {part: [f"{counted(n, 'character')} that training has not"] for part, n in lost.items() if n}
    return TextData(kept, options, name, dropped)


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """The text of a file, line ends as ``\\n``.

    Raises:
        UserError: no such file, an empty one, or lines that are not text, each with its line.
    """
    file = user_path(path)
    lines, problems = read_lines(file, encoding, expected="text")
    if problems:
        raise UserError(first_problems(str(file), [text for _, text in problems]))
    ending = "\n" if file.read_bytes()[-4:].rstrip(b"\0").endswith((b"\n", b"\r")) else ""
    return "\n".join(line for _, line in lines) + ending


def _unknown_characters(paths: Sequence[Path], texts: Sequence[str], unknown: set[str], first: int) -> list[str]:
    """Where each character that only dev and test have stands first, and how often."""
    text, ends = "".join(texts), list(accumulate(map(len, texts)))
    problems: list[str] = []
    for position, character in sorted((text.index(character, first), character) for character in unknown):
        file = bisect_right(ends, position)
        begin = ends[file] - len(texts[file])
        line, times = text.count("\n", begin, position) + 1, counted(text.count(character, first), "time")
        problems.append(
            f"{paths[file]}:{line}: character {character!r} stands in dev or test ({times}, first here) and never in "
            'the training part; set unknown = "drop" to leave it out, or use a longer text'
        )
    return first_problems(str(paths[0]), problems)
