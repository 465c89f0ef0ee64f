"""What a user did wrong, as one readable message; the command turns each class into its exit code."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, ClassVar

__all__ = ["CheckpointError", "DivergedError", "OccupiedError", "ResourceError", "UserError", "whole"]


class UserError(ValueError):
    """A mistake in what was given: every problem found, each in one line.

    Args:
        problems: one problem, or all of them; each says what was got, what is allowed, what to do.

    >>> str(UserError(["length must be at least 1; got 0", "beams must be at least 1; got -2"]))
    'length must be at least 1; got 0\\nbeams must be at least 1; got -2'
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


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
    """Training went to NaN or infinity; the last good checkpoint is untouched."""

    exit_code: ClassVar[int] = 6


def whole(value: Any) -> int | None:
    """The int that an argument is, of whatever integer type (Python, numpy, a tensor of one integer); else None.

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
