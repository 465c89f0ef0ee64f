"""What checks find, and how a model is tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import out_of_memory
from freerun.rollin.model import stepping, supports
from freerun.types import Stepper

# a refusal; (another status, explanation); None: nothing stands against the model
Verdict = str | tuple[str, str] | None


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: of the check.
        status: "ok", "refused", "warning" or "not applicable".
        explanation: one line: what was tried and found, and for a refusal or warning what to do.
    """

    name: str
    status: str
    explanation: str

    def __str__(self) -> str:
        return f"{self.status:<14}  {self.name}: {self.explanation}"


@dataclass(frozen=True, repr=False)
class Report:
    """What all checks found; printed, a line each."""

    findings: tuple[Finding, ...]

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings that stand against the model."""
        return self._of("refused")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that may be meant so, and often are not."""
        return self._of("warning")

    def _of(self, status: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status == status)

    def __getitem__(self, name: str) -> Finding:
        return next(finding for finding in self.findings if finding.name == name)

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self.findings)

    def __repr__(self) -> str:
        counts = Counter(finding.status for finding in self.findings)
        named = ", ".join(finding.name for finding in (*self.refused, *self.warnings))
        counted = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
        return f"Report({counted}{': ' * bool(named)}{named})"


class Raised(Exception):  # noqa: N818 - carries what a model raised
    """A model raised; the text names what it was tried on."""


@dataclass(frozen=True)
class Check:
    """One check of a model."""

    # what it tries. Its name is the check's; its docstring says what holds of a model that passes
    function: Callable[..., Verdict]
    tried: str = "the batch"  # what the model was tried on, where ``function`` has not named it
    remedy: str = ""  # what to do where the model raises
    needs: type[Any] | None = None  # a protocol that the model must have, else it does not apply

    @property
    def _function(self) -> Callable[..., Verdict]:
        return self.function.func if isinstance(self.function, partial) else self.function

    @property
    def name(self) -> str:
        """Its name in reports."""
        return self._function.__name__.strip("_")

    def __call__(self, probe: Any) -> Finding:
        """Return the finding; what the model raises is one, so that the other checks run too."""
        if self.needs and (steps := stepping(probe.model)) is not probe.model:
            probe = replace(probe, model=steps)
        if self.needs and not supports(probe.model, self.needs):
            return Finding(self.name, "not applicable", f"the model has no {_methods(self.needs)}")
        try:
            verdict = self.function(probe)
        except Exception as error:  # whatever a model raises
            text = str(error) if isinstance(error, Raised) else raised(self.tried, error)
            return Finding(self.name, "refused", f"{text}; {self.remedy}")
        if verdict is None:
            return Finding(self.name, "ok", _sentence(self._function.__doc__ or self.name))
        return Finding(self.name, *(("refused", verdict) if isinstance(verdict, str) else verdict))


def _sentence(doc: str) -> str:
    return (doc[:1].lower() + doc[1:]).rstrip(".")


def _methods(protocol: type[Any]) -> str:
    """The methods of a protocol by name; of one that extends Stepper its own."""
    names = [name for name in vars(protocol) if not name.startswith("_")]
    if protocol is not Stepper and issubclass(protocol, Stepper):
        return f"{' and '.join(name for name in names if name != 'head')} beside the Stepper's methods"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def raised(tried: str, error: Exception) -> str:
    """What a model raised when tried on something, in one line; memory that ran out is raised: it is no finding."""
    if out_of_memory(error):
        raise error
    line = (str(error).splitlines() or [""])[0]
    return f"tried on {tried}, the model raised {type(error).__name__}: {line[:200]}"


@dataclass(frozen=True, eq=False)
class Probe:
    """A model in evaluation mode, a batch of few rows, and the model's outputs for it."""

    model: Any
    batch: Batch
    outputs: Tensor
    most: int = field(default=32, kw_only=True)  # positions that are changed one by one

    @property
    def tolerance(self) -> float:
        """100 roundings of the largest output: what another order of the same sums may differ by."""
        finite = self.outputs[self.outputs.isfinite()]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        return 100 * torch.finfo(self.outputs.dtype).eps * max(1.0, largest)

    def run(self, batch: Batch, tried: str) -> Tensor:
        """The model's outputs for another batch."""
        try:
            outputs = self.model(batch)
        except Exception as error:  # whatever a model raises
            raise Raised(raised(tried, error)) from error
        if outputs.shape != (batch.size, batch.time, self.outputs.shape[2]):
            raise Raised(f"tried on {tried}, the model returned outputs {tuple(outputs.shape)}")
        return outputs

    def changed(self, entries: Tensor, where: Tensor) -> Tensor:
        """Return entries that all differ where ``where`` ((batch, time) bool) is True."""
        if not self.batch.is_discrete:
            return torch.where(where[..., None], entries.nan_to_num() * 0.5 + 1.0, entries)
        where, known = where & ~self.fixed(entries), self._known
        if len(known) < 2:
            return torch.where(where, (entries + 1) % self.outputs.shape[-1], entries)
        return torch.where(where, known[(torch.searchsorted(known, entries) + 1) % len(known)], entries)

    @cached_property
    def _known(self) -> Tensor:
        """Ids that the model is known to read."""
        batch = self.batch
        known = torch.cat([batch.history[batch.mask], batch.history[batch.replaceable]]).unique()
        return known[~self.fixed(known)]

    def fixed(self, entries: Tensor) -> Tensor:
        """Whether ids stand for something in the context, such as images: a history without them fits it no more."""
        return torch.isin(entries, entries.new_tensor(getattr(self.batch.context, "placeholders", ())))

    def with_history(self, where: Tensor, tried: str) -> Tensor:
        """The outputs when the history is another one there."""
        return self.run(self.batch.made(history=self.changed(self.batch.history, where)), tried)

    def moved(self, outputs: Tensor, where: Tensor | None = None) -> float:
        """Return the largest move of outputs where they count (and where ``where``); 0: none."""
        counted = self.batch.mask if where is None else self.batch.mask & where
        return distance(outputs[counted], self.outputs[counted], self.tolerance)

    def apart(self, a: Tensor, b: Tensor) -> float:
        """How far outputs of two ways of computing lie apart; 0 within 10 tolerances."""
        return distance(a, b, 10 * self.tolerance)

    @cached_property
    def positions(self) -> list[int]:
        """The positions that are changed one by one, the first and the last among them."""
        time, number = self.batch.time, min(self.batch.time, self.most)
        return sorted({i * (time - 1) // max(number - 1, 1) for i in range(number)})

    @cached_property
    def reactions(self) -> dict[int, list[float]]:
        """For each position changed alone in the history: how far every position's counted outputs move."""
        moves: dict[int, list[float]] = {}
        for j in self.positions:
            where = torch.zeros_like(self.batch.mask)
            where[:, j] = True
            outputs = self.with_history(where, f"the batch with history[:, {j}] changed")
            same = _same(outputs, self.outputs, self.tolerance) | ~self.batch.mask[..., None]
            far = (outputs - self.outputs).abs().nan_to_num(torch.inf, torch.inf).masked_fill(same, 0)
            moves[j] = far.amax((0, 2)).tolist()
        return moves

    @property
    def everywhere(self) -> Tensor:
        """(batch, time) bool, all True."""
        return torch.ones_like(self.batch.mask)


def _same(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    return (a == b) | ((a - b).abs() <= tolerance) | (a.isnan() & b.isnan())


def distance(a: Tensor, b: Tensor, tolerance: float) -> float:
    """The largest difference, 0 where all lie within the tolerance; equal infinities and NaN are equal."""
    same = _same(a, b, tolerance)
    if bool(same.all()):
        return 0.0
    return float((a - b)[~same].abs().nan_to_num(torch.inf, torch.inf).max())


def tree_leaves(tree: Any, path: str = "context") -> Iterator[tuple[str, Any]]:
    """What a tree of containers and dataclasses holds, each with its path; other objects are not looked into."""
    if isinstance(tree, Mapping):
        for name, part in cast(Mapping[Any, Any], tree).items():
            yield from tree_leaves(part, f"{path}[{name!r}]")
    elif isinstance(tree, tuple | list):
        for n, part in enumerate(cast(Sequence[Any], tree)):
            yield from tree_leaves(part, f"{path}[{n}]")
    elif is_dataclass(tree) and not isinstance(tree, type):
        for each in fields(tree):
            yield from tree_leaves(getattr(tree, each.name), f"{path}.{each.name}")
    elif isinstance(tree, Tensor | int | float | str | None):
        yield path, tree


def map_tree(tree: Any, change: Callable[[str, Tensor], Tensor], path: str = "context") -> Any:
    """Return the tree with its tensors changed; ``change`` takes a path and its tensor."""
    if isinstance(tree, Tensor):
        return change(path, tree)
    if isinstance(tree, Mapping):
        items = cast(Mapping[Any, Any], tree).items()
        return {name: map_tree(part, change, f"{path}[{name!r}]") for name, part in items}
    if isinstance(tree, tuple | list):
        parts = [map_tree(part, change, f"{path}[{n}]") for n, part in enumerate(cast(Sequence[Any], tree))]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if is_dataclass(tree) and not isinstance(tree, type):
        named = ((each.name, getattr(tree, each.name)) for each in fields(tree) if each.init)
        return replace(tree, **{name: map_tree(part, change, f"{path}.{name}") for name, part in named})
    return tree


def snapshot(tree: Any, path: str) -> dict[str, Any]:
    """What a tree holds, copied, to be compared with it later; weights are left out."""
    kept = ((at, leaf) for at, leaf in tree_leaves(tree, path) if not isinstance(leaf, nn.Parameter))
    return {at: leaf.clone() if isinstance(leaf, Tensor) else leaf for at, leaf in kept}


def difference(before: dict[str, Any], tree: Any, path: str) -> str | None:
    """The path of the first part that is another than it was, or None."""
    after = {at: leaf for at, leaf in tree_leaves(tree, path) if not isinstance(leaf, nn.Parameter)}
    for at in dict.fromkeys((*before, *after)):
        a, b = before.get(at), after.get(at)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all()):  # noqa: PLR0124 - NaN
                return at
        elif (at in before) != (at in after) or type(a) is not type(b) or a != b:
            return at
    return None
