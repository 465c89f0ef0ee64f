"""A recipe's text: its file, the lines of its keys, overrides, and the recipes that are shipped; without torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freerun.arguments import nearest
from freerun.errors import UserError, display, listed

_SHOWN, _DEEPEST = 60, 20


class Unset(str):
    """A dotted key among overrides that is to be taken out of the recipe, as if it did not stand there."""

    __slots__ = ()


class RecipeSource:
    """The merged settings of a file and its overrides, and a list of problems that grows while they are checked.

    Args:
        name: the file as the user wrote it; it begins every problem.
        table: the parsed settings.
        places: the line of each key.
    """

    def __init__(self, name: str, table: dict[str, Any], places: KeyLines) -> None:
        self.name = name
        self.table = table
        self.places = places
        self._overrides: dict[KeyPath, str] = {}
        self._problems: list[tuple[int, str]] = []

    def where(self, path: KeyPath) -> str:
        """``file:line`` of a key, or the override that set it."""
        return self._place(path)[1]

    def add(self, path: KeyPath, message: str, hint: str | None = None) -> None:
        """Note a problem with a key; the hint says what to do."""
        line, where = self._place(path)
        hint_line = f"\n  help: {hint}" if hint else ""
        self._problems.append((line, f"{where}: {message}{hint_line}"))

    def raise_problems(self) -> None:
        """Raise all problems noted so far, in the order of the file, as one ``UserError``."""
        if self._problems:
            texts = [text for _, text in sorted(self._problems, key=lambda problem: problem[0])]
            raise UserError(list(dict.fromkeys(texts)))

    @property
    def sound(self) -> bool:
        """True while no problem was noted."""
        return not self._problems

    def override(self, text: str) -> None:
        """Apply one ``key=value``; the value is read as TOML, a bare word is a string. Or take out an ``Unset``."""
        if isinstance(text, Unset):
            self._unset(text)
            return
        said = f"--set {text}" if len(text) <= _SHOWN else f"--set {text[:_SHOWN]}..."
        key, equals, value_text = text.partition("=")
        names = re.findall(r"[A-Za-z0-9_-]+", key)
        if not equals or not names or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key.strip()):
            self._problems.append((1 << 30, f"{said}: must be key=value, as in --set train.lr=0.002"))
            return
        try:
            value = _toml_value(value_text.strip())
        except tomllib.TOMLDecodeError as error:
            self._problems.append((1 << 30, f"{said}: broken TOML value: {_lower_first(error)}"))
            return
        if strange := list(_strange(value, ())):
            self._problems += [(1 << 30, f"{said}: {problem}") for _, problem in strange]
            return
        path = self._put(names, value, said)
        if path:
            self._overrides = {p: t for p, t in self._overrides.items() if p[: len(path)] != path}
            self._overrides[path] = said

    def _unset(self, key: str) -> None:
        inside: Any = self.table
        names = key.split(".")
        for name in names[:-1]:
            step: Any = _index(inside, name)
            inside = inside[step] if isinstance(inside, dict | list) and _has(inside, step) else None
        last: Any = _index(inside, names[-1])
        if not isinstance(inside, dict | list) or not _has(inside, last):
            keys = list(inside) if isinstance(inside, dict) else []
            near = f"\n  help: the keys there are {listed(keys)}" if keys else ""
            self._problems.append((1 << 30, f"--unset {key}: the recipe does not set it{near}"))
            return
        del inside[last]

    def _put(self, names: Sequence[str], value: Any, said: str) -> KeyPath | None:
        inside: Any = self.table  # a table, or an array of them further in
        path: list[str | int] = []
        for name in names[:-1]:
            step: Any = _index(inside, name)
            path.append(step)
            if isinstance(inside, dict):
                inside.setdefault(step, {})
            inside = inside[step] if _has(inside, step) else None
            if not isinstance(inside, dict | list):
                what = "there is no such entry" if inside is None else f"it is {display(inside)}, not a table"
                self._problems.append((1 << 30, f"{said}: cannot set a key of `{dotted(path)}`: {what}"))
                return None
        last: Any = _index(inside, names[-1])
        if isinstance(inside, list) and not _has(inside, last):
            self._problems.append(
                (1 << 30, f"{said}: `{dotted(path)}` has {len(inside)} entries, counted from 0; got {last!r}")
            )
            return None
        inside[last] = value
        return (*path, last)

    def _place(self, path: KeyPath) -> tuple[int, str]:
        for length in range(len(path), 0, -1):
            if path[:length] in self._overrides:
                return 1 << 30, self._overrides[path[:length]]
        deeper = [text for set_path, text in self._overrides.items() if set_path[: len(path)] == path]
        if deeper and path and (len(path) > 1 or path not in self.places.lines):
            return 1 << 30, deeper[-1]
        line = self.places.line(path)
        return line, f"{self.name}:{line}"


def _index(inside: Any, name: str) -> str | int:
    return int(name) if isinstance(inside, list) and name.isdigit() and len(name) < 10 else name


def _has(inside: Any, step: str | int) -> bool:
    if isinstance(inside, list):
        return isinstance(step, int) and step < len(inside)
    return step in inside


def _toml_value(text: str) -> Any:
    try:
        return _parsed(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if not text or text[0] in "[{\"'" or "\n" in text:
            raise
        return text


def _parsed(text: str) -> dict[str, Any]:
    """``tomllib.loads``, whose other errors are those of a broken text too."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError("tables or lists are nested too deeply") from None
    except ValueError as error:
        if isinstance(error, tomllib.TOMLDecodeError):
            raise
        raise tomllib.TOMLDecodeError("a number, date or time is out of range") from None


def _strange(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Values that TOML allows or a library lets through, and that no key of a recipe can be."""
    called = f"`{dotted(path)}` holds " if path else "holds "
    if isinstance(value, dict | list):
        if len(path) > _DEEPEST:
            yield path, f"{called}lists or tables that are nested too deeply"
            return
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strange(part, (*path, key))
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield path, f"{called}a whole number of more than 64 bits"
    elif isinstance(value, str) and re.search("[\\x00\\ud800-\\udfff]", value):
        yield path, f"{called}a character that is no text: NUL, or half of a surrogate pair"


def _lower_first(error: Exception) -> str:
    text = re.sub(r" \(at .*\)$", "", str(error))
    return text[:1].lower() + text[1:]


def read_source(path: Path, overrides: Iterable[str] = ()) -> RecipeSource:
    """Read a TOML file and apply overrides in order."""
    name = str(path)
    text = _read_text(path, name)
    places = key_places(text)
    try:
        table = _parsed(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(_syntax_problems(name, text, places, error)) from None
    source = RecipeSource(name, table, places)
    if strange := list(_strange(table, ())):
        for key, problem in strange:
            source.add(key, problem)
        source.raise_problems()
    for override in overrides:
        source.override(override)
    return source


def _read_text(path: Path, name: str) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file{_near_files(path)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{name}: cannot be read: {reason}") from None
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = raw[error.start : error.start + 4].hex(" ")
        guess = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1 or another old encoding"
        raise UserError(
            f"{name}:{line}: not UTF-8: byte {error.start} begins {found}\n"
            f"  help: the file looks like {guess}; save it as UTF-8"
        ) from None


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor the folder {path.parent})"
    near = nearest(path.name, sorted(p.name for p in path.parent.glob("*.toml")))
    return f"\n  help: did you mean {path.parent / near}?" if near else ""


def _syntax_problems(name: str, text: str, places: KeyLines, error: tomllib.TOMLDecodeError) -> list[str]:
    if places.twice:
        return [f"{name}:{second}: `{dotted(key)}` is set twice (first on line {first})"
                for key, first, second in places.twice]  # fmt: skip
    at = re.search(r"line (\d+), column (\d+)", str(error))
    line, column = (int(at[1]), int(at[2])) if at else (text.count("\n") + 1, 1)
    lines = text.splitlines() or [""]
    row = lines[min(line, len(lines)) - 1].strip()
    quoted = f'\n  help: the line reads `{row[:80]}`; words need quotes, as in name = "demo"' if row else ""
    return [f"{name}:{line}:{column}: broken TOML: {_lower_first(error)}{quoted}"]


def dotted(path: Iterable[str | int]) -> str:
    """A key path as users write it.

    >>> dotted(("compare", "arms", 0, "label"))
    'compare.arms.0.label'
    """
    return ".".join(str(part) for part in path)


KeyPath = tuple[str | int, ...]


_TOKEN = re.compile(
    r"""\"{3}(?:\\.|[^\\])*?(?:\"{3}|\Z) | '{3}.*?(?:'{3}|\Z) | "(?:\\.|[^"\\\n])*"? | '[^'\n]*'?
    | \#[^\n]* | [\[\]{}=,.\n] | [^\s\[\]{}=,.\#"']+""",
    re.DOTALL | re.VERBOSE,
)


@dataclass
class KeyLines:
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


def key_places(text: str) -> KeyLines:
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
    scanner = _Scanner()
    for found in _TOKEN.finditer(text):
        if not found.group().startswith("#"):
            scanner.read(found.group())
    return scanner.places


class _Scanner:
    """Reads token by token where keys stand; a line at a time, but for strings, lists and inline tables of many."""

    def __init__(self) -> None:
        self.places = KeyLines()
        self.line = 1
        self.table: KeyPath = ()
        self.sizes: dict[KeyPath, int] = {}  # of arrays of tables
        self.opened: list[tuple[KeyPath, int]] = []  # lists with the number of their entry, inline tables with -1
        self._next_line()

    def _next_line(self) -> None:
        self.names: list[str] = []
        self.path: KeyPath = ()  # of a value
        self.brackets = 0  # of a header
        self.in_value = False

    def read(self, token: str) -> None:
        if token == "\n":
            if not self.opened:
                self._next_line()
        elif self.brackets:
            self._header(token)
        elif self.in_value:
            self._value(token)
        elif token == "[" and not self.names and not self.opened:
            self.brackets = 1
        elif token == "=":
            self._key()
        elif token == "}" and self.opened:
            self._close()
        elif token not in (".", ","):
            self.names.append(_unquoted(token))
        self.line += token.count("\n")

    def _header(self, token: str) -> None:
        if token == "[":
            self.brackets += 1
        elif token == "]" and self.names:
            path: KeyPath = ()
            for name in self.names[:-1]:
                path = (*path, name)
                path = (*path, self.sizes[path] - 1) if path in self.sizes else path
            self.table, self.names = (*path, self.names[-1]), []
            if self.brackets > 1:
                self.sizes[self.table] = self.sizes.get(self.table, 0) + 1
                self.places.lines.setdefault(self.table, self.line)
                self.table = (*self.table, self.sizes[self.table] - 1)
            self._record(self.table)
        elif token not in (".", "]"):
            self.names.append(_unquoted(token))

    def _key(self) -> None:
        path = self.opened[-1][0] if self.opened else self.table
        for name in self.names[:-1]:
            path = (*path, name)
            self.places.lines.setdefault(path, self.line)
        self.path, self.in_value = (*path, *self.names[-1:]), True
        if self.names:
            self._record(self.path)
        self.names = []

    def _record(self, path: KeyPath) -> None:
        if path in self.places.lines:
            self.places.twice.append((path, self.places.lines[path], self.line))
        else:
            self.places.lines[path] = self.line

    def _value(self, token: str) -> None:
        outer, number = self.opened[-1] if self.opened else ((), -1)
        if number >= 0 and token not in ("]", ","):
            self.path = (*outer, number)
            self.places.lines.setdefault(self.path, self.line)
        if token in ("[", "{"):
            self.opened.append((self.path, 0 if token == "[" else -1))
            self.in_value = token == "["
        elif token in ("]", "}") and self.opened:
            self._close()
        elif token == "," and number >= 0:
            self.opened[-1] = (outer, number + 1)
        elif token == "," and self.opened:
            self.in_value = False

    def _close(self) -> None:
        self.opened.pop()
        self.names, self.in_value = [], True


def _unquoted(token: str) -> str:
    try:
        return str(tomllib.loads(f"key = {token}")["key"]) if token[0] in "\"'" else token
    except tomllib.TOMLDecodeError:
        return token


_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with freerun.

    >>> "g2p-demo" in shipped_recipes()
    True
    """
    for folder in (_PACKAGE / "_recipes", _PACKAGE.parent.parent / "recipes"):
        if found := sorted(folder.glob("*.toml")):
            return {path.stem: path for path in found}
    return {}


def find_recipe(path: str | Path) -> Path:
    """The file a user means: a file that exists, or the name of a shipped recipe, also beside a folder of that name."""
    path = Path(path)
    shipped = shipped_recipes()
    if path.exists() and not path.is_dir():
        return path
    if path.parent in (Path(), Path("recipes")) and path.name.removesuffix(".toml") in shipped:
        return shipped[path.name.removesuffix(".toml")]
    if path.is_dir():
        raise UserError(f"{path} is a folder; a recipe is a .toml file")
    if path.suffix != ".toml" and path.parent == Path():
        near = nearest(path.name, shipped)
        meant = f"did you mean {near}?" if near else f"those that come with freerun are {', '.join(shipped)}"
        raise UserError(f"there is no recipe {str(path)!r}\n  help: {meant}")
    return path
