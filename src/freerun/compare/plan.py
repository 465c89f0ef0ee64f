"""Which runs a comparison needs, and in which order they may start."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freerun.errors import UserError

__all__ = ["Arm", "PlannedRun", "plan", "ready"]


@dataclass(frozen=True)
class Arm:
    """One method of a comparison, under the label that tables and figures show.

    Args:
        label: unique within the comparison.
        method: the recipe's ``[method]`` table for this arm. A value ``{matched_to = "<label>"}`` stands for
            what was measured in that arm's run of the same seed.
    """

    label: str
    method: Mapping[str, Any]

    @property
    def reference(self) -> str | None:
        """Label of the arm whose measured disagreement this arm's noise is matched to, or None."""
        for value in self.method.values():
            if isinstance(value, Mapping) and "matched_to" in value:
                return str(value["matched_to"])
        return None

    @property
    def slug(self) -> str:
        """The label as a file name.

        >>> Arm("from 1 to 0.5", {}).slug
        'from-1-to-0.5'
        """
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.label).strip("-.") or "arm"


@dataclass(frozen=True)
class PlannedRun:
    """One arm with one seed.

    Args:
        arm: the arm.
        seed: its seed.
        after: name of the run that must have finished before this one starts, or None.
    """

    arm: Arm
    seed: int
    after: str | None = None

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return f"{self.arm.slug}-{self.seed}"

    def method(self, runs: Path) -> dict[str, Any]:
        """The method table of this run; a matched value is read from the reference's ``metrics.jsonl``."""
        if self.after is None:
            return dict(self.arm.method)
        measured = {"measured": str((runs / self.after / "metrics.jsonl").resolve())}
        return {name: measured if _matched(value) else value for name, value in self.arm.method.items()}


def _matched(value: Any) -> bool:
    return isinstance(value, Mapping) and "matched_to" in value


def plan(arms: Sequence[Arm], seeds: Sequence[int]) -> list[PlannedRun]:
    """All runs, seed by seed, references before the arms matched to them.

    Args:
        arms: in the order in which tables list them.
        seeds: one run per arm and seed.

    Raises:
        UserError: no arms or seeds, labels or seeds twice, a match to an arm that is not there or is itself
            matched; all at once.

    >>> arms = [Arm("noise", {"rate": {"matched_to": "sampling"}}), Arm("sampling", {})]
    >>> [(run.name, run.after) for run in plan(arms, [0])]
    [('sampling-0', None), ('noise-0', 'sampling-0')]
    """
    problems = _problems(arms, seeds)
    if problems:
        raise UserError(problems)
    by_label = {arm.label: arm for arm in arms}
    wanted = {arm.reference for arm in arms}
    # those that others wait for first, those that wait last: no worker idles at the end of a seed
    ordered = sorted(arms, key=lambda arm: (arm.label not in wanted, arm.reference is not None))
    return [
        PlannedRun(arm, seed, f"{by_label[arm.reference].slug}-{seed}" if arm.reference else None)
        for seed in seeds
        for arm in ordered
    ]


def ready(waiting: Sequence[PlannedRun], finished: set[str]) -> PlannedRun | None:
    """The first waiting run whose reference has finished, or None.

    >>> runs = plan([Arm("a", {}), Arm("b", {"rate": {"matched_to": "a"}})], [0])
    >>> ready(runs[1:], set()) is None, ready(runs[1:], {"a-0"}).name
    (True, 'b-0')
    """
    return next((run for run in waiting if run.after is None or run.after in finished), None)


def _problems(arms: Sequence[Arm], seeds: Sequence[int]) -> list[str]:
    problems: list[str] = []
    if not arms:
        problems.append("compare needs at least one arm; add [[compare.arms]] with label and method")
    if not seeds:
        problems.append("compare needs at least one seed; set compare.seeds = [0, 1]")
    for seed in sorted({seed for seed in seeds if list(seeds).count(seed) > 1}):
        problems.append(f"compare.seeds names {seed} more than once; give each seed once")
    slugs: dict[str, str] = {}
    for arm in arms:
        if arm.slug in slugs:
            problems.append(
                f"compare.arms: labels {slugs[arm.slug]!r} and {arm.label!r} share the folder name "
                f"{arm.slug!r}; choose another label"
            )
        slugs[arm.slug] = arm.label
        problems.extend(_reference_problems(arm, arms))
    return problems


def _reference_problems(arm: Arm, arms: Sequence[Arm]) -> list[str]:
    if arm.reference is None:
        return []
    others = {other.label: other for other in arms if other.label != arm.label}
    if arm.reference not in others:
        known = ", ".join(sorted(others)) or "none"
        return [f"arm {arm.label!r} is matched to {arm.reference!r}, which is not another arm; arms are {known}"]
    if others[arm.reference].reference is not None:
        return [f"arm {arm.label!r} is matched to {arm.reference!r}, which is itself matched; match to its source"]
    return []
