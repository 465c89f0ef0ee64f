"""A field of a section with the range that a recipe may give it."""

from __future__ import annotations

from dataclasses import field
from typing import Any

__all__ = ["MOST", "number"]

MOST = 2**53
"""The largest whole number that a float holds exactly; no count of anything is larger."""


def number(default: Any, low: float | None = None, high: float | None = None, *, semantic: bool = True) -> Any:
    """A field of a section, with the range that a recipe may give it; a whole number is at most ``MOST``.

    ``semantic=False``: it changes no number of a run, and may be another one when the run goes on.
    """
    most = MOST if high is None and not isinstance(default, float) else high
    return field(default=default, metadata={"low": low, "high": most, "semantic": semantic})
