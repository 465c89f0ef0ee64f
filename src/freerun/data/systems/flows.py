"""Chaotic flows in a few variables, by Runge-Kutta of order four."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freerun.data.integrate import Array, rk4
from freerun.data.systems.simulated import Simulated, checked_positive, published, random_numbers, stacked
from freerun.errors import UserError

__all__ = ["HyperRoessler", "Lorenz63", "Lorenz96", "Roessler", "Thomas"]


@dataclass(frozen=True)
class Thomas(Simulated):
    """Thomas' cyclically symmetric system: ``dx = sin y - b x``, and so on for y with z, and z with x.

    Args:
        b: damping.
        dt: length of a step.

    >>> Thomas().simulate(2, 5).shape
    (2, 5, 3)

    Thomas (1999); exponent as in Teutsch and Maeder (2022).
    """

    b: float = 0.1
    dt: float = 0.1
    channels = ("x", "y", "z")

    def __post_init__(self) -> None:
        checked_positive(self, "dt")

    @property
    def exponent(self) -> float | None:
        """0.055 per unit of time."""
        return published(self, 0.055)

    def initial(self, trajectories: int, seed: int) -> Array:
        """Anywhere in [-2, 2)^3."""
        return 2 * random_numbers(seed, "thomas", trajectories, 3)

    def rate(self, state: Array) -> Array:
        """Derivative in time."""
        return np.sin(state[..., [1, 2, 0]]) - self.b * state

    def step(self, state: Array) -> Array:
        """States one step later."""
        return rk4(self.rate, state, self.dt)


@dataclass(frozen=True)
class Lorenz63(Simulated):
    """Lorenz' convection: ``dx = sigma (y - x), dy = x (rho - z) - y, dz = x y - beta z``.

    Args:
        sigma: Prandtl number.
        rho: Rayleigh number over the critical one.
        beta: shape of the cell.
        dt: length of a step.

    >>> Lorenz63().exponent, Lorenz63(rho=20.0).exponent
    (0.905, None)

    Lorenz (1963); exponent as in Sprott (2003).
    """

    sigma: float = 10.0
    rho: float = 28.0
    beta: float = 8 / 3
    dt: float = 0.01
    channels = ("x", "y", "z")

    def __post_init__(self) -> None:
        checked_positive(self, "dt")

    @property
    def exponent(self) -> float | None:
        """0.905 per unit of time."""
        return published(self, 0.905)

    def initial(self, trajectories: int, seed: int) -> Array:
        """Around (0, 1, 20)."""
        return np.array([0.0, 1.0, 20.0]) + 5 * random_numbers(seed, "lorenz63", trajectories, 3)

    def rate(self, state: Array) -> Array:
        """Derivative in time."""
        x, y, z = state[..., 0], state[..., 1], state[..., 2]
        return stacked(self.sigma * (y - x), x * (self.rho - z) - y, x * y - self.beta * z)

    def step(self, state: Array) -> Array:
        """States one step later."""
        return rk4(self.rate, state, self.dt)


@dataclass(frozen=True)
class Lorenz96(Simulated):
    """Lorenz' ring of weather: ``dx_i = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + force``.

    Args:
        size: places on the ring.
        force: F.
        dt: length of a step.

    Raises:
        UserError: fewer than 4 places.

    >>> Lorenz96(size=6).simulate(1, 3).shape
    (1, 3, 6)

    Lorenz (1996); exponent as in Teutsch and Maeder (2022), 40 places.
    """

    size: int = 40
    force: float = 8.0
    dt: float = 0.05

    def __post_init__(self) -> None:
        checked_positive(self, "dt")
        if self.size < 4:
            raise UserError(f"Lorenz96: size must be at least 4; got {self.size}")

    @property
    def channels(self) -> tuple[str, ...]:
        """x1, x2 and so on."""
        return tuple(f"x{number}" for number in range(1, self.size + 1))

    @property
    def exponent(self) -> float | None:
        """1.67 per unit of time."""
        return published(self, 1.67)

    def initial(self, trajectories: int, seed: int) -> Array:
        """Around the state where all places are ``force``, which does not last."""
        return self.force + random_numbers(seed, "lorenz96", trajectories, self.size)

    def rate(self, state: Array) -> Array:
        """Derivative in time."""
        # the ring opened, its ends repeated: cheaper than three rolls
        ring = np.concatenate([state[..., -2:], state, state[..., :1]], axis=-1)
        return (ring[..., 3:] - ring[..., :-3]) * ring[..., 1:-2] - state + self.force

    def step(self, state: Array) -> Array:
        """States one step later."""
        return rk4(self.rate, state, self.dt)


@dataclass(frozen=True)
class Roessler(Simulated):
    """Roessler's band: ``dx = -y - z, dy = x + a y, dz = b + z (x - c)``.

    Args:
        a: growth of the spiral.
        b: inflow of z.
        c: where z takes off.
        dt: length of a step.

    >>> Roessler().simulate(2, 5).shape
    (2, 5, 3)

    Roessler (1976); exponent as in Teutsch and Maeder (2022).
    """

    a: float = 0.2
    b: float = 0.2
    c: float = 5.7
    dt: float = 0.12
    channels = ("x", "y", "z")

    def __post_init__(self) -> None:
        checked_positive(self, "dt")

    @property
    def exponent(self) -> float | None:
        """0.069 per unit of time."""
        return published(self, 0.069)

    def initial(self, trajectories: int, seed: int) -> Array:
        """Around the origin, which is a spiral outwards."""
        return np.array([2.0, 2.0, 0.1]) * random_numbers(seed, "roessler", trajectories, 3)

    def rate(self, state: Array) -> Array:
        """Derivative in time."""
        x, y, z = state[..., 0], state[..., 1], state[..., 2]
        return stacked(-y - z, x + self.a * y, self.b + z * (x - self.c))

    def step(self, state: Array) -> Array:
        """States one step later."""
        return rk4(self.rate, state, self.dt)


@dataclass(frozen=True)
class HyperRoessler(Simulated):
    """Roessler's hyperchaos: ``dx = -y - z, dy = x + a y + w, dz = b + x z, dw = -c z + d w``.

    The attractor is not for ever: after millions of steps a trajectory can leave for infinity, which is an error.

    Args:
        a: growth of the spiral.
        b: inflow of z.
        c: what z takes from w.
        d: growth of w.
        dt: length of a step.
        substeps: Runge-Kutta steps in one: where z spikes, steps of 0.1 would be unstable.

    >>> HyperRoessler().simulate(2, 5).shape
    (2, 5, 4)

    Roessler (1979); exponent as in Teutsch and Maeder (2022). It measures 0.113 here (``largest_exponent``), which is
    what Wolf et al. (1985) give: 0.16 bits.
    """

    a: float = 0.25
    b: float = 3.0
    c: float = 0.5
    d: float = 0.05
    dt: float = 0.1
    substeps: int = 8
    transient = 500
    channels = ("x", "y", "z", "w")

    def __post_init__(self) -> None:
        checked_positive(self, "dt", "substeps")

    @property
    def exponent(self) -> float | None:
        """0.14 per unit of time."""
        return published(self, 0.14)

    def initial(self, trajectories: int, seed: int) -> Array:
        """Around (-20, 0, 0, 15), near the attractor: from many other places trajectories leave for infinity."""
        spread = np.array([1.0, 1.0, 0.0, 0.5])
        return np.array([-20.0, 0.0, 0.0, 15.0]) + spread * random_numbers(seed, "hyper_roessler", trajectories, 4)

    def rate(self, state: Array) -> Array:
        """Derivative in time."""
        x, y, z, w = state[..., 0], state[..., 1], state[..., 2], state[..., 3]
        return stacked(-y - z, x + self.a * y + w, self.b + x * z, -self.c * z + self.d * w)

    def step(self, state: Array) -> Array:
        """States one step later."""
        for _ in range(self.substeps):
            state = rk4(self.rate, state, self.dt / self.substeps)
        return state
