"""Comparisons of what is there already: finished run folders, and scores of other tools in files of JSON lines."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from freerun.comparison import results
from freerun.comparison.plan import PlannedRun
from freerun.errors import UserError, display, refuse
from freerun.recipes.recipe import EQUAL, Arm, MethodSettings, Word
from freerun.training.changes import flat
from freerun.training.run_folder import finished_summary, read_recipe_file

_NOT_SETTINGS = ("seed", "name", "train.threads", "train.seed", "train.record_errors", "train.time_gold")
_KEYS = ("arm", "seed", "item", "score", "control_of")
_MOST_PROBLEMS = 20


def compare_runs(folders: Sequence[Path], margin: float | None = None) -> dict[str, Any]:
    """Return the content of results.json of finished runs: arms are what differs beside the seed, labelled by it.

    Controls are known by their recipes: noise by the run that its rate was measured in, ``no_history`` by its method,
    and teacher forcing for as many updates as another run's forwards or seconds are worth by that number.

    Args:
        folders: of finished runs, on the same data, every arm with the same seeds.
        margin: as in a recipe's [compare].

    Raises:
        UserError: a folder without a finished run, two runs of one arm and seed, or arms with other seeds; all of them.
    """
    tables = {folder: _settings(folder) for folder in folders}
    begun = {folder: (finished_summary(folder) or {}).get("init") for folder in folders}
    by_seed = {(table.get("seed"), begun[folder]) for folder, (_, table) in tables.items()}
    # of one seed some began elsewhere: that is a difference of arms
    if len(by_seed) > len({seed for seed, _ in by_seed}):
        tables = {folder: ({**own, "init": begun[folder]}, table) for folder, (own, table) in tables.items()}
    keys = dict.fromkeys(key for table, _ in tables.values() for key in table)
    equal = {folder: found for folder in folders if (found := _equal(folder, tables))}
    # their updates differ from seed to seed
    tables_of_arms = {folder: table for folder, table in tables.items() if folder not in equal}
    texts = {folder: json.dumps({key: str(table.get(key)) for key in keys}) for folder, (table, _) in tables.items()}
    labels = _labels(tables_of_arms, texts)
    several = len({labels[of] for _, of in equal.values()}) > 1
    labels |= {folder: f"{word} of {labels[of]}" if several else word for folder, (word, of) in equal.items()}
    runs = [_planned(folder, tables, labels, equal) for folder in folders]
    _check_crossed([(run.arm.label, run.seed, str(folder)) for run, folder in zip(runs, folders, strict=True)])
    first = next(iter(labels))
    recipe: dict[str, Any] = {**(read_recipe_file(first / "recipe.toml") or {}), "name": "runs"}
    recipe["compare"] = {} if margin is None else {"margin": margin}
    named = {run.name: folder.resolve() for run, folder in zip(runs, folders, strict=True)}
    return results.collect(recipe, runs, Path(), named)


def _settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a finished run's settings by dotted key, without the paths of measured rates, and its recipe."""
    table = read_recipe_file(folder / "recipe.toml")
    if table is None or not finished_summary(folder):
        raise UserError(
            f"{folder} holds no finished run: give folders of freerun train --out, or of a comparison's runs/"
        )
    settings = flat(table)
    return {key: settings[key] for key in settings if key not in _NOT_SETTINGS and not key.endswith(".measured")}, table


def _labels(
    tables: Mapping[Path, tuple[Mapping[str, Any], Mapping[str, Any]]], texts: Mapping[Path, str]
) -> dict[Path, str]:
    """Name every folder's arm by its method, and by what else sets it apart from others of that method."""
    found: dict[Path, str] = {}
    for folder, (table, recipe) in tables.items():
        method = str(recipe["method"]["name"])
        rivals = [
            other for path, (other, each) in tables.items()
            if each["method"]["name"] == method and texts[path] != texts[folder]
        ]  # fmt: skip
        apart = [
            f"{key.removeprefix('method.')}={table.get(key)}"
            for key in dict.fromkeys([*table, *(key for other in rivals for key in other)])
            if any(other.get(key) != table.get(key) for other in rivals)
        ]
        found[folder] = ", ".join([method, *apart])[:100]
    return found


def _equal(folder: Path, tables: Mapping[Path, tuple[Mapping[str, Any], Any]]) -> tuple[Word, Path] | None:
    """Return the word of a control that is as long as another run was dear, and that run; None of any other run."""
    own = tables[folder]
    if own[1]["method"]["name"] != "teacher_forcing":
        return None

    def rest(table: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in table.items() if key != "train.updates" and not key.startswith("method.")}

    updates = own[0].get("train.updates")
    for other, (table, recipe) in tables.items():
        if recipe.get("seed") != own[1].get("seed") or recipe["method"]["name"] == "teacher_forcing":
            continue
        if rest(table) != rest(own[0]) or updates == table.get("train.updates"):
            continue
        run = PlannedRun(Arm("", MethodSettings("teacher_forcing")), 0, other.name)
        for word in EQUAL:
            arm = Arm("", MethodSettings("teacher_forcing"), word, "")
            with suppress(UserError):  # it has timed no update
                if replace(run, arm=arm).updates(other.parent, 0) == updates:
                    return word, other
    return None


def _planned(
    folder: Path, tables: Mapping[Path, tuple[Any, Mapping[str, Any]]], labels: Mapping[Path, str],
    equal: Mapping[Path, tuple[Word, Path]],
) -> PlannedRun:  # fmt: skip
    """One run as a comparison plans it; a rate measured on another of these runs makes it that arm's control."""
    recipe = tables[folder][1]
    if folder in equal:
        word, of = equal[folder]
        arm = Arm(labels[folder], MethodSettings("teacher_forcing"), word, labels[of])
        return PlannedRun(arm, int(recipe.get("seed", 0)))
    parameters = {key: value for key, value in recipe["method"].items() if key != "name"}
    reference: dict[str, Any] | None = None
    for value in parameters.values():
        if isinstance(value, Mapping) and "measured" in value:
            source = Path(str(value["measured"])).resolve().parent
            label = next((labels[other] for other in labels if other.resolve() == source), None)
            reference = None if label is None else {"rate": {"matched_to": label}}
    arm = Arm(labels[folder], MethodSettings(str(recipe["method"]["name"]), reference or {}))
    return PlannedRun(arm, int(recipe.get("seed", 0)))


def _check_crossed(runs: Iterable[tuple[str, Any, str]]) -> None:
    """Refuse two runs of one arm and seed, and arms that have not the same seeds."""
    by_arm: dict[str, dict[Any, str]] = {}
    problems: list[str] = []
    for label, seed, name in runs:
        before = by_arm.setdefault(label, {}).setdefault(seed, name)
        if before != name:
            problems.append(f"{before} and {name} are both arm {label} with seed {seed}: give one of them")
    every = sorted({seed for seeds in by_arm.values() for seed in seeds}, key=str)
    for label, seeds in by_arm.items():
        missing = [str(seed) for seed in every if seed not in seeds]
        if missing:
            problems.append(
                f"arm {label} has no run with seed {', '.join(missing)}: arms are paired by seed, so every arm needs "
                "the same ones; add these runs or leave those of the other arms out"
            )
    refuse(problems)


def compare_lines(
    paths: Sequence[Path], *, higher: bool = False, log: bool = False, margin: float | None = None,
    baseline: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the content of results.json of scores in files, a JSON object a line: arm, seed, item, score.

    A line without ``arm`` belongs to the arm named like its file; lines without ``item`` are scores of whole runs. The
    score of a run is the mean over its items. ``control_of`` names the arm that a line's arm is a control of.

    Args:
        paths: files of JSON lines.
        higher: True if more of the score is better.
        log: True to compare by ratios.
        margin: as in a recipe's [compare].
        baseline: label of the arm that the others are held against; None: teacher_forcing, or the first.

    Raises:
        UserError: lines that cannot be read, arms with other seeds or items; with file and line.
    """
    runs: dict[tuple[str, Any], dict[str, float]] = {}
    controls: dict[str, str] = {}
    for path in paths:
        _read_lines(path, runs, controls)
    labels = list(dict.fromkeys(label for label, _ in runs))
    base = baseline or next((label for label in labels if label == "teacher_forcing"), labels[0])
    problems = [
        f"{what} {display(label)} is no arm of these files: they have {', '.join(map(display, labels))}"
        for what, label in [("baseline", base), *(("control_of", label) for label in controls.values())]
        if label not in labels
    ]
    refuse(problems)
    _check_crossed([(label, seed, f"{label}-{seed}") for label, seed in runs])
    items = list(next(iter(runs.values())))
    for (label, seed), found in runs.items():
        if set(found) != set(items):
            odd = display(next(iter(set(found) ^ set(items))))
            problems.append(f"arm {label}, seed {seed}: other items than {labels[0]} has, such as {odd}: items pair")
    refuse(problems[:_MOST_PROBLEMS])
    whole = items == [""]
    digest = hashlib.sha256(json.dumps(sorted(items)).encode()).hexdigest()[:16]
    records = [_record(run, found, base, controls.get(run[0]), digest) for run, found in runs.items()]
    tested = [[] if whole else [{"source": item, "score": found[item]} for item in items] for found in runs.values()]
    compared = {} if margin is None else {"margin": margin}
    recipe = {"name": "scores", "data": {"kind": "scores", "higher": higher, "log": log}, "compare": compared}
    return results.decided(recipe, records, tested)


def _record(
    run: tuple[str, Any], found: Mapping[str, float], base: str, control_of: str | None, digest: str
) -> dict[str, Any]:
    label, seed = run
    mean = math.fsum(found.values()) / len(found)
    role = "baseline" if label == base else "method" if control_of is None else "control:other"
    return {
        "label": label, "method": label, "seed": seed, "role": role, "control_of": control_of, "signature": "",
        "free_running": {"score": mean}, "teacher_forced": {}, "best": {}, "data": digest, "versions": {},
        "folder": "", "has_items": False,
    }  # fmt: skip


def _read_lines(path: Path, runs: dict[tuple[str, Any], dict[str, float]], controls: dict[str, str]) -> None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        problem = _read_line(line, path.stem, runs, controls)
        if problem:
            problems.append(f"{path}:{number}: {problem}")
    if not any(line.strip() for line in lines):
        problems.append(f"{path} is empty: a line is {{'arm': 'a', 'seed': 0, 'item': 'x', 'score': 1.5}}")
    refuse(problems[:_MOST_PROBLEMS])


def _read_line(
    line: str, stem: str, runs: dict[tuple[str, Any], dict[str, float]], controls: dict[str, str]
) -> str | None:
    """Add a line's score; return what is wrong with it."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg}"
    if not isinstance(entry, dict) or "score" not in entry or "seed" not in entry:
        return (
            f"a line is an object with seed and score, and arm and item where there are several; got {display(entry)}"
        )
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        return f"unknown key {display(unknown[0])}; a line has {', '.join(_KEYS)}"
    arm, seed, score = entry.get("arm", stem), entry["seed"], entry["score"]
    if not isinstance(arm, str) or not arm.strip() or isinstance(seed, bool) or not isinstance(seed, int):
        return f"arm must be a word and seed a whole number; got {display(arm)} and {display(seed)}"
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return f"score must be a finite number; got {display(score)}"
    item = str(entry.get("item", ""))
    if item in runs.setdefault((arm, seed), {}):
        return f"arm {arm}, seed {seed} has a score of item {display(item)} already"
    runs[arm, seed][item] = float(score)
    if "control_of" in entry:
        controls[arm] = str(entry["control_of"])
    return None
