"""A run's state on disk: written whole, read back checked, refused where it belongs to another run."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from freerun.errors import CheckpointError, DivergedError
from freerun.training.files import FORMAT_VERSION, read_folder, sync_folder, write_folder
from freerun.training.optim import Ema, load_optimizer, optimizer_tensors
from freerun.training.processes import ALONE, Processes
from freerun.training.settings import HARMLESS
from freerun.training.weights import not_finite, pack, unpack, weights_of
from freerun.training.wrapped import Wrapped

__all__ = ["Parts", "Saved", "Tally", "best_name", "last_good", "newest", "prune", "refuse_other", "restore", "save"]

_MEMORY = "optimizer.safetensors"
_WEIGHTS = "model.safetensors"
_EMA = "ema.safetensors"
_STATE = "state.json"


@dataclass
class Tally:
    """What a run has counted so far; it lives in every checkpoint.

    Args:
        step: updates done.
        best_step: updates done when the best weights were found.
        best_value: their score.
        best_dev: all their dev scores, ``teacher_forced`` and ``free_running``.
        stale: evaluations since without a better one.
        stopped_early: patience ran out.
        seconds: wall time of training, evaluation left out.
        cpu_seconds: processor time of training, evaluation left out.
        evaluation_seconds: wall time of evaluations.
        evaluation_cpu_seconds: processor time of evaluations.
        decoder_passes: forwards of all updates: one each, and the work of the roll-ins.
        eligible: history entries that could be replaced.
        replaced: entries that were.
        due: whether the weights are still to be evaluated: the run was stopped while they were.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best_dev: dict[str, Any] = field(default_factory=dict)
    stale: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    evaluation_cpu_seconds: float = 0.0
    decoder_passes: float = 0.0
    eligible: float = 0.0
    replaced: float = 0.0
    due: bool = False


@dataclass(frozen=True)
class Parts:
    """The things whose state a checkpoint holds, and who has them.

    Args:
        model: the model in no wrapper.
        optimizer: of its parameters.
        ema: their average.
        processes: all that train it.
        wrapped: the run of the method in what these need; None: one process runs it as it is.
    """

    model: Module
    optimizer: Optimizer
    ema: Ema | None
    processes: Processes = ALONE
    wrapped: Wrapped | None = None


@dataclass(frozen=True, eq=False)
class Saved:
    """A checkpoint as it was read.

    Args:
        path: its folder.
        tally: the counts.
        metrics_bytes: size of metrics.jsonl then.
        weights: of the model.
        memory: of the optimizer.
        averaged: the averaged weights, {} where there were none.
        processes: how many trained.
    """

    path: Path
    tally: Tally
    metrics_bytes: int
    weights: dict[str, Tensor]
    memory: dict[str, Tensor]
    averaged: dict[str, Tensor]
    processes: int


def _name(step: int) -> str:
    return f"step-{step:08d}"


def best_name(step: int) -> str:
    """The folder of the best weights found after so many updates."""
    return f"best-{step:08d}"


def save(folder: Path, parts: Parts, tally: Tally, identity: dict[str, Any], metrics_bytes: int) -> None:
    """Write the checkpoint of ``tally.step`` under ``folder/checkpoints``: what all processes have, by the first.

    Args:
        folder: the run's folder.
        parts: model, optimizer and average.
        tally: the counts.
        identity: what must be the same on resume.
        metrics_bytes: durable size of metrics.jsonl.

    Raises:
        DivergedError: a weight is not finite; nothing is written.
        ResourceError: the disk is full; earlier checkpoints stand.
    """
    weights = weights_of(parts.model)
    memory = optimizer_tensors(parts.model, parts.optimizer)
    averaged = None if parts.ema is None else parts.ema.whole()
    broken = not_finite(parts.model, weights)
    for what, tensors in (("averaged ", averaged or {}), ("optimizer state of ", memory)):
        broken += [f"{what}{name}" for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise DivergedError(f"weights are not finite: {', '.join(broken[:5])}; no checkpoint of them is written")
    if not parts.processes.first:
        return
    state = {
        "format_version": FORMAT_VERSION,
        "processes": parts.processes.size,
        "tally": asdict(tally),
        "identity": identity,
        "metrics_bytes": metrics_bytes,
    }
    files = {
        _WEIGHTS: pack(weights),
        _MEMORY: pack(memory),
        _STATE: json.dumps(state, ensure_ascii=False, indent=1).encode(),
    }
    if averaged is not None:
        files[_EMA] = pack(averaged)
    write_folder(folder / "checkpoints" / _name(tally.step), files)
    sync_folder(folder)


def prune(folder: Path, keep: int, tally: Tally) -> None:
    """Remove all but the last checkpoints and the best weights that those left speak of.

    Checkpoints of later updates than the tally's were found damaged: they do not count, and stay until the run
    writes them anew.
    """
    root = folder / "checkpoints"
    steps = [path for path in sorted(root.glob("step-*")) if path.name <= _name(tally.step)]
    for old in steps[:-keep]:
        shutil.rmtree(old)
    needed = {best_name(tally.best_step)} if tally.best_step is not None else set[str]()
    for left in steps[-keep:]:
        try:
            spoken_of = json.loads((left / _STATE).read_bytes())["tally"]["best_step"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged one speaks of nothing, and reading it later says why
        if spoken_of is not None:
            needed.add(best_name(spoken_of))
    for old in root.glob("best-*"):
        if old.name not in needed:
            shutil.rmtree(old)


def last_good(folder: Path) -> Path | None:
    """The newest checkpoint; only finite numbers are ever saved."""
    found = (folder / "checkpoints").glob(f"step-{'[0-9]' * 8}")
    return max(found, default=None)


def newest(folder: Path, identity: dict[str, Any], *, averaged: bool) -> Saved | None:
    """The newest valid checkpoint; None where there is no checkpoint at all.

    Invalid ones are skipped with a warning that names each and says what is wrong with it.

    Args:
        folder: the run's folder.
        identity: of the run that is to go on.
        averaged: whether it averages weights.

    Raises:
        CheckpointError: checkpoints are there and none is valid, or the run was another one.
    """
    skipped: list[str] = []
    for path in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        try:
            files, state = _read(path)
            tally = Tally(**{f.name: state["tally"][f.name] for f in fields(Tally)})
            if tally.best_step is not None:
                read_folder(path.parent / best_name(tally.best_step))
        except CheckpointError as error:
            skipped.append(f"{path.name}: {error}")
            continue
        if skipped:
            warnings.warn(f"resuming from {path.name}; skipped " + "; ".join(skipped), stacklevel=2)
        refuse_other(path, state["identity"], identity)
        if averaged and _EMA not in files:
            raise CheckpointError(f"{path / _EMA} is missing")
        tensors = {name: unpack(files[name]) if name in files else {} for name in (_WEIGHTS, _MEMORY, _EMA)}
        size, number = int(state["metrics_bytes"]), int(state.get("processes", 1))
        return Saved(path, tally, size, tensors[_WEIGHTS], tensors[_MEMORY], tensors[_EMA], number)
    if skipped:
        raise CheckpointError([f"{folder}: no checkpoint can be used", *skipped])
    return None


def restore(parts: Parts, saved: Saved | None) -> None:
    """Give optimizer and average their state back, in all processes; the model has its weights.

    Args:
        parts: what is to go on.
        saved: looked at in the first process only.

    Raises:
        CheckpointError: they are of another model.
    """
    load_optimizer(parts.model, parts.optimizer, parts.processes.shared(saved.memory if saved else None))
    if parts.ema is not None:
        parts.ema.load(parts.processes.shared(saved.averaged if saved else None))


def _read(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    files = read_folder(path)
    missing = [name for name in (_WEIGHTS, _MEMORY, _STATE) if name not in files]
    if missing:
        raise CheckpointError(f"{path / missing[0]} is missing")
    try:
        state: Any = json.loads(files[_STATE])
        complete = {"tally", "identity", "metrics_bytes"} <= set(state)
        complete = complete and {f.name for f in fields(Tally)} <= set(state["tally"])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path / _STATE} is damaged: {error}") from error
    if not complete:
        raise CheckpointError(f"{path / _STATE} is damaged: an entry is missing")
    return files, state


def refuse_other(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of other settings, data or method.

    Raises:
        CheckpointError: every difference, with both values.

    >>> refuse_other(Path("step-1"), {"train": {"lr": 0.1}}, {"train": {"lr": 0.2}})
    Traceback (most recent call last):
    freerun.errors.CheckpointError: step-1 belongs to another run; go on with its recipe, or begin in another folder
    train.lr: the checkpoint has 0.1, this run 0.2
    """
    before, now = _flat(theirs), _flat(json.loads(json.dumps(ours)))
    if "init" not in now:  # the checkpoint's weights already come from there
        before.pop("init", None)
    nothing = "nothing"
    problems = [
        f"{name}: the checkpoint has {before.get(name, nothing)}, this run {now.get(name, nothing)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not _harmless(name)
    ]
    if problems:
        advice = f"{path} belongs to another run; go on with its recipe, or begin in another folder"
        raise CheckpointError([advice, *problems])


def _harmless(name: str) -> bool:
    if not name.startswith("recipe."):
        return name in {f"train.{setting}" for setting in HARMLESS}
    # [train] and the data's content are compared as such, where data lies does not matter, arms are other runs
    return name in ("recipe.name", "recipe.data.path") or name.startswith(("recipe.train.", "recipe.compare."))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
