"""Which files of a folder are train, dev and test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from freerun.data.text import missing_message, user_path
from freerun.errors import UserError

__all__ = ["split_files"]

_NAMES = {"train": ("train", "training"), "dev": ("dev", "valid", "val", "validation"), "test": ("test",)}
_ENDINGS = (".txt", ".tsv", ".dict", "")


def split_files(path: str | Path | Mapping[str, str | Path], language: str | None = None) -> dict[str, Path]:
    """The train, dev and test file of a folder, or the three files given.

    Raises:
        UserError: a file is missing, several fit, or the folder holds several languages and none was named.
    """
    if isinstance(path, Mapping):
        return _given_files(path, language)
    folder = user_path(path)
    if not folder.exists():
        raise UserError(missing_message(folder))
    if not folder.is_dir():
        raise UserError(
            f"{folder}: is a file; expected a folder that holds train, dev and test, or three paths: train, dev, test"
        )
    prefix = f"{language}_" if language else _only_prefix(folder)
    files: dict[str, Path] = {}
    problems: list[str] = []
    for split, names in _NAMES.items():
        found = [file for name in names for end in _ENDINGS if (file := folder / f"{prefix}{name}{end}").is_file()]
        if len(found) == 1:
            files[split] = found[0]
        elif found:
            problems.append(
                f"{folder}: {len(found)} files could be {split}: {', '.join(f.name for f in found)}; "
                "keep one, or give the three paths"
            )
        else:
            problems.append(f"no {split} file: " + missing_message(folder / f"{prefix}{split}.txt"))
    if problems:
        raise UserError(problems)
    return files


def _given_files(path: Mapping[str, str | Path], language: str | None) -> dict[str, Path]:
    problems: list[str] = []
    missing = [split for split in _NAMES if split not in path]
    other = [split for split in path if split not in _NAMES]
    if missing or other:
        problems.append(f"paths must be given for train, dev and test; got {', '.join(path) or 'none'}")
    if language:
        problems.append(f"language = {language!r} has no effect on three given paths; leave it out")
    if problems:
        raise UserError(problems)
    return {split: user_path(path[split]) for split in _NAMES}


def _only_prefix(folder: Path) -> str:
    names = [file.name for file in folder.iterdir() if file.is_file()]
    if any(name in {f"train{end}" for end in _ENDINGS} for name in names):
        return ""
    endings = tuple(f"_train{end}" for end in _ENDINGS)
    found = {name[: -len(end)] for name in names for end in endings if name.endswith(end) and name != end}
    if len(found) > 1:
        raise UserError(
            f'{folder}: holds several languages: {", ".join(sorted(found))}; name one with language = "{min(found)}"'
        )
    return f"{found.pop()}_" if found else ""
