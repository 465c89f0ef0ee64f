"""What the training loop requires of a task and of a method, and the scores of sequences in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from freerun.arguments import COUNT, brief
from freerun.batch import Batch
from freerun.data.files import DataFile
from freerun.errors import UserError
from freerun.generation import generate
from freerun.metrics.outputs import sequence_errors
from freerun.metrics.text import bleu_signature
from freerun.rollin.model import eval_mode
from freerun.types import Outcome, evenly

if TYPE_CHECKING:
    from freerun.diagnostics import DiagnosisOptions
    from freerun.metrics.table import TaskReport


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on a split, fed gold and running freely.

    Args:
        teacher_forced: metric -> value, with the gold history as input.
        free_running: metric -> value, with the model's own outputs as input.
        items: one JSON-able record per item, for paired comparisons.
        curves: name -> numbers by lead time, for tasks that have them.
        forecasts: a few complete items, for figures.
        off_start: free-running score -> whether it is clearly better than before training; left out: start is no model.
    """

    __repr__ = brief

    teacher_forced: Mapping[str, float]
    free_running: Mapping[str, float]
    items: list[dict[str, Any]] = field(default_factory=list)
    curves: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    forecasts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    off_start: Mapping[str, bool] = field(default_factory=dict[str, bool])


@dataclass(frozen=True, eq=False)
class Examples:
    """Some training examples, and how they are displayed.

    Args:
        batch: a row each.
        sources: in words, of each row.
        sample: which they are, in words.
        decode: of ids: to their symbols; None: the numbers.
        in_units: of values: of each row, from normalised to those of the data; None: they are.
        channels: of values: their names.
    """

    __repr__ = brief

    batch: Batch
    sources: Sequence[str]
    sample: str
    decode: Callable[[Sequence[int]], Sequence[str]] | None = None
    in_units: Sequence[Callable[[Tensor], Tensor]] | None = None
    channels: Sequence[str] = ()


class Task(Protocol):
    """Data to train on and a way to score a model."""

    @property
    def lengths(self) -> Sequence[int]: ...
    @property
    def fingerprint(self) -> str: ...
    def batch(self, indices: list[int], rows: Tensor) -> Batch: ...
    def evaluate(self, model: Module, split: str) -> Evaluation: ...
    def describe(self) -> dict[str, Any]: ...


DiagnosisInput = tuple[str, list[Batch], "DiagnosisOptions"]
"""The data's name and the input of ``freerun.diagnostics.diagnose``: batches of test items, options."""


class DataTask:
    """Data to train on and how a model is scored on them: a ``Task`` of the training loop, and a kind of task.

    What recipes, command line and reports know of a kind stands on its class. What a finished run can do without its
    data are static methods, which take the run's model, the codec of ``codec`` and an ``[evaluate]`` section.

    Args:
        data: has ``lengths``, ``fingerprint``, ``codec``, ``batch(indices, rows)`` and ``header()``.
        settings: how models are scored; the defaults of ``evaluate_section`` if left out.
        items: items of dev that are scored, spread evenly; None: all. Test is always scored completely.

    Raises:
        UserError: ``items`` is below 1.
    """

    models: ClassVar[tuple[str, ...]]
    """Kinds of model that fit; the first is the usual one."""
    data_sections: ClassVar[Mapping[str, type[Any]]]
    """Kinds of ``[data]`` section."""
    evaluate_section: ClassVar[type[Any]]
    """The class of the ``[evaluate]`` section."""
    report: ClassVar[TaskReport]
    """Which scores are compared, and how they are called."""
    select: ClassVar[str]
    """The dev score that the best weights are chosen by, where a recipe has no ``select``."""
    real_valued: ClassVar[bool] = False
    """True if the targets are real values, not ids."""
    outputs_table: ClassVar[bool] = False
    """True if an output is a table, a file of its own, and not a line."""
    one_output_per_line: ClassVar[bool] = False
    """True if output must stay line-aligned with input, blank lines included."""
    train_defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of ``[train]`` that are other ones for this kind."""
    needs_training_data: ClassVar[bool] = False
    """True if a score on any file needs the data that the run was trained on, too."""

    __repr__ = brief

    def __init__(self, data: Any, settings: Any = None, items: int | None = None) -> None:
        if items is not None:
            COUNT.check(items=items)
        self.data = data
        self.settings = self.evaluate_section() if settings is None else settings
        self.items = items
        # a missing package is reported before training, not after the first thousand updates
        self.signature = bleu_signature(*found) if (found := self.tokenizers) else None

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """sacreBLEU's tokenizers, for tasks with BLEU."""
        return ()

    @property
    def lengths(self) -> list[int]:
        """Length of every training example, in positions."""
        return self.data.lengths

    @property
    def fingerprint(self) -> str:
        """The data's."""
        return self.data.fingerprint

    def batch(self, indices: Sequence[int], rows: Tensor) -> Batch:
        """The training batch of some examples; see the data's ``batch``."""
        return self.data.batch(indices, rows)

    def examples(self, count: int) -> Examples:
        """At most ``count`` training examples, evenly spaced."""
        chosen = evenly(len(self.lengths), count)
        found = self.named(self.batch(chosen, torch.arange(len(chosen))), chosen)
        sample = f"{len(chosen)} of {len(self.lengths):,} {self.report.training_noun}, evenly spaced"
        return replace(found, sample=sample)

    def named(self, batch: Batch, numbers: Sequence[int]) -> Examples:
        """The batch of training examples of these numbers, with how it is displayed."""
        noun = self.report.training_noun.removesuffix("s")
        return Examples(batch, [f"{noun} {n + 1:,}" for n in numbers], self.report.training_noun)

    def describe(self) -> dict[str, Any]:
        """What a user of the trained model needs: see the codec's ``describe``."""
        return self.data.codec.describe()

    def header(self) -> list[str]:
        """What the data are, in lines."""
        return [*self.data.header(), *([f"BLEU: {self.signature}"] if self.signature else [])]

    def evaluate(self, model: Module, split: str) -> Evaluation:
        """Scores on "dev" (``items`` of it) or "test"."""
        raise NotImplementedError

    @staticmethod
    def load(settings: Any, model: Any) -> Any:
        """The data of a ``[data]`` section, in the shape that the model of a ``[model]`` section reads."""
        raise NotImplementedError

    @staticmethod
    def sizes(data: Any) -> tuple[int, ...]:
        """Vocabulary sizes, or numbers of channels: the first arguments of a model's class."""
        raise NotImplementedError

    @staticmethod
    def begin(model: Module, data: Any) -> None:
        """Give an untrained model what it takes from the data before any training."""

    @staticmethod
    def positions(data: Any, settings: Any) -> tuple[int, str]:
        """How many positions a model with a limit needs for the data, and what needs them, in words."""
        raise NotImplementedError

    @staticmethod
    def evaluate_problems(settings: Any, head: str | None, select: str) -> list[tuple[str, str, str]]:
        """What of ``[evaluate]``, and of ``train.select``, does not go with a model of a head: key, problem, help."""
        return []

    @staticmethod
    def frequencies(data: Any) -> tuple[float, ...]:
        """How often each target symbol stands in the training targets; () where there are no symbols."""
        return data.frequencies

    @staticmethod
    def end(data: Any) -> int | None:
        """The id that ends every target; None: there is none, or the model's own."""
        return None

    @staticmethod
    def codec(description: Mapping[str, Any]) -> Any:
        """The codec that a saved model was described by."""
        raise NotImplementedError

    @staticmethod
    def score(
        model: Module, codec: Any, settings: Any, data: Any, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        """Facts for people about a file or the test split, and the scores on it."""
        raise NotImplementedError

    @staticmethod
    def line_problems(
        model: Module, codec: Any, settings: Any, lines: Sequence[str], origins: Sequence[str]
    ) -> list[list[str]]:
        """What stands against an answer to each line of an input."""
        return [[] for _ in lines]

    @staticmethod
    def table_lines(codec: Any, file: DataFile) -> tuple[list[str], list[str]] | None:
        """The rows of a table as lines of an input, and what problems call them; None: the file holds lines."""
        return None

    @staticmethod
    def generate_lines(model: Module, codec: Any, settings: Any, lines: Sequence[str]) -> list[str]:
        """The free-running output for each line of an input."""
        raise NotImplementedError

    @staticmethod
    def generate_table(model: Module, codec: Any, settings: Any, file: DataFile) -> list[str]:
        """Where ``outputs_table``: the free-running output for a table, in lines of a table."""
        raise NotImplementedError

    @classmethod
    def unanswered(cls, line: str) -> str:
        """What stands in the output for a line without an answer, so that line n answers line n."""
        return ""

    @staticmethod
    def trial_batch(codec: Any, rows: int) -> Batch:
        """A small random batch of the codec's symbols, of different lengths, to try a model on."""
        raise NotImplementedError

    @staticmethod
    def diagnosis_input(model: Module, codec: Any, settings: Any, data: Any, items: int | None) -> DiagnosisInput:
        """Test items for a diagnosis, ``items`` of them, spread evenly."""
        raise NotImplementedError


class Method(Protocol):
    """The part of a training method that the loop uses."""

    @property
    def name(self) -> str: ...
    def run(self, model: Any, batch: Batch, step: int, key: int = 0) -> Outcome: ...


def full_score_name(select: str) -> str:
    """The score that ``select`` means, with its side.

    >>> full_score_name("per"), full_score_name("teacher_forced_loss")
    ('free_running_per', 'teacher_forced_loss')
    """
    return select if select.startswith(("free_running_", "teacher_forced_")) else f"free_running_{select}"


def selected_score(evaluation: Evaluation, select: str) -> float:
    """The score that ``select`` names; a bare metric is a free-running one.

    Raises:
        UserError: there is no such score.

    >>> selected_score(Evaluation({"loss": 0.5}, {"per": 7.0}), "per")
    7.0
    >>> selected_score(Evaluation({"loss": 0.5}, {"per": 7.0}), "teacher_forced_loss")
    0.5
    """
    scores = {f"free_running_{name}": value for name, value in evaluation.free_running.items()}
    scores |= {f"teacher_forced_{name}": value for name, value in evaluation.teacher_forced.items()}
    name = full_score_name(select)
    if name not in scores:
        raise UserError(f"select = {select!r} names no score of this task; there are: {', '.join(sorted(scores))}")
    return float(scores[name])


def parts(numbers: Sequence[int], size: int = 128) -> list[list[int]]:
    """Numbers of items, ``size`` at a time.

    >>> parts([0, 2, 4], 2)
    [[0, 2], [4]]
    """
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def parts_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of the items, ``size`` of similar length at a time, so that little is padding.

    >>> parts_by_length([3, 1, 2], 2)
    [[1, 2], [0]]
    """
    return parts(sorted(range(len(lengths)), key=lengths.__getitem__), size)


Make = Callable[[list[int]], Batch]
"""Numbers of examples -> their batch."""


def teacher_forced_errors(model: Module, make: Make, lengths: Sequence[int], batch_size: int) -> tuple[Tensor, Tensor]:
    """(n,) float64 summed loss in nats and (n,) int64 wrong choices of each example, with the gold history as input."""
    losses = torch.zeros(len(lengths), dtype=torch.float64)
    errors = torch.zeros(len(lengths), dtype=torch.int64)
    with eval_mode(model), torch.no_grad():
        for numbers in parts_by_length(lengths, batch_size):
            batch = make(numbers).to(model_device(model))
            outputs = model(batch).float()
            loss = F.cross_entropy(outputs.transpose(1, 2), batch.targets, reduction="none")
            losses[numbers] = loss.double().masked_fill(~batch.mask, 0).sum(1).cpu()
            errors[numbers] = sequence_errors(outputs, batch.targets, batch.mask).cpu()
    return losses, errors


def free_run(
    model: Module, make: Make, lengths: Sequence[int], settings: Any, length: int, *, end: int | list[int] | None = 0
) -> list[list[int]]:
    """At most ``length`` output ids for each example: up to the end symbol ``end``, and that (the first) after it."""
    outputs: list[list[int]] = [[]] * len(lengths)
    beams, penalty = settings.beams, settings.length_penalty
    with eval_mode(model), torch.no_grad():
        for numbers in parts_by_length(lengths, settings.batch_size):
            batch = make(numbers).to(model_device(model))
            result = generate(model, batch, length=length, end=end, beams=beams, length_penalty=penalty)
            for number, entries in zip(numbers, result.entries.tolist(), strict=True):
                outputs[number] = entries
    return outputs


def model_device(model: Module) -> torch.device:
    """The device of a model's parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def missing_path(what: str, example: str) -> str:
    """The problem of a ``[data]`` section without a path."""
    return (
        f'`path` is missing: {what}\n  help: give it with --set data.path={example}, or write path = "{example}" under '
        "[data]"
    )


_OWN_LOSS = {"gaussian": "gaussian_nll", "student_t": "student_t_nll", "quantiles": "pinball"}
"""The loss of each distribution that a model may predict of a value."""
_OF_POINTS = ("mse", "mae", "huber")
"""The losses of a model that predicts the value itself."""


@dataclass(frozen=True)
class TargetFacts:
    """The facts about data and model that a method depends on.

    Args:
        values: whether the targets are real values, not ids.
        head: what the model predicts of a value: "point", or a distribution.
    """

    values: bool = False
    head: str = "point"
    __repr__ = brief

    @property
    def objectives(self) -> list[str]:
        """The losses that fit, beside "auto"."""
        from freerun.objectives import OBJECTIVES

        if not self.values:
            return [name for name in OBJECTIVES if name not in (*_OF_POINTS, *_OWN_LOSS.values())]
        return [*_OF_POINTS] if self.head == "point" else [_OWN_LOSS[self.head]]

    def settled(self, cls: type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with what a model of distributions needs: its own loss, and its mean as feedback."""
        settled = dict(arguments)
        if self.head == "point":
            return settled
        from freerun.draws import DRAWS

        known = cls.__dataclass_fields__
        if "objective" in known and settled.get("objective", "auto") == "auto":
            settled["objective"] = _OWN_LOSS[self.head]
        if "draw" in known and settled.get("draw", "auto") == "auto":
            settled["draw"] = DRAWS["expected"](head=self.head)
        return settled
