"""``freerun compare``: every arm with every seed, one process each, then results.json."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from freerun.compare import folders, pool, results
from freerun.compare.place import check_place, claim
from freerun.compare.plan import Arm, PlannedRun, plan, ready
from freerun.compare.progress import Display, State, display_for
from freerun.compare.told import told
from freerun.config.folder import recipe_keys, same_recipe, write_recipe
from freerun.config.read import load_recipe, recipe_table
from freerun.config.recipe import MethodSettings, Recipe
from freerun.config.run import selection_note
from freerun.config.source import Unset
from freerun.errors import UserError, needing
from freerun.signals import Interrupt, StopFlag, stopped
from freerun.training.changes import check_allow
from freerun.training.folder import FolderLock, stage
from freerun.training.reported import Reported

__all__ = ["compare"]

_POLL = 0.5


def compare(
    recipe_path: str | Path,
    overrides: Iterable[str],
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    allow: Collection[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Run every arm of a recipe's [compare] with every seed; the content of ``out/results.json``.

    Seeds fix initial weights and data order, so arms of one seed differ in their method alone. An arm
    matched to another runs after it. Each run is a process with one thread.

    Args:
        recipe_path: the recipe.
        overrides: ``key=value`` each.
        out: folder of the comparison; made if missing.
        resume: go on: finished runs are kept, started ones continued.
        overwrite: remove an earlier comparison in ``out`` first; only files that comparisons write.
        workers: runs at a time; None: as the recipe says.
        allow: keys that may have changed since; finished runs stay as they are.
        progress: show how far the runs are.

    Raises:
        OccupiedError: ``out`` is no comparison's, or holds one and neither ``resume`` nor ``overwrite`` is given.
        CheckpointError: a file of it, or of a run, cannot be read.
        StoppedError: Ctrl-C, SIGTERM or a closed terminal; the runs were stopped and can be resumed.
        UserError: a wrong recipe, wrong data, a missing extra, or a run that failed (with the end of what it printed).
    """
    require_report()
    overrides = list(overrides)
    recipe = load_recipe(recipe_path, overrides)
    if recipe.compare is None:
        raise UserError(f"{recipe_path}: [compare] is missing; add it with seeds and at least one [[compare.arms]]")
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1; got {workers}")
    check_allow(allow, recipe_keys(recipe), resume=resume)
    check_place(out, resume=resume, overwrite=overwrite)
    arms = [Arm(arm.label, arm.method.table()) for arm in recipe.compare.arms]
    seeds = recipe.compare.seeds
    runs = plan(arms, seeds)
    sets = [part for text in overrides for part in ("--unset" if isinstance(text, Unset) else "--set", text)]
    flags = [part for key in allow for part in ("--allow-change", key)]
    again = shlex.join(["freerun", "compare", str(recipe_path), *sets, "--out", str(out), "--resume", *flags])
    if overwrite or not all(folders.finished(out / "runs" / run.name) for run in runs):
        # a rate that is matched to another arm is not known yet
        known = [arm.label for arm in arms if arm.reference is None]
        _check_start(recipe, {arm.label: arm.method for arm in recipe.compare.arms if arm.label in known})
    with FolderLock(out):
        check_place(out, resume=resume, overwrite=overwrite)  # another process may have begun one meanwhile
        tables = {run.name: _table(recipe, run, out) for run in runs}
        if not overwrite:
            _refuse_changed(recipe, tables, out, allow)
        claim(out, list(tables), overwrite=overwrite)
        recipes = _write_recipes(tables, out)
        reported = told(recipe_table(recipe))
        work = _Work(out, recipes, workers or recipe.compare.workers, again, reported, flags)
        display = display_for(recipe.train.updates, len(runs), progress)
        for line in selection_note(recipe):
            display.note(line)
        _run_all(work, runs, display)
        listed = sorted(runs, key=lambda run: (arms.index(run.arm), seeds.index(run.seed)))
        found = results.collect(recipe_table(recipe), listed, out)
        results.write(found, out)
    return found


def require_report() -> None:
    """Refuse to start hours of runs whose report could not be made.

    Raises:
        UserError: a library of the extra ``report`` is missing.
    """
    with needing("report", "the report"):
        import altair  # noqa: F401 # pyright: ignore[reportUnusedImport]
        import vl_convert  # noqa: F401 # pyright: ignore[reportUnusedImport]


def _check_start(recipe: Recipe, methods: Mapping[str, MethodSettings]) -> None:
    """What every run, or one of these arms, would stumble over, before anything is removed or made."""
    from freerun.config.build import build_data, build_model, build_task, method_of, rehearse
    from freerun.training import ready_to_start

    data = build_data(recipe.data, recipe.model)
    model, task = build_model(recipe, data), build_task(recipe, data)
    ready_to_start(model, task, recipe.train)
    problems: list[str] = []
    for label, settings in methods.items():
        try:
            rehearse(recipe, model, task, method_of(replace(recipe, method=settings), data, task))
        except UserError as error:
            problems += [f"arm {label}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)


def _refuse_changed(recipe: Recipe, tables: Mapping[str, dict[str, Any]], out: Path, allow: Collection[str]) -> None:
    """Refuse to go on with runs of other settings.

    Raises:
        UserError: every key that differs, run by run.
    """
    problems: list[str] = []
    advice = ""
    for name, table in tables.items():
        if stage(out / "runs" / name) in ("begun", "finished"):
            changed = same_recipe(out / "recipes" / f"{name}.toml", table, recipe_keys(recipe), allow)
            problems += [f"run {name} in {out}: {change}" for change in changed[:-1]]
            advice = changed[-1] if changed else advice
    if problems:
        advice = f"the folder holds runs of another recipe: give another folder, or --overwrite; {advice}"
        raise UserError([*problems, advice])


def _write_recipes(tables: Mapping[str, dict[str, Any]], out: Path) -> dict[str, Path]:
    """One resolved recipe file a run; those of finished runs stay."""
    (out / "recipes").mkdir(exist_ok=True)
    paths = {name: out / "recipes" / f"{name}.toml" for name in tables}
    for name, path in paths.items():
        if not path.exists() or not folders.finished(out / "runs" / name):
            write_recipe(path, tables[name])
    return paths


def _table(recipe: Recipe, run: PlannedRun, out: Path) -> dict[str, Any]:
    method = run.method(out / "runs")
    settings = MethodSettings(str(method.pop("name")), method)
    train = replace(recipe.train, seed=run.seed, threads=1)
    return recipe_table(replace(recipe, seed=run.seed, method=settings, train=train), compare=False)


@dataclass(eq=False)
class _Work:
    out: Path
    recipes: Mapping[str, Path]
    workers: int
    again: str
    reported: Reported
    flags: list[str]
    finished: set[str] = field(default_factory=set)
    running: list[pool.Child] = field(default_factory=list)
    followers: dict[str, folders.Follower] = field(default_factory=dict)

    def folder(self, run: PlannedRun) -> Path:
        return self.out / "runs" / run.name

    def command(self, run: PlannedRun) -> list[str]:
        command = [sys.executable, "-m", "freerun", "train", str(self.recipes[run.name])]
        command += ["--out", str(self.folder(run))]
        started = self.folder(run).exists() and any(self.folder(run).iterdir())
        return [*command, "--resume", *self.flags] if started else command

    def state(self, run: PlannedRun) -> State:
        follower = self.followers.setdefault(run.name, folders.Follower(self.folder(run), self.reported))
        running = any(child.run is run for child in self.running)
        stage = "done" if run.name in self.finished else "running" if running else "waiting"
        return State(run.name, stage, follower.look(), follower.score)


def _run_all(work: _Work, runs: list[PlannedRun], display: Display) -> None:
    work.finished |= {run.name for run in runs if folders.finished(work.folder(run))}
    if work.finished:
        display.note(f"{len(work.finished)} of {len(runs)} runs were finished before and are kept")
    waiting = [run for run in runs if run.name not in work.finished]
    with StopFlag():
        try:
            while waiting or work.running:
                _fill(work, waiting, display)
                time.sleep(_POLL)
                _reap(work, display)
                display.show([work.state(run) for run in runs])
        except Interrupt as interrupt:
            display.note("stopping the runs; they save a checkpoint first ...")
            pool.stop_all(work.running)
            done = f"with {len(work.finished)} of {len(runs)} runs done; go on with: {work.again}"
            raise stopped(interrupt.number, done) from interrupt
        finally:
            pool.stop_all(work.running)
            display.close()


def _fill(work: _Work, waiting: list[PlannedRun], display: Display) -> None:
    while len(work.running) < work.workers:
        run = ready(waiting, work.finished)
        if run is None:
            return
        waiting.remove(run)
        work.running.append(pool.start(run, work.command(run), work.out / "logs" / f"{run.name}.log"))
        display.note(f"{run.name}: started")


def _reap(work: _Work, display: Display) -> None:
    for child in [child for child in work.running if child.process.poll() is not None]:
        work.running.remove(child)
        if child.process.returncode != 0 or not folders.finished(work.folder(child.run)):
            raise pool.child_error(child, work.again)
        work.finished.add(child.run.name)
        display.note(f"{child.run.name}: finished{_result(work, child.run)}")


def _result(work: _Work, run: PlannedRun) -> str:
    found = folders.summary(work.folder(run)) or {}
    shown: list[str] = []
    for measure in map(work.reported.measure, work.reported.compared[:2]):
        value = found.get("test", {}).get(measure.side, {}).get(measure.score)
        shown += [] if value is None else [f"{measure.title} {measure.shown(value)}"]
    return f": test {', '.join(shown)}, {found.get('seconds', 0):.0f} s" if shown else ""
