"""Errors of the user as readable messages; the command turns each class into its exit code."""

from __future__ import annotations

import operator
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

DATA, LINE = 200, 600
"""Characters of a user's data in a message, and of a message's line."""

_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
"""Characters that steer a terminal, turn the writing direction, break a line or cannot be written."""

_QUOTED = re.compile(r"(?<!\w)(['\"])(.*?)\1(?!\w)")


def visible(text: str, keep: str = "") -> str:
    r"""Write control characters of a text as escapes, so that it stays one line of a terminal.

    Args:
        text: anything, such as a cell of a user's file or the output of a model.
        keep: control characters that stay.

    >>> print(visible("red\x1b[31m, two\nlines \u202e"))
    red\x1b[31m, two\nlines \u202e
    """
    return _HIDDEN.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)


def display(value: object, length: int = DATA) -> str:
    r"""Format a user's value for a message: escaped, on one line, cut after ``length`` characters; text in quotes.

    >>> print(display("a\x1bb"), display("x" * 300, 10), display([1, 2]))
    'a\x1bb' 'xxxxxxxxxx'... [1, 2]
    """
    try:
        # of a long one the beginning is enough, and the repr of all of it may not fit into memory
        text = visible(repr(value[:length] if isinstance(value, str | bytes | list | tuple) else value))
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        return f"a {type(value).__name__} too large to show"
    if isinstance(value, str):
        return text + ("..." if len(value) > length else "")
    return text if len(text) <= length else text[:length] + "..."


def listed(names: Iterable[object], length: int = DATA) -> str:
    """Join names, and count those that are too many for a message.

    >>> listed(["a", "b"]), listed(range(1000), 10)
    ('a, b', '0, 1, 2, 3 and 996 more')
    """
    every = list(names)
    text = ""
    for number, name in enumerate(every):
        part = visible(str(name))
        part = part if len(part) <= length else part[:length] + "..."
        if number and len(text) + len(part) > length:
            return f"{text} and {len(every) - number:,} more"
        text += f", {part}" if number else part
    return text


class UserError(ValueError):
    r"""A mistake in arguments, a recipe or data: every problem found, each in one line.

    Whatever a problem shows of the user's data, its lines hold no control character and are not endless; a line break
    begins a line of help only where blanks follow it.

    Args:
        problems: one problem, or all of them; each with what was got, what is allowed, what to do.

    >>> str(UserError(["length must be at least 1; got 0", "beams must be at least 1; got -2"]))
    'length must be at least 1; got 0\nbeams must be at least 1; got -2'
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        # two files that lack one thing have one problem
        each = [problems] if isinstance(problems, str) else list(dict.fromkeys(problems))
        self.problems: list[str] = ["\n".join(map(_line, re.split(r"\n(?=  )", problem))) for problem in each]
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[list[str]]]:
        return type(self), (self.problems,)

    def add(self, text: str) -> None:
        """Add a line to the last problem."""
        self.problems[-1] += f"\n  {_line(text)}"
        self.args = ("\n".join(self.problems),)


def _line(text: str) -> str:
    """A line of a problem: escaped, what it quotes cut, and the middle left out where it is too long all the same."""
    text = _within(visible(_within(text, 4 * LINE)), 4 * LINE)
    return _within(_QUOTED.sub(_quoted, text), LINE)


def _quoted(match: re.Match[str]) -> str:
    return match[0] if len(match[2]) <= DATA else f"{match[1]}{match[2][:DATA]}{match[1]}..."


def _within(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - DATA]} ... {text[-DATA:]}"


def refuse(problems: Sequence[str]) -> None:
    """Raise UserError with all problems, if there are any.

    >>> refuse([])
    """
    if problems:
        raise UserError(problems)


@contextmanager
def collected(problems: list[str]) -> Generator[None]:
    """Add the problems of a UserError to others in place of raising it."""
    try:
        yield
    except UserError as error:
        problems += error.problems


class NotInstalledError(UserError):
    """A package of one of freerun's extras is not installed, or cannot be imported."""


@contextmanager
def needing(extra: str, purpose: str) -> Generator[None]:
    """Import in this block, and only in one, what an extra brings.

    Args:
        extra: its name in pyproject.toml.
        purpose: what the package is for.

    Raises:
        NotInstalledError: an import failed; it names the extra to install.

    >>> with needing("series", "reading series"):
    ...     import a_package_that_is_not_here
    Traceback (most recent call last):
    ...
    freerun.errors.NotInstalledError: reading series needs a_package_that_is_not_here: pip install 'freerun[series]'
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "a package").partition(".")[0]
        if package == "freerun":
            raise
        why = "" if isinstance(error, ModuleNotFoundError) else f" that cannot be imported ({error})"
        raise NotInstalledError(f"{purpose} needs {package}{why}: pip install 'freerun[{extra}]'") from error


class OccupiedError(UserError):
    """The folder holds something already, or another process is using it."""

    exit_code: ClassVar[int] = 3


class CheckpointError(UserError):
    """A checkpoint or run folder cannot be used as it is."""

    exit_code: ClassVar[int] = 4


class ResourceError(UserError):
    """Out of disk or memory."""

    exit_code: ClassVar[int] = 5


class DivergedError(UserError):
    """NaN or infinity: in training, whose last good checkpoint is untouched, or in a model's outputs."""

    exit_code: ClassVar[int] = 6


class OtherProcessError(UserError):
    """Another process of the job failed, for the reason in the message; this one ends with it."""

    exit_code: ClassVar[int] = 7


class StoppedError(UserError):
    """A run was interrupted (SIGINT) after it saved a checkpoint; it can be resumed."""

    exit_code: ClassVar[int] = 130


class TerminatedError(StoppedError):
    """A run ended on SIGTERM, after it saved a checkpoint; it can be resumed."""

    exit_code: ClassVar[int] = 143


class FaultError(UserError):
    """A process that was started for a run crashed, or met a fault of freerun's."""

    exit_code: ClassVar[int] = 1


EXIT_CODES: dict[int, tuple[type[UserError] | None, str]] = {
    0: (None, "done"),
    1: (FaultError, "a fault in freerun; the message names a report file"),
    2: (UserError, "a wrong command, recipe or data; all problems are listed"),
    3: (OccupiedError, "the folder is occupied"),
    4: (CheckpointError, "a checkpoint or run folder cannot be used"),
    5: (ResourceError, "out of disk or memory"),
    6: (DivergedError, "training diverged; the last good checkpoint is untouched"),
    7: (OtherProcessError, "another process of a distributed run failed"),
    130: (StoppedError, "interrupted (SIGINT, Ctrl-C); continue with `--resume`"),
    143: (TerminatedError, "ended by SIGTERM or a closed terminal; continue with `--resume`"),
}
"""Exit code of the command -> the error that it stands for, and its meaning."""

_MEMORY = (
    "out of memory", "not enough memory", "DefaultCPUAllocator", "allocate memory", "ALLOC_FAILED", "bad_alloc",
    "bad allocation", "Storage size calculation overflowed",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Return True if memory ran out, whoever raised it: PyTorch has a class on accelerators, else text.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    (True, True)
    >>> out_of_memory(ValueError("out of range"))
    False
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in _MEMORY)


def whole(value: Any) -> int | None:
    """Return an argument as int, of whatever integer type (Python, numpy, a tensor of one integer); else None.

    >>> whole(3), whole(3.0), whole(True)
    (3, None, None)
    """
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if "bool" in str(getattr(value, "dtype", "")):  # a tensor of bool would count as 0 or 1
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
