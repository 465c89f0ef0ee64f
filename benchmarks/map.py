"""The map: what predicts the gain of scheduled sampling, and over what?

Runs every point (teacher forcing, scheduled sampling, matched noise, confusion noise, no history; five seeds), then
writes DIR/map.csv and DIR/map.svg and prints tables. Finished runs are kept; the command goes on where it was stopped.

Run: python benchmarks/map.py DIR [--only NAME ...] [--seeds 5] [--workers 1]
     python benchmarks/map.py --draw benchmarks/map.csv docs/map.svg        figure and tables of a data file
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import map_figure
import map_measure
import map_runs
from freerun.errors import UserError
from freerun.training.files import replace_file


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder of the runs")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="points, such as 'ring-*'")
    parser.add_argument("--seeds", type=int, default=5, help="of every arm")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of every recipe, as in freerun")
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("CSV", "SVG"), help="draw a data file; nothing is run")
    options = parser.parse_args(arguments)
    try:
        _run(parser, options)
    except (UserError, OSError, KeyError) as error:
        missing = f"{options.draw and options.draw[0]}: no data file of the map: it has no column {error}"
        parser.error(missing if isinstance(error, KeyError) else str(error))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Draw, or run and measure; what was measured before and is not run again stays in the data file."""
    if (options.out is None) == (options.draw is None):
        parser.error("expected a folder for the runs, or --draw CSV SVG")
    if options.draw:
        rows = map_measure.read(options.draw[0])
        replace_file(options.draw[1], map_figure.figure(rows).encode())
        print(map_measure.tables(rows))
        return
    chosen = [each for each in map_runs.points() if any(fnmatch(each.name, name) for name in options.only)]
    if not chosen:
        parser.error(f"no point is called so; there are {', '.join(each.name for each in map_runs.points())}")
    chosen = [replace(each, overrides=(*each.overrides, *options.set)) for each in chosen]
    map_runs.run(chosen, options.out, options.seeds, options.workers)
    rows = []
    for point in chosen:
        print(f"measuring {point.name}", file=sys.stderr, flush=True)
        rows += map_measure.measured(point, options.out)
    data = options.out / "map.csv"
    new = {(row["world"], row["capacity"]) for row in rows}
    before = map_measure.read(data) if data.exists() else []
    map_measure.write([row for row in before if (row["world"], row["capacity"]) not in new] + rows, data)
    rows = map_measure.read(data)
    replace_file(options.out / "map.svg", map_figure.figure(rows).encode())
    print(map_measure.tables(rows))


if __name__ == "__main__":
    main()
