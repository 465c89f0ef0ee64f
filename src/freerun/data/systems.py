"""Chaotic systems from their equations, with the published parameters and Lyapunov exponents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch

from freerun.arguments import COUNT
from freerun.data.files import LARGEST, Array
from freerun.errors import UserError, display, refuse
from freerun.keys import fold, uniform

_MOST = 100_000
"""The largest size of a state: its trajectories must fit into memory."""


def rk4(rate: Callable[[Array], Array], state: Array, dt: float) -> Array:
    """Return the state one step of the classical Runge-Kutta method on: ``x + dt/6 (k1 + 2 k2 + 2 k3 + k4)``.

    >>> x = rk4(lambda x: -x, np.array([1.0]), 0.1)
    >>> bool(abs(x[0] - np.exp(-0.1)) < 1e-7)
    True
    """
    k1 = rate(state)
    k2 = rate(state + dt / 2 * k1)
    k3 = rate(state + dt / 2 * k2)
    k4 = rate(state + dt * k3)
    return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def largest_exponent(
    system: Any, trajectories: int = 64, steps: int = 4000, seed: int = 0, distance: float = 1e-8
) -> float:
    """Measure the largest Lyapunov exponent per unit of time: ``mean log(d_{t+1} / d_t) / dt``.

    Beside every trajectory runs a second one, at ``distance``; after each step it is put back to that distance, in
    the direction it then has. The first tenth of the steps, where that direction settles, is not counted.

    Args:
        system: with ``dt``, ``settled`` and ``step``, as ``System`` has them.
        trajectories: averaged over.
        steps: of each.
        seed: of the trajectories.
        distance: of the two, in units of the state.

    Returns:
        The mean over trajectories; it errs by about its own spread over a trajectory / sqrt(trajectories).

    Raises:
        UserError: fewer than 10 steps.

    >>> from freerun.data.systems import Lorenz63
    >>> 0.8 < largest_exponent(Lorenz63(), trajectories=16, steps=2000) < 1.0
    True

    Benettin, Galgani, Giorgilli and Strelcyn (1980).
    """
    if steps < 10:
        raise UserError(f"steps must be at least 10; got {steps}")
    state = system.settled(trajectories, seed)
    # any direction will do: all but a set of measure zero turn towards the fastest growing one
    offset = np.cos(np.arange(state.size, dtype=np.float64)).reshape(state.shape)
    offset *= distance / np.linalg.norm(offset, axis=-1, keepdims=True)
    total, counted = np.zeros(len(state)), 0
    for number in range(steps):
        beside = system.step(state + offset)
        state = system.step(state)
        offset = beside - state
        apart = np.linalg.norm(offset, axis=-1, keepdims=True)
        if number >= steps // 10:
            total += np.log(apart[:, 0] / distance)
            counted += 1
        offset *= distance / apart
    return float(total.mean() / (counted * system.dt))


class System:
    """Equations with their parameters: a dataclass gives ``dt``, ``channels``, ``initial`` and ``rate`` (or ``step``).

    ``channels`` names what is observed, ``published`` is the largest Lyapunov exponent per unit of time. ``initial``
    gives states (trajectories, size) that ``step`` (of length ``dt``) takes on, ``transient`` of them until the
    attractor is reached; ``observe`` gives (trajectories, dimension). ``positive`` names parameters above 0.
    """

    dt: float
    channels: tuple[str, ...]
    published: ClassVar[float]
    positive: ClassVar[tuple[str, ...]] = ("dt",)
    transient: ClassVar[int] = 2000

    def __post_init__(self) -> None:
        problems: list[str] = []
        for field in _parameters(self):
            value, at = getattr(self, field.name), f"{type(self).__name__}: {field.name}"
            fine = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
            if field.type == "int" and not (fine and isinstance(value, int) and value <= _MOST):
                problems.append(f"{at} must be a whole number of at most {_MOST:,}; got {display(value)}")
            elif not fine:
                problems.append(f"{at} must be a number within {LARGEST:g}; got {display(value)}")
            elif field.name in self.positive and not value > 0:
                problems.append(f"{at} must be a number above 0; got {value}")
        refuse(problems)

    @property
    def dimension(self) -> int:
        """Number of channels."""
        return len(self.channels)

    @property
    def exponent(self) -> float | None:
        """The published exponent; None if a parameter other than ``dt`` is not the published one."""
        usual = type(self)()
        names = [field.name for field in _parameters(self) if field.name != "dt"]
        return self.published if all(getattr(self, name) == getattr(usual, name) for name in names) else None

    def initial(self, trajectories: int, seed: int) -> Array:
        """States to begin with."""
        raise NotImplementedError

    def rate(self, state: Array) -> Array:
        """Derivative in time."""
        raise NotImplementedError

    def step(self, state: Array) -> Array:
        """States one step later."""
        return rk4(self.rate, state, self.dt)

    def observe(self, state: Array) -> Array:
        """(trajectories, dimension): the state itself."""
        return state

    def settled(self, trajectories: int, seed: int) -> Array:
        """(trajectories, size) states on the attractor: ``transient`` steps after the beginning."""
        return _settled(self, trajectories, seed)

    def simulate(self, trajectories: int, steps: int, seed: int = 0) -> Array:
        """Return (trajectories, steps, dimension) float64 after the transient, cached; it cannot be written to.

        A longer simulation begins with the shorter one, and more trajectories with fewer.

        Raises:
            UserError: fewer than one of each, or the trajectory left for infinity.
        """
        COUNT.check(trajectories=trajectories, steps=steps)
        return _simulated(self, trajectories, steps, seed)


def _parameters(system: Any) -> tuple[Any, ...]:
    return fields(system)


@lru_cache(maxsize=16)
def _settled(system: System, trajectories: int, seed: int) -> Array:
    state = system.initial(trajectories, seed)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(system.transient):
            state = system.step(state)
    _check_finite(system, state[:, None])
    state.setflags(write=False)
    return state


@lru_cache(maxsize=8)
def _simulated(system: System, trajectories: int, steps: int, seed: int) -> Array:
    state = system.settled(trajectories, seed)
    values = np.empty((trajectories, steps, system.dimension))
    with np.errstate(over="ignore", invalid="ignore"):
        for number in range(steps):
            values[:, number] = system.observe(state)
            state = system.step(state)
    _check_finite(system, values)
    values.setflags(write=False)
    return values


def _check_finite(system: System, values: Array) -> None:
    bad = ~np.isfinite(values).all(axis=(0, 2))
    if bad.any():
        raise UserError(
            f"{system}: a trajectory left for infinity {int(bad.argmax())} steps after the transient; use a smaller "
            "dt, fewer steps, or parameters for which the system stays bounded"
        )


def random_numbers(seed: int, name: str, trajectories: int, size: int) -> Array:
    """(trajectories, size) uniform numbers in [-1, 1), a function of seed, name and place."""
    rows, columns = torch.arange(trajectories)[:, None], torch.arange(size)
    return 2 * uniform(fold(seed, "system", name), rows, columns).numpy() - 1


def stacked(*parts: Array) -> Array:
    """Channels behind each other along a new last axis; ``np.stack`` costs more than the equations."""
    whole = np.empty((*parts[0].shape, len(parts)))
    for number, part in enumerate(parts):
        whole[..., number] = part
    return whole


@dataclass(frozen=True)
class Thomas(System):
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
    published = 0.055

    def initial(self, trajectories: int, seed: int) -> Array:
        """Anywhere in [-2, 2)^3."""
        return 2 * random_numbers(seed, "thomas", trajectories, 3)

    def rate(self, state: Array) -> Array:
        return np.sin(state[..., [1, 2, 0]]) - self.b * state


@dataclass(frozen=True)
class Lorenz63(System):
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
    published = 0.905

    def initial(self, trajectories: int, seed: int) -> Array:
        """Around (0, 1, 20)."""
        return np.array([0.0, 1.0, 20.0]) + 5 * random_numbers(seed, "lorenz63", trajectories, 3)

    def rate(self, state: Array) -> Array:
        x, y, z = state[..., 0], state[..., 1], state[..., 2]
        return stacked(self.sigma * (y - x), x * (self.rho - z) - y, x * y - self.beta * z)


@dataclass(frozen=True)
class Lorenz96(System):
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
    published = 1.67

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 4:
            raise UserError(f"Lorenz96: size must be at least 4; got {self.size}")
        object.__setattr__(self, "channels", tuple(f"x{number}" for number in range(1, self.size + 1)))

    def initial(self, trajectories: int, seed: int) -> Array:
        """Around the state where all places are ``force``, which does not last."""
        return self.force + random_numbers(seed, "lorenz96", trajectories, self.size)

    def rate(self, state: Array) -> Array:
        # the ring opened, its ends repeated: cheaper than three rolls
        ring = np.concatenate([state[..., -2:], state, state[..., :1]], axis=-1)
        return (ring[..., 3:] - ring[..., :-3]) * ring[..., 1:-2] - state + self.force


@dataclass(frozen=True)
class MackeyGlass(System):
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
    published = 0.006
    positive = ("dt", "tau")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau / self.dt < 1e5:
            raise UserError(f"MackeyGlass: tau must be below 100,000 steps of dt; got tau {self.tau}, dt {self.dt}")
        if abs(self.tau / self.dt - self._lag) > 1e-9:
            raise UserError(f"MackeyGlass: tau must be a whole number of steps of dt; got tau {self.tau}, dt {self.dt}")

    @property
    def _lag(self) -> int:
        return round(self.tau / self.dt)

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
