"""Checks of what a model can do beyond a forward: step, encode, split, go on over a cache."""

from __future__ import annotations

import torch

from freerun.checks.report import Probe, Verdict, difference, snapshot


def step_equals_parallel(probe: Probe) -> Verdict:
    """Stepping gives the outputs of the forward."""
    model, batch = probe.model, probe.batch
    state = model.start(batch)
    for t in range(batch.time):
        counted = batch.mask[:, t]
        if far := probe.apart(model.output(state)[counted], probe.outputs[counted, t]):
            return (
                f"the stepped output at position {t} is {far:.2g} away from the forward's: output(start(batch)) "
                "must predict position 0, output(step(state, embed(history[:, t]))) position t + 1"
            )
        if t + 1 < batch.time:  # the last entry predicts nothing, and may have no position left
            state = model.step(state, model.embed(batch.history[:, t]))
    return None


def stepper_embed(probe: Probe) -> Verdict:
    """Embedding all entries at once is embedding each."""
    history = probe.batch.history
    together = probe.model.embed(history)
    for t in range(probe.batch.time):
        if far := probe.apart(together[:, t], probe.model.embed(history[:, t])):
            return (
                f"embed of the whole history differs at position {t} from embed of that entry, by {far:.2g}: embed may "
                "depend on the entry alone; positions belong to step"
            )
    return None


def stepper_state(probe: Probe) -> Verdict:
    """A step leaves the state that it takes as it is."""
    model, batch = probe.model, probe.batch
    before, rows = snapshot(batch, "batch"), torch.arange(batch.size, device=batch.history.device)
    states, inputs, middle = [model.start(batch)], model.embed(batch.history), (batch.time - 1) // 2
    for t in range(batch.time - 1):
        if t in (0, middle):
            kept, now = snapshot(states[t], "state"), inputs[:, t]
            for name, rest in (("output", ()), ("select", (rows,)), ("step", (now,))):
                getattr(model, name)(states[t], *rest)
                if changed := difference(kept, states[t], "state"):
                    return f"{name} changes {changed}, which it takes, in place: return a new state, leave the old one"
        states.append(model.step(states[t], inputs[:, t]))
    outputs = [model.output(state).clone() for state in states]
    # on another way from the middle, as beams go, and then once more from the beginning
    other = model.embed(probe.changed(batch.history, probe.everywhere))
    state = states[middle]
    for t in range(middle, batch.time - 1):
        state = model.step(state, other[:, t])
    state = states[0]
    for t, expected in enumerate(outputs):
        if far := max(probe.apart(model.output(state), expected), probe.apart(model.output(states[t]), expected)):
            return (
                f"after other steps were taken from the same states, the output at position {t} is {far:.2g} away from "
                "what it was: step must return a new state and leave the old one as it is, caches and counts included"
            )
        state = model.step(state, inputs[:, t]) if t + 1 < batch.time else state
    if changed := difference(before, batch, "batch"):
        return f"stepping changes {changed} in place: compute a new tensor"
    return None


def stepper_select(probe: Probe) -> Verdict:
    """Rows can be picked, repeated and dropped."""
    model, size, t = probe.model, probe.batch.size, max((probe.batch.time - 1) // 2 - 1, 0)
    inputs = model.embed(probe.batch.history)
    state = model.start(probe.batch)
    for before in range(t):
        state = model.step(state, inputs[:, before])
    turned = torch.arange(size - 1, -1, -1, device=probe.batch.history.device)
    for name, rows in (("reversed", turned), ("repeated", turned[:1].expand(size + 1)), ("fewer", turned[:1])):
        if far := probe.apart(model.output(state, rows), model.output(state)[rows]):
            return f"output(state, rows) differs from output(state)[rows] by {far:.2g} (rows {name})"
        picked = model.step(model.select(state, rows), inputs[rows, t])
        if far := probe.apart(model.output(picked), model.output(model.step(state, inputs[:, t]))[rows]):
            return (
                f"a step after select(state, rows) is {far:.2g} away from the same rows' step (rows {name}): select "
                "must pick, repeat or drop the rows of every part of the state, in the order of rows"
            )
    return None


def read_equals_steps(probe: Probe) -> Verdict:
    """Several entries can be read at once."""
    model, batch = probe.model, probe.batch
    half = max(1, batch.time // 2)
    if half >= batch.time:
        return ("not applicable", "the batch has one position")
    state = model.read(model.start(batch), model.embed(batch.history)[:, :half])
    counted = batch.mask[:, half]
    far = probe.apart(model.output(state)[counted], probe.outputs[counted, half])
    return f"the output after {half} entries read at once is {far:.2g} away from the forward's" if far else None


def detach_keeps(probe: Probe) -> Verdict:
    """Detach changes no number."""
    state = probe.model.start(probe.batch)
    inputs = probe.model.embed(probe.batch.history[:, 0])
    one, other = (probe.model.output(probe.model.step(s, inputs)) for s in (state, probe.model.detach(state)))
    far = probe.apart(one, other)
    return (
        f"a step after detach(state) is {far:.2g} away from one without: detach cuts the gradient alone"
        if far
        else None
    )


def cache_equals_forward(probe: Probe) -> Verdict:
    """Reading at places of one's own, taken back and read again."""
    model, batch = probe.model, probe.batch
    history, device = batch.history, batch.history.device
    # rows at positions of their own: row r reads r % 3 entries more than two after its prompt, then one is taken back
    more = torch.arange(batch.size, device=device) % 3 + 2
    counts = ((~batch.mask).long().cumprod(1).sum(1) + more).clamp_max(batch.time - 1)
    if int(counts.min()) < 2:
        return ("not applicable", "the batch is shorter than 3 positions")
    rows = torch.arange(batch.size, device=device).repeat_interleave(counts)
    positions = torch.cat([torch.arange(int(n), device=device) for n in counts])
    state, hidden = model.advance(model.start(batch), model.embed(history[rows, positions]), counts)
    counted = batch.mask[rows, positions + 1]
    if far := probe.apart(model.head(hidden)[counted], probe.outputs[rows, positions + 1][counted]):
        return (
            f"head of what advance gives after history[t] is {far:.2g} away from the forward's output at t + 1 "
            "(rows read 2, 3 and 4 entries)"
        )
    every = torch.arange(batch.size, device=device)
    state = model.crop(state, counts - 1)
    counted = batch.mask[every, counts - 1]
    if far := probe.apart(model.output(state)[counted], probe.outputs[every, counts - 1][counted]):
        return f"the output after crop to fewer entries is {far:.2g} away from the forward's"
    state, _ = model.advance(state, model.embed(history[every, counts - 1]), torch.ones_like(counts))
    counted = batch.mask[every, counts]
    far = probe.apart(model.output(state)[counted], probe.outputs[every, counts][counted])
    return (
        f"going on after crop is {far:.2g} away from the forward: what was taken back must be forgotten"
        if far
        else None
    )


def encode_equals_forward(probe: Probe) -> Verdict:
    """An encoded batch gives the outputs of the batch."""
    model, counted, before = probe.model, probe.batch.mask, snapshot(probe.batch, "batch")
    once = model.encode(probe.batch)
    if changed := difference(before, probe.batch, "batch"):
        return f"encode changes {changed} in place: return a new batch, batch.replace(context=...)"
    for what, batch in (("an encoded batch", once), ("a batch encoded twice", model.encode(once))):
        if far := probe.apart(probe.run(batch, what)[counted], probe.outputs[counted]):
            return f"the outputs of {what} are {far:.2g} away from the batch's own: encode an encoded batch no more"
    return None


def split_equals_forward(probe: Probe) -> Verdict:
    """Head(hidden(batch)) is the forward."""
    counted = probe.batch.mask
    far = probe.apart(probe.model.head(probe.model.hidden(probe.batch)[counted]), probe.outputs[counted])
    return f"head(hidden(batch)) is {far:.2g} away from the forward" if far else None


def vectors_equal_ids(probe: Probe) -> Verdict:
    """Looked-up vectors give the outputs of their ids."""
    batch = probe.batch
    outputs = probe.model.outputs_from(batch, probe.model.lookup(batch.history))
    far = probe.apart(outputs[batch.mask], probe.outputs[batch.mask])
    return f"outputs_from(batch, lookup(history)) is {far:.2g} away from the forward" if far else None
