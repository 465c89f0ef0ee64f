"""The parts of a roll-in, as shares of a step of teacher forcing: where a price above 1 comes from.

The first column is the minimum: every position is computed once, in one forward without gradient. Windows need more for
attention (rows are padded to the longest), for several calls in a row, and for the positions of the rows.

Run: python benchmarks/parts.py [--run RUN] [--markdown]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional as F

import freerun as fr
import tables
from cases import PRESETS, Case, case_of_run, made_case
from freerun.draws import Sample
from freerun.models.transformer.decoder import CausalTransformer
from freerun.models.transformer.layers import CrossAttention, FeedForward, SelfAttention
from freerun.models.transformer.reader import PlannedReader, _Layer, _Norm, _Plan
from freerun.rollin import Replacement, eval_mode

__all__ = ["parts_table", "shares"]

REST = "row positions, masks"
# timed functions: owner, name, part; a part inside another one is subtracted from it
TIMED: tuple[tuple[Any, str, str], ...] = (
    (F, "scaled_dot_product_attention", "attention itself"),
    (SelfAttention, "forward", "projections of attention"),
    (SelfAttention, "read", "projections of attention"),
    (CrossAttention, "forward", "projections of attention"),
    (CrossAttention, "read", "projections of attention"),
    (_Layer, "attention", "projections of attention"),
    (FeedForward, "forward", "feed-forward"),
    (_Layer, "feed", "feed-forward"),
    (CausalTransformer, "_hidden", "norms, sums, embedding"),
    (CausalTransformer, "_through", "norms, sums, embedding"),
    (_Norm, "__call__", "norms, sums, embedding"),
    (PlannedReader, "__call__", "norms, sums, embedding"),
    (_Plan, "call", REST),
    (CausalTransformer, "head", "vocabulary"),
    (Replacement, "choose", "choice"),
    (Sample, "choose", "choice"),
)
RATIOS = (0.9, 0.75, 0.5, 0.25, 0.0)


class _Stopwatch:
    """CPU seconds by part, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []

    def run(self, part: str, function: Callable[..., Any], *values: Any, **named: Any) -> Any:
        self._inside.append(0.0)
        started = time.process_time()
        try:
            return function(*values, **named)
        finally:
            took = time.process_time() - started
            self.seconds[part] = self.seconds.get(part, 0.0) + took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took


@contextmanager
def _timed(watch: _Stopwatch, owner: Any, name: str, part: str) -> Generator[None]:
    plain = getattr(owner, name)

    def timed(*values: Any, **named: Any) -> Any:
        return watch.run(part, plain, *values, **named)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def shares(case: Case, ratios: Sequence[float] = RATIOS, repetitions: int = 3) -> list[dict[str, Any]]:
    """Parts of one forward without gradient and of ``auto``'s roll-ins, each divided by a step of teacher forcing."""
    model, batch = case.model, case.decoder[0]

    def forward(n: int) -> None:
        with torch.no_grad(), eval_mode(model):
            model.hidden(batch)  # pyright: ignore[reportCallIssue]

    def rolled(ratio: float) -> Callable[[int], Any]:
        return lambda n: fr.scheduled_sampling(ratio).transform(model, batch, 0, n)

    what: dict[str, Callable[[int], Any]] = {"one forward without gradient": forward}
    what |= {f"roll-in at {ratio:g}": rolled(ratio) for ratio in ratios}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in what}
    for n in range(-1, repetitions):
        step = _seconds(lambda: _teacher_forcing(case))
        for name, run in what.items():
            watch = _Stopwatch()
            with ExitStack() as stack:
                for each in TIMED:
                    stack.enter_context(_timed(watch, *each))
                watch.run(REST, run, max(n, 0))
            if n >= 0:
                found[name].append({part: seconds / step for part, seconds in watch.seconds.items()})
    facts = {"model": case.kind, **case.facts, "weights": case.weights}
    return [{**facts, "what": name, "parts": _medians(each)} for name, each in found.items()]


def _teacher_forcing(case: Case) -> None:
    case.model.zero_grad(set_to_none=True)
    fr.teacher_forcing()(case.model, case.decoder[0], step=0).backward()


def _seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _medians(each: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: round(statistics.median(one[part] for one in each), 4) for part in each[0]}


def parts_table(found: Sequence[dict[str, Any]]) -> tables.Table:
    """A column for each thing measured, a line for each part, and their sum."""
    names = [part for part in dict.fromkeys(part for _, _, part in TIMED) if part != REST] + [REST]
    rows = [[name, *[f"{one['parts'].get(name, 0.0):.3f}" for one in found]] for name in names]
    rows.append(["sum", *[f"{sum(one['parts'].values()):.3f}" for one in found]])
    return ["part", *[one["what"] for one in found]], rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a finished run of a Transformer; without it the weights are random")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--preset", default="cpu", choices=("cpu", "tiny"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    kind = "decoder-only"
    case = case_of_run(arguments.run, 1) if arguments.run else made_case(kind, PRESETS[arguments.preset][kind][0])
    found = shares(case, repetitions=arguments.repetitions)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{case.kind} {case.title}, weights: {case.weights}; shares of a step of teacher forcing\n")
    print((tables.markdown if arguments.markdown else tables.plain)(parts_table(found)))


if __name__ == "__main__":
    main()
