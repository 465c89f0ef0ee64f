"""What exact scheduled sampling costs, as a ratio to teacher forcing on the same model in the same run.

A price is the median over repetitions of (decoder step with scheduled sampling) / (decoder step with teacher
forcing), the two interleaved, one thread: forward, loss and backward of the decoder, without encoder and optimiser.
Beside it stand the loop people write by hand, on the same weights, and the price of a whole training step.

Run: python benchmarks/roll_in.py [--json] [--ratios 0.75,1] [--repetitions 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

import freerun as fr
from freerun.models import RecurrentSeq2Seq
from freerun.models.recurrent import Encoded

# hidden, batch, time, vocab
SHAPES = ((512, 32, 20, 50), (128, 32, 20, 50), (512, 32, 20, 8000))
SOURCE_TIME, SOURCE_VOCAB = 20, 30
Timed = Callable[[], object]


def batch_of(batch: int, time_: int, vocab: int) -> fr.Batch:
    """Random ids, no padding."""
    g = torch.Generator().manual_seed(0)
    targets = torch.randint(0, vocab, (batch, time_), generator=g)
    source = torch.randint(1, SOURCE_VOCAB, (batch, SOURCE_TIME), generator=g)
    context = {"source": source, "source_mask": torch.ones_like(source, dtype=torch.bool)}
    return fr.Batch(targets, targets, torch.ones_like(targets, dtype=torch.bool), context)


def encoded(model: RecurrentSeq2Seq, batch: fr.Batch) -> fr.Batch:
    """The batch with its source encoded, cut off from the encoder's graph but with a gradient of its own."""
    with torch.no_grad():
        source: Encoded = model.encode(batch).context
    leaves = [part.clone().requires_grad_() for part in (*source.hidden, *source.cell)]
    hidden, cell = tuple(leaves[: len(source.hidden)]), tuple(leaves[len(source.hidden) :])
    return batch.replace(context=replace(source, memory=source.memory.requires_grad_(), hidden=hidden, cell=cell))


def hand_written(model: RecurrentSeq2Seq, batch: fr.Batch, ratio: float) -> Tensor:
    """The usual loop: cell, attention, projection and a sample at every step, with the graph kept."""
    source: Encoded = batch.context
    layer = model.decoder
    weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
    h, c = source.hidden[0], source.cell[0]
    x = model.start_vector.expand(batch.size, -1)
    outputs = []
    for t in range(batch.time):
        h, c = torch.lstm_cell(x, (h, c), *weights)
        scores = torch.bmm(source.memory, model.query(h)[:, :, None])[:, :, 0]
        attended = torch.bmm(scores.softmax(-1)[:, None], source.memory)[:, 0]
        logits = model.out(torch.tanh(model.combine(torch.cat([h, attended], -1))))
        outputs.append(logits)
        if t + 1 < batch.time:
            own = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
            keep = torch.rand(batch.size) < ratio
            x = model.embedding(torch.where(keep, batch.history[:, t], own))
    return F.cross_entropy(torch.stack(outputs, 1).flatten(0, 1), batch.targets.flatten())


def interleaved(variants: dict[str, Timed], repetitions: int) -> dict[str, float]:
    """Median over repetitions of each variant's CPU seconds divided by those of ``teacher_forcing``."""
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repetitions):
        for name, run in variants.items():
            # CPU time of this one-threaded process: what else the machine does is left out
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    base = seconds["teacher_forcing"]
    return {name: statistics.median(s / b for s, b in zip(each, base, strict=True)) for name, each in seconds.items()}


def stepper(model: RecurrentSeq2Seq, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer | None) -> Timed:
    """Zero gradients, forward, backward, and an optimizer step where there is an optimizer."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()
        if optimizer is not None:
            optimizer.step()

    return run


def row(shape: tuple[int, int, int, int], ratio: float, repetitions: int) -> dict[str, object]:
    """One line of the table."""
    hidden, batch_size, time_, vocab = shape
    torch.manual_seed(0)
    model = RecurrentSeq2Seq(SOURCE_VOCAB, vocab, size=hidden)
    whole = batch_of(batch_size, time_, vocab)
    decoder = encoded(model, whole)
    method, plain = fr.scheduled_sampling(ratio), fr.teacher_forcing()
    outcome = method.run(model, decoder)
    prices = interleaved(
        {
            "teacher_forcing": stepper(model, lambda: plain(model, decoder), None),
            "scheduled_sampling": stepper(model, lambda: method(model, decoder), None),
            "hand_written": stepper(model, lambda: hand_written(model, decoder, ratio), None),
        },
        repetitions,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    steps = interleaved(
        {
            "teacher_forcing": stepper(model, lambda: plain(model, whole), optimizer),
            "scheduled_sampling": stepper(model, lambda: method(model, whole), optimizer),
        },
        repetitions,
    )
    return {
        "model": "lstm-attention",
        "hidden": hidden,
        "batch": batch_size,
        "time": time_,
        "vocab": vocab,
        "teacher_forcing_ratio": ratio,
        "engine": outcome.report["engine"],
        "price": round(prices["scheduled_sampling"], 3),
        "hand_written_price": round(prices["hand_written"], 3),
        "training_step_price": round(steps["scheduled_sampling"], 3),
        "extra_model_calls": outcome.report["passes"],
    }


def main() -> None:
    """Print the table, or the JSON list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="a JSON list, one object a shape and ratio")
    parser.add_argument("--ratios", default="0.75", help="teacher forcing ratios, with commas")
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratios = [float(ratio) for ratio in arguments.ratios.split(",")]
    rows = [row(shape, ratio, arguments.repetitions) for shape in SHAPES for ratio in ratios]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'':>22} {'ratio':>6} {'price':>7} {'by hand':>8} {'whole step':>11} {'extra calls':>12}")
    for r in rows:
        shape = f"H{r['hidden']} B{r['batch']} T{r['time']} V{r['vocab']}"
        numbers = f"{r['price']:>7.2f} {r['hand_written_price']:>8.2f} {r['training_step_price']:>11.2f}"
        print(f"{shape:>22} {r['teacher_forcing_ratio']:>6} {numbers} {r['extra_model_calls']:>12}")


if __name__ == "__main__":
    main()
