"""A comparison's folder: whether it is ours, and what may be removed from it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TypedDict

from freerun.config.folder import clear_run, probe
from freerun.errors import CheckpointError, OccupiedError, UserError
from freerun.training.files import clean, leftover, replace_file
from freerun.training.folder import FolderLock
from freerun.training.shapes import expect, read_json, versioned

__all__ = ["MARKER", "check_place", "claim"]

MARKER = "comparison.json"
_FILES = ("results.json", "results.json.part", "report.html", "report.html.part")
_FOLDERS = ("runs", "recipes", "logs")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class _Marker(TypedDict):
    kind: Literal["comparison"]
    runs: list[str]


def check_place(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a comparison must not touch; nothing is changed.

    Args:
        out: where the comparison is to go; it need not exist.
        resume: a comparison there is gone on with.
        overwrite: a comparison there may be removed.

    Raises:
        OccupiedError: a file, a folder that no comparison made, or a comparison and no flag.
        CheckpointError: what says whose it is cannot be read, or a link is where a comparison has a file or folder.
        UserError: both flags at once.
    """
    if resume and overwrite:
        raise UserError("give --resume or --overwrite, not both")
    if out.is_symlink() and not out.exists():
        raise OccupiedError(f"{out} is a link that leads nowhere")
    if out.exists() and not out.is_dir():
        raise OccupiedError(f"{out} is a file; --out is a folder")
    entries = sorted(entry.name for entry in out.iterdir()) if out.exists() else []
    found = [name for name in entries if name != "lock" and not leftover(name, _ours)]
    if not found:
        return
    recorded = _recorded(out)
    if recorded is None:
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise OccupiedError(
            f"{out} is not empty and no comparison made what it holds ({shown})\n  help: give another --out"
        )
    _refuse_links(out, recorded)
    if resume or overwrite:
        return
    if (out / "results.json").exists():
        raise OccupiedError(
            f"{out} holds a finished comparison: give another folder, --resume to make its results again "
            "from the finished runs, or --overwrite to remove it"
        )
    raise OccupiedError(
        f"{out} holds a comparison that was started: go on with --resume, remove it with --overwrite, "
        "or give another folder"
    )


def _ours(name: str) -> bool:
    return name == MARKER or name in _FILES


def _refuse_links(out: Path, names: Collection[str]) -> None:
    paths = [out / name for name in (MARKER, *_FILES, *_FOLDERS)] + [out / "runs" / name for name in names]
    if links := [path for path in paths if path.is_symlink()]:
        raise CheckpointError(
            [f"{path} is a link, which is not followed: put what it leads to there" for path in links]
        )


def claim(out: Path, names: Collection[str], *, overwrite: bool) -> None:
    """Write down which runs are the comparison's, and remove those of an earlier one if that is wanted.

    The folder was found fit by ``check_place`` and is locked. Of a removed comparison only what its runs,
    and the comparison itself, write is taken away.

    Args:
        out: the folder.
        names: of the planned runs.
        overwrite: remove an earlier comparison.

    Raises:
        OccupiedError: a run of the earlier comparison is going on.
        CheckpointError: a run's folder is a link.
        UserError: the folder cannot be written.
    """
    all_names = sorted({*(_recorded(out) or ()), *names})
    _refuse_links(out, all_names)
    clean(out, _ours)
    clean(out / "recipes", lambda name: name.removesuffix(".toml") in all_names)
    probe(out)
    # before anything else: an interrupted removal must still be known as ours
    _write_marker(out, all_names)
    if overwrite:
        _clear(out, all_names)
        _write_marker(out, sorted(names))


def _clear(out: Path, names: Collection[str]) -> None:
    runs = [folder for name in names if (folder := out / "runs" / name).is_dir()]
    with ExitStack() as locks:
        for folder in runs:
            locks.enter_context(FolderLock(folder))
        files = [out / name for name in _FILES] + [out / "recipes" / f"{name}.toml" for name in names]
        for path in [*files, *(out / "logs" / f"{name}.log" for name in names)]:
            if path.is_file() and not path.is_symlink():
                path.unlink()
        for folder in runs:
            clear_run(folder)
    for folder in (*runs, *(out / name for name in _FOLDERS)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_marker(out: Path, names: Collection[str]) -> None:
    content = {"schema": 1, "kind": "comparison", "runs": list(names)}
    replace_file(out / MARKER, (json.dumps(content, indent=1) + "\n").encode())


def _recorded(out: Path) -> list[str] | None:
    """The runs of the comparison in a folder, None where it holds none."""
    path = out / MARKER
    if path.exists() or path.is_symlink():
        found = read_json(path, dict[str, Any])
        versioned(found, "schema", 1, str(path))
        return _plain(expect(found, _Marker, str(path))["runs"])
    try:
        results = read_json(out / "results.json", dict[str, Any])
    except CheckpointError:
        return None
    if "schema" not in results or "comparisons" not in results or not isinstance(results.get("runs"), list):
        return None
    return _plain([Path(str(run.get("folder"))).name for run in results["runs"] if isinstance(run, dict)])


def _plain(names: list[str]) -> list[str]:
    # a name that leads elsewhere was not written by us
    return [name for name in names if _NAME.fullmatch(name)]
