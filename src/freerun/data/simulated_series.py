"""Windows of simulated systems: whole trajectories are train, dev or test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from freerun.arguments import at_least, between, brief, field_problems, one_of
from freerun.data.files import SPLITS, Array, first_problems
from freerun.data.series.building import cell_problems, constant_channels, scales_of, too_large
from freerun.data.series.options import Layout, check_layout
from freerun.data.series.windows import Segment, SeriesCodec, SeriesData
from freerun.data.systems import (
    Lorenz63,
    Lorenz96,
    MackeyGlass,
    System,
    Thomas,
    random_numbers,
)
from freerun.errors import UserError, refuse

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
        noise: standard deviation of observation noise, in standard deviations of each channel. It is in past and
            targets alike: nobody can predict better than that.
        normalisation: "standard" (by the training trajectories) or "none".
        parameters: of the system, where they are other than the published ones.
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
    allowed = list(getattr(kind, "__dataclass_fields__"))  # noqa: B009 - the protocol does not know it
    problems = [
        f"{name} has no parameter {parameter!r}; it has: {', '.join(allowed)}"
        for parameter in parameters
        if parameter not in allowed
    ]
    refuse(problems)
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
    values = system.simulate(options.trajectories, steps, options.seed)
    values = _observed(values, options)
    raw = values.reshape(-1, system.dimension)
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
    refuse(first_problems(str(system), faults) or constant_channels(train, system.channels, str(system)))
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
        step=f"{system.dt:g} units",
    )
    return SeriesData(
        f"{system}, seed {options.seed}",
        torch.tensor(raw),
        segments,
        starts,
        codec,
        notes=_notes(system, options),
        exponent=None if system.exponent is None else system.exponent * system.dt,
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
    notes = [f"simulated: {options.trajectories:,} trajectories, steps of {system.dt:g}"]
    if system.exponent is not None:
        steps = 1 / (system.exponent * system.dt)
        notes.append(f"largest Lyapunov exponent {system.exponent:g}: an error grows e-fold in {steps:.0f} steps")
    if options.noise:
        notes.append(f"observation noise: {options.noise:g} standard deviations")
    return tuple(notes)
