"""The commands, declared for cyclopts; the only module that knows it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from freerun.cli import commands
from freerun.errors import EXIT_CODES, UserError

Flag = Parameter(negative=(), show_default=False)
Set = Annotated[
    tuple[str, ...],
    Parameter(name="--set", negative=(), consume_multiple=False, allow_leading_hyphen=True, show_default=False),
]
Unset = Annotated[tuple[str, ...], Parameter(name="--unset", negative=(), consume_multiple=False, show_default=False)]
Switch = Annotated[bool, Flag]
Allow = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False, show_default=False)]

app = App(
    name="freerun",
    help="Train sequence models on the histories they will really see, and measure what it was worth.",
    help_epilogue="Start with: freerun recipes\n\nExit codes:\n"
    + "\n".join(f"{code:>4}  {meaning}" for code, (_, meaning) in EXIT_CODES.items()),
    version=lambda: version("freerun"),
    version_flags=["--version"],
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # its exit code is ours to choose
)


@app.command
def train(
    recipe: str, /, *, out: Path, set_: Set = (), unset: Unset = (), resume: Switch = False, overwrite: Switch = False,
    init: Annotated[Path | None, Parameter(show_default=False)] = None, allow_change: Allow = (),
) -> int:  # fmt: skip
    """Train one model as a recipe says.

    Parameters
    ----------
    recipe
        A TOML file, or the name of a recipe that comes with freerun.
    out
        The run's folder.
    set_
        key=value in place of the recipe's; may be given many times.
    unset
        A key to take out of the recipe, so that its default holds; may be given many times, and comes before --set.
    resume
        Go on with the run in the folder.
    overwrite
        Remove the run in the folder first.
    init
        Begin with the best weights of another run.
    allow_change
        With --resume: a key that may be another than the run was begun with, as train.lr, data or method; the change is
        written down; may be given many times.
    """
    return commands.train(
        recipe, changes(unset, set_), out, resume=resume, overwrite=overwrite, init=init, allow=allow_change
    )  # fmt: skip


@app.command
def generate(
    run: Path, /, *, input: Path | None = None, beams: int | None = None,
    length: Annotated[int | None, Parameter(show_default=False)] = None,
) -> int:  # fmt: skip
    """Run a model freely: word<TAB>symbols for each word, beginning<TAB>continuation for each beginning of a text.

    Parameters
    ----------
    run
        A run's folder.
    input
        Words, or beginnings of a text, one a line; standard input if left out. In a beginning \\n is a line break. Of a
        series the CSV or Parquet file that it goes on from: the forecast is a CSV table. For a Hugging Face model
        sources or prompts, one a line, or JSON objects, which come back with an "output". Lines that cannot be
        answered, such as those with a symbol never seen in training, are named, and then none is. What is printed is
        text, with control characters as escapes; a spreadsheet may take a word such as =A1 for a formula.
    beams
        Width of the beam search; as in the recipe if left out.
    length
        Characters to say after each beginning of a text, tokens of a Hugging Face model's answer; as in the recipe if
        left out.
    """
    return commands.generate(run, input, beams, length)


@app.command
def evaluate(run: Path, /, *, data: Path | None = None, beams: int | None = None) -> int:
    """Score a model, teacher-forced and free-running side by side; JSON.

    Parameters
    ----------
    run
        A run's folder.
    data
        A file of pairs, a text, a series or records, as the run was trained on; the run's own test split if left out.
    beams
        Width of the beam search; as in the recipe if left out.
    """
    return commands.evaluate(run, data, beams)


@app.command
def diagnose(
    run: Path, /, *, out: Annotated[Path | None, Parameter(show_default=False)] = None,
    windows: Annotated[int | None, Parameter(show_default=False)] = None, overwrite: Switch = False,
) -> int:  # fmt: skip
    """Measure what leaving gold costs a model: errors by lead time or position, told gold and running freely.

    Writes diagnosis.json and diagnosis.html.

    Parameters
    ----------
    run
        A run's folder.
    out
        Where to write; the run's folder if left out.
    windows
        Test windows, words or sentences to use, at even distances; all if left out.
    overwrite
        Replace an earlier diagnosis.
    """
    from freerun.cli.commands import diagnose as measured

    return measured(run, out, windows, overwrite=overwrite)


@app.command
def compare(
    recipe: str, /, *, out: Path, set_: Set = (), unset: Unset = (), resume: Switch = False, overwrite: Switch = False,
    workers: Annotated[int | None, Parameter(show_default=False)] = None, allow_change: Allow = (),
) -> int:  # fmt: skip
    """Train every arm of a recipe with every seed, and write results.json and report.html.

    Parameters
    ----------
    recipe
        A TOML file with [compare], or the name of a recipe that comes with freerun.
    out
        The comparison's folder.
    set_
        key=value in place of the recipe's; may be given many times.
    unset
        A key to take out of the recipe, so that its default holds; may be given many times, and comes before --set.
    resume
        Go on with the comparison in the folder.
    overwrite
        Remove the comparison in the folder first.
    workers
        Runs at a time; as in the recipe if left out.
    allow_change
        With --resume: as for train, for the runs that are not finished; those that are stay as they are.
    """
    return commands.compare(
        recipe, changes(unset, set_), out, resume=resume, overwrite=overwrite, workers=workers, allow=allow_change
    )  # fmt: skip


@app.command
def methods(name: str | None = None, /) -> int:
    """List the methods, or show one: formula, reference, parameters, BibTeX."""
    return commands.methods(name)


@app.command
def schedules(name: str | None = None, /) -> int:
    """List the schedules, or show one: formula, reference, parameters."""
    return commands.schedules(name)


@app.command
def recipes(name: str | None = None, /) -> int:
    """List the recipes that come with freerun, or print one."""
    return commands.recipes(name)


@app.command
def check(target: str, /) -> int:
    """Check a model: is it causal, is padding inert, does a step equal the parallel pass?

    Parameters
    ----------
    target
        A run's folder, or module:object for (model, batch), (model, examples, collate) or a function that gives them.
    """
    return commands.check(target)


def changes(unset: Sequence[str], set_: Sequence[str]) -> list[str]:
    """What --unset and --set say, as overrides of a recipe."""
    from freerun.recipes.source import Unset as Taken

    return [*map(Taken, unset), *set_]


def run(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code.

    Raises:
        UserError: the command line itself is wrong, or what the command raises.
    """
    options: dict[str, Any] = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}
    try:
        code = app(list(arguments), **options)
    except CycloptsError as error:
        raise UserError(f"{_plain(error)}\n  help: freerun {_command(arguments)}--help") from None
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _plain(error: CycloptsError) -> str:
    return " ".join(str(error).split())


def _command(arguments: Sequence[str]) -> str:
    known = [name for name in app if not name.startswith("-")]
    return f"{arguments[0]} " if arguments and arguments[0] in known else ""
