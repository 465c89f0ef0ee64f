"""The map: what predicts the gain of scheduled sampling?

Run: python benchmarks/map.py DIR [--seeds 5] [--only NAME ...] [--workers 1]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import map_runs


def main(arguments=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args(arguments)
    chosen = [each for each in map_runs.points() if not options.only or any(w in each.name for w in options.only)]
    map_runs.run(chosen, options.out, options.seeds, (), options.workers)


if __name__ == "__main__":
    main()
