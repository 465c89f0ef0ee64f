"""Where each key of a TOML text stands: tomllib gives values without lines, errors need both."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["KeyPath", "KeyPlaces", "key_places"]

KeyPath = tuple[str | int, ...]

_DEEPEST = 50
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^\s,\]\}#]+(?: \d\d:[^\s,\]\}#]+)?")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


@dataclass
class KeyPlaces:
    """Lines of keys, and the keys that are set twice.

    Args:
        lines: key path -> line number from 1; the entries of arrays have their index in the path.
        twice: (key path, first line, second line) of keys set more than once.
    """

    lines: dict[KeyPath, int] = field(default_factory=dict)
    twice: list[tuple[KeyPath, int, int]] = field(default_factory=list)

    def line(self, path: KeyPath) -> int:
        """Line of the key, or of the nearest table around it, or 1."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1


def key_places(text: str) -> KeyPlaces:
    """Find the line of every key, also in a text that is not valid TOML.

    Only places are read, values are left to ``tomllib``; what cannot be understood is passed over.

    Args:
        text: a TOML document.

    >>> places = key_places('seed = 0\\n[train]\\nlr = 0.1\\nmore = { a = [1, { b = 2 }] }\\nlr = 0.2\\n')
    >>> places.line(("train", "lr")), places.line(("train", "more", "a", 1, "b")), places.line(("train", "x"))
    (3, 4, 2)
    >>> places.twice
    [(('train', 'lr'), 3, 5)]
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.places


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.ends = [found.start() for found in re.finditer("\n", text)]
        self.places = KeyPlaces()
        self.sizes: dict[KeyPath, int] = {}  # arrays of tables seen so far

    def document(self) -> None:
        table: KeyPath = ()
        for _ in self._items():
            if self.text.startswith("[", self.at):
                table = self._header()
            else:
                self._assignment(table)
            self._to_line_end()

    def _items(self) -> Iterator[None]:
        self._blank()
        while self.at < len(self.text):
            yield
            self._blank()

    def _header(self) -> KeyPath:
        line, many = self._line(), self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        names = self._key()
        path = self._inside_arrays(tuple(names[:-1])) + tuple(names[-1:])
        if many:
            index = self.sizes.get(path, 0)
            self.sizes[path] = index + 1
            self.places.lines.setdefault(path, line)
            path = (*path, index)
            self.places.lines[path] = line
        else:
            self._record(path, line)
        return path

    def _inside_arrays(self, names: KeyPath) -> KeyPath:
        path: KeyPath = ()
        for name in names:
            path = (*path, name)
            if path in self.sizes:
                path = (*path, self.sizes[path] - 1)
        return path

    def _assignment(self, table: KeyPath) -> None:
        line, names = self._line(), self._key()
        if not names:
            return
        for length in range(1, len(names)):
            self.places.lines.setdefault(table + tuple(names[:length]), line)
        path = table + tuple(names)
        self._record(path, line)
        self._space()
        if self.text.startswith("=", self.at):
            self.at += 1
            self._value(path)

    def _record(self, path: KeyPath, line: int) -> None:
        if path in self.places.lines:
            self.places.twice.append((path, self.places.lines[path], line))
        else:
            self.places.lines[path] = line

    def _key(self) -> list[str]:
        names: list[str] = []
        while True:
            self._space()
            if self.text[self.at : self.at + 1] in ("'", '"'):
                names.append(self._string())
            elif found := _BARE.match(self.text, self.at):
                names.append(found.group())
                self.at = found.end()
            else:
                return names
            self._space()
            if not self.text.startswith(".", self.at):
                return names
            self.at += 1

    def _value(self, path: KeyPath) -> None:
        self._space()
        start = self.text[self.at : self.at + 1]
        if start in ("[", "{") and self.depth > _DEEPEST:
            self.at = len(self.text)  # tomllib refuses it
        elif start in ("[", "{"):
            self.depth += 1
            self._array(path) if start == "[" else self._inline_table(path)
            self.depth -= 1
        elif start in ("'", '"'):
            self._string()
        elif found := _SCALAR.match(self.text, self.at):
            self.at = found.end()

    def _array(self, path: KeyPath) -> None:
        self.at += 1
        for index, _ in enumerate(self._items()):
            if self.text[self.at] == "]":
                self.at += 1
                return
            before = self.at
            self.places.lines.setdefault((*path, index), self._line())
            self._value((*path, index))
            if not self._comma() and self.at == before:
                return

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        for _ in self._items():
            if self.text[self.at] == "}":
                self.at += 1
                return
            before = self.at
            self._assignment(path)
            if not self._comma() and self.at == before:
                return

    def _comma(self) -> bool:
        self._blank()
        found = self.text.startswith(",", self.at)
        self.at += found
        return found

    def _string(self) -> str:
        quote = self.text[self.at]
        mark = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(mark)
        parts: list[str] = []
        while self.at < len(self.text) and not self.text.startswith(mark, self.at):
            letter = self.text[self.at]
            if letter == "\n" and len(mark) == 1:
                break
            if letter == "\\" and quote == '"':
                self.at += 1
                letter = self.text[self.at : self.at + 1]
                letter = _ESCAPES.get(letter, letter)
            parts.append(letter)
            self.at += 1
        self.at += len(mark)
        return "".join(parts)

    def _space(self) -> None:
        while self.text[self.at : self.at + 1] in (" ", "\t"):
            self.at += 1

    def _blank(self) -> None:
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                self._to_line_end()
            elif self.text[self.at] in " \t\r\n":
                self.at += 1
            else:
                return

    def _to_line_end(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def _line(self) -> int:
        return bisect(self.ends, self.at - 1) + 1
