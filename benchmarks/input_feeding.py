"""What input feeding costs an LSTM encoder-decoder with attention: its loop against the fused layers.

Forward, loss and backward of a training step, encoder included, on ids; by teacher forcing and by scheduled sampling.
Variants interleaved, one thread, CPU time; a price is the median of the rounds' ratios to teacher forcing of the fused
layers.

Run: python benchmarks/input_feeding.py [--rounds 15] [--size 256] [--batch 64] [--time 12] [--ratio 0.75]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch

import freerun as fr
from timing import clock_of, take

SOURCE, VOCAB, WIDTH = 10, 40, 64


def main(words: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 15), ("size", 256), ("batch", 64), ("time", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ratio", type=float, default=0.75)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = torch.randint(1, VOCAB, (arguments.batch, SOURCE))
    context = {"source": source, "source_mask": source > 0}
    batch = fr.Batch(torch.randint(1, VOCAB, (arguments.batch, arguments.time)), context=context)
    methods = {"teacher forcing": fr.teacher_forcing(), "scheduled sampling": fr.scheduled_sampling(arguments.ratio)}
    models = {
        name: fr.models.RecurrentSeq2Seq(VOCAB, VOCAB, size=arguments.size, embedding=WIDTH, input_feeding=feeding)
        for name, feeding in (("fused", False), ("input feeding", True))
    }

    def step_of(method: Any, model: torch.nn.Module) -> Any:
        def step(n: int) -> fr.Outcome:
            outcome = method.run(model, batch, n, 0)
            outcome.loss.backward()
            return outcome

        return step

    steps = {
        f"{name}, {by}": step_of(method, model) for by, method in methods.items() for name, model in models.items()
    }
    taken = take(steps, arguments.rounds, clock_of("cpu"))
    base = taken["fused, teacher forcing"]
    print(f"{'':34} {'price':>6} {'ms':>8}")
    for name, each in taken.items():
        print(f"{name:34} {each.times(base):6.2f} {1e3 * statistics.median(each.seconds):8.1f}")


if __name__ == "__main__":
    main()
