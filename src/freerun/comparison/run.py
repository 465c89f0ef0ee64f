"""``freerun compare``: every arm with every seed, one process each, then results.json."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from freerun.arguments import COUNT, OneOf
from freerun.comparison import results
from freerun.comparison.design import could_see, finished_part, planned_lines, seeds_done
from freerun.comparison.executors import EXECUTORS, LOST, Executor, Job, Options
from freerun.comparison.plan import (
    PlannedRun,
    check_output_dir,
    claim_output_dir,
    plan,
    ready,
    recorded,
    refuse_other_start,
)
from freerun.comparison.verdict import margin_of, task_report
from freerun.errors import EXIT_CODES, FaultError, ResourceError, UserError
from freerun.metrics.table import PAIRS, TaskReport
from freerun.recipes import load_recipe, recipe_table
from freerun.recipes.read import stand_in
from freerun.recipes.recipe import EQUAL, Arm, CompareSettings, Recipe, matched_label
from freerun.recipes.train import (
    build_data,
    build_model,
    build_task,
    check_init,
    method_of,
    recipe_keys,
    rehearse,
    same_recipe,
    selection_note,
)
from freerun.signals import Interrupt, StopFlag, stopped
from freerun.training import preflight
from freerun.training.changes import check_allow
from freerun.training.files import parse
from freerun.training.log import Event, Progress, RunState, progress_for
from freerun.training.run_folder import FolderLock, checkpoints, finished_summary, stage, write_recipe
from freerun.training.weights import digest

_POLL = 0.5
_TAIL_LINES = 15
_LOSSES = 3


def run_error(job: Job, again: str) -> UserError:
    """Return the error of a run that failed: the end of what it printed, and how to go on."""
    text = job.log.read_text(encoding="utf-8", errors="replace") if job.log.exists() else ""
    lines = text.strip().splitlines()[-_TAIL_LINES:]
    kind, how = _fate(job.code or 0)
    if job.reason:
        kind, how = ResourceError, f"lost its worker {_LOSSES} times in a row and saved nothing new ({job.reason})"
    printed = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
    return kind(
        f"run {job.run.name} {how}; the end of {job.log}:\n{printed}\n  help: the other runs were stopped "
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
    init: str | Path | None = None,
    progress: bool = True,
    executor: str = "local",
    ray_address: str | None = None,
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
        workers: runs at a time; None: as the recipe says, or as many as a Ray cluster has CPUs.
        allow: keys that may have changed since; finished runs stay as they are.
        init: folder of a finished run whose best weights every run begins with; seeds then differ in batches and draws.
        progress: show how far the runs are.
        executor: a name in ``EXECUTORS``: "local" for processes of this machine, "ray" for tasks of a Ray cluster.
        ray_address: HOST:PORT of the cluster, or "local"; None: ``RAY_ADDRESS``, the cluster of this machine, or a
            new one on this machine.

    Raises:
        OccupiedError: ``out`` is no comparison's, or holds one and neither ``resume`` nor ``overwrite`` is set.
        CheckpointError: a file of it, or of a run, cannot be read.
        StoppedError: Ctrl-C, SIGTERM or a closed terminal; the runs were stopped and can be resumed.
        UserError: a wrong recipe, wrong data, a missing extra, a cluster that cannot be used, or a run that failed
            (with the end of what it printed).
    """
    overrides = list(overrides)
    recipe = load_recipe(recipe_path, overrides)
    settings = _compared(recipe, recipe_path)
    if workers is not None:
        COUNT.check(workers=workers)
    OneOf(tuple(EXECUTORS)).check(executor=executor)
    check_allow(allow, recipe_keys(recipe), resume=resume)
    check_output_dir(out, resume=resume, overwrite=overwrite)
    source = None if init is None else Path(init).resolve()
    start = None if source is None else _start(source, out)
    margin_of(recipe_table(recipe))  # one that is wrong is refused before hours of runs
    runs = plan(settings.arms, settings.seeds)
    needed = overwrite or not all(finished_summary(out / "runs" / run.name) for run in runs)
    if needed:
        elsewhere = executor == "ray" and recipe.train.device == "cuda"  # the executor looks for a GPU
        checked = replace(recipe, train=replace(recipe.train, device="given")) if elsewhere else recipe
        _check_start(checked, settings.arms, source)
    options = Options(out, workers, settings.workers, recipe.train.device == "cuda", ray_address)
    with EXECUTORS[executor if needed else "local"](options) as machines, FolderLock(out):
        check_output_dir(out, resume=resume, overwrite=overwrite)  # another process may have begun one meanwhile
        tables = {run.name: _table(recipe, run, out) for run in runs}
        if not overwrite:
            refuse_other_start(out, start)
            _refuse_changed(recipe, tables, out, allow)
        claim_output_dir(out, list(tables), start, overwrite=overwrite)
        recipes = _write_recipes(tables, out)
        sets = [part for text in overrides for part in ("--set", text)]
        flags = [part for key in allow for part in ("--allow-change", key)]
        where = [] if executor == "local" else ["--executor", executor]
        begin = [] if source is None else ["--init", str(source)]
        where += [] if ray_address is None else ["--ray-address", ray_address]
        again = ["freerun", "compare", str(recipe_path), *sets, *begin, "--out", str(out), "--resume"]
        again += [*flags, *where]
        report = task_report(recipe_table(recipe))
        display = progress_for(recipe.train.updates, runs=len(runs), visible=progress)
        listed = sorted(runs, key=lambda run: (settings.arms.index(run.arm), settings.seeds.index(run.seed)))

        def design() -> str:
            return could_see(recipe_table(recipe), listed, finished_part(recipe_table(recipe), listed, out))

        for line in (*selection_note(recipe), *machines.header, design()):
            display.note(line)
        _run_all(_Work(recipe, out, recipes, machines, shlex.join(again), report, flags, design, begin), runs, display)
        content = results.collect(recipe_table(recipe), listed, out)
        results.write(content, out)
    return content


def _start(init: Path, out: Path | None) -> str:
    """Return what the weights are known by that every run begins with."""
    check_init(init, out)
    if out is not None and out.resolve() in init.resolve().parents:
        raise UserError(f"--init {init} lies in --out {out}, which the comparison writes: give another --out")
    return digest(init)


def _check_start(recipe: Recipe, arms: Iterable[Arm], init: Path | None) -> None:
    """Raise what every run, or one of these arms, would stumble over, before anything is removed or made."""
    data = build_data(recipe.data, recipe.model)
    model, task = build_model(recipe, data), build_task(recipe, data)
    preflight(model, task, recipe.train, init)
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
    train = replace(train, **recorded(run.arm.label, () if recipe.compare is None else recipe.compare.arms))
    return recipe_table(replace(recipe, seed=run.seed, method=run.method(out / "runs"), train=train), compare=False)


@dataclass(eq=False)
class _Work:
    recipe: Recipe
    out: Path
    recipes: Mapping[str, Path]
    machines: Executor
    again: str
    report: TaskReport
    flags: list[str]
    design: Callable[[], str]
    begin: list[str] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    running: list[Job] = field(default_factory=list)
    followers: dict[str, Follower] = field(default_factory=dict)
    losses: dict[str, tuple[str, int]] = field(default_factory=dict)

    def folder(self, run: PlannedRun) -> Path:
        return self.out / "runs" / run.name

    def command(self, run: PlannedRun) -> list[str]:
        command = ["-m", "freerun", "train", str(self.recipes[run.name].resolve())]
        command += ["--out", str(self.folder(run).resolve()), *self.begin]
        # what is left of one that was lost may be writing its first checkpoint
        started = run.name in self.losses or (self.folder(run).exists() and any(self.folder(run).iterdir()))
        return [*command, "--resume", *self.flags] if started else command

    def prepare(self, run: PlannedRun) -> None:
        """Write the recipe of a run whose length is known now that its reference has finished."""
        if run.arm.control in EQUAL and not finished_summary(self.folder(run)):
            write_recipe(self.recipes[run.name], _table(self.recipe, run, self.out))

    def start(self, run: PlannedRun, display: Progress) -> None:
        """Hand a run to the machines."""
        self.prepare(run)
        job = self.machines.start(run, self.command(run), self.out / "logs" / f"{run.name}.log")
        self.running.append(job)
        if job.begun:
            display.note(f"{run.name}: started")

    def look(self, job: Job, display: Progress) -> int | str | None:
        """Note what became of a run since the last look, and return what its executor does; raise if it failed."""
        begun, outcome = job.begun, self.machines.poll(job)
        if job.begun and not begun:
            display.note(f"{job.run.name}: started")
        if outcome is None:
            return None
        self.running.remove(job)
        if outcome == LOST:
            self._lose(job)
            display.note(f"{job.run.name}: lost its worker ({job.reason}); going on from its last checkpoint")
            return outcome
        summary = finished_summary(self.folder(job.run)) if outcome == 0 else None
        if summary is None:
            raise run_error(job, self.again)
        self.finished.add(job.run.name)
        display.note(f"{job.run.name}: finished{_result(summary, self.report)}")
        return outcome

    def _lose(self, job: Job) -> None:
        """Count how often a run was lost without a new checkpoint in between; raise if it is too often."""
        newest = max((path.name for path in checkpoints(self.folder(job.run))), default="")
        before, count = self.losses.get(job.run.name, ("", 0))
        self.losses[job.run.name] = newest, 1 + count * (newest == before)
        if self.losses[job.run.name][1] >= _LOSSES:
            raise run_error(job, self.again)

    def state(self, run: PlannedRun) -> RunState:
        follower = self.followers.setdefault(run.name, Follower(self.folder(run), self.report))
        running = any(job.run is run and job.begun for job in self.running)
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
                while len(work.running) < work.machines.workers and (run := ready(waiting, work.finished)):
                    waiting.remove(run)
                    work.start(run, display)
                time.sleep(_POLL)
                before = seeds_done(runs, work.finished)
                waiting[:0] = [job.run for job in list(work.running) if work.look(job, display) == LOST]
                if before < 2 <= seeds_done(runs, work.finished) < len({run.seed for run in runs}):
                    display.note(work.design())
                display.show([work.state(run) for run in runs])
        except Interrupt as interrupt:
            display.note("stopping the runs; they save a checkpoint first ...")
            work.machines.stop(work.running)
            done = f"with {len(work.finished)} of {len(runs)} runs done; go on with: {work.again}"
            raise stopped(interrupt.number, done) from interrupt
        finally:
            work.machines.stop(work.running)
            display.close()


def planned(
    recipe_path: str | Path, overrides: Iterable[str], out: Path | None, workers: int | None, init: Path | None = None
) -> list[str]:
    """Return what ``compare`` would run, cost and could show, as lines; nothing is trained or written."""
    recipe = load_recipe(recipe_path, list(overrides))
    settings = _compared(recipe, recipe_path)
    if workers is not None:
        COUNT.check(workers=workers)
    margin_of(recipe_table(recipe))
    runs = plan(settings.arms, settings.seeds)
    lines = planned_lines(recipe_table(recipe), runs, out, workers or settings.workers)
    return lines if init is None else [*lines, f"every run begins with the weights of {init} ({_start(init, out)})"]


def _compared(recipe: Recipe, path: str | Path) -> CompareSettings:
    if recipe.compare is None:
        raise UserError(f"{path}: [compare] is missing; add it with seeds and at least one [[compare.arms]]")
    return recipe.compare


def _result(summary: Mapping[str, Any], report: TaskReport) -> str:
    texts: list[str] = []
    for measure in report.compared[:2]:
        value = summary.get("test", {}).get(measure.side, {}).get(measure.score)
        texts += [] if value is None else [f"{measure.title} {measure.to_text(value)}"]
    return f": test {', '.join(texts)}, {summary.get('seconds', 0):.0f} s" if texts else ""
