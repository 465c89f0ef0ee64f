"""Moving digits and shapes: films drawn from a rule, for models of frames."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from freerun.arguments import brief
from freerun.data.files import Array
from freerun.data.series.options import SPLITS, Layout, check_layout, number_problems
from freerun.data.series.windows import Segment, SeriesCodec, SeriesData
from freerun.errors import UserError, whole
from freerun.keys import fold, uniform

_DIGITS = """
 .###. ..#.. .###. .###. ...#. ##### .###. ##### .###. .###.
 #...# .##.. #...# #...# ..##. #.... #.... ....# #...# #...#
 #...# ..#.. ....# ....# .#.#. ####. #.... ...#. #...# #...#
 #...# ..#.. ...#. ..##. #..#. ....# ####. ..#.. .###. .####
 #...# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....#
 #...# ..#.. .#... #...# ...#. #...# #...# .#... #...# #...#
 .###. .###. ##### .###. ...#. .###. .###. .#... .###. .###.
"""

_SHAPES = """
 ..#.. #...# ##### ..#.. #####
 .###. .#.#. #...# ..#.. .###.
 ##### ..#.. #...# ##### ..#..
 .###. .#.#. #...# ..#.. .###.
 ..#.. #...# ##### ..#.. #####
"""


def _bitmaps(drawing: str) -> Array:
    """(glyphs, height, width) of 0 and 1."""
    rows = [line.split() for line in drawing.strip().splitlines()]
    return np.array([[[mark == "#" for mark in row[glyph]] for row in rows] for glyph in range(len(rows[0]))], float)


GLYPHS: dict[str, Array] = {"digits": _bitmaps(_DIGITS), "shapes": _bitmaps(_SHAPES)}
"""Kind -> (glyphs, height, width): ten digits of 7 x 5 points, five shapes of 5 x 5."""


@dataclass(frozen=True)
class FrameOptions:
    """What moves, over which canvas, and how many windows of it.

    Args:
        past: frames known before what is predicted.
        horizon: frames predicted.
        windows: numbers of training, dev and test windows; each is a film of its own.
        height: of the canvas, in points.
        width: of the canvas, in points.
        glyphs: "digits" or "shapes".
        objects: glyphs that move at once, through each other.
        speed: points a frame, at most, along each axis; at least half of it.
        seed: of the films.
        warmup_loss: layout "sequence": training windows carry loss on the past too, but for its first frame.

    Raises:
        UserError: values that are not allowed; all of them at once.
    """

    __repr__ = brief

    past: int = 5
    horizon: int = 10
    windows: tuple[int, int, int] = (1024, 128, 256)
    height: int = 16
    width: int = 16
    glyphs: str = "digits"
    objects: int = 2
    speed: float = 1.5
    seed: int = 0
    warmup_loss: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        problems = number_problems(self, "past", "horizon", "height", "width", "objects")
        if len(self.windows) != 3 or not all((whole(number) or 0) >= 1 for number in self.windows):
            problems.append(f"windows must be three numbers from 1: train, dev and test; got {self.windows}")
        if not (isinstance(self.speed, int | float) and 0 < self.speed < float("inf")):
            problems.append(f"speed must be above 0; got {self.speed}")
        if self.glyphs not in GLYPHS:
            problems.append(f"glyphs must be one of {', '.join(GLYPHS)}; got {self.glyphs!r}")
        elif not problems:
            _, high, wide = GLYPHS[self.glyphs].shape
            if self.height <= high or self.width <= wide:
                problems.append(
                    f"height and width must leave room to move for {self.glyphs} of {high} x {wide}; got "
                    f"{self.height} x {self.width}"
                )
        if problems:
            raise UserError(problems)


@lru_cache(maxsize=4)
def films(options: FrameOptions) -> Array:
    """(films, past + horizon, height, width) float64 in [0, 1]: train, dev, test; a function of the seed.

    Every glyph goes straight on at its own speed and bounces off the walls. It stands between points: a point's
    brightness is what of the glyph covers it (bilinear). Where glyphs meet, the brighter one is seen. After the first
    frame nothing is random: glyphs, places and speeds determine all.

    >>> films(FrameOptions(windows=(2, 1, 1))).shape
    (4, 15, 16, 16)
    """
    count, time = sum(options.windows), options.past + options.horizon
    glyphs = GLYPHS[options.glyphs]
    _, high, wide = glyphs.shape
    numbers = uniform(
        fold(options.seed, "films"),
        torch.arange(count)[:, None, None],
        torch.arange(options.objects)[:, None],
        torch.arange(7),
    ).numpy()
    which = (numbers[..., 0] * len(glyphs)).astype(int)
    canvas = np.zeros((count, time, options.height, options.width))
    for number in range(options.objects):
        places: list[Array] = []
        for axis, room in enumerate((options.height - high, options.width - wide)):
            begin, fast, way = (numbers[:, number, 1 + axis + 2 * part] for part in range(3))
            velocity = options.speed * (1 + fast) / 2 * np.where(way < 0.5, -1, 1)
            # unfolded: a glyph between walls is one that goes straight on in a mirrored corridor
            along = (begin * room)[:, None] + velocity[:, None] * np.arange(time)
            places.append(room - np.abs(along % (2 * room) - room))
        rows = _cover(places[0], high, options.height)
        columns = _cover(places[1], wide, options.width)
        seen = np.einsum("ftyh,fhw,ftxw->ftyx", rows, glyphs[which[:, number]], columns, optimize=True)
        canvas = np.maximum(canvas, seen)
    canvas = canvas.clip(0, 1)
    canvas.setflags(write=False)
    return canvas


def _cover(places: Array, size: int, room: int) -> Array:
    """(films, time, room, size): how much of each of a glyph's points lies on each point of the canvas."""
    apart = np.arange(room)[:, None] - (places[..., None, None] + np.arange(size))
    return np.maximum(0, 1 - np.abs(apart))


def load_frames(options: FrameOptions | None = None, layout: Layout = "sequence") -> SeriesData:
    """Windows of films as series of ``height * width`` values in [0, 1], which are not normalised.

    Every window is a film of its own; those of train, dev and test come from different random numbers.

    Args:
        options: what moves, and how many windows; the defaults of ``FrameOptions`` if left out.
        layout: "sequence" or "past", see ``SeriesCoder.batch``.

    Raises:
        UserError: an unknown layout.

    >>> data = load_frames(FrameOptions(windows=(8, 2, 2)))
    >>> data.batch([0]).targets.shape, data.windows("test"), data.values
    (torch.Size([1, 15, 256]), 2, 256)
    """
    options = options or FrameOptions()
    if problems := check_layout(layout):
        raise UserError(problems)
    drawn = films(options)
    count, time, height, width = drawn.shape
    size = height * width
    begins = torch.arange(count) * time
    starts: dict[str, torch.Tensor] = dict(zip(SPLITS, begins.split(options.windows), strict=True))
    codec = SeriesCodec(
        tuple(f"y{row}x{column}" for row in range(height) for column in range(width)),
        (0.0,) * size,
        (1.0,) * size,
        values=size,
        covariates=0,
        past=options.past,
        horizon=options.horizon,
        layout=layout,
        step="1 units",
    )
    return SeriesData(
        f"moving {options.glyphs}, {options.objects} on {height} x {width}, seed {options.seed}",
        torch.from_numpy(drawn.reshape(count * time, size).copy()),
        {split: [Segment(begin, begin + time, begin) for begin in own.tolist()] for split, own in starts.items()},
        starts,
        codec,
        warmup_loss=options.warmup_loss,
    )
