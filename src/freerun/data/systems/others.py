"""A delay equation, a partial differential equation and a driven pendulum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from freerun.data.integrate import Array, Spectrum, etdrk4, exponential, rk4
from freerun.data.systems.simulated import Simulated, checked_positive, published, random_numbers, stacked
from freerun.errors import UserError

__all__ = ["KuramotoSivashinsky", "MackeyGlass", "Pendulum"]


@dataclass(frozen=True)
class MackeyGlass(Simulated):
    """Mackey and Glass' blood cells: ``dx = beta x_tau / (1 + x_tau^n) - gamma x``, x_tau = x(t - tau), by Euler.

    The state is the last ``tau / dt + 1`` values, oldest first; only the newest is observed.

    Args:
        beta: production.
        gamma: loss.
        tau: delay, in units of time.
        n: how sharply production falls.
        dt: length of a step. The published exponent is the equation's; with Euler's steps of 1 it measures 0.0084
            (``largest_exponent``), with steps of 0.1 the published 0.006.

    Raises:
        UserError: the delay is no whole number of steps.

    >>> MackeyGlass().simulate(2, 5).shape
    (2, 5, 1)

    Mackey and Glass (1977); exponent as in Teutsch and Maeder (2022). It is *not* the equation solved exactly: Euler's
    steps of 1 are the benchmark.
    """

    beta: float = 0.2
    gamma: float = 0.1
    tau: float = 17.0
    n: float = 10.0
    dt: float = 1.0
    channels = ("x",)

    def __post_init__(self) -> None:
        checked_positive(self, "dt", "tau")
        if not self.tau / self.dt < 1e5:
            raise UserError(f"MackeyGlass: tau must be below 100,000 steps of dt; got tau {self.tau}, dt {self.dt}")
        if abs(self.tau / self.dt - self._lag) > 1e-9:
            raise UserError(f"MackeyGlass: tau must be a whole number of steps of dt; got tau {self.tau}, dt {self.dt}")

    @property
    def _lag(self) -> int:
        return round(self.tau / self.dt)

    @property
    def exponent(self) -> float | None:
        """0.006 per unit of time."""
        return published(self, 0.006)

    def initial(self, trajectories: int, seed: int) -> Array:
        """Any values in [0.6, 1.4)."""
        return 1 + 0.4 * random_numbers(seed, "mackey_glass", trajectories, self._lag + 1)

    def step(self, state: Array) -> Array:
        """States one step later."""
        late, now = state[:, 0], state[:, -1]
        then = now + self.dt * (self.beta * late / (1 + late**self.n) - self.gamma * now)
        return np.concatenate([state[:, 1:], then[:, None]], axis=-1)

    def observe(self, state: Array) -> Array:
        """(trajectories, 1): the newest value."""
        return state[:, -1:]


@dataclass(frozen=True)
class KuramotoSivashinsky(Simulated):
    """Flame fronts: ``u_t = -u u_x - u_xx - u_xxxx``, periodic in space, pseudo-spectral, by ETDRK4.

    Args:
        length: L of the domain; exponents are published for 22 and 60.
        size: N points of the grid, even.
        dt: length of a step.

    Raises:
        UserError: a grid that is odd, has fewer than 8 points, or is too coarse for the length.

    >>> KuramotoSivashinsky().simulate(2, 5).shape
    (2, 5, 64)

    Kassam and Trefethen (2005); exponents: Cvitanovic, Davidchack and Siminos (2010) for 22, Edson, Bunder,
    Mattner and Roberts (2019) for 60.
    """

    length: float = 22.0
    size: int = 64
    dt: float = 0.25
    transient = 1000
    _exponents: ClassVar[dict[float, float]] = {22.0: 0.048, 60.0: 0.089}

    def __post_init__(self) -> None:
        checked_positive(self, "length", "dt")
        # fewer points than 1 a unit of length do not reach the wave numbers that damp
        if self.size < max(8, self.length) or self.size % 2:
            raise UserError(
                f"KuramotoSivashinsky: size must be even, at least 8 and at least length; got size {self.size}, "
                f"length {self.length}"
            )

    @property
    def channels(self) -> tuple[str, ...]:
        """u1, u2 and so on along the grid."""
        return tuple(f"u{number}" for number in range(1, self.size + 1))

    @property
    def exponent(self) -> float | None:
        """Per unit of time: 0.048 at length 22, 0.089 at 60; None at a length without a published one."""
        return self._exponents.get(self.length)

    @property
    def waves(self) -> Array:
        """(size / 2 + 1,) wave numbers."""
        return (2 * np.pi / self.length) * np.arange(self.size // 2 + 1, dtype=np.float64)

    def initial(self, trajectories: int, seed: int) -> Array:
        """Four long waves of random size; the mean is 0 and stays so."""
        numbers = random_numbers(seed, "kuramoto_sivashinsky", trajectories, 8)
        angles = 2 * np.pi * np.outer(np.arange(1, 5), np.arange(self.size)) / self.size
        return numbers[:, :4] @ np.cos(angles) + numbers[:, 4:] @ np.sin(angles)

    def step(self, state: Array) -> Array:
        """States one step later."""
        waves = self.waves
        given = exponential(tuple((waves**2 - waves**4).tolist()), self.dt)
        slope = -0.5j * waves
        slope[-1] = 0  # the highest wave of an even grid has no derivative on it

        def rest(spectrum: Spectrum) -> Spectrum:
            return slope * np.fft.rfft(np.fft.irfft(spectrum, n=self.size) ** 2)

        then: Any = np.fft.irfft(etdrk4(given, rest, np.fft.rfft(state)), n=self.size)
        return then


@dataclass(frozen=True)
class Pendulum(Simulated):
    """A damped pendulum, driven: ``theta'' = -damping theta' - sin theta + force cos phi, phi' = frequency``.

    Observed are sin and cos of the angle, its speed, and sin and cos of the drive's phase, which are known in advance:
    they become covariates. The defaults are chaotic.

    Args:
        damping: 1 / quality.
        force: amplitude of the drive.
        frequency: of the drive, in units of the pendulum's own.
        dt: length of a step.

    >>> Pendulum().simulate(2, 5).shape, Pendulum().driven
    ((2, 5, 5), 2)

    Baker and Gollub (1996).
    """

    damping: float = 0.5
    force: float = 1.5
    frequency: float = 2 / 3
    dt: float = 0.1
    channels = ("sin_angle", "cos_angle", "speed", "sin_drive", "cos_drive")
    driven = 2

    def __post_init__(self) -> None:
        checked_positive(self, "dt")

    @property
    def exponent(self) -> float | None:
        """0.112 per unit of time, measured with ``largest_exponent``: it is from no publication."""
        return published(self, 0.112)

    def initial(self, trajectories: int, seed: int) -> Array:
        """Any angle and phase, speeds in [-1, 1): (trajectories, 3) are angle, speed and phase."""
        return np.array([np.pi, 1.0, np.pi]) * random_numbers(seed, "pendulum", trajectories, 3)

    def rate(self, state: Array) -> Array:
        """Derivative in time."""
        angle, speed, phase = state[..., 0], state[..., 1], state[..., 2]
        push = -self.damping * speed - np.sin(angle) + self.force * np.cos(phase)
        return stacked(speed, push, np.full_like(phase, self.frequency))

    def step(self, state: Array) -> Array:
        """States one step later; angle and phase are not wrapped."""
        return rk4(self.rate, state, self.dt)

    def observe(self, state: Array) -> Array:
        """(trajectories, 5); see above."""
        angle, speed, phase = state[:, 0], state[:, 1], state[:, 2]
        return np.stack([np.sin(angle), np.cos(angle), speed, np.sin(phase), np.cos(phase)], axis=-1)
