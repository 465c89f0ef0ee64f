"""Checks of the forward that is differentiated: in training mode, with a graph."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from freerun.checks.forward import FORWARD
from freerun.checks.report import Check, Finding, Probe, Verdict
from freerun.types import Batch

__all__ = ["learning", "training_mode"]


def _learning(probe: Probe) -> Verdict:
    """Outputs carry a gradient to the parameters."""
    model, batch = probe.model, probe.batch
    if not isinstance(model, nn.Module) or not any(weight.requires_grad for weight in model.parameters()):
        return ("not applicable", "the model is no module with parameters that learn")
    with torch.enable_grad():
        outputs = model(batch)
    if outputs.requires_grad:
        return None
    return (
        "outputs carry no gradient although parameters ask for one: nothing would be learnt; take no_grad, detach, "
        ".data and argmax out of the forward"
    )


def _training_mode(probe: Probe, known: frozenset[str]) -> Verdict:
    """In training mode, too, outputs depend on history before them, and not on targets; ``known`` failed before."""
    model, batch = probe.model, probe.batch
    if not isinstance(model, nn.Module):
        return ("not applicable", "the model is no module")
    with _training(model) as seeded:
        try:
            outputs = seeded(batch).clone()
        except ValueError as error:  # batch normalisation of a single value
            if batch.size > 1:
                raise
            return ("not applicable", f"one row in training mode: {error}")
        probe = _InTraining(seeded, batch, outputs)
        if probe.moved(seeded(batch)):
            return ("not applicable", "outputs in training mode are random beyond PyTorch's generator")
        for name in ("reads_targets", "causal", "unshifted_history"):
            verdict = None if name in known else FORWARD[name].ask(probe)
            if isinstance(verdict, str):
                norms = sorted({type(m).__name__ for m in model.modules() if isinstance(m, _NORMS) and m.training})
                what = f" ({', '.join(norms)} takes its statistics over all positions and rows)" if norms else ""
                return (
                    f"{verdict}. It does so in training mode alone{what}, so that training is not what free running "
                    "meets: use LayerNorm or RMSNorm, or keep batch normalisation in evaluation mode"
                )
    return None


_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, eq=False)
class _InTraining(Probe):
    @property
    def most(self) -> int:
        """Fewer positions: what sees the future in training mode alone sees it from everywhere."""
        return 5


@contextmanager
def _training(model: nn.Module) -> Generator[Any]:
    """The model in the mode it would train in, every call with the same random numbers and buffers.

    Modes, buffers and generators are as they were afterwards, bit for bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    devices = sorted({b.device.index or 0 for b in (*model.parameters(), *model.buffers()) if b.is_cuda})

    def restore() -> None:
        for module, name, buffer, kept in buffers:
            buffer.copy_(kept)
            module._buffers[name] = buffer

    def seeded(batch: Batch) -> Tensor:
        restore()
        torch.manual_seed(0)
        return model(batch)

    with torch.random.fork_rng(devices):
        try:
            if not any(training for _, training in modes):
                model.train()  # a part that its own train() keeps in evaluation mode stays so
            yield seeded
        finally:
            restore()
            for module, training in modes:
                module.training = training


_MODES = "the forward must run in training mode as it does in evaluation mode"


learning = Check("learning", _learning, "outputs carry a gradient", "the batch, with gradient", _MODES)


def training_mode(refused: Iterable[Finding]) -> Check:
    """The check in training mode, for what was not refused in evaluation mode."""
    ask = partial(_training_mode, known=frozenset(finding.name for finding in refused))
    return Check("training_mode", ask, "training mode sees no future and no target", "training mode", _MODES)
