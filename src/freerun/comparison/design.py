"""What a comparison could show before it has run, and what it would cost: from the spread of runs that are there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from freerun.comparison import results
from freerun.comparison.plan import PlannedRun
from freerun.comparison.statistics import Design
from freerun.comparison.verdict import margin_of, size_text, task_report
from freerun.errors import UserError
from freerun.training.run_folder import finished_summary, stage


def finished_part(recipe: Mapping[str, Any], runs: Sequence[PlannedRun], out: Path) -> dict[str, Any] | None:
    """Return the results of the seeds of which every arm has finished; None of fewer than two seeds."""
    done = [run for run in runs if finished_summary(out / "runs" / run.name)]
    arms = len({run.arm.label for run in runs})
    whole = [run for run in done if sum(other.seed == run.seed for other in done) == arms]
    if len({run.seed for run in whole}) < 2:
        return None
    try:
        return results.collect(recipe, whole, out)
    except UserError:  # of other data, which the comparison itself refuses
        return None


def could_see(recipe: Mapping[str, Any], runs: Sequence[PlannedRun], found: Mapping[str, Any] | None) -> str:
    """Say which difference a comparison's seeds and items can show, from results of some of its seeds if there are any.

    Args:
        recipe: as a table.
        runs: all of the comparison.
        found: results of at least two of its seeds, or None.
    """
    report, margin = task_report(recipe), margin_of(recipe)
    seeds, arms = len({run.seed for run in runs}), len({run.arm.label for run in runs})
    if arms == 1:
        return "1 arm: there is nothing to compare it with"
    if seeds == 1:
        return "1 seed: no verdict is possible, as another seed may reverse every difference"
    line = _first(found)
    if line is None or found is None:
        rough = Design(min(arms, 3), 2.0).detectable(seeds)
        return (
            f"{seeds} seeds of {arms} arms: differences in {report.primary.title} above about {rough:.1f} times what "
            "single runs deviate by over seeds; in its own unit when two seeds have finished"
        )
    measure, design = report.metric(line["metric"]), Design(**line["design"])
    items = f", {found['test_items']:,} {report.test_noun}" if found["test_items"] else ""
    seen = size_text(design.detectable(seeds), line["scale"], measure)
    known = len({run["seed"] for run in found["runs"]})
    text = f"{seeds} seeds{items}: differences in {measure.title} above about {seen}, from the spread of {known} seeds"
    if margin is None:
        return text
    limit = margin if line["scale"] == "linear" else math.log(margin)
    needed = design.seeds_needed(limit)
    what = size_text(limit, line["scale"], measure)
    return f"{text}; the margin of {what} needs {'more than 100' if needed is None else needed} seeds"


def _first(found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The first comparison of a verdict that has an estimate of its spread."""
    lines = [] if found is None else found["comparisons"]
    return next((line for line in lines if line["step"] == 1 and line["design"]), None)


def planned_lines(recipe: Mapping[str, Any], runs: Sequence[PlannedRun], out: Path | None, workers: int) -> list[str]:
    """Return what would run, in which state each run is, what it would cost, and what it could show."""
    summaries = {run.name: None if out is None else finished_summary(out / "runs" / run.name) for run in runs}
    seeds, arms = len({run.seed for run in runs}), len({run.arm.label for run in runs})
    lines = [f"{recipe.get('name', 'comparison')}: {arms} arms x {seeds} seeds = {len(runs)} runs, {workers} at a time"]
    width = max(len(run.name) for run in runs)
    for run in runs:
        state = "waiting" if out is None else stage(out / "runs" / run.name)
        state = {"new": "waiting", "prepared": "waiting"}.get(state, state)
        after = f", after {run.after}" if run.after and state == "waiting" else ""
        lines.append(f"  {run.name:<{width}}  {state}{after}")
    lines.append(_cost(runs, summaries, workers))
    found = None if out is None else finished_part(recipe, runs, out)
    return [*lines, could_see(recipe, runs, found)]


def _cost(runs: Sequence[PlannedRun], summaries: Mapping[str, Mapping[str, Any] | None], workers: int) -> str:
    """Estimate the time of the runs that are left: an arm's from its finished seeds, else from all finished runs."""
    seconds = {name: float(found["seconds"]) for name, found in summaries.items() if found and found.get("seconds")}
    left = [run for run in runs if run.name not in seconds]
    if not left:
        return "all runs are finished"
    if not seconds:
        return f"{len(left)} runs are left; their cost is known when one has finished"

    def expected(run: PlannedRun) -> float:
        own = [seconds[each.name] for each in runs if each.arm is run.arm and each.name in seconds]
        return mean(own or seconds.values())

    total = sum(map(expected, left))
    return (
        f"{len(left)} runs are left: about {_time(total)} of training, {_time(total / min(workers, len(left)))} with "
        f"{workers} at a time, evaluation not counted; from {len(seconds)} finished runs"
    )


def _time(seconds: float) -> str:
    """Return a duration as text.

    >>> _time(42.0), _time(300.0), _time(9000.0)
    ('42 s', '5 min', '2.5 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def seeds_done(runs: Sequence[PlannedRun], finished: Collection[str]) -> int:
    """Return the number of seeds of which every run has finished."""
    return sum(all(run.name in finished for run in runs if run.seed == seed) for seed in {run.seed for run in runs})
