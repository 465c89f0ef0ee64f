"""What a recipe can say: one frozen dataclass a section; names, types, ranges and defaults are read from here.

``[model]`` is made of the keyword arguments of the classes in ``freerun.models.MODELS``, ``[train]`` is
``freerun.training.TrainSettings`` and the parameters of a method are the fields of its class in
``freerun.methods.METHODS``: nothing is written twice.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from torch.nn import Module

from freerun.arguments import Range, above, between, rule_field
from freerun.data.user_code import user_function
from freerun.distributions import Head
from freerun.errors import UserError
from freerun.models import MODELS, SCALED, make_model, without_weights
from freerun.models.forecasting.scaling import Centre
from freerun.models.pretrained import Pretrained

if TYPE_CHECKING:
    from freerun.training import TrainSettings


@dataclass(frozen=True)
class ModelSection:
    """The keyword arguments of a class of models, and the class; a ``[model]`` section."""

    model: ClassVar[type[Any]]

    def __post_init__(self) -> None:
        positional = [each for each in _arguments(self.model) if each.kind is not each.KEYWORD_ONLY]
        with without_weights():
            self.make(*[3 for each in positional if each.default is each.empty])

    def make(self, *sizes: int) -> Module:
        """The untrained model."""
        arguments = {each.name: getattr(self, each.name) for each in fields(self)}
        return make_model(arguments.pop("kind"), *sizes, **arguments)

    def __str__(self) -> str:
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        parts = [
            own["kind"],
            own.get("cell"),
            f"{own['layers']} layers, {own['heads']} heads" if "heads" in own else None,
        ]
        head = None if own.get("head", "point") == "point" else f"{own['head']} head"
        centre = None if own.get("centre", "none") == "none" else f"centred by the window's {own['centre']}"
        linear = "over a linear regression" if own.get("linear") else None
        return ", ".join(part for part in (*parts, f"size {own['size']}", head, centre, linear) if part)


@dataclass(frozen=True)
class ScaledSection(ModelSection):
    """A forecaster in units of its window, ``freerun.models.WindowScaled``.

    Args:
        centre: what of a window's own past is taken off all that is read, fed back and predicted: its ``"mean"``, its
            ``"last"`` value, or ``"none"``.
        deviation: divide by the deviation of the window's own past, too.
        linear: predict on top of a linear regression, which is fitted before training; the model starts there (left
            out: of models of layout "past" that are not ``residual``).
    """

    # chosen by measurement, see docs/vectors.md: levels move in most series that people have
    centre: Centre = "mean"
    deviation: bool = False
    linear: bool | None = None

    def __post_init__(self) -> None:
        if self.linear is None:
            own = self.model.layout == "past" and not getattr(self, "residual", False)
            object.__setattr__(self, "linear", own)
        super().__post_init__()


def _arguments(cls: type[Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(cls).parameters.values())


_RANGES = {
    **dict.fromkeys(("size", "embedding", "feed_forward"), Range(1, 10**6, whole=True)),
    **dict.fromkeys(("heads", "max_positions"), Range(1, whole=True)),
    **dict.fromkeys(("layers", "encoder_layers", "decoder_layers"), Range(1, 256, whole=True)),
    **dict.fromkeys(("dropout", "recurrent_dropout"), Range(0, 1, "[)")),
    "fed_back": Range(0, whole=True),
}
"""The numbers that a recipe may give a model: what its class refuses, and sizes that no machine holds."""


def _model_section(kind: str, cls: type[Any]) -> type[Any]:
    hints = get_type_hints(cls.__init__)
    arguments = [
        (
            each.name,
            hints[each.name],
            rule_field(_RANGES[each.name], each.default) if each.name in _RANGES else field(default=each.default),
        )
        for each in _arguments(cls)
        if each.kind is each.KEYWORD_ONLY
    ]
    doc = f"``freerun.models.{cls.__name__}``: {inspect.getdoc(cls)}"
    return make_dataclass(
        f"{cls.__name__}Section",
        [("kind", str, kind), *arguments],
        bases=(ScaledSection if kind in SCALED else ModelSection,),
        frozen=True,
        namespace={"model": cls, "__doc__": doc, "__module__": __name__},
    )


@dataclass(frozen=True)
class PythonModel:
    """A model that a function of your own makes.

    Args:
        make: ``FILE.py:FUNCTION``, the file relative to the recipe's; the function returns a new ``torch.nn.Module``.
            It is called under the run's seed, on data of other kinds than ``python`` with the sizes of the data
            (vocabularies, channels) first.
        arguments: of the function, by name.
        head: of values, what the model predicts of each: the value ("point"), or the law that its attribute ``head``
            names; the loss and what is fed back are by it.
        sha256: the beginning of the hash of the file and of what it imports from its folder; resolved recipes hold it.
    """

    kind: Literal["python"] = "python"
    make: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    head: Head = "point"
    sha256: str | None = None

    def __post_init__(self) -> None:
        function = user_function(self.make, "mine.py:make_model", self.sha256)
        object.__setattr__(self, "sha256", function.sha256)
        object.__setattr__(self, "make", f"{function.path.resolve()}:{function.name}")

    def build(self, *sizes: int) -> Module:
        """The untrained model."""
        model = user_function(self.make, "mine.py:make_model", self.sha256)(self.arguments, *sizes)
        if not isinstance(model, Module):
            raise UserError(f"{self.make} must return a torch.nn.Module; got {type(model).__name__}")
        return model

    def __str__(self) -> str:
        return f"{self.make} ({self.sha256})"


MODEL_KINDS: dict[str, type[Any]] = {kind: _model_section(kind, cls) for kind, cls in MODELS.items()}
MODEL_KINDS["huggingface"] = Pretrained
MODEL_KINDS["python"] = PythonModel


ModelSettings = ModelSection | Pretrained | PythonModel


@dataclass(frozen=True)
class MethodSettings:
    """A method by name, with its parameters as the recipe writes them (numbers, words, inline tables).

    Args:
        name: a name in ``freerun.methods.METHODS``.
        parameters: plain TOML values; ``{schedule = "linear", ...}``, ``{draw = "sample", ...}``,
            ``{gate = "every", ...}`` and ``{engine = "window", ...}`` become objects when the method is built.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def table(self) -> dict[str, Any]:
        """As a TOML table: the name and the parameters side by side."""
        return {"name": self.name, **self.parameters}


Word = Literal["matched", "confusion", "equal_cost", "equal_seconds", "no_history"]
"""A control, in a recipe; see ``CONTROLS``."""


@dataclass(frozen=True)
class Arm:
    """One method of a comparison, under the label that tables, figures and folders show.

    Args:
        label: up to 100 characters.
        method: a method's name, or a table with it and its parameters, as in ``[method]``. ``rate = { matched_to =
            LABEL }`` of a noise method makes the arm the control of another one: as many wrong entries at each update,
            but not the model's own; ``rate = "matched"`` is that of the one arm with the model's own outputs.
        control: instead of a method a control by its word: ``matched``: random errors, as many at each update.
            ``confusion``: as many, drawn as the model confused each symbol (of values: its own residuals at each lead
            time) in the same 25 updates. ``equal_cost``: teacher forcing for as many forwards. ``equal_seconds``: for
            as many updates as the arm's training time had room for. ``no_history``: the same entry everywhere.
        of: label of the arm that it controls; may be left out where one arm feeds the model's own outputs.

    >>> Arm("from 1 to 0.5", MethodSettings("scheduled_sampling")).slug
    'from-1-to-0.5'
    """

    label: str
    method: MethodSettings
    control: Word | None = None
    of: str | None = None

    def __post_init__(self) -> None:
        known = {"confusion_noise": "confusion", "no_history": "no_history"}.get(self.method.name)
        word = self.control or known or (None if self.reference is None else "matched")
        object.__setattr__(self, "control", word)

    @property
    def reference(self) -> str | None:
        """Label of the arm whose run must have finished before this one's: something in it is measured; or None."""
        if self.control in EQUAL:
            return self.of
        return next(filter(None, map(matched_label, self.method.parameters.values())), None)

    @property
    def slug(self) -> str:
        """The label as a file name: letters and digits of any script."""
        return re.sub(r"[^\w.-]+", "-", self.label).strip("-.") or "arm"


def matched_label(value: Any) -> str | None:
    """Return LABEL of a value ``{matched_to = LABEL}`` of a method's parameter, None of any other."""
    return str(value["matched_to"]) if isinstance(value, Mapping) and "matched_to" in value else None


def _matched(of: str, values: bool) -> dict[str, Any]:
    matched = {"matched_to": of}
    if values:
        return {"name": "gaussian_noise", "std": matched, "rate": matched}
    return {"name": "token_noise", "rate": matched, "exclude_gold": True}


def _confusion(of: str, values: bool) -> dict[str, Any]:
    return {"name": "confusion_noise", "rate": {"matched_to": of}, "law": {"matched_to": of}}


CONTROLS: dict[Word, Callable[[str, bool], dict[str, Any]]] = {
    "matched": _matched,
    "confusion": _confusion,
    "equal_cost": lambda of, values: {"name": "teacher_forcing"},
    "equal_seconds": lambda of, values: {"name": "teacher_forcing"},
    "no_history": lambda of, values: {"name": "no_history"},
}
"""Word of a control -> from the label of the arm it controls, and whether targets are values, to its method's table.

``matched``: as many random errors at each update. ``confusion``: as many, drawn as the arm made them. ``equal_cost``:
teacher forcing for as many forwards as the arm's run took. ``equal_seconds``: for as many updates as the seconds of its
training are worth, by updates of teacher forcing that the run timed at its end. ``no_history``: a decoder that sees the
context alone.
"""
EQUAL: tuple[Word, ...] = ("equal_cost", "equal_seconds")
"""Controls that are as long as the arm's run was dear."""


@dataclass(frozen=True)
class CompareSettings:
    """What ``freerun compare`` runs: every arm with every seed.

    Args:
        seeds: one run of each arm for each; the same seed gives the same initial weights and data order.
        workers: runs at a time.
        margin: the largest difference in the score of the verdict that does not matter, in its unit; of an error that
            is compared by its ratio (NRMSE) a factor, such as 1.1. Arms whose interval lies within are "as good".
        arms: at least one; those matched to another arm run after it.
    """

    seeds: tuple[int, ...] = (0,)
    workers: int = between(1, 1024, 1)
    margin: float | None = above(0, None)
    arms: tuple[Arm, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """All settings of a run; made by ``freerun.recipes.load_recipe``."""

    name: str
    seed: int
    data: Any
    model: ModelSettings
    method: MethodSettings
    train: TrainSettings
    evaluate: Any
    compare: CompareSettings | None = None
