"""Which runs a comparison needs, and in which order they may start."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from freerun.errors import CheckpointError, OccupiedError, UserError
from freerun.recipes.folder import clear_run, probe
from freerun.training.files import clean, leftover, replace_file
from freerun.training.json_shapes import expect, read_json, versioned
from freerun.training.run_folder import FolderLock


@dataclass(frozen=True)
class Arm:
    """One method of a comparison, under the label that tables and figures show."""

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
    """One arm with one seed."""

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


MARKER = "comparison.json"
_FILES = ("results.json", "results.json.part", "report.html", "report.html.part")
_FOLDERS = ("runs", "recipes", "logs")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class _Marker(TypedDict):
    kind: Literal["comparison"]
    runs: list[str]


def check_output_dir(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a comparison must not touch; nothing is changed."""
    if resume and overwrite:
        raise UserError("give --resume or --overwrite, not both")
    if out.is_symlink() and not out.exists():
        raise OccupiedError(f"{out} is a link that leads nowhere")
    if out.exists() and not out.is_dir():
        raise OccupiedError(f"{out} is a file; --out is a folder")
    entries = sorted(entry.name for entry in out.iterdir()) if out.exists() else []
    found = [name for name in entries if name != "lock" and not leftover(name, _ours)]
    if not found:
        return
    recorded = _recorded(out)
    if recorded is None:
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise OccupiedError(
            f"{out} is not empty and no comparison made what it holds ({shown})\n  help: give another --out"
        )
    _refuse_links(out, recorded)
    if resume or overwrite:
        return
    if (out / "results.json").exists():
        raise OccupiedError(
            f"{out} holds a finished comparison: give another folder, --resume to make its results again "
            "from the finished runs, or --overwrite to remove it"
        )
    raise OccupiedError(
        f"{out} holds a comparison that was started: go on with --resume, remove it with --overwrite, "
        "or give another folder"
    )


def _ours(name: str) -> bool:
    return name == MARKER or name in _FILES


def _refuse_links(out: Path, names: Collection[str]) -> None:
    paths = [out / name for name in (MARKER, *_FILES, *_FOLDERS)] + [out / "runs" / name for name in names]
    if links := [path for path in paths if path.is_symlink()]:
        raise CheckpointError(
            [f"{path} is a link, which is not followed: put what it leads to there" for path in links]
        )


def claim_output_dir(out: Path, names: Collection[str], *, overwrite: bool) -> None:
    """Write down which runs are the comparison's, and remove those of an earlier one if that is wanted."""
    all_names = sorted({*(_recorded(out) or ()), *names})
    _refuse_links(out, all_names)
    clean(out, _ours)
    clean(out / "recipes", lambda name: name.removesuffix(".toml") in all_names)
    probe(out)
    # before anything else: an interrupted removal must still be known as ours
    _write_marker(out, all_names)
    if overwrite:
        _clear(out, all_names)
        _write_marker(out, sorted(names))


def _clear(out: Path, names: Collection[str]) -> None:
    runs = [folder for name in names if (folder := out / "runs" / name).is_dir()]
    with ExitStack() as locks:
        for folder in runs:
            locks.enter_context(FolderLock(folder))
        files = [out / name for name in _FILES] + [out / "recipes" / f"{name}.toml" for name in names]
        for path in [*files, *(out / "logs" / f"{name}.log" for name in names)]:
            if path.is_file() and not path.is_symlink():
                path.unlink()
        for folder in runs:
            clear_run(folder)
    for folder in (*runs, *(out / name for name in _FOLDERS)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_marker(out: Path, names: Collection[str]) -> None:
    content = {"schema": 1, "kind": "comparison", "runs": list(names)}
    replace_file(out / MARKER, (json.dumps(content, indent=1) + "\n").encode())


def _recorded(out: Path) -> list[str] | None:
    """The runs of the comparison in a folder, None where it holds none."""
    path = out / MARKER
    if path.exists() or path.is_symlink():
        found = read_json(path, dict[str, Any])
        versioned(found, "schema", 1, str(path))
        return _plain(expect(found, _Marker, str(path))["runs"])
    try:
        results = read_json(out / "results.json", dict[str, Any])
    except CheckpointError:
        return None
    if "schema" not in results or "comparisons" not in results or not isinstance(results.get("runs"), list):
        return None
    return _plain([Path(str(run.get("folder"))).name for run in results["runs"] if isinstance(run, dict)])


def _plain(names: list[str]) -> list[str]:
    # a name that leads elsewhere was not written by us
    return [name for name in names if _NAME.fullmatch(name)]
