"""What ``fr.StepModel`` costs against the loop that a person writes around the same decoder step.

The translation tutorial's decoder (additive attention, GRU): forward, loss and backward, encoder included. Both draw a
gate for every entry and feed the argmax, or a sample; the loop by hand is as short as one can be written, on the same
weights. Variants interleaved, one thread, CPU time; a price is the median of the rounds' ratios.

Run: python benchmarks/decoder_step.py [--rounds 15] [--sizes 48,256] [--batch 32] [--time 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import freerun as fr
from timing import clock_of, take

VOCAB, SOURCE = 1000, 20
RATIOS = (1.0, 0.75, 0.5, 0.0)


class Decoder(fr.StepModel):
    """The tutorial's encoder and attention decoder."""

    batch_dim: ClassVar[Any] = {"hidden": 1}

    def __init__(self, size: int) -> None:
        super().__init__()
        self.source, self.encoder = nn.Embedding(VOCAB, size), nn.GRU(size, size, batch_first=True)
        self.embedding, self.gru = nn.Embedding(VOCAB + 1, size), nn.GRU(2 * size, size, batch_first=True)
        self.query, self.keys, self.score = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, 1)
        self.out = nn.Linear(size, VOCAB)

    def start(self, batch: fr.Batch) -> tuple[Tensor, Any]:
        memory, hidden = self.encoder(self.source(batch.context))
        return torch.full((batch.size,), VOCAB), {"hidden": hidden, "memory": memory, "keys": self.keys(memory)}

    def step(self, entries: Tensor, state: Any) -> tuple[Tensor, Any]:
        scores = self.score(torch.tanh(self.query(state["hidden"].transpose(0, 1)) + state["keys"]))
        attended = scores.softmax(1).transpose(1, 2) @ state["memory"]
        outputs, hidden = self.gru(torch.cat([self.embedding(entries)[:, None], attended], -1), state["hidden"])
        return self.out(outputs[:, 0]), {**state, "hidden": hidden}


def by_hand(model: Decoder, batch: fr.Batch, ratio: float, sampled: bool) -> None:
    """The loop as one writes it, loss and backward."""
    entries, state = model.start(batch)
    outputs: list[Tensor] = []
    for t in range(batch.time):
        logits, state = model.step(entries, state)
        outputs.append(logits)
        if ratio == 1:
            entries = batch.targets[:, t]
            continue
        own = torch.multinomial(logits.detach().softmax(-1), 1).squeeze(1) if sampled else logits.argmax(-1).detach()
        entries = own if ratio == 0 else torch.where(torch.rand(batch.size) < ratio, batch.targets[:, t], own)
    F.cross_entropy(torch.stack(outputs, 1).flatten(0, 1), batch.targets.flatten()).backward()


def prices(size: int, rows: int, time: int, rounds: int) -> list[dict[str, Any]]:
    """A line for each ratio and draw."""
    torch.manual_seed(0)
    model = Decoder(size)
    batch = fr.Batch(torch.randint(VOCAB, (rows, time)), context=torch.randint(VOCAB, (rows, SOURCE)))
    lines: list[dict[str, Any]] = []
    for draw in ("greedy", "sample"):
        for ratio in RATIOS:
            method = fr.scheduled_sampling(ratio, draw=draw)

            def ours(n: int, method: Any = method) -> fr.Outcome:
                outcome = method.run(model, batch, n, 0)
                outcome.loss.backward()
                return outcome

            def hand(n: int, ratio: float = ratio, draw: str = draw) -> None:
                by_hand(model, batch, ratio, draw == "sample")

            taken = take({"by hand": hand, "StepModel": ours}, rounds, clock_of("cpu"))
            seconds = {name: each.seconds for name, each in taken.items()}
            price = statistics.median(a / b for a, b in zip(seconds["StepModel"], seconds["by hand"], strict=True))
            median = statistics.median(seconds["by hand"])
            lines.append({"size": size, "draw": draw, "ratio": ratio, "price": price, "by_hand_ms": 1e3 * median})
    return lines


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", default="48,256")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--time", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        each
        for size in arguments.sizes.split(",")
        for each in prices(int(size), arguments.batch, arguments.time, arguments.rounds)
    ]
    if arguments.json:
        print(json.dumps(lines))
        return
    print(f"{'size':>5} {'draw':>7} {'ratio':>6} {'price':>6} {'by hand, ms':>12}")
    for each in lines:
        print(f"{each['size']:5} {each['draw']:>7} {each['ratio']:6g} {each['price']:6.3f} {each['by_hand_ms']:12.1f}")


if __name__ == "__main__":
    main()
