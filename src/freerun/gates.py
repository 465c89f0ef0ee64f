"""Where gold is kept: a gate returns ``keep``, (batch, time) bool, True = gold; a soft one gives shares of gold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.arguments import Arguments, is_number, nearest, refused
from freerun.batch import Batch, shape_of
from freerun.errors import UserError
from freerun.keys import uniform

__all__ = [
    "GATES", "Batchwise", "Blend", "Confidence", "DecodingSteps", "Every", "Gate", "Prefix", "Sequence", "Timestep",
    "Token", "batch", "blend", "check", "confidence", "confidences", "decoding_steps", "every", "is_soft", "kept",
    "needs_confidence", "prefix", "resolve", "sequence", "step", "token",
]  # fmt: skip


@dataclass(frozen=True)
class Blend(Arguments):
    """No choice: every entry is ``teacher_forcing_ratio * gold + (1 - teacher_forcing_ratio) * own``. For values only.

    The ratio is then the share of gold *in* each entry (the alpha of generalised teacher forcing), not P(gold); at 1
    and 0 both are teacher forcing and free running, bit for bit.

    Reference: Doya 1992; Hess, Monfared, Brenner and Durstewitz 2023, Generalized teacher forcing for learning chaotic
    dynamics, ICML, arXiv:2306.04406.

    >>> values = torch.zeros(1, 2, 3)
    >>> Blend()(Batch(values, values, torch.ones(1, 2, dtype=torch.bool)), 0.25, key=0)
    tensor([[0.2500, 0.2500]])
    """

    soft: ClassVar[bool] = True

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) shares of gold, of the history's type."""
        return torch.full(batch.mask.shape, teacher_forcing_ratio, dtype=batch.history.dtype, device=batch.mask.device)


def is_soft(gate: Any) -> bool:
    """True if a gate returns shares of gold instead of a choice."""
    return bool(getattr(gate, "soft", False))


def positions(batch: Batch) -> Tensor:
    """(time,) positions of a batch, from 0."""
    return torch.arange(batch.time, device=batch.history.device)


def _spread(batch: Batch, keep: Tensor) -> Tensor:
    return keep.expand(batch.size, batch.time)


@dataclass(frozen=True)
class Token(Arguments):
    """A choice for every entry: ``keep = u(row, position) < teacher_forcing_ratio`` (Bengio et al. 2015).

    >>> ids = torch.zeros(2, 3, dtype=torch.long)
    >>> Token()(Batch(ids, ids, ids == 0), 1.0, key=0).all()
    tensor(True)
    """

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        if teacher_forcing_ratio >= 1:  # every number drawn is below 1: none need be drawn
            return torch.ones_like(batch.mask)
        return uniform(key, batch.row_numbers[:, None], positions(batch)) < teacher_forcing_ratio


@dataclass(frozen=True)
class Timestep(Arguments):
    """A choice for every position, shared by all rows (as in several tutorials)."""

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        return _spread(batch, (uniform(key, positions(batch)) < teacher_forcing_ratio)[None])


@dataclass(frozen=True)
class Sequence(Arguments):
    """A choice for every row: full sequences of gold or of own entries."""

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        return _spread(batch, (uniform(key, batch.row_numbers) < teacher_forcing_ratio)[:, None])


@dataclass(frozen=True)
class Batchwise(Arguments):
    """One choice for the full batch."""

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        u = uniform(key, torch.zeros(1, 1, dtype=torch.long, device=batch.history.device))
        return _spread(batch, u < teacher_forcing_ratio)


@dataclass(frozen=True)
class Prefix(Arguments):
    """Gold first, own after: of a row's n eligible entries the first ``floor(ratio * n)`` are kept.

    Deterministic (the iteration-scale "D" curricula of Teutsch and Maeder 2022; MIXER's roll-in).
    """

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        count = batch.replaceable.cumsum(1)
        # a nominal 0.3 * 10 is 2.999...: rounding noise must not cost an entry
        kept = (batch.replaceable.sum(1, keepdim=True).double() * teacher_forcing_ratio + 1e-9).floor()
        return count <= kept


@dataclass(frozen=True)
class Every(Arguments):
    """Gold every ``tau`` positions (positions tau-1, 2 tau-1, ...), between them a choice for every entry.

    With ``teacher_forcing_ratio = 0`` it is sparse teacher forcing (Mikhaeil, Monfared and Durstewitz 2022).

    Args:
        tau: period in positions, at least 2 (1 would keep everything).
    """

    tau: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.tau, bool) or not isinstance(self.tau, int) or self.tau < 2:
            raise UserError(
                f"tau must be at least 2 positions, a whole number, as 1 would keep everything; got {self.tau!r}"
            )

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        return Token()(batch, teacher_forcing_ratio, key) | ((positions(batch) + 1) % self.tau == 0)


@dataclass(frozen=True)
class DecodingSteps(Arguments):
    """Gold the less often the later the entry: P(gold) falls with the decoding step (Liu et al., EMNLP 2021).

    ``keep = u(row, position) < g(n (1 - teacher_forcing_ratio))``, where n = 1, 2, ... counts a row's eligible entries.
    The paper counts the decoder's *inputs* from 0, and its input 0 is the start symbol: that one is in no history, so
    the first entry is input 1. With ``teacher_forcing_ratio = 0`` it is the schedule of decoding steps alone; with a
    falling schedule it is the paper's composite ``g(n (1 - f(step)))`` of both. The ratio is then f, not P(gold), but
    at 1 everything is kept.

    Reference: Liu, Meng, Chen, Xu and Zhou 2021, Scheduled sampling based on decoding steps for neural machine
    translation, EMNLP, arXiv:2108.12963.

    Args:
        shape: ``"exponential"``: g(n) = k^n; ``"linear"``: g(n) = max(floor, 1 - n / length);
            ``"inverse_sigmoid"``: g(n) = k / (k + exp(n / k)).
        k: of exponential (0 < k < 1, default 0.99) and inverse_sigmoid (k >= 1, default 20).
        length: of linear, in decoding steps; default 128.
        floor: of linear, in [0, 1); default 0.

    Raises:
        UserError: for an argument out of range, or one that the shape does not have.

    >>> DecodingSteps("linear", length=4).gold_at(torch.arange(1, 6)).tolist()
    [0.75, 0.5, 0.25, 0.0, 0.0]
    """

    shape: str = "exponential"
    k: float | None = None
    length: int | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "exponential", "inverse_sigmoid"):
            raise UserError(f"shape must be one of linear, exponential, inverse_sigmoid; got {self.shape!r}")
        linear = self.shape == "linear"
        foreign = ("k",) if linear else ("length", "floor")
        problems = [
            f"{name} has no effect with shape={self.shape!r}; leave it out"
            for name in foreign
            if getattr(self, name) is not None
        ]
        if not linear and self.k is not None:
            low, high, allowed = (
                (0, 1, "strictly between 0 and 1") if self.shape == "exponential" else (1, None, "1 or more")
            )
            fine = is_number(self.k) and (self.k >= 1 if high is None else low < self.k < high)
            problems += [] if fine else [f"k must be {allowed} with shape={self.shape!r}; got {self.k!r}"]
        if linear and self.length is not None and (not is_number(self.length) or self.length < 1):
            problems.append(f"length must be at least 1 decoding step; got {self.length!r}")
        if linear and self.floor is not None and not (is_number(self.floor) and 0 <= self.floor < 1):
            problems.append(f"floor must lie in [0, 1); got {self.floor!r}")
        if problems:
            raise UserError(problems)

    def gold_at(self, steps: Tensor) -> Tensor:
        """g of (possibly scaled) decoding steps, float64 in [0, 1]."""
        steps = steps.double()
        if self.shape == "linear":
            return (1 - steps / (self.length or 128)).clamp_min(self.floor or 0.0)
        if self.shape == "exponential":
            return (0.99 if self.k is None else self.k) ** steps
        k = 20.0 if self.k is None else self.k
        return torch.sigmoid(math.log(k) - steps / k)  # k / (k + exp(n / k)), without its overflow

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor:
        """(batch, time) bool, True = gold."""
        if teacher_forcing_ratio >= 1:  # an inverse sigmoid begins below 1
            return torch.ones_like(batch.mask)
        steps = batch.replaceable.cumsum(1)
        return uniform(key, batch.row_numbers[:, None], positions(batch)) < self.gold_at(
            steps * (1 - teacher_forcing_ratio)
        )


@dataclass(frozen=True)
class Confidence(Arguments):
    """Gold where the model is unsure of what comes next (Liu et al., Findings of ACL 2021).

    ``keep_t = c_{t+1} <= t_golden``, where ``c_t = p(y_t | y_<t, x)`` is the confidence on gold history: as published,
    entry t is decided by the prediction that is made *from* it. What is not kept for that is kept by a draw with
    probability ``teacher_forcing_ratio`` (the paper: 0). Needs one pass on gold history, which the method makes. The
    last entry of a row predicts nothing and is kept.

    Reference: Liu, Meng, Chen, Xu and Zhou 2021, Confidence-aware scheduled sampling for neural machine translation,
    Findings of ACL-IJCNLP, arXiv:2107.10427.

    Args:
        t_golden: confidence up to which gold is kept, in [0, 1).

    Raises:
        UserError: for a threshold out of range, or where a method passes it no confidence.

    >>> ids = torch.zeros(1, 3, dtype=torch.long)
    >>> Confidence(0.9)(Batch(ids, ids, ids == 0), 0.0, 0, torch.tensor([[0.2, 0.95, 0.9]]))
    tensor([[False,  True,  True]])
    """

    t_golden: float = 0.9

    needs_confidence: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_number(self.t_golden) or not 0 <= self.t_golden < 1:
            raise UserError(f"t_golden must lie in [0, 1), as 1 would keep everything; got {self.t_golden!r}")

    def __call__(
        self, batch: Batch, teacher_forcing_ratio: float, key: int, confidence: Tensor | None = None
    ) -> Tensor:
        """(batch, time) bool, True = gold."""
        if confidence is None:
            raise UserError(
                "gate=confidence(...) needs the model's confidence on gold history: use it with a method that measures "
                "it (scheduled_sampling, parallel, two_pass), or call it with confidence=(batch, time)"
            )
        return Token()(batch, teacher_forcing_ratio, key) | (self.following(batch, confidence) <= self.t_golden)

    @staticmethod
    def following(batch: Batch, confidence: Tensor) -> Tensor:
        """(batch, time): the confidence in what comes after each entry; 0 where nothing that counts does."""
        return F.pad(torch.where(batch.mask, confidence, 0.0)[:, 1:], (0, 1))


def confidences(outputs: Tensor, batch: Batch) -> Tensor:
    """``p(y_t | what the outputs were computed on)``: (batch, time), without gradient; 0 outside the mask.

    Args:
        outputs: (batch, time, vocab) logits.
        batch: its targets are the y.

    Raises:
        UserError: where targets are values, which have no probability.
    """
    if not batch.is_discrete:
        raise UserError("confidence is the probability of a symbol, and these targets are values: use another gate")
    logits = outputs.detach()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    chosen = logits.softmax(-1).gather(-1, batch.targets.masked_fill(~batch.mask, 0)[..., None])[..., 0]
    return torch.where(batch.mask, chosen, 0.0)


def needs_confidence(gate: Any) -> bool:
    """True if a gate needs the model's confidence on gold history."""
    return bool(getattr(gate, "needs_confidence", False))


class Gate(Protocol):
    """The rule of where gold is kept.

    ``gate(batch, teacher_forcing_ratio, key)`` gives (batch, time) bool; entries that are not eligible are kept
    whatever it returns. A function of the batch's row numbers and positions, never of its size or padding.
    """

    def __call__(self, batch: Batch, teacher_forcing_ratio: float, key: int) -> Tensor: ...


token, step, sequence, batch, prefix, every = Token, Timestep, Sequence, Batchwise, Prefix, Every


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
    """The problems of a ``gate`` argument, if any.

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
        f"gate must be one of {', '.join(GATES)} or a gate object; got {gate!r}"
        f"{f': did you mean {meant!r}?' if meant else why}"
    ]


_RENAMED = {"timestep": "step", "batchwise": "batch"}


def __getattr__(name: str) -> Any:
    help = f"; it is called gates.{_RENAMED[name]}" if name in _RENAMED else ""
    raise AttributeError(f"module 'freerun.gates' has no attribute {name!r}{help}")
