"""A small convolutional GRU over frames."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.forecasting.inputs import check_history, size_problems


class ConvGRUForecaster(nn.Module):
    """Layers of a convolutional GRU over frames; outputs (batch, time, values), a frame flattened.

    ``r, u = sigmoid(I * x + H * h)``, ``c = tanh(I' * x + r (H' * h))``, ``h' = c + u (h - c)`` with ``*`` a
    convolution, said = a 1x1 convolution of h. The shift is inside: position t is told ``history[:, t-1]``, position 0
    zeros. The past is what the history begins with (``mask`` and ``eligible`` False). A Stepper.

    Args:
        values: numbers of a frame, ``frame_channels * height * width``, flattened in that order.
        covariates: must be 0.
        observed: must be 0.
        height: of a frame; None: frames are square.
        width: of a frame; None: what ``height`` leaves, or square.
        frame_channels: channels of a frame.
        channels: of the states.
        kernel: side of the convolutions, odd.
        layers: number of layers.
        bounded: end in a sigmoid, for frames in [0, 1].

    Context of a batch: None; it is not read.

    Raises:
        UserError: for arguments outside their range; all at once.

    Reference: Shi et al. 2015, arXiv:1506.04214 (with an LSTM); Ballas et al. 2016, arXiv:1511.06432.

    >>> frames = torch.rand(2, 3, 16)
    >>> batch = Batch(frames, frames, torch.ones(2, 3, dtype=torch.bool))
    >>> ConvGRUForecaster(16, channels=4, kernel=3)(batch).shape
    torch.Size([2, 3, 16])
    """

    layout: ClassVar[str] = "sequence"

    def __init__(
        self,
        values: int,
        covariates: int = 0,
        observed: int = 0,
        *,
        height: int | None = None,
        width: int | None = None,
        frame_channels: int = 1,
        channels: int = 16,
        kernel: int = 5,
        layers: int = 1,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        self._settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if problems := _problems(self._settings, self.layout):
            raise UserError(problems)
        self.values, self.channels, self.bounded = values, channels, bounded
        self.frame = (frame_channels, *_sides(values // frame_channels, height, width))
        read = [frame_channels] + [channels] * (layers - 1)
        around = kernel // 2
        self.inputs = nn.ModuleList(nn.Conv2d(n, 3 * channels, kernel, padding=around) for n in read)
        self.recurrent = nn.ModuleList(nn.Conv2d(channels, 3 * channels, kernel, padding=around) for _ in read)
        self.out = nn.Conv2d(channels, frame_channels, 1)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as given."""
        return dict(self._settings)

    def forward(self, batch: Batch) -> Tensor:
        """(batch, time, values)."""
        check_history(batch, self.values, type(self).__name__)
        told = batch.history[:, :-1].transpose(0, 1)
        told = torch.cat([told.new_zeros(1, batch.size, self.values), told])
        x = self._frames(told.flatten(0, 1))
        for convolve, recurrent in zip(self.inputs, self.recurrent, strict=True):
            gates = convolve(x).unflatten(0, told.shape[:2])  # of all positions at once
            hidden = self._nothing(batch)
            states: list[Tensor] = []
            for now in gates:
                hidden = _next(now, recurrent(hidden), hidden)
                states.append(hidden)
            x = torch.stack(states).flatten(0, 1)
        return self._said(x).unflatten(0, told.shape[:2]).transpose(0, 1)

    def start(self, batch: Batch) -> tuple[Tensor, ...]:
        """The states, one (batch, channels, height, width) a layer, that predict position 0: zeros have been told."""
        check_history(batch, self.values, type(self).__name__)
        states = tuple(self._nothing(batch) for _ in self.inputs)
        return self.step(states, batch.history.new_zeros(batch.size, self.values))

    def embed(self, entries: Tensor) -> Tensor:
        """Frames are read as they are."""
        return entries

    def step(self, state: tuple[Tensor, ...], inputs: Tensor) -> tuple[Tensor, ...]:
        """The states after one more frame (batch, values)."""
        x, after = self._frames(inputs), list[Tensor]()
        for hidden, convolve, recurrent in zip(state, self.inputs, self.recurrent, strict=True):
            x = _next(convolve(x), recurrent(hidden), hidden)
            after.append(x)
        return tuple(after)

    def output(self, state: tuple[Tensor, ...], rows: Tensor | None = None) -> Tensor:
        """(rows, values) prediction."""
        return self._said(state[-1] if rows is None else state[-1][rows])

    def select(self, state: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        """The states of the rows asked for."""
        return tuple(part[rows] for part in state)

    def detach(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The same states without the gradient into what came before."""
        return tuple(part.detach() for part in state)

    def _nothing(self, batch: Batch) -> Tensor:
        return batch.history.new_zeros(batch.size, self.channels, *self.frame[1:])

    def _frames(self, entries: Tensor) -> Tensor:
        return entries.unflatten(-1, self.frame)

    def _said(self, hidden: Tensor) -> Tensor:
        said = self.out(hidden).flatten(1)
        return said.sigmoid() if self.bounded else said


def _next(inputs: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
    r, u, c = inputs.chunk(3, 1)
    by_r, by_u, by_c = recurrent.chunk(3, 1)
    candidate = torch.addcmul(c, (r + by_r).sigmoid(), by_c).tanh()
    return candidate + (u + by_u).sigmoid() * (hidden - candidate)


def _sides(pixels: int, height: int | None, width: int | None) -> tuple[int, int]:
    if height is None and width is None:
        return isqrt(pixels), isqrt(pixels)
    if height is None:
        return pixels // max(1, width or 1), width or 1
    return height, pixels // max(1, height) if width is None else width


def _fits(number: Any, may_be_none: bool) -> bool:
    return (number is None and may_be_none) or (isinstance(number, int) and number >= 1)


def _problems(settings: Mapping[str, Any], layout: str) -> list[str]:
    problems = size_problems(settings, layout)
    if settings["covariates"]:
        problems.append(f"frames have no covariates; got covariates={settings['covariates']}: use 0")
    problems += [
        f"{name} must be a whole number of at least 1; got {settings[name]!r}"
        for name in ("frame_channels", "channels", "kernel", "height", "width")
        if not _fits(settings[name], name in ("height", "width"))
    ]
    if isinstance(settings["kernel"], int) and settings["kernel"] % 2 == 0:
        problems.append(f"kernel must be odd, so that frames keep their size; got {settings['kernel']}")
    if problems:
        return problems
    channels, values = settings["frame_channels"], settings["values"]
    height, width = _sides(values // channels, settings["height"], settings["width"])
    if channels * height * width != values:
        problems.append(
            f"values must be frame_channels * height * width; got {values} and {channels} * {height} * {width} = "
            f"{channels * height * width}: give height and width"
        )
    return problems
