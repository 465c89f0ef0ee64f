"""What of a history is replaced: which entries, by which draw, from which key; and a history once it is rolled in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.draws import Draw, check_width, is_plain
from freerun.rollin.model import checked_rows, has, unwrap
from freerun.types import Ruled, Rules

_NUMBERS = 2**22
"""How many logits, or numbers of noise, are held at once where more would be made of them: 16 to 32 MiB."""
_KEPT = 2**18
"""How many numbers of noise are kept through a roll-in, 2 MiB of them; more are made again from their key."""


def equal_entries(a: Tensor, b: Tensor) -> Tensor:
    """(n,) bool: which entries, (n,) ids or (n, value), are equal; NaN equals NaN, as the loss has to report it."""
    equal = (a == b) | (a.isnan() & b.isnan())
    return equal if equal.dim() == 1 else equal.all(-1)


@dataclass(frozen=True, eq=False)
class RollIn:
    """A history rolled in, and how.

    Args:
        history: (batch, time) ids or (batch, time, value): the mixed history.
        engine: the engine used.
        passes: model calls, or for ``step`` 1 (a loop over the positions is one pass over them).
        work: positions computed, in forwards: 1 is batch x time of them.
        certified: what makes it the sequential history: ``"construction"`` (every entry was chosen after all before
            it), ``"fixed point"`` (a last pass over the rows changed nothing), ``"training forward"`` (that pass was
            the forward that is differentiated), or ``"no"`` for k parallel passes.
        outputs: (batch, time, ...) of the forward that is differentiated, where the roll-in was that forward.
        total: of the loss, where the graph was cut and is gone backward through already; ``count`` with it.
        count: of the loss.
    """

    __repr__ = brief

    history: Tensor
    engine: str = "none"
    passes: int = 0
    work: float = 0.0
    certified: str = "construction"
    outputs: Tensor | None = None
    total: Tensor | None = None
    count: Tensor | None = None

    @property
    def exact(self) -> bool:
        """True if the history has the sequential law."""
        return self.certified != "no"

    def report(self) -> dict[str, float | str]:
        """For ``Outcome.report``."""
        names = ("engine", "passes", "work", "certified")
        return {**{name: getattr(self, name) for name in names}, "exact": float(self.exact)}


@dataclass(frozen=True, eq=False)
class Replacement:
    """Entries of a history to replace by the model's own.

    Args:
        gold: (batch, time) ids or (batch, time, value).
        keep: (batch, time) bool, True = gold, or for values shares of gold in [0, 1]; True (or 1) where an entry may
            not be replaced. (batch, time, value) where gold is missing in some channels, False (or 0) there.
        draw: from a prediction to an entry.
        row_ids: (batch,) the rows' numbers in the global batch, which noise is a function of.
        key: what the noise is derived from.
        detached: whether own values are fed without their gradient.
        rules: what generation makes of a prediction before an id is drawn; None: nothing.
    """

    __repr__ = brief

    gold: Tensor
    keep: Tensor
    draw: Draw
    row_ids: Tensor
    key: int
    detached: bool = False
    rules: Rules | None = None

    @classmethod
    def of(cls, batch: Batch, keep: Tensor, draw: Draw, key: int, detached: bool = False) -> Replacement:
        """What a gate's ``keep`` leaves to the model; entries that may not be replaced are kept, missing values not."""
        fixed = batch.replaceable.logical_not()
        keep = keep | fixed if keep.dtype == torch.bool else torch.where(fixed, 1.0, keep).to(keep.dtype)
        gold, missing = batch.history, None if batch.present is None else batch.missing
        if missing is not None:
            keep = keep[..., None].expand_as(missing).masked_fill(missing, 0)
            gold = gold.masked_fill(missing, 0.0)
        return cls(gold, keep, draw, batch.row_numbers, key, detached)

    def ruled(self, model: Any, batch: Batch) -> Replacement:
        """The same under the rules of the model's own generation, if it has some and they are not there yet."""
        inner = unwrap(model)
        if self.rules is not None or self.number == 0 or not has(inner, Ruled):
            return self
        rules = inner.generation_rules(batch)
        return self if rules is None else replace(self, rules=rules)

    @cached_property
    def replaced(self) -> Tensor:
        """(batch, time) bool: entries that are not all gold."""
        own = ~self.keep if self.keep.dtype == torch.bool else self.keep < 1
        return own if own.dim() == 2 else own.any(-1)

    @cached_property
    def positions(self) -> tuple[Tensor, Tensor]:
        """(n,) rows and (n,) positions of the replaced entries, ordered by position."""
        times, rows = self.replaced.t().nonzero(as_tuple=True)
        return rows, times

    @cached_property
    def number(self) -> int:
        """How many entries are replaced."""
        return self.positions[0].numel()

    @cached_property
    def _seen(self) -> dict[str, Any]:
        return {}

    @property
    def longest(self) -> int:
        """The largest number of replaced entries in one row."""
        return int(torch.bincount(self.positions[0]).max()) if self.number else 0

    def select(self, rows: Tensor) -> Replacement:
        """That of some rows ((m,), rising), which become rows 0 to m-1."""
        rules = None if self.rules is None else self.rules.select(rows)
        return replace(self, gold=self.gold[rows], keep=self.keep[rows], row_ids=self.row_ids[rows], rules=rules)

    def noise(self, vocab: int, part: slice | Tensor = slice(None)) -> Tensor | None:
        """Noise for a part of the replaced entries; all of it is made at the first call where it is small."""
        rows, times = self.positions
        size = self.draw.noise_size(vocab)
        if size > 1 and size * self.number > _KEPT:
            return self.draw.noise(self.key, self.row_ids[rows[part]], times[part], vocab)
        if "noise" not in self._seen:
            self._seen["noise"] = self.draw.noise(self.key, self.row_ids[rows], times, vocab)
        kept: Tensor | None = self._seen["noise"]
        return None if kept is None else kept[part] if isinstance(part, slice) else kept.index_select(0, part)

    def allowed(self, outputs: Tensor, history: Tensor, chosen: Tensor | slice = slice(None)) -> Tensor:
        """(m, vocab) outputs of the replaced entries ``chosen``, as generation takes them after what ``history`` holds
        before each."""
        if self.rules is None:
            return outputs
        rows, times = (each[chosen] for each in self.positions)
        return self.rules.apply(outputs, history[rows], rows, times, sampled=is_plain(self.draw))

    def choose(self, hidden: Tensor, head: Callable[[Tensor], Tensor], chosen: Tensor, history: Tensor) -> Tensor:
        """The replaced entries ``chosen`` ((m,) numbers), from what the model holds before each.

        Logits and noise are made for so many entries at a time that neither grows with batch, time and vocabulary
        together; noise that grows with the vocabulary is made again from its key rather than kept.

        Args:
            hidden: (m, size), or the outputs themselves where ``head`` is the identity.
            head: from hidden vectors to outputs.
            chosen: numbers of the entries.
            history: (batch, time) what stands before each.

        Raises:
            UserError: outputs of which the draw cannot make a value.
        """
        if len(chosen) == 0:
            return chosen
        # the width of the outputs is seen once a roll-in
        if "width" not in self._seen:
            self._seen["width"] = self.check(head(hidden[:1]), 1).shape[-1]
        vocab = self._seen["width"]
        at_once = max(1, _NUMBERS // vocab)
        if len(chosen) <= at_once:
            own = self._chosen(hidden, head, chosen, history, vocab)
        else:
            parts = zip(hidden.split(at_once), chosen.split(at_once), strict=True)
            own = torch.cat([self._chosen(part, head, numbers, history, vocab) for part, numbers in parts])
        return self.completed(own, chosen) if self.keep.dim() == 3 else own

    def _chosen(
        self, hidden: Tensor, head: Callable[[Tensor], Tensor], numbers: Tensor, history: Tensor, vocab: int
    ) -> Tensor:
        outputs = checked_rows(head(hidden), len(numbers))
        return self.draw.choose(self.allowed(outputs, history, numbers), self.noise(vocab, numbers))

    def completed(self, own: Tensor, chosen: Tensor | slice) -> Tensor:
        """(m, values) own entries, with gold in the channels that keep it."""
        at = tuple(each[chosen] for each in self.positions)
        return torch.where(self.keep[at], self.gold[at], own.to(self.gold.dtype))

    def check(self, outputs: Tensor, rows: int) -> Tensor:
        """Outputs (rows, numbers), refused where they are none or the draw cannot make of them what is fed back."""
        outputs = checked_rows(outputs, rows)
        if self.gold.dim() == 3:
            check_width(self.draw, outputs, self.gold.shape[-1])
        return outputs

    def mix_at(self, outputs: Tensor, at: int) -> Tensor:
        """(batch, ...) entries fed at a position, from the (batch, width) outputs there; ids carry no gradient."""
        if self.gold.dim() == 2:
            return self._ids_at(outputs.detach(), at)
        noise = None
        if self.draw.noise_size(outputs.shape[-1]):
            times = torch.full_like(self.row_ids, at)
            noise = self.draw.noise(self.key, self.row_ids, times, outputs.shape[-1])
        return self._mixed(self.draw.choose(outputs, noise), self.gold[:, at], self.keep[:, at])

    @cached_property
    def by_position(self) -> tuple[list[int], tuple[Tensor, ...]]:
        """At each position: the number of replaced entries, and their rows."""
        rows, times = self.positions
        counts = torch.bincount(times, minlength=self.gold.shape[1]).tolist()
        return counts, rows.split(counts)

    def _ids_at(self, outputs: Tensor, at: int) -> Tensor:
        counts, rows = self.by_position
        count, gold = counts[at], self.gold[:, at]
        if count == 0:
            return gold
        start = sum(counts[:at])
        noise = self.noise(outputs.shape[-1], slice(start, start + count))
        if count == len(gold):
            return self.draw.choose(outputs, noise).to(gold.dtype)
        return gold.index_copy(0, rows[at], self.draw.choose(outputs[rows[at]], noise).to(gold.dtype))

    def mix(self, outputs: Tensor) -> Tensor:
        """(batch, time, value) fed, from the (batch, time, width) outputs of a whole pass."""
        size, time, width = outputs.shape
        noise = None
        if self.draw.noise_size(width):
            times = torch.arange(time, device=outputs.device).repeat(size)
            noise = self.draw.noise(self.key, self.row_ids.repeat_interleave(time), times, width)
        check_width(self.draw, outputs, self.gold.shape[-1])
        own = self.draw.choose(outputs.flatten(0, 1), noise)
        return self._mixed(own.unflatten(0, (size, time)), self.gold, self.keep)

    def _mixed(self, own: Tensor, gold: Tensor, keep: Tensor) -> Tensor:
        own = (own.detach() if self.detached else own).to(gold.dtype)
        keep = keep if keep.dim() == gold.dim() else keep[..., None]
        if keep.dtype == torch.bool:
            return torch.where(keep, gold, own)
        # at the ends exactly one of both: 0 times an infinite value would be NaN
        return torch.where(keep >= 1, gold, torch.where(keep <= 0, own, keep * gold + (1 - keep) * own))
