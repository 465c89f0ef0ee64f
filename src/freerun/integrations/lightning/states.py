"""States of the random generators, of every process, as plain types that any checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

__all__ = ["of_all_processes", "restore", "states"]


def states() -> dict[str, Any]:
    """The states of PyTorch's, NumPy's and Python's global generators in this process.

    >>> before = states()
    >>> one = torch.rand(2), random.random()
    >>> restore(before)
    >>> two = torch.rand(2), random.random()
    >>> bool((one[0] == two[0]).all()), one[1] == two[1]
    (True, True)
    """
    name, words, *rest = np.random.get_state(legacy=True)
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, np.asarray(words).tolist(), *rest),
    }
    if torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore(found: dict[str, Any]) -> None:
    """Put the generators of this process into the states that ``states`` gave."""
    torch.set_rng_state(found["torch"].cpu())
    random.setstate(found["python"])
    name, words, *rest = found["numpy"]
    np.random.set_state((name, np.asarray(words, dtype=np.uint32), *rest))
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"].cpu())


def of_all_processes(own: Any) -> list[Any]:
    """What every process gives, by rank; every process has to ask.

    >>> of_all_processes("mine")
    ['mine']
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
