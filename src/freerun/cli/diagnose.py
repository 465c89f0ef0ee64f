"""``freerun diagnose``: exposure-bias measures of one run, as JSON and as a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freerun.errors import OccupiedError, visible

__all__ = ["diagnose"]

_FILES = ("diagnosis.json", "diagnosis.html")
_BEGINS = b'{"schema": 1, "run": {'


def diagnose(run: Path, out: Path | None, windows: int | None, *, overwrite: bool) -> int:
    """``freerun diagnose``: writes diagnosis.json and diagnosis.html; the page's path on standard output.

    Raises:
        OccupiedError: the folder holds a diagnosis already, or cannot hold one.
        UserError: the run cannot be diagnosed, or a library of the extra ``report`` is missing.
    """
    from freerun.cli.commands import usable
    from freerun.compare.run import require_report
    from freerun.config.diagnosed import diagnose_run
    from freerun.config.folder import probe
    from freerun.config.load import load_run
    from freerun.report.diagnosis import write_diagnosis
    from freerun.training.files import replace_file

    require_report()
    loaded = load_run(run)
    folder = run if out is None else out
    _check_place(folder, overwrite=overwrite)
    with _shown() as watch:
        with usable(run):
            found = diagnose_run(loaded, windows, watch, before=lambda: probe(folder))
        watch("drawing the page")
        replace_file(folder / _FILES[0], json.dumps(found, ensure_ascii=False).encode())
        page = write_diagnosis(found, folder / _FILES[1])
    print(visible(_told(found), keep="\n"))
    print(page)
    return 0


def _check_place(folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OccupiedError(f"{folder} is a file; --out is a folder")
    there = [name for name in _FILES if (folder / name).exists() or (folder / name).is_symlink()]
    if there and not _is_ours(folder):
        raise OccupiedError(
            f"{folder} holds {', '.join(there)}, and no freerun diagnose wrote it\n  help: move it away, or give "
            "another --out"
        )
    if there and not overwrite:
        raise OccupiedError(
            f"{folder} holds a diagnosis ({', '.join(there)})\n  help: --overwrite replaces it; or give another --out"
        )


def _is_ours(folder: Path) -> bool:
    """Whether the files that a diagnosis has are plain files, and the first of them is one."""
    paths = [folder / name for name in _FILES]
    if any(path.is_symlink() or (path.exists() and not path.is_file()) for path in paths) or not paths[0].exists():
        return False
    with paths[0].open("rb") as file:
        return file.read(len(_BEGINS)) == _BEGINS


def _told(found: dict[str, Any]) -> str:
    from freerun.report import diagnosed_ids, diagnosed_values

    diagnosis = found["diagnosis"]
    part = diagnosed_values if diagnosis["kind"] == "values" else diagnosed_ids
    return part.summary(diagnosis)


@contextmanager
def _shown() -> Generator[Any]:
    """What is being done, on standard error: a line that changes on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("diagnosing") as status:
        yield lambda text: status.update(f"diagnosing: {text}")
