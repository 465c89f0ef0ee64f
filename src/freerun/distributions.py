"""Heads for real values, as pure functions of outputs: Gaussian, Student-t, quantiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from freerun.arguments import Arguments, Range, between
from freerun.batch import must_be
from freerun.errors import UserError

_SMALLEST_SCALE = 1e-4


class Distribution(Protocol):
    """Numbers a value, laid out parameters first: (..., parameters * V), of which the first V are locations.

    ``noise_numbers`` uniform numbers a value make one draw.
    """

    noise_numbers: ClassVar[int]

    @property
    def parameters(self) -> int: ...
    def split(self, outputs: Tensor) -> Tensor: ...
    def mean(self, outputs: Tensor) -> Tensor: ...
    def sample(self, outputs: Tensor, uniforms: Tensor) -> Tensor: ...
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor: ...
    def quantile(self, outputs: Tensor, levels: Sequence[float]) -> Tensor: ...


def _split(outputs: Tensor, parameters: int) -> Tensor:
    must_be("", "real", outputs=outputs)
    if outputs.shape[-1] % parameters:
        raise UserError(
            f"a head of {parameters} numbers a value needs outputs whose last dimension is a multiple of them; got "
            f"{outputs.shape[-1]}"
        )
    if outputs.dtype in (torch.bfloat16, torch.float16):
        outputs = outputs.float()  # tails and logarithms need the digits
    return outputs.unflatten(-1, (parameters, -1))


def _scale(raw: Tensor) -> Tensor:
    return F.softplus(raw) + _SMALLEST_SCALE


def _exponential(uniforms: Tensor, like: Tensor) -> Tensor:
    # -log(1 - u) in float64, where 1 - u is never 0; and never 0 itself, as its root has no gradient there
    return (-torch.log1p(-uniforms.double())).clamp_min(2.0**-53).to(like.dtype)


def _levels(levels: Sequence[float], like: Tensor) -> Tensor:
    """(levels, 1) float64."""
    Range(0, 1, ends="()").check(**{f"levels[{n}]": level for n, level in enumerate(levels)})
    return torch.tensor(tuple(levels), dtype=torch.float64, device=like.device)[:, None]


def _gauss_legendre(device: torch.device, number: int = 48) -> tuple[Tensor, Tensor]:
    """Points and weights of a mean over [0, 1], exact for polynomials (Golub and Welsch 1969)."""
    n = torch.arange(1, number, dtype=torch.float64)
    beside = n / (4 * n.square() - 1).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return ((points + 1) / 2).to(device), vectors[0].square().to(device)


class _Located(Arguments):
    """A law of which the first number a value is its mean."""

    noise_numbers: ClassVar[int] = 2
    _numbers: ClassVar[int]

    @property
    def parameters(self) -> int:
        """Numbers a value."""
        return self._numbers

    def split(self, outputs: Tensor) -> Tensor:
        """(..., numbers * V) -> (..., numbers, V), raw."""
        return _split(outputs, self._numbers)

    def mean(self, outputs: Tensor) -> Tensor:
        """(..., numbers * V) -> (..., V)."""
        return self.split(outputs)[..., 0, :]

    def moved(self, outputs: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """(..., numbers * V), (..., V), (..., V) -> the law of ``shift + scale x``; the floor of s stays as it is."""
        m, raw, *others = self.split(outputs).unbind(-2)
        wide = scale * F.softplus(raw)
        # the inverse of softplus, which is the identity far out
        raw = torch.where(wide > 20, wide, wide.clamp_max(20).expm1().clamp_min(torch.finfo(wide.dtype).tiny).log())
        return torch.stack([m * scale + shift, raw, *others], -2).flatten(-2)


@dataclass(frozen=True)
class Gaussian(_Located):
    """``N(m, s^2)`` for every value, ``s = softplus(raw) + 1e-4``; outputs (..., 2 * V): all m, then all raw.

    >>> outputs = torch.tensor([[1.0, 0.5413]])  # softplus(0.5413) = 1
    >>> Gaussian().mean(outputs), round(float(Gaussian().loss(outputs, torch.tensor([[1.0]]))), 3)
    (tensor([[1.]]), 0.919)
    """

    _numbers: ClassVar[int] = 2

    def sample(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """(..., 2 * V) and uniforms (..., V, 2) -> (..., V): ``m + s sqrt(-2 log(1 - u1)) cos(2 pi u2)``."""
        m, raw = self.split(outputs).unbind(-2)
        turn = (2 * math.pi * uniforms[..., 1]).cos().to(m.dtype)
        return m + _scale(raw) * (2 * _exponential(uniforms[..., 0], m)).sqrt() * turn

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(..., 2 * V) and targets (..., V) -> (..., V): the negative log-density, in nats."""
        m, raw = self.split(outputs).unbind(-2)
        scale = _scale(raw)
        return 0.5 * ((targets - m) / scale).square() + scale.log() + 0.5 * math.log(2 * math.pi)

    def quantile(self, outputs: Tensor, levels: Sequence[float]) -> Tensor:
        """(..., 2 * V) -> (..., levels, V): of the next value, after the history."""
        m, raw = self.split(outputs)[..., None, :].unbind(-3)
        return m + _scale(raw) * torch.special.ndtri(_levels(levels, m)).to(m.dtype)


@dataclass(frozen=True)
class StudentT(_Located):
    """``m + s T`` with T of Student's law; outputs (..., 3 * V): all m, all raw scales, all raw degrees of freedom.

    ``s = softplus(raw) + 1e-4``, ``df = 2 + softplus(raw)``: the variance is always finite.

    >>> outputs = torch.tensor([[1.0, 0.5413, -30.0]])
    >>> StudentT().mean(outputs), round(float(StudentT().loss(outputs, torch.tensor([[1.0]]))), 3)
    (tensor([[1.]]), 1.04)

    Reference: Bailey 1994, Mathematics of Computation 62, for the polar draw.
    """

    _numbers: ClassVar[int] = 3

    def sample(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """(..., 3 * V), uniforms (..., V, 2) -> (..., V): ``m + s sqrt(df ((1-u1)^(-2/df) - 1)) cos(2 pi u2)``."""
        m, raw, freedom = self.split(outputs).unbind(-2)
        df = 2 + F.softplus(freedom)
        radius = (df * (2 / df * _exponential(uniforms[..., 0], m)).expm1()).sqrt()
        return m + _scale(raw) * radius * (2 * math.pi * uniforms[..., 1]).cos().to(m.dtype)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(..., 3 * V) and targets (..., V) -> (..., V): the negative log-density, in nats."""
        m, raw, freedom = self.split(outputs).unbind(-2)
        scale, df = _scale(raw), 2 + F.softplus(freedom)
        away = ((targets - m) / scale).square()
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (math.pi * df).log()
        return scale.log() - constant + (df + 1) / 2 * (away / df).log1p()

    def quantile(self, outputs: Tensor, levels: Sequence[float]) -> Tensor:
        """(..., 3 * V) -> (..., levels, V): of the next value, after the history."""
        m, raw, freedom = self.split(outputs)[..., None, :].unbind(-3)
        df = 2 + F.softplus(freedom.double())
        # T = sqrt(df) tan(angle), whose density is in proportion to cos(angle)^(df - 1)
        share = _levels(levels, m) - 0.5
        mass, angle = share.abs().expand(torch.broadcast_shapes(share.shape, df.shape)), torch.zeros_like(df)
        height = (torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2)).exp() / math.sqrt(math.pi)
        at, weight = _gauss_legendre(m.device)
        for _ in range(40):  # Newton's steps, which rise to the root of a concave function
            below = height * angle * ((angle[..., None] * at).cos() ** (df[..., None] - 1) @ weight)
            angle = angle + (mass - below) / (height * angle.cos() ** (df - 1))
        return m + _scale(raw) * (share.sign() * df.sqrt() * angle.tan()).to(m.dtype)


@dataclass(frozen=True)
class Quantiles(Arguments):
    """One number for every level and value; outputs (..., levels * V): V of the first level, V of the next.

    Args:
        levels: rising, in (0, 1), 0.5 among them: the median is what stands for the mean.

    Raises:
        UserError: levels that are none.

    >>> outputs = torch.tensor([[-1.0, 0.0, 3.0]])
    >>> Quantiles().mean(outputs), Quantiles().sample(outputs, torch.tensor([[[0.7]]]))
    (tensor([[0.]]), tensor([[1.5000]]))

    What it is not: a whole law. Between levels the inverse distribution function is taken as linear and beyond the
    outer ones as flat, so that draws never leave them. Levels that cross, as they may after few updates, are put in
    order where the law is read (mean, draws, quantiles), and left in the outputs, which the loss reads.

    Reference: Chernozhukov, Fernandez-Val and Galichon 2010 (rearrangement), Econometrica 78, arXiv:0704.3649.
    """

    levels: tuple[float, ...] = between(0, 1, (0.1, 0.5, 0.9), ends="()")

    noise_numbers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if isinstance(self.levels, list):
            object.__setattr__(self, "levels", tuple(self.levels))
        super().__post_init__()

    def problems(self) -> Iterable[str]:
        """Return what is wrong with the levels together, a line each."""
        if not isinstance(self.levels, tuple):
            yield f"levels must be numbers in (0, 1), e.g. (0.1, 0.5, 0.9); got {self.levels!r}"
            return
        if any(a >= b for a, b in pairwise(self.levels)):
            yield f"levels must rise; got {self.levels}"
        if 0.5 not in self.levels:
            yield f"levels must hold the median 0.5, which is fed back as the mean; got {self.levels}"

    @property
    def parameters(self) -> int:
        """Numbers a value: as many as levels."""
        return len(self.levels)

    def split(self, outputs: Tensor) -> Tensor:
        """(..., levels * V) -> (..., levels, V)."""
        return _split(outputs, self.parameters)

    def ordered(self, outputs: Tensor) -> Tensor:
        """(..., levels * V) -> (..., levels, V), rising along the levels."""
        return self.split(outputs).sort(-2).values

    def mean(self, outputs: Tensor) -> Tensor:
        """(..., levels * V) -> (..., V): the median."""
        return self.ordered(outputs)[..., self.levels.index(0.5), :]

    def moved(self, outputs: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """(..., levels * V), (..., V), (..., V) -> the quantiles of ``shift + scale x``."""
        return (self.split(outputs) * scale[..., None, :] + shift[..., None, :]).flatten(-2)

    def sample(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """(..., levels * V) and uniforms (..., V, 1) -> (..., V): the inverse distribution function."""
        values = self.ordered(outputs)
        if self.parameters == 1:
            return values[..., 0, :]
        levels = torch.tensor(self.levels, dtype=torch.float64, device=outputs.device)
        u = uniforms[..., 0].double().clamp(self.levels[0], self.levels[-1])
        below = torch.bucketize(u, levels[1:-1], right=True)
        share = ((u - levels[below]) / (levels[below + 1] - levels[below])).to(values.dtype)
        low, high = (values.gather(-2, part[..., None, :])[..., 0, :] for part in (below, below + 1))
        return low + share * (high - low)

    def quantile(self, outputs: Tensor, levels: Sequence[float]) -> Tensor:
        """(..., own levels * V) -> (..., levels, V): those between its own are on the line, those beyond are flat."""
        at = _levels(levels, outputs)[..., None].expand(-1, outputs.shape[-1] // self.parameters, 1)
        return self.sample(outputs[..., None, :].expand(*outputs.shape[:-1], len(levels), -1), at.expand(
            *outputs.shape[:-1], -1, -1, -1))  # fmt: skip

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(..., levels * V) and targets (..., V) -> (..., V): the pinball loss, summed over levels."""
        missed = targets[..., None, :] - self.split(outputs)
        levels = torch.tensor(self.levels, dtype=missed.dtype, device=missed.device)[:, None]
        return torch.maximum(levels * missed, (levels - 1) * missed).sum(-2)


HEADS: dict[str, type[Any]] = {"gaussian": Gaussian, "student_t": StudentT, "quantiles": Quantiles}
Head = Literal["point", "gaussian", "student_t", "quantiles"]
