"""A run's state on disk: written at once, read back checked, refused where it belongs to another run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from freerun.errors import CheckpointError, DivergedError
from freerun.training.changes import Change, Identity, Keys, OtherRunError, refuse_other
from freerun.training.files import (
    FORMAT_VERSION,
    Count,
    NewerError,
    Stored,
    expect,
    read_json,
    remove_folder,
    sync_folder,
    versioned,
    write_folder,
)
from freerun.training.optim import Ema, Needed, load_optimizer, memory_misfits, optimizer_tensors
from freerun.training.parallelize import OF_METHOD, ParallelRun
from freerun.training.processes import Processes
from freerun.training.run_folder import STEP_FILES, checkpoints
from freerun.training.weights import WEIGHTS, Specs, misfits, not_finite, pack, read_tensors, require_fit, weights_of

_MEMORY = "optimizer.safetensors"
_EMA = "ema.safetensors"
_METHOD = "method.safetensors"
_STATE = "state.json"


@dataclass
class TrainState:
    """What a run has counted so far; it lives in every checkpoint."""

    step: Count = 0  # updates done
    best_step: Count | None = None  # updates done when the best weights were evaluated
    best_value: float | None = None
    best_dev: dict[str, dict[str, float | None]] = field(default_factory=dict[str, dict[str, float | None]])
    stale: Count = 0  # evaluations since without a better score
    stopped_early: bool = False  # patience ran out
    seconds: float = 0.0  # wall time of training, evaluation left out
    cpu_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    evaluation_cpu_seconds: float = 0.0
    decoder_passes: float = 0.0  # forwards of all updates: one each, and the work of the roll-ins
    eligible: float = 0.0  # history entries that could be replaced
    replaced: float = 0.0
    due: bool = False  # the weights are still to be evaluated: the run was stopped meanwhile
    changes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # made on purpose when it went on
    method: dict[str, float] = field(
        default_factory=dict[str, float]
    )  # state of a method that has one, without its tensors


class _State(TypedDict):
    tally: TrainState
    identity: Identity
    metrics_bytes: Count
    processes: NotRequired[Count]


@dataclass(frozen=True)
class TrainObjects:
    """The things whose state a checkpoint holds, and the processes that have them."""

    model: Module
    optimizer: Optimizer
    ema: Ema | None
    wrapped: ParallelRun

    @property
    def processes(self) -> Processes:
        """The processes that train the model together."""
        return self.wrapped.processes

    @property
    def trained(self) -> Module:
        """All that the optimizer trains: the model's parameters, and those of its method."""
        return self.wrapped.trained


@dataclass(frozen=True, eq=False)
class Saved:
    """A checkpoint as it was read."""

    path: Path
    state: TrainState
    metrics_bytes: int
    weights: dict[str, Tensor]
    memory: dict[str, Tensor]
    averaged: dict[str, Tensor]
    method: dict[str, Tensor]
    processes: int
    changes: list[Change]


def folder_name(step: int, kind: str = "step") -> str:
    """Return the name of the folder of a checkpoint, or of the ``best`` weights, after so many updates."""
    return f"{kind}-{step:08d}"


def save(folder: Path, parts: TrainObjects, state: TrainState, identity: dict[str, Any], metrics_bytes: int) -> None:
    """Write the checkpoint of ``state.step`` under ``folder/checkpoints``: what all processes have, by the first."""
    weights = weights_of(parts.model)
    memory = optimizer_tensors(parts.trained, parts.optimizer)
    kept: dict[str, float | Tensor] = getattr(parts.wrapped.method, "state_dict", dict)()
    state.method = {name: value for name, value in kept.items() if not isinstance(value, Tensor)}
    averaged = None if parts.ema is None else parts.ema.full_tensors()
    broken = not_finite(parts.model, weights)
    for what, tensors in (("averaged ", averaged or {}), ("optimizer state of ", memory)):
        broken += [f"{what}{name}" for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise DivergedError(f"weights are not finite: {', '.join(broken[:5])}; no checkpoint of them is written")
    if not parts.processes.first:
        return
    content = {
        "format_version": FORMAT_VERSION,
        "processes": parts.processes.size,
        "tally": asdict(state),
        "identity": identity,
        "metrics_bytes": metrics_bytes,
    }
    files = {
        WEIGHTS: pack(weights),
        _MEMORY: pack(memory),
        _STATE: json.dumps(content, ensure_ascii=False, indent=1).encode(),
    }
    if averaged is not None:
        files[_EMA] = pack(averaged)
    if tensors := {name: value for name, value in kept.items() if isinstance(value, Tensor)}:
        files[_METHOD] = pack(tensors)
    write_folder(folder / "checkpoints" / folder_name(state.step), files)
    sync_folder(folder)


def prune(folder: Path, keep: int, state: TrainState) -> None:
    """Remove all but the last checkpoints and the best weights that those left name."""
    steps = [path for path in checkpoints(folder) if path.name <= folder_name(state.step)]
    for old in steps[:-keep]:
        remove_folder(old, STEP_FILES)
    best_steps = {state.best_step}
    for left in steps[-keep:]:
        with suppress(CheckpointError):  # a damaged one names nothing, and reading it later raises why
            best_steps.add(_read_state(Stored(left))["tally"].best_step)
    for old in checkpoints(folder, "best"):
        if old.name not in {folder_name(step, "best") for step in best_steps if step is not None}:
            remove_folder(old, STEP_FILES)


def newest(
    folder: Path, identity: dict[str, Any], needed: Needed, keys: Keys, allow: Collection[str] = ()
) -> Saved | None:
    """Return the newest valid checkpoint; None where there is no checkpoint at all."""
    skipped: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            stored = Stored(path)
            state = _read_state(stored)
            saved = _read(stored, state, needed, refuse_other(path, state["identity"], identity, keys, allow))
        except (NewerError, OtherRunError):
            raise
        except CheckpointError as error:
            skipped.append(f"{path.name}: {'; '.join(error.problems)}")
            continue
        if begun := state["identity"].get("init"):  # a run that goes on has begun where it began
            identity.setdefault("init", begun)
        if skipped:
            warnings.warn(f"resuming from {path.name}; skipped " + "; ".join(skipped), stacklevel=2)
        return saved
    if skipped:
        advice = "put back one that is complete, or begin anew with --overwrite or in another folder"
        raise CheckpointError([f"{folder}: no checkpoint can be used; {advice}", *skipped])
    return None


def restore(parts: TrainObjects, saved: Saved | None, state: TrainState) -> None:
    """Give optimizer, average and method their state back, in all processes; the model has its weights."""
    load_optimizer(parts.trained, parts.optimizer, parts.processes.broadcast(saved.memory if saved else None))
    averaged = parts.processes.broadcast(saved.averaged if saved else None)
    if parts.ema is not None and averaged:
        parts.ema.load(averaged)
    known = {**state.method, **parts.processes.broadcast(saved.method if saved else None)}
    if known:  # of another method there is none, and an empty state would drop modules that the optimizer has
        load_method: Any = getattr(parts.wrapped.method, "load_state_dict", dict)
        load_method(known)


def _read_state(stored: Stored) -> _State:
    """Return a checkpoint's state.json, which is of the step that the folder is named after."""
    stored.check(_STATE)
    where = stored.path / _STATE
    content = read_json(where, dict[str, Any])
    versioned(content, "format_version", FORMAT_VERSION, str(where))
    checked = expect(content, _State, str(where))
    state = TrainState(**content["tally"])
    if folder_name(state.step) != stored.path.name:
        raise CheckpointError(f"{where} is of step {state.step:,}, and its folder is named {stored.path.name}")
    if (state.best_step is None) != (state.best_value is None) or (state.best_step or 0) > state.step:
        raise CheckpointError(f"{where} is damaged: best_step and best_value do not belong together, or are of later")
    return {**checked, "tally": state}


def _read(stored: Stored, content: _State, needed: Needed, changes: list[Change]) -> Saved:
    state, changed = content["tally"], {change.key for change in changes}

    def fit(specs: Specs) -> list[str]:
        return misfits(specs, needed.weights)

    if state.best_step is not None:
        best = Stored(stored.path.parent / folder_name(state.best_step, "best"))
        require_fit(best, WEIGHTS, fit)
        best.check(WEIGHTS)
    weights = read_tensors(stored, WEIGHTS, fit)
    memory: dict[str, Tensor] = {}
    averaged: dict[str, Tensor] = {}
    if "train.optimizer" not in changed:  # another one begins with a memory of its own
        memory = read_tensors(stored, _MEMORY, lambda specs: memory_misfits(specs, needed.memory))
    own = needed.averaged
    if own is not None and not ("train.ema" in changed and _EMA not in stored.files):
        averaged = read_tensors(stored, _EMA, lambda specs: misfits(specs, own))
    method: dict[str, Tensor] = {}
    if any(c.key == "method" and c.before.partition("(")[0] != c.after.partition("(")[0] for c in changes):
        state.method = {}  # another one begins with a state of its own
        memory = {name: value for name, value in memory.items() if not name.startswith(f"{OF_METHOD}.")}
    elif _METHOD in stored.files:
        method = read_tensors(stored, _METHOD, lambda _: [])
    processes = content.get("processes", 1)
    return Saved(stored.path, state, content["metrics_bytes"], weights, memory, averaged, method, processes, changes)
