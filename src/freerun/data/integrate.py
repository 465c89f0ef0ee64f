"""Steps of integrators for equations of motion, and the largest Lyapunov exponent measured with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from freerun.errors import UserError

__all__ = ["Array", "Exponential", "Spectrum", "Steps", "etdrk4", "exponential", "largest_exponent", "rk4"]

Array = NDArray[np.float64]
Spectrum = NDArray[np.complex128]


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


class Exponential(NamedTuple):
    """Coefficients of ``etdrk4``, each (modes,); see ``exponential``."""

    whole: Array
    half: Array
    inner: Array
    first: Array
    middle: Array
    last: Array


@lru_cache(maxsize=8)
def exponential(linear: tuple[float, ...], dt: float, points: int = 32) -> Exponential:
    """Coefficients of ``etdrk4`` for a diagonal linear part.

    ``(e^z - 1)/z`` and the like cancel badly near z = 0: each is the mean over points of a circle of radius 1 around
    ``z = linear dt`` (Kassam and Trefethen 2005).

    Args:
        linear: one real number a mode.
        dt: length of the step.
        points: on the upper half of the circle; the lower one mirrors it.
    """
    z = dt * np.array(linear)
    circle = z[:, None] + np.exp(1j * np.pi * (np.arange(points) + 0.5) / points)
    power: NDArray[Any] = np.exp(circle)
    cubed: NDArray[Any] = circle**3

    def mean(values: NDArray[Any]) -> Array:
        return dt * values.mean(axis=-1).real

    return Exponential(
        whole=np.exp(z),
        half=np.exp(z / 2),
        inner=mean((np.exp(circle / 2) - 1) / circle),
        first=mean((-4 - circle + power * (4 - 3 * circle + circle**2)) / cubed),
        middle=mean((2 + circle + power * (-2 + circle)) / cubed),
        last=mean((-4 - 3 * circle - circle**2 + power * (4 - circle)) / cubed),
    )


def etdrk4(given: Exponential, rest: Callable[[Spectrum], Spectrum], state: Spectrum) -> Spectrum:
    """One step of ``dv/dt = c v + N(v)``, c diagonal and stiff: c exactly, N by Runge-Kutta of order four.

    Args:
        given: coefficients for c and the step's length, from ``exponential``.
        rest: N.
        state: (..., modes).

    >>> step = exponential((-100.0,), 0.1)
    >>> v = etdrk4(step, lambda v: 0 * v + 100, np.array([3.0 + 0j]))
    >>> bool(abs(v[0].real - (1 + 2 * np.exp(-10))) < 1e-12)
    True

    Cox and Matthews (2002); Kassam and Trefethen (2005).
    """
    at = rest(state)
    a = given.half * state + given.inner * at
    at_a = rest(a)
    b = given.half * state + given.inner * at_a
    at_b = rest(b)
    c = given.half * a + given.inner * (2 * at_b - at)
    at_c = rest(c)
    return given.whole * state + given.first * at + 2 * given.middle * (at_a + at_b) + given.last * at_c


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
