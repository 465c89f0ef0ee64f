"""``freerun diagnose``: of runs, of models that freerun did not train, and of several side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freerun.cli.commands import print_lines, usable
from freerun.errors import OccupiedError, UserError, visible
from freerun.terminal import Waiting, loading, waiting, width_of

_FILES = ("diagnosis.json", "diagnosis.html")
_BEGINS = b'{"schema": 1, "run'


@dataclass(frozen=True)
class Measured:
    """What ``freerun diagnose`` measures a model on.

    Args:
        data: a file of records, for a folder of transformers.
        overrides: of the sections of a recipe for it.
        rows: to use; None: the usual number.
        batch_size: records at a time.
        oracle: a run whose model stands for the data.
    """

    data: str | None = None
    overrides: tuple[str, ...] = ()
    rows: int | None = None
    batch_size: int | None = None
    oracle: str | None = None


def diagnose(models: Sequence[str], measured: Measured, out: Path | None, *, overwrite: bool) -> None:
    """``freerun diagnose``: writes diagnosis.json and diagnosis.html; table, outcome and the page's path."""
    if measured.rows is not None and measured.rows < 1:
        raise UserError(f"--max-rows (--windows) must be at least 1; got {measured.rows}")
    if not models:
        raise UserError("name what to diagnose: a run's folder, a folder of transformers with --data, or FILE.py:NAME")
    if len(models) > 1 and out is None:
        raise UserError(f"{len(models)} models make one page: name the folder it is written to with --out DIR")
    kinds = [_kind_of(model, measured) for model in models]
    folder = out or _usual_folder(models[0], kinds[0])
    if len(models) > 1 or kinds[0] != "run":
        _check_folder(folder, overwrite=overwrite)
    with loading():
        from freerun.report.diagnosis_tokens import side_by_side
    contents: list[dict[str, Any]] = []
    text = ""
    with waiting() as display:
        for model, kind in zip(models, kinds, strict=True):
            display(f"loading {visible(model)}")
            measure = _of_run if kind == "run" else _of_subject
            content, text = measure(model, measured, folder, display, overwrite)
            contents.append(content)
        heads, rows = side_by_side(_named_apart(contents, models))
        display("drawing the page")
        page = _written(contents[0] if len(models) == 1 else {"schema": 1, "runs": contents}, folder)
    if len(models) > 1:
        values = contents[0]["diagnosis"]["kind"] == "values"
        _print_columns(heads, rows, "medians (quartiles) over windows" if values else "[low, high]: 95 % over rows")
    else:
        print_lines(text, hanging="")
    print(page)


def _kind_of(model: str, measured: Measured) -> str:
    with loading():
        from freerun.data.user_code import is_object

    kind = "object" if is_object(model) else "run" if measured.data is None else "folder"
    _check_options(model, measured, kind)
    return kind


def _usual_folder(model: str, kind: str) -> Path:
    name = Path(model.rpartition(":")[2] if kind == "object" else model).resolve().name
    return Path(model) if kind == "run" else Path(f"{name}-diagnosis")


def _named_apart(contents: list[dict[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    """The contents, named by their paths where two have one name; measures of one kind, or they are refused."""
    if len({content["diagnosis"]["kind"] for content in contents}) > 1:
        raise UserError("models of ids and of values have no measure in common: diagnose them apart")
    if len({content["run"]["name"] for content in contents}) < len(contents):
        for content, model in zip(contents, models, strict=True):
            content["run"]["name"] = model
    return contents


def _print_columns(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    """Print a table in the width of the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=Text(caption), caption_justify="left")
    for number, head in enumerate(heads):
        table.add_column(Text(visible(head)), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=width_of(sys.stdout)).print(table)


def _check_options(model: str, measured: Measured, kind: str) -> None:
    """Refuse options that have no effect on what is diagnosed, and a model without its data."""
    named = {"--data": measured.data, "--set": measured.overrides, "--batch-size": measured.batch_size}
    used = [name for name, value in named.items() if value not in (None, ())]
    path = Path(model).expanduser()
    run = (path / "model" / "model.json").exists()
    if kind == "object" and used:
        raise UserError(f"{model}: {', '.join(used)} has no effect on an object: its function makes the batches")
    if kind == "folder" and run:
        advice = f"freerun diagnose {model} takes the run's own test split"
        if (path / "model" / "config.json").exists():
            advice += f"; for other records give the folder of its model, {path / 'model'}"
        raise UserError(f"{model} is a run of freerun, and --data is for a folder of transformers\n  help: {advice}")
    if kind == "run" and (path / "config.json").exists() and not run:
        raise UserError(
            f"{model} is a folder of transformers, not of a run: give the records with --data FILE\n  help: JSON lines "
            "with source and target (encoder-decoder), prompt and completion, messages, or text; --set "
            "data.source=COLUMN names another column"
        )
    if kind == "run" and used:
        raise UserError(f"{model}: {', '.join(used)} is for a folder of transformers, together with --data FILE")
    if kind != "run" and measured.oracle is not None:
        raise UserError(f"{model}: --oracle is for runs; in Python it is DiagnosisOptions(oracle=...)")


def _of_run(
    run: str, measured: Measured, folder: Path, display: Waiting, overwrite: bool
) -> tuple[dict[str, Any], str]:
    with loading():
        from freerun.recipes.load import diagnose_run, load_run
        from freerun.report.diagnosis import summary
        from freerun.training.run_folder import probe

    loaded = load_run(run)
    _check_folder(folder, overwrite=overwrite)
    with usable(Path(run)):
        oracle = None if measured.oracle is None else load_run(measured.oracle)
        content = diagnose_run(loaded, measured.rows, _status(display), before=lambda: probe(folder), oracle=oracle)
    return content, summary(content["diagnosis"])


def _of_subject(
    model: str, measured: Measured, folder: Path, display: Waiting, overwrite: bool
) -> tuple[dict[str, Any], str]:
    with loading():
        from freerun.experiments.subjects import read_object, read_pretrained
        from freerun.training.run_folder import probe

    if measured.data is None:
        subject = read_object(model, measured.rows)
    else:
        overrides = list(measured.overrides)
        overrides += [] if measured.batch_size is None else [f"evaluate.batch_size={measured.batch_size}"]
        subject = read_pretrained(model, measured.data, overrides, measured.rows, _status(display))
    facts = {"data": subject.data, **subject.facts}
    facts = [f"{name}: {f'{value:,}' if isinstance(value, int) else value}" for name, value in facts.items() if value]
    display.note(visible("\n".join(facts), keep="\n"))
    _check_folder(folder, overwrite=overwrite)
    probe(folder)
    found = subject.diagnose(_status(display))
    return found.to_json(), str(found)


def _status(display: Waiting) -> Callable[[str], None]:
    return lambda text: display(f"diagnosing: {text}", passing=True)


def _written(content: dict[str, Any], folder: Path) -> Path:
    from freerun.report.diagnosis import write_diagnosis
    from freerun.training.files import replace_file

    replace_file(folder / _FILES[0], json.dumps(content, ensure_ascii=False).encode())
    return write_diagnosis(content, folder / _FILES[1])


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OccupiedError(f"{folder} is a file; --out is a folder")
    there = [name for name in _FILES if (folder / name).exists() or (folder / name).is_symlink()]
    if there and not _is_ours(folder):
        raise OccupiedError(
            f"{folder} holds {', '.join(there)}, and no freerun diagnose wrote it\n  help: move it away, or give "
            "another --out"
        )
    if there and not overwrite:
        raise OccupiedError(
            f"{folder} holds a diagnosis ({', '.join(there)})\n  help: --overwrite replaces it; or give another --out"
        )


def _is_ours(folder: Path) -> bool:
    """Return True if a diagnosis wrote these files: plain ones, the first of which begins as ours does."""
    from freerun.training.files import is_file

    first, page = (folder / name for name in _FILES)
    if not is_file(first) or (not is_file(page) and (page.is_symlink() or page.exists())):
        return False
    with first.open("rb") as file:
        return file.read(len(_BEGINS)) == _BEGINS
