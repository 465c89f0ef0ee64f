"""A finished run as something to use: its model, its vocabularies, how it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.config.build import build_data, scoring
from freerun.config.check import read_section
from freerun.config.folder import near_runs, saved_recipe
from freerun.config.recipe import DATA_KINDS, DataSettings, EvaluateSettings
from freerun.config.source import Source
from freerun.config.toml_lines import KeyPlaces
from freerun.errors import CheckpointError, UserError

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.data import PairCoder
    from freerun.types import Batch

__all__ = ["LoadedRun", "evaluate_run", "load_run", "pronounce", "trial_batch"]


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run's best model, ready to use.

    Args:
        folder: the run.
        model: in evaluation mode.
        coder: its vocabularies; makes batches of sources.
        recipe: the resolved recipe's tables; {} where the run was started from Python without one.
        evaluate: how the run was scored.
    """

    folder: Path
    model: Module
    coder: PairCoder
    recipe: dict[str, Any]
    evaluate: EvaluateSettings


def load_run(folder: str | Path) -> LoadedRun:
    """The best model of a run, with what is needed to use it.

    Raises:
        CheckpointError: the folder is not a run's, or its files are damaged or of a model that cannot be rebuilt here.
    """
    from freerun.data import PairCoder
    from freerun.models import MODELS
    from freerun.training.weights import load_weights, read_model

    folder = Path(folder)
    _require_run(folder)
    info, weights = read_model(folder)
    where = folder / "model" / "model.json"
    kind, settings, describe = info.get("kind"), info.get("settings"), info.get("describe")
    if kind not in MODELS or not isinstance(settings, dict) or not isinstance(describe, dict):
        raise CheckpointError(
            f"{where}: a model of kind {kind!r} cannot be rebuilt from its file; known are {', '.join(MODELS)}"
            "\n  help: build it in Python and load model/model.safetensors into it"
        )
    try:
        model = MODELS[kind](**settings)
        coder = PairCoder.from_description(describe)
    except (UserError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from None
    load_weights(model, weights, str(where.parent))
    recipe = saved_recipe(folder) or {}
    return LoadedRun(folder, model.eval(), coder, recipe, _section(folder, recipe, "evaluate", EvaluateSettings))


def _require_run(folder: Path) -> None:
    if (folder / "model" / "model.json").exists():
        return
    near = near_runs(folder)
    if not folder.exists():
        said = f"{folder}: there is no such folder"
    elif (folder / "metrics.jsonl").exists():
        said = f"no model/model.json in {folder}: the run has not come to its first evaluation"
    else:
        said = f"no model/model.json in {folder}: it is not the folder of a run"
    listed = f"\n  help: runs near it: {', '.join(map(str, near))}" if near else ""
    raise CheckpointError(said + listed)


def _section(folder: Path, recipe: dict[str, Any], name: str, cls: type[Any]) -> Any:
    source = Source(str(folder / "recipe.toml"), recipe, KeyPlaces())
    found = read_section(source, (name,), cls)
    try:
        source.raise_problems()
    except UserError as error:
        raise CheckpointError(error.problems) from None
    return found


def _data_settings(run: LoadedRun) -> DataSettings:
    section = run.recipe.get("data")
    kind = section.get("kind") if isinstance(section, dict) else None
    if kind not in DATA_KINDS:
        raise CheckpointError(
            f"{run.folder / 'recipe.toml'} does not say which data the run used\n  help: name a file with --data FILE"
        )
    return _section(run.folder, run.recipe, "data", DATA_KINDS[kind])


def evaluate_run(run: LoadedRun, data: Path | None = None, beams: int | None = None) -> dict[str, Any]:
    """Score a run's model, teacher-forced and free-running side by side.

    Args:
        run: from ``load_run``.
        data: a file of pairs; None: the test split the run was tested on.
        beams: instead of the run's own.

    Raises:
        UserError: the data cannot be read, or hold symbols never seen in training.
        CheckpointError: the run's own data have changed since.
    """
    from freerun.data import read_pairs
    from freerun.training import evaluation

    if beams is not None and beams < 1:
        raise UserError(f"--beams must be at least 1; got {beams}")
    summary = _summary(run.folder)
    if data is None:
        loaded = build_data(_data_settings(run))
        before = summary.get("data")
        if before is not None and before != loaded.fingerprint:
            raise CheckpointError(
                f"{run.folder}: its data have changed: fingerprint {before} when it was trained, {loaded.fingerprint} "
                "now\n  help: give the old files back, or name what to score on with --data FILE"
            )
        pairs = loaded.evaluation("test")
    else:
        pairs = read_pairs(data)
    settings = scoring(run.evaluate, beams=beams)
    found = evaluation.evaluate_pairs(run.model, run.coder, pairs, settings)
    return {
        "schema": 1,
        "run": str(run.folder),
        "signature": summary.get("signature"),
        "seed": summary.get("seed"),
        "data": pairs.origin,
        "words": len(pairs),
        "beams": settings.beams,
        "teacher_forced": dict(found.teacher_forced),
        "free_running": dict(found.free_running),
    }


def _summary(folder: Path) -> dict[str, Any]:
    from freerun.training.folder import finished_summary

    return finished_summary(folder) or {}


def pronounce(
    run: LoadedRun, words: Sequence[str], beams: int | None = None, places: Sequence[str] | None = None
) -> list[str]:
    """What the model says to each word, running freely: symbols separated by spaces.

    Args:
        run: from ``load_run``.
        words: each split into characters.
        beams: instead of the run's own.
        places: where each word stands, for problems; default: its number.

    Raises:
        UserError: words with symbols never seen in training; all of them at once.
    """
    from freerun.training import evaluation

    if beams is not None and beams < 1:
        raise UserError(f"--beams must be at least 1; got {beams}")
    problems: list[str] = []
    for place, word in zip(places or [f"word {i + 1}" for i in range(len(words))], words, strict=True):
        try:
            run.coder.source_vocab.ids(tuple(word), where=place)
        except UserError as error:
            problems += error.problems
    if problems:
        more = [f"... and {len(problems) - 20} more lines"] if len(problems) > 20 else []
        raise UserError([*problems[:20], *more])
    said = evaluation.say(run.model, run.coder, [tuple(word) for word in words], scoring(run.evaluate, beams=beams))
    return [" ".join(symbols) for symbols in said]


def trial_batch(run: LoadedRun, rows: int = 4) -> Batch:
    """A small made-up batch of the run's symbols, of different lengths, to try the model on."""
    import torch

    from freerun.keys import uniform

    sources, targets = run.coder.source_vocab.symbols, run.coder.target_vocab.symbols

    def strings(symbols: tuple[str, ...], key: int) -> list[tuple[str, ...]]:
        chosen = (uniform(key, torch.arange(rows)[:, None], torch.arange(rows + 2)) * len(symbols)).long().tolist()
        return [tuple(symbols[i] for i in row[: 3 + number]) for number, row in enumerate(chosen)]

    return run.coder.pair_batch(strings(sources, 1), strings(targets, 2))
