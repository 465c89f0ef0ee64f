"""``freerun compare``: every arm with every seed, one process each, then results.json."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

from freerun.arguments import COUNT
from freerun.comparison import results
from freerun.comparison.plan import PlannedRun, check_output_dir, claim_output_dir, plan, ready
from freerun.comparison.verdict import margin_of, task_report
from freerun.errors import EXIT_CODES, FaultError, ResourceError, UserError
from freerun.metrics.table import PAIRS, TaskReport
from freerun.recipes import load_recipe, recipe_table
from freerun.recipes.read import stand_in
from freerun.recipes.recipe import Arm, Recipe, matched_label
from freerun.recipes.train import (
    build_data,
    build_model,
    build_task,
    method_of,
    recipe_keys,
    rehearse,
    same_recipe,
    selection_note,
)
from freerun.signals import LIFELINE, Interrupt, StopFlag, stopped
from freerun.training import preflight
from freerun.training.changes import check_allow
from freerun.training.files import parse
from freerun.training.log import Event, Progress, RunState, progress_for
from freerun.training.run_folder import FolderLock, finished_summary, stage, write_recipe

PATIENCE = 8.5
_POLL = 0.5
_TAIL_LINES = 15


@dataclass(eq=False)
class Child:
    """A running process, and the file that its output goes to."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path


@cache
def _lifeline() -> tuple[int, int]:
    """Return a pipe that nothing is written to: children see its end when this process ends, however it does."""
    return os.pipe()


def start(run: PlannedRun, command: Sequence[str], log: Path) -> Child:
    """Start a run with one thread, which stops when this process ends; what it prints goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    output: IO[bytes]
    with log.open("ab") as output:
        # a session of its own: Ctrl-C in the terminal reaches us alone, and we stop the children in order
        process = subprocess.Popen(
            list(command),
            stdin=_lifeline()[0],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread, "PYTHONUNBUFFERED": "1", LIFELINE: "1"},
            start_new_session=True,
        )
    return Child(run, process, log)


def stop_all(children: Sequence[Child], patience: float = PATIENCE) -> None:
    """Ask the children to stop (they save a checkpoint first), wait, end those that do not."""
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + patience
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def child_error(child: Child, again: str) -> UserError:
    """Return the error of a run that failed: the end of what it printed, and how to go on."""
    code = child.process.returncode
    lines = child.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_TAIL_LINES:]
    kind, how = _fate(code)
    printed = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
    return kind(
        f"run {child.run.name} {how}; the end of {child.log}:\n{printed}\n  help: the other runs were stopped "
        f"and can be resumed; mend this and go on with: {again}"
    )


def _fate(code: int) -> tuple[type[UserError], str]:
    """Return what a process came to, as an error and in words."""
    if code >= 0:
        kind = EXIT_CODES.get(code, (None, ""))[0] or FaultError
        return kind, f"ended with exit code {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        why = f"was killed ({name}), usually for want of memory: fewer runs at a time (--workers) need less"
        return ResourceError, why
    if -code in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        return type(stopped(-code, "")), f"was stopped by {name}"
    return FaultError, f"crashed ({name})"


class Follower:
    """How far a running run is, read from what it appended to metrics.jsonl since the last look."""

    def __init__(self, folder: Path, report: TaskReport = PAIRS) -> None:
        self.report = report
        self.path = folder / "metrics.jsonl"
        self.updates = 0
        self.score = ""
        self._offset = 0

    def look(self) -> int:
        """Read what is new; return the updates made so far."""
        try:
            with self.path.open("rb") as file:
                if self.path.stat().st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return self.updates
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(line)
        return self.updates

    def _take(self, line: bytes) -> None:
        event: dict[str, Any] = {**parse(line, Event, str(self.path))}
        if event["event"] == "update":
            self.updates = event.get("step", -1) + 1
        elif event["event"] == "evaluate" and event.get("split") == "dev":
            for measure in self.report.compared:
                value = event.get(measure.side, {}).get(measure.score)
                if value is not None:
                    name = measure.heading.removesuffix(" %")
                    self.score = f"dev {name} {measure.to_text(value, max(1, measure.decimals - 1))}"
                    return


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
    """Run every arm of a recipe's [compare] with every seed; return the content of ``out/results.json``.

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
        OccupiedError: ``out`` is no comparison's, or holds one and neither ``resume`` nor ``overwrite`` is set.
        CheckpointError: a file of it, or of a run, cannot be read.
        StoppedError: Ctrl-C, SIGTERM or a closed terminal; the runs were stopped and can be resumed.
        UserError: a wrong recipe, wrong data, a missing extra, or a run that failed (with the end of what it printed).
    """
    overrides = list(overrides)
    recipe = load_recipe(recipe_path, overrides)
    settings = recipe.compare
    if settings is None:
        raise UserError(f"{recipe_path}: [compare] is missing; add it with seeds and at least one [[compare.arms]]")
    if workers is not None:
        COUNT.check(workers=workers)
    check_allow(allow, recipe_keys(recipe), resume=resume)
    check_output_dir(out, resume=resume, overwrite=overwrite)
    margin_of(recipe_table(recipe))  # one that is wrong is refused before hours of runs
    runs = plan(settings.arms, settings.seeds)
    if overwrite or not all(finished_summary(out / "runs" / run.name) for run in runs):
        _check_start(recipe, settings.arms)
    with FolderLock(out):
        check_output_dir(out, resume=resume, overwrite=overwrite)  # another process may have begun one meanwhile
        tables = {run.name: _table(recipe, run, out) for run in runs}
        if not overwrite:
            _refuse_changed(recipe, tables, out, allow)
        claim_output_dir(out, list(tables), overwrite=overwrite)
        recipes = _write_recipes(tables, out)
        sets = [part for text in overrides for part in ("--set", text)]
        flags = [part for key in allow for part in ("--allow-change", key)]
        again = shlex.join(["freerun", "compare", str(recipe_path), *sets, "--out", str(out), "--resume", *flags])
        report = task_report(recipe_table(recipe))
        display = progress_for(recipe.train.updates, runs=len(runs), visible=progress)
        for line in selection_note(recipe):
            display.note(line)
        _run_all(_Work(recipe, out, recipes, workers or settings.workers, again, report, flags), runs, display)
        listed = sorted(runs, key=lambda run: (settings.arms.index(run.arm), settings.seeds.index(run.seed)))
        content = results.collect(recipe_table(recipe), listed, out)
        results.write(content, out)
    return content


def _check_start(recipe: Recipe, arms: Iterable[Arm]) -> None:
    """Raise what every run, or one of these arms, would stumble over, before anything is removed or made."""
    data = build_data(recipe.data, recipe.model)
    model, task = build_model(recipe, data), build_task(recipe, data)
    preflight(model, task, recipe.train)
    problems: list[str] = []
    for arm in arms:
        try:
            parameters = arm.method.parameters.items()
            # what is matched to another arm is not known yet
            known = {key: stand_in(key) if matched_label(value) is not None else value for key, value in parameters}
            settings = replace(arm.method, parameters=known)
            rehearse(recipe, model, task, method_of(replace(recipe, method=settings), data, task, model))
        except UserError as error:
            problems += [f"arm {arm.label}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)


def _refuse_changed(recipe: Recipe, tables: Mapping[str, dict[str, Any]], out: Path, allow: Collection[str]) -> None:
    """Refuse to go on with runs of other settings, naming every key that differs, run by run."""
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
    """Write a resolved recipe a run; those of finished runs stay."""
    (out / "recipes").mkdir(exist_ok=True)
    paths = {name: out / "recipes" / f"{name}.toml" for name in tables}
    for name, path in paths.items():
        if not path.exists() or not finished_summary(out / "runs" / name):
            write_recipe(path, tables[name])
    return paths


def _table(recipe: Recipe, run: PlannedRun, out: Path) -> dict[str, Any]:
    settings, runs = recipe.train, out / "runs"
    train = replace(settings, seed=run.seed, threads=1, updates=run.updates(runs, settings.updates))
    if run.arm.label in _recorded(recipe):
        train = replace(train, record_errors=True)
    return recipe_table(replace(recipe, seed=run.seed, method=run.method(out / "runs"), train=train), compare=False)


def _recorded(recipe: Recipe) -> set[str | None]:
    """Labels of the arms whose own errors another arm draws from."""
    arms = () if recipe.compare is None else recipe.compare.arms
    return {arm.reference for arm in arms if "law" in arm.method.parameters}


@dataclass(eq=False)
class _Work:
    recipe: Recipe
    out: Path
    recipes: Mapping[str, Path]
    workers: int
    again: str
    report: TaskReport
    flags: list[str]
    finished: set[str] = field(default_factory=set)
    running: list[Child] = field(default_factory=list)
    followers: dict[str, Follower] = field(default_factory=dict)

    def folder(self, run: PlannedRun) -> Path:
        return self.out / "runs" / run.name

    def command(self, run: PlannedRun) -> list[str]:
        command = [sys.executable, "-m", "freerun", "train", str(self.recipes[run.name])]
        command += ["--out", str(self.folder(run))]
        started = self.folder(run).exists() and any(self.folder(run).iterdir())
        return [*command, "--resume", *self.flags] if started else command

    def prepare(self, run: PlannedRun) -> None:
        """Write the recipe of a run whose length is known now that its reference has finished."""
        if run.arm.control == "equal_cost" and not finished_summary(self.folder(run)):
            write_recipe(self.recipes[run.name], _table(self.recipe, run, self.out))

    def state(self, run: PlannedRun) -> RunState:
        follower = self.followers.setdefault(run.name, Follower(self.folder(run), self.report))
        running = any(child.run is run for child in self.running)
        stage = "done" if run.name in self.finished else "running" if running else "waiting"
        return RunState(run.name, stage, follower.look(), follower.score)


def _run_all(work: _Work, runs: list[PlannedRun], display: Progress) -> None:
    work.finished |= {run.name for run in runs if finished_summary(work.folder(run))}
    if work.finished:
        display.note(f"{len(work.finished)} of {len(runs)} runs were finished before and are kept")
    waiting = [run for run in runs if run.name not in work.finished]
    with StopFlag():
        try:
            while waiting or work.running:
                while len(work.running) < work.workers and (run := ready(waiting, work.finished)):
                    waiting.remove(run)
                    work.prepare(run)
                    work.running.append(start(run, work.command(run), work.out / "logs" / f"{run.name}.log"))
                    display.note(f"{run.name}: started")
                time.sleep(_POLL)
                for child in [child for child in work.running if child.process.poll() is not None]:
                    work.running.remove(child)
                    summary = finished_summary(work.folder(child.run)) if child.process.returncode == 0 else None
                    if summary is None:
                        raise child_error(child, work.again)
                    work.finished.add(child.run.name)
                    display.note(f"{child.run.name}: finished{_result(summary, work.report)}")
                display.show([work.state(run) for run in runs])
        except Interrupt as interrupt:
            display.note("stopping the runs; they save a checkpoint first ...")
            stop_all(work.running)
            done = f"with {len(work.finished)} of {len(runs)} runs done; go on with: {work.again}"
            raise stopped(interrupt.number, done) from interrupt
        finally:
            stop_all(work.running)
            display.close()


def _result(summary: Mapping[str, Any], report: TaskReport) -> str:
    texts: list[str] = []
    for measure in report.compared[:2]:
        value = summary.get("test", {}).get(measure.side, {}).get(measure.score)
        texts += [] if value is None else [f"{measure.title} {measure.to_text(value)}"]
    return f": test {', '.join(texts)}, {summary.get('seconds', 0):.0f} s" if texts else ""
