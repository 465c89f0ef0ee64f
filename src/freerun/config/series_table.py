"""A table of a series as a user gives it for a trained model, and the table of what the model says."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from freerun.config.data_sections import DataFile
from freerun.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from freerun.data import SeriesCoder
    from freerun.training.forecast_scores import Windows

__all__ = ["Table", "read_windows", "said_table"]

_SHOWN = 20


@dataclass(frozen=True)
class Table:
    """The cells of a CSV table with a header.

    Args:
        names: of the columns.
        rows: their cells, as text.
        places: where each row stands.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    places: tuple[str, ...]

    @classmethod
    def read(cls, lines: Sequence[str], places: Sequence[str]) -> Table:
        """A table from its lines; cells are parted by commas, or by what the header is parted by.

        Raises:
            UserError: rows with more or fewer cells than the header; all at once.

        >>> Table.read(["a;b", "1;2"], ["f:1", "f:2"]).rows
        (('1', '2'),)
        """
        separator = next((each for each in ",;\t" if each in lines[0]), ",")
        cells = [tuple(cell.strip() for cell in next(csv.reader([line], delimiter=separator))) for line in lines]
        names, rows = cells[0], cells[1:]
        problems = [
            f"{place}: has {len(row)} cells, and the header {len(names)}"
            for row, place in zip(rows, places[1:], strict=True)
            if len(row) != len(names)
        ]
        if problems:
            raise UserError(problems[:_SHOWN])
        return cls(names, tuple(rows), tuple(places[1:]))

    def column(self, name: str) -> list[str]:
        """Its cells."""
        place = self.names.index(name)
        return [row[place] for row in self.rows]

    def past_and_future(self, coder: SeriesCoder) -> tuple[Tensor, Tensor | None]:
        """(rows, channels) of the past, and (horizon, covariates) of the steps to come where the model reads any.

        The past ends before the rows at the end whose targets are all empty.

        Raises:
            UserError: see ``numbers``; covariates of the steps to come are missing.
        """
        self._check_columns(coder)
        targets = [self.column(name) for name in coder.names]
        known = len(self.rows)
        while known and not any(cells[known - 1] for cells in targets):
            known -= 1
        past = self.numbers(coder, range(known))
        if not coder.covariates:
            return past, None
        told = coder.channels[len(coder.channels) - coder.covariates : len(coder.channels) - 2 * len(coder.calendar)]
        rows = range(known, min(known + coder.horizon, len(self.rows)))
        if told and len(rows) < coder.horizon:
            raise UserError(
                f"covariates are missing at generation: the model reads {', '.join(told)} of the {coder.horizon} steps "
                f"to come, and the table has {len(rows)} rows after the past\n"
                "  help: go on with the table, the targets left empty"
            )
        return past, self._future(coder, told, rows, known)

    def numbers(self, coder: SeriesCoder, rows: range) -> Tensor:
        """(rows, channels) float64, in the order of the model.

        Raises:
            UserError: columns that are missing, cells that are not finite numbers; all at once.
        """
        self._check_columns(coder)
        plain = coder.channels[: len(coder.channels) - 2 * len(coder.calendar)]
        return self._with_calendar(coder, self._plain(plain, rows), [self.stamp(coder, row) for row in rows])

    def stamp(self, coder: SeriesCoder, row: int) -> Any:
        """Time stamp of a row; None where the model knows no time column, or the table has none."""
        if coder.time is None or coder.time not in self.names:
            return None
        cell = self.column(coder.time)[row]
        for read in (float, datetime.fromisoformat):
            try:
                return read(cell)
            except ValueError:
                continue
        raise UserError(f"{self.places[row]}: {coder.time} must be an ISO date and time, or a number; got {cell!r}")

    def _check_columns(self, coder: SeriesCoder) -> None:
        needed = list(coder.channels[: len(coder.channels) - 2 * len(coder.calendar)])
        needed += [coder.time] if coder.calendar and coder.time else []
        if missing := [name for name in needed if name not in self.names]:
            raise UserError(
                f"the table has no column {', '.join(missing)}; it has {', '.join(self.names)}\n"
                f"  help: the model was trained on {', '.join(needed)}"
            )

    def _plain(self, names: Sequence[str], rows: range) -> Tensor:
        import torch

        problems: list[str] = []
        found: list[list[float]] = []
        columns = {name: self.column(name) for name in names}
        for row in rows:
            found.append([])
            for name in names:
                try:
                    value = float(columns[name][row])
                except ValueError:
                    value = math.nan
                found[-1].append(value)
                if not math.isfinite(value):
                    problems.append(f"{self.places[row]}: {name} must be a number; got {columns[name][row]!r}")
        if problems:
            more = [f"... and {len(problems) - _SHOWN} more cells"] if len(problems) > _SHOWN else []
            raise UserError([*problems[:_SHOWN], *more])
        return torch.tensor(found, dtype=torch.float64).reshape(len(found), len(names))

    def _future(self, coder: SeriesCoder, told: Sequence[str], rows: range, known: int) -> Tensor:
        import torch

        if not told:
            rows = range(known, known)
        plain = self._plain(told, rows) if told else torch.zeros(coder.horizon, 0, dtype=torch.float64)
        return self._with_calendar(coder, plain, later(coder, self.stamp(coder, known - 1)) if known else [])

    def _with_calendar(self, coder: SeriesCoder, plain: Tensor, stamps: Sequence[Any]) -> Tensor:
        import torch

        from freerun.data.series.calendar import calendar_columns

        if not coder.calendar:
            return plain
        if wrong := [stamp for stamp in stamps if not isinstance(stamp, datetime)]:
            raise UserError(f"{coder.time} must be a date and time, for the calendar; got {wrong[0]!r}")
        return torch.cat([plain, torch.from_numpy(calendar_columns(coder.calendar, stamps))], 1)


def later(coder: SeriesCoder, stamp: Any) -> list[Any]:
    """The time stamps of the steps to come; [] where there is none to count from."""
    from freerun.data.series.calendar import Step

    if stamp is None or coder.step is None:
        return []
    step = Step.parse(coder.step)
    return [step.after(stamp, number) for number in range(1, coder.horizon + 1)]


def said_table(coder: SeriesCoder, said: Tensor, table: Table) -> list[str]:
    """Lines of CSV: a header, and for each lead time what the model says.

    Args:
        coder: of the model.
        said: (horizon, values) in the units of the data.
        table: what it was told.
    """
    targets = [table.column(name) for name in coder.names]
    known = len(table.rows)
    while known and not any(cells[known - 1] for cells in targets):
        known -= 1
    stamps = later(coder, table.stamp(coder, known - 1))
    lines = [",".join(["lead", *([coder.time] if stamps and coder.time else []), *coder.names])]
    for number, row in enumerate(said.tolist()):
        cells = [str(stamps[number])] if stamps else []
        lines.append(",".join([str(number + 1), *cells, *(f"{value:.7g}" for value in row)]))
    return lines


def read_windows(coder: SeriesCoder, file: DataFile) -> Windows:
    """Every window of a CSV file, by the scales of the training data.

    Raises:
        UserError: what is wrong with the file; it is shorter than a window.
    """
    import torch

    from freerun.training.forecast_scores import Windows

    try:
        lines = file.path.read_text(encoding=file.encoding).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file.path}: cannot be read: {error}") from None
    numbered = [(line, f"{file.path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"{file.path}: is empty; give a CSV table with a header")
    table = Table.read([line for line, _ in numbered], [place for _, place in numbered])
    length = coder.past + coder.horizon
    if len(table.rows) < length:
        raise UserError(
            f"{file.path}: has {len(table.rows)} rows, and a window needs past + horizon = {coder.past} + "
            f"{coder.horizon}: give a longer series"
        )
    rows = coder.normalise(table.numbers(coder, range(len(table.rows))))
    steps = torch.arange(length)
    return Windows(
        len(rows) - length + 1, lambda chosen: coder.batch(rows[torch.tensor(chosen)[:, None] + steps]), coder.horizon
    )
