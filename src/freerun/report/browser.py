"""The browser of examples: what page.js displays of test items and outputs, packed small, and its controls."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from freerun.diagnostics.ids import END
from freerun.metrics.table import TaskReport
from freerun.report.page import Raw, escape, paragraph
from freerun.types import evenly

Entries = str | Sequence[str]
LARGEST = 3_000_000
"""Bytes that the packed items of a page may have."""
_LARGEST_TEXT = 12_000_000  # what the browser unpacks
_CONTROLS = """<div class="controls" role="search" aria-label="examples">
<label>search <input type="search" data-part="search"></label>
<label>seed <select data-part="seed"></select></label>
<label>order <select data-part="order"></select></label>
<label>alignment <select data-part="align"><option value="edit">edit distance</option>\
<option value="position">by position</option></select></label>
<fieldset><legend>length</legend><label>from <input type="number" min="0" data-part="short"></label> \
<label>to <input type="number" min="0" data-part="long"></label></fieldset>
<fieldset><legend>errors</legend><label>from <input type="number" min="0" data-part="few"></label> \
<label>to <input type="number" min="0" data-part="many"></label></fieldset>
</div>
<p class="note keys">In the list: <kbd>j</kbd> or <kbd>\N{DOWNWARDS ARROW}</kbd> next, <kbd>k</kbd> or \
<kbd>\N{UPWARDS ARROW}</kbd> previous, <kbd>Page Down</kbd>, <kbd>Page Up</kbd>, <kbd>Home</kbd>, <kbd>End</kbd>; \
<kbd>/</kbd> searches, <kbd>Esc</kbd> goes back to the list.</p>
<p class="note" role="status" data-part="count"></p>
<div class="two"><div><p class="note" data-part="heads"></p>
<ul role="listbox" tabindex="0" aria-label="items" data-part="list"></ul>
<p class="turn"><button type="button" data-part="earlier">earlier</button> <span data-part="page"></span> \
<button type="button" data-part="later">later</button></p></div>
<div data-part="item" role="region" aria-label="the chosen item"></div></div>"""
Key = Sequence[tuple[str, str, str, str, str]]
"""Marks: kind, gold, entry, text below, and what they mean."""
ALIGNED: Key = (
    ("other", "sit", "sat", "", "another symbol"),
    ("lost", "on", "", "", "lost"),
    ("extra", "", "on", "", "one too many"),
    ("other first", "a", "o", "\N{BLACK UP-POINTING TRIANGLE} first", "first divergence"),
    ("equal rejoins", "mat", "mat", "\N{LEFTWARDS ARROW WITH HOOK} rejoins", "3 right in a row, or all that is left"),
)
FED: Key = (
    ("", "mat", "mat", "", "gold"),
    ("own", "mat", "mat", "", "in place of gold, and equal to it"),
    ("own wrong", "sit", "sat", "", "in place of gold, another symbol"),
)


@dataclass(frozen=True, eq=False)
class RunOutputs:
    """A run's outputs, one an item.

    Args:
        arm: its name.
        outputs: text, or symbols.
        errors: of each item; None where nothing is counted.
        seed: None where there is only one run of an arm.
        mode: "edit" to align with gold by edit distance, "position" position by position, "plain" not at all, "fed": a
            history that was fed in training.
        own: of "fed": the positions of each row's entries in place of gold.
    """

    arm: str
    outputs: Sequence[Entries]
    errors: Sequence[float] | None
    seed: int | None = None
    mode: Literal["edit", "position", "plain", "fed"] = "edit"
    own: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, eq=False)
class Items:
    """What is displayed: sources and references with the outputs of some runs.

    Args:
        sources: text of each item.
        golds: its references.
        runs: outputs.
        noun: what an item is, in the plural.
        unit: what an output is cut into: "symbols" and "words" at blanks, "characters".
        align: how it begins to align, "edit" or "position".
        prompts: what stands before each item, or () where nothing does.
        heading: name of a prompt.
        of: how many items there are, where these are evenly spaced among them; None: as many.
    """

    sources: Sequence[str]
    golds: Sequence[Sequence[Entries]]
    runs: Sequence[RunOutputs]
    noun: str
    unit: Literal["symbols", "words", "characters"]
    align: Literal["edit", "position"] = "edit"
    prompts: Sequence[str] = ()
    heading: str = "goes on from"
    of: int | None = None

    def packed(self, chosen: Sequence[int]) -> str:
        """Some items as JSON, compressed, in base64; an output that equals reference n is the number n."""

        def output(run: RunOutputs, n: int) -> Any:
            own, golds = run.outputs[n], self.golds[n]
            return golds.index(own) if own in golds else own

        arms = list(dict.fromkeys(run.arm for run in self.runs))
        content = {
            "unit": self.unit,
            "align": self.align,
            "heading": self.heading,
            "number": [n + 1 for n in chosen],
            "source": [self.sources[n] for n in chosen],
            "gold": [self.golds[n] for n in chosen],
            "prompt": [self.prompts[n] for n in chosen] if self.prompts else None,
            "runs": [
                {
                    "arm": run.arm,
                    "number": arms.index(run.arm),
                    "seed": run.seed,
                    "mode": run.mode,
                    "out": [output(run, n) for n in chosen],
                    "err": None if run.errors is None else [run.errors[n] for n in chosen],
                    **({"own": [run.own[n] for n in chosen]} if run.own else {}),
                }
                for run in self.runs
            ],
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > _LARGEST_TEXT and len(chosen) > 1:
            return " " * (LARGEST * len(text) // _LARGEST_TEXT + 1)  # too many for the browser, however small packed
        return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()

    def sample(self, count: int) -> list[int]:
        """A quarter of ``count`` with the most errors (mean over runs), and the rest evenly spaced; all that there are.

        >>> run = RunOutputs("a", ["x"] * 8, [0, 0, 5, 0, 0, 0, 9, 0])
        >>> Items([""] * 8, [["y"]] * 8, [run], "words", "symbols").sample(4)
        [0, 2, 4, 6]
        """
        total = len(self.sources)
        if count >= total:
            return list(range(total))
        counted = [run.errors for run in self.runs if run.errors is not None]
        worst = sorted(range(total), key=lambda n: (-sum(each[n] for each in counted), n))[
            : count // 4 if counted else 0
        ]
        taken = set(worst)
        others = [n for n in range(total) if n not in taken]
        return sorted([*worst, *(others[n] for n in evenly(len(others), count - len(worst)))])

    def fitting(self) -> tuple[list[int], str]:
        """As many items as fit, and those packed."""
        count = min(len(self.sources), max(1, _LARGEST_TEXT // max(20, 8 * len(self.runs))))
        while True:
            chosen = self.sample(count)
            text = self.packed(chosen)
            if len(text) <= LARGEST or count == 1:
                return chosen, text
            count = max(1, min(count - 1, int(0.95 * count * LARGEST / len(text))))


def browser(items: Items, name: str, marks: Key = ALIGNED) -> Raw:
    """The browser of some items, ``name`` its id in the page; how many of how many it holds stands above it."""
    chosen, text = items.fitting()
    total = items.of or len(items.sources)
    how = f"All {total:,} {items.noun}."
    if len(chosen) < len(items.sources) and any(run.errors is not None for run in items.runs):
        how = (
            f"{len(chosen):,} of {total:,} {items.noun}: the {len(chosen) // 4:,} with the most errors (mean over the "
        )
        how += "runs), the others evenly spaced."
    elif len(chosen) < total:
        how = f"{len(chosen):,} of {total:,} {items.noun}, evenly spaced."
    key = "".join(_cell(*each) for each in marks)
    return Raw(
        paragraph(
            f"{how} Above each {'entry fed' if marks is FED else 'output'} is gold, cut into {items.unit}.", "note"
        )
        + f'<div class="browser" id="{name}" hidden>{_CONTROLS}'
        + f'<ul class="key" aria-label="marks">{key}</ul></div>'
        + '<noscript><p class="note">The browser of examples needs JavaScript; all else on this page does not.</p>'
        + f'</noscript><script type="text/plain" id="{name}-data">{text}</script>'
    )


def _span(kind: str, gold: str, own: str, mark: str) -> str:
    dot = "\N{MIDDLE DOT}"
    small = f"<small>{escape(mark)}</small>" if mark else ""
    return f'<span class="cell {kind}"><i>{escape(gold) or dot}</i><b>{escape(own) or dot}</b>{small}</span>'


def _cell(kind: str, gold: str, own: str, mark: str, meaning: str) -> str:
    return f'<li><span aria-hidden="true">{_span(kind, gold, own, mark)}</span> {escape(meaning)}</li>'


def compared_items(report: TaskReport, tested: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]) -> Items | None:
    """The items of a comparison's runs, from (arm, seed) to test items in one order; None where there is no text."""
    from rapidfuzz.distance import Levenshtein

    first = next(iter(tested.values()), [])
    if not report.outputs or any(len(each) != len(first) or "output" not in each[0] for each in tested.values()):
        return None
    golds = [golds_of(item) for item in first]
    plain, positions = report.outputs == "continuation", report.outputs == "positions"
    unit: Literal["symbols", "words", "characters"] = "symbols"
    if report.outputs not in ("symbols", "positions"):
        unit = "words" if report.outputs == "words" else "characters"
    cut = list[str] if unit == "characters" else str.split
    counted = ("free_errors", "edits", "errors") if positions else ("edits", "errors", "free_errors")
    field = next((name for name in counted if name in first[0]), None)

    def errors(items: Sequence[Mapping[str, Any]]) -> list[float] | None:
        if plain:
            return None
        if field is not None:
            return [item[field] for item in items]
        outputs = (cut(item["output"]) for item in items)
        return [min(Levenshtein.distance(o, cut(g)) for g in gold) for o, gold in zip(outputs, golds, strict=True)]

    mode = "plain" if plain else "edit"
    runs = [
        RunOutputs(arm, [item["output"] for item in items], errors(items), seed, mode)
        for (arm, seed), items in tested.items()
    ]
    return Items(
        [str(item["source"]) for item in first],
        golds,
        runs,
        report.test_noun,
        unit,
        "position" if positions else "edit",
        [str(item["prompt"]) for item in first] if "prompt" in first[0] else (),
        "observed" if positions else "goes on from",
    )


def golds_of(item: Mapping[str, Any]) -> list[str]:
    """The gold texts of a test item."""
    return list(item["references"]) if "references" in item else [item["reference"]]


def diagnosed_items(diagnosis: Mapping[str, Any], noun: str) -> Items | None:
    """The rows of a diagnosis of ids with choices on gold history and free runs; None where it holds none."""
    examples: Sequence[Mapping[str, Any]] = diagnosis.get("examples") or ()
    if not examples:
        return None
    gold = diagnosis["free_running"] is not None
    sides: list[tuple[str, str, Literal["edit", "position", "plain"]]] = [
        ("on gold history (teacher-forced)", "teacher_forced", "position"),
        ("greedy free run", "greedy", "edit" if gold else "plain"),
        ("sampled free run", "sampled", "edit" if gold else "plain"),
    ]
    edits = [each["edits"] for each in examples] if gold else None

    def symbols(example: Mapping[str, Any], side: str) -> list[str]:
        found = list(example[side])
        # gold has no end symbol: the right choice of it is no error
        if side == "teacher_forced" and len(found) > len(example["gold"]) and found[-1] == END:
            found.pop()
        return found

    runs = [
        RunOutputs(name, [symbols(each, side) for each in examples], edits if side == "greedy" else None, None, mode)
        for name, side, mode in sides
    ]
    golds = [[list(each["gold"])] for each in examples]
    sources = [each["source"] or f"row {each['row'] + 1}" for each in examples]
    return Items(sources, golds, runs, noun, "symbols", of=diagnosis["rows"])
