"""What all systems share: trajectories from a seed, after a transient, cached."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from freerun.data.integrate import Array
from freerun.data.series.gaps import LARGEST
from freerun.errors import UserError, shown
from freerun.keys import fold, uniform

__all__ = ["Simulated", "System", "checked_positive", "published", "random_numbers", "stacked"]


class System(Protocol):
    """Equations with their parameters.

    ``channels`` names what is observed, ``driven`` says how many of the last of them are known in advance (the phase
    of a drive), ``exponent`` is the largest Lyapunov exponent per unit of time as published, None where the
    parameters are other than the published ones. ``initial`` gives states (trajectories, size) that ``step``
    (of length ``dt``) takes on, ``transient`` of them until the attractor is reached; ``observe`` gives
    (trajectories, dimension).
    """

    @property
    def dt(self) -> float: ...
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def driven(self) -> int: ...
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

    driven = 0
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
    """Refuse parameters that are no finite numbers, sizes that are none, and what is not above 0; all at once.

    Raises:
        UserError: names each.
    """
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
