"""``freerun train`` as a function: from a recipe to its model, data and method, and to a finished run folder."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from freerun.data.records.codec import language_id
from freerun.data.user_code import seeded
from freerun.errors import CheckpointError, UserError, needing, visible
from freerun.generation import head_of
from freerun.keys import fold
from freerun.methods.gkd import Teacher, predict_the_same
from freerun.methods.noise import with_vocabulary
from freerun.methods.own_runs import with_end
from freerun.methods.rehearsal import rehearsal
from freerun.models.pretrained import Pretrained, model_positions, quiet, read_config, read_model
from freerun.recipes.read import build_method, recipe_table
from freerun.recipes.recipe import ModelSettings, PythonModel, Recipe
from freerun.schedules import Schedule, value_at
from freerun.tasks import task_of, trained_on
from freerun.tasks.base import DataTask, full_score_name
from freerun.tasks.batches import BatchTask
from freerun.terminal import waiting, width_of, wrapped
from freerun.training import TrainSettings, fit, preflight
from freerun.training.changes import Keys, changes, check_allow, flat, refused, section_keys, with_new_keys
from freerun.training.loop import check_scores, require_space
from freerun.training.processes import join_processes
from freerun.training.run import Held
from freerun.training.run_folder import (
    FolderLock,
    check_folder,
    clear_run,
    probe,
    read_recipe_file,
    stage,
    write_recipe,
)
from freerun.types import Step

if TYPE_CHECKING:
    from torch.nn import Module

    from freerun.batch import Batch
    from freerun.data.records import RecordCodec, RecordData


def run_recipe(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    init: str | Path | None = None,
    allow: Collection[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Train the model of a recipe and leave everything in a folder."""
    folder, source = Path(out), None if init is None else Path(init)
    table, keys, lock = recipe_table(recipe, compare=False), recipe_keys(recipe), FolderLock(folder)
    check_allow(allow, keys, resume=resume)

    def look() -> None:
        check_folder(folder, resume=resume, overwrite=overwrite, table=table)
        if source is not None:
            check_init(source, folder)
        if resume:
            _refuse_changed(folder, table, keys, allow)

    with join_processes(recipe.train.rank_timeout) as processes, ExitStack() as stack:
        processes.on_main_rank(look)
        with processes.raise_on_all_ranks(), waiting(visible=progress and processes.first) as display:
            display("reading the data, building the model")
            model, task, method, settings = build(recipe)
            # of several processes the first reads the weights that a run begins with, and sends them to the others
            preflight(model, task, settings, source if processes.first else None)
            notes = rehearse(recipe, model, task, method)

        def enter() -> None:
            stack.enter_context(lock)
            look()  # what another process may have begun meanwhile
            probe(folder)
            if overwrite:
                require_space(folder, model, settings)
                clear_run(folder)

        def ready() -> None:
            write_recipe(folder / "recipe.toml", table)
            if progress:
                lines = header(recipe, task.header(), method, model, folder, processes=processes.size)
                lines += [f"note: {note}" for note in notes]
                print(wrapped("\n".join(map(visible, lines)), width_of(sys.stderr)), file=sys.stderr, flush=True)

        processes.on_main_rank(enter)
        return fit(
            model, task, method, settings, folder, resume=resume, progress=progress, recipe=without_paths(table),
            init=source, allow=allow, held=Held(lock, keys, ready),
        )  # fmt: skip


def _refuse_changed(folder: Path, table: Mapping[str, Any], keys: Keys, allow: Collection[str]) -> None:
    finished = stage(folder) == "finished"
    if finished and not (folder / "recipe.toml").exists():
        raise CheckpointError(
            f"{folder / 'recipe.toml'} is missing: what the finished run was made with cannot be compared\n  help: put "
            "it back, or give another --out"
        )
    if changed := same_recipe(folder / "recipe.toml", table, keys, () if finished else allow):
        *listed, advice = changed
        advice = "the run is finished, and nothing can be changed in it" if finished else advice
        help_line = f"give the same settings, or another --out for a new run; {advice}"
        raise CheckpointError("\n  ".join([f"{folder} was begun with another recipe:", *listed, f"help: {help_line}"]))


def recipe_keys(recipe: Recipe) -> Keys:
    """Return the keys of a recipe's sections; its name and where its data lie change no number."""
    keys = section_keys(
        data=type(recipe.data), model=type(recipe.model), train=type(recipe.train), evaluate=type(recipe.evaluate)
    )
    return Keys(keys.defaults, keys.non_semantic | {"name", "data.path", "data.make", "model.make"})


def same_recipe(path: Path, table: Mapping[str, Any], keys: Keys, allow: Collection[str] = ()) -> list[str]:
    """Return the changes that forbid going on with a run, with both values, and what to do; [] for none."""
    before = read_recipe_file(path)
    if before is None:
        return []
    left, advice = refused(changes(flat(without_paths(with_new_keys(before))), flat(without_paths(table)), keys), allow)
    return [*(f"{each.key}: {each.before} there, {each.after} now" for each in left), *([advice] if left else [])]


def without_paths(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without paths of measured rates and teachers: a moved run is the same; its signature has them."""
    method = table.get("method")
    if not isinstance(method, Mapping):
        return dict(table)
    stripped = {
        key: {"measured": "..."} if isinstance(value, Mapping) and "measured" in value else value
        for key, value in method.items()
        if key != "teacher"
    }
    return {**table, "method": stripped}


def check_init(init: Path, folder: Path | None) -> None:
    """Refuse what is no folder of a run with weights, or is the folder that is written to."""
    if folder is not None and init.resolve() == folder.resolve():
        raise UserError(
            f"--init {init}: a run cannot begin with the weights of the folder it is written to\n"
            "  help: give another --out"
        )
    if not (init / "model" / "model.json").exists():
        raise CheckpointError(f"--init {init}: no model/model.json there; it must be the folder of a run")


def build(recipe: Recipe) -> tuple[Module, DataTask, Any, TrainSettings]:
    """(model, task, method, settings) of a recipe."""
    data = build_data(recipe.data, recipe.model)
    task = build_task(recipe, data)
    model = build_model(recipe, data)
    return model, task, method_of(recipe, data, task, model), recipe.train


def method_of(recipe: Recipe, data: Any, task: DataTask, model: Module) -> Any:
    """Return the method of a recipe, for its data, its model and the length of its run."""
    train = recipe.train
    samples = train.updates * train.batch_size
    run = Step(train.updates, sample=samples, epoch=samples / len(task.lengths))
    kind = task_of(recipe.data)
    method = build_method(recipe.method, run, trained_on(recipe.data, recipe.model), kind.frequencies(data))
    if isinstance(getattr(method, "teacher", None), str):
        from freerun.recipes.teachers import with_teacher  # which reads runs by what is here

        method = with_teacher(method, data, model)
    return with_vocabulary(with_end(method, kind.end(data)), model, _shortest(task))


_AT_ONCE = 512
"""Training rows that are tried side by side."""


def rehearse(recipe: Recipe, model: Module, task: DataTask, method: Any) -> list[str]:
    """Refuse before the first update, and before anything is written, what the model cannot do for a method.

    Returns:
        what need not stop a run, and should be known.
    """
    if isinstance(recipe.model, PythonModel) and task.real_valued and (own := head_of(model)) != recipe.model.head:
        raise UserError(
            f'model.head is "{recipe.model.head}", and that of the model of {recipe.model.make} is "{own}"\n  help: '
            f'set head = "{own}" under [model], or make the model with another head'
        )
    rehearse_method: Any = rehearsal
    if isinstance(recipe.model, Pretrained):  # its loss is divided by a count known before the forward
        with needing("hf", "a model of kind huggingface"):
            from freerun.integrations.hf_runner import rehearse as rehearse_method
    try:
        check_scores(method, recipe.train)
        rehearse_method(method, model, _shortest(task), recipe.train.updates, 0)
        _try_rows(method, model, task)
    except UserError as error:
        raise UserError([f"[method]: {problem}" for problem in error.problems]) from error
    teacher: Any = getattr(method, "teacher", None)
    same = isinstance(teacher, Teacher) and predict_the_same(model, teacher, _shortest(task))
    return ["the teacher predicts what the student begins with: nothing is learnt unless one of them changes"] * same


def _try_rows(method: Any, model: Module, task: DataTask) -> None:
    """Refuse the first training row that a step of the method would refuse, hours later maybe."""
    refuse_rows, number = getattr(method, "refuse_rows", None), len(task.lengths)
    if refuse_rows is None:
        return
    for begin in range(0, number, _AT_ONCE):
        part = range(begin, min(begin + _AT_ONCE, number))
        try:
            refuse_rows(model, task.batch(part, torch.arange(len(part))))
        except UserError:
            for n in part:
                try:
                    refuse_rows(model, task.batch([n], torch.arange(1)))
                except UserError as error:
                    noun = task.report.training_noun.removesuffix("s")
                    raise UserError(
                        [f"{noun} {n + 1:,} of the training data: {text}" for text in error.problems]
                    ) from None
            raise


def _shortest(task: DataTask) -> Batch:
    lengths = task.lengths
    return task.batch([min(range(len(lengths)), key=lengths.__getitem__)], torch.arange(1))


def build_data(settings: Any, model: ModelSettings) -> Any:
    """Return the data of a recipe, in the shape that its model reads."""
    return task_of(settings).load(settings, model)


def untrained(recipe: Recipe) -> tuple[Module, Batch]:
    """Return the model of a recipe before any training, and a small batch to try it on."""
    data = build_data(recipe.data, recipe.model)
    task = task_of(recipe.data)
    model = build_model(recipe, data)  # a pretrained one makes the data's batches
    return model, data.splits["dev"][0] if issubclass(task, BatchTask) else task.trial_batch(data.codec, 4)


def build_task(recipe: Recipe, data: Any) -> DataTask:
    """Return the task of a recipe for its data."""
    return task_of(recipe.data)(data, recipe.evaluate, recipe.train.evaluate_items)


def build_model(recipe: Recipe, data: Any) -> Module:
    """Return the untrained model of a recipe for some data, or a pretrained one, which makes the data's batches."""
    torch.manual_seed(fold(recipe.seed, "init"))
    if isinstance(recipe.model, Pretrained):
        return _build_pretrained(recipe, recipe.model, data)
    if isinstance(recipe.model, PythonModel):
        with seeded(fold(recipe.seed, "init")):
            return recipe.model.build(*task_of(recipe.data).sizes(data))
    limit = getattr(recipe.model, "max_positions", None)
    if limit is not None:  # it would run out of positions, maybe hours later at the test
        needed, words = task_of(recipe.data).positions(data, recipe.evaluate)
        if limit < needed:
            raise UserError(
                f"model.max_positions = {limit} is too small: {words}, so {needed} positions are needed"
                f"\n  help: --set model.max_positions={needed}"
            )
    model = recipe.model.make(*task_of(recipe.data).sizes(data))
    task_of(recipe.data).begin(model, data)
    return model


def _build_pretrained(recipe: Recipe, settings: Pretrained, data: RecordData) -> Module:
    with needing("hf", "a model of kind huggingface"):
        from freerun.integrations.hf_adapt import adapt
    config = read_config(settings.path)
    needed, words = task_of(recipe.data).positions(data, recipe.evaluate)
    limit = model_positions(config)
    if limit is not None and limit < needed:
        raise UserError(
            f"the model has {limit} positions: {words}, so {needed} are needed\n  help: lower evaluate.length (or "
            "evaluate.length_margin), or data.max_source"
        )
    model = read_model(settings, config)
    _complete_config(model, data.codec)
    with quiet():
        adapted: Module = adapt(model)
    data.bind(adapted)
    if not data.codec.causal:
        _force_language(adapted, data, settings.path)
        _check_start(adapted, data, settings.path)
    return adapted


def _force_language(adapted: Any, data: RecordData, path: str) -> None:
    """Let free runs begin with the language that all targets begin with; refuse one that forces another.

    Raises:
        UserError: the model's generation settings force another first id than the targets have.
    """
    encoded = data.splits["train"].encoded
    firsts = {one.target[0] for one in encoded}
    if any(one.language for one in encoded) or len(firsts) != 1:
        return
    (first,) = firsts
    tokenizer, settings = data.codec.tokenizer, adapted.inner.generation_config
    forced = settings.forced_bos_token_id
    language = getattr(tokenizer, "tgt_lang", None)
    if forced is None and language and first == language_id(tokenizer, language):
        settings.forced_bos_token_id = first
    elif forced is not None and forced != first and language:
        name = tokenizer.convert_ids_to_tokens
        raise UserError(
            f"{path}: the targets begin with {name(first)!r}, and its generation settings force {name(forced)!r} there "
            f"(forced_bos_token_id = {forced})\n  help: set it to {first} in generation_config.json, or "
            "tokenizer.tgt_lang to its language; for languages by row set data.language_column"
        )


def _complete_config(model: Any, codec: RecordCodec) -> None:
    """Set symbols that the model's configuration lacks to those of the tokenizer."""
    tokenizer = codec.tokenizer
    for config in (model.config, model.generation_config):
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
    if not codec.causal and model.config.decoder_start_token_id is None:
        start = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
    ends = model.generation_config.eos_token_id
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if codec.end is not None and codec.end not in known:
        # the saved model then stops where training taught it to
        model.generation_config.eos_token_id = [*known, codec.end] if known else codec.end


def _check_start(adapted: Any, data: RecordData, path: str) -> None:
    """Refuse a decoder that begins with another symbol in training than in free running: with another language's."""
    if any(one.language for one in data.splits["train"].encoded):
        return  # each row has its own
    # some models take it from the labels' end, which a cut takes away: of the longest first
    labels = max((one.target for one in data.splits["train"].encoded), key=len)
    labelled = int(adapted.shifted(torch.tensor([labels], device=adapted.inner.device), 1)[0, 0])
    own = int(adapted.shifted(None, 1)[0, 0])
    if labelled == own:
        return
    name = data.codec.tokenizer.convert_ids_to_tokens
    raise UserError(
        f"{path}: in training its decoder begins with {name(labelled)!r}, taken from the targets, and in free running "
        f"with {name(own)!r}, the configuration's decoder_start_token_id ({own})\n  help: set tokenizer.tgt_lang to "
        "the language of the targets and config.decoder_start_token_id to its symbol, and save both into the folder; "
        'targets that too_long = "cut" shortens have lost theirs: use "drop"'
    )


def header(
    recipe: Recipe, data: list[str], method: Any, model: Module, folder: Path, *, processes: int = 1
) -> list[str]:
    """Return the lines that a run prints before it begins."""
    parameters = sum(part.numel() for part in model.parameters())
    settings = recipe.train
    lines = [f"{recipe.name}, seed {recipe.seed}", *data, f"method: {method!r}"]
    if words := direction(method, settings.updates):
        lines.append(f"  {words}")
    lines += [f"  note: {note}" for note in getattr(getattr(method, "teacher", None), "notes", ())]
    return [
        *lines,
        f"model: {recipe.model}, {parameters:,} parameters",
        *(f"  {each.explanation}" for each in getattr(model, "findings", ()) if each.name == "generation"),
        f"training: {settings.updates:,} updates of {settings.batch_size}, {settings.optimizer}, lr {settings.lr:g}",
        *selection_note(recipe),
        *([f"processes: {processes}, {settings.parallel}"] if processes > 1 else []),
        f"folder: {folder}",
    ]


def selection_note(recipe: Recipe) -> list[str]:
    """Note that exposure bias cannot move the score that selects the weights, and why; [] if it can."""
    kind, name = task_of(recipe.data), full_score_name(recipe.train.select)
    side = next(side for side in ("free_running", "teacher_forced") if name.startswith(side))
    measure = kind.report.metric(f"{side}.{name.removeprefix(side + '_')}")
    if not measure.fixed or (measure.settled and getattr(recipe.evaluate, "beams", 1) > 1):
        return []
    others = [each for each in kind.report.selectable if not kind.report.metric(f"free_running.{each}").fixed]
    others = [each for each in others if not each.startswith("teacher_forced_")]
    return [
        f"note: select = {recipe.train.select!r}: exposure bias cannot move this score ({measure.fixed}), so the best "
        f"weights are chosen without regard to it; it can move {', '.join(others)}"
    ]


def direction(method: Any, updates: int) -> str:
    """Describe how the teacher-forcing ratio moves over a run; "" for a method without one.

    >>> from freerun.methods import ScheduledSampling
    >>> from freerun.schedules import linear
    >>> direction(ScheduledSampling(linear(start=1.0, end=0.5, steps=100)), 100)
    'teacher_forcing_ratio = P(gold) falls from 1 to 0.505: less gold as training goes on'
    """
    ratio = getattr(method, "teacher_forcing_ratio", None)
    if ratio is None:
        return ""
    if not isinstance(ratio, Schedule):
        return f"teacher_forcing_ratio = P(gold) stays at {float(ratio):g}"
    if ratio.draws:
        return f"teacher_forcing_ratio = P(gold) is drawn at every update: {ratio!r}"
    if ratio.observes:
        return f"teacher_forcing_ratio = P(gold) follows the dev score: {ratio!r}"
    if ratio.unit != "step":
        return f"teacher_forcing_ratio = P(gold) follows {ratio!r}, counted in {ratio.unit}s"
    first, last = value_at(ratio, Step(0)), value_at(ratio, Step(updates - 1))
    if first == last:
        return f"teacher_forcing_ratio = P(gold) begins and ends at {first:g}"
    moves, effect = ("falls", "less gold") if last < first else ("rises", "more gold")
    return f"teacher_forcing_ratio = P(gold) {moves} from {first:g} to {last:g}: {effect} as training goes on"
