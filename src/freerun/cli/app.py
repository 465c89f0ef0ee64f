"""The commands, declared for cyclopts; the only module that knows it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from freerun.cli import commands, diagnosing
from freerun.cli import compare as comparing
from freerun.errors import EXIT_CODES, UserError

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Number = Annotated[int | None, Parameter(show_default=False)]
Text = Annotated[str | None, Parameter(show_default=False)]
Out = Annotated[Path, Parameter(name=["--out", "-o"])]
OutIfAny = Annotated[Path | None, Parameter(name=["--out", "-o"], show_default=False)]
Amount = Annotated[float | None, Parameter(show_default=False)]
File = Annotated[Path | None, Parameter(show_default=False)]
Many = Parameter(negative=(), consume_multiple=False, show_default=False)
Set = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        allow_leading_hyphen=True,
        help="key=value in place of the recipe's, or key= to remove a key, so that its default holds; may be used many "
        "times.",
    ),
    Many,
]
SetOfFolder = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        allow_leading_hyphen=True,
        help="With --data: data.KEY=VALUE or model.KEY=VALUE of a recipe for it, such as data.source=en; freerun keys "
        "data.records lists them.",
    ),
    Many,
]
Rows = Annotated[int | None, Parameter(name=["--max-rows", "--windows"], show_default=False)]
Allow = Annotated[tuple[str, ...], Many]

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
    recipe: str, /, *, out: Out, set_: Set = (), resume: Switch = False, overwrite: Switch = False,
    init: File = None, allow_change: Allow = (),
) -> None:  # fmt: skip
    """Train one model as a recipe says.

    Parameters
    ----------
    recipe
        A TOML file, or the name of a recipe that comes with freerun.
    out
        The run's folder.
    resume
        Go on with the run in the folder.
    overwrite
        Remove the run in the folder first.
    init
        Begin with the best weights of another run.
    allow_change
        With --resume: a key that may be another than the run was begun with, as train.lr, data or method; the change is
        written down; may be used many times.
    """
    commands.train(recipe, set_, out, resume=resume, overwrite=overwrite, init=init, allow=allow_change)


@app.command
def generate(
    run: Path,
    /,
    *,
    input: File = None,
    beams: Number = None,
    length: Number = None,
    num_samples: Number = None,
    quantiles: Text = None,
    skip: Switch = False,
) -> None:
    """Run a model freely: word<TAB>symbols for each word, beginning<TAB>continuation for each beginning of a text.

    Parameters
    ----------
    run
        A run's folder.
    input
        Words, or beginnings of a text, one a line; standard input if left out. In a beginning \\n is a line break. Of a
        series the CSV or Parquet file that it goes on from: the forecast is a CSV table. For a Hugging Face model
        sources or prompts, one a line, or JSON objects, which come back with an "output". Lines that cannot be
        answered, such as those with a symbol never seen in training, are named, and then none is answered, but with
        --skip. What is printed is text, with control characters as escapes; a spreadsheet may take a word such as =A1
        for a formula.
    beams
        Width of the beam search; as in the recipe if left out.
    length
        Characters to generate after each beginning of a text, tokens of a Hugging Face model's answer, steps after a
        table's newest row; as in the recipe if left out.
    num_samples
        Sample paths of a series, drawn from the law that a model with a head predicts: a column each beside the
        forecast, or with --quantiles the paths that those are computed from (then 100 if left out).
    quantiles
        Levels such as 0.1,0.5,0.9: quantiles of a series' sample paths, a column each beside their median.
    skip
        Answer the other lines where some cannot be answered: those are named, and their output stays empty.
    """
    commands.generate(run, input, beams, length, skip=skip, num_samples=num_samples, quantiles=quantiles)


@app.command
def evaluate(run: Path, /, *, data: File = None, beams: Number = None) -> None:
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
    commands.evaluate(run, data, beams)


@app.command
def diagnose(
    *models: str, data: Text = None, set_: SetOfFolder = (), out: File = None, rows: Rows = None,
    batch_size: Number = None, oracle: Text = None, overwrite: Switch = False,
) -> None:  # fmt: skip
    """Measure how much the error grows when a model is fed its own output: by lead time or by position.

    Writes diagnosis.json and diagnosis.html.

    Parameters
    ----------
    models
        A run's folder; a folder of transformers, with --data; or FILE.py:NAME or module:NAME for (model, batches) or a
        function that returns them. Several are measured side by side: a column each.
    data
        Records for a model of transformers, as in a recipe: JSON lines, JSON, CSV, TSV, Parquet, Arrow, or texts.
    out
        Where to write, needed for several; if left out the run's folder, or NAME-diagnosis.
    rows
        Test windows, words, sentences or records to use, at even distances; if left out 200 records of a file, and all
        of anything else.
    batch_size
        Records at a time; changes no number.
    oracle
        A run on the same symbols, the better model, from which excess accumulated error is measured.
    overwrite
        Replace an earlier diagnosis.
    """
    measured = diagnosing.Measured(data, tuple(set_), rows, batch_size, oracle)
    diagnosing.diagnose(models, measured, out, overwrite=overwrite)


@app.command
def compare(
    *what: str, out: OutIfAny = None, set_: Set = (), resume: Switch = False, overwrite: Switch = False,
    workers: Number = None, allow_change: Allow = (), init: File = None, plan: Switch = False, strict: Switch = False,
    margin: Amount = None, higher: Switch = False, log: Switch = False, baseline: Text = None,
    executor: str = "local", ray_address: Text = None,
) -> int:  # fmt: skip
    """Compare arms over seeds: those of a recipe, which are trained; of finished runs; or of files of scores.

    Writes results.json, report.md, scores.csv, references.bib and, of runs, report.html.

    Parameters
    ----------
    what
        A TOML file with [compare] or the name of a recipe that comes with freerun; or folders of finished runs; or
        files of JSON lines with arm, seed, item and score.
    out
        The comparison's folder; needed by a recipe.
    resume
        Go on with the comparison in the folder.
    overwrite
        Remove the comparison in the folder first.
    workers
        Runs at a time; if left out, as in the recipe, or as many as a Ray cluster has CPUs.
    allow_change
        With --resume: as for train, for the runs that are not finished; those that are stay as they are.
    init
        Begin every run with the best weights of this finished run: what does each arm add to one model?
    executor
        local: in processes of this machine; ray: as tasks of a Ray cluster whose machines share the folder.
    ray_address
        HOST:PORT of the cluster, or local; if left out, RAY_ADDRESS, the cluster of this machine, or a new one on it.
    plan
        Train nothing: list the runs, what they would cost and which difference they could show.
    strict
        End with the verdict as exit code: 0 better, 20 uncontrolled, 21 as good, 22 undecided, 23 worse, 24 no verdict.
    margin
        Of runs and files: the largest difference that does not matter, as [compare] margin of a recipe.
    higher
        Of files: more of the score is better.
    log
        Of files: compare by ratios; scores must be positive.
    baseline
        Of files: the arm that the others are held against; teacher_forcing, or the first, if left out.
    """
    settings = comparing.CompareOptions(
        out, resume=resume, overwrite=overwrite, workers=workers, allow=allow_change, init=init, strict=strict,
        margin=margin, higher=higher, log=log, baseline=baseline, executor=executor, ray_address=ray_address,
    )  # fmt: skip
    return comparing.compare(what, set_, settings, plan=plan)


@app.command
def methods(name: str | None = None, /) -> None:
    """List the methods, or show one: formula, reference, parameters, BibTeX."""
    if name is None:
        commands.print_lines(commands.list_methods())
    else:
        text, bibtex = commands.describe_method(name)
        commands.print_lines(text)
        if bibtex:
            print(f"\n{bibtex}")


@app.command
def schedules(name: str | None = None, /) -> None:
    """List the schedules, or show one: formula, reference, parameters."""
    commands.print_lines(commands.list_schedules() if name is None else commands.describe_schedule(name))


@app.command
def recipes(name: str | None = None, /) -> None:
    """List the recipes that come with freerun, or print one."""
    if name is None:
        commands.print_lines(commands.list_recipes())
    else:
        print(commands.describe_recipe(name), end="")


@app.command
def keys(section: str | None = None, /) -> None:
    """List the sections of a recipe, or every key of one: value, default, meaning.

    Parameters
    ----------
    section
        train, compare, data.KIND, model.KIND or evaluate.KIND; a first part alone lists its kinds.
    """
    commands.print_lines(commands.list_sections() if section is None else commands.describe_keys(section))


@app.command
def demo(*, out: File = None, open_: Annotated[bool, Parameter(name="--open", negative=())] = False) -> None:
    """Compare teacher forcing and scheduled sampling on a chaotic series: table, verdict and page, in about a minute.

    Parameters
    ----------
    out
        A folder for the runs and the page; freerun-demo if left out.
    open_
        Show the page in the browser.
    """
    comparing.demo(out, show=open_)


@app.command
def check(
    target: Annotated[str | None, Parameter(show_default=False)] = None, /, *, set_: Set = (), student: Text = None,
    teacher: Text = None,
) -> None:  # fmt: skip
    """Check a model: is it causal, is padding inert, does a step equal the parallel pass? Or a pair: does gkd run?

    Parameters
    ----------
    target
        A run's folder; a recipe (.toml), whose model is checked untrained; or module:object for (model, batch), (model,
        examples, collate) or a function that gives them.
    student
        In place of a target, with --teacher: whether gkd can run with the two, by vocabulary, end and special symbols,
        chat template and distance; a run's folder, or a folder or name of transformers.
    teacher
        The model that the student would learn from.
    """
    if student is None and teacher is None and target is not None:
        commands.check(target, set_)
    else:
        commands.check_teacher(target, set_, student, teacher)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; return its exit code, or raise UserError if it is wrong."""
    options: dict[str, Any] = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}
    try:
        code = app(list(arguments), **options)
    except CycloptsError as error:
        known = [name for name in app if not name.startswith("-")]
        command = f"{arguments[0]} " if arguments and arguments[0] in known else ""
        raise UserError(f"{' '.join(str(error).split())}\n  help: freerun {command}--help") from None
    sys.stdout.flush()
    return code if isinstance(code, int) else 0
