"""Randomness as a function of (key, label, step, row, position): counter-based, nothing to save.

Numbers come from SplitMix64's finaliser applied to a counter (Steele, Lea, Flood 2014). A longer sequence has
the same prefix, a second pass sees the first one's noise, ranks and micro-batches do not enter.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["bits", "fold", "uniform"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * _M1) & _MASK
    value = ((value ^ (value >> 27)) * _M2) & _MASK
    return value ^ (value >> 31)


def _word(label: int | str) -> int:
    if isinstance(label, str):
        return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little")
    return int(label) & _MASK


def fold(key: int, *labels: int | str) -> int:
    """A new 63-bit key from a key and labels, in order.

    Args:
        key: any integer.
        labels: integers (a step, a seed) or words (a purpose).

    >>> fold(0, "gate", 3) == fold(0, "gate", 3), fold(0, "gate", 3) == fold(0, "draw", 3)
    (True, False)
    """
    state = _mix((int(key) + _GOLDEN) & _MASK)
    for label in labels:
        state = _mix((state + _GOLDEN + _mix(_word(label) ^ _GOLDEN)) & _MASK)
    return state >> 1


def _mix_tensor(value: Tensor) -> Tensor:
    # int64 wraps; >> copies the sign bit, so the shifted-in bits are masked away
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * _signed(_M1)
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * _signed(_M2)
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def bits(key: int, *counters: Tensor | int) -> Tensor:
    """64 random bits (as int64) for every combination of counters, broadcast together.

    Args:
        key: any integer.
        counters: int64 tensors, e.g. rows (batch, 1) and positions (time,).

    >>> a = bits(7, torch.arange(2)[:, None], torch.arange(5))
    >>> b = bits(7, torch.arange(2)[:, None], torch.arange(9))
    >>> bool((a == b[:, :5]).all())
    True
    """
    state: Tensor | int = _signed(_mix((int(key) + _GOLDEN) & _MASK))
    for counter in counters:
        state = _mix_tensor(state + (torch.as_tensor(counter) + 1) * _signed(_GOLDEN))
    return torch.as_tensor(state)


def uniform(key: int, *counters: Tensor | int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform numbers in [0, 1), one for every combination of counters.

    float64 carries 53 bits, float32 the first 24 of the same bits: both are the same number, rounded down, and
    neither is ever 1.

    >>> u = uniform(0, torch.arange(3)[:, None], torch.arange(4))
    >>> u.shape, bool((u >= 0).all() and (u < 1).all())
    (torch.Size([3, 4]), True)
    """
    raw = bits(key, *counters)
    if dtype == torch.float64:
        return ((raw >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53
    return ((raw >> 40) & ((1 << 24) - 1)).to(torch.float32) * 2.0**-24
