"""Chaotic systems, simulated from their equations, as windows: whole trajectories are train, dev or test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from freerun.arguments import COUNT, at_least, between, brief, field_problems, one_of
from freerun.data.files import LARGEST, SPLITS, Array, first_problems
from freerun.data.series.building import cell_problems, constant_channels, scales_of, too_large
from freerun.data.series.options import Layout, check_layout
from freerun.data.series.windows import Segment, SeriesCodec, SeriesData
from freerun.errors import UserError, refuse
from freerun.keys import fold, uniform


class System:
    """Equations with parameters: a class has ``dt``, ``channels``, ``published``, ``initial``, ``rate`` or ``step``.

    ``published`` is the largest Lyapunov exponent per unit of time; ``transient`` steps lead to the attractor.
    """

    dt: float
    channels: tuple[str, ...]
    published: ClassVar[float]
    transient: ClassVar[int] = 2000

    def __post_init__(self) -> None:
        refuse([f"{type(self).__name__}: {problem}" for problem in field_problems(self)])

    @property
    def dimension(self) -> int:
        """Number of channels."""
        return len(self.channels)

    @property
    def exponent(self) -> float | None:
        """The published exponent; None if a parameter other than ``dt`` is not the published one."""
        usual = type(self)()
        return self.published if {**vars(self), "dt": usual.dt} == vars(usual) else None

    def initial(self, trajectories: int, seed: int) -> Array:
        """States to begin with."""
        raise NotImplementedError

    def rate(self, state: Array) -> Array:
        """Derivative in time."""
        raise NotImplementedError

    def step(self, state: Array) -> Array:
        """States one step later, by the classical Runge-Kutta method."""
        k1 = self.rate(state)
        k2 = self.rate(state + self.dt / 2 * k1)
        k3 = self.rate(state + self.dt / 2 * k2)
        k4 = self.rate(state + self.dt * k3)
        return state + self.dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def observe(self, state: Array) -> Array:
        """(trajectories, dimension): the state itself."""
        return state

    def settled(self, trajectories: int, seed: int) -> Array:
        """(trajectories, size) states on the attractor: ``transient`` steps after the beginning."""
        return _settled(self, trajectories, seed)

    def simulate(self, trajectories: int, steps: int, seed: int = 0) -> Array:
        """Return (trajectories, steps, dimension) float64 after the transient, cached; it cannot be written to."""
        COUNT.check(trajectories=trajectories, steps=steps)
        return _simulated(self, trajectories, steps, seed)


@lru_cache(maxsize=16)
def _settled(system: System, trajectories: int, seed: int) -> Array:
    state = system.initial(trajectories, seed)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(system.transient):
            state = system.step(state)
    return _checked(system, state[:, None])[:, 0]


@lru_cache(maxsize=8)
def _simulated(system: System, trajectories: int, steps: int, seed: int) -> Array:
    state = system.settled(trajectories, seed)
    values = np.empty((trajectories, steps, system.dimension))
    with np.errstate(over="ignore", invalid="ignore"):
        for number in range(steps):
            values[:, number] = system.observe(state)
            state = system.step(state)
    return _checked(system, values)


def _checked(system: System, values: Array) -> Array:
    bad = ~np.isfinite(values).all(axis=(0, 2))
    if bad.any():
        raise UserError(
            f"{system}: a trajectory left for infinity {int(bad.argmax())} steps after the transient; use a smaller "
            "dt, fewer steps, or parameters for which the system stays bounded"
        )
    values.setflags(write=False)
    return values


def random_numbers(seed: int, name: str, trajectories: int, size: int) -> Array:
    """(trajectories, size) uniform numbers in [-1, 1), a function of seed, name and position."""
    rows, columns = torch.arange(trajectories)[:, None], torch.arange(size)
    return 2 * uniform(fold(seed, "system", name), rows, columns).numpy() - 1


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

    b: float = between(-LARGEST, LARGEST, 0.1)
    dt: float = between(0, LARGEST, 0.1, ends="(]")
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

    sigma: float = between(-LARGEST, LARGEST, 10.0)
    rho: float = between(-LARGEST, LARGEST, 28.0)
    beta: float = between(-LARGEST, LARGEST, 8 / 3)
    dt: float = between(0, LARGEST, 0.01, ends="(]")
    channels = ("x", "y", "z")
    published = 0.905

    def initial(self, trajectories: int, seed: int) -> Array:
        """Around (0, 1, 20)."""
        return np.array([0.0, 1.0, 20.0]) + 5 * random_numbers(seed, "lorenz63", trajectories, 3)

    def rate(self, state: Array) -> Array:
        x, y, z = state[..., 0], state[..., 1], state[..., 2]
        rates = np.empty_like(state)  # np.stack costs more than the equations
        rates[..., 0], rates[..., 1], rates[..., 2] = (
            self.sigma * (y - x),
            x * (self.rho - z) - y,
            x * y - self.beta * z,
        )
        return rates


@dataclass(frozen=True)
class Lorenz96(System):
    """Lorenz' ring of weather: ``dx_i = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + force``.

    Args:
        size: points on the ring.
        force: F.
        dt: length of a step.

    Raises:
        UserError: fewer than 4 points.

    >>> Lorenz96(size=6).simulate(1, 3).shape
    (1, 3, 6)

    Lorenz (1996); exponent as in Teutsch and Maeder (2022), 40 points.
    """

    size: int = between(4, 100_000, 40)
    force: float = between(-LARGEST, LARGEST, 8.0)
    dt: float = between(0, LARGEST, 0.05, ends="(]")
    published = 1.67

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channels", tuple(f"x{number}" for number in range(1, self.size + 1)))

    def initial(self, trajectories: int, seed: int) -> Array:
        """Around the state where all points are ``force``, which does not last."""
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
        dt: length of a step. The published exponent is the equation's; with Euler's steps of 1 it measures 0.0084,
            with steps of 0.1 the published 0.006.

    Raises:
        UserError: the delay is no whole number of steps.

    >>> MackeyGlass().simulate(2, 5).shape
    (2, 5, 1)

    Mackey and Glass (1977); exponent as in Teutsch and Maeder (2022). It is *not* the equation solved exactly: Euler's
    steps of 1 are the benchmark.
    """

    beta: float = between(-LARGEST, LARGEST, 0.2)
    gamma: float = between(-LARGEST, LARGEST, 0.1)
    tau: float = between(0, LARGEST, 17.0, ends="(]")
    n: float = between(-LARGEST, LARGEST, 10.0)
    dt: float = between(0, LARGEST, 1.0, ends="(]")
    channels = ("x",)
    published = 0.006

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.tau / self.dt
        if not steps < 1e5 or abs(steps - self._lag) > 1e-9:
            raise UserError(
                "MackeyGlass: tau must be a whole number of steps of dt, fewer than 100,000; "
                f"got tau {self.tau}, dt {self.dt}"
            )

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


SYSTEMS: dict[str, type[System]] = {
    "mackey_glass": MackeyGlass,
    "thomas": Thomas,
    "lorenz63": Lorenz63,
    "lorenz96": Lorenz96,
}


@dataclass(frozen=True)
class SystemOptions:
    """How many windows of a system, and how they are taken.

    Args:
        past: steps known before what is predicted.
        horizon: steps predicted.
        windows: numbers of training, dev and test windows.
        trajectories: from different beginnings; each belongs to one split, in proportion to the windows, at least
            one each.
        stride: steps between the beginnings of two windows of a trajectory; None: past + horizon, so that windows
            share no step.
        seed: of the trajectories and of the noise.
        noise: standard deviation of observation noise, in standard deviations of each channel. It is in both past
            and targets: nobody can predict better than that.
        normalisation: "standard" (by the training trajectories) or "none".
        parameters: of the system, where they are other than the published ones.
        every: steps of the equations from one row to the next.
        warmup_loss: layout "sequence": training windows carry loss on the past too, but for its first step.

    Raises:
        UserError: values that are not allowed; all of them at once.
    """

    __repr__ = brief

    past: int = between(1, 10**7, 50)
    horizon: int = between(1, 10**7, 100)
    windows: tuple[int, int, int] = between(1, 10**8, (1024, 256, 512))
    trajectories: int = between(3, 10**6, 64)
    stride: int | None = at_least(1, None)
    seed: int = between(0, 2**63 - 1, 0)
    noise: float = at_least(0.0, 0.0)
    normalisation: Literal["standard", "none"] = one_of(("standard", "none"), "standard")
    parameters: Mapping[str, float] = field(default_factory=dict[str, float])
    every: int = between(1, 10**6, 1)
    warmup_loss: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        problems = field_problems(self)
        if len(self.windows) != 3:
            problems.append(f"windows must be three numbers: train, dev and test; got {self.windows}")
        refuse(problems)

    @property
    def shares(self) -> tuple[int, int, int]:
        """Trajectories of train, dev and test."""
        total = sum(self.windows)
        dev, test = (max(1, round(self.trajectories * part / total)) for part in self.windows[1:])
        train = max(1, self.trajectories - dev - test)
        return train, dev, self.trajectories - train - dev


def system_named(name: str, parameters: Mapping[str, Any]) -> System:
    """Return a system by its name; raise UserError for unknown names and parameters, all at once."""
    if name not in SYSTEMS:
        raise UserError(f"system must be one of {', '.join(SYSTEMS)}; got {name!r}")
    kind = SYSTEMS[name]
    known = list(signature(kind).parameters)
    unknown = [parameter for parameter in parameters if parameter not in known]
    refuse([f"{name} has no parameter {parameter!r}; it has: {', '.join(known)}" for parameter in unknown])
    return kind(**parameters)


def load_system(name: str | System, options: SystemOptions | None = None, layout: Layout = "past") -> SeriesData:
    """Windows of a simulated system, normalised by its training trajectories.

    No trajectory is in two splits.

    Args:
        name: of a system in ``SYSTEMS``, or a system.
        options: windows and trajectories; the defaults of ``SystemOptions`` if left out.
        layout: "past" or "sequence", see ``SeriesCodec.batch``.

    Raises:
        UserError: an unknown system or parameter, or a trajectory that leaves for infinity.

    >>> data = load_system("lorenz63", SystemOptions(past=5, horizon=10, windows=(8, 2, 4), trajectories=4))
    >>> data.batch([0, 1]).targets.shape, data.windows("test"), round(data.exponent, 5)
    (torch.Size([2, 10, 3]), 4, 0.00905)
    """
    options = options or SystemOptions()
    refuse(check_layout(layout))
    system = system_named(name, options.parameters) if isinstance(name, str) else name
    size, stride = options.past + options.horizon, options.stride or options.past + options.horizon
    each = [-(-windows // share) for windows, share in zip(options.windows, options.shares, strict=True)]
    steps = (max(each) - 1) * stride + size
    values = system.simulate(options.trajectories, (steps - 1) * options.every + 1, options.seed)[:, :: options.every]
    raw = _observed(values, options).reshape(-1, system.dimension)
    segments: dict[str, list[Segment]] = {}
    starts: dict[str, torch.Tensor] = {}
    first = 0
    for split, share, count, windows in zip(SPLITS, options.shares, each, options.windows, strict=True):
        begins = [(first + number) * steps for number in range(share)]
        segments[split] = [Segment(begin, begin + steps, begin) for begin in begins]
        # the first window of every trajectory, then the second of each: all trajectories have about as many
        starts[split] = torch.tensor([begin + turn * stride for turn in range(count) for begin in begins])[:windows]
        first += share
    train = raw[: options.shares[0] * steps]
    with np.errstate(over="ignore"):
        faults = cell_problems(too_large(raw), system.channels, lambda row: f"{system}: step {row + 1}")
    refuse(first_problems(str(system), faults) or [*constant_channels(train, system.channels, str(system)).values()])
    mean, std = scales_of(train, options.normalisation)
    codec = SeriesCodec(
        system.channels,
        tuple(mean.tolist()),
        tuple(std.tolist()),
        values=system.dimension,
        covariates=0,
        past=options.past,
        horizon=options.horizon,
        layout=layout,
        step=f"{system.dt * options.every:g} units",
    )
    return SeriesData(
        f"{system}, seed {options.seed}",
        torch.tensor(raw),
        segments,
        starts,
        codec,
        notes=_notes(system, options),
        exponent=None if system.exponent is None else system.exponent * system.dt * options.every,
        warmup_loss=options.warmup_loss,
    )


def _observed(values: Array, options: SystemOptions) -> Array:
    """Trajectories (trajectories, steps, channels) with observation noise."""
    if not options.noise:
        return values
    rows, steps, width = values.shape
    first = random_numbers(options.seed, "noise angle", rows, steps * width).reshape(values.shape)
    second = random_numbers(options.seed, "noise radius", rows, steps * width).reshape(values.shape)
    # Box and Muller; 1 - u is in (0, 1]
    normal = np.sqrt(-2 * np.log(1 - (second + 1) / 2)) * np.cos(np.pi * first)
    spread = values[: options.shares[0]].std(axis=(0, 1))
    return values + options.noise * spread * normal


def _notes(system: System, options: SystemOptions) -> tuple[str, ...]:
    notes = [f"simulated: {options.trajectories:,} trajectories, steps of {system.dt * options.every:g}"]
    if system.exponent is not None:
        steps = 1 / (system.exponent * system.dt * options.every)
        notes.append(f"largest Lyapunov exponent {system.exponent:g}: an error grows e-fold in {steps:.0f} steps")
    if options.noise:
        notes.append(f"observation noise: {options.noise:g} standard deviations")
    return tuple(notes)
