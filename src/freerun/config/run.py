"""``freerun train`` as a function: from a recipe to a finished run folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.config.build import build
from freerun.config.folder import check_folder, clear_run, probe, same_recipe, without_places, write_recipe
from freerun.config.read import recipe_table
from freerun.config.recipe import Recipe
from freerun.errors import CheckpointError, UserError

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["direction", "header", "results_lines", "run_recipe"]


def run_recipe(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    init: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train one model as a recipe says and leave everything in a folder.

    The folder is looked at first and written last: nothing is removed or made before recipe and data are in order.

    Args:
        recipe: from ``load_recipe``.
        out: the run's folder.
        resume: go on with the run in it; where there is none, begin one.
        overwrite: remove a run in it first; only files that runs write are removed.
        init: another run's folder, whose best weights this one begins with.
        progress: print the header and show progress, on standard error.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        OccupiedError: the folder holds a run or foreign files.
        UserError: data, bf16 or TensorBoard that are not there, a folder that cannot be written, ``init`` that is
            ``out``, a resumed run of another recipe.
        CheckpointError: nothing to resume from is sound, or ``init`` is not a run of this model.
        OtherProcessError: started by ``torchrun``, and another process failed.
    """
    from freerun.training import fit, ready_to_start
    from freerun.training.folder import FolderLock
    from freerun.training.processes import joined

    folder, source = Path(out), None if init is None else Path(init)
    table = recipe_table(recipe, compare=False)

    def look() -> None:
        check_folder(folder, resume=resume, overwrite=overwrite)
        if source is not None:
            _check_init(source, folder)
        if resume:
            same_recipe(folder, table)

    with joined() as processes:
        processes.by_first(look)
        with processes.alike():
            model, task, method, settings = build(recipe)
            # of several processes the first reads what a run begins with, and gives it to the others
            ready_to_start(model, task, settings, source if processes.first else None)

        def write() -> None:
            probe(folder)
            if overwrite:
                with FolderLock(folder):
                    clear_run(folder)
            write_recipe(folder, table)
            if progress:
                said = header(recipe, task.header(), method, model, folder, processes=processes.size)
                print("\n".join(said), file=sys.stderr, flush=True)

        processes.by_first(write)
        return fit(
            model, task, method, settings, folder, resume=resume, progress=progress, recipe=without_places(table),
            init=source,
        )  # fmt: skip


def _check_init(init: Path, folder: Path) -> None:
    if init.resolve() == folder.resolve():
        raise UserError(
            f"--init {init}: a run cannot begin with the weights of the folder it is written to\n"
            "  help: give another --out"
        )
    if not (init / "model" / "model.json").exists():
        raise CheckpointError(f"--init {init}: no model/model.json there; it must be the folder of a run")


def header(
    recipe: Recipe, data: list[str], method: Any, model: Module, folder: Path, *, processes: int = 1
) -> list[str]:
    """What a run says about itself before it begins, line by line."""
    parameters = sum(part.numel() for part in model.parameters())
    settings = recipe.train
    lines = [f"{recipe.name}, seed {recipe.seed}", *data, f"method: {method!r}"]
    if words := direction(method, settings.updates):
        lines.append(f"  {words}")
    return [
        *lines,
        f"model: {recipe.model}, {parameters:,} parameters",
        f"training: {settings.updates:,} updates of {settings.batch_size}, {settings.optimizer}, lr {settings.lr:g}",
        *([f"processes: {processes}, {settings.parallel}"] if processes > 1 else []),
        f"folder: {folder}",
    ]


def direction(method: Any, updates: int) -> str:
    """What the teacher-forcing ratio does over a run, in words; "" for a method without one.

    >>> from freerun.methods import ScheduledSampling
    >>> from freerun.schedules import linear
    >>> direction(ScheduledSampling(linear(start=1.0, end=0.5, steps=100)), 100)
    'teacher_forcing_ratio = P(gold) falls from 1 to 0.505: less gold as training goes on'
    """
    from freerun.schedules import Schedule, value_at
    from freerun.types import Step

    ratio = getattr(method, "teacher_forcing_ratio", None)
    if ratio is None:
        return ""
    if not isinstance(ratio, Schedule):
        return f"teacher_forcing_ratio = P(gold) stays at {float(ratio):g}"
    if ratio.unit != "step":
        return f"teacher_forcing_ratio = P(gold) follows {ratio!r}, counted in {ratio.unit}s"
    first, last = value_at(ratio, Step(0)), value_at(ratio, Step(updates - 1))
    if first == last:
        return f"teacher_forcing_ratio = P(gold) begins and ends at {first:g}"
    moves, tells = ("falls", "less gold") if last < first else ("rises", "more gold")
    return f"teacher_forcing_ratio = P(gold) {moves} from {first:g} to {last:g}: {tells} as training goes on"


def results_lines(summary: Mapping[str, Any]) -> list[str]:
    """A finished run's test scores, in lines for people."""
    test = summary.get("test", {})
    lines: list[str] = []
    for side in ("teacher_forced", "free_running"):
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in test.get(side, {}).items() if value is not None)
        if numbers:
            lines.append(f"test, {side}: {numbers}")
    return lines
