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
    map_measure.write(rows, options.out / "map.csv")
    rows = map_measure.read(options.out / "map.csv")
    replace_file(options.out / "map.svg", map_figure.figure(rows).encode())
    print(map_measure.tables(rows))


if __name__ == "__main__":
    main()
