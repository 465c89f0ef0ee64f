"""Code of the user's own: ``make = "mine.py:make_model"`` in a recipe, ``mine.py:object`` for a command."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from freerun.arguments import brief, nearest
from freerun.data.files import refuse_no_file, user_path
from freerun.errors import UserError, out_of_memory


@dataclass(frozen=True)
class UserFunction:
    """A function of a file, and the hash of the file with what it imports from its folder.

    Args:
        path: of the file.
        name: of the function.
        sha256: the first 16 digits: of the file, and of the modules beside it that it imports, and those import.
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
        with _folder_first(self.path.resolve().parent), _explained(self.path, f"{self.name}({_listed(arguments)})"):
            return function(*sizes, **arguments)

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
        files = _sources(path)
    except OSError as error:
        near = sorted(str(each) for each in path.parent.glob("*.py"))[:5]
        there = f"there are {', '.join(near)}; " if near else ""
        raise UserError(
            f"make = {make!r}: {path} cannot be read ({error.strerror})\n  help: {there}in a recipe a path begins at "
            "the recipe's folder, with --set at the current one"
        ) from None
    found = _digest(files)
    if sha256 not in (None, found):
        others = [str(each.relative_to(path.resolve().parent)) for each in list(files)[1:]]
        imported = f" (or {', '.join(others)}, which it imports)" if others else ""
        raise UserError(
            f"make = {make!r}: {path}{imported} has changed: its sha256 begins with {found}, and this was made with "
            f"{sha256}\n  help: give the old file back, or begin a new run"
        )
    return UserFunction(path, name, found)


def _digest(files: Mapping[Path, bytes]) -> str:
    """16 digits: of one file those of ``sha256sum``."""
    if len(files) == 1:
        return hashlib.sha256(*files.values()).hexdigest()[:16]
    folder, digest = next(iter(files)).parent, hashlib.sha256()
    for path, content in files.items():
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _sources(path: Path) -> dict[Path, bytes]:
    """A file, and what it imports from its folder, and those import, anywhere in them; read, and not run."""
    first = path.resolve()
    found, waiting = {first: path.read_bytes()}, [first]
    while waiting:
        here = waiting.pop()
        for each in _imports(here, found[here], first.parent):
            if each not in found:
                found[each] = each.read_bytes()
                waiting.append(each)
    return {first: found.pop(first), **dict(sorted(found.items()))}


def _imports(path: Path, content: bytes, folder: Path) -> Iterator[Path]:
    """The files in ``folder`` of the modules that a file imports, with the packages that they lie in."""
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):
        return  # refused where it is run
    names: set[tuple[Path, str]] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {(folder, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            root = path.parents[node.level - 1] if node.level else folder
            module = f"{node.module}." if node.module else ""
            names |= {(root, module + alias.name) for alias in node.names} | {(root, module[:-1])}
    for root, name in names:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            stem = root.joinpath(*parts[:length])
            yield from (each for each in (stem.with_suffix(".py"), stem / "__init__.py") if each.is_file())


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Seed PyTorch's generators, and, put back afterwards, those of ``random`` and NumPy, for a user's function."""
    import numpy as np
    import torch

    plain, legacy = random.getstate(), np.random.get_state()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(legacy)


_LOADED: dict[Path, bytes] = {}
"""Modules beside the users' files as they were when they were loaded."""


@lru_cache
def _module(path: Path, sha256: str) -> Any:
    """Run a file as a module."""
    files = _sources(path)
    _forget(path.parent, files)
    name = f"freerun_user_{path.stem}_{sha256}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _folder_first(path.parent), _explained(path, "importing it"):
        spec.loader.exec_module(module)
    _LOADED.update(files)
    return module


@contextmanager
def _folder_first(folder: Path) -> Generator[None]:
    """Import from a folder first, as a script in it would, and afterwards from there last."""
    others, written = [each for each in sys.path if each != str(folder)], sys.dont_write_bytecode
    sys.path[:] = [str(folder), *others]
    # a file that is changed within a second would be taken from its bytecode
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = [*(each for each in sys.path if each != str(folder)), str(folder)]
        sys.dont_write_bytecode = written


def _forget(folder: Path, files: Mapping[Path, bytes]) -> None:
    """Take modules that other users' files imported, or that changed, out of the way of those that are imported now."""
    for path in list(files)[1:]:
        name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        known = sys.modules.get(name)
        if known is None:
            continue
        source = getattr(known, "__file__", None)
        loaded = None if source is None else Path(source).resolve()
        if loaded in _LOADED:
            if loaded != path or _LOADED[loaded] != files[path]:
                del sys.modules[name]
        elif loaded != path:
            raise UserError(
                f"{path}: {name} is also the name of a module that is loaded already ({source or 'part of Python'})\n"
                "  help: give the file another name"
            )


@contextmanager
def _explained(path: Path, doing: str) -> Generator[None]:
    """Turn what a user's code raises into a UserError with his part of the traceback."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        if out_of_memory(error):
            raise
        raise UserError(_shortened(path, error, doing)) from error


def blamed(error: BaseException) -> UserError | None:
    """The error for what a user's model raised while it was used; None where none of his files called last."""
    ours = Path(__file__).parent.parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if path in _LOADED:
            return UserError(_shortened(path, error, frame.name))
        if ours in path.parents:
            return None
    return None


def is_object(target: str) -> bool:
    """Return True if a command's argument names an object, not a folder."""
    return ":" in target and not Path(target).exists()


def file_of(target: str) -> Path:
    """The file in which the code of ``FILE.py:NAME`` stands; of ``module:NAME`` one in the folder it is looked for."""
    home = target.rpartition(":")[0]
    return user_path(home) if home.endswith(".py") else Path(f"{home.split('.')[0]}.py")


def user_object(target: str) -> Any:
    """What ``FILE.py:NAME`` or ``module:NAME`` names; a function is called without arguments, a model is not.

    Raises:
        UserError: no such file, module or name, or an error in it.
    """
    home, _, name = target.rpartition(":")
    path = file_of(target)
    if not home or not name:
        raise UserError(f"{target}: must be a folder, FILE.py:NAME or module:NAME, such as mine.py:make")
    if home.endswith(".py"):
        refuse_no_file(path, "a file of Python")
        module = _module(path.resolve(), _digest(_sources(path)))
    else:
        module = _imported(target, home)
    if not hasattr(module, name):
        known = [each for each in vars(module) if not each.startswith("_")]
        near = nearest(name, known)
        help_line = f"did you mean {near}?" if near else f"it has {', '.join(known[:10]) or 'nothing'}"
        raise UserError(f"{target}: {home} has no {name!r}\n  help: {help_line}")
    value = getattr(module, name)
    if not callable(value) or hasattr(value, "forward"):
        return value
    with _folder_first(path.resolve().parent), _explained(path, f"{name}()"):
        return value()


def _imported(target: str, name: str) -> Any:
    path = file_of(target)
    try:
        with _folder_first(Path.cwd()), _explained(path, "importing it"):
            module = importlib.import_module(name)
    except UserError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        looked = "module:NAME is looked for from the folder you are in"
        raise UserError(f"{target}: {error.__cause__}\n  help: {looked}") from None
    if (source := getattr(module, "__file__", None)) is not None:
        _LOADED[Path(source).resolve()] = Path(source).read_bytes()
    return module


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _shortened(path: Path, error: BaseException, doing: str) -> str:
    """An error of the user's code, with the frames of files beside his, none of them freerun's or installed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno}: {error.msg}: {(error.text or '').strip()}"
    folder, package = path.resolve().parent, Path(__file__).resolve().parents[1]

    def own(name: str) -> bool:
        parents = Path(name).resolve().parents
        return folder in parents and package not in parents and not name.startswith("<") and "site-packages" not in name

    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if own(frame.filename)]
    listed = [f"    {Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames]
    if isinstance(error, SystemExit):
        listed.append(
            "  help: it would end the command: raise an error instead, and put what runs as a script under\n"
            '  if __name__ == "__main__":'
        )
    return "\n".join([f"{path}: {doing} raised {type(error).__name__}: {error}", *listed])
