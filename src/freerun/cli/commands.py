"""What each command does; results go to standard output, everything else to standard error."""

from __future__ import annotations

import codecs
import importlib
import json
import os
import shutil
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freerun.errors import CheckpointError, DivergedError, UserError, out_of_memory, visible

__all__ = ["check", "compare", "evaluate", "generate", "methods", "recipes", "schedules", "train", "usable"]


def train(
    recipe: str, overrides: Sequence[str], out: Path, *, resume: bool, overwrite: bool, init: Path | None,
    allow: Sequence[str],
) -> int:  # fmt: skip
    """``freerun train``: the folder of the run on standard output."""
    from freerun.config import load_recipe

    # a broken recipe is refused without PyTorch; of several processes one says so
    loaded = None if "WORLD_SIZE" in os.environ else load_recipe(recipe, overrides)
    from freerun.config.run import results_lines, run_recipe
    from freerun.training.processes import joined

    with joined() as processes:
        if loaded is None:
            with processes.alike():
                loaded = load_recipe(recipe, overrides)
        summary = run_recipe(loaded, out, resume=resume, overwrite=overwrite, init=init, allow=allow)
        if processes.first:
            print(visible("\n".join([*results_lines(summary, loaded, out), str(out)]), keep="\n"))
    return 0


def generate(run: Path, lines_file: Path | None, beams: int | None, length: int | None) -> int:
    """``freerun generate``: a line for each line, ``word<TAB>symbols``; of a series the CSV table of its forecast."""
    from freerun.config.load import answer, load_run

    loaded = load_run(run)
    if loaded.kind.tables and lines_file is None:
        raise UserError("a series goes on from a table: give its CSV or Parquet file with --input FILE")
    if loaded.kind.tables:
        lines, places = [str(lines_file)], [str(lines_file)]
    else:
        lines, places = _read_lines(lines_file, blank=loaded.kind.aligned)
    if not lines:
        raise UserError(
            f"{lines_file or 'standard input'}: holds nothing to answer; give a word, sentence or beginning a line"
        )
    with usable(run):
        said = answer(loaded, lines, places=places, beams=beams, length=length)
    for line in said:
        # what stands in their file or what the model says never steers the terminal, and stays one line
        print(visible(line, keep="\t"))
    return 0


@contextmanager
def usable(run: Path) -> Generator[None]:
    """Inside NaN in the outputs is the fault of the run's model: nothing is being trained."""
    try:
        yield
    except DivergedError as error:
        raise CheckpointError(f"{run}: {error}") from error


def _read_lines(path: Path | None, *, blank: bool) -> tuple[list[str], list[str]]:
    """The lines, blank ones only if wanted, and where each stands."""
    from freerun.data.text import refuse_no_file

    name = "standard input" if path is None else str(path)
    if path is not None:
        refuse_no_file(path, "a file of lines")
    try:
        raw = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}") from None
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}:{line}: not UTF-8 at byte {error.start}\n  help: save it as UTF-8") from None
    # by bytes: what str.splitlines also takes for ends (U+2028, U+0085) may stand inside a sentence
    lines = [line.decode() for line in raw.removeprefix(codecs.BOM_UTF8).splitlines()]
    found = [(line, f"{name}:{number}") for number, line in enumerate(lines, start=1) if blank or line.strip()]
    return [line for line, _ in found], [place for _, place in found]


def evaluate(run: Path, data: Path | None, beams: int | None) -> int:
    """``freerun evaluate``: JSON."""
    from freerun.config.load import evaluate_run, load_run

    with usable(run):
        found = evaluate_run(load_run(run), data, beams)
    print(json.dumps(found, indent=2))
    return 0


def compare(
    recipe: str, overrides: Sequence[str], out: Path, *, resume: bool, overwrite: bool, workers: int | None,
    allow: Sequence[str],
) -> int:  # fmt: skip
    """``freerun compare``: table, verdict and the report's path."""
    from rich.console import Console

    from freerun import report
    from freerun.compare.run import compare as run_all
    from freerun.compare.table import table
    from freerun.training.processes import started_together

    if started_together() > 1:
        raise UserError("freerun compare starts its own processes: run it without torchrun, with --workers N")
    results = run_all(recipe, overrides, out, resume=resume, overwrite=overwrite, workers=workers, allow=allow)
    # a pipe without COLUMNS has all the room there is
    width = shutil.get_terminal_size((1000, 24)).columns
    console = Console(width=width)
    console.print(table(results, width))
    console.print(results["verdict"], markup=False, highlight=False, soft_wrap=not console.is_terminal)
    print(visible(str(report.write(out))))
    return 0


def methods(name: str | None) -> int:
    """``freerun methods``."""
    from freerun.cli.listing import describe_method, list_methods

    print(list_methods() if name is None else describe_method(name))
    return 0


def schedules(name: str | None) -> int:
    """``freerun schedules``."""
    from freerun.cli.listing import describe_schedule, list_schedules

    print(list_schedules() if name is None else describe_schedule(name))
    return 0


def recipes(name: str | None) -> int:
    """``freerun recipes``."""
    from freerun.cli.listing import describe_recipe, list_recipes

    print(list_recipes() if name is None else describe_recipe(name), end="\n" if name is None else "")
    return 0


def check(target: str) -> int:
    """``freerun check``: every finding; exit code 2 where one stands against the model."""
    from freerun.checks import examine

    model, batch, examples, collate = _target(target)
    try:
        report = examine(model, batch, examples=examples, collate=collate)
    except UserError:
        raise
    except Exception as error:
        if not _is_object(target) or out_of_memory(error):
            raise  # a model of ours, or none of the model's doing
        raise UserError(f"{target}: the model raised {_said(error)}") from error
    print(visible(str(report), keep="\n"))
    if report.refused:
        names = ", ".join(finding.name for finding in report.refused)
        raise UserError(f"{target}: the model is refused: {names}")
    return 0


def _target(target: str) -> tuple[Any, Any, Any, Any]:
    """Model and batch, or model, None, examples and collate."""
    if _is_object(target):
        return _python_target(target)
    from freerun.config.load import load_run, trial_batch

    loaded = load_run(target)
    return loaded.model, trial_batch(loaded), None, None


def _is_object(target: str) -> bool:
    return ":" in target and not Path(target).exists()


def _python_target(target: str) -> tuple[Any, Any, Any, Any]:
    from freerun.types import Batch

    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{target}: must be a run's folder or module:object")
    found = _imported(target, module_name, attribute)
    try:
        pair = found() if callable(found) and not hasattr(found, "forward") else found
    except Exception as error:  # the caller's own code: its message is the useful one
        if out_of_memory(error):
            raise
        raise UserError(f"{target}: calling it raised {_said(error)}") from error
    if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Batch):
        return (*pair, None, None)
    if not isinstance(pair, tuple) or len(pair) != 3 or not callable(pair[2]):
        got = f"({', '.join(type(part).__name__ for part in pair)})" if isinstance(pair, tuple) else type(pair).__name__
        raise UserError(
            f"{target}: must be (model, batch), (model, examples, collate) or a function that gives them; got {got}\n"
            "  help: the check needs a freerun.Batch to try the model on, or examples and what makes one of them"
        )
    return pair[0], None, pair[1], pair[2]


def _imported(target: str, module_name: str, attribute: str) -> Any:
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{target}: {error}\n  help: module:object is looked for from the folder you are in") from None
    except (Exception, SystemExit) as error:  # the caller's own code
        if out_of_memory(error):
            raise
        place = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{target}: importing {module_name} raised {_said(error)}{place}") from error
    finally:
        sys.path.remove("")
    if not hasattr(module, attribute):
        raise UserError(f"{target}: the module {module_name} has no {attribute!r}")
    return getattr(module, attribute)


def _said(error: BaseException) -> str:
    if isinstance(error, UserError | SyntaxError):
        return f"{type(error).__name__}: {error.problems[0] if isinstance(error, UserError) else error.msg}"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
