"""Arms and seeds on a model and batches of one's own: fit one, compare several."""

from __future__ import annotations

import hashlib
import inspect
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Never, cast

import torch
from torch import Tensor
from torch.nn import Module

from freerun.arguments import COUNT, OneOf, Range, refuse_unknown
from freerun.comparison import results
from freerun.comparison.plan import PlannedRun, check_output_dir, claim_output_dir, plan, recorded
from freerun.comparison.verdict import margin_of
from freerun.data.user_code import seeded
from freerun.errors import CheckpointError, OccupiedError, UserError, display, refuse, whole
from freerun.experiments.measure import refuse_meaningless
from freerun.experiments.results import Comparison, Evaluation
from freerun.keys import fold
from freerun.methods import METHODS, ConfusionNoise, GaussianNoise, TokenNoise
from freerun.methods.base import eval_logits
from freerun.methods.rehearsal import rehearsal
from freerun.recipes.fields import measured, measured_law
from freerun.recipes.recipe import CONTROLS, EQUAL, Arm, MethodSettings, Word
from freerun.tasks.batch_data import BatchData
from freerun.tasks.batches import BatchTask, batch_task, on_device
from freerun.training import TrainSettings, weights
from freerun.training.changes import OtherRunError, flat, section_keys
from freerun.training.checkpoint import newest
from freerun.training.log import Progress, RunState, progress_for
from freerun.training.loop import fit as train
from freerun.training.loop import identity_of
from freerun.training.optim import Needed
from freerun.training.run import Job
from freerun.training.run_folder import FolderLock, finished_summary, read_recipe_file, write_recipe


@dataclass(frozen=True)
class Control:
    """A control of an arm, by its word; see ``control``."""

    word: Word
    arm: str | None = None

    @property
    def call(self) -> str:
        """The function that makes it, for messages."""
        return "matched_noise" if self.word == "matched" else f"control({self.word!r}, label)"


def control(word: Word, arm: str | None = None) -> Control:
    """A control of an arm of ``compare``, by the word that a recipe has for it.

    Args:
        word: ``"matched"``: see ``matched_noise``. ``"confusion"``: as many errors, drawn as the arm's model made them
            in place of each symbol (of values: at each lead time), in the same 25 updates: "own errors" against
            "plausible ones". ``"equal_cost"``: teacher forcing for as many forwards as the arm's run took.
            ``"equal_seconds"``: for as many updates as its training time had room for. ``"no_history"``: a decoder
            whose history is the same entry everywhere.
        arm: label of the arm; None: of the one arm that feeds the model's own outputs.

    Raises:
        UserError: another word.

    >>> control("confusion", "scheduled sampling")
    Control(word='confusion', arm='scheduled sampling')
    """
    OneOf(tuple(CONTROLS)).check(word=word)
    return Control(word, arm)


def matched_noise(arm: str | None = None) -> Control:
    """The control of an arm of ``compare``: random errors at the rate of the arm's own errors, update by update.

    Of ids a wrong symbol drawn evenly (``token_noise``), of values Gaussian noise as large as the arm's own errors
    (``gaussian_noise``); as ``rate = "matched"`` or ``{ matched_to = LABEL }`` in a recipe, of ids with
    ``exclude_gold = true``. It separates "its own errors taught the model" from "any errors would have".

    Args:
        arm: label of the arm; None: of the one arm that feeds the model's own outputs.

    >>> matched_noise("scheduled sampling")
    Control(word='matched', arm='scheduled sampling')
    """
    return Control("matched", arm)


def fit(
    model: Module,
    data: Mapping[str, Any] | BatchData,
    method: Any,
    *,
    updates: int = 1000,
    learning_rate: float = 1e-3,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    settings: Any = None,
    check: bool = True,
    progress: bool = True,
    **unknown: Never,
) -> Evaluation:
    """Train a model on batches, keep its best weights by free-running score on dev, and return its test scores.

    An update takes one batch of ``data["train"]``; their order is drawn from the seed, anew every epoch.

    Args:
        model: with its initial weights; ends with the best ones.
        data: "train", "dev" and "test": batches, or DataLoaders whose collate function makes them.
        method: how it is trained, such as ``fr.scheduled_sampling(0.5)``.
        updates: optimizer steps.
        learning_rate: of AdamW, constant.
        seed: of order, dropout, gates and draws.
        out: the run's folder, for resuming and for figures; None: a temporary one.
        resume: go on in ``out``.
        settings: a ``freerun.training.TrainSettings`` with everything else; updates, lr and seed are those above, an
            update is one batch where ``batch_size`` is left at its default, and batches are not sorted by length.
        check: refuse a model that ``check_model`` refuses on the first batch, such as one that sees its target.
        progress: show what happens, on standard error.

    Raises:
        UserError: what is wrong with data, method or settings, before the first update.

    >>> import freerun as fr
    >>> model = fr.models.RecurrentSeq2Seq(source_vocab=5, target_vocab=4, size=8)
    >>> source = {"source": torch.tensor([[3, 4]]), "source_mask": torch.ones(1, 2, dtype=torch.bool)}
    >>> batch = fr.Batch(torch.tensor([[2, 1, 0]]), context=source)
    >>> data = {"train": [batch], "dev": [batch], "test": [batch]}
    >>> fr.fit(model, data, fr.scheduled_sampling(0.5), updates=2, progress=False).teacher_forced["loss"] < 2
    True

    What it is not: a trainer for many machines from Python; start the command under ``torchrun`` for that.
    """
    _refuse_unknown("fr.fit", unknown)
    folder_out = _checked_plain(updates, learning_rate, out)
    task = batch_task(data if isinstance(data, BatchData) else BatchData(data))
    _check_model(model, method)
    if check:
        refuse_meaningless(model, task.data.splits["train"][0])
    _rehearse(model, task, {"": method}, updates)
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_out or Path(scratch) / "run"
        chosen = _settings(task, settings, updates, learning_rate, seed)
        if resume and finished_summary(folder):
            with _in_python():
                _refuse_other_run(model, task, method, chosen, folder)
        with _in_python():
            _train(model, task, method, chosen, folder, resume=resume, progress=progress)
        _load_best(model, folder)
    found = task.evaluate(getattr(method, "deployed", lambda model: model)(model), "test")
    return Evaluation(found.teacher_forced, found.free_running, found.items, found.curves, values=task.data.values)


_OPTIONS = (
    (r"\n  help: to go on with the change, which is written down: --allow-change \S+", ""),
    (r", or --overwrite to remove it|, remove it with --overwrite", ""),
    (r"--resume", "resume=True"),
    (r"--out", "out"),
)
"""Options of the command in messages, and what a caller in Python has in their stead."""


@contextmanager
def _in_python() -> Generator[None]:
    """Errors inside that name options of the command name arguments of the call."""
    try:
        yield
    except (OccupiedError, CheckpointError) as error:
        problems = list(error.problems)
        for option, argument in _OPTIONS:
            problems = [re.sub(option, argument, problem) for problem in problems]
        raise type(error)(problems) from error


_MEANT = {
    **dict.fromkeys(("lr", "rate"), "did you mean learning_rate?"),
    **dict.fromkeys(("steps", "epochs", "iterations", "max_steps"), "did you mean updates? One is one batch"),
    **dict.fromkeys(("loss", "objective"), "it belongs to the method: fr.teacher_forcing(objective=...)"),
    **dict.fromkeys(("resume_from", "folder", "path"), "did you mean out, with resume=True to go on?"),
    "seed": "did you mean seeds, a list?",
    "verbose": "did you mean progress?",
}


def _refuse_unknown(called: str, unknown: Mapping[str, Any]) -> None:
    """Refuse arguments of other names; those of ``TrainSettings`` stand in ``settings``."""
    known = [each for each in inspect.signature(fit if called == "fr.fit" else compare).parameters if each != "unknown"]
    fields_ = {each.name for each in fields(TrainSettings)} - {"lr", "seed", "updates"}
    held = {name: f"it is one of settings: settings=freerun.training.TrainSettings({name}=...)" for name in fields_}
    refuse_unknown(called, unknown, known, {**held, **_MEANT})


def _settings(task: BatchTask, settings: Any, updates: int, learning_rate: float, seed: int) -> TrainSettings:
    if settings is None:
        every = max(1, updates // 10)
        settings = TrainSettings(updates=updates, evaluate_every=every, save_every=every)
    elif not isinstance(settings, TrainSettings):
        raise UserError(f"settings must be a freerun.training.TrainSettings; got {type(settings).__name__}")
    usual = TrainSettings()
    select = task.select if settings.select == usual.select else settings.select
    size = 1 if settings.batch_size == usual.batch_size else settings.batch_size
    return replace(settings, updates=updates, lr=learning_rate, seed=seed, batch_size=size, bucket=False, select=select)


def _refuse_other_run(model: Any, task: BatchTask, method: Any, settings: TrainSettings, folder: Path) -> None:
    """Refuse to take a finished run for one with other settings, data or method: its checkpoints hold its own."""
    job = Job(
        model,
        task,
        method,
        settings,
        folder,
        recipe=_recipe(task),
        keys=section_keys(_recipe(task), train=TrainSettings),
    )
    try:
        newest(folder, identity_of(job), Needed.of(model, settings), job.keys)
    except OtherRunError:
        raise
    except CheckpointError:
        return  # a damaged checkpoint says nothing of the run


def _recipe(task: BatchTask) -> dict[str, Any]:
    return {"data": {"kind": "python", "targets": "values" if task.data.values else "ids"}}


def _load_best(model: Module, folder: Path) -> None:
    """Load the best weights of a finished run, which a model that was not trained in this call lacks."""
    weights.load_weights(model, weights.read_model(folder)[1], str(folder / "model"))


def _checked_plain(updates: Any, learning_rate: Any, out: Any) -> Path | None:
    """The folder of ``out``, if the plain arguments of ``fit`` and ``compare`` are in order."""
    problems = [*COUNT.problems(updates=updates), *Range(0, ends="(]").problems(learning_rate=learning_rate)]
    if not isinstance(out, str | Path | None):
        problems.append(f"out must be the path of a folder, or left out; got {type(out).__name__}")
    refuse(problems)
    return None if out is None else Path(out)


def _check_model(model: Any, method: Any) -> None:
    if not isinstance(model, Module):
        raise UserError(f"model must be a torch.nn.Module with weights to train; got {type(model).__name__}")
    if not callable(getattr(method, "run", None)) or isinstance(method, type):
        raise UserError(f"method must be one such as fr.scheduled_sampling(0.5); got {display(method)}")


def _train(
    model: Any, task: BatchTask, method: Any, settings: Any, folder: Path, *, resume: bool, progress: bool | Progress
) -> dict[str, Any]:
    return train(model, task, method, settings, folder, resume=resume, progress=progress, recipe=_recipe(task))


def compare(  # noqa: PLR0917 - the public face
    make_model: Callable[[], Module],
    data: Mapping[str, Any] | BatchData,
    arms: Mapping[str, Any],
    seeds: Sequence[int] = (0, 1, 2),
    updates: int = 1000,
    learning_rate: float = 1e-3,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    settings: Any = None,
    margin: float | None = None,
    decode: Any = None,
    check: bool = True,
    progress: bool = True,
    **unknown: Never,
) -> Comparison:
    """Train every arm with every seed, and say which differences the seeds and rows support.

    Arms of one seed have the same initial weights and order of batches: they differ in their method alone. Statistics,
    controls, resume and page are those of ``freerun compare``.

    Args:
        make_model: returns a new model; called under a seed that is set before.
        data: "train", "dev" and "test": batches, or DataLoaders whose collate function makes them; read once.
        arms: label -> method; ``fr.matched_noise(label)`` is the noise control of another arm, and ``fr.control(word,
            label)`` any control.
        seeds: one run of each arm for each; with fewer than five a verdict is a hint.
        updates: optimizer steps of a run, one batch each.
        learning_rate: of AdamW, constant.
        out: folder of the comparison, for resuming; None: a temporary one, which goes with the result.
        resume: go on in ``out``: finished runs are kept, started ones continued.
        settings: a ``freerun.training.TrainSettings`` with everything else; updates, lr and seed are those above, an
            update is one batch where ``batch_size`` is left at its default, and batches are not sorted by length.
        margin: the largest difference in the score of the verdict that does not matter (of values a factor, such as
            1.1): arms whose interval lies within are "as good".
        decode: of ids, for the page: a list of their names, a mapping, or a function of a list of ids; None: numbers.
        check: refuse a model that ``check_model`` refuses on the first batch, such as one that sees its target.
        progress: how far the runs are, and a line for each that is finished, on standard error.

    Raises:
        UserError: what is wrong with model, data, arms or settings, before the first update.

    >>> import freerun as fr
    >>> source = {"source": torch.tensor([[3, 4]]), "source_mask": torch.ones(1, 2, dtype=torch.bool)}
    >>> batch = fr.Batch(torch.tensor([[2, 1, 0]]), context=source)
    >>> found = fr.compare(
    ...     lambda: fr.models.RecurrentSeq2Seq(source_vocab=5, target_vocab=4, size=8),
    ...     {"train": [batch], "dev": [batch], "test": [batch]},
    ...     arms={"gold": fr.teacher_forcing(), "sampled": fr.scheduled_sampling(0.5)},
    ...     seeds=[0, 1], updates=2, progress=False,
    ... )
    >>> "sampled was not shown to differ from gold in free-running edit error" in found.verdict
    True

    What it is not: a search for the best settings; every arm has the same.
    """
    _refuse_unknown("fr.compare", unknown)
    folder = _checked_plain(updates, learning_rate, out)
    if decode is not None and isinstance(data, BatchData):
        raise UserError("decode belongs to the BatchData where you make one: BatchData(splits, decode=...)")
    task = batch_task(data if isinstance(data, BatchData) else BatchData(data, decode=decode))
    arms = _name_matched(arms)
    runs = plan(_arms(arms), _seeds(seeds))
    labelled = [{"label": label, "method": repr(method)} for label, method in arms.items()]
    compared: dict[str, Any] = {"seeds": _seeds(seeds), "arms": labelled}
    if not check:
        compared["checked"] = False
    if margin is not None:
        Range(0, ends="(]").check(margin=margin)
        margin_of({**_recipe(task), "compare": (compared := {**compared, "margin": margin})})
    _try_arms(make_model, task, arms, updates, check=check)
    how: Any = {"settings": (settings, updates, learning_rate), "compared": compared, "progress": progress}
    if folder is None:
        folder = Path(tempfile.mkdtemp()) / "comparison"
        try:
            found = _run_all(make_model, task, arms, runs, folder, **how)
        except BaseException:
            shutil.rmtree(folder.parent, ignore_errors=True)
            raise
        comparison = Comparison(found, folder)
        weakref.finalize(comparison, shutil.rmtree, folder.parent, ignore_errors=True)
        return comparison
    with _in_python():
        check_output_dir(folder, resume=resume, overwrite=False)
    found = _run_all(make_model, task, arms, runs, folder, **how)
    return Comparison(found, folder)


def _run_all(
    make_model: Callable[[], Module],
    task: BatchTask,
    arms: Mapping[str, Any],
    runs: Sequence[PlannedRun],
    folder: Path,
    *,
    settings: tuple[Any, int, float],
    compared: Mapping[str, Any],
    progress: bool,
) -> dict[str, Any]:
    """Train what is not finished, one run after the other; the content of results.json, which is written."""
    planned = {run.arm.label: run.arm for run in runs}.values()
    each = {run.name: replace(_settings(task, *settings, run.seed), **recorded(run.arm.label, planned)) for run in runs}
    tables = {run.name: _table(make_model, task, arms[run.arm.label], each[run.name]) for run in runs}
    with FolderLock(folder), ExitStack() as stack:
        _refuse_changed(folder, tables)
        claim_output_dir(folder, [run.name for run in runs], overwrite=False)
        display = progress_for(settings[1], runs=len(runs), visible=progress)
        states = {run.name: RunState(run.name, "waiting", 0) for run in runs}
        stack.callback(display.close)
        for number, run in enumerate(runs):
            where = folder / "runs" / run.name
            if finished_summary(where):
                states[run.name] = RunState(run.name, "done", settings[1])
                continue
            model = _made(make_model, run.seed)
            if _hashed(weights.weights_of(model)) != tables[run.name]["model"]["initial_weights"]:
                raise UserError(
                    f"run {run.name}: make_model() returns other initial weights than before for seed {run.seed}, "
                    "perhaps those of an earlier run: it must build a new model at each call"
                )
            spec = arms[run.arm.label]
            method = spec
            if isinstance(spec, Control):
                method = _control(spec.word, task, model, folder / "runs" / str(run.after))
            where.parent.mkdir(parents=True, exist_ok=True)
            (folder / "recipes").mkdir(exist_ok=True)
            write_recipe(folder / "recipes" / f"{run.name}.toml", tables[run.name])
            chosen = replace(each[run.name], updates=run.updates(folder / "runs", settings[1]))
            own = _OneOfMany(run.name, display, states)
            summary = _train(model, task, method, chosen, where, resume=where.exists(), progress=own)
            value = summary["test"]["free_running"].get(task.report.primary.score)
            score = "" if value is None else f": {task.report.primary.title} {task.report.primary.to_text(value)}"
            display.note(f"{run.name}{score} ({number + 1} of {len(runs)})")
            states[run.name] = RunState(run.name, "done", chosen.updates)
        recipe = {
            "name": "comparison",
            **_recipe(task),
            "train": {"updates": settings[1], "lr": settings[2]},
            "compare": dict(compared),
        }
        order = list(arms)
        found = results.collect(recipe, sorted(runs, key=lambda run: order.index(run.arm.label)), folder)
        results.write(found, folder)
    return found


@dataclass(eq=False)
class _OneOfMany(Progress):
    """The display of one run of a comparison, in that of all: how far it is, and none of its notes."""

    name: str
    whole: Progress
    states: dict[str, RunState]

    def show(self, states: Sequence[RunState]) -> None:
        self.states[self.name] = replace(states[0], name=self.name)
        self.whole.show(list(self.states.values()))


def _table(make_model: Callable[[], Module], task: BatchTask, method: Any, settings: TrainSettings) -> dict[str, Any]:
    """What a run is made with, as far as it can be written."""
    model = _made(make_model, settings.seed)
    return {
        "data": {"fingerprint": task.data.fingerprint},
        "model": {
            "name": type(model).__name__,
            "parameters": sum(part.numel() for part in model.parameters()),
            "modules": hashlib.sha256(repr(model).encode()).hexdigest()[:16],
            "initial_weights": _hashed(weights.weights_of(model)),
        },
        "method": {"signature": repr(method)},
        "train": {name: "none" if value is None else value for name, value in asdict(settings).items()},
    }


def _hashed(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _refuse_changed(folder: Path, tables: Mapping[str, dict[str, Any]]) -> None:
    """Refuse to go on with runs that were made with something else."""
    problems: list[str] = []
    for name, table in tables.items():
        before = read_recipe_file(folder / "recipes" / f"{name}.toml")
        if before is not None:
            old, new = flat(before), flat(table)
            keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
            problems += [
                f"run {name} was begun with {key} = {old.get(key)}, and it is {new.get(key)} now" for key in keys
            ]
    if problems:
        raise CheckpointError([*problems, f"{folder} holds runs of another comparison: give another folder"])


def _name_matched(arms: Any) -> Any:
    """The arms, ``matched_noise()`` with the label of the one that feeds the model's own outputs."""
    if not isinstance(arms, Mapping):
        return arms
    listed = cast(Mapping[Any, Any], arms)
    free = {label: method for label, method in listed.items() if not isinstance(method, Control)}
    own = [str(label) for label, method in free.items() if getattr(method, "feeds_own", True)]
    unnamed = {label: method for label, method in listed.items() if isinstance(method, Control) and method.arm is None}
    if unnamed and len(own) != 1:
        label, method = next(iter(unnamed.items()))
        call = "matched_noise(" if method.word == "matched" else f"control({method.word!r}"
        name = f"fr.{call}{'' if method.word == 'matched' else ', '}{own[0]!r})" if own else ""
        which = f"{', '.join(own)} do: name it, {name}" if own else "there is none"
        raise UserError(f"arm {label}: {call}) means the one arm that feeds the model's own outputs; {which}")
    return {label: replace(method, arm=own[0]) if label in unnamed else method for label, method in listed.items()}


def _arms(arms: Any) -> list[Any]:
    if not isinstance(arms, Mapping) or not arms:
        raise UserError("arms must map labels to methods, such as {'gold': fr.teacher_forcing()}; got " + repr(arms))
    problems: list[str] = []
    listed: list[Any] = []
    listed_arms = cast(Mapping[Any, Any], arms)
    for label, method in listed_arms.items():
        if not isinstance(label, str) or not label.strip():
            problems.append(f"a label of an arm must be a word; got {label!r}")
        elif isinstance(method, Control):
            others = [name for name, each in listed_arms.items() if not isinstance(each, Control)]
            if method.arm not in others:
                known = f"one of {', '.join(map(str, others))}" if others else "an arm with a method, and there is none"
                problems.append(f"arm {label}: {method.call} must name {known}; got {method.arm!r}")
            elif method.word == "confusion" and getattr(listed_arms[method.arm], "own_lengths", False):
                problems.append(
                    f"arm {label}: runs of {method.arm} are of their own lengths, so no entry of theirs stands in "
                    "place of gold's: take another control, equal_cost or no_history"
                )
            table = CONTROLS[method.word](str(method.arm), False)
            listed.append(Arm(label, MethodSettings(table.pop("name"), table), method.word, method.arm))
        elif isinstance(method, type) or not callable(getattr(method, "run", None)):
            problems.append(f"arm {label} must be a method such as fr.scheduled_sampling(0.5); got {method!r}")
        else:
            listed.append(Arm(label, MethodSettings(str(getattr(method, "name", type(method).__name__)))))
    if problems:
        raise UserError(problems)
    return listed


def _seeds(seeds: Any) -> list[int]:
    listed: list[Any] = list(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else []
    listed = [whole(seed) if whole(seed) is not None else seed for seed in listed]
    fine = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63 for seed in listed)
    if not listed or not fine or len(set(listed)) < len(listed):
        raise UserError(f"seeds must be different whole numbers from 0 on, at least one; got {seeds!r}")
    return listed


def _made(make_model: Any, seed: int) -> Module:
    with seeded(fold(seed, "init")):
        model = make_model()
    if not isinstance(model, Module):
        raise UserError(f"make_model() must return a torch.nn.Module; got {type(model).__name__}")
    return model


def _try_arms(make_model: Any, task: BatchTask, arms: Mapping[str, Any], updates: int, *, check: bool) -> None:
    """Try ``make_model`` and every arm, before a folder is made."""
    if isinstance(make_model, Module) or not callable(make_model):
        raise UserError(
            f"make_model must be a function that returns a new model, as every run begins with one; got "
            f"{type(make_model).__name__}: use lambda: {type(make_model).__name__}(...)"
        )
    try:
        inspect.signature(make_model).bind()
    except ValueError:  # no signature to be had
        pass
    except TypeError as error:
        raise UserError(
            f"make_model is called without arguments: use lambda: {_name(make_model)}(...); {error}"
        ) from error
    model, again = _made(make_model, 0), _made(make_model, 0)
    shared = {id(part) for part in model.parameters() if part.requires_grad} & {id(part) for part in again.parameters()}
    if model is again or shared:
        raise UserError(
            f"make_model() returned {'weights that learn' if model is not again else 'the same model'} twice: it must "
            "build a new one at each call"
        )
    if _hashed(weights.weights_of(model)) != _hashed(weights.weights_of(again)):
        raise UserError(
            "make_model() returned other initial weights under the same seed: draw them with the generator of PyTorch, "
            "NumPy (np.random) or random, which are seeded before each call: the arms of a seed begin with the same"
        )
    if check:
        refuse_meaningless(model, task.data.splits["train"][0])
    _rehearse(model, task, arms, updates)


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _rehearse(model: Module, task: BatchTask, arms: Mapping[str, Any], updates: int) -> None:
    """Try methods on a row, forward only; the label of a single one is \"\"."""
    problems: list[str] = []
    matched = {method.arm: method.call for method in arms.values() if isinstance(method, Control)}
    batch = on_device(model, task.data.splits["train"][0])
    for label, method in arms.items():
        where = f"arm {label}: " if label else ""
        if type(method) not in METHODS.values():
            continue
        try:
            method.check(updates)
            replaced = rehearsal(method, model, batch, updates, 0)[3].report.get("replaced", 1)
            if label in matched and not replaced:
                problems.append(
                    f"{where}it feeds no entry of the model's own, and a control of it would be none: "
                    "name an arm that feeds own entries, such as one of scheduled sampling"
                )
        except UserError as error:
            problems += [f"{where}{problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)


def _control(word: Word, task: BatchTask, model: Module, reference: Path) -> Any:
    """The method of a control of a finished run."""
    metrics = reference / "metrics.jsonl"
    if word in (*EQUAL, "no_history"):
        return METHODS[CONTROLS[word]("", task.data.values)["name"]]()
    if word == "confusion":
        return ConfusionNoise(measured(metrics), measured_law(metrics))
    if task.data.values:
        return GaussianNoise(measured(metrics, "std"), rate=measured(metrics))
    width = eval_logits(model, on_device(model, task.data.splits["train"][0].select(torch.tensor([0])))).shape[-1]
    return TokenNoise(measured(metrics), vocabulary=width, exclude_gold=True)
