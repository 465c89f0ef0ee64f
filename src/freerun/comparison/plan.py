"""Which runs a comparison needs, in which order they may start, and the folder that they go to."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from freerun.errors import CheckpointError, OccupiedError, UserError
from freerun.recipes.recipe import EQUAL, Arm, MethodSettings, matched_label
from freerun.training.files import clean, expect, read_json, remove_files, replace_file, versioned
from freerun.training.run_folder import (
    FolderLock,
    clear_run,
    finished_summary,
    names_in,
    probe,
    refuse_links,
    refuse_unknown,
    remove_empty,
)

MARKER = "comparison.json"
_NAMES = ("results.json", "report.html", "report.md", "scores.csv", "references.bib")
_FILES = (*_NAMES, *(f"{name}.part" for name in _NAMES))
_FOLDERS = ("runs", "recipes", "logs", "hypotheses")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class _Marker(TypedDict):
    kind: Literal["comparison"]
    runs: list[str]
    init: NotRequired[str]


@dataclass(frozen=True)
class PlannedRun:
    """One arm with one seed; ``after`` names the run that must have finished before this one starts."""

    arm: Arm
    seed: int
    after: str | None = None

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return f"{self.arm.slug}-{self.seed}"

    def updates(self, runs: Path, updates: int) -> int:
        """Return how many updates this run makes: of a control of equal cost as the reference's finished run cost.

        Raises:
            UserError: a control of equal seconds, and a reference that has not timed teacher forcing.
        """
        reference = runs / str(self.after)
        summary = finished_summary(reference) if self.after and self.arm.control in EQUAL else None
        if summary is None:
            return updates
        if self.arm.control == "equal_cost":
            return round(summary.get("decoder_passes", updates))
        timed = summary.get("gold_update")
        if not timed:
            raise UserError(
                f"run {self.name}: {reference} has timed no update of teacher forcing (train.time_gold), by "
                f"which control = {self.arm.control!r} divides its seconds: finished before the control was added, "
                "or trained in several processes\n  help: compare in another folder"
            )
        return max(1, round(summary[timed["clock"]] / timed["seconds"]))

    def method(self, runs: Path) -> MethodSettings:
        """Return the method of this run; a matched value is read from the reference's ``metrics.jsonl``."""
        if self.after is None:
            return self.arm.method
        measured = {"measured": str((runs / self.after / "metrics.jsonl").resolve())}
        parameters = self.arm.method.parameters.items()
        return replace(
            self.arm.method,
            parameters={name: measured if matched_label(value) else value for name, value in parameters},
        )


def plan(arms: Sequence[Arm], seeds: Sequence[int]) -> list[PlannedRun]:
    """Return all runs, seed by seed, references before the arms matched to them.

    >>> arms = [
    ...     Arm("noise", MethodSettings("token_noise", {"rate": {"matched_to": "sampling"}})),
    ...     Arm("sampling", MethodSettings("scheduled_sampling")),
    ... ]
    >>> [(run.name, run.after) for run in plan(arms, [0])]
    [('sampling-0', None), ('noise-0', 'sampling-0')]
    """
    labels: dict[str, str] = {}
    for arm in arms:
        if arm.slug in labels:
            raise UserError(
                f"compare.arms: labels {labels[arm.slug]!r} and {arm.label!r} share the folder name {arm.slug!r}; "
                "choose another label"
            )
        labels[arm.slug] = arm.label
    slugs = {label: slug for slug, label in labels.items()}
    references = {arm.reference for arm in arms}
    if gold := [arm.label for arm in arms if arm.label in references and arm.method.name == "teacher_forcing"]:
        raise UserError(
            f"noise is matched to the arm {gold[0]!r}, which is teacher forcing and feeds no own entries, so that it "
            "would be none: name an arm that feeds own entries, such as one of scheduled sampling"
        )
    # those that others wait for first, those that wait last: no worker idles at the end of a seed
    ordered = sorted(arms, key=lambda arm: (arm.label not in references, arm.reference is not None))
    return [
        PlannedRun(arm, seed, f"{slugs[arm.reference]}-{seed}" if arm.reference else None)
        for seed in seeds
        for arm in ordered
    ]


@dataclass(frozen=True)
class Role:
    """What an arm is for in a comparison.

    Args:
        name: "baseline", "method", or "control:KIND" such as "control:matched".
        of: label of the arm that a control is of; None: it is no control.
    """

    name: str
    of: str | None = None


def roles(arms: Sequence[Arm]) -> dict[str, Role]:
    """Return what each arm is for, by label: the baseline is teacher forcing, or the first arm that is no control.

    A control that names no arm is one of the first method.

    >>> arms = [
    ...     Arm("gold", MethodSettings("teacher_forcing")),
    ...     Arm("sampling", MethodSettings("scheduled_sampling")),
    ...     Arm("noise", MethodSettings("token_noise", {"rate": {"matched_to": "sampling"}})),
    ... ]
    >>> [(label, role.name, role.of) for label, role in roles(arms).items()]
    [('gold', 'baseline', None), ('sampling', 'method', None), ('noise', 'control:matched', 'sampling')]
    """
    free = [arm for arm in arms if arm.control is None]
    base = next((arm for arm in free if arm.method.name == "teacher_forcing"), next(iter(free), arms[0]))
    methods = [arm for arm in free if arm is not base]
    of = (methods or [base])[0].label
    found: dict[str, Role] = {}
    for arm in arms:
        if arm is base:
            found[arm.label] = Role("baseline")
        elif arm.control is None:
            found[arm.label] = Role("method")
        else:
            found[arm.label] = Role(f"control:{arm.control}", arm.reference or of)
    return found


def recorded(label: str, arms: Iterable[Arm]) -> dict[str, bool]:
    """Return what an arm's runs record beside their numbers, as settings of training: what other arms are made of."""
    words = {arm.control for arm in arms if arm.reference == label}
    settings = {"record_errors": "confusion", "time_gold": "equal_seconds"}
    return {name: True for name, word in settings.items() if word in words}


def ready(waiting: Sequence[PlannedRun], finished: set[str]) -> PlannedRun | None:
    """Return the first waiting run whose reference has finished, or None."""
    return next((run for run in waiting if run.after is None or run.after in finished), None)


def check_output_dir(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a comparison must not touch; nothing is changed."""
    names = names_in(out, _is_ours, resume=resume, overwrite=overwrite)
    if not names:
        return
    recorded = _recorded_runs(out)
    if recorded is None:
        refuse_unknown(out, names, "comparison made")
    _refuse_links(out, recorded or ())
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


def _is_ours(name: str) -> bool:
    return name == MARKER or name in _FILES


def _refuse_links(out: Path, names: Collection[str]) -> None:
    refuse_links([*(out / name for name in (MARKER, *_FILES, *_FOLDERS)), *(out / "runs" / name for name in names)])


def claim_output_dir(out: Path, names: Collection[str], init: str | None = None, *, overwrite: bool) -> None:
    """Write down which runs are the comparison's, and remove those of an earlier one if ``overwrite`` says so."""
    all_names = sorted({*(_recorded_runs(out) or ()), *names})
    _refuse_links(out, all_names)
    clean(out, _is_ours)
    clean(out / "recipes", lambda name: name.removesuffix(".toml") in all_names)
    probe(out)
    # before anything else: an interrupted removal must still be known as ours
    _write_marker(out, all_names, init)
    if overwrite:
        _clear(out, all_names)
        _write_marker(out, sorted(names), init)


def _clear(out: Path, names: Collection[str]) -> None:
    runs = [folder for name in names if (folder := out / "runs" / name).is_dir()]
    with ExitStack() as locks:
        for folder in runs:
            locks.enter_context(FolderLock(folder))
        remove_files(out / name for name in _FILES)
        remove_files(out / "recipes" / f"{name}.toml" for name in names)
        remove_files(out / "logs" / f"{name}.log" for name in names)
        texts = out / "hypotheses"
        remove_files([*(texts / f"{name}.txt" for name in names), *texts.glob("references*.txt")])
        for folder in runs:
            clear_run(folder)
    remove_empty([*runs, *(out / name for name in _FOLDERS)])


def _write_marker(out: Path, names: Collection[str], init: str | None) -> None:
    content: dict[str, Any] = {"schema": 1, "kind": "comparison", "runs": list(names)}
    content |= {} if init is None else {"init": init}
    replace_file(out / MARKER, (json.dumps(content, indent=1) + "\n").encode())


def refuse_other_start(out: Path, init: str | None) -> None:
    """Refuse to go on with a comparison whose runs began with other weights than those to come would."""
    if _recorded_runs(out) is None:
        return
    marker = read_json(out / MARKER, dict[str, Any]) if (out / MARKER).exists() else {}
    before = marker.get("init")  # one from before markers had no other weights
    if before == init:
        return
    here, there = (f"those of the digest {each}" if each else "new ones" for each in (init, before))
    help_line = "give the same run to --init" if before else "leave out --init"
    raise UserError(
        f"{out} was begun with other weights: {there} there, {here} now\n  help: {help_line}, or another --out"
    )


def _recorded_runs(out: Path) -> list[str] | None:
    """Return the runs of the comparison in a folder, None if it holds none."""
    path = out / MARKER
    if path.exists() or path.is_symlink():
        marker = read_json(path, dict[str, Any])
        versioned(marker, "schema", 1, str(path))
        names = expect(marker, _Marker, str(path))["runs"]
    else:
        try:
            results = read_json(out / "results.json", dict[str, Any])
        except CheckpointError:
            return None
        if "schema" not in results or "comparisons" not in results or not isinstance(results.get("runs"), list):
            return None
        names = [Path(str(run.get("folder"))).name for run in results["runs"] if isinstance(run, dict)]
    # a name that leads elsewhere was not written by us
    return [name for name in names if _NAME.fullmatch(name)]
