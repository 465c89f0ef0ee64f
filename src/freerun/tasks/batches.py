"""Batches of one's own as a kind of task: any model, any data, scored by what the batches' kind allows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from freerun.arguments import Arguments, at_least, between, brief
from freerun.batch import Batch
from freerun.data.files import DataFile
from freerun.data.user_code import seeded, user_function
from freerun.diagnostics import DiagnosisOptions
from freerun.diagnostics.token_runs import answer_positions
from freerun.errors import UserError
from freerun.generation import Generated, draw_for, generate, point_prediction
from freerun.keys import fold
from freerun.methods.base import gold_outputs
from freerun.metrics.outputs import first_divergence
from freerun.metrics.table import BATCHES_OF_IDS, BATCHES_OF_VALUES, TaskReport
from freerun.rollin.model import eval_mode, explained_errors, forward
from freerun.tasks.base import DataTask, DiagnosisInput, Evaluation, Examples
from freerun.tasks.batch_data import ROWS, BatchCodec, BatchData, Decode, moments
from freerun.tasks.naive_rows import median
from freerun.tasks.sample_paths import by_lead, law_problems, law_scores
from freerun.types import evenly


@dataclass(frozen=True)
class BatchSettings(Arguments):
    """How a model is run freely.

    Args:
        length_margin: entries of a free run beyond the longest row of a batch, for data with an end symbol.
        num_samples: of values, sample paths of every row, by which the law that a model with a head predicts is scored
            (CRPS, pinball loss, coverage); 0: the one forecast alone.
    """

    length_margin: int = at_least(0, 5)
    num_samples: int = between(0, 10_000, 0)


@dataclass(frozen=True)
class PythonData:
    """Batches that a function of your own makes.

    Args:
        make: ``FILE.py:FUNCTION``, the file relative to the recipe's; the function returns a mapping of train, dev and
            test to batches, or DataLoaders. It is called under fixed seeds, as every run must see the same data.
        arguments: of the function, by name.
        targets: ``auto`` is what the batches hold.
        sha256: the beginning of the hash of the file and of what it imports from its folder; resolved recipes hold it.
    """

    kind: Literal["python"] = "python"
    make: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    targets: Literal["auto", "ids", "values"] = "auto"
    sha256: str | None = None

    def __post_init__(self) -> None:
        function = user_function(self.make, "mine.py:make_data", self.sha256)
        object.__setattr__(self, "sha256", function.sha256)
        object.__setattr__(self, "make", f"{function.path.resolve()}:{function.name}")
        found = "values" if self.load().values else "ids"
        if self.targets not in ("auto", found):
            raise UserError(f"targets = {self.targets!r}, and the batches of {self.make} hold {found}")
        object.__setattr__(self, "targets", found)

    def load(self) -> BatchData:
        """The batches; made once in a process."""
        return _made(self.make, str(self.sha256), json.dumps(dict(self.arguments), sort_keys=True, default=str))


@lru_cache(4)
def _made(make: str, sha256: str, arguments: str) -> BatchData:
    function = user_function(make, "mine.py:make_data", sha256)
    with torch.random.fork_rng(), seeded(0):
        return BatchData(function(json.loads(arguments)))


class BatchTask(DataTask):
    """Batches of ids, scored by edit errors, wrong entries and exact matches."""

    models = ("python",)
    data_sections: ClassVar[Mapping[str, type[Any]]] = {"python": PythonData}
    train_defaults: ClassVar[Mapping[str, Any]] = {"batch_size": 1, "bucket": False}
    evaluate_section = BatchSettings
    report: ClassVar[TaskReport] = BATCHES_OF_IDS
    select = "edit_error"

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``items`` of its batches) or "test"."""
        batches = self.data.splits[split]
        if split == "dev":
            batches = [batches[n] for n in evenly(len(batches), self.items)]
        return evaluate_batches(model, batches, _scored(self.data, self.settings))

    def examples(self, count: int) -> Examples:
        """At most ``count`` rows of the first training batch, evenly spaced: rows of several may have no one length."""
        batch = self.data.splits["train"][0]
        chosen = evenly(batch.size, count)
        part = batch.select(torch.tensor(chosen, device=batch.targets.device))
        sample = f"{len(chosen)} of {batch.size:,} rows of the first training batch, evenly spaced"
        return Examples(part, [f"row {n + 1}" for n in chosen], sample, self.data.decode)

    @staticmethod
    def load(settings: PythonData, model: object) -> BatchData:
        """The batches of the function."""
        return settings.load()

    @staticmethod
    def end(data: BatchData) -> int | None:
        return data.end

    @staticmethod
    def sizes(data: BatchData) -> tuple[int, ...]:
        """None: the model's function knows its data."""
        return ()

    @staticmethod
    def evaluate_problems(settings: BatchSettings, head: str | None, select: str) -> list[tuple[str, str, str]]:
        """Ids have no sample paths to score."""
        found = "`num_samples` are draws from a law of values, and the batches hold ids"
        return [("evaluate.num_samples", found, "leave it out")] if settings.num_samples else []

    @staticmethod
    def codec(description: Mapping[str, Any]) -> BatchCodec:
        """Kind and end symbol."""
        return BatchCodec(description["kind"] == "batches of values", description["end"])

    @staticmethod
    def score(
        model: Module, codec: BatchCodec, settings: BatchSettings, data: BatchData | None, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """The number of test rows, and the scores on them."""
        if file is not None or data is None:
            raise UserError("batches of Python code are in no file: leave --data out, and change the function instead")
        scores = evaluate_batches(model, data.splits["test"], _scored(data, settings))
        return {"data": "test batches", "rows": len(scores.items)}, scores

    @staticmethod
    def generate_rows(model: Module, data: BatchData, settings: BatchSettings) -> Iterator[str]:
        """A JSON line for each test row: what the model outputs running freely, and the reference."""
        for batch in data.splits["test"]:
            run = run_freely(model, batch, data.end, 0 if data.end is None else settings.length_margin)
            for row in range(batch.size):
                reference = batch.targets[row][batch.mask[row]]
                size = int(run.lengths[row]) if data.end is not None else len(reference)
                yield json.dumps({"output": run.entries[row, :size].tolist(), "reference": reference.tolist()})

    @staticmethod
    def diagnosis_input(
        model: Module, codec: BatchCodec, settings: BatchSettings, data: BatchData, items: int | None
    ) -> DiagnosisInput:
        """Test rows."""
        batches, left = list[Batch](), math.inf if items is None else items
        for batch in data.splits["test"]:
            if left > 0:
                rows = torch.arange(min(batch.size, left if items is not None else batch.size))
                batches.append(batch.select(rows))
                left -= len(rows)
        return "test batches", batches, DiagnosisOptions(end_symbol=data.end, moments=data.scale, decode=data.decode)


class ValueBatchTask(BatchTask):
    """Batches of real values, scored by their errors over each row."""

    report: ClassVar[TaskReport] = BATCHES_OF_VALUES
    select = "nrmse"
    real_valued = True

    @staticmethod
    def evaluate_problems(settings: BatchSettings, head: str | None, select: str) -> list[tuple[str, str, str]]:
        """Paths, and scores of them, need a model with a head."""
        return law_problems(settings, head, select)


def batch_task(data: BatchData, items: int | None = None, settings: BatchSettings | None = None) -> BatchTask:
    """The task of batches: of ids, or of values."""
    return (ValueBatchTask if data.values else BatchTask)(data, settings, items)


def on_device(model: Any, batch: Batch) -> Batch:
    """The batch on the device of the model's parameters, if it has any."""
    device = next((p.device for p in model.parameters()), None) if isinstance(model, Module) else None
    return batch if device is None else batch.to(device)


def run_freely(model: Any, batch: Batch, end: int | None, margin: int = 0, key: int = 0) -> Generated:
    """What a model outputs running freely, greedily or in points: each row's answer, and ``margin`` entries more."""
    draw = "greedy" if batch.is_discrete else draw_for(model)
    length = answer_positions(batch).shape[1] + margin
    return generate(model, batch, length=length, end=end, beams=1, draw=draw, key=key)


@dataclass(frozen=True, eq=False)
class Scored:
    """How batches are scored.

    Args:
        end: id of the end symbol, for ids.
        scale: (means, standard deviations), (values,) each: what errors are in; None: those of these targets.
        margin: entries of a free run beyond a batch's longest row, where there is an end symbol.
        frequencies: how often each id stands in training; (): in these targets.
        decode: from ids to their symbols; None: the numbers.
        num_samples: of values, sample paths of each row that its law is scored by.
    """

    __repr__ = brief

    end: int | None = None
    scale: tuple[Tensor, Tensor] | None = None
    margin: int = 5
    frequencies: Sequence[float] = ()
    decode: Decode | None = None
    num_samples: int = 0

    def frequent(self, batches: Sequence[Batch]) -> int:
        """The most frequent id, but for the end symbol."""
        counts = torch.tensor(self.frequencies)
        if not len(counts):
            counts = torch.bincount(torch.cat([batch.targets[batch.mask].cpu() for batch in batches]))
        if self.end is not None and self.end < len(counts):
            counts[self.end] = -1
        return int(counts.argmax())


def _scored(data: BatchData, settings: BatchSettings) -> Scored:
    margin, samples = settings.length_margin, settings.num_samples
    return Scored(data.end, data.scale, margin, data.frequencies, data.decode, samples)


def evaluate_batches(model: Any, batches: Sequence[Batch], about: Scored) -> Evaluation:
    """Scores on gold history and running freely, those of every row, and those of what needs no model.

    Of ids that is the most frequent one, as often as gold has ids; of values the last one known and the mean.

    Args:
        model: its mode is restored afterwards.
        batches: all of one kind.
        about: how they are scored.
    """
    scores: list[dict[str, Tensor]] = []
    texts: list[tuple[str, str]] = []
    values = not batches[0].is_discrete
    scale = moments(batches) if values and about.scale is None else about.scale
    frequent = 0 if values else about.frequent(batches)
    with eval_mode(model), torch.no_grad(), explained_errors(model):
        for number, batch in enumerate(batches):
            here = on_device(model, batch)
            if values:
                assert scale is not None
                moments_here = [each.to(here.targets.device) for each in scale]
                scores.append(_value_scores(model, here, *moments_here))
                if about.num_samples:
                    # no two rows of the batches have one noise
                    numbered = here.replace(rows=torch.arange(here.size, device=here.targets.device) + number * ROWS)
                    scores[-1] |= _law_scores(model, numbered, about.num_samples, *moments_here)
            else:
                found, pairs = _id_scores(model, here, about, frequent)
                scores.append(found)
                texts += pairs
    joined = {name: _joined([each[name].cpu() for each in scores]) for name in scores[0]}
    if not bool((joined["positions"] > 0).any()):
        raise UserError("the batches have no position that counts (mask True)")
    kept = joined["positions"] > 0
    joined = {name: column[kept] for name, column in joined.items()}
    if values:
        return _value_evaluation(joined)
    return _id_evaluation(joined, [text for text, there in zip(texts, kept.tolist(), strict=True) if there])


def _id_scores(
    model: Any, batch: Batch, about: Scored, frequent: int
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Numbers of each row; its output and reference in symbols, with blanks between them."""
    from rapidfuzz.distance import Levenshtein

    end = about.end
    outputs = forward(model, batch).float()
    losses = F.cross_entropy(outputs.transpose(1, 2), batch.targets.masked_fill(~batch.mask, 0), reduction="none")
    wrong = (outputs.argmax(-1) != batch.targets) & batch.mask
    where = answer_positions(batch)
    inside = where < batch.time
    clipped = where.clamp_max(batch.time - 1)
    gold, mask = batch.targets.gather(1, clipped), batch.mask.gather(1, clipped) & inside
    run = run_freely(model, batch, end, 0 if end is None else about.margin)
    free = run.entries[:, : where.shape[1]] != gold
    if end is not None:  # an output that has ended has nothing at the positions after, not another end
        free |= torch.arange(where.shape[1], device=free.device) > run.lengths[:, None]
    free &= mask
    edits: list[int] = []
    sizes: list[int] = []
    most: list[int] = []
    texts: list[tuple[str, str]] = []
    decode = about.decode or (lambda ids: [str(each) for each in ids])
    for row in range(batch.size):
        counted = mask[row].tolist()
        last = max((t for t, each in enumerate(counted) if each), default=-1)
        reference = [each for each, here in zip(gold[row].tolist(), counted, strict=True) if here]
        size = last + 1 if end is None else int(run.lengths[row])
        # a position within the reference that does not count is in neither
        output = [each for t, each in enumerate(run.entries[row, :size].tolist()) if t > last or counted[t]]
        reference = [each for each in reference if each != end]
        edits.append(Levenshtein.distance(output, reference))
        sizes.append(len(reference))
        most.append(reference.count(frequent))
        texts.append((" ".join(decode(output)), " ".join(decode(reference))))
    numbers = {
        "positions": batch.mask.sum(1),
        "loss": losses.double().masked_fill(~batch.mask, 0).sum(1),
        "forced_errors": wrong.sum(1),
        "free_errors": free.sum(1),
        "edits": torch.tensor(edits),
        "length": torch.tensor(sizes),
        "most_frequent": torch.tensor(most),
    }
    return numbers, texts


def _id_evaluation(scores: Mapping[str, Tensor], texts: Sequence[tuple[str, str]]) -> Evaluation:
    positions, length = float(scores["positions"].sum()), float(scores["length"].sum())
    items = [
        {
            "source": f"row {n + 1}", "output": texts[n][0], "references": [texts[n][1]], "edits": edits,
            "length": size, "free_errors": free, "forced_errors": forced,
            "positions": count, "right": edits == 0,
        }
        for n, (edits, size, free, forced, count) in enumerate(
            zip(*(scores[name].tolist() for name in ("edits", "length", "free_errors", "forced_errors", "positions")),
                strict=True)
        )
    ]  # fmt: skip
    forced = {
        "loss": float(scores["loss"].sum()) / positions,
        "token_error": 100 * float(scores["forced_errors"].sum()) / positions,
        "exact_match": 100 * float((scores["forced_errors"] == 0).double().mean()),
    }
    free = {
        "edit_error": 100 * float(scores["edits"].sum()) / length if length else math.nan,
        "token_error": 100 * float(scores["free_errors"].sum()) / positions,
        "exact_match": 100 * float((scores["edits"] == 0).double().mean()),
    }
    missed = length - float(scores["most_frequent"].sum())
    free |= {
        "most_frequent_edit_error": 100 * missed / length if length else math.nan,
        "most_frequent_token_error": 100 * missed / positions,
    }
    return Evaluation(forced, free, items)


def _value_scores(model: Any, batch: Batch, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    where = answer_positions(batch)
    clipped = where.clamp_max(batch.time - 1)
    mask = batch.mask.gather(1, clipped) & (where < batch.time)
    index = clipped[..., None].expand(-1, -1, batch.targets.shape[2])
    gold = batch.targets.gather(1, index).double()
    outputs, _ = gold_outputs(model, batch, draw_for(model))
    forced = point_prediction(model, outputs).gather(1, index).double()
    free = run_freely(model, batch, None, key=fold(0, "forecast")).entries.double()
    gone = first_divergence((free - mean) / scale)
    leads = torch.arange(1, where.shape[1] + 1, device=free.device)
    lost = (gone > 0)[:, None] & (leads >= gone[:, None])

    def errors(outputs: Tensor, lost: Tensor | None = None) -> Tensor:
        far = (((outputs - gold) / scale) ** 2).masked_fill(gold.isnan(), 0).sum(-1)
        square = (far / (~gold.isnan()).sum(-1)).masked_fill(~mask, 0)
        return square if lost is None else square.masked_fill(lost & mask, math.inf)

    squares, positions = errors(free, lost), mask.sum(1)
    count = positions.clamp_min(1)
    last = batch.history[torch.arange(batch.size), (where[:, 0] - 1).clamp_min(0)].double()
    known = (where[:, 0] > 0) & last.isfinite().all(-1)
    last = torch.where(known[:, None], last, mean.to(last.dtype))  # of a row without a past the mean
    return {
        "known": known,
        **{
            name: errors(prediction.expand_as(gold)).sum(1)
            for name, prediction in (("last_value", last[:, None]), ("mean", mean))
        },
        "positions": positions,
        "squared": squares.sum(1),
        "nrmse": (squares.sum(1) / count).sqrt(),
        "one_step_nrmse": (errors(forced).sum(1) / count).sqrt(),
        "diverged_at": gone,
        "by_lead": squares.sqrt().masked_fill(~mask, math.nan),
        "forced_by_lead": errors(forced).sqrt().masked_fill(~mask, math.nan),
    }


def _law_scores(model: Any, batch: Batch, samples: int, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Sums over the positions of each row of what sample paths are scored by, and (rows, leads) of some of them."""
    where = answer_positions(batch)
    clipped = where.clamp_max(batch.time - 1)
    gold = batch.targets.gather(1, clipped[..., None].expand(-1, -1, batch.targets.shape[2]))
    there = (batch.mask.gather(1, clipped) & (where < batch.time))[..., None] & ~gold.isnan()
    draw, key = draw_for(model, "sample"), fold(0, "sample paths")
    paths = generate(model, batch, length=where.shape[1], draw=draw, key=key, num_samples=samples).entries
    each = law_scores((paths.double() - mean) / scale, (gold.double() - mean) / scale)
    leads = {name: by_lead(score, there) for name, score in each.items()}
    return {name: score.nansum(1) for name, score in leads.items()} | {f"{name}_by_lead": leads[name] for name in leads}


def _value_evaluation(scores: Mapping[str, Tensor]) -> Evaluation:
    laws = [name for name in ("crps", "pinball", "covered_50", "covered_80") if name in scores]
    names = ("nrmse", "one_step_nrmse", "squared", "positions", "diverged_at", *laws)
    columns = {name: scores[name].tolist() for name in names}
    items = [
        {"source": f"row {n + 1}", **{name: column[n] for name, column in columns.items()}}
        for n in range(len(columns["nrmse"]))
    ]
    for item in items:
        item["diverged_at"] = item["diverged_at"] or None
    free = {
        "nrmse": median(scores["nrmse"]),
        "mse": float(scores["squared"].sum() / scores["positions"].sum()),
        "diverged": 100 * float((scores["diverged_at"] > 0).double().mean()),
    }
    for name in laws:
        share = float(scores[name].sum() / scores["positions"].sum())
        free |= {name.replace("covered", "coverage"): 100 * share} if "covered" in name else {name: share}
    for name in ("last_value", "mean") if bool(scores["known"].any()) else ("mean",):
        free[f"{name}_nrmse"] = median((scores[name] / scores["positions"]).sqrt())
        free[f"{name}_mse"] = float(scores[name].sum() / scores["positions"].sum())
    forced = {"nrmse": median(scores["one_step_nrmse"])}
    curves = {
        "free_running": scores["by_lead"].nanmedian(0).values.tolist(),
        "teacher_forced": scores["forced_by_lead"].nanmedian(0).values.tolist(),
    }
    if laws:
        curves["crps"] = scores["crps_by_lead"].nanmean(0).tolist()
        curves["coverage_80"] = (100 * scores["covered_80_by_lead"]).nanmean(0).tolist()
    return Evaluation(forced, free, items, curves)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Numbers of all rows; those by lead time, (rows, leads), filled up with NaN."""
    longest = max(part.shape[-1] for part in parts)
    filled = parts if parts[0].dim() == 1 else [F.pad(p, (0, longest - p.shape[1]), value=math.nan) for p in parts]
    return torch.cat([*filled])
