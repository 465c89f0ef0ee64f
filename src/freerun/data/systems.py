"""Chaotic systems from their equations, with the published parameters and Lyapunov exponents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from freerun.data.files import LARGEST, Array
from freerun.errors import UserError, shown
from freerun.keys import fold, uniform


def rk4(rate: Callable[[Array], Array], state: Array, dt: float) -> Array:
    """One step of the classical Runge-Kutta method: ``x + dt/6 (k1 + 2 k2 + 2 k3 + k4)``.

    Args:
        rate: state -> its derivative in time, same shape.
        state: of any shape; leading axes are trajectories.
        dt: length of the step, in the equation's time.

    >>> x = rk4(lambda x: -x, np.array([1.0]), 0.1)
    >>> bool(abs(x[0] - np.exp(-0.1)) < 1e-7)
    True
    """
    k1 = rate(state)
    k2 = rate(state + dt / 2 * k1)
    k3 = rate(state + dt / 2 * k2)
    k4 = rate(state + dt * k3)
    return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class Steps(Protocol):
    """What ``largest_exponent`` needs of a system: its states (trajectories, size), and one step on."""

    @property
    def dt(self) -> float: ...
    def settled(self, trajectories: int, seed: int) -> Array: ...
    def step(self, state: Array) -> Array: ...


def largest_exponent(
    system: Steps, trajectories: int = 64, steps: int = 4000, seed: int = 0, distance: float = 1e-8
) -> float:
    """Largest Lyapunov exponent per unit of time, measured: ``mean log(d_{t+1} / d_t) / dt``.

    Beside every trajectory runs a second one, at ``distance``; after each step it is put back to that distance, in
    the direction it then has. The first tenth of the steps, where that direction settles, is not counted.

    Args:
        system: with ``settled`` and ``step``, see ``freerun.data.systems``.
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


class System(Protocol):
    """Equations with their parameters.

    ``channels`` names what is observed, ``exponent`` is the largest Lyapunov exponent per unit of time as published,
    None where the parameters are other than the published ones. ``initial`` gives states (trajectories, size) that
    ``step`` (of length ``dt``) takes on, ``transient`` of them until the attractor is reached; ``observe`` gives
    (trajectories, dimension).
    """

    @property
    def dt(self) -> float: ...
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def transient(self) -> int: ...
    @property
    def exponent(self) -> float | None: ...
    @property
    def dimension(self) -> int: ...
    def initial(self, trajectories: int, seed: int) -> Array: ...
    def step(self, state: Array) -> Array: ...
    def observe(self, state: Array) -> Array: ...
    def settled(self, trajectories: int, seed: int) -> Array: ...
    def simulate(self, trajectories: int, steps: int, seed: int = 0) -> Array: ...


_MOST = 100_000
"""The largest size of a state: its trajectories must fit into memory."""
S = TypeVar("S", bound=System)


class Simulated:
    """``simulate`` and ``settled`` of a system, from its ``initial``, ``step`` and ``observe``."""

    transient = 2000

    @property
    def dimension(self: System) -> int:
        """Number of channels."""
        return len(self.channels)

    def observe(self, state: Array) -> Array:
        """(trajectories, dimension): the state itself."""
        return state

    def settled(self: System, trajectories: int, seed: int) -> Array:
        """(trajectories, size) states on the attractor: ``transient`` steps after the beginning."""
        return _settled(self, trajectories, seed)

    def simulate(self: System, trajectories: int, steps: int, seed: int = 0) -> Array:
        """(trajectories, steps, dimension) float64, after the transient; the same for the same numbers, cached.

        A longer simulation begins with the shorter one, and more trajectories with fewer. The array cannot be
        written to: copy it.

        Raises:
            UserError: fewer than one of each, or the trajectory left for infinity.
        """
        problems = [
            f"{name} must be at least 1; got {number}"
            for name, number in (("trajectories", trajectories), ("steps", steps))
            if number < 1
        ]
        if problems:
            raise UserError(problems)
        return _simulated(self, trajectories, steps, seed)


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


def published(system: Any, exponent: float) -> float | None:
    """The published exponent where all parameters but ``dt`` are the published ones, else None."""
    usual = type(system)()
    names = [field.name for field in fields(system) if field.name != "dt"]
    return exponent if all(getattr(system, name) == getattr(usual, name) for name in names) else None


def checked_positive(system: Any, *names: str) -> None:
    """Raise UserError for parameters that are no finite numbers, no sizes, or, if named, not above 0."""
    problems: list[str] = []
    for field in fields(system):
        value, at = getattr(system, field.name), f"{type(system).__name__}: {field.name}"
        fine = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
        if field.type == "int" and not (fine and isinstance(value, int) and value <= _MOST):
            problems.append(f"{at} must be a whole number of at most {_MOST:,}; got {shown(value)}")
        elif not fine:
            problems.append(f"{at} must be a number within {LARGEST:g}; got {shown(value)}")
        elif field.name in names and not value > 0:
            problems.append(f"{at} must be a number above 0; got {value}")
    if problems:
        raise UserError(problems)


def stacked(*parts: Array) -> Array:
    """Channels behind each other along a new last axis; ``np.stack`` costs more than the equations."""
    whole = np.empty((*parts[0].shape, len(parts)))
    for number, part in enumerate(parts):
        whole[..., number] = part
    return whole


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
