"""A model's weights as safetensors, and the ``model`` folder of a run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import Module

from freerun.errors import CheckpointError, UserError
from freerun.training.changes import with_new_keys
from freerun.training.files import LARGEST, Count, Stored, expect, opened, parse, read_json, versioned, write_folder
from freerun.training.parallelize import full_tensor, shard_like

Spec = tuple[str, tuple[int, ...]]
Specs = Mapping[str, Spec]
"""Name of a tensor -> its number type, as safetensors writes it, and its shape."""

_NAMED = 20

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32",
    torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_BYTES = {name: dtype.itemsize for dtype, name in _DTYPES.items()}


class _Tensor(TypedDict):
    dtype: str
    shape: list[Count]
    data_offsets: list[Count]


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors in the safetensors format."""
    from safetensors.torch import save

    # no dtype or layout is lost; strides are not part of the format
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def unpack(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Return number type and shape of every tensor."""
    return {name: (_DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for name, t in tensors.items()}


def spec_bytes(specs: Specs) -> int:
    """Return the bytes of all numbers."""
    return sum(math.prod(shape) * _BYTES.get(dtype, 8) for dtype, shape in specs.values())


def misfits(specs: Specs, own: Specs, *, cast: bool = False) -> list[str]:
    """Return where tensors differ from those of a model, a line each; [] if they fit.

    >>> misfits({"a": ("F16", (2,))}, {"a": ("F32", (2,)), "b": ("F32", ())})
    ['b is missing', "a holds F16 numbers; this model's are F32"]
    """
    problems = [f"{name} is missing" for name in own if name not in specs]
    problems += [f"{name} is not in this model" for name in specs if name not in own]
    shared = [name for name in own if name in specs]
    for name in shared:
        if specs[name][1] != own[name][1]:
            problems.append(f"{name} has shape {specs[name][1]}; this model's is {own[name][1]}")
    for name in () if cast else shared:
        if specs[name][0] != own[name][0]:
            problems.append(f"{name} holds {specs[name][0]} numbers; this model's are {own[name][0]}")
    more = len(problems) - _NAMED
    return [*problems[:_NAMED], f"and {more} more"] if more > 0 else problems


def _header(stored: Stored, name: str) -> dict[str, Spec]:
    """Return the tensors that a safetensors file names, which fill it; nothing else of it is read."""
    path, size = stored.path / name, stored.size(name)
    with opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, LARGEST):
            raise CheckpointError(f"{path} is damaged: not a safetensors file")
        header = parse(file.read(length), dict[str, Any], str(path))
    header.pop("__metadata__", None)
    entries = expect(header, dict[str, _Tensor], str(path))
    specs = {tensor: (entry["dtype"], tuple(entry["shape"])) for tensor, entry in entries.items()}
    held = size - 8 - length
    if spec_bytes(specs) != held:
        raise CheckpointError(f"{path} is damaged: it names {spec_bytes(specs):,} bytes of numbers and holds {held:,}")
    return specs


def read_tensors(stored: Stored, name: str, problems: Callable[[Specs], list[str]]) -> dict[str, Tensor]:
    """Return the tensors of a file, which is refused before they are read if they do not fit."""
    require_fit(stored, name, problems)
    return unpack(stored.read(name))


def require_fit(stored: Stored, name: str, problems: Callable[[Specs], list[str]]) -> None:
    """Refuse a file whose tensors do not fit, of which its header is read alone."""
    _refuse_misfits(problems(_header(stored, name)), str(stored.path / name))


def _refuse_misfits(problems: list[str], origin: str) -> None:
    if problems:
        raise CheckpointError([f"{origin}: the weights are of another model", *problems])


WEIGHTS = "model.safetensors"


class _Info(TypedDict):
    kind: str
    settings: dict[str, Any]
    describe: dict[str, Any]


def weights_of(model: Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; tied ones once, under their first name."""
    return {name: full_tensor(tensor) for name, tensor in _own(model).items()}


def _own(model: Module) -> dict[str, Tensor]:
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensors[name].detach() for name in first.values()}


def not_finite(model: Module, weights: Mapping[str, Tensor] | None = None) -> list[str]:
    """Return parameters that hold NaN or infinity, and buffers that hold NaN: a mask of -inf is none of them."""
    trained = dict(model.named_parameters())
    broken: list[str] = []
    # a state_dict would shard again what was gathered
    own = {**trained, **dict(model.named_buffers())}
    for name, tensor in (own if weights is None else weights).items():
        each: Any = tensor
        each = each.to_local() if hasattr(each, "to_local") else each
        if each.is_floating_point() and bool((~each.isfinite() if name in trained else each.isnan()).any()):
            broken.append(name)
    return broken


def load_weights(model: Module, tensors: dict[str, Tensor], origin: str, *, cast: bool = False) -> None:
    """Copy weights into a model."""
    own = _own(model)
    _refuse_misfits(misfits(specs_of(tensors), specs_of(own), cast=cast), origin)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(shard_like(tensors[name], tensor))


def write_model(folder: Path, weights: bytes, model: Module, task: Any) -> None:
    """Write the ``model`` folder of a run: weights, and model.json, by which the model is built again."""
    from freerun.models import kind_of

    cls, settings = type(model), getattr(model, "settings", None)
    # a plug-in names its kind on its class: importing the class here would import its library
    named: Any = getattr(cls, "kind", None)
    other = named if isinstance(named, str) else f"{cls.__module__}:{cls.__qualname__}"
    kind = kind_of(model) or other
    arguments = settings() if callable(settings) else {}
    info = {"schema": 1, "kind": kind, "settings": arguments, "describe": task.describe()}
    saved_files: Any = getattr(task, "saved_files", None)
    files = {WEIGHTS: weights} if saved_files is None else saved_files(unpack(weights))
    write_folder(folder / "model", {**files, "model.json": json.dumps(info, ensure_ascii=False, indent=1).encode()})


def read_model(run: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a run's model.json and weights, checked."""
    stored, info = _stored(run)
    where = stored.path / "model.json"
    return info, read_tensors(stored, WEIGHTS, lambda specs: _unlike(specs, info, str(where)))


def check_model_files(run: Path) -> dict[str, Any]:
    """Return a run's model.json after checking that every file of its model folder is as it was written."""
    stored, info = _stored(run)
    for name in stored.files:
        stored.check(name)
    return info


def read_info(run: Path) -> dict[str, Any]:
    """Return a run's model.json."""
    return _stored(run)[1]


def _stored(run: Path) -> tuple[Stored, dict[str, Any]]:
    if not run.is_dir():
        raise CheckpointError(f"{run}: there is no such run folder")
    if not (run / "model").is_dir():
        raise CheckpointError(f"{run} holds no model/: not a run folder, or the run has not been evaluated yet")
    stored = Stored(run / "model")
    for name in ("model.json", WEIGHTS):
        stored.size(name)
    where = stored.path / "model.json"
    info = read_json(where, dict[str, Any])
    stored.check("model.json")
    versioned(info, "schema", 1, str(where))
    expect(info, _Info, str(where))
    return stored, {**info, "settings": with_new_keys({"model": info["settings"]})["model"]}


def _unlike(specs: Specs, info: dict[str, Any], where: str) -> list[str]:
    """Return how weights differ from those of the model that is described, without taking memory for it."""
    from freerun.models import MODELS, make_model, without_weights

    if info["kind"] not in MODELS:
        return []
    settings = info["settings"]
    layers = settings.get("layers")
    if isinstance(layers, int) and layers > len(specs):  # a layer has a tensor at least
        return [f"settings.layers of {where} are {layers}, and there are {len(specs)} tensors"]
    try:
        with without_weights():
            model = make_model(info["kind"], **settings)
    except (UserError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{where}: {error}") from None
    weights = specs_of(_own(model))
    beside = sum(buffer.numel() for buffer in model.buffers())
    if beside > max(2**24, sum(math.prod(shape) for _, shape in weights.values())):
        return [f"{where} describes a model of {beside:,} numbers beside its weights"]
    return misfits(specs, weights)


def start_from(run: Path, model: Module, describe: dict[str, Any]) -> None:
    """Warm start: copy a run's best weights into a model that is to be trained on another way."""
    stored, info = _stored(run)
    refuse_other_vocabularies(run, info["describe"], describe)
    if info["kind"] == "huggingface":
        from freerun.models.pretrained import saved_weights

        check_model_files(run)
        load_weights(model, saved_weights(run / "model"), f"{run}/model")
    else:
        own = specs_of(_own(model))
        load_weights(model, read_tensors(stored, WEIGHTS, lambda specs: misfits(specs, own)), f"{run}/model")
    refuse_not_finite(model, run)


def digest(run: Path) -> str:
    """Return what a run's best weights are known by."""
    path = run / "model" / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"init: {path} is missing: not the folder of a run that has been evaluated")
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def refuse_other_vocabularies(run: Path, theirs: Mapping[str, Any], describe: dict[str, Any]) -> None:
    """Refuse weights that were learnt on other vocabularies."""
    ours = json.loads(json.dumps(describe))

    def size(vocabulary: Any) -> str:
        if isinstance(vocabulary, list):
            return f"{len(vocabulary)} entries ({' '.join(map(str, vocabulary[:4]))} ...)"
        return repr(vocabulary)

    problems = [
        f"{run}: {name} differs: that run has {size(theirs[name])}, this one {size(ours[name])}; ids would "
        "change their meaning: train on the same data, or start afresh"
        for name in ours
        if isinstance(ours[name], list) and name in theirs and theirs[name] != ours[name]
    ]
    if problems:
        raise CheckpointError(problems)


def refuse_not_finite(model: Module, run: Path) -> None:
    """Refuse a run's weights that hold NaN or infinity: whatever is computed with them means nothing."""
    if broken := not_finite(model):
        raise CheckpointError(f"{run}: weights are not finite, and cannot be used: {', '.join(broken[:5])}")
