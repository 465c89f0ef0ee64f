"""Tensors in files: what a file says that it holds is compared with what is needed before it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor

from freerun.errors import CheckpointError
from freerun.training.files import Stored
from freerun.training.shapes import LARGEST, Count, expect, opened, parse

__all__ = ["Spec", "Specs", "misfits", "pack", "read_tensors", "require_fit", "spec_bytes", "specs_of", "unpack"]

Spec = tuple[str, tuple[int, ...]]
Specs = Mapping[str, Spec]
"""Name of a tensor -> its number type, as safetensors writes it, and its shape."""

_NAMED = 20
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32",
    torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


class _Tensor(TypedDict):
    dtype: str
    shape: list[Count]
    data_offsets: list[Count]


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
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Number type and shape of every tensor."""
    return {name: (_DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for name, t in tensors.items()}


def spec_bytes(specs: Specs) -> int:
    """Bytes of all numbers."""
    return sum(math.prod(shape) * _BITS.get(dtype, 64) // 8 for dtype, shape in specs.values())


def misfits(found: Specs, own: Specs, *, cast: bool = False) -> list[str]:
    """Where tensors differ from those of a model, a line each; [] where they fit.

    >>> misfits({"a": ("F16", (2,))}, {"a": ("F32", (2,)), "b": ("F32", ())})
    ['b is missing', "a holds F16 numbers; this model's are F32"]
    """
    problems = [f"{name} is missing" for name in own if name not in found]
    problems += [f"{name} is not in this model" for name in found if name not in own]
    both = [(name, *found[name], *own[name]) for name in own if name in found]
    problems += [
        f"{name} has shape {shape}; this model's is {mine}" for name, _, shape, _, mine in both if shape != mine
    ]
    problems += [
        f"{name} holds {dtype} numbers; this model's are {mine}" for name, dtype, _, mine, _ in both
        if dtype != mine and not cast
    ]  # fmt: skip
    more = len(problems) - _NAMED
    return [*problems[:_NAMED], f"and {more} more"] if more > 0 else problems


def _header(stored: Stored, name: str) -> dict[str, Spec]:
    """What a safetensors file says that it holds, which is as much as it has; nothing else of it is read."""
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
    """The tensors of a file that fit, which is known before they are read.

    Args:
        stored: the folder.
        name: of the file.
        problems: what is wrong with what the file says that it holds.

    Raises:
        CheckpointError: they do not fit, or the file is damaged.
    """
    require_fit(stored, name, problems)
    return unpack(stored.read(name))


def require_fit(stored: Stored, name: str, problems: Callable[[Specs], list[str]]) -> None:
    """Refuse a file whose tensors do not fit, of which its header is read alone.

    Raises:
        CheckpointError: as for ``read_tensors``.
    """
    if wrong := problems(_header(stored, name)):
        raise CheckpointError([f"{stored.path / name}: the weights are of another model", *wrong])
