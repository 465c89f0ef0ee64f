"""The price of scheduled sampling of values: detached against teacher forcing, with gradient against a loop by hand.

A price is the median over repetitions of the CPU time of a step (forward, loss, backward; one thread) over that of the
step it is compared with, on the same model, batch and weights, all variants interleaved.

Run: python benchmarks/vectors.py [--json] [--size 256] [--batch 64] [--time 100] [--repetitions 9]
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from torch import Tensor, nn

import freerun as fr
from timing import clock_of, prices, take

RATIOS = (0.9, 0.75, 0.5, 0.25, 0.0)


class ByHand(nn.Module):
    """The usual loop by hand: a cell, a layer, and a gate for every row and step, with gradient."""

    def __init__(self, model: fr.models.PlainForecaster) -> None:
        super().__init__()
        layers = model.decoder
        self.cell = nn.GRUCell(layers.input_size, layers.hidden_size)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self.cell, name, getattr(layers, f"{name}_l0"))
        self.out = model.out

    def forward(self, batch: fr.Batch, keep: Tensor) -> Tensor:
        """The mean squared error of the loop."""
        hidden = batch.history.new_zeros(batch.size, self.cell.hidden_size)
        entry = torch.zeros_like(batch.history[:, 0])
        outputs = []
        for t in range(batch.time):
            hidden = self.cell(entry, hidden)
            outputs.append(self.out(hidden))
            entry = torch.where(keep[:, t, None], batch.history[:, t], outputs[t])
        return nn.functional.mse_loss(torch.stack(outputs, 1), batch.targets)


def measured(size: int, rows: int, time: int, repetitions: int) -> list[dict[str, float]]:
    """A line for each ratio."""
    torch.manual_seed(0)
    model = fr.models.PlainForecaster(3, size=size)
    values = torch.randn(rows, time, 3)
    batch = fr.Batch(values, values, torch.ones(rows, time, dtype=torch.bool))
    by_hand = ByHand(model)

    def freerun_step(method):
        def step(n: int) -> fr.Outcome:
            model.zero_grad()
            outcome = method.run(model, batch, n, n)
            outcome.loss.backward()
            return outcome

        return step

    def hand(ratio: float):
        def step(n: int) -> None:
            model.zero_grad()
            gate = fr.keys.fold(n, "gate", n)
            by_hand(batch, fr.gates.token()(batch, ratio, gate)).backward()

        return step

    lines: list[dict[str, float]] = []
    for ratio in RATIOS:
        steps = {
            "teacher forcing": freerun_step(fr.teacher_forcing()),
            "detached": freerun_step(fr.scheduled_sampling(ratio, gradient="none")),
            "full": freerun_step(fr.scheduled_sampling(ratio, gradient="full")),
            "by hand": hand(ratio),
            "cut every 10": freerun_step(fr.scheduled_sampling(ratio, gradient=10)),
        }
        taken = take(steps, repetitions, clock_of("cpu"))
        to_forcing, to_hand = prices(taken, "teacher forcing"), prices(taken, "by hand")
        lines.append(
            {
                "ratio": ratio,
                "teacher_forcing_ms": 1e3 * statistics.median(taken["teacher forcing"].seconds),
                "detached": to_forcing["detached"],
                "full": to_forcing["full"],
                "by_hand": to_forcing["by hand"],
                "cut_every_10": to_forcing["cut every 10"],
                "full_over_by_hand": to_hand["full"],
            }
        )
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    for name, default in (("size", 256), ("batch", 64), ("time", 100), ("repetitions", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = measured(options.size, options.batch, options.time, options.repetitions)
    if options.json:
        print(json.dumps({**vars(options), "lines": lines}, indent=1))
        return
    print(f"GRU forecaster, H{options.size} B{options.batch} T{options.time}, 3 channels; prices to teacher forcing")
    print("| ratio | teacher forcing ms | detached | full | by hand | cut every 10 | full / by hand |")
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        ratio, milliseconds, *rest = line.values()
        print(f"| {ratio:g} | {milliseconds:.1f} | " + " | ".join(f"{price:.2f}" for price in rest) + " |")


if __name__ == "__main__":
    main()
