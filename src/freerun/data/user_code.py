"""Functions in files of the user's own: ``make = "mine.py:make_model"`` in a recipe."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from freerun.arguments import brief, nearest
from freerun.errors import UserError, out_of_memory


@dataclass(frozen=True)
class UserFunction:
    """A function of a file, and the hash of the file.

    Args:
        path: of the file.
        name: of the function.
        sha256: the first 16 digits.
    """

    __repr__ = brief

    path: Path
    name: str
    sha256: str

    def __call__(self, arguments: Mapping[str, Any], *sizes: int) -> Any:
        """Call the function with sizes of the data, where there are any, and arguments by name.

        Raises:
            UserError: arguments that it does not take, or an error in it, with the user's part of the traceback.
        """
        function = self.function
        try:
            inspect.signature(function).bind(*sizes, **arguments)
        except TypeError as error:
            takes = ", ".join(inspect.signature(function).parameters) or "no arguments"
            raise UserError(f"{self.path}:{self.name} takes {takes}; {error}") from None
        try:
            return function(*sizes, **arguments)
        except UserError:
            raise
        except Exception as error:  # whatever a user's function raises
            if out_of_memory(error):
                raise
            raise UserError(_shortened(self.path, error, f"{self.name}({_listed(arguments)})")) from error

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        module = _module(self.path.resolve(), self.sha256)
        function = getattr(module, self.name, None)
        if not callable(function):
            known = [name for name, each in vars(module).items() if callable(each) and not name.startswith("_")]
            near = nearest(self.name, known)
            help_line = f"did you mean {near}?" if near else f"it has {', '.join(known[:10]) or 'no functions'}"
            raise UserError(f"{self.path} has no function {self.name}\n  help: {help_line}")
        return function


def user_function(make: str, example: str, sha256: str | None = None) -> UserFunction:
    """Return the function that ``FILE.py:FUNCTION`` names; nothing of the file is run.

    Raises:
        UserError: another form, no such file, or another file than the one with that hash.
    """
    file, colon, name = str(make).rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise UserError(f"make must be FILE.py:FUNCTION, such as {example}; got {make!r}")
    path = Path(file)
    try:
        content = path.read_bytes()
    except OSError as error:
        near = sorted(str(each) for each in path.parent.glob("*.py"))[:5]
        help_line = f"\n  help: there are {', '.join(near)}" if near else ""
        raise UserError(f"make = {make!r}: {path} cannot be read ({error.strerror}){help_line}") from None
    found = hashlib.sha256(content).hexdigest()[:16]
    if sha256 not in (None, found):
        raise UserError(
            f"make = {make!r}: {path} has changed: its sha256 begins with {found}, and this was made with {sha256}\n"
            "  help: give the old file back, or begin a new run"
        )
    return UserFunction(path, name, found)


@lru_cache
def _module(path: Path, sha256: str) -> Any:
    """Run a file as a module, its folder on the path for what it imports."""
    name = f"freerun_user_{path.stem}_{sha256}"
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever a user's file raises
        if out_of_memory(error):
            raise
        raise UserError(_shortened(path, error, "importing it")) from error
    return module


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _shortened(path: Path, error: Exception, doing: str) -> str:
    """An error of the user's code, with the frames of files beside his."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}: {error.msg}: {(error.text or '').strip()}"
    folder = path.resolve().parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if folder in Path(f.filename).resolve().parents]
    listed = [f"    {Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames]
    return "\n".join([f"{path}: {doing} raised {type(error).__name__}: {error}", *listed])
