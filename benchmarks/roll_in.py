"""The price of exact scheduled sampling, as a multiple of teacher forcing on the same model in the same run.

A price is the median over repetitions of (decoder step with scheduled sampling) / (decoder step with teacher
forcing), all variants interleaved, one thread, CPU time: forward, loss and backward of the decoder, without encoder and
optimiser. The engines are compared with usual loops by hand and the approximation by two passes, on the same weights;
the price of a complete training step is also listed.

Without --run the weights are random; a random model needs a different number of passes than a trained one.

Run: python benchmarks/roll_in.py [--json] [--ratios 0.75,1] [--repetitions 15] [--run RUN]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import tables
from cases import KINDS, PRESETS, Case, case_of_run, random_case
from lines import Options, by_hand_line, dropout_line, line, native_bfloat16

RATIOS = "0.9,0.75,0.5,0.25,0"
FEW = (0.75, 0.25)
"""Ratios at which the shapes after the first one of a kind are measured, without --ratios."""


def arguments_of(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="a JSON list, one object a model, shape and ratio")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    parser.add_argument("--ratios", help=f"teacher forcing ratios, with commas; default {RATIOS}")
    parser.add_argument("--repetitions", type=int, help="default 3; of large random models 2 or 1")
    parser.add_argument("--models", help=f"with commas, out of {', '.join(KINDS)} (lstm will do)")
    parser.add_argument("--run", action="append", default=[], help="measure a finished run's model on its own batches")
    parser.add_argument("--preset", default="cpu", choices=PRESETS, help="shapes of the models with random weights")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast; the preset gpu has it")
    parser.add_argument("--dropout", type=float, default=0.1, help="also measured with this rate; 0 leaves it out")
    parser.add_argument("--quick", action="store_true", help="the first shape of each kind, two ratios, once")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    return arguments


def chosen_cases(arguments: argparse.Namespace) -> Iterator[tuple[Case, bool]]:
    """The cases, one at a time, and whether each is the first of its kind."""
    for folder in arguments.run:
        yield case_of_run(folder, arguments.repetitions or 3, arguments.device), True
    named = "" if arguments.run else ",".join(KINDS)
    for name in filter(None, (arguments.models or named).split(",")):
        kind = next((kind for kind in KINDS if kind.startswith(name)), None)
        if kind is None:
            sys.exit(f"--models: {name} is none of {', '.join(KINDS)}")
        shapes = PRESETS[arguments.preset].get(kind, ())
        for number, shape in enumerate(shapes[: 1 if arguments.quick else None]):
            yield random_case(kind, shape, arguments.device), number == 0


def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Everything requested: ``lines`` of the price table, ``slow`` loops, ``dropout``."""
    found: dict[str, list[dict[str, Any]]] = {"lines": [], "slow": [], "dropout": []}
    for case, first in chosen_cases(arguments):
        recurrent = case.kind == "lstm-attention"
        usual = 1 if arguments.quick else 3 if recurrent or arguments.run else 2 if first else 1
        repetitions = arguments.repetitions or usual
        options = Options(repetitions, arguments.device, arguments.amp or arguments.preset == "gpu")
        for n, ratio in enumerate(_ratios(arguments, first)):
            _progress(f"{case.kind} {case.title}, ratio {ratio:g}")
            found["lines"].append(line(case, ratio, options, warm=n == 0))
            if first and arguments.dropout and ratio:
                found["dropout"].append(dropout_line(case, ratio, arguments.dropout, options))
        if first and not recurrent and arguments.device == "cpu":
            _progress(f"{case.kind} {case.title}, full prefix")
            found["slow"].append(by_hand_line(case, 0.75, min(8, case.batches[0].size), options))
    return found


def _ratios(arguments: argparse.Namespace, all_of_them: bool) -> list[float]:
    if arguments.ratios is None and (arguments.quick or not all_of_them):
        return list(FEW)
    return [float(ratio) for ratio in (arguments.ratios or RATIOS).split(",")]


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, or the JSON list."""
    arguments = arguments_of(argv)
    torch.set_num_threads(1)
    measured = measure(arguments)
    if arguments.json:
        print(json.dumps([*measured["lines"], *measured["slow"], *measured["dropout"]], indent=1))
        return
    for title, table in tables.sections(measured):
        print(f"**{title}**\n\n{tables.markdown(table)}" if arguments.markdown else f"{title}\n{tables.plain(table)}")
    worst = max(measured["lines"], key=lambda each: each["auto_over_best"])
    print(f"auto / best engine, worst of all: {worst['auto_over_best']:.2f} ({worst['model']}, {tables.size(worst)}, "
          f"ratio {worst['teacher_forcing_ratio']:g}: {worst['engine']} against {worst['best']})")  # fmt: skip
    if not native_bfloat16(arguments.device):
        print("draft bfloat16 is not timed: this processor has no native bfloat16")


if __name__ == "__main__":
    main()
