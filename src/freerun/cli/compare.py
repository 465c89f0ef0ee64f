"""``freerun compare`` and ``freerun demo``: of a recipe, of finished runs, of files of scores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from freerun.cli.commands import print_lines
from freerun.errors import UserError, display, refuse, visible
from freerun.recipes.source import find_recipe, read_source
from freerun.terminal import loading, waiting, width_of, wrapped

STRICT = {"better": 0, "uncontrolled": 20, "as good": 21, "undecided": 22, "worse": 23, "no verdict": 24}
"""Exit code of ``freerun compare --strict`` by the word of the verdict."""


_FLAGS = {"allow": "allow-change", "ray_address": "ray-address"}


@dataclass(frozen=True)
class CompareOptions:
    """The options of ``freerun compare``; see its help."""

    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    workers: int | None = None
    allow: Sequence[str] = ()
    init: Path | None = None
    executor: str = "local"
    ray_address: str | None = None
    strict: bool = False
    margin: float | None = None
    higher: bool = False
    log: bool = False
    baseline: str | None = None


def compare(what: Sequence[str], overrides: Sequence[str], options: CompareOptions, *, plan: bool = False) -> int:
    """``freerun compare``: table, verdict and the page's path; return the exit code, of ``--strict`` the verdict's."""
    if not what:
        raise UserError(
            "freerun compare needs a recipe with [compare], folders of finished runs, or files of JSON lines"
        )
    lines = all(name.endswith(".jsonl") for name in what)
    runs = not lines and all(Path(name).is_dir() for name in what)
    _refuse_options(what, overrides, options, plan=plan, lines=lines, runs=runs)
    if lines or runs:
        results, draw = _compare_finished([Path(name) for name in what], options, lines=lines)
    elif plan:
        _print_plan(what[0], overrides, options)
        return 0
    else:
        results, draw = _compare_recipe(what[0], overrides, options)
    with loading():
        from rich.console import Console

        from freerun.comparison.verdict import table

    width = width_of(sys.stdout)
    Console(width=width).print(table(results, width))
    print_lines(results["verdict"]["sentence"], hanging="")
    if draw is not None:
        with waiting() as progress:
            progress("drawing the page", passing=True)
            page = draw()
        print(visible(str(page)))
    return STRICT[results["verdict"]["word"]] if options.strict else 0


def _refuse_options(
    what: Sequence[str], overrides: Sequence[str], options: CompareOptions, *, plan: bool, lines: bool, runs: bool
) -> None:
    """Refuse what a kind of comparison has no use for, by name."""
    usual = CompareOptions()
    mine = {"higher", "log", "baseline"} if lines else set[str]()
    mine |= {"margin"} if lines or runs else {"resume", "workers", "allow", "init", "executor", "ray_address"}
    kind = "files of scores" if lines else "finished runs" if runs else "a recipe"
    problems = [
        f"--{_FLAGS.get(field.name, field.name)} has no meaning for a comparison of {kind}"
        + (": set it with --set compare.margin=..." if field.name == "margin" else "")
        for field in fields(options)
        if field.name not in {*mine, "out", "overwrite", "strict"}
        and getattr(options, field.name) != getattr(usual, field.name)
    ]
    if (lines or runs) and (plan or overrides):
        problems.append(f"--plan and --set have no meaning for a comparison of {kind}: nothing is trained")
    if not (lines or runs) and len(what) > 1:
        missing = next((name for name in what if not Path(name).exists()), what[0])
        problems.append(
            f"{display(missing)} is no folder of a run and no .jsonl file: several things are compared only if all are"
        )
    if not (lines or runs or plan) and options.out is None:
        problems.append("--out DIR is missing: a recipe's comparison needs a folder for its runs")
    refuse(problems)


def _compare_finished(
    paths: Sequence[Path], options: CompareOptions, *, lines: bool
) -> tuple[dict[str, Any], Callable[[], Path] | None]:
    with loading():
        from freerun import report
        from freerun.comparison import results
        from freerun.comparison.finished import compare_lines, compare_runs
        from freerun.comparison.plan import check_output_dir, claim_output_dir
        from freerun.training.run_folder import FolderLock

    out = options.out
    if out is not None:
        check_output_dir(out, resume=False, overwrite=options.overwrite)
    if lines:
        found = compare_lines(
            paths, higher=options.higher, log=options.log, margin=options.margin, baseline=options.baseline
        )
    else:
        found = compare_runs(paths, options.margin)
    if out is None:
        return found, None
    with FolderLock(out):
        claim_output_dir(out, (), overwrite=options.overwrite)
        written = results.write(found, out)
    return found, lambda: written if lines else report.write(out)


def _compare_recipe(
    recipe: str, overrides: Sequence[str], options: CompareOptions
) -> tuple[dict[str, Any], Callable[[], Path] | None]:
    read_source(find_recipe(recipe), overrides)  # a broken recipe is refused without PyTorch
    with loading():
        from freerun import report
        from freerun.comparison.run import compare as run_all
        from freerun.training.processes import launched_processes

    if launched_processes() > 1:
        raise UserError("freerun compare starts its own processes: run it without torchrun, with --workers N")
    out = options.out or Path()
    results = run_all(
        recipe, overrides, out, resume=options.resume, overwrite=options.overwrite, workers=options.workers,
        allow=options.allow, init=options.init, executor=options.executor, ray_address=options.ray_address,
    )  # fmt: skip
    return results, lambda: report.write(out)


def _print_plan(recipe: str, overrides: Sequence[str], options: CompareOptions) -> None:
    """Print what would run, cost and could be seen; nothing is trained."""
    read_source(find_recipe(recipe), overrides)
    with loading():
        from freerun.comparison.run import planned

    print_lines(*planned(recipe, overrides, options.out, options.workers, options.init))


def demo(out: Path | None, *, show: bool) -> None:
    """``freerun demo``: the comparison of the recipe ``demo``, and its page in the browser."""
    folder = Path("freerun-demo") if out is None else out
    resume = (folder / "comparison.json").exists()
    text = (
        "freerun demo: forecast a chaotic series (Mackey-Glass) by teacher forcing, by scheduled sampling and by a "
        f"control with noise, 3 seeds each; about a minute\nruns and page: {visible(str(folder))}"
    )
    print(wrapped(text, width_of(sys.stderr)), file=sys.stderr, flush=True)
    compare(["demo"], (), CompareOptions(folder, resume=resume))
    if show:
        import webbrowser

        webbrowser.open((folder / "report.html").resolve().as_uri())
