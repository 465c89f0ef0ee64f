"""A run's folder before training: whether it may be used, and what may be removed from it."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from freerun.config.read import differences
from freerun.errors import CheckpointError, OccupiedError, UserError

__all__ = [
    "RUN_FILES",
    "check_folder",
    "clear_run",
    "holds_run",
    "near_runs",
    "probe",
    "same_recipe",
    "saved_recipe",
    "without_places",
    "write_recipe",
]  # fmt: skip

RUN_FILES = (
    "recipe.toml", "metrics.jsonl", "summary.json", "test-items.jsonl", "test-curves.json", "test-forecasts.json",
    "diagnosis.json", "diagnosis.html", "lock",
)  # fmt: skip
_RUN_FOLDERS: dict[str, tuple[str, ...]] = {
    "checkpoints": ("step-*", "best-*"),
    "model": ("model.safetensors", "model.json", "manifest.json"),
    "tensorboard": ("events.out.tfevents.*",),
}
_TEMPORARY = ".writing-*"  # what a killed writer leaves


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in the folder."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "summary.json", "checkpoints", "recipe.toml"))


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a new run must not touch; nothing is changed.

    Args:
        folder: where the run is to go; it need not exist.
        resume: a run there is gone on with.
        overwrite: a run there may be removed.

    Raises:
        OccupiedError: it holds a run, or files that no run wrote.
        UserError: both flags at once.
    """
    if resume and overwrite:
        raise UserError("--resume goes on with a run, --overwrite removes it: give one of them")
    if folder.is_symlink() and not folder.exists():
        raise OccupiedError(f"{folder} is a link that leads nowhere")
    if folder.exists() and not folder.is_dir():
        raise OccupiedError(f"{folder} is a file; --out is a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if holds_run(folder):
        if not resume and not overwrite:
            finished = (folder / "summary.json").exists()
            state = "a finished run" if finished else "a run that was started and not finished"
            advice = "--overwrite replaces it" if finished else "--resume goes on with it, --overwrite replaces it"
            raise OccupiedError(f"{folder} holds {state}\n  help: {advice}; or give another --out")
        if overwrite:
            _refuse_foreign_checkpoints(folder / "checkpoints")
        return
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in RUN_FILES)
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise OccupiedError(
            f"{folder} is not empty and no run wrote what it holds ({shown})\n  help: give another --out"
        )


def _refuse_foreign_checkpoints(folder: Path) -> None:
    ours = set(_ours(folder, "checkpoints"))
    foreign = [entry.name for entry in folder.iterdir() if entry not in ours] if folder.is_dir() else []
    if foreign:
        raise OccupiedError(
            f"{folder} holds what no run wrote ({', '.join(sorted(foreign)[:5])})"
            "\n  help: move it away, or give another --out"
        )


def _ours(folder: Path, name: str) -> list[Path]:
    ours = {path for pattern in (*_RUN_FOLDERS[name], _TEMPORARY) for path in folder.glob(pattern)}
    return sorted(ours | {folder / listed for listed in _listed(folder)})


def _listed(folder: Path) -> list[str]:
    """The files that a folder's manifest names and that are there: of some models there are more than of others."""
    try:
        names = json.loads((folder / "manifest.json").read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if Path(name).name == name and (folder / name).is_file()]


def clear_run(folder: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in RUN_FILES:
        if name != "lock":
            (folder / name).unlink(missing_ok=True)
    for name in _RUN_FOLDERS:
        inside = folder / name
        if inside.is_symlink() or not inside.is_dir():
            continue
        for entry in _ours(inside, name):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if not any(inside.iterdir()):
            inside.rmdir()


def probe(folder: Path) -> None:
    """Make the folder and try to write in it, before any time is spent.

    Raises:
        UserError: it cannot be written, and why.
    """
    tried = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tried.open("wb") as file:
            file.write(b"freerun")
            file.flush()
            os.fsync(file.fileno())
        tried.replace(folder / f".probed-{os.getpid()}")
        (folder / f".probed-{os.getpid()}").unlink()
    except OSError as error:
        with suppress(OSError):
            tried.unlink()
        raise UserError(f"{folder} cannot be written: {error.strerror or error}\n  help: give another --out") from None


def saved_recipe(folder: Path) -> dict[str, Any] | None:
    """The resolved recipe of a run, None where it has none.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = folder / "recipe.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def write_recipe(folder: Path, table: Mapping[str, Any]) -> None:
    """Write the resolved recipe."""
    import tomli_w

    from freerun.training.files import replace_file

    replace_file(folder / "recipe.toml", tomli_w.dumps(table).encode())


def same_recipe(folder: Path, table: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings; those that change no number may differ.

    Where the data lie may change too: the checkpoint knows their fingerprint.

    Raises:
        UserError: names every key that differs, with both values.
    """
    from freerun.training.settings import HARMLESS

    old = saved_recipe(folder)
    if old is None:
        return
    harmless = {"name", "data.path", *(f"train.{key}" for key in HARMLESS)}
    changed = [
        text
        for text in differences(without_places(old), without_places(table))
        if text.partition(":")[0] not in harmless
    ]
    if changed:
        listed = "".join(f"\n  {text}" for text in changed)
        raise UserError(
            f"{folder} was begun with another recipe:{listed}\n"
            "  help: --resume needs the same settings; give them, or another --out for a new run"
        )


def without_places(table: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without the path of a measured rate: a moved run is the same run, and its signature has the rates."""
    method = {
        key: {"measured": "..."} if isinstance(value, Mapping) and "measured" in value else value
        for key, value in table.get("method", {}).items()
    }
    return {**table, "method": method}


def near_runs(folder: Path) -> list[Path]:
    """Run folders inside, beside or around a folder that is none."""
    around = [folder, folder / "runs", folder.parent, folder.parent / "runs"]
    found: list[Path] = []
    for place in around:
        if place.is_dir():
            found += [path.parent.parent for path in sorted(place.glob("*/model/model.json"))]
    if (folder.parent / "model" / "model.json").exists():
        found.append(folder.parent)
    return list(dict.fromkeys(found))[:5]
