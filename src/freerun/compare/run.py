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
from typing import IO, Any, Protocol

from freerun.compare import results
from freerun.compare import runs as runs_module
from freerun.compare.plan import Arm, PlannedRun, check_output_dir, claim_output_dir, plan, ready
from freerun.compare.verdict import task_report
from freerun.errors import EXIT_CODES, FaultError, ResourceError, UserError, needing
from freerun.metrics.table import TaskReport
from freerun.recipes import load_recipe, recipe_table
from freerun.recipes.folder import recipe_keys, same_recipe, write_recipe
from freerun.recipes.recipe import MethodSettings, Recipe
from freerun.recipes.source import Unset
from freerun.recipes.train import selection_note
from freerun.signals import LIFELINE, Interrupt, StopFlag, stopped
from freerun.training.changes import check_allow
from freerun.training.run_folder import FolderLock, stage

_EVERY = 15.0


@dataclass(frozen=True)
class State:
    """How far one run is."""

    name: str
    stage: str
    updates: int
    score: str = ""


class Display(Protocol):
    """Shows the states of all runs, and says things in between."""

    def show(self, states: Sequence[State]) -> None:
        """Show the state of every run."""
        ...

    def note(self, text: str) -> None:
        """Say a line."""
        ...

    def close(self) -> None:
        """Take bars off the screen."""
        ...


def clock(seconds: float) -> str:
    """A duration for people.

    >>> clock(75), clock(3723)
    ('1:15', '1:02:03')
    """
    whole = int(max(seconds, 0))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class _Silent:
    def show(self, states: Sequence[State]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    def __init__(self, total: int, runs: int) -> None:
        self.whole = total * runs
        self.total = total
        self._began = time.monotonic()
        self._last = 0.0
        self._first: int | None = None

    def show(self, states: Sequence[State]) -> None:
        now = time.monotonic()
        done = sum(state.updates for state in states)
        if self._first is None:
            self._first = done
        if now - self._last < _EVERY:
            return
        self._last = now
        over = sum(state.stage == "done" for state in states)
        running = [_line(state, self.total) for state in states if state.stage == "running"]
        text = f"{clock(now - self._began)}  {over} of {len(states)} runs done"
        self.note("  |  ".join([text + self._left(done, now), *running]))

    def _left(self, done: int, now: float) -> str:
        speed = (done - (self._first or 0)) / max(now - self._began, 1e-9)
        return f", about {clock((self.whole - done) / speed)} left" if speed > 0 and now - self._began > 5 else ""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def _line(state: State, total: int) -> str:
    return f"{state.name} {state.updates}/{total}" + (f" {state.score}" if state.score else "")


class _Bars:
    def __init__(self, total: int, runs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[score]}"),
            console=Console(stderr=True),
            expand=True,
        )
        self._total = total
        self._tasks: dict[str, Any] = {}
        self._all = self._bars.add_task("[bold]all runs", total=total * runs, score="")
        self._bars.start()

    def show(self, states: Sequence[State]) -> None:
        over = sum(state.stage == "done" for state in states)
        done = sum(state.updates for state in states)
        self._bars.update(self._all, completed=done, score=f"{over} of {len(states)} runs done")
        for state in states:
            if state.stage == "running" and state.name not in self._tasks:
                self._tasks[state.name] = self._bars.add_task(state.name, total=self._total, score="")
            if state.name in self._tasks:
                self._bars.update(self._tasks[state.name], completed=state.updates, score=state.score)
            if state.stage == "done" and state.name in self._tasks:
                self._bars.remove_task(self._tasks.pop(state.name))

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()


def display_for(total: int, runs: int, wanted: bool) -> Display:
    """The display that fits where standard error goes."""
    if not wanted:
        return _Silent()
    return _Bars(total, runs) if sys.stderr.isatty() else _Lines(total, runs)


PATIENCE = 8.5
_TAIL_LINES = 15


@dataclass(eq=False)
class Child:
    """A running process."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)


@cache
def _lifeline() -> tuple[int, int]:
    """A pipe that nothing is written to: children that read it see its end when this process ends, however it does."""
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
    """The error of a run that failed: the end of what it printed, and how to go on."""
    code = child.process.returncode
    lines = child.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_TAIL_LINES:]
    kind, how = _fate(code)
    said = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
    return kind(
        f"run {child.run.name} {how}; the end of {child.log}:\n{said}\n  help: the other runs were stopped "
        f"and can be resumed; mend this and go on with: {again}"
    )


def _fate(code: int) -> tuple[type[UserError], str]:
    """What a process came to, as an error and in words."""
    if code >= 0:
        kind = EXIT_CODES.get(code, (None, ""))[0] or FaultError
        return kind, f"ended with exit code {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return (
            ResourceError,
            f"was killed ({name}), usually for want of memory: fewer runs at a time (--workers) need less",
        )
    if -code in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        return type(stopped(-code, "")), f"was stopped by {name}"
    return FaultError, f"crashed ({name})"


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
    check_output_dir(out, resume=resume, overwrite=overwrite)
    arms = [Arm(arm.label, arm.method.table()) for arm in recipe.compare.arms]
    seeds = recipe.compare.seeds
    runs = plan(arms, seeds)
    sets = [part for text in overrides for part in ("--unset" if isinstance(text, Unset) else "--set", text)]
    flags = [part for key in allow for part in ("--allow-change", key)]
    again = shlex.join(["freerun", "compare", str(recipe_path), *sets, "--out", str(out), "--resume", *flags])
    if overwrite or not all(runs_module.finished(out / "runs" / run.name) for run in runs):
        # a rate that is matched to another arm is not known yet
        known = [arm.label for arm in arms if arm.reference is None]
        _check_start(recipe, {arm.label: arm.method for arm in recipe.compare.arms if arm.label in known})
    with FolderLock(out):
        check_output_dir(out, resume=resume, overwrite=overwrite)  # another process may have begun one meanwhile
        tables = {run.name: _table(recipe, run, out) for run in runs}
        if not overwrite:
            _refuse_changed(recipe, tables, out, allow)
        claim_output_dir(out, list(tables), overwrite=overwrite)
        recipes = _write_recipes(tables, out)
        reported = task_report(recipe_table(recipe))
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
    """Refuse to start hours of runs whose report could not be made."""
    with needing("report", "the report"):
        import altair  # noqa: F401 # pyright: ignore[reportUnusedImport]
        import vl_convert  # noqa: F401 # pyright: ignore[reportUnusedImport]


def _check_start(recipe: Recipe, methods: Mapping[str, MethodSettings]) -> None:
    """What every run, or one of these arms, would stumble over, before anything is removed or made."""
    from freerun.recipes.build import build_data, build_model, build_task, method_of, rehearse
    from freerun.training import preflight

    data = build_data(recipe.data, recipe.model)
    model, task = build_model(recipe, data), build_task(recipe, data)
    preflight(model, task, recipe.train)
    problems: list[str] = []
    for label, settings in methods.items():
        try:
            rehearse(recipe, model, task, method_of(replace(recipe, method=settings), data, task))
        except UserError as error:
            problems += [f"arm {label}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)


def _refuse_changed(recipe: Recipe, tables: Mapping[str, dict[str, Any]], out: Path, allow: Collection[str]) -> None:
    """Refuse to go on with runs of other settings."""
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
        if not path.exists() or not runs_module.finished(out / "runs" / name):
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
    reported: TaskReport
    flags: list[str]
    finished: set[str] = field(default_factory=set)
    running: list[Child] = field(default_factory=list)
    followers: dict[str, runs_module.Follower] = field(default_factory=dict)

    def folder(self, run: PlannedRun) -> Path:
        return self.out / "runs" / run.name

    def command(self, run: PlannedRun) -> list[str]:
        command = [sys.executable, "-m", "freerun", "train", str(self.recipes[run.name])]
        command += ["--out", str(self.folder(run))]
        started = self.folder(run).exists() and any(self.folder(run).iterdir())
        return [*command, "--resume", *self.flags] if started else command

    def state(self, run: PlannedRun) -> State:
        follower = self.followers.setdefault(run.name, runs_module.Follower(self.folder(run), self.reported))
        running = any(child.run is run for child in self.running)
        stage = "done" if run.name in self.finished else "running" if running else "waiting"
        return State(run.name, stage, follower.look(), follower.score)


def _run_all(work: _Work, runs: list[PlannedRun], display: Display) -> None:
    work.finished |= {run.name for run in runs if runs_module.finished(work.folder(run))}
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
            stop_all(work.running)
            done = f"with {len(work.finished)} of {len(runs)} runs done; go on with: {work.again}"
            raise stopped(interrupt.number, done) from interrupt
        finally:
            stop_all(work.running)
            display.close()


def _fill(work: _Work, waiting: list[PlannedRun], display: Display) -> None:
    while len(work.running) < work.workers:
        run = ready(waiting, work.finished)
        if run is None:
            return
        waiting.remove(run)
        work.running.append(start(run, work.command(run), work.out / "logs" / f"{run.name}.log"))
        display.note(f"{run.name}: started")


def _reap(work: _Work, display: Display) -> None:
    for child in [child for child in work.running if child.process.poll() is not None]:
        work.running.remove(child)
        if child.process.returncode != 0 or not runs_module.finished(work.folder(child.run)):
            raise child_error(child, work.again)
        work.finished.add(child.run.name)
        display.note(f"{child.run.name}: finished{_result(work, child.run)}")


def _result(work: _Work, run: PlannedRun) -> str:
    found = runs_module.summary(work.folder(run)) or {}
    shown: list[str] = []
    for measure in work.reported.compared[:2]:
        value = found.get("test", {}).get(measure.side, {}).get(measure.score)
        shown += [] if value is None else [f"{measure.title} {measure.shown(value)}"]
    return f": test {', '.join(shown)}, {found.get('seconds', 0):.0f} s" if shown else ""
