"""Where gold is kept: a gate gives ``keep``, (batch, time) bool, True = gold; a soft one gives shares of gold."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from freerun.arguments import nearest, refused
from freerun.batch_problems import shape_of
from freerun.errors import UserError
from freerun.gates.coins import Batchwise, Every, Prefix, Sequence, Timestep, Token
from freerun.gates.soft import Blend, is_soft
from freerun.gates.steps import DecodingSteps
from freerun.gates.sure import Confidence, confidences, needs_confidence
from freerun.types import Batch

__all__ = [
    "GATES", "Batchwise", "Blend", "Confidence", "DecodingSteps", "Every", "Gate", "Prefix", "Sequence", "Timestep",
    "Token", "batchwise", "blend", "check", "confidence", "confidences", "decoding_steps", "every", "is_soft", "kept",
    "needs_confidence", "prefix", "resolve", "sequence", "timestep", "token",
]  # fmt: skip


class Gate(Protocol):
    """The rule that says where gold is kept.

    ``gate(batch, teacher_forcing_ratio, key)`` gives (batch, time) bool; entries that are not eligible are kept
    whatever it says. A function of the batch's row numbers and positions, never of its size or padding.
    """

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor: ...


token, timestep, sequence, batchwise, prefix, every = Token, Timestep, Sequence, Batchwise, Prefix, Every
decoding_steps, confidence, blend = DecodingSteps, Confidence, Blend

GATES: dict[str, type[Any]] = {
    "token": Token,
    "step": Timestep,
    "sequence": Sequence,
    "batch": Batchwise,
    "prefix": Prefix,
    "every": Every,
    "decoding_steps": DecodingSteps,
    "confidence": Confidence,
    "blend": Blend,
}


def resolve(gate: str | Gate) -> Gate:
    """A gate from its name, or the gate itself.

    >>> resolve("token")
    Token()
    """
    if isinstance(gate, str) and gate in GATES:
        return GATES[gate]()
    if callable(gate):
        return gate
    raise UserError(check(gate))


def kept(keep: Any, batch: Batch) -> Tensor:
    """What a gate returned, if it is (batch, time) bool; a UserError else."""
    if not isinstance(keep, Tensor) or keep.shape != batch.mask.shape or keep.dtype != torch.bool:
        raise UserError(f"a gate returns keep, a bool tensor {tuple(batch.mask.shape)}; got {shape_of(keep)}")
    return keep


def check(gate: Any) -> list[str]:
    """The problems of a ``coin`` argument, if any.

    >>> check("tokn")[0][-21:]
    "did you mean 'token'?"
    """
    if isinstance(gate, str) and gate in GATES:
        return []
    why = refused(gate, 3)
    if callable(gate) and not why:
        return []
    meant = nearest(gate, GATES) if isinstance(gate, str) else None
    return [
        f"coin must be one of {', '.join(GATES)} or a gate object; got {gate!r}"
        f"{f': did you mean {meant!r}?' if meant else why}"
    ]
