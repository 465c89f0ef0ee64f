"""From what a head says of a value to the value that is fed back: as said, its mean, or a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import Arguments
from freerun.distributions import HEADS, Distribution
from freerun.distributions import Gaussian as GaussianHead
from freerun.distributions import Quantiles as QuantilesHead
from freerun.distributions import StudentT as StudentTHead
from freerun.draws.base import Noiseless, show
from freerun.errors import UserError
from freerun.keys import uniform

__all__ = ["Expected", "Gaussian", "Point", "QuantileSample", "StudentT", "check_width"]


@dataclass(frozen=True, repr=False)
class Point(Noiseless):
    """A real-valued prediction, fed back as predicted.

    >>> Point().choose(torch.tensor([[0.5, -1.0]]), None)
    tensor([[ 0.5000, -1.0000]])
    """

    values: ClassVar[bool] = True
    name: ClassVar[str] = "point"
    parameters: ClassVar[int] = 1

    __repr__ = show

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, value) -> (n, value)."""
        return outputs


@dataclass(frozen=True, repr=False)
class Expected(Noiseless):
    """The mean of a head's law (of quantiles the median), fed back.

    Args:
        head: ``"gaussian"``, ``"student_t"`` or ``"quantiles"``.

    Raises:
        UserError: another head.

    >>> Expected().choose(torch.tensor([[0.5, -1.0]]), None)  # a mean and a scale
    tensor([[0.5000]])
    """

    head: str = "gaussian"

    values: ClassVar[bool] = True
    name: ClassVar[str] = "expected"

    __repr__ = show

    def __post_init__(self) -> None:
        if not isinstance(self.head, str) or self.head not in HEADS:
            raise UserError(f"head must be one of {', '.join(HEADS)}; got {self.head!r}: for none use draw='point'")

    @property
    def parameters(self) -> int:
        """Numbers a value that the head says."""
        return HEADS[self.head]().parameters

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, numbers * value) -> (n, value)."""
        return HEADS[self.head]().mean(outputs)


class _Sampled(Arguments):
    """A draw from the law that ``distribution`` makes of the outputs."""

    values: ClassVar[bool] = True

    @property
    def distribution(self) -> Distribution:
        raise TypeError(f"{type(self).__name__} must say which law it draws from")  # a subclass forgot to

    @property
    def parameters(self) -> int:
        """Numbers a value that the head says."""
        return self.distribution.parameters

    def noise_size(self, vocab: int) -> int:
        """Uniform numbers an entry; at least 2, which says that they depend on the outputs' width."""
        return max(2, vocab // self.parameters * self.distribution.noise_numbers)

    def noise(self, key: int, rows: Tensor, positions: Tensor, vocab: int) -> Tensor | None:
        """(n, value, numbers) uniforms for entries at (rows, positions), float64; ``vocab`` is the outputs' width."""
        channels = torch.arange(vocab // self.parameters, device=rows.device)[:, None]
        numbers = torch.arange(self.distribution.noise_numbers, device=rows.device)
        return uniform(key, rows[:, None, None], positions[:, None, None], channels, numbers)

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, numbers * value) and noise -> (n, value), differentiable in the outputs."""
        assert noise is not None
        return self.distribution.sample(outputs, noise)


@dataclass(frozen=True, repr=False)
class Gaussian(_Sampled):
    """A sample of a Gaussian head, ``m + s sqrt(-2 log(1 - u1)) cos(2 pi u2)``; its gradient reaches m and s.

    >>> place = torch.tensor([0])
    >>> draw = Gaussian()
    >>> draw.choose(torch.tensor([[0.5, -30.0]]), draw.noise(0, place, place, 2)).round(decimals=2)
    tensor([[0.5000]])
    """

    name: ClassVar[str] = "gaussian"

    __repr__ = show

    @property
    def distribution(self) -> Distribution:
        """The law drawn from."""
        return GaussianHead()


@dataclass(frozen=True, repr=False)
class StudentT(_Sampled):
    """A sample of a Student-t head; its gradient reaches location, scale and degrees of freedom.

    >>> StudentT()
    student_t()
    """

    name: ClassVar[str] = "student_t"

    __repr__ = show

    @property
    def distribution(self) -> Distribution:
        """The law drawn from."""
        return StudentTHead()


@dataclass(frozen=True, repr=False)
class QuantileSample(_Sampled):
    """A sample by linear interpolation between predicted quantiles; never beyond the outer ones.

    Args:
        levels: those of the head.

    >>> QuantileSample()
    quantile_sample()
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    name: ClassVar[str] = "quantile_sample"

    __repr__ = show

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", QuantilesHead(self.levels).levels)

    @property
    def distribution(self) -> Distribution:
        """The law drawn from."""
        return QuantilesHead(self.levels)


_FEEDING = {1: "draw='point'", 2: "draw='expected' (its mean) or 'gaussian' (a sample)"}
_FEEDING[3] = (
    "draw=expected(head='student_t') or 'student_t', for quantiles draw=expected(head='quantiles') or 'quantile_sample'"
)


def check_width(draw: Any, outputs: Tensor, width: int) -> None:
    """Refuse outputs of which a draw cannot make the values that are fed back.

    Args:
        draw: any draw; one that does not say its ``parameters`` (numbers a value) is taken at its word.
        outputs: (..., numbers).
        width: values an entry of the history has.

    Raises:
        UserError: another number of numbers than ``parameters * width``.

    >>> check_width(Point(), torch.zeros(1, 4), 2)
    Traceback (most recent call last):
    freerun.errors.UserError: the model gives 4 numbers a position and 2 are fed back: use draw='expected' (its ...
    """
    numbers, parameters = outputs.shape[-1], getattr(draw, "parameters", None)
    if parameters is None or numbers == parameters * width:
        return
    found = numbers // width if numbers % width == 0 else 0
    use = f"use {_FEEDING[found]}" if found in _FEEDING else f"{draw!r} needs {parameters} a value"
    otherwise = ", or make the model with head='point'" if numbers > width else ""
    raise UserError(f"the model gives {numbers} numbers a position and {width} are fed back: {use}{otherwise}")
