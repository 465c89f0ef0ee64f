"""A recipe's text: its file, the lines of its keys, overrides, and the recipes that are shipped; without torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freerun.arguments import nearest
from freerun.errors import UserError, display, listed

_LONGEST, _DEEPEST = 60, 20
_LAST = 1 << 30  # line of what an override set, in the order of problems


class RecipeSource:
    """The merged settings of a file and its overrides, and a list of problems that grows while they are checked.

    Args:
        name: the file as the user wrote it; it begins every problem.
        table: the parsed settings.
        lines: the line of each key.
    """

    def __init__(self, name: str, table: dict[str, Any], lines: KeyLines) -> None:
        self.name = name
        self.table = table
        self.lines = lines
        self._overrides: dict[KeyPath, str] = {}
        self._problems: list[tuple[int, str]] = []

    def add(self, path: KeyPath, message: str, hint: str | None = None) -> None:
        """Note a problem with a key; the hint says what to do."""
        line, where = self._position(path)
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
        """Apply one ``key=value``: a TOML value, a bare word is a string; ``key=`` removes the key."""
        option = f"--set {text[:_LONGEST]}" + ("..." if len(text) > _LONGEST else "")
        try:
            names, value_text = _names_and_value(text)
            if not value_text:
                self._unset(names)
                return
            path = self._put(names, _value(value_text))
        except UserError as error:
            self._problems += [(_LAST, f"{option}: {problem}") for problem in error.problems]
            return
        self._overrides = {p: t for p, t in self._overrides.items() if p[: len(path)] != path} | {path: option}

    def _unset(self, names: Sequence[str]) -> None:
        inside: Any = self.table
        *names, last = names
        for name in names:
            step, present = _step(inside, name)
            inside = inside[step] if present else None
        step, present = _step(inside, last)
        if not present:
            near = f"the keys there are {listed(inside)}; " if isinstance(inside, dict) and inside else ""
            text = dotted((*names, last))
            raise UserError(
                f"without a value it removes a key, and the recipe does not set this one\n  help: {near}an empty text "
                f"is written --set {text}='\"\"'"
            )
        del inside[step]

    def _put(self, names: Sequence[str], value: Any) -> KeyPath:
        inside: Any = self.table  # a table, or an array of them further in
        path: list[str | int] = []
        for name in names[:-1]:
            step, present = _step(inside, name)
            path.append(step)
            if isinstance(inside, dict):
                inside.setdefault(step, {})
            inside = inside[step] if present or isinstance(inside, dict) else None
            if not isinstance(inside, dict | list):
                what = "there is no such entry" if inside is None else f"it is {display(inside)}, not a table"
                raise UserError(f"cannot set a key of `{dotted(path)}`: {what}")
        last, present = _step(inside, names[-1])
        if isinstance(inside, list) and not present:
            raise UserError(f"`{dotted(path)}` has {len(inside)} entries, counted from 0; got {last!r}")
        inside[last] = value
        return (*path, last)

    def beside(self, path: KeyPath, file: str) -> str:
        """A relative path, which a recipe's file means from its own folder, and an override from the current one."""
        if any(path[:length] in self._overrides for length in range(1, len(path) + 1)):
            return file
        return str(Path(self.name).parent / file)

    def _position(self, path: KeyPath) -> tuple[int, str]:
        for length in range(len(path), 0, -1):
            if path[:length] in self._overrides:
                return _LAST, self._overrides[path[:length]]
        deeper = [text for set_path, text in self._overrides.items() if set_path[: len(path)] == path]
        if deeper and path and (len(path) > 1 or path not in self.lines.lines):
            return _LAST, deeper[-1]
        line = self.lines.line(path)
        return line, f"{self.name}:{line}"


def _step(inside: Any, name: str) -> tuple[Any, bool]:
    """(Index of a list or key of a table, True if there is such an entry)."""
    if not isinstance(inside, list):
        return name, isinstance(inside, dict) and name in inside
    number = int(name) if name.isdecimal() and len(name) < 10 else name
    return number, isinstance(number, int) and number < len(inside)


def _names_and_value(text: str) -> tuple[list[str], str]:
    key, equals, value_text = (part.strip() for part in text.partition("="))
    if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
        raise UserError("must be key=value, as in --set train.lr=0.002, or key= to remove a key")
    return key.split("."), value_text


def _value(value_text: str) -> Any:
    try:
        value = _parsed(f"value = {value_text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if value_text[0] in "[{\"'" or "\n" in value_text:
            template = re.match(r"\{\w+(\.\w+)*\}", value_text)
            quoted = f"; a text that begins with {{ is quoted twice: '\"{template[0]}...\"'" if template else ""
            raise UserError(f"broken TOML value: {_lower_first(error)}{quoted}") from None
        value = value_text
    if strange := list(_strange(value, ())):
        raise UserError([problem for _, problem in strange])
    return value


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
    lines = key_places(text)
    try:
        table = _parsed(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(_syntax_problems(name, text, lines, error)) from None
    source = RecipeSource(name, table, lines)
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
        first = raw[error.start : error.start + 4].hex(" ")
        guess = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1 or another old encoding"
        raise UserError(
            f"{name}:{line}: not UTF-8: byte {error.start} begins {first}\n"
            f"  help: the file looks like {guess}; save it as UTF-8"
        ) from None


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor the folder {path.parent})"
    near = nearest(path.name, sorted(p.name for p in path.parent.glob("*.toml")))
    return f"\n  help: did you mean {path.parent / near}?" if near else ""


def _syntax_problems(name: str, text: str, keys: KeyLines, error: tomllib.TOMLDecodeError) -> list[str]:
    at = re.search(r"line (\d+), column (\d+)", str(error))
    line, column = (int(at[1]), int(at[2])) if at else (text.count("\n") + 1, 1)
    if keys.twice and keys.twice[0][2] <= line:  # what stands behind the error may be misread
        twice = "{}:{}: `{}` is set twice (first on line {})"
        return [twice.format(name, second, dotted(key), first) for key, first, second in keys.twice]
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

    def record(self, path: KeyPath, line: int) -> None:
        """Note a key, or that it is set again."""
        if path in self.lines:
            self.twice.append((path, self.lines[path], line))
        self.lines.setdefault(path, line)


def key_places(text: str) -> KeyLines:
    """Find the line of every key, also in a text that is not valid TOML.

    Values are left to ``tomllib``; what cannot be understood is passed over.

    Args:
        text: a TOML document.

    >>> lines = key_places('seed = 0\\n[train]\\nlr = 0.1\\nmore = { a = [1, { b = 2 }] }\\nlr = 0.2\\n')
    >>> lines.line(("train", "lr")), lines.line(("train", "more", "a", 1, "b")), lines.line(("train", "x"))
    (3, 4, 2)
    >>> lines.twice
    [(('train', 'lr'), 3, 5)]
    """
    scanner = _Scanner(text)
    with suppress(RecursionError):  # deeper than tomllib reads
        scanner.document()
    return scanner.keys


class _Scanner:
    """Reads the names of keys, statement by statement."""

    def __init__(self, text: str) -> None:
        self.keys = KeyLines()
        self.tokens = (match.group() for match in _TOKEN.finditer(text) if not match.group().startswith("#"))
        self.token, self.line = next(self.tokens, ""), 1

    def advance(self) -> None:
        self.line += self.token.count("\n")
        self.token = next(self.tokens, "")

    def document(self) -> None:
        table: KeyPath = ()
        sizes: dict[KeyPath, int] = {}  # of arrays of tables
        while self.token:
            if self.token == "[":
                table = self.header(sizes) or table
            else:
                self.pair(table, "\n")
            while self.token not in ("", "\n"):
                self.advance()
            self.advance()

    def names(self, *ends: str) -> list[str]:
        names: list[str] = []
        while self.token not in ("", "\n", *ends):
            names += [] if self.token in (".", ",") else [_unquoted(self.token)]
            self.advance()
        return names

    def header(self, sizes: dict[KeyPath, int]) -> KeyPath | None:
        brackets = 0
        while self.token in ("[", "]"):
            brackets += self.token == "["
            self.advance()
        names = self.names("]")
        if not names or self.token != "]":
            return None
        path: KeyPath = ()
        for name in names[:-1]:
            path = (*path, name)
            path = (*path, sizes[path] - 1) if path in sizes else path
        path = (*path, names[-1])
        if brackets > 1:
            self.keys.lines.setdefault(path, self.line)
            sizes[path] = sizes.get(path, 0) + 1
            path = (*path, sizes[path] - 1)
        self.keys.record(path, self.line)
        return path

    def pair(self, path: KeyPath, *ends: str) -> None:
        names = self.names("=", *ends)
        if self.token == "=":
            for name in names[:-1]:
                path = (*path, name)
                self.keys.lines.setdefault(path, self.line)
            if names:
                path = (*path, names[-1])
                self.keys.record(path, self.line)
            self.advance()
        while self.token not in ("", *ends):
            self.value(path)

    def value(self, path: KeyPath) -> None:
        """Read a list or an inline table, or pass over one token of another value."""
        opening, number = self.token, 0
        while opening in ("[", "{") and self.token not in ("", "]", "}"):
            self.advance()
            if opening == "{":
                while self.token == "\n":
                    self.advance()
                self.pair(path, ",", "]", "}")
            while self.token not in ("", ",", "]", "}"):
                if self.token != "\n":
                    self.keys.lines.setdefault((*path, number), self.line)
                self.value((*path, number))
            number += 1
        self.advance()


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
        if files := sorted(folder.glob("*.toml")):
            return {path.stem: path for path in files}
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
        raise UserError(no_recipe(path.name))
    return path


def no_recipe(name: str) -> str:
    """What is wrong with the name of a recipe that does not come with freerun, and what was meant.

    >>> print(no_recipe("finetune"))
    there is no recipe 'finetune'
      help: did you mean finetune-completions or finetune-pairs?
    """
    shipped = shipped_recipes()
    near = [each for each in shipped if each.startswith(f"{name}-")] or [nearest(name, shipped)]
    meant = f"did you mean {' or '.join(filter(None, near))}?"
    hint = meant if any(near) else "those that come with freerun are " + ", ".join(shipped)
    return f"there is no recipe {name!r}\n  help: {hint}"
