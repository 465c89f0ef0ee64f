"""Checks of what a model says it can do beyond a forward: step, encode, split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freerun.checks.report import Probe, Verdict, distance
from freerun.types import Cached, Encoder, Split, Stepper

__all__ = ["PROTOCOLS"]

_LOOSER = 10  # two ways of computing, where the forward's checks compare one with itself


def _states(probe: Probe) -> tuple[list[Any], Tensor]:
    """The state before each position, and the embedded history (batch, time, ...)."""
    model: Stepper = probe.model
    inputs = model.embed(probe.batch.history)
    states = [model.start(probe.batch)]
    for t in range(probe.batch.time - 1):
        states.append(model.step(states[t], inputs[:, t]))
    return states, inputs


def _same(probe: Probe, a: Tensor, b: Tensor) -> float:
    return distance(a, b, _LOOSER * probe.tolerance)


def _step_equals_parallel(probe: Probe) -> Verdict:
    model, batch = probe.model, probe.batch
    if not isinstance(model, Stepper):
        return ("not applicable", "the model has no start, embed, step, output and select")
    state = model.start(batch)
    for t in range(batch.time):
        counted = batch.mask[:, t]
        far = _same(probe, model.output(state)[counted], probe.outputs[counted, t])
        if far:
            return (
                f"the stepped output at position {t} is {far:.2g} away from the forward's: output(start(batch)) "
                "must predict position 0, output(step(state, embed(history[:, t]))) position t + 1"
            )
        if t + 1 < batch.time:  # the last entry predicts nothing, and may have no position left
            state = model.step(state, model.embed(batch.history[:, t]))
    return None


def _stepper_embed(probe: Probe) -> Verdict:
    if not isinstance(probe.model, Stepper):
        return ("not applicable", "the model is no Stepper")
    history = probe.batch.history
    whole = probe.model.embed(history)
    for t in range(probe.batch.time):
        far = _same(probe, whole[:, t], probe.model.embed(history[:, t]))
        if far:
            return f"embed of the whole history differs at position {t} from embed of that entry, by {far:.2g}"
    return None


def _stepper_state(probe: Probe) -> Verdict:
    if not isinstance(probe.model, Stepper):
        return ("not applicable", "the model is no Stepper")
    model: Stepper = probe.model
    state = model.start(probe.batch)
    before = model.output(state).clone()
    model.step(state, model.embed(probe.batch.history[:, 0]))
    far = _same(probe, model.output(state), before)
    if far:
        return (
            f"stepping changed the state that was given (its output moved by {far:.2g}): step must return a new "
            "state and leave the old one as it is"
        )
    return None


def _stepper_select(probe: Probe) -> Verdict:
    if not isinstance(probe.model, Stepper):
        return ("not applicable", "the model is no Stepper")
    model: Stepper = probe.model
    states, inputs = _states(probe)
    t = max(len(states) // 2 - 1, 0)
    state, size = states[t], probe.batch.size
    turned = torch.arange(size - 1, -1, -1, device=probe.batch.history.device)
    for name, rows in (("reversed", turned), ("repeated", turned[:1].expand(size + 1)), ("fewer", turned[:1])):
        far = _same(probe, model.output(state, rows), model.output(state)[rows])
        if far:
            return f"output(state, rows) differs from output(state)[rows] by {far:.2g} (rows {name})"
        picked = model.step(model.select(state, rows), inputs[rows, t])
        far = _same(probe, model.output(picked), model.output(model.step(state, inputs[:, t]))[rows])
        if far:
            return f"a step after select(state, rows) is {far:.2g} away from the same rows' step (rows {name})"
    return None


def _cache_equals_forward(probe: Probe) -> Verdict:
    model, batch = probe.model, probe.batch
    if not isinstance(model, Cached):
        return ("not applicable", "the model has no advance and crop beside the Stepper's methods")
    history, device = batch.history, batch.history.device
    # rows at places of their own: row r has read r % 3 entries more than two, then one is taken back
    counts = torch.tensor([min(2 + r % 3, batch.time - 1) for r in range(batch.size)], device=device)
    if int(counts.min()) < 2:
        return ("not applicable", "the batch is shorter than 3 positions")
    rows = torch.arange(batch.size, device=device).repeat_interleave(counts)
    places = torch.cat([torch.arange(int(n), device=device) for n in counts])
    state, hidden = model.advance(model.start(batch), model.embed(history[rows, places]), counts)
    counted = batch.mask[rows, places + 1]
    far = _same(probe, model.head(hidden)[counted], probe.outputs[rows, places + 1][counted])
    if far:
        return (
            f"head of what advance gives after history[t] is {far:.2g} away from the forward's output at t + 1 "
            "(rows read 2, 3 and 4 entries)"
        )
    every = torch.arange(batch.size, device=device)
    state = model.crop(state, counts - 1)
    counted = batch.mask[every, counts - 1]
    far = _same(probe, model.output(state)[counted], probe.outputs[every, counts - 1][counted])
    if far:
        return f"the output after crop to fewer entries is {far:.2g} away from the forward's"
    state, _ = model.advance(state, model.embed(history[every, counts - 1]), torch.ones_like(counts))
    counted = batch.mask[every, counts]
    far = _same(probe, model.output(state)[counted], probe.outputs[every, counts][counted])
    return (
        f"going on after crop is {far:.2g} away from the forward: what was taken back must be forgotten"
        if far
        else None
    )


def _encode_equals_forward(probe: Probe) -> Verdict:
    model, counted = probe.model, probe.batch.mask
    if not isinstance(model, Encoder):
        return ("not applicable", "the model has no encode")
    once = model.encode(probe.batch)
    for what, batch in (("an encoded batch", once), ("a batch encoded twice", model.encode(once))):
        far = _same(probe, probe.model(batch)[counted], probe.outputs[counted])
        if far:
            return f"the outputs of {what} are {far:.2g} away from the batch's own"
    return None


def _split_equals_forward(probe: Probe) -> Verdict:
    if not isinstance(probe.model, Split):
        return ("not applicable", "the model has no hidden and head")
    counted = probe.batch.mask
    far = _same(probe, probe.model.head(probe.model.hidden(probe.batch)[counted]), probe.outputs[counted])
    if far:
        return f"head(hidden(batch)) is {far:.2g} away from the forward"
    return None


# name -> (check, what an ok says)
PROTOCOLS: dict[str, tuple[Callable[[Probe], Verdict], str]] = {
    "step_equals_parallel": (_step_equals_parallel, "stepping gives the outputs of the forward"),
    "stepper_embed": (_stepper_embed, "embedding all entries at once is embedding each"),
    "stepper_state": (_stepper_state, "a step leaves the state it was given as it is"),
    "stepper_select": (_stepper_select, "rows can be picked, repeated and dropped"),
    "cache_equals_forward": (_cache_equals_forward, "reading at places of one's own, taken back and read again"),
    "encode_equals_forward": (_encode_equals_forward, "an encoded batch gives the outputs of the batch"),
    "split_equals_forward": (_split_equals_forward, "head(hidden(batch)) is the forward"),
}
