"""Checks that need nothing but a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freerun.checks.report import Probe, Verdict, distance
from freerun.types import Batch

__all__ = ["FORWARD", "deterministic", "shape"]

_POSITIONS = 32  # asked at most


def shape(outputs: Any, batch: Batch) -> Verdict:
    """(batch, time, vocab), or (batch, time, n * value) with n numbers a value, floating point."""
    values = batch.targets.shape[-1]
    wanted = f"({batch.size}, {batch.time}, " + ("vocab)" if batch.is_discrete else f"{values})")
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        kind = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        return f"the model must give a floating-point tensor {wanted}; got {kind}"
    got = tuple(outputs.shape)
    if len(got) != 3 or got[:2] != (batch.size, batch.time):
        return f"outputs must be {wanted}, batch first; got {got}"
    if not batch.is_discrete and (got[2] == 0 or got[2] % values):  # a distribution takes several numbers a value
        return f"outputs must be {wanted} or, for a distribution, a multiple of the last number; got {got}"
    counted = batch.targets[batch.mask]
    if batch.is_discrete and counted.numel() and got[2] <= int(counted.max()):
        return f"outputs have {got[2]} numbers a position, and the targets hold the id {int(counted.max())}"
    return None


def deterministic(probe: Probe) -> Verdict:
    """Two calls give the same."""
    far = probe.moved(probe.model(probe.batch))
    if far:
        return (
            f"two calls in evaluation mode differ by {far:.2g}: draw random numbers only while self.training "
            "(the other checks need this one)"
        )
    return None


def _finite(probe: Probe) -> Verdict:
    outputs = probe.outputs[probe.batch.mask]
    # a symbol ruled out by -inf is fine, unless it is the one asked for
    broken = outputs.isnan() | (outputs == torch.inf)
    if probe.batch.is_discrete:
        asked = outputs.gather(1, probe.batch.targets[probe.batch.mask][:, None])
        broken = torch.cat([broken, asked.isinf()], 1)
    else:
        broken = ~outputs.isfinite()
    if bool(broken.any()):
        share = float(broken.any(1).float().mean())
        return f"outputs hold NaN or infinity at {share:.0%} of the positions that count: look at the initialisation"
    return None


def _reads_targets(probe: Probe) -> Verdict:
    other = probe.batch.replace(targets=probe.changed(probe.batch.targets, probe.everywhere))
    far = probe.moved(probe.model(other))
    if far:
        return (
            f"outputs move by {far:.2g} when only batch.targets change: the model must read its previous "
            "outputs from batch.history and never look at the targets"
        )
    return None


def _positions(probe: Probe) -> list[int]:
    time = probe.batch.time
    return sorted({i * (time - 1) // max(min(time, _POSITIONS) - 1, 1) for i in range(min(time, _POSITIONS))})


def _at(probe: Probe, position: int) -> Tensor:
    where = torch.zeros_like(probe.batch.mask)
    where[:, position] = True
    return where


def _causal(probe: Probe) -> Verdict:
    for j in _positions(probe):
        before = probe.everywhere
        before[:, j:] = False
        far = probe.moved(probe.told(_at(probe, j)), before)
        if far:
            return (
                f"outputs before position {j} move by {far:.2g} when history[{j}] changes: the model reads "
                "the future (bidirectional layer, missing causal mask, statistics over time)"
            )
    return None


def _unshifted_history(probe: Probe) -> Verdict:
    for t in _positions(probe):
        far = probe.moved(probe.told(_at(probe, t)), _at(probe, t))
        if far:
            return (
                f"outputs at position t move when history[t] changes (by {far:.2g} at t = {t}): under teacher "
                "forcing the model is told the very entry it must predict. Shift inside the model, so that position "
                "t reads history[:, :t]: torch.cat([start, history[:, :-1]], dim=1)"
            )
    return None


def _uses_history(probe: Probe) -> Verdict:
    if probe.moved(probe.told(probe.everywhere)) == 0:
        return (
            "warning",
            "no output moves when the whole history changes: the model is not autoregressive, and what it is told "
            "can make no difference",
        )
    return None


def _trailing(mask: Tensor) -> Tensor:
    # masked positions with nothing that counts after them; masked ones before may be a prompt
    return ~mask.flip(1).cummax(1).values.flip(1)


def _pads_inert(probe: Probe) -> Verdict:
    batch, pads = probe.batch, _trailing(probe.batch.mask)
    if not bool(pads.any()):
        return ("not applicable", "no row of this batch ends in padding")
    other = batch.replace(history=probe.changed(batch.history, pads), targets=probe.changed(batch.targets, pads))
    far = probe.moved(probe.model(other))
    if far:
        return (
            f"outputs that count move by {far:.2g} when padding (masked, after the row's end) changes: leave "
            "masked positions out of every sum, mean and attention"
        )
    return None


def _length_inert(probe: Probe) -> Verdict:
    batch = probe.batch
    if batch.time < 2:
        return ("not applicable", "the batch has one position")
    for time in sorted({1, batch.time // 2, batch.time - 1} - {0}):
        parts = ("targets", "history", "mask", "weights", "eligible")
        cut = {name: None if getattr(batch, name) is None else getattr(batch, name)[:, :time] for name in parts}
        outputs = probe.model(batch.replace(**cut))
        counted = batch.mask[:, :time]
        far = distance(outputs[counted], probe.outputs[:, :time][counted], probe.tolerance)
        if far:
            return (
                f"the first {time} outputs move by {far:.2g} when the positions after them are cut off: what "
                "is said may not depend on how long the batch is, or it changes with padding and when running freely"
            )
    return None


def _rows_independent(probe: Probe) -> Verdict:
    batch = probe.batch
    if batch.size < 2:
        return ("not applicable", "the batch has one row")
    for row in range(batch.size):
        repeated = batch.select(torch.full((batch.size,), row, device=batch.history.device))
        outputs = probe.model(repeated)[:, batch.mask[row]]
        alone = probe.outputs[row, batch.mask[row]].expand_as(outputs)
        far = distance(outputs, alone, probe.tolerance)
        if far:
            return (
                f"outputs of row {row} move by {far:.2g} when the other rows change: rows may not share "
                "statistics (batch norm without running averages, a mean over dimension 0, a layer that is not "
                "batch first)"
            )
    return None


# name -> (check, what an ok says)
FORWARD: dict[str, tuple[Callable[[Probe], Verdict], str]] = {
    "finite": (_finite, "no NaN or infinity where it counts"),
    "reads_targets": (_reads_targets, "changing targets moves no output"),
    "causal": (_causal, "changing history[j] moves no output before j"),
    "unshifted_history": (_unshifted_history, "changing history[t] does not move the output at t"),
    "pads_inert": (_pads_inert, "changing padding moves no output that counts"),
    "length_inert": (_length_inert, "cutting off later positions moves no output"),
    "rows_independent": (_rows_independent, "changing other rows moves no output"),
    "uses_history": (_uses_history, "changing the history moves outputs"),
}
