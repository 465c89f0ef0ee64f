"""One short line for an object that holds much: shapes and counts in place of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, cast

from freerun.errors import visible

__all__ = ["brief"]

_LINE, _PART = 240, 60


def brief(self: Any) -> str:
    """A ``__repr__``: the class, and each public field that is not its default, in at most 240 characters.

    >>> class Words:
    ...     __repr__ = brief
    ...     def __init__(self):
    ...         self.words, self.longest, self.name = ["a"] * 1000, 7, "news"
    >>> Words()
    Words(words=1,000 items, longest=7, name='news')
    """
    shown = ", ".join(f"{name}={_part(value)}" for name, value in _fields(self) if not name.startswith("_"))
    return f"{type(self).__name__}({_cut(shown, _LINE)})"


def _fields(self: Any) -> list[tuple[str, Any]]:
    if not is_dataclass(self):
        return list(vars(self).items())
    pairs = ((each, getattr(self, each.name)) for each in fields(self) if each.repr)
    return [(each.name, value) for each, value in pairs if each.default is MISSING or each.default is not value]


def _part(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        return f"{tuple(shape)} {str(value.dtype).removeprefix('torch.')}" if shape else f"{value.item():.4g}"
    if isinstance(value, str):
        return _cut(visible(repr(value)), _PART) if len(value) <= 4 * _PART else f"{len(value):,} characters"
    if isinstance(value, float):
        text = repr(value)
        return text if len(text) <= 8 else f"{value:.6g}"
    if isinstance(value, Mapping) and len(value) <= 4:
        pairs = cast(Mapping[Any, Any], value).items()
        return _cut(f"{{{', '.join(f'{name}: {_part(part)}' for name, part in pairs)}}}", 2 * _PART)
    if isinstance(value, list | tuple) and len(value) <= 4:
        return _cut(f"({', '.join(map(_part, cast(list[Any], value)))})", _PART)
    if isinstance(value, Sized):
        name = "items" if isinstance(value, list | tuple | Mapping) else f"of {type(value).__name__}"
        return f"{len(value):,} {name}"
    return _cut(visible(repr(value)), 2 * _PART)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
