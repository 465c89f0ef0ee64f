"""A finished run as something to use: its model, its vocabularies, how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.data.files import DataFile, first_problems
from freerun.data.records import RecordCodec
from freerun.diagnostics import as_json, diagnose
from freerun.errors import CheckpointError, NotInstalledError, ResourceError, UserError, needing, out_of_memory, refuse
from freerun.methods import NoHistory
from freerun.models import MODELS, make_model
from freerun.models.pretrained import Pretrained, quiet, read_config, read_model, read_tokenizer
from freerun.recipes.fields import read_section
from freerun.recipes.recipe import MODEL_KINDS, PythonModel
from freerun.recipes.source import KeyLines, RecipeSource
from freerun.recipes.train import build_data
from freerun.tasks import DATA_KINDS, TASKS
from freerun.tasks.base import DataTask
from freerun.tasks.batches import BatchTask
from freerun.tasks.sample_paths import LEADS
from freerun.training import weights
from freerun.training.changes import with_new_keys
from freerun.training.log import jsonable
from freerun.training.run import versions
from freerun.training.run_folder import finished_summary, near_runs, read_recipe_file

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.batch import Batch


def diagnose_run(
    run: LoadedRun,
    windows: int | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
    before: Callable[[], None] = lambda: None,
    oracle: LoadedRun | None = None,
) -> dict[str, Any]:
    """Diagnose a run's model on its own test split; the content of diagnosis.json."""
    task = run.task
    if oracle is not None and (task.real_valued or oracle.codec.describe() != run.codec.describe()):
        reason = "values have no oracle" if task.real_valued else "its symbols are not those of the run"
        raise UserError(f"{oracle.folder}: cannot be the oracle of {run.folder}: {reason}")
    on_progress("loading the data")
    data_name, batches, options = task.diagnosis_input(run.model, run.codec, run.evaluate, own_data(run), windows)
    before()
    options = options if oracle is None else replace(options, oracle=oracle.model)
    result = diagnose(run.model, batches, options, on_progress=on_progress)
    summary = finished_summary(run.folder) or {}
    best = (summary.get("best") or {}).get("step")
    return {
        "schema": 1,
        "run": {
            "name": run.folder.resolve().name,
            "signature": summary.get("signature") or "the run is not finished",
            "facts": {
                "method": summary.get("method"),
                "seed": summary.get("seed"),
                "best after": None if best is None else f"{best:,} updates",
                "parameters": summary.get("parameters"),
                "oracle": None if oracle is None else str(oracle.folder),
            },
            "versions": versions(),
        },
        "data": {"name": data_name, "item_noun": task.report.item_noun, "fingerprint": summary.get("data")},
        "diagnosis": as_json(result),
    }


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
    folder = Path(folder)
    require_run(folder)
    info = weights.read_info(folder)
    where = folder / "model" / "model.json"
    kind, describe = info["kind"], info["describe"]
    recipe = with_new_keys(read_recipe_file(folder / "recipe.toml") or {})
    section = recipe.get("model")
    own = isinstance(section, dict) and section.get("kind") == "python"
    if kind not in MODELS and kind != "huggingface" and not own:
        raise CheckpointError(
            f"{where}: a model of kind {kind!r} cannot be rebuilt from its file; known are {', '.join(MODELS)}"
            "\n  help: build it in Python and load model/model.safetensors into it"
        )
    try:
        task = TASKS.get(str(describe.get("kind")))
        if task is None:
            raise UserError(f"expected the description of {' or '.join(TASKS)}; got kind {describe.get('kind')!r}")
        if kind == "huggingface":
            weights.check_model_files(folder)
            model, codec = _load_pretrained(folder, describe)
        elif own:
            model, codec = _own_model(folder, recipe, task), task.codec(describe)
            weights.load_weights(model, weights.read_model(folder)[1], str(where.parent))
        else:
            values = weights.read_model(folder)[1]
            model, codec = make_model(kind, **info["settings"]), task.codec(describe)
            weights.load_weights(model, values, str(where.parent))
            task.trial_batch(codec, 1)  # a description of other types fails here
    except (NotInstalledError, CheckpointError):
        raise
    except UserError as error:
        raise CheckpointError([f"{where}: {problem}" for problem in error.problems]) from None
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{where}: {type(error).__name__}: {error}") from None
    weights.refuse_not_finite(model, folder)
    evaluate = _section(folder, recipe, "evaluate", task.evaluate_section)
    method = recipe.get("method")
    if isinstance(method, dict) and method.get("name") == NoHistory.name:
        model = NoHistory().deployed(model)
    return LoadedRun(folder, model.eval(), task, codec, recipe, evaluate)


def load_adapted(settings: Pretrained) -> Module:
    """The adapted model of a pretrained one, in evaluation mode."""
    with needing("hf", "a model of kind huggingface"):
        from freerun.integrations.hf_adapt import adapt
    with quiet():
        return adapt(read_model(settings, read_config(settings.path))).eval()


def _own_model(folder: Path, recipe: dict[str, Any], task: type[DataTask]) -> Module:
    """The model that the user's function makes, for the sizes of the data."""
    settings = _section(folder, recipe, "model", PythonModel)
    if issubclass(task, BatchTask):
        return settings.build()
    data = _section(folder, recipe, "data", DATA_KINDS[str(recipe["data"]["kind"])])
    return settings.build(*task.sizes(build_data(data, settings)))


def _load_pretrained(folder: Path, describe: dict[str, Any]) -> tuple[Module, RecordCodec]:
    settings = _within_run(Pretrained(path="."), folder)
    model = load_adapted(settings)
    return model, RecordCodec.from_description(describe, read_tokenizer(settings), model)


def _within_run(settings: Pretrained, folder: Path) -> Pretrained:
    """Return the section that loads a run's own saved model, wherever it was once loaded from."""
    own = {"tokenizer": None, "random": False, "dtype": "auto", "pad": None, "chat_template": None}
    return replace(settings, path=str(folder / "model"), **own)


def require_run(folder: Path) -> None:
    """Raise CheckpointError where a folder is not that of a run, or its run has no model."""
    if (folder / "model" / "model.json").exists():
        return
    near = near_runs(folder)
    if not folder.exists():
        problem = f"{folder}: there is no such folder"
    elif (folder / "summary.json").exists():
        problem = f"{folder} has lost its model/: freerun train --resume writes it again from its checkpoints"
    elif (folder / "metrics.jsonl").exists():
        problem = f"no model/model.json in {folder}: the run has not come to its first evaluation"
    else:
        problem = f"no model/model.json in {folder}: it is not the folder of a run"
    raise CheckpointError(problem + (f"\n  help: runs near it: {', '.join(map(str, near))}" if near else ""))


def _section(folder: Path, recipe: dict[str, Any], name: str, cls: type[Any]) -> Any:
    source = RecipeSource(str(folder / "recipe.toml"), recipe, KeyLines())
    section = read_section(source, name, cls)
    try:
        source.raise_problems()
    except UserError as error:
        raise CheckpointError(error.problems) from None
    return section


def _value(run: LoadedRun, section: str, key: str, default: Any = None) -> Any:
    table = run.recipe.get(section)
    return table.get(key, default) if isinstance(table, dict) else default


def evaluate_run(run: LoadedRun, data: Path | None = None, beams: int | None = None) -> dict[str, Any]:
    """Score a run's model, teacher-forced and free-running side by side."""
    settings = _evaluate_settings(run, beams=beams)
    summary = finished_summary(run.folder) or {}
    own = own_data(run) if data is None or run.task.needs_training_data else None
    encoding = _value(run, "data", "encoding")  # of the files that the run was trained on
    columns = str(_value(run, "data", "source", "en")), str(_value(run, "data", "target", "de"))
    file = None if data is None else DataFile(data, encoding if isinstance(encoding, str) else "utf-8", columns)
    facts, scores = run.task.score(run.model, run.codec, settings, own, file)
    by_lead = {name: list(curve) for name, curve in scores.curves.items() if name.endswith(LEADS)}
    return {
        "schema": 1,
        "run": str(run.folder),
        "signature": summary.get("signature"),
        "seed": summary.get("seed"),
        **facts,
        **({"notes": file.notes} if file is not None and file.notes else {}),
        "teacher_forced": jsonable(dict(scores.teacher_forced)),
        "free_running": jsonable(dict(scores.free_running)),
        **({"by_lead": jsonable(by_lead)} if by_lead else {}),
    }


def own_data(run: LoadedRun) -> Any:
    """The data that a run was trained on."""
    instead = (
        ": what the model outputs is compared with the words it was trained on"
        if run.task.needs_training_data
        else ", or name what to score on with --data FILE"
    )
    kind = _value(run, "data", "kind")
    if kind not in DATA_KINDS:
        raise CheckpointError(
            f"{run.folder / 'recipe.toml'} does not name the data that the run used\n"
            f"  help: give the old file back{instead}"
        )
    settings = _section(run.folder, run.recipe, "data", DATA_KINDS[kind])
    model_kind = MODEL_KINDS[str(_value(run, "model", "kind", run.task.models[0]))]
    model = _section(run.folder, run.recipe, "model", model_kind)
    data = build_data(settings, _within_run(model, run.folder) if isinstance(model, Pretrained) else model)
    before = (finished_summary(run.folder) or {}).get("data")
    if before is not None and before != data.fingerprint:
        raise CheckpointError(
            f"{run.folder}: its data have changed: fingerprint {before} when it was trained, {data.fingerprint} "
            f"now\n  help: give the old files back{instead}"
        )
    return data


_OPTIONS = {
    "beams": ("beams",), "length": ("block", "length"), "num_samples": ("num_samples",), "quantiles": ("quantiles",)
}  # fmt: skip
"""Keys of [evaluate], one of which an option of the command line stands in for."""


def _evaluate_settings(run: LoadedRun, **options: Any) -> Any:
    """The run's [evaluate] with the options of the command line."""
    known = {each.name for each in fields(run.evaluate)}
    kind = next(name for name, task in TASKS.items() if task is run.task)
    problems: list[str] = []
    # samples that scores are computed from are no answer
    changes: dict[str, Any] = {"num_samples": 0} if "num_samples" in known and "num_samples" in options else {}
    for name, value in options.items():
        key = next((key for key in _OPTIONS[name] if key in known), None)
        if value is not None and key is None:
            option = name.replace("_", "-")
            problems.append(f"--{option} has no effect on a run on data of kind {kind}\n  help: leave it out")
        elif isinstance(value, int) and value < 1:
            problems.append(f"--{name.replace('_', '-')} must be at least 1; got {value}")
        elif value is not None and key is not None:
            changes[key] = value
    if problems:
        raise UserError(problems)
    return replace(run.evaluate, **changes)


def generate_lines(
    run: LoadedRun, lines: Sequence[str], *, names: Sequence[str] | None = None, beams: int | None = None,
    length: int | None = None, skipped: list[str] | None = None, num_samples: int | None = None,
    quantiles: tuple[float, ...] | None = None, notes: list[str] | None = None,
) -> list[str]:  # fmt: skip
    """The model's free-running output for each line of an input: a line each.

    Args:
        run: the run.
        lines: the input; of a series the path of its table.
        names: what problems call the lines.
        beams: width of the beam search; None: the recipe's.
        length: of what is generated; None: the recipe's.
        skipped: None refuses all where a line cannot be answered; a list gets the problems of such lines, whose output
            is then empty.
        num_samples: sample paths of a forecast, a column each, or the number that quantiles are computed from.
        quantiles: levels of a forecast, a column each.
        notes: what is found out about a table is added to these.
    """
    names = names or [f"line {number}" for number in range(1, len(lines) + 1)]
    settings = _evaluate_settings(run, beams=beams, length=length, num_samples=num_samples, quantiles=quantiles)
    if skipped is not None and (run.task.outputs_table or issubclass(run.task, BatchTask)):
        raise UserError("--skip has no effect on this run, whose input is no text of lines\n  help: leave it out")
    if issubclass(run.task, BatchTask):
        return list(run.task.generate_rows(run.model, own_data(run), settings))
    problems = run.task.line_problems(run.model, run.codec, settings, lines, names)
    found = first_problems("the input", [problem for each in problems for problem in each])
    if skipped is None:
        refuse(found)
    else:
        skipped += found
    answered = [number for number, each in enumerate(problems) if not each]
    sound = [lines[number] for number in answered]
    try:
        if run.task.outputs_table:
            table = DataFile(Path(lines[0]), notes=[] if notes is None else notes)
            return run.task.generate_table(run.model, run.codec, settings, table)
        outputs = run.task.generate_lines(run.model, run.codec, settings, sound) if sound else []
    except (MemoryError, RuntimeError) as error:
        if run.task.outputs_table or not out_of_memory(error):
            raise
        longest = max(answered, key=lambda number: len(lines[number]))
        raise ResourceError(
            f"{names[longest]}: out of memory: of {len(lines):,} lines it is the longest, with {len(lines[longest]):,} "
            "characters\n  help: shorten or split it, or give fewer lines at once"
        ) from error
    by_line = dict(zip(answered, outputs, strict=True))
    return [by_line[number] if number in by_line else run.task.unanswered(line) for number, line in enumerate(lines)]


def trial_batch(run: LoadedRun, rows: int = 4) -> Batch:
    """A small made-up batch of the run's symbols to try the model on, or the first of the user's own dev batches."""
    if issubclass(run.task, BatchTask):
        return own_data(run).splits["dev"][0]
    return run.task.trial_batch(run.codec, rows)
