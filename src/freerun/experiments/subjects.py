"""Models that freerun did not train: a folder of Hugging Face with a file of records, or an object of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.data.user_code import user_object
from freerun.diagnostics import DiagnosisOptions
from freerun.errors import UserError, needing
from freerun.experiments.measure import diagnose, refuse_meaningless
from freerun.experiments.results import Diagnosis
from freerun.models.pretrained import Pretrained, quiet, read_config, read_model
from freerun.recipes.fields import read_section
from freerun.recipes.source import KeyLines, RecipeSource
from freerun.tasks.batch_data import read_batches
from freerun.tasks.records import AnswerSettings, RecordsSection, RecordTask, load_answers
from freerun.types import evenly

if TYPE_CHECKING:
    from freerun.batch import Batch

USUAL = 200
"""Records of a file that are used where no number is set."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, the batches that it is diagnosed on, and what is known of both.

    Args:
        model: from a Batch to outputs.
        batches: of one kind.
        options: of the diagnosis; None: the defaults.
        name: of the model.
        facts: of model and data, for people.
        data: the data's name.
        item_noun: what a row is.
        fingerprint: of the data.
    """

    model: Any
    batches: list[Batch]
    options: DiagnosisOptions | None
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data: str = "batches of one's own"
    item_noun: str = "rows"
    fingerprint: str | None = None
    own: bool = False  # not of transformers, whose adapter is known to shift and to mask

    def diagnose(self, on_progress: Callable[[str], None] | None = None) -> Diagnosis:
        """Measure it; see ``freerun.diagnose``."""
        if self.own:
            refuse_meaningless(self.model, self.batches[0], f"freerun check {self.name} prints all findings")
        found = diagnose(self.model, self.batches, self.options, check=False, on_progress=on_progress)
        facts = {name: value for name, value in self.facts.items() if value is not None}
        return replace(
            found, model=self.name, facts=facts, data=self.data, item_noun=self.item_noun, fingerprint=self.fingerprint
        )


def read_pretrained(
    folder: str, data: str, overrides: Sequence[str] = (), rows: int | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Subject:  # fmt: skip
    """A model that ``save_pretrained`` wrote with its tokenizer, and a file of records, all of which are test records.

    Args:
        folder: of the model.
        data: the file.
        overrides: ``data.KEY=VALUE``, ``model.KEY=VALUE`` or ``evaluate.batch_size=N``, as in a recipe for it.
        rows: records to use, at even distances; None: ``USUAL`` of them.
        on_progress: called with what is being done, in words.

    Raises:
        UserError: what is wrong with the model, its tokenizer, the file, its rows or the overrides.
    """
    import torch

    if not Path(folder).expanduser().exists():
        raise UserError(
            f"{folder}: there is no such folder\n  help: a model of the Hugging Face hub is not fetched here: save it "
            f"first, with its tokenizer, AutoModel...from_pretrained({folder!r}).save_pretrained(FOLDER)"
        )
    settings, model_settings, answers = _sections(folder, data, overrides)
    on_progress("loading the records")
    most = USUAL if rows is None else rows
    try:
        records, total = load_answers(settings, model_settings, most)
    except UserError as error:
        raise type(error)(_with_option(error.problems)) from None
    on_progress("loading the model")
    with needing("hf", "a model of kind huggingface"):
        from freerun.integrations.hf_adapt import adapt
    with quiet():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = read_model(model_settings, read_config(model_settings.path)).to(device).eval()
        model = adapt(loaded).eval()
    records.bind(model)
    _, batches, options = RecordTask.diagnosis_input(model, records.codec, answers, records, None)
    left = len(records.splits["test"].records)
    used = f"{most:,} of {total:,}, at even distances" if most < total else f"all {total:,}"
    notes = [*records.notes["test"], *([f"{left:,} left"] if left < min(most, total) else [])]
    facts = {
        "model": type(loaded).__name__,
        "parameters": sum(each.numel() for each in loaded.parameters()),
        "records": "; ".join([used, *notes]),
        "columns": ", ".join(records.codec.columns.values()),
        "compared": "the second half of each text, after the first" if records.codec.shape == "text" else None,
        **_generation(model),
    }
    return Subject(model, batches, options, Path(folder).name, facts, data, "records", records.fingerprint)


def _sections(folder: str, data: str, overrides: Sequence[str]) -> tuple[RecordsSection, Pretrained, AnswerSettings]:
    table = {"data": {"path": data}, "model": {"path": folder}}
    source = RecipeSource("freerun diagnose", table, KeyLines())
    for override in overrides:
        source.override(override)
    for name in table:
        if name not in ("data", "model", "evaluate"):
            source.add((name,), f"there is no [{name}] here", "set keys of data, model, or evaluate.batch_size")
    here = "in a recipe: all rows of the file are used, --max-rows N of them"
    elsewhere: dict[str, str] = dict.fromkeys(("dev", "test", "split_seed", "limit"), here)
    elsewhere |= dict.fromkeys(("beams", "length", "length_penalty", "length_margin"), "to freerun evaluate")
    found = (
        read_section(
            source, "data", RecordsSection, hidden=("dev", "test", "split_seed", "limit"), elsewhere=elsewhere
        ),
        read_section(source, "model", Pretrained),
        read_section(source, "evaluate", AnswerSettings, hidden=tuple(elsewhere), elsewhere=elsewhere),
    )
    source.raise_problems()
    return found


def _with_option(problems: Sequence[str]) -> list[str]:
    """Problems whose advice are keys of a recipe, and how the command sets them."""
    *others, last = problems
    if any(re.search(r"\b(set|name|raise|take) |\[data\]|(data|model)\.\w", problem) for problem in problems):
        last += "\n  help: keys are set with --set data.KEY=VALUE or --set model.KEY=VALUE, here as for freerun train"
    return [*others, last]


def _generation(model: Any) -> dict[str, str | None]:
    """What of the model's generation_config free runs follow, and what not: those of a diagnosis have no beams."""
    with needing("hf", "a model of kind huggingface"):
        from freerun.models.huggingface.rules import in_words
    followed, left = in_words(model.generation_config)
    beams = getattr(model.generation_config, "num_beams", None) or 1
    left = "; ".join(
        [*([left] if left else []), *([f"num_beams = {beams}: free runs are greedy"] if beams > 1 else [])]
    )
    return {"generation_config": followed or None, "not applied": left or None}


def read_object(target: str, rows: int | None = None) -> Subject:
    """A model and batches that ``FILE.py:NAME`` or ``module:NAME`` names: (model, batches), or a function's result.

    Args:
        target: see ``freerun.data.user_code.user_object``.
        rows: rows to use, at even distances; None: all.

    Raises:
        UserError: an error in the user's code, or something else than (model, batches) or (model, batches, options).
    """
    value = user_object(target)
    if not isinstance(value, tuple) or len(value) not in (2, 3) or not callable(value[0]):
        got = (
            f"({', '.join(type(part).__name__ for part in value)})"
            if isinstance(value, tuple)
            else type(value).__name__
        )
        raise UserError(
            f"{target}: must be (model, batches), (model, batches, options), or a function without arguments that "
            f"returns them; got {got}\n  help: a model is called as model(batch) with a freerun.Batch; batches are "
            "freerun.Batch objects, in a list or a DataLoader; options are freerun.diagnostics.DiagnosisOptions"
        )
    model, options = value[0], value[2] if len(value) == 3 else None
    try:
        listed = read_batches(value[1])
        if not isinstance(options, DiagnosisOptions | None):
            raise UserError(f"options must be freerun.diagnostics.DiagnosisOptions; got {type(options).__name__}")
    except UserError as error:
        raise UserError([f"{target}: {problem}" for problem in error.problems]) from None
    total = sum(batch.size for batch in listed)
    used = total if rows is None else min(rows, total)
    chosen = f"all {used:,}" if used == total else f"{used:,} of {total:,}, at even distances"
    facts = {"model": type(model).__name__, "rows": chosen}
    return Subject(model, sampled(listed, rows), options, target, facts, own=True)


def sampled(batches: Sequence[Batch], rows: int | None) -> list[Batch]:
    """At most ``rows`` rows of some batches, at even distances; None: all of them."""
    import torch

    chosen = torch.tensor(evenly(sum(batch.size for batch in batches), rows))
    found: list[Batch] = []
    start = 0
    for batch in batches:
        at = chosen[(chosen >= start) & (chosen < start + batch.size)] - start
        found += [] if not len(at) else [batch] if len(at) == batch.size else [batch.select(at)]
        start += batch.size
    return found
