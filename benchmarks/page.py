"""Write the tables and the figure of docs/engines.md from benchmarks/measured.json, after measuring with --measure.

Measuring everything takes some hours on one core; each line is stored when it is done. --models, --sizes and --ratios
select lines of the prices, which replace the stored ones. Text outside the marked sections of the page is kept.

Run: python benchmarks/page.py --measure prices passes parts
     python benchmarks/page.py --measure prices --sizes bf16       some of the lines
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
from cases import PRESETS, made_case
from lines import violations
from passes_figure import figure
from timing import machine

ROOT = Path(__file__).parent.parent
PAGE, FIGURE = ROOT / "docs" / "engines.md", ROOT / "docs" / "passes.svg"
MEASURED = Path(__file__).parent / "measured.json"
WHAT = ("prices", "passes", "parts")


def measure(arguments: argparse.Namespace, measured: dict[str, Any]) -> None:
    """Measure what is requested; store each part in ``measured`` and in the file when it is done."""
    flags = [f"--repetitions={arguments.repetitions}", f"--updates={arguments.updates}", f"--sizes={arguments.sizes}"]
    flags += [f"--{name}={value}" for name in ("ratios", "models") if (value := getattr(arguments, name))]
    measured["machine"] = machine("cpu")
    if "prices" in arguments.measure:
        for kind, one in roll_in.measured_parts(roll_in.arguments_of(flags)):
            measured["prices"] = merged(measured.get("prices", {}), {kind: [one]})
            MEASURED.write_text(_json(measured), encoding="utf-8")
    if "passes" in arguments.measure:
        model, about, batches = passes.windows(passes.LENGTHS, 32, 1, arguments.updates)
        measured["passes"] = passes.counted(model.eval(), batches)
        measured["passes_of"] = f"a model of d128 L4 on windows of {max(passes.LENGTHS)}, {about}; batches of 32 rows"
    if "parts" in arguments.measure:
        case = made_case("decoder-only", PRESETS["cpu"]["decoder-only"][0], updates=arguments.updates)
        measured["parts"] = parts.shares(case, repetitions=5)
    MEASURED.write_text(_json(measured), encoding="utf-8")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Lines of the price table: new ones replace those of the same model, size, weights and ratio."""

    def key(line: dict[str, Any]) -> tuple[str, ...]:
        return line["model"], tables.size(line), line["weights"]

    lines_by_name: dict[str, Any] = dict(old)
    for name, fresh in new.items():
        lines = {(key(line), line["teacher_forcing_ratio"]): line for line in [*old.get(name, []), *fresh]}
        order = list(dict.fromkeys(case for case, _ in lines))
        lines_by_name[name] = [lines[each] for each in sorted(lines, key=lambda each: (order.index(each[0]), -each[1]))]
    return lines_by_name


def written(page: str, measured: dict[str, Any]) -> str:
    """Return the page with its marked sections filled."""
    every = {name: measured["prices"].get(name, []) for name in ("lines", "slow", "dropout")}
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
    parser.add_argument("--measure", nargs="+", default=[], choices=WHAT, help="what to measure")
    parser.add_argument("--repetitions", type=int, default=15, help="of prices")
    parser.add_argument("--models", default="", help="only these kinds of model")
    parser.add_argument("--sizes", default="", help="only lines whose sizes hold this")
    parser.add_argument("--ratios", default="", help="only these lines of the price table")
    parser.add_argument("--updates", type=int, default=300, help="of training on source code before measuring")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    measured: dict[str, Any] = json.loads(MEASURED.read_text("utf-8")) if MEASURED.exists() else {}
    if arguments.measure:
        measure(arguments, measured)
    page = PAGE.read_text("utf-8")
    expected = written(page, measured)
    if arguments.check:
        if expected != page:
            print(f"{PAGE.name} differs from {MEASURED.name}: run python benchmarks/page.py", file=sys.stderr)
        return int(expected != page)
    PAGE.write_text(expected, encoding="utf-8")
    FIGURE.write_text(figure(measured["passes"]), encoding="utf-8")
    lines = measured["prices"]["lines"]
    noted = sum("took" in each["engines"]["auto"] for each in lines)
    found = violations(lines)
    print(f"{noted} of {len(lines)} lines hold what each engine took")
    print(f"auto is dearer than a loop by hand, or by 8 % than an engine of its coupling, in {len(found)}", *found,
          sep="\n- ")  # fmt: skip
    return 0


def _json(measured: dict[str, Any]) -> str:
    """One line an object, so that diffs are readable."""
    text = json.dumps(measured, indent=1)
    return re.sub(r"\n {3,}|\n {2}(?=[\]}])", " ", text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
