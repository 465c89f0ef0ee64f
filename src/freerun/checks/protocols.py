"""Checks of what a model can do beyond a forward: step, encode, split, go on over a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freerun.checks.report import Check, Probe, Verdict, difference, distance, snapshot
from freerun.rollin.model import supports
from freerun.types import Cached, Detachable, Embedder, Encoder, Reader, Split, Stepper

_LOOSER = 10  # two ways of computing, where the forward's checks compare one with itself


def _same(probe: Probe, a: Tensor, b: Tensor) -> float:
    return distance(a, b, _LOOSER * probe.tolerance)


def _needs(protocol: type[Any], methods: str) -> Callable[[Callable[[Probe], Verdict]], Callable[[Probe], Verdict]]:
    """Ask only a model that has the methods of a protocol."""

    def only(ask: Callable[[Probe], Verdict]) -> Callable[[Probe], Verdict]:
        def asked(probe: Probe) -> Verdict:
            if supports(probe.model, protocol):
                return ask(probe)
            return ("not applicable", f"the model has no {methods}")

        return asked

    return only


_stepper = _needs(Stepper, "start, embed, step, output and select")


@_stepper
def _step_equals_parallel(probe: Probe) -> Verdict:
    model, batch = probe.model, probe.batch
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


@_stepper
def _stepper_embed(probe: Probe) -> Verdict:
    history = probe.batch.history
    whole = probe.model.embed(history)
    for t in range(probe.batch.time):
        far = _same(probe, whole[:, t], probe.model.embed(history[:, t]))
        if far:
            return (
                f"embed of the whole history differs at position {t} from embed of that entry, by {far:.2g}: embed may "
                "depend on the entry alone; positions belong to step"
            )
    return None


@_stepper
def _stepper_state(probe: Probe) -> Verdict:
    """Every part of a state is as it was, by its numbers and by what later steps make of it."""
    model, batch = probe.model, probe.batch
    before = snapshot(batch, "batch")
    states, inputs, middle = [model.start(batch)], model.embed(batch.history), (batch.time - 1) // 2
    for t in range(batch.time - 1):
        if t in (0, middle):
            kept = snapshot(states[t], "state")
            for name, call in _calls(model, batch.size, inputs[:, t]).items():
                call(states[t])
                if changed := difference(kept, states[t], "state"):
                    return f"{name} changes {changed}, given to it, in place: return a new state, leave the old one"
        states.append(model.step(states[t], inputs[:, t]))
    outputs = [model.output(state).clone() for state in states]
    # on another way from the middle, as beams go, and then once more from the beginning
    other = model.embed(probe.changed(batch.history, probe.everywhere))
    state = states[middle]
    for t in range(middle, batch.time - 1):
        state = model.step(state, other[:, t])
    state = states[0]
    for t, wanted in enumerate(outputs):
        if far := max(_same(probe, model.output(state), wanted), _same(probe, model.output(states[t]), wanted)):
            return (
                f"after other steps were taken from the same states, the output at position {t} is {far:.2g} away from "
                "what it was: step must return a new state and leave the old one as it is, caches and counts included"
            )
        state = model.step(state, inputs[:, t]) if t + 1 < batch.time else state
    if changed := difference(before, batch, "batch"):
        return f"stepping changes {changed} in place: compute a new tensor"
    return None


def _calls(model: Any, size: int, inputs: Tensor) -> dict[str, Callable[[Any], Any]]:
    rows = torch.arange(size, device=inputs.device)
    return {
        "output": model.output,
        "select": lambda state: model.select(state, rows),
        "step": lambda state: model.step(state, inputs),
    }


@_stepper
def _stepper_select(probe: Probe) -> Verdict:
    model, size, t = probe.model, probe.batch.size, max((probe.batch.time - 1) // 2 - 1, 0)
    inputs = model.embed(probe.batch.history)
    state = model.start(probe.batch)
    for before in range(t):
        state = model.step(state, inputs[:, before])
    turned = torch.arange(size - 1, -1, -1, device=probe.batch.history.device)
    for name, rows in (("reversed", turned), ("repeated", turned[:1].expand(size + 1)), ("fewer", turned[:1])):
        far = _same(probe, model.output(state, rows), model.output(state)[rows])
        if far:
            return f"output(state, rows) differs from output(state)[rows] by {far:.2g} (rows {name})"
        picked = model.step(model.select(state, rows), inputs[rows, t])
        far = _same(probe, model.output(picked), model.output(model.step(state, inputs[:, t]))[rows])
        if far:
            return (
                f"a step after select(state, rows) is {far:.2g} away from the same rows' step (rows {name}): select "
                "must pick, repeat or drop the rows of every part of the state, in the order of rows"
            )
    return None


@_needs(Reader, "read beside the Stepper's methods")
def _read_equals_steps(probe: Probe) -> Verdict:
    model, batch = probe.model, probe.batch
    half = max(1, batch.time // 2)
    if half >= batch.time:
        return ("not applicable", "the batch has one position")
    state = model.read(model.start(batch), model.embed(batch.history)[:, :half])
    counted = batch.mask[:, half]
    far = _same(probe, model.output(state)[counted], probe.outputs[counted, half])
    return f"the output after {half} entries read at once is {far:.2g} away from the forward's" if far else None


@_needs(Detachable, "detach beside the Stepper's methods")
def _detach_keeps(probe: Probe) -> Verdict:
    state = probe.model.start(probe.batch)
    inputs = probe.model.embed(probe.batch.history[:, 0])
    one, other = (probe.model.output(probe.model.step(s, inputs)) for s in (state, probe.model.detach(state)))
    far = _same(probe, one, other)
    return (
        f"a step after detach(state) is {far:.2g} away from one without: detach cuts the gradient alone"
        if far
        else None
    )


@_needs(Cached, "advance and crop beside the Stepper's methods")
def _cache_equals_forward(probe: Probe) -> Verdict:
    model, batch = probe.model, probe.batch
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


@_needs(Encoder, "encode")
def _encode_equals_forward(probe: Probe) -> Verdict:
    model, counted, before = probe.model, probe.batch.mask, snapshot(probe.batch, "batch")
    once = model.encode(probe.batch)
    if changed := difference(before, probe.batch, "batch"):
        return f"encode changes {changed} in place: return a new batch, batch.replace(context=...)"
    for what, batch in (("an encoded batch", once), ("a batch encoded twice", model.encode(once))):
        far = _same(probe, probe.ask(batch, what)[counted], probe.outputs[counted])
        if far:
            return f"the outputs of {what} are {far:.2g} away from the batch's own: encode an encoded batch no more"
    return None


@_needs(Split, "hidden and head")
def _split_equals_forward(probe: Probe) -> Verdict:
    counted = probe.batch.mask
    far = _same(probe, probe.model.head(probe.model.hidden(probe.batch)[counted]), probe.outputs[counted])
    return f"head(hidden(batch)) is {far:.2g} away from the forward" if far else None


@_needs(Embedder, "lookup and outputs_from")
def _vectors_equal_ids(probe: Probe) -> Verdict:
    batch = probe.batch
    outputs = probe.model.outputs_from(batch, probe.model.lookup(batch.history))
    far = _same(probe, outputs[batch.mask], probe.outputs[batch.mask])
    return f"outputs_from(batch, lookup(history)) is {far:.2g} away from the forward" if far else None


_METHODS = "see freerun.types for what the methods take and return; without them parallel passes are used"
_CHECKS = (
    Check("step_equals_parallel", _step_equals_parallel, "stepping gives the outputs of the forward",
          "start, output and step over the history", _METHODS),
    Check("stepper_embed", _stepper_embed, "embedding all entries at once is embedding each",
          "embed of the whole history and of single entries", _METHODS),
    Check("stepper_state", _stepper_state, "a step leaves the state it is given as it is",
          "steps over the history, twice from the same states", _METHODS),
    Check("stepper_select", _stepper_select, "rows can be picked, repeated and dropped",
          "select of reversed, repeated and fewer rows", _METHODS),
    Check("read_equals_steps", _read_equals_steps, "several entries can be read at once",
          "read of the first half of the history", _METHODS),
    Check("detach_keeps", _detach_keeps, "detach changes no number", "detach of the first state", _METHODS),
    Check("cache_equals_forward", _cache_equals_forward, "reading at places of one's own, taken back and read again",
          "advance and crop of 2, 3 and 4 entries", _METHODS),
    Check("encode_equals_forward", _encode_equals_forward, "an encoded batch gives the outputs of the batch",
          "an encoded batch", _METHODS),
    Check("split_equals_forward", _split_equals_forward, "head(hidden(batch)) is the forward",
          "head of the hidden vectors that count", _METHODS),
    Check("vectors_equal_ids", _vectors_equal_ids, "looked-up vectors give the outputs of their ids",
          "the history as vectors", _METHODS),
)  # fmt: skip

PROTOCOLS: dict[str, Check] = {check.name: check for check in _CHECKS}
