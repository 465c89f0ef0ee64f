"""Tables of a series for a trained model: what it is scored on, what it goes on from, what it says."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from freerun.config.data_sections import DataFile
from freerun.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from freerun.data import SeriesCoder
    from freerun.training.forecast_scores import Windows

__all__ = ["read_windows", "said_table", "separator_of"]


def separator_of(path: Path) -> str:
    """What the cells of a CSV file's header are parted by: a comma, or where there is none a semicolon or a tab."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            header = file.readline()
    except OSError:
        return ","  # whoever reads the table says what is wrong with the file
    return next((each for each in ",;\t" if each in header), ",")


def said_table(coder: SeriesCoder, said: Tensor) -> list[str]:
    """Lines of CSV: a header, and for each lead time what the model says.

    Args:
        coder: of the model.
        said: (horizon, values) in the units of the data.
    """
    rows = [
        ",".join([str(lead), *(f"{value:.7g}" for value in row)]) for lead, row in enumerate(said.tolist(), start=1)
    ]
    header = io.StringIO()
    csv.writer(header, lineterminator="").writerow(["lead", *coder.names])
    return [header.getvalue(), *rows]


def read_windows(coder: SeriesCoder, file: DataFile) -> Windows:
    """Every window of a CSV or Parquet file, by the scales of the training data; none lies in two series.

    Raises:
        UserError: columns that are missing, cells that are no finite numbers, rows that are not one step apart, a file
            that is shorter than a window.
    """
    import numpy as np
    import torch

    from freerun.data.series.calendar import calendar_columns
    from freerun.data.series.gaps import cell_problems, endless, far
    from freerun.data.series.recent import own_columns, spaced
    from freerun.data.series.tables import read_table
    from freerun.data.text import first_problems, lines_of_column
    from freerun.training.forecast_scores import Windows

    table = read_table(file.path, separator_of(file.path))
    own = own_columns(table, coder, *filter(None, [coder.series]))
    block = np.zeros((len(table.frame), len(own)))
    problems: list[str] = []
    for number, name in enumerate(own):
        block[:, number], strange = table.numbers(name)
        block[strange, number] = coder.mean[number]  # said once, and not again as missing
        problems += lines_of_column(strange, len(block), lambda row, name=name: table.no_number(name, row))
    mean, std = (np.array(scale[: len(own)]) for scale in (coder.mean, coder.std))
    faults = [(np.isnan(block), "is missing; give a number"), *endless(block), *far(block, mean, std)]
    problems += cell_problems(faults, own, table.place)
    groups = [rows for _, rows in table.groups(coder.series)]
    stamps, wrong = spaced(table, coder, groups)
    length = coder.past + coder.horizon
    ends = np.cumsum([len(rows) for rows in groups]).tolist()
    starts = [
        first for rows, end in zip(groups, ends, strict=True) for first in range(end - len(rows), end - length + 1)
    ]
    if not starts:
        wrong.append(
            f"{file.path}: has {max(map(len, groups))} rows{' in its longest series' if coder.series else ''}, and a "
            f"window needs past + horizon = {coder.past} + {coder.horizon}: give a longer series"
        )
    if problems := first_problems(str(file.path), problems) + wrong:
        raise UserError(problems)
    if coder.calendar:
        block = np.concatenate([block, calendar_columns(coder.calendar, stamps)], 1)  # pyright: ignore
    found, steps = coder.normalise(torch.from_numpy(block[np.concatenate(groups)])), torch.arange(length)
    firsts = torch.tensor(starts)
    return Windows(
        len(starts), lambda chosen: coder.batch(found[firsts[torch.tensor(chosen)][:, None] + steps]), coder.horizon
    )
