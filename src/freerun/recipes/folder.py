"""A run's folder before training: whether it may be used, and what may be removed from it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w

from freerun.errors import CheckpointError, OccupiedError, UserError
from freerun.recipes.recipe import Recipe
from freerun.training.changes import Keys, changes, flat, refused, section_keys
from freerun.training.files import FULL, MANIFEST, explained, leftover, remove_folder, replace_file
from freerun.training.json_shapes import LARGEST, opened
from freerun.training.run_folder import (
    RUN_FILES,
    STEP_FILES,
    checkpoints,
    clean_run,
    in_checkpoints,
    in_run,
    refuse_foreign,
    saved_something,
    stage,
)

_PROBE = b"freerun"
_EVENTS = re.compile(r"events\.out\.tfevents\.\d+\..+")
_MODEL_FILES = ("model.safetensors", "model.json", MANIFEST)


def check_folder(folder: Path, *, resume: bool, overwrite: bool, table: Mapping[str, Any] | None = None) -> None:
    """Refuse a folder that a new run must not touch; nothing is changed."""
    if resume and overwrite:
        raise UserError("--resume goes on with a run, --overwrite removes it: give one of them")
    if folder.is_symlink() and not folder.exists():
        raise OccupiedError(f"{folder} is a link that leads nowhere")
    if folder.exists() and not folder.is_dir():
        raise OccupiedError(f"{folder} is a file; --out is a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    refuse_foreign(folder)
    found = stage(folder)
    if found in ("begun", "finished"):
        if not resume and not overwrite:
            state = "a finished run" if found == "finished" else "a run that was started and not finished"
            goes = (
                "--overwrite replaces it"
                if found == "finished"
                else "--resume goes on with it, --overwrite replaces it"
            )
            raise OccupiedError(f"{folder} holds {state}\n  help: {goes}; or give another --out")
        if overwrite:
            _refuse_unsigned(folder)
            _refuse_foreign_checkpoints(folder / "checkpoints")
    elif found == "prepared":
        _refuse_foreign_recipe(folder / "recipe.toml", None if resume or overwrite else table)
    else:
        _refuse_unknown(folder)


def _refuse_unknown(folder: Path) -> None:
    foreign = sorted(
        entry.name for entry in folder.iterdir()
        if entry.name != "lock" and not leftover(entry.name, in_run) and not _is_empty(entry, "checkpoints")
    )  # fmt: skip
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise OccupiedError(
            f"{folder} is not empty and no run wrote what it holds ({shown})\n  help: give another --out"
        )


def _refuse_unsigned(folder: Path) -> None:
    """Refuse to remove files that only have the names of a run's."""
    if (folder / "recipe.toml").exists() or (folder / "model" / MANIFEST).exists() or saved_something(folder):
        return
    metrics = folder / "metrics.jsonl"
    if metrics.is_file():
        with metrics.open("rb") as file:
            if b'"event"' in file.readline(1 << 16):
                return
    found = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.name in RUN_FILES))
    raise OccupiedError(f"{folder} holds {found}, and no run wrote it\n  help: move it away, or give another --out")


def _is_empty(entry: Path, name: str) -> bool:
    return entry.name == name and entry.is_dir() and not any(entry.iterdir())


def _refuse_foreign_checkpoints(folder: Path) -> None:
    entries = list(folder.iterdir()) if folder.is_dir() else []
    ours = {*checkpoints(folder.parent), *checkpoints(folder.parent, "best")}
    foreign = [e.name for e in entries if e not in ours and not leftover(e.name, in_checkpoints)]
    if foreign:
        raise OccupiedError(
            f"{folder} holds what no run wrote ({', '.join(sorted(foreign)[:5])})"
            "\n  help: move it away, or give another --out"
        )


def _refuse_foreign_recipe(path: Path, table: Mapping[str, Any] | None) -> None:
    """Refuse a recipe.toml beside which nothing was trained, where a person wrote it or it is of another run."""
    try:
        found = read_recipe_file(path)
    except CheckpointError:
        found = {}
    if found is None:
        return
    content = path.read_bytes()
    if content != _recipe_bytes(found):
        raise OccupiedError(f"{path} is there, and no run wrote it\n  help: move it away, or give another --out")
    if table is not None and content != _recipe_bytes(table):
        advice = "--overwrite replaces it; or give another --out"
        raise OccupiedError(f"{path} is another recipe, of a run that has not begun\n  help: {advice}")


def clear_run(folder: Path) -> None:
    """Remove what a run writes, and nothing else; the recipe last, so that what is left is still known as a run's."""
    clean_run(folder)
    for name in RUN_FILES:
        if name not in ("lock", "recipe.toml"):
            _remove_file(folder / name)
    for path in [*checkpoints(folder), *checkpoints(folder, "best")]:
        remove_folder(path, STEP_FILES)
    if _is_folder(folder / "model"):
        remove_folder(folder / "model", _MODEL_FILES)
    if _is_folder(folder / "tensorboard"):
        for path in list((folder / "tensorboard").iterdir()):
            if _EVENTS.fullmatch(path.name):
                _remove_file(path)
    for name in ("checkpoints", "tensorboard"):
        if _is_folder(folder / name) and not any((folder / name).iterdir()):
            (folder / name).rmdir()
    _remove_file(folder / "recipe.toml")


def _remove_file(path: Path) -> None:
    if path.is_file() and not path.is_symlink():
        path.unlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def probe(folder: Path) -> None:
    """Make the folder and try to write in it, before any time is spent."""
    tried, renamed = folder / f".probe-{os.getpid()}", folder / f".probed-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tried.open("xb") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
        tried.replace(renamed)
        renamed.unlink()
    except OSError as error:
        with suppress(OSError):
            tried.unlink()
        if error.errno in FULL:
            raise explained(error, folder / "recipe.toml", len(_PROBE)) from None
        raise UserError(f"{folder} cannot be written: {error.strerror or error}\n  help: give another --out") from None


def saved_recipe(folder: Path) -> dict[str, Any] | None:
    """The resolved recipe of a run, None where it has none."""
    return read_recipe_file(folder / "recipe.toml")


def read_recipe_file(path: Path) -> dict[str, Any] | None:
    """A resolved recipe that was written, None where there is none."""
    if not path.exists() and not path.is_symlink():
        return None
    try:
        with opened(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes")
        return tomllib.loads(content.decode())
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def write_recipe(path: Path, table: Mapping[str, Any]) -> None:
    """Write a resolved recipe, unless it is there."""
    content = _recipe_bytes(table)
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)


def _recipe_bytes(table: Mapping[str, Any]) -> bytes:
    return tomli_w.dumps(table).encode()


def recipe_keys(recipe: Recipe) -> Keys:
    """The keys of a recipe's sections; how it is called and where its data lie changes no number."""
    keys = section_keys(
        data=type(recipe.data), model=type(recipe.model), train=type(recipe.train), evaluate=type(recipe.evaluate)
    )
    return Keys(keys.defaults, keys.non_semantic | {"name", "data.path"})


def same_recipe(path: Path, table: Mapping[str, Any], keys: Keys, allow: Collection[str] = ()) -> list[str]:
    """What stands against going on with a run under other settings, with both values; [] for nothing.

    Those that change no number may differ. Where the data lie may change too: the checkpoint knows their fingerprint.
    """
    old = read_recipe_file(path)
    if old is None:
        return []
    found = changes(flat(without_paths(old)), flat(without_paths(table)), keys)
    left, advice = refused(found, allow)
    return [
        *(f"{change.key}: {change.before} there, {change.after} now" for change in left),
        *([advice] if left else []),
    ]


def without_paths(table: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without the path of a measured rate: a moved run is the same run, and its signature has the rates."""
    given = table.get("method")
    if not isinstance(given, Mapping):
        return dict(table)
    method = {
        key: {"measured": "..."} if isinstance(value, Mapping) and "measured" in value else value
        for key, value in given.items()
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
