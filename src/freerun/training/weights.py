"""A model's weights as safetensors, and the ``model`` folder of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from freerun.errors import CheckpointError
from freerun.training.files import read_folder, write_folder
from freerun.training.wrapped import full, like

__all__ = [
    "load_weights", "not_finite", "pack", "read_model", "refuse_not_finite", "start_from", "unpack", "weights_of",
    "write_model",
]  # fmt: skip


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Tensors in the safetensors format."""
    from safetensors.torch import save

    # no dtype or layout is lost; strides are not part of the format
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def unpack(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: it is not one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error


def weights_of(model: Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied ones once, under their first name.

    Sharded ones are made whole, for which all processes must ask.
    """
    return {name: full(tensor) for name, tensor in _own(model).items()}


def _own(model: Module) -> dict[str, Tensor]:
    seen: set[int] = set()
    chosen: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            chosen[name] = tensor.detach()
    return chosen


def not_finite(model: Module, weights: Mapping[str, Tensor] | None = None) -> list[str]:
    """Names of parameters that hold NaN or infinity, and of buffers that hold NaN: a mask of -inf is none of them.

    Args:
        model: has the parameters; of sharded ones the part of this process is looked at.
        weights: to look at in place of the model's own, as ``weights_of`` gives them.
    """
    trained = {name for name, _ in model.named_parameters()}
    found: list[str] = []
    for name, tensor in (_own(model) if weights is None else weights).items():
        each: Any = tensor
        each = each.to_local() if hasattr(each, "to_local") else each
        if each.is_floating_point() and bool((~each.isfinite() if name in trained else each.isnan()).any()):
            found.append(name)
    return found


def load_weights(model: Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy weights into a model.

    Args:
        model: whose weights are overwritten; sharded ones take their part.
        tensors: what ``weights_of`` gave.
        origin: where they come from, for the message.

    Raises:
        CheckpointError: names or shapes differ; all at once.
    """
    own = _own(model)
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is not in this model" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}; this model's is {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        raise CheckpointError([f"{origin}: the weights are of another model", *problems])
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(like(tensors[name], tensor))


def model_info(model: Module, describe: dict[str, Any]) -> dict[str, Any]:
    """What is needed to build a model again: its kind, its arguments, the task's description."""
    from freerun.models import MODELS

    kinds = [name for name, kind in MODELS.items() if type(model) is kind]
    # a plug-in names its kind on its class: asking for the class here would import its library
    named: Any = getattr(type(model), "kind", None)
    other = named if isinstance(named, str) else f"{type(model).__module__}:{type(model).__qualname__}"
    settings: Any = getattr(model, "settings", None)
    return {
        "schema": 1,
        "kind": kinds[0] if kinds else other,
        "settings": settings() if callable(settings) else {},
        "describe": describe,
    }


def write_model(folder: Path, weights: bytes, info: dict[str, Any], task: Any = None) -> None:
    """Write the ``model`` folder of a run: model.safetensors and model.json, with their manifest.

    Args:
        folder: the run's.
        weights: of the model, packed.
        info: see ``model_info``.
        task: where it has ``saved_files(weights)``, what stands in place of ``model.safetensors``, file by file.
    """
    text = json.dumps(info, ensure_ascii=False, indent=1)
    saved: Any = getattr(task, "saved_files", None)
    files = {"model.safetensors": weights} if saved is None else saved(unpack(weights))
    write_folder(folder / "model", {**files, "model.json": text.encode()})


def read_model(run: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A run's model.json and weights, checked.

    Args:
        run: the run's folder.

    Raises:
        CheckpointError: there is no such run, it has no model yet, or the files are damaged.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: there is no such run folder")
    if not (run / "model").is_dir():
        raise CheckpointError(f"{run} holds no model/: not a run folder, or the run has not been evaluated yet")
    files = read_folder(run / "model")
    for name in ("model.json", "model.safetensors"):
        if name not in files:
            raise CheckpointError(f"{run / 'model' / name} is missing")
    try:
        info = json.loads(files["model.json"])
    except ValueError as error:
        raise CheckpointError(f"{run / 'model' / 'model.json'} is damaged: {error}") from error
    return info, unpack(files["model.safetensors"])


def start_from(run: Path, model: Module, describe: dict[str, Any]) -> None:
    """Warm start: copy a run's best weights into a model that is to be trained on another way.

    Raises:
        CheckpointError: no such run, other vocabularies (the same id would mean something else), other shapes.
    """
    info, tensors = read_model(run)
    theirs = info.get("describe", {})
    ours = json.loads(json.dumps(describe))
    problems = [
        f"{run}: {name} differs: that run has {_size(theirs[name])}, this one {_size(ours[name])}; ids would "
        "change their meaning: train on the same data, or start afresh"
        for name in ours
        # the lists of a description are its vocabularies
        if isinstance(ours[name], list) and name in theirs and theirs[name] != ours[name]
    ]
    if problems:
        raise CheckpointError(problems)
    if info.get("kind") == "huggingface":
        from freerun.training.pretrained import saved_weights

        tensors = saved_weights(run / "model")
    load_weights(model, tensors, f"{run}/model")
    refuse_not_finite(model, run)


def refuse_not_finite(model: Module, run: Path) -> None:
    """Refuse a run's weights that hold NaN or infinity: whatever is computed with them means nothing.

    Raises:
        CheckpointError: with their names.
    """
    if broken := not_finite(model):
        raise CheckpointError(f"{run}: weights are not finite, and cannot be used: {', '.join(broken[:5])}")


def _size(vocabulary: Any) -> str:
    if isinstance(vocabulary, list):
        return f"{len(vocabulary)} entries ({' '.join(map(str, vocabulary[:4]))} ...)"
    return repr(vocabulary)
