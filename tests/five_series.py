"""Five small series made by a rule, as people have them, with gaps where the rule has gaps."""

from pathlib import Path

import numpy as np

ROWS, SEASON = 900, 12


def trend_and_season(draw: np.random.Generator) -> np.ndarray:
    t = np.arange(ROWS)
    return 0.02 * t + (2 + 0.003 * t) * np.sin(2 * np.pi * t / SEASON) + 0.3 * draw.normal(size=ROWS)


def level_shifts(draw: np.random.Generator) -> np.ndarray:
    levels = np.repeat(draw.normal(size=ROWS // 60) * 5, 60)
    return levels + np.sin(2 * np.pi * np.arange(ROWS) / SEASON) + 0.3 * draw.normal(size=ROWS)


def random_walk(draw: np.random.Generator) -> np.ndarray:
    return 100 + draw.normal(size=ROWS).cumsum()


def two_scales(draw: np.random.Generator) -> np.ndarray:
    """A slow one and a fast one, a thousand times smaller."""
    t = np.arange(ROWS)
    slow = 1000 * np.sin(2 * np.pi * t / 170) + draw.normal(size=ROWS).cumsum() * 20
    return np.stack([slow, np.sin(2 * np.pi * t / SEASON + 0.3) + 0.2 * draw.normal(size=ROWS)], 1)


def gaps(draw: np.random.Generator) -> np.ndarray:
    """An autoregression with a season, of which a twentieth is missing, some of it in runs."""
    noise, values = draw.normal(size=ROWS), np.zeros(ROWS)
    for t in range(1, ROWS):
        values[t] = 0.9 * values[t - 1] + noise[t]
    values += 50 + 4 * np.sin(2 * np.pi * np.arange(ROWS) / SEASON)
    values[draw.random(ROWS) < 0.03] = np.nan
    for start in draw.integers(10, ROWS - 10, 4):
        values[start : start + 5] = np.nan
    values[0] = 50.0
    return values


FIVE = {
    "trend and season": trend_and_season, "level shifts": level_shifts, "random walk": random_walk,
    "two scales": two_scales, "gaps": gaps,
}  # fmt: skip


def write_series(path: Path, name: str, seed: int = 0) -> Path:
    """A CSV file of one of them; an empty cell where a value is missing."""
    values = FIVE[name](np.random.default_rng(seed)).reshape(ROWS, -1)
    columns = [f"y{n}" for n in range(1, values.shape[1] + 1)]
    rows = [",".join("" if np.isnan(cell) else f"{cell:.6g}" for cell in row) for row in values]
    path.write_text("\n".join([",".join(["t", *columns]), *(f"{t},{row}" for t, row in enumerate(rows))]) + "\n")
    return path
