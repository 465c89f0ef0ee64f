"""Every JSON file that is read: within limits, and against a shape; what does not fit is refused by its name.

A shape is a type: ``int``, ``float | None``, ``list[str]``, ``dict[str, float]``, a ``TypedDict`` (further keys are
left alone), or a dataclass, whose missing fields have their defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from io import BufferedReader
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from freerun.errors import CheckpointError

LARGEST = 16 * 2**20
"""Bytes of a JSON file, or of a line of one."""

_DEEPEST = 64
_VALUES = 2_000_000
_CONTAINERS = 250_000  # an empty list takes 60 bytes where it took two in the file
_WHOLE = 2**63
S = TypeVar("S")


class NewerError(CheckpointError):
    """What a later version of freerun wrote."""


@dataclass(frozen=True)
class _AtLeast:
    low: int


Count = Annotated[int, _AtLeast(0)]

_WORDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null",
    list: "a list", dict: "an object",
}  # fmt: skip


def require_plain(path: Path) -> None:
    """Refuse what is not a file, or is a link to one."""
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link: not a plain file of its folder; put the file there")
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a plain file")


@contextmanager
def opened(path: Path) -> Generator[BufferedReader]:
    """A file to read."""
    require_plain(path)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def read_json(path: Path, shape: type[S]) -> S:
    """Return the content of a JSON file."""
    with opened(path) as file:
        return parse(file.read(LARGEST + 1), shape, str(path))


def read_lines(path: Path, shape: type[S]) -> Iterator[S]:
    """Yield the objects of a file of one JSON object a line, without a last line that is being written."""
    number = 0
    with opened(path) as file:
        while line := file.readline(LARGEST + 1):
            number += 1
            if not line.endswith(b"\n") and len(line) <= LARGEST:
                return
            if line.strip():
                yield parse(line, shape, f"{path}:{number}")


def parse(content: bytes, shape: type[S], where: str) -> S:
    """Return the value of a JSON text.

    >>> parse(b'{"step": -3}', dict[str, Count], "state.json")
    Traceback (most recent call last):
    freerun.errors.CheckpointError: state.json is damaged: step must be a whole number, 0 or more; it is -3
    """
    try:
        _check_size(content)
        found = json.loads(
            content.decode(), parse_constant=_refused, parse_float=_finite, object_pairs_hook=_once
        )  # fmt: skip
        _check_depth(found)
        if b"\\u" in content:
            json.dumps(found, ensure_ascii=False).encode()  # half a character cannot be written again
    except RecursionError:
        raise CheckpointError(f"{where} is damaged: nested more than {_DEEPEST} deep") from None
    except ValueError as error:
        raise CheckpointError(f"{where} is damaged: {_cut(str(error))}") from None
    return expect(found, shape, where)


def expect(value: Any, shape: type[S], where: str) -> S:
    """Return the value of a JSON text, which must be of a shape."""
    if problem := _problem(value, shape, ""):
        raise CheckpointError(f"{where} is damaged: {problem}")
    return value


def versioned(content: dict[str, Any], key: str, ours: int, where: str) -> None:
    """Refuse what another version of freerun wrote in a format of its own."""
    version = content.get(key)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{where} is damaged: {key} must be {ours}; it is {_shown(version)}")
    if version > ours:
        raise NewerError(
            f"{where} has format version {version}; this freerun reads {ours}: use the freerun that wrote it, or a "
            "later one"
        )


def _check_size(content: bytes) -> None:
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} bytes")
    if content.count(b",") > _VALUES or content.count(b"[") + content.count(b"{") > _CONTAINERS:
        raise ValueError(f"more than {_VALUES:,} values, or {_CONTAINERS:,} lists and objects")


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(_DEEPEST + 1):
        level = [part for one in level for _, part in _parts(one) if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {_DEEPEST} deep")


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{_cut(text)} is too large a number")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{_shown(twice)} is there twice")
    return found


def _problem(value: Any, shape: Any, name: str) -> str:
    """Return what is wrong with a value, "" where it fits."""
    origin: Any = get_origin(shape)
    parts: Any = get_args(shape)
    if shape is Any:
        return ""
    if origin is Annotated:
        wrong = bool(_problem(value, parts[0], name)) or value < parts[1].low
        return _wrong(name, f"{_WORDS[parts[0]]}, {parts[1].low} or more", value) if wrong else ""
    if origin is NotRequired:
        return _problem(value, parts[0], name)
    if origin in (Union, UnionType):
        problems = [_problem(value, part, name) for part in parts if not (part is NoneType and value is not None)]
        return "" if not all(problems) else problems[0]
    if origin is Literal:
        return "" if value in parts and type(value) is type(parts[0]) else _wrong(name, repr(parts[0]), value)
    if is_typeddict(shape) or is_dataclass(shape):
        return _object_problem(value, shape, name)
    kind: Any = origin or shape
    right = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not right or (isinstance(value, int) and abs(value) >= _WHOLE):
        return _wrong(name, _WORDS[kind], value)
    inside = _parts(value) if kind in (list, dict) else ()
    return next(filter(None, (_problem(part, parts[-1], _inside(name, key)) for key, part in inside)), "")


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value)


def _object_problem(value: Any, shape: Any, name: str) -> str:
    if not isinstance(value, dict):
        return _wrong(name, _WORDS[dict], value)
    hints = get_type_hints(shape, include_extras=True)
    optional = {key for key, hint in hints.items() if get_origin(hint) is NotRequired}
    if is_dataclass(shape):
        optional = {f.name for f in fields(shape) if f.default is not MISSING or f.default_factory is not MISSING}
        if unknown := [key for key in value if key not in hints]:
            return f"this freerun does not know {_inside(name, unknown[0])}; a later one may"
    if missing := [key for key in hints if key not in value and key not in optional]:
        return f"{_inside(name, missing[0])} is missing"
    problems = (_problem(value[key], hint, f"{name}.{key}") for key, hint in hints.items() if key in value)
    return next(filter(None, problems), "")


def _inside(name: str, key: Any) -> str:
    return f"{name}.{key}".removeprefix(".")


def _wrong(name: str, right: str, value: Any) -> str:
    return f"{_cut(name.removeprefix('.') or 'it')} must be {right}; it is {_shown(value)}"


def _shown(value: Any) -> str:
    return _cut(_WORDS[type(value)] if isinstance(value, dict | list) else repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."
