"""What each command does; results go to standard output, everything else to standard error."""

from __future__ import annotations

import codecs
import json
import os
import sys
import textwrap
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import freerun
from freerun.arguments import nearest
from freerun.errors import CheckpointError, DivergedError, UserError, out_of_memory, visible
from freerun.recipes.source import find_recipe, no_recipe, read_source, shipped_recipes
from freerun.terminal import loading, print_problem, waiting, width_of, wrapped


def list_methods() -> str:
    """Return every method with its one line, and the presets with their papers."""
    with loading(piped=False):
        from freerun.methods import METHODS, PRESETS

    lines = _columns((name, cls.summary) for name, cls in METHODS.items())
    lines += ["", "Presets in Python (methods with their published settings, made for a number of updates):"]
    lines += _columns((f"{name}({', '.join(_needed(make))})", paper) for name, (make, paper) in PRESETS.items())
    last = (
        "freerun methods NAME shows formula, reference, parameters and BibTeX; freerun keys gate, draw, engine, "
        "objective and schedule list what parameters of a method may be."
    )
    return "\n".join([*lines, "", last])


def _refuse_part(name: str) -> None:
    """Tell where a gate, a draw, an engine or a schedule is explained."""
    from freerun.recipes.keys import FAMILIES

    where = [family for family, known in FAMILIES.items() if family != "method" and name in known]
    if where:
        pages = " or ".join(f"freerun keys {family}.{name}" for family in where)
        raise UserError(f"{name} is no method, but a {' and a '.join(where)}\n  help: {pages}")


def describe_method(name: str) -> tuple[str, str]:
    """Formula, parameters and reference of a method with its BibTeX, or what a preset makes."""
    with loading(piped=False):
        from freerun.methods import METHODS, PRESETS

    if name in PRESETS:
        return _preset(name, *PRESETS[name]), ""
    if name not in METHODS:
        _refuse_part(name)
        _one(dict.fromkeys([*METHODS, *PRESETS]), name, "method")
    cls = METHODS[name]
    citation = cls.citation
    parts = [f"{name}: {cls.summary}", _indented(citation.formula), _parameters(cls)]
    return "\n\n".join([*parts, citation.reference]), citation.bibtex


_EXAMPLE = {"steps": 1000, "length": 20}


def _needed(make: Callable[..., Any]) -> list[str]:
    return [each.name for each in signature(make).parameters.values() if each.kind is not each.VAR_KEYWORD]


def _preset(name: str, make: Callable[..., Any], paper: str) -> str:
    """Return what a preset is: its line, the method that it makes, and its paper."""
    from freerun.recipes.keys import meanings

    arguments = {each: _EXAMPLE[each] for each in _needed(make)}
    example, first = make(**arguments), (make.__doc__ or "").splitlines()[0]
    call = f"freerun.{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
    if not hasattr(freerun, name):
        call = call.replace("freerun.", "freerun.methods.", 1)
    return "\n\n".join(
        [
            f"{name}: a preset. {first}",
            _indented(f"{call}\n= {example!r}"),
            "\n".join(["Parameters:", *_columns((f"  {key}", text) for key, text in meanings(make).items())]),
            f"It makes the method {example.name} (freerun methods {example.name}); a recipe writes that method out.",
            paper,
        ]
    )


def list_schedules() -> str:
    """Return every schedule with its one line and formula."""
    with loading(piped=False):
        from freerun.schedules import SCHEDULES

    lines = _columns((name, f"{cls.summary}:  {cls.formula}") for name, cls in SCHEDULES.items())
    return "\n".join([*lines, "", "freerun schedules NAME shows its parameters."])


def describe_schedule(name: str) -> str:
    """Formula, parameters and reference of a schedule, and how a recipe writes it."""
    with loading(piped=False):
        from freerun.methods import PRESETS
        from freerun.recipes.fields import required
        from freerun.schedules import SCHEDULES

    if name in PRESETS:
        raise UserError(f"{name} is no schedule, but a method with one inside\n  help: freerun methods {name}")
    cls = _one(SCHEDULES, name, "schedule")
    needed = "".join(f", {each.name} = ..." for each in fields(cls) if required(each))
    recipe = f'In a recipe: teacher_forcing_ratio = {{ schedule = "{name}"{needed} }}'
    parts = [f"{name}: {cls.summary}", _indented(f"value(s) = {cls.formula}"), _parameters(cls), cls.reference, recipe]
    return "\n\n".join(part for part in parts if part)


def list_recipes() -> str:
    """Return every recipe that comes with freerun, with the first line of its comments."""
    first = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in shipped_recipes().items()}
    lines = _columns((name, line.removeprefix("#").strip()) for name, line in first.items())
    return "\n".join(
        [
            *lines,
            "",
            "To begin: freerun recipes NAME > mine.toml, edit it (freerun keys lists what it may hold), and "
            "freerun train mine.toml --out RUN; freerun train NAME --out RUN runs one as it is.",
        ]
    )


def describe_recipe(name: str) -> str:
    """Return the text of a recipe."""
    path = shipped_recipes().get(name.removesuffix(".toml"))
    if path is None:
        raise UserError(no_recipe(name))
    return path.read_text(encoding="utf-8")


def _one(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name in known:
        return known[name]
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
    raise UserError(f"there is no {what} {name!r}\n  help: {hint}")


def print_lines(*lines: str, hanging: str = "  ") -> None:
    """Print text that may hold what a user's file holds, broken to the width of the output."""
    print(wrapped(visible("\n".join(lines), keep="\n"), width_of(sys.stdout), hanging))


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return [f"{name:<{width}}  {text}" for name, text in listed]


def _parameters(cls: type[Any]) -> str:
    """Every parameter of a method or a schedule: type, range, default and meaning."""
    from freerun.recipes.keys import key_rows
    from freerun.recipes.read import SUPPLIED

    return "\n".join(["Parameters:", *(_indented(line) for line in _explained(key_rows(cls, SUPPLIED)))])


def _explained(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    lines: list[str] = []
    for key, value, default, meaning in rows:
        needed = "required" if default == "none: it is required" else f"default {default}"
        width = max(40, width_of(sys.stdout) - 4)
        text = textwrap.wrap(
            meaning, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )  # a value such as "ja-mecab" stays whole
        lines += [f"{key} ({value}; {needed})", *text]
    return lines


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def train(
    recipe: str, overrides: Sequence[str], out: Path, *, resume: bool, overwrite: bool, init: Path | None,
    allow: Sequence[str],
) -> None:  # fmt: skip
    """``freerun train``: the folder of the run on standard output."""
    # a broken recipe is refused without PyTorch; of several processes one reports it
    source = None if "WORLD_SIZE" in os.environ else read_source(find_recipe(recipe), overrides)
    with loading():
        from freerun.recipes import load_recipe
        from freerun.recipes.outcome import outcome
        from freerun.recipes.read import read_recipe
        from freerun.recipes.train import run_recipe
        from freerun.training.processes import join_processes
    loaded = None if source is None else read_recipe(source)

    with join_processes() as processes:
        if loaded is None:
            with processes.raise_on_all_ranks():
                loaded = load_recipe(recipe, overrides)
        summary = run_recipe(loaded, out, resume=resume, overwrite=overwrite, init=init, allow=allow)
        if processes.first:
            print_lines(*outcome(summary, loaded, out, width_of(sys.stdout)))
            print(visible(str(out)))


def generate(
    run: Path, lines_file: Path | None, beams: int | None, length: int | None, *, skip: bool,
    num_samples: int | None = None, quantiles: str | None = None,
) -> None:  # fmt: skip
    """``freerun generate``: a line for each line, ``word<TAB>symbols``; of a series the CSV table of its forecast."""
    with loading():
        from freerun.data.files import DataFile
        from freerun.recipes.load import generate_lines, load_run
        from freerun.tasks.batches import BatchTask
    levels = None if quantiles is None else _levels(quantiles)
    with waiting() as display:
        display("loading the run")
        loaded = load_run(run)
    notes: list[str] = []
    if loaded.task.outputs_table and lines_file is None:
        raise UserError("a series goes on from a table: give its CSV or Parquet file with --input FILE")
    if loaded.task.outputs_table:
        lines, names = [str(lines_file)], [str(lines_file)]
    elif issubclass(loaded.task, BatchTask):
        if lines_file is not None:
            raise UserError(
                "a run on batches of Python code reads no lines: leave --input out; its test rows are generated"
            )
        lines, names = ["test batches"], ["test batches"]
    else:
        table = lines_file and loaded.task.table_lines(loaded.codec, DataFile(lines_file, notes=notes))
        lines, names = table or _read_lines(lines_file, blank=loaded.task.one_output_per_line)
    if not lines:
        raise UserError(
            f"{lines_file or 'standard input'}: holds nothing to answer; give a word, sentence or beginning a line"
        )
    skipped: list[str] | None = [] if skip else None
    with usable(run):
        outputs = generate_lines(
            loaded, lines, names=names, beams=beams, length=length, skipped=skipped, num_samples=num_samples,
            quantiles=levels, notes=notes,
        )  # fmt: skip
    for note in notes:
        print_problem(f"note: {note}")
    for problem in UserError(skipped or []).problems:
        print_problem(f"skipped: {problem}")
    for line in outputs:
        # neither their file nor the model's output steers the terminal, and each stays one line
        print(visible(line, keep="\t"))


def _levels(text: str) -> tuple[float, ...]:
    """The levels of --quantiles."""
    try:
        levels = tuple(float(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or not all(0 < a < 1 for a in levels) or any(a >= b for a, b in pairwise(levels)):
        raise UserError(f"--quantiles must be rising numbers between 0 and 1, as in 0.1,0.5,0.9; got {text!r}")
    return levels


@contextmanager
def usable(run: Path) -> Generator[None]:
    """Inside NaN in the outputs is the fault of the run's model: nothing is being trained."""
    try:
        yield
    except DivergedError as error:
        raise CheckpointError(f"{run}: {error}") from error


def _read_lines(path: Path | None, *, blank: bool) -> tuple[list[str], list[str]]:
    """Return the lines, blank ones only if ``blank``, and where each stands."""
    from freerun.data.files import refuse_no_file

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
    kept = [number for number, line in enumerate(lines, start=1) if blank or line.strip()]
    return [lines[number - 1] for number in kept], [f"{name}:{number}" for number in kept]


def evaluate(run: Path, data: Path | None, beams: int | None) -> None:
    """``freerun evaluate``: JSON."""
    with loading():
        from freerun.recipes.load import evaluate_run, load_run
    with waiting() as display, usable(run):
        display("loading the run")
        loaded = load_run(run)
        display("scoring")
        scores = evaluate_run(loaded, data, beams)
    for note in scores.get("notes", ()):
        print_problem(f"note: {note}")
    print(json.dumps(scores, indent=2))


def list_sections() -> str:
    """Return the sections of a recipe, and how to see their keys."""
    with loading(piped=False):
        from freerun.recipes.keys import FAMILIES, sections

    known = sections()
    lines = _columns(
        (name, (cls.__doc__ or "").splitlines()[0].replace("``", ""))
        for name, (cls, _) in known.items()
        if name.partition(".")[0] not in FAMILIES
    )
    lines += ["", "Parts of a method, by name:"]
    for family, names in FAMILIES.items():
        text = f"{f'{family}.NAME':<15}{', '.join(names)}"
        lines += textwrap.wrap(text, width_of(sys.stdout), subsequent_indent=" " * 15)
    top = "At the top of a recipe: name (text; default: of the file) and seed (whole number, from 0; default 0)."
    last = "freerun keys NAME lists every key; freerun recipes NAME > mine.toml writes a recipe to begin with."
    return "\n".join([top, "", *lines, "", last])


def describe_keys(section: str) -> str:
    """Return every key of a section: value, default, meaning."""
    with loading(piped=False):
        from freerun.recipes.keys import key_rows, sections

    known = sections()
    kinds = [name for name in known if name.startswith(f"{section}.")]
    if kinds and section not in known:
        lines = _columns((name, (known[name][0].__doc__ or "").splitlines()[0].replace("``", "")) for name in kinds)
        return "\n".join([f"[{section}] by its kind:", *(f"  {line}" for line in lines)])
    cls, leave_out = known[section] if section in known else _one(known, section, "section")
    more = [f"See also freerun keys {name}." for name in kinds]
    return "\n".join([*(_explained(key_rows(cls, leave_out)) or ["It has no keys."]), *more])


def check(target: str, overrides: Sequence[str] = ()) -> None:
    """``freerun check``: every finding; exit code 2 where one stands against the model."""
    with loading():
        from freerun.checks import examine
        from freerun.data.user_code import blamed, is_object

    model, batch, examples, collate = _target(target, overrides)
    try:
        report = examine(model, batch, examples=examples, collate=collate)
    except UserError:
        raise
    except Exception as error:
        if not is_object(target) or out_of_memory(error):
            raise  # a model of ours, or none of the model's doing
        line = (str(error).splitlines() or [""])[0]
        raise blamed(error) or UserError(f"{target}: the model raised {type(error).__name__}: {line}") from error
    print_lines(str(report), hanging=" " * 16)
    if report.refused:
        names = ", ".join(finding.name for finding in report.refused)
        raise UserError(f"{target}: the model is refused: {names}")


def check_teacher(target: str | None, overrides: Sequence[str], student: str | None, teacher: str | None) -> None:
    """``freerun check --student A --teacher B``: every finding; exit code 2 where gkd cannot run with them."""
    if target is not None or overrides or student is None or teacher is None:
        raise UserError(
            "freerun check takes a model, freerun check RUN, or a pair, freerun check --student A --teacher B, without "
            "other arguments"
        )
    with loading():
        from freerun.recipes.teachers import check_pair

    with waiting() as display:
        display(f"reading {visible(student)} and {visible(teacher)}")
        report = check_pair(student, teacher)
    print_lines(str(report), hanging=" " * 16)
    if report.refused:
        names = ", ".join(finding.name for finding in report.refused)
        raise UserError(f"gkd cannot run with the student {student} and the teacher {teacher}: {names}")
    print("gkd can run with them.")


def _target(target: str, overrides: Sequence[str]) -> tuple[Any, Any, Any, Any]:
    """Model and batch, or model, None, examples and collate."""
    from freerun.data.user_code import is_object

    if overrides and not target.endswith(".toml"):
        raise UserError(f"--set has an effect on a recipe (.toml) alone; {target} is none")
    if is_object(target):
        return _python_target(target)
    if target.endswith(".toml"):
        from freerun.recipes import load_recipe
        from freerun.recipes.train import untrained

        return (*untrained(load_recipe(target, overrides)), None, None)
    from freerun.recipes.load import load_run, trial_batch

    loaded = load_run(target)
    return loaded.model, trial_batch(loaded), None, None


def _python_target(target: str) -> tuple[Any, Any, Any, Any]:
    from freerun.batch import Batch
    from freerun.data.user_code import user_object

    pair = user_object(target)
    if isinstance(pair, tuple) and len(pair) >= 2:  # as for diagnose: (model, batches), and options
        first = pair[1][0] if isinstance(pair[1], list) and pair[1] else pair[1]
        if isinstance(first, Batch):
            return pair[0], first, None, None
    if not isinstance(pair, tuple) or len(pair) != 3 or not callable(pair[2]):
        got = f"({', '.join(type(part).__name__ for part in pair)})" if isinstance(pair, tuple) else type(pair).__name__
        raise UserError(
            f"{target}: must be (model, batch), (model, examples, collate) or a function that gives them; got {got}\n"
            "  help: the check needs a freerun.Batch to try the model on, or examples and what makes one of them; of a "
            "recipe with code of your own: freerun check RECIPE.toml"
        )
    return pair[0], None, pair[1], pair[2]
