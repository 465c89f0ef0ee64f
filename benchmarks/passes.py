"""Count the model calls of an exact roll-in, by ratio and length.

Parallel passes (``engine="jacobi"``) include the last, certifying one; rows are dropped as they converge, so their
work, in forwards of the full batch, is less than their number. Windows read every position about once; their calls are
counted. The number of passes depends on the coupling of the draw.

Run: python benchmarks/passes.py [--updates 300] [--markdown] [--svg FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import freerun as fr
import tables
from cases import Shape, made_case
from freerun.draws import Greedy, Sample
from passes_figure import figure

__all__ = ["count", "counted", "table"]

DRAWS: dict[str, Any] = {
    "sample, Gumbel": Sample(coupling="gumbel"),
    "sample, inverse CDF": Sample(),
    "greedy": Greedy(),
}
RATIOS = (0.9, 0.75, 0.5, 0.25, 0.0)
LENGTHS = (16, 32, 64, 128)
WIDTHS = (1, 8)


def _batches(ids: torch.Tensor, rows: int) -> list[fr.Batch]:
    return [fr.Batch(part, part, torch.ones_like(part, dtype=torch.bool)) for part in ids.split(rows)]


def windows(lengths: Sequence[int], rows: int, batches: int, updates: int) -> tuple[nn.Module, str, Any]:
    """A language model, trained for some updates on the longest windows, its description, and batches by length."""
    case = made_case("decoder-only", Shape(128, 4, rows * batches, max(lengths), 100), updates=updates)
    ids = case.batches[0].targets
    return case.model, case.weights, {length: _batches(ids[:, :length], rows) for length in lengths}


def counted(model: nn.Module, batches: Any, ratios: Sequence[float] = RATIOS) -> list[dict[str, Any]]:
    """Calls and work, means over batches, by draw, length and ratio."""
    found: list[dict[str, Any]] = []
    for name, draw in DRAWS.items():
        for length, own in batches.items():
            for ratio in ratios:
                one: dict[str, Any] = {"draw": name, "time": length, "teacher_forcing_ratio": ratio}
                one |= {f"jacobi_{what}": value for what, value in count(model, own, ratio, draw, "jacobi").items()}
                for width in WIDTHS:
                    engine = fr.Window(width)
                    one |= {f"window_{width}_{k}": v for k, v in count(model, own, ratio, draw, engine).items()}
                found.append(one)
        print(name, file=sys.stderr, flush=True)
    return found


def count(model: nn.Module, batches: Sequence[fr.Batch], ratio: float, draw: Any, engine: Any) -> dict[str, float]:
    """Mean calls and work of a roll-in over some batches."""
    method = fr.scheduled_sampling(ratio, draw=draw, engine=engine)
    reports = [method.mix_history(model, batch, 0, n)[1] for n, batch in enumerate(batches)]
    means = {what: sum(float(report[what]) for report in reports) / len(reports) for what in ("passes", "work")}
    return {"calls": round(means["passes"], 2), "work": round(means["work"], 2)}


def table(found: Sequence[dict[str, Any]]) -> tables.Table:
    """Passes (work) by draw, length and ratio, and the calls of windows."""
    ratios = list(dict.fromkeys(one["teacher_forcing_ratio"] for one in found))
    rows: list[list[str]] = []
    for draw in DRAWS:
        for time in dict.fromkeys(one["time"] for one in found):
            mine = [one for one in found if (one["draw"], one["time"]) == (draw, time)]
            rows.append([f"jacobi, {draw}", str(time), *[_cell(one, "jacobi") for one in mine]])
    for width in WIDTHS:
        for time in dict.fromkeys(one["time"] for one in found):
            mine = [one for one in found if (one["draw"], one["time"]) == ("sample, inverse CDF", time)]
            rows.append([f"window {width}, inverse CDF", str(time), *[_cell(one, f"window_{width}") for one in mine]])
    return ["calls (work)", "T", *[f"ratio {ratio:g}" for ratio in ratios]], rows


def _cell(one: dict[str, Any], engine: str) -> str:
    return tables.count(one[f"{engine}_calls"], one[f"{engine}_work"])


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=0, help="of training on source code before counting")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="positions, with commas")
    parser.add_argument("--rows", type=int, default=32, help="of a batch: passes are those of its slowest row")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--svg", type=Path, help="draw passes against ratio and length into this file")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    lengths = [int(length) for length in arguments.lengths.split(",")]
    model, about, batches = windows(lengths, arguments.rows, arguments.batches, arguments.updates)
    found = counted(model.eval(), batches)
    if arguments.svg:
        arguments.svg.write_text(figure(found), encoding="utf-8")
    if arguments.json:
        print(json.dumps([{**one, "weights": about, "batch": arguments.rows} for one in found], indent=1))
        return
    print(f"{about}; batches of {arguments.rows}, means over {arguments.batches}\n")
    print((tables.markdown if arguments.markdown else tables.plain)(table(found)))


if __name__ == "__main__":
    main()
