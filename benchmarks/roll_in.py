"""The price of exact scheduled sampling, as a multiple of teacher forcing on the same model in the same run.

A price is the median over repetitions of (decoder step with scheduled sampling) / (decoder step with teacher
forcing), all variants interleaved, one thread, CPU time: forward, loss and backward of the decoder, without encoder
(some lines: with it) and optimiser. The engines are compared with loops by hand and the approximation by two passes, on
the same weights; the price of a complete training step is also listed. The end names the lines at which a loop by hand
is cheaper than ``auto``, or another exact engine by more than 8 %.

Without --run and --updates the weights are random; a random model needs another number of passes than a trained one.

Run: python benchmarks/roll_in.py [--json] [--ratios 0.75,1] [--repetitions 15] [--updates 300] [--run RUN]
On a GPU: python benchmarks/roll_in.py --device cuda --preset gpu --updates 300 --markdown
Tried first on a processor: python benchmarks/roll_in.py --preset gpu --tiny
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import tables
from cases import ADAPTED, KINDS, PRESETS, Case, case_of_run, made_case, tiny
from lines import Options, by_hand_line, dropout_line, line, violations
from timing import machine, native_bfloat16

RATIOS = "0.9,0.75,0.5,0.25,0"
FEW = (0.75, 0.25)
"""Ratios at which the shapes after the first one of a kind are measured, without --ratios."""


def arguments_of(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="a JSON list, one object a model, shape and ratio")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    parser.add_argument("--ratios", help=f"teacher forcing ratios, with commas; default {RATIOS}")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--updates", type=int, default=0, help="of training on source code before measuring")
    parser.add_argument("--models", help=f"with commas, out of {', '.join((*KINDS, *ADAPTED))} (lstm will do)")
    parser.add_argument("--sizes", default="", help="only lines whose sizes hold this, e.g. 'B2 T64' or bf16")
    parser.add_argument("--run", action="append", default=[], help="measure a finished run's model on its own batches")
    parser.add_argument("--preset", default="cpu", choices=PRESETS, help="shapes of the models with random weights")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast everywhere; some lines have it anyway")
    parser.add_argument("--tiny", action="store_true", help="every line of the preset, with tiny sizes")
    parser.add_argument("--dropout", type=float, default=0.1, help="also measured with this rate; 0 leaves it out")
    parser.add_argument("--quick", action="store_true", help="the first shape of each kind, two ratios, once")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    return arguments


def chosen_cases(arguments: argparse.Namespace) -> Iterator[tuple[Case, tuple[float, ...], bool]]:
    """The cases, one at a time, with ratios of their own, and whether each is the first of its kind."""
    for folder in arguments.run:
        yield case_of_run(folder, arguments.repetitions, arguments.device), (), True
    named = "" if arguments.run else ",".join(PRESETS[arguments.preset])
    for name in filter(None, (arguments.models or named).split(",")):
        kind = next((kind for kind in (*KINDS, *ADAPTED) if kind.startswith(name)), None)
        if kind is None:
            sys.exit(f"--models: {name} is none of {', '.join((*KINDS, *ADAPTED))}")
        shapes = PRESETS[arguments.preset].get(kind, ())
        shapes = [tiny(shape, kind) for shape in shapes] if arguments.tiny else shapes
        for number, shape in enumerate(shapes[: 1 if arguments.quick else None]):
            if arguments.sizes in shape.title:
                yield made_case(kind, shape, arguments.device, arguments.updates), shape.ratios, number == 0


def measured_parts(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything requested, one after another: ``lines`` of the price table, ``slow`` loops, ``dropout``."""
    for case, ratios, first in chosen_cases(arguments):
        options = Options(
            1 if arguments.quick else arguments.repetitions,
            arguments.device,
            arguments.amp,
            widths=(1, 2, 4, 8)[: 4 if first else 1],
        )
        for n, ratio in enumerate(_ratios(arguments, ratios, first)):
            _progress(f"{case.kind} {case.title}, ratio {ratio:g}")
            yield "lines", line(case, ratio, options, warm=n == 0)
            if first and arguments.dropout and ratio and case.kind in KINDS:
                yield "dropout", dropout_line(case, ratio, arguments.dropout, options)
        if first and case.kind in ("encoder-decoder", "decoder-only") and arguments.device == "cpu":
            _progress(f"{case.kind} {case.title}, full prefix")
            yield "slow", by_hand_line(case, 0.75, min(8, case.batches[0].size), options)


def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Lists of everything requested, by kind."""
    found: dict[str, list[dict[str, Any]]] = {"lines": [], "slow": [], "dropout": []}
    for kind, one in measured_parts(arguments):
        found[kind].append(one)
    return found


def _ratios(arguments: argparse.Namespace, own: tuple[float, ...], all_of_them: bool) -> list[float]:
    if arguments.ratios is None and (own or arguments.quick or not all_of_them):
        return list(own or FEW)
    return [float(ratio) for ratio in (arguments.ratios or RATIOS).split(",")]


def loads(lines: Sequence[dict[str, Any]]) -> str:
    """How busy the machine was, where the lines hold it, and how often each variant ran."""
    found = [each["load"] for each in lines if each.get("load") is not None]
    busy = f"load {min(found)} to {max(found)}, " if found else ""
    least, most = (pick(each["repetitions"] for each in lines) for pick in (min, max))
    return f"{busy}{least if least == most else f'{least} to {most}'} repetitions"


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
    print(f"Measured on: {machine(arguments.device)}, {loads(measured['lines'])}.")
    found = violations(measured["lines"])
    print(f"auto is dearer than a loop by hand, or by more than 8 % than another engine, in {len(found)} cases", *found,
          sep="\n- ")  # fmt: skip
    if not native_bfloat16(arguments.device):
        print("draft bfloat16 is not timed: this processor has no native bfloat16")


if __name__ == "__main__":
    main()
