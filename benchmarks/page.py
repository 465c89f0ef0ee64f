"""Write the tables and the figure of docs/engines.md from benchmarks/measured.json, after measuring with --run.

Measuring everything takes some hours on one core. --only selects parts to measure, --ratios and --sizes lines of the
prices; they replace the stored ones. Text outside the marked sections of the page is kept.

Run: python benchmarks/page.py --run LANGUAGE_MODEL_RUN --run TRANSLATION_RUN
     python benchmarks/page.py --only random --sizes bf16       the lines of models without a run; some of them
     python benchmarks/page.py             write the page from the stored measurements
     python benchmarks/page.py --check     exit code 1 if the page differs from them
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import parts
import passes
import roll_in
import tables
from cases import case_of_run
from lines import violations
from passes_figure import figure
from timing import machine

ROOT = Path(__file__).parent.parent
PAGE, FIGURE = ROOT / "docs" / "engines.md", ROOT / "docs" / "passes.svg"
MEASURED = Path(__file__).parent / "measured.json"
WHAT = ("trained", "random", "passes", "parts")


def measure(arguments: argparse.Namespace, before: dict[str, Any]) -> dict[str, Any]:
    """Stored measurements, with the requested ones measured again.

    Args:
        arguments: the command line. Its first run is of a language model; passes and parts are measured on it.
            Without runs only "random" can be.
        before: from ``measured.json``.
    """
    results, first = dict(before), next(iter(arguments.run), "")
    few = arguments.ratios or arguments.sizes
    options = [
        f"--repetitions={arguments.repetitions}",
        *([f"--ratios={arguments.ratios}"] if arguments.ratios else []),
    ]
    made = [f"--updates={arguments.updates}", f"--sizes={arguments.sizes}"]
    runs = [word for run in arguments.run for word in ("--run", run)]
    for name, flags in (("trained", runs), ("random", made)):
        if name in arguments.only:
            prices = roll_in.measure(roll_in.arguments_of([*flags, *options]))
            results[name] = merged(results.get(name, {}), prices) if few else prices
    if "passes" in arguments.only:
        model, about, batches = passes.windows_of_run(first, passes.LENGTHS, rows=32, batches=1)
        results["passes"] = passes.counted(model.eval(), batches)
        results["passes_of"] = f"{about}; batches of 32 rows of its dev text"
    if "parts" in arguments.only:
        results["parts"] = parts.shares(case_of_run(first, 1), repetitions=5)
    return {**results, "machine": machine("cpu")}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Lines of the price table: new ones replace those of the same model, size, weights and ratio."""

    def key(line: dict[str, Any]) -> tuple[str, ...]:
        return line["model"], tables.size(line), line["weights"]

    lines_by_name: dict[str, Any] = {}
    for name, fresh in new.items():
        lines = {(key(line), line["teacher_forcing_ratio"]): line for line in [*old.get(name, []), *fresh]}
        order = list(dict.fromkeys(case for case, _ in lines))
        lines_by_name[name] = [lines[each] for each in sorted(lines, key=lambda each: (order.index(each[0]), -each[1]))]
    return lines_by_name


def written(page: str, measured: dict[str, Any]) -> str:
    """Return the page with its marked sections filled."""
    every = {name: [*measured["trained"][name], *measured["random"][name]] for name in ("lines", "slow", "dropout")}
    sections = {
        "machine": f"Measured on: {measured['machine']}, {roll_in.loads(every['lines'])}.\n",
        "prices": _sections(every, "price"),
        "counts": _sections(every, "passes"),
        "others": _sections(every, ""),
        "passes": f"Counted on {measured['passes_of']}.\n\n" + tables.markdown(passes.table(measured["passes"])),
        "parts": tables.markdown(parts.parts_table(measured["parts"])),
    }
    for name, text in sections.items():
        mark = re.compile(rf"(<!-- {name}:start -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        page = mark.sub(lambda found, text=text: f"{found[1]}\n{text}\n{found[2]}", page)
    return page


def _sections(every: dict[str, list[dict[str, Any]]], which: str) -> str:
    """Tables of prices, of passes, or the others; ``tables.sections`` names them."""
    texts: list[str] = []
    for title, table in tables.sections(every):
        name, _, kind = title.rpartition(": ")
        if (kind.split(" ")[0] if kind in ("price", "passes (work in forwards)") else "") == which:
            texts.append(f"**{name if which else title}**\n\n{tables.markdown(table)}")
    return "\n".join(texts)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write, write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", default=[], help="finished runs, a language model's first")
    parser.add_argument("--only", nargs="+", default=[], choices=WHAT, help="what to measure; with runs, default all")
    parser.add_argument("--repetitions", type=int, default=15, help="of prices")
    parser.add_argument("--ratios", help="only these lines of the price table")
    parser.add_argument("--sizes", default="", help="of models without a run only those whose sizes hold this")
    parser.add_argument("--updates", type=int, default=300, help="of training of models without a run")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    measured: dict[str, Any] = json.loads(MEASURED.read_text("utf-8")) if MEASURED.exists() else {}
    if arguments.run and not arguments.only:
        arguments.only = WHAT
    if not arguments.run and set(arguments.only) - {"random"}:
        parser.error("without --run only --only random can be measured: the other parts are of finished runs")
    if arguments.only:
        measured = measure(arguments, measured)
        MEASURED.write_text(_json(measured), encoding="utf-8")
    page = PAGE.read_text("utf-8")
    expected = written(page, measured)
    if arguments.check:
        if expected != page:
            print(f"{PAGE.name} differs from {MEASURED.name}: run python benchmarks/page.py", file=sys.stderr)
        return int(expected != page)
    PAGE.write_text(expected, encoding="utf-8")
    FIGURE.write_text(figure(measured["passes"]), encoding="utf-8")
    found = violations([*measured["trained"]["lines"], *measured["random"]["lines"]])
    print(f"auto is dearer than a loop by hand, or by more than 8 % than another engine, in {len(found)} cases", *found,
          sep="\n- ")  # fmt: skip
    return 0


def _json(measured: dict[str, Any]) -> str:
    """One line an object, so that diffs are readable."""
    text = json.dumps(measured, indent=1)
    return re.sub(r"\n {3,}|\n {2}(?=[\]}])", " ", text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
