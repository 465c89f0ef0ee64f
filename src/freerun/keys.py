"""Randomness as a function of (key, label, step, row, position): counter-based, nothing to save.

Numbers come from SplitMix64's finaliser applied to a counter (Steele, Lea, Flood 2014). A longer sequence has
the same prefix, a second pass sees the first one's noise, ranks and micro-batches do not enter.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError, whole

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_S_GOLDEN, _S1, _S2 = (number - (1 << 64) for number in (_GOLDEN, _M1, _M2))  # the same 64 bits, signed


def _mixed(words: list[int]) -> int:
    """Words of 64 bits, one mixed into the other."""
    state = 0
    for number, word in enumerate(words):
        value = word ^ _GOLDEN if number else (word + _GOLDEN) & _MASK
        for again in range(2 if number else 1):
            value = (state + _GOLDEN + value) & _MASK if again else value
            value = ((value ^ (value >> 30)) * _M1) & _MASK
            value = ((value ^ (value >> 27)) * _M2) & _MASK
            value ^= value >> 31
        state = value
    return state


def key_number(key: Any) -> int:
    """Return the key of an argument: any whole number, of whatever integer type.

    Raises:
        UserError: another value.
    """
    number = whole(key)
    if number is None:
        raise UserError(f"key must be a whole number, from which all randomness follows; got {key!r}")
    return number


def _word(label: Any) -> int:
    number = label if isinstance(label, str) else whole(label)
    if number is None:
        raise UserError(f"a key is folded with whole numbers and words; got {label!r}")
    return number if isinstance(number, int) and 0 <= number <= _MASK else _hashed(number)


@lru_cache(1024)
def _hashed(label: int | str) -> int:
    """64 bits of a word, or of a number that they do not hold: 2**64 is another key than 0."""
    person = b"" if isinstance(label, str) else b"number"
    return int.from_bytes(hashlib.blake2b(str(label).encode(), digest_size=8, person=person).digest(), "little")


def fold(key: int, *labels: int | str) -> int:
    """Return a new 63-bit key from a key and labels, in order.

    Args:
        key: any integer; those beyond 64 bits are hashed.
        labels: integers (a step, a seed) or words (a purpose).

    >>> fold(0, "gate", 3) == fold(0, "gate", 3), fold(0, "gate", 3) == fold(0, "draw", 3)
    (True, False)
    """
    words = (key if type(key) is int else key_number(key), *labels)
    known = (_hashed(word) if type(word) is str else word for word in words)
    return _mixed([word if type(word) is int and 0 <= word <= _MASK else _word(word) for word in known]) >> 1


def _counted(counter: Any) -> Tensor:
    number = counter if isinstance(counter, Tensor) else whole(counter)
    if number is None or (isinstance(number, Tensor) and number.dtype not in (torch.int64, torch.int32)):
        kind = counter.dtype if isinstance(counter, Tensor) else type(counter).__name__
        raise UserError(f"counters must be integers or int64 tensors (rows, positions); got {kind}")
    return torch.as_tensor(number)


def bits(key: int, *counters: Tensor | int) -> Tensor:
    """Return 64 random bits (as int64) for every combination of counters, broadcast together.

    Args:
        key: any integer.
        counters: int64 tensors, e.g. rows (batch, 1) and positions (time,).

    >>> a = bits(7, torch.arange(2)[:, None], torch.arange(5))
    >>> b = bits(7, torch.arange(2)[:, None], torch.arange(9))
    >>> bool((a == b[:, :5]).all())
    True
    """
    state: Any = _mixed([key if type(key) is int and 0 <= key <= _MASK else _word(key_number(key))])
    state -= (state >> 63) << 64
    for counter in counters:
        known = isinstance(counter, Tensor) and counter.dtype == torch.int64
        value = state + ((counter if known else _counted(counter)) + 1) * _S_GOLDEN
        # int64 wraps; >> copies the sign bit, so the shifted-in bits are masked away
        value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * _S1
        value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * _S2
        state = value ^ ((value >> 31) & 0x1FFFFFFFF)
    return torch.as_tensor(state)


def uniform(key: int, *counters: Tensor | int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return uniform numbers in [0, 1), one for every combination of counters.

    float64 carries 53 bits, float32 the first 24 of the same bits: both are the same number, rounded down, and
    neither is ever 1.

    >>> u = uniform(0, torch.arange(3)[:, None], torch.arange(4))
    >>> u.shape, bool((u >= 0).all() and (u < 1).all())
    (torch.Size([3, 4]), True)
    """
    if dtype not in (torch.float64, torch.float32):
        raise UserError(f"dtype must be torch.float64 or torch.float32; got {dtype}")
    raw = bits(key, *counters)
    if dtype == torch.float64:
        return ((raw >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53
    return ((raw >> 40) & ((1 << 24) - 1)).to(torch.float32) * 2.0**-24
