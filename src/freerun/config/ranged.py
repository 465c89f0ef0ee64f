"""A field of a section with the range that a recipe may give it."""

from __future__ import annotations

from dataclasses import field
from typing import Any

__all__ = ["number"]


def number(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A field of a section, with the range that a recipe may give it."""
    return field(default=default, metadata={"low": low, "high": high})
