"""A finished run as something to use: its model, its vocabularies, how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.data.files import DataFile
from freerun.errors import CheckpointError, NotInstalledError, ResourceError, UserError, out_of_memory
from freerun.models.pretrained import Pretrained
from freerun.recipes.build import build_data, load_pretrained, within_run
from freerun.recipes.fields import read_section
from freerun.recipes.recipe import MODEL_KINDS
from freerun.recipes.source import KeyLines, RecipeSource
from freerun.tasks import DATA_KINDS, TASKS
from freerun.tasks.base import DataTask
from freerun.training.changes import with_new_keys
from freerun.training.run_folder import near_runs, read_recipe_file

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.batch import Batch


def diagnose_run(
    run: LoadedRun,
    windows: int | None = None,
    on_progress: Callable[[str], None] | None = None,
    before: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Diagnose a run's model on its own test split; the content of diagnosis.json."""
    from freerun.diagnostics import as_json, diagnose
    from freerun.training.run import versions

    if windows is not None and windows < 1:
        raise UserError(f"--windows must be at least 1; got {windows}")
    task = run.task
    if not task.diagnosed:
        kinds = {each: name for name, each in TASKS.items()}
        known = ", ".join(name for each, name in kinds.items() if each.diagnosed)
        raise UserError(
            f"{run.folder}: a run on a {kinds[task]} cannot be diagnosed: what its model says by itself has no gold to "
            "be compared with place by place\n"
            f"  help: freerun evaluate {run.folder} shows its scores told gold and running freely; {known} can be "
            "diagnosed"
        )
    if on_progress:
        on_progress("loading the data")
    given = task.diagnosis_input(run.model, run.codec, run.evaluate, own_data(run), windows)
    if before:
        before()
    found = diagnose(run.model, given.batches, given.options, on_progress=on_progress)
    summary = run_summary(run)
    signature = summary.get("signature") or "the run is not finished"
    facts = {"method": summary.get("method"), "seed": summary.get("seed"), "best after": _best(summary)}
    return {
        "schema": 1,
        "run": {
            "name": run.folder.resolve().name,
            "signature": signature,
            "facts": facts | {"parameters": summary.get("parameters")},
            "versions": versions(),
        },
        "data": {"name": given.name, "item_noun": task.report.item_noun, "fingerprint": summary.get("data")},
        "diagnosis": as_json(found),
    }


def _best(summary: Mapping[str, Any]) -> str | None:
    best = summary.get("best") or {}
    return None if best.get("step") is None else f"{best['step']:,} updates"


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run's best model, ready to use.

    Args:
        folder: the run.
        model: in evaluation mode.
        task: its kind.
        codec: its vocabularies; makes batches.
        recipe: the resolved recipe's tables; {} where the run was started from Python without one.
        evaluate: how the run was scored: the section ``[evaluate]`` of that kind.
    """

    folder: Path
    model: Module
    task: type[DataTask]
    codec: Any
    recipe: dict[str, Any]
    evaluate: Any


def load_run(folder: str | Path) -> LoadedRun:
    """The best model of a run, with what is needed to use it."""
    from freerun.models import MODELS
    from freerun.training.weights import check_model_files, load_weights, read_info, read_model, refuse_not_finite

    folder = Path(folder)
    _require_run(folder)
    info = read_info(folder)
    where = folder / "model" / "model.json"
    kind, describe = info["kind"], info["describe"]
    if kind not in MODELS and kind != "huggingface":
        raise CheckpointError(
            f"{where}: a model of kind {kind!r} cannot be rebuilt from its file; known are {', '.join(MODELS)}"
            "\n  help: build it in Python and load model/model.safetensors into it"
        )
    try:
        task = _task_kind(describe)
        if kind == "huggingface":
            check_model_files(folder)
            model, codec = load_pretrained(folder, describe)
        else:
            weights = read_model(folder)[1]
            model, codec = MODELS[kind](**info["settings"]), task.codec(describe)
            load_weights(model, weights, str(where.parent))
            task.trial_batch(codec, 1)  # a description of other types fails here
    except (NotInstalledError, CheckpointError):
        raise
    except UserError as error:
        raise CheckpointError([f"{where}: {problem}" for problem in error.problems]) from None
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{where}: {type(error).__name__}: {error}") from None
    refuse_not_finite(model, folder)
    recipe = with_new_keys(read_recipe_file(folder / "recipe.toml") or {})
    return LoadedRun(
        folder, model.eval(), task, codec, recipe, _section(folder, recipe, "evaluate", task.evaluate_section)
    )


def _task_kind(describe: dict[str, Any]) -> type[DataTask]:
    found = TASKS.get(str(describe.get("kind")))
    if found is None:
        raise UserError(f"expected the description of {' or '.join(TASKS)}; got kind {describe.get('kind')!r}")
    return found


def _require_run(folder: Path) -> None:
    if (folder / "model" / "model.json").exists():
        return
    near = near_runs(folder)
    if not folder.exists():
        said = f"{folder}: there is no such folder"
    elif (folder / "summary.json").exists():
        said = f"{folder} has lost its model/: freerun train --resume writes it again from its checkpoints"
    elif (folder / "metrics.jsonl").exists():
        said = f"no model/model.json in {folder}: the run has not come to its first evaluation"
    else:
        said = f"no model/model.json in {folder}: it is not the folder of a run"
    listed = f"\n  help: runs near it: {', '.join(map(str, near))}" if near else ""
    raise CheckpointError(said + listed)


def _section(folder: Path, recipe: dict[str, Any], name: str, cls: type[Any]) -> Any:
    source = RecipeSource(str(folder / "recipe.toml"), recipe, KeyLines())
    found = read_section(source, name, cls)
    try:
        source.raise_problems()
    except UserError as error:
        raise CheckpointError(error.problems) from None
    return found


def _data_settings(run: LoadedRun) -> Any:
    section = run.recipe.get("data")
    kind = section.get("kind") if isinstance(section, dict) else None
    if kind not in DATA_KINDS:
        raise CheckpointError(
            f"{run.folder / 'recipe.toml'} does not say which data the run used\n"
            f"  help: {_instead(run, 'give the old file back')}"
        )
    return _section(run.folder, run.recipe, "data", DATA_KINDS[kind])


def evaluate_run(run: LoadedRun, data: Path | None = None, beams: int | None = None) -> dict[str, Any]:
    """Score a run's model, teacher-forced and free-running side by side."""
    from freerun.training.log import jsonable

    settings = _settings(run, beams=beams)
    summary = _summary(run.folder)
    own = _own_data(run, summary) if data is None or run.task.needs_training_data else None
    file = None if data is None else DataFile(data, _encoding(run))
    facts, found = run.task.score(run.model, run.codec, settings, own, file)
    return {
        "schema": 1,
        "run": str(run.folder),
        "signature": summary.get("signature"),
        "seed": summary.get("seed"),
        **facts,
        "teacher_forced": jsonable(dict(found.teacher_forced)),
        "free_running": jsonable(dict(found.free_running)),
    }


def _encoding(run: LoadedRun) -> str:
    """Of the files that the run was trained on."""
    section = run.recipe.get("data")
    found = section.get("encoding") if isinstance(section, dict) else None
    return found if isinstance(found, str) else "utf-8"


def _instead(run: LoadedRun, advice: str) -> str:
    """The advice, and what else can be scored on; a text is needed whatever is scored on."""
    if run.task.needs_training_data:
        return f"{advice}: what the model says is compared with the words it was trained on"
    return f"{advice}, or name what to score on with --data FILE"


def own_data(run: LoadedRun) -> Any:
    """The data that a run was trained on."""
    return _own_data(run, _summary(run.folder))


def run_summary(run: LoadedRun) -> dict[str, Any]:
    """The content of its summary.json; {} while it is not finished."""
    return _summary(run.folder)


def _own_data(run: LoadedRun, summary: dict[str, Any]) -> Any:
    loaded = build_data(_data_settings(run), _model_settings(run))
    before = summary.get("data")
    if before is not None and before != loaded.fingerprint:
        raise CheckpointError(
            f"{run.folder}: its data have changed: fingerprint {before} when it was trained, {loaded.fingerprint} "
            f"now\n  help: {_instead(run, 'give the old files back')}"
        )
    return loaded


def _model_settings(run: LoadedRun) -> Any:
    section = run.recipe.get("model")
    usual = run.task.models[0]
    kind = section.get("kind", usual) if isinstance(section, dict) else usual
    found = _section(run.folder, run.recipe, "model", MODEL_KINDS[str(kind)])
    return within_run(found, run.folder) if isinstance(found, Pretrained) else found


def _summary(folder: Path) -> dict[str, Any]:
    from freerun.training.run_folder import finished_summary

    return finished_summary(folder) or {}


_OPTIONS = {"beams": ("beams",), "length": ("block", "length")}
"""Keys of [evaluate], one of which an option of the command line stands in for."""


def _settings(run: LoadedRun, **given: int | None) -> Any:
    """The run's [evaluate] with what was given on the command line in its place."""
    changes = {name: value for name, value in given.items() if value is not None}
    known = [each.name for each in fields(run.evaluate)]
    kind = next(name for name, task in TASKS.items() if task is run.task)
    problems = [
        f"--{name} must be at least 1; got {value}"
        if _key(name, known)
        else f"--{name} has no effect on a run on data of kind {kind}\n  help: leave it out"
        for name, value in changes.items()
        if value < 1 or not _key(name, known)
    ]
    if problems:
        raise UserError(problems)
    return replace(run.evaluate, **{_key(name, known): value for name, value in changes.items()})


def _key(option: str, known: Sequence[str]) -> str:
    return next((key for key in _OPTIONS[option] if key in known), "")


def generate_lines(
    run: LoadedRun, lines: Sequence[str], *, places: Sequence[str] | None = None, beams: int | None = None,
    length: int | None = None,
) -> list[str]:  # fmt: skip
    """What the model says to each line of an input, running freely: a line each."""
    named = places or [f"line {number}" for number in range(1, len(lines) + 1)]
    settings = _settings(run, beams=beams, length=length)
    try:
        return run.task.generate_lines(run.model, run.codec, settings, lines, named)
    except (MemoryError, RuntimeError) as error:
        if run.task.outputs_table or not out_of_memory(error):
            raise
        longest = max(range(len(lines)), key=lambda number: len(lines[number]))
        raise ResourceError(
            f"{named[longest]}: out of memory: of {len(lines):,} lines it is the longest, with {len(lines[longest]):,} "
            "characters\n  help: shorten or split it, or give fewer lines at once"
        ) from error


def trial_batch(run: LoadedRun, rows: int = 4) -> Batch:
    """A small made-up batch of the run's symbols, of different lengths, to try the model on."""
    return run.task.trial_batch(run.codec, rows)
