"""What a method is used on: symbols or values, and which losses and draws fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from freerun.config.source import nearest

__all__ = ["Trained", "draw_problem", "name_problem", "objective_problem"]

_IDS, _VALUES = "symbols", "values"
_OWN_LOSS = {"gaussian": "gaussian_nll", "student_t": "student_t_nll", "quantiles": "pinball"}
"""The loss of each distribution that a model may say of a value."""


@dataclass(frozen=True)
class Trained:
    """What a method must know of data and model.

    Args:
        values: whether the targets are real values, not ids.
        head: what the model says of a value: "point", or a distribution.
    """

    values: bool = False
    head: str = "point"

    @property
    def objectives(self) -> list[str]:
        """The losses that fit, beside "auto"."""
        from freerun.objectives import OBJECTIVES

        if not self.values:
            return [name for name in OBJECTIVES if name not in ("mse", *_OWN_LOSS.values())]
        return ["mse"] if self.head == "point" else [_OWN_LOSS[self.head]]

    def settled(self, cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with what a model that says a distribution needs: its own loss, and its mean fed back."""
        if self.head == "point":
            return dict(given)
        from freerun.draws import DRAWS

        known = cls.__dataclass_fields__
        settled = dict(given)
        if "objective" in known and settled.get("objective", "auto") == "auto":
            settled["objective"] = _OWN_LOSS[self.head]
        if "draw" in known and settled.get("draw", "auto") == "auto":
            settled["draw"] = DRAWS["expected"](head=self.head)
        return settled


def name_problem(name: str, trained: Trained) -> tuple[str, str | None] | None:
    """Problem and help where a method is for the other kind of targets.

    >>> name_problem("two_pass", Trained(values=True))[1]
    'use scheduled_sampling'
    """
    from freerun.methods import METHODS

    kind = _VALUES if trained.values else _IDS
    only, instead = METHODS[name].only_for or (kind, "")
    return None if only == kind else (f"{name} is for {only}; the data of this recipe are {kind}", f"use {instead}")


def objective_problem(given: Any, trained: Trained) -> tuple[str, str | None] | None:
    """Problem and help where a loss does not fit."""
    from freerun.objectives import OBJECTIVES

    allowed = ["auto", *trained.objectives]
    if given in allowed:
        return None
    use = f"use {' or '.join(allowed)}"
    if given == "cross_entropy":
        return "`objective` cross_entropy is for symbols; the data of a recipe are values", use
    if given in OBJECTIVES and not trained.values:
        return f"`objective` {given} is for values; the data of a recipe are symbols", use
    if given in OBJECTIVES:
        return f"`objective` {given} does not fit a model with head {trained.head}", use
    near = nearest(given, allowed) if isinstance(given, str) else None
    return (
        f"`objective` must be one of {', '.join(allowed)}; got {given!r}",
        f"did you mean {near}?" if near else None,
    )


def draw_problem(given: Any, trained: Trained) -> tuple[str, str | None] | None:
    """What a draw says that the data, or the model's head, do not bear out."""
    from freerun.draws import DRAWS

    names = {cls: name for name, cls in DRAWS.items()}
    name = given if isinstance(given, str) else names.get(type(given), "")
    if name == "auto" or name not in DRAWS:
        return None  # what is no draw at all, the method says
    if DRAWS[name].values != trained.values:
        allowed = ["auto", *(other for other, cls in DRAWS.items() if cls.values == trained.values)]
        kinds = (_VALUES, _IDS) if DRAWS[name].values else (_IDS, _VALUES)
        return (
            f"`draw` {name} is for {kinds[0]}; the data of a recipe are {kinds[1]}",
            f"use one of {', '.join(allowed)}",
        )
    if not trained.values:
        return None
    fitting = {"point": ["point"], "quantiles": ["expected", "quantile_sample"]}
    allowed = fitting.get(trained.head, ["expected", trained.head])
    if name in allowed and (name != "expected" or getattr(given, "head", trained.head) == trained.head):
        return None
    return f"`draw` {name} does not fit a model with head {trained.head}", f"use auto, {' or '.join(allowed)}"
