"""A comparison's folder: whether it is ours, and what may be removed from it."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from freerun.config.folder import clear_run, probe
from freerun.errors import OccupiedError, UserError
from freerun.training.files import replace_file
from freerun.training.folder import FolderLock

__all__ = ["MARKER", "check_place", "claim"]

MARKER = "comparison.json"
_FILES = ("results.json", "results.json.part", "report.html", "report.html.part")


def check_place(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a comparison must not touch; nothing is changed.

    Args:
        out: where the comparison is to go; it need not exist.
        resume: a comparison there is gone on with.
        overwrite: a comparison there may be removed.

    Raises:
        OccupiedError: a file, a folder that no comparison made, or a comparison and no flag.
        UserError: both flags at once.
    """
    if resume and overwrite:
        raise UserError("give --resume or --overwrite, not both")
    if out.is_symlink() and not out.exists():
        raise OccupiedError(f"{out} is a link that leads nowhere")
    if out.exists() and not out.is_dir():
        raise OccupiedError(f"{out} is a file; --out is a folder")
    found = sorted(entry.name for entry in out.iterdir() if entry.name != "lock") if out.exists() else []
    if not found:
        return
    if _recorded(out) is None:
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise OccupiedError(
            f"{out} is not empty and no comparison made what it holds ({shown})\n  help: give another --out"
        )
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
        UserError: the folder cannot be written.
    """
    probe(out)
    all_names = sorted({*(_recorded(out) or ()), *names})
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
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
        for name in names:
            (out / "recipes" / f"{name}.toml").unlink(missing_ok=True)
            (out / "logs" / f"{name}.log").unlink(missing_ok=True)
        for folder in runs:
            clear_run(folder)
    for folder in (*runs, out / "runs", out / "recipes", out / "logs"):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def _write_marker(out: Path, names: Collection[str]) -> None:
    content = {"schema": 1, "kind": "comparison", "runs": list(names)}
    replace_file(out / MARKER, (json.dumps(content, indent=1) + "\n").encode())


def _recorded(out: Path) -> list[str] | None:
    """The runs of the comparison in a folder, None where it holds none."""
    marker = _json(out / MARKER)
    if marker.get("kind") == "comparison":
        return _plain(marker.get("runs"))
    results = _json(out / "results.json")
    if "schema" not in results or "comparisons" not in results or not isinstance(results.get("runs"), list):
        return None
    return _plain([Path(str(run.get("folder"))).name for run in results["runs"] if isinstance(run, dict)])


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _plain(names: Any) -> list[str]:
    # a name that leads elsewhere was not written by us
    listed = names if isinstance(names, list) else []
    return [name for name in listed if isinstance(name, str) and name not in ("", "..") and Path(name).name == name]
