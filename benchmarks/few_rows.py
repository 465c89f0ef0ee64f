"""What few rows cost against the weights of a vocabulary: rows as columns, as a share of the plain product.

Run: python benchmarks/few_rows.py [--sizes 512x8000 ...] [--rows 2 8 32] [--repetitions 20]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from freerun.models.linear import logits


def share(size: int, vocab: int, rows: int, repetitions: int) -> float:
    """CPU time of ``logits`` without gradient over that of the layer, medians of interleaved calls."""
    layer, hidden = nn.Linear(size, vocab), torch.randn(rows, size)
    took: dict[str, list[float]] = {"plain": [], "columns": []}
    with torch.no_grad():
        for _ in range(repetitions + 2):
            for name, call in (("plain", layer), ("columns", lambda x: logits(layer, x))):
                began = time.process_time()
                call(hidden)
                took[name].append(time.process_time() - began)
    return statistics.median(took["columns"][2:]) / statistics.median(took["plain"][2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["256x8000", "512x4000", "512x8000", "768x32000"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--repetitions", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| weights | " + " | ".join(f"{rows} rows" for rows in arguments.rows) + " |")
    print("| --- |" + " --- |" * len(arguments.rows))
    for name in arguments.sizes:
        size, vocab = map(int, name.split("x"))
        shares = [share(size, vocab, rows, arguments.repetitions) for rows in arguments.rows]
        print(f"| {name} | " + " | ".join(f"{each:.2f}" for each in shares) + " |")


if __name__ == "__main__":
    main()
