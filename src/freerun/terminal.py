"""How wide output is, how its lines are broken, and what is being waited for; without torch."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

_WIDTH, _LEAST, _LONGEST = 80, 20, 400


def width_of(stream: TextIO) -> int:
    """Return the columns of an output: ``COLUMNS`` where it is set, else the terminal's, else 80."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return max(int(columns), _LEAST)
    try:
        return max(os.get_terminal_size(stream.fileno()).columns or _WIDTH, _LEAST)
    except (OSError, ValueError, AttributeError):  # a pipe, a file, a stream of Python's own
        return _WIDTH


def wrapped(text: str, width: int, hanging: str = "  ") -> str:
    r"""Break lines at blanks to a width; a continued line begins further in, by ``hanging``; a long word stays whole.

    >>> print(wrapped("method: teacher_forcing()\n  help: none", 16))
    method:
      teacher_forcing()
      help: none
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        before = line[: len(line) - len(line.lstrip(" "))]
        lines += textwrap.wrap(
            line[len(before) :], width, initial_indent=before, subsequent_indent=before + hanging,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return "\n".join(lines)


def filled(facts: str, width: int) -> str:
    r"""Break a line of facts, which two blanks separate, between them alone.

    >>> print(filled("loss 0.5000  teacher_forcing_ratio 0.996  lr 1e-3", 40))
    loss 0.5000  teacher_forcing_ratio 0.996
    lr 1e-3
    """
    lines: list[str] = []
    for fact in facts.split("  "):
        if lines and len(lines[-1]) + 2 + len(fact) <= width:
            lines[-1] += f"  {fact}"
        else:
            lines.append(fact)
    return "\n".join(lines)


def print_problem(text: str) -> None:
    """Print a problem to standard error, in lines of the terminal; a file gets whole lines, though none without end."""
    print(wrapped(text, width_of(sys.stderr) if sys.stderr.isatty() else _LONGEST), file=sys.stderr)


class Waiting:
    """Displays on standard error what is being waited for: a line that is replaced on a terminal, else a line each."""

    def __init__(self, *, visible: bool = True, piped: bool = True) -> None:
        self._length, self._visible, self._piped = 0, visible, piped

    def __call__(self, text: str, *, passing: bool = False) -> None:
        """Display it; ``passing``: on a terminal alone."""
        if not self._visible:
            return
        if sys.stderr.isatty():
            text = f"{text} ..."[: width_of(sys.stderr) - 1]
            self._write(("\r" if self._length else "") + f"{text:<{self._length}}")
            self._length = len(text)
        elif self._piped and not passing:
            self._write(f"{text} ...\n")

    def note(self, text: str) -> None:
        """Print lines that stay."""
        self.done()
        if self._visible:
            self._write(wrapped(text, width_of(sys.stderr)) + "\n")

    def done(self) -> None:
        """Remove the line from the terminal."""
        if self._length:
            self._write(f"\r{'':<{self._length}}\r")
            self._length = 0

    @staticmethod
    def _write(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)


@contextmanager
def waiting(*, visible: bool = True, piped: bool = True) -> Generator[Waiting]:
    """Display what is being waited for; on a terminal nothing of it stays."""
    display = Waiting(visible=visible, piped=piped)
    try:
        yield display
    finally:
        display.done()


@contextmanager
def loading(*, piped: bool = True) -> Generator[None]:
    """Import in this block what needs PyTorch; that it is being loaded is displayed, since it takes seconds."""
    with waiting(piped=piped) as display:
        if sys.modules.get("torch") is None:
            display("loading PyTorch")
        yield
