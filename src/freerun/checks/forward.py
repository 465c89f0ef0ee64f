"""Checks of a forward and its history: what outputs may depend on, and what they must depend on."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from freerun.batch import PER_POSITION, Batch
from freerun.checks.report import Probe, Verdict, distance


def shape(outputs: Any, batch: Batch) -> Verdict:
    """Outputs are (batch, time, ...)."""
    values = batch.targets.shape[-1]
    expected = f"({batch.size}, {batch.time}, " + ("vocab)" if batch.is_discrete else f"{values})")
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        kind = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        return f"the model must return a floating-point tensor {expected}; got {kind}"
    got = tuple(outputs.shape)
    if len(got) != 3 or got[:2] != (batch.size, batch.time):
        return f"outputs must be {expected}, batch first; got {got}"
    if not batch.is_discrete and (got[2] == 0 or got[2] % values):  # a distribution takes several numbers a value
        return f"outputs must be {expected} or, for a distribution, a multiple of the last number; got {got}"
    counted = batch.targets[batch.mask]
    if batch.is_discrete and counted.numel() and got[2] <= int(counted.max()):
        return f"outputs have {got[2]} numbers a position, and the targets hold the id {int(counted.max())}"
    return None


def deterministic(probe: Probe) -> Verdict:
    """A call gives the same again, whatever was read in between."""
    first = probe.model(probe.batch)
    if far := probe.moved(first):
        return (
            f"two calls in evaluation mode differ by {far:.2g}: draw random numbers only while self.training, and keep "
            "nothing from one call for the next (the other checks need this one)"
        )
    kept = first.clone()
    turned = probe.batch.select(torch.arange(probe.batch.size, device=first.device).roll(1))
    changed = probe.changed(turned.history, probe.everywhere)
    probe.run(turned.made(history=changed), "another batch between two calls")
    if far := probe.moved(first):
        return (
            f"the outputs of a call move by {far:.2g} when the model is called again: it writes into the tensor that "
            "it returned; return a new one"
        )
    if far := max(probe.moved(probe.model(probe.batch)), probe.moved(kept)):
        return (
            f"outputs differ by {far:.2g} after another batch was read in between: the model keeps a state from one "
            "call for the next; begin each call anew"
        )
    return None


def finite(probe: Probe) -> Verdict:
    """No NaN or infinity where it counts."""
    outputs = probe.outputs[probe.batch.mask]
    # a symbol ruled out by -inf is fine, unless it is the target
    broken = outputs.isnan() | (outputs == torch.inf)
    if probe.batch.is_discrete:
        target = outputs.gather(1, probe.batch.targets[probe.batch.mask][:, None])
        broken = torch.cat([broken, target.isinf()], 1)
    else:
        broken = ~outputs.isfinite()
    if bool(broken.any()):
        share = float(broken.any(1).float().mean())
        return (
            f"outputs hold NaN or infinity at {share:.0%} of the positions that count: look at the initialisation, and "
            "at rows of which a mask leaves nothing to attend to (an inverted mask)"
        )
    return None


def logits(probe: Probe) -> Verdict:
    """Outputs are no probabilities."""
    if not probe.batch.is_discrete:
        return ("not applicable", "the targets are values")
    outputs = probe.outputs[probe.batch.mask].float()
    one = (outputs.sum(1) - 1).abs() <= 1e-2
    if outputs.shape[1] > 1 and bool((one & (outputs >= 0).all(1)).all()):
        return (
            "every position's outputs are 0 or more and sum to 1: these are probabilities, and the loss and the draws "
            "take a softmax of them again; return logits (what softmax reads) or log-probabilities (log_softmax)"
        )
    return None


def mask_polarity(probe: Probe) -> Verdict:
    """What counts is not one symbol repeated."""
    batch = probe.batch
    counted, left_out = batch.targets[batch.mask], batch.targets[~batch.mask]
    if not len(left_out):
        return ("not applicable", "every position counts")
    both = batch.mask.any(1) & ~batch.mask.all(1)
    last = bool(batch.mask[both][:, -1].all()) and bool((~batch.mask[both][:, 0]).all())
    equal = bool((counted == counted[:1]).all()) and bool((left_out != left_out[:1]).any())
    if both.any() and last and equal and int(batch.mask.sum(1).max()) > 1:
        return (
            f"the positions that count all hold {counted[0].tolist()} and come after the others: mask is True where "
            "a position counts in the loss, and this one looks like one that is True at padding; use ~mask"
        )
    return None


def reads_targets(probe: Probe) -> Verdict:
    """Changing targets moves no output."""
    other = probe.batch.made(targets=probe.changed(probe.batch.targets, probe.everywhere))
    if far := probe.moved(probe.run(other, "the batch with other targets")):
        return (
            f"outputs move by {far:.2g} when only batch.targets change: the model must read its previous "
            "outputs from batch.history and never look at the targets"
        )
    return None


def reads_mask(probe: Probe) -> Verdict:
    """Changing mask, weights, eligible, rows moves no output."""
    batch = probe.batch
    numbers = batch.row_numbers.flip(0) + 1
    for what, other in (
        ("mask", batch.made(mask=probe.everywhere, eligible=batch.replaceable)),
        ("weights, eligible or rows", batch.made(weights=None, eligible=probe.everywhere, rows=numbers)),
    ):
        if far := probe.moved(probe.run(other, f"the batch with another {what}")):
            return (
                f"outputs move by {far:.2g} when only {what} of the batch change: they are about the loss and about "
                "what a roll-in may replace, which free running does not know; read lengths and padding from context"
            )
    return None


def causal(probe: Probe) -> Verdict:
    """Changing history[j] moves no output before j."""
    for j, far in probe.reactions.items():
        if j and max(far[:j]):
            return (
                f"outputs before position {j} move by {max(far[:j]):.2g} when history[{j}] changes: the model reads "
                "the future (bidirectional layer, missing causal mask, statistics over time)"
            )
    return None


def unshifted_history(probe: Probe) -> Verdict:
    """Changing history[t] does not move the output at t."""
    for t, far in probe.reactions.items():
        if far[t]:
            return (
                f"outputs at position t move when history[t] changes (by {far[t]:.2g} at t = {t}): under teacher "
                "forcing the model reads the very entry it must predict. Shift inside the model, so that position "
                "t reads history[:, :t]: torch.cat([start, history[:, :-1]], dim=1)"
            )
    return None


def reads_last_entry(probe: Probe) -> Verdict:
    """Changing history[t-1] moves outputs at t."""
    counted = probe.batch.mask.any(0).tolist()
    delays: list[int] = []
    for j, far in probe.reactions.items():
        later = [t for t in range(j + 1, len(far)) if far[t]]
        if later and counted[j + 1]:
            delays.append(later[0] - j)
    if not delays:
        return ("not applicable", "no output moves when a single entry before it changes")
    if 1 in delays:
        return None
    return (
        f"no output moves when the entry just before it changes (tried at {len(delays)} positions): outputs[:, t] "
        f"first react to history[:, t-{min(delays)}]. The history is shifted more than once, or the causal mask hides "
        "the last entry: batch.history is aligned with the targets, and the model shifts it by one: "
        "torch.cat([start, history[:, :-1]], dim=1)"
    )


def uses_history(probe: Probe) -> Verdict:
    """Changing the history moves outputs."""
    if probe.moved(probe.with_history(probe.everywhere, "the batch with every history entry changed")) == 0:
        return (
            "warning",
            "no output moves when the whole history changes: the model is not autoregressive, and a roll-in can make "
            "no difference; feed batch.history to the decoder",
        )
    return None


def history_order(probe: Probe) -> Verdict:
    """The order of the history moves outputs."""
    earlier = any(any(far[j + 2 :]) for j, far in probe.reactions.items())
    half = probe.batch.time // 2
    if not earlier or half < 2 or bool(probe.fixed(probe.batch.history[:, :half]).any()):
        return ("not applicable", "no output depends on an entry before the last one, or the batch is too short")
    after = probe.everywhere
    after[:, : half + 1] = False  # the last entry that these read stays as it is
    history = probe.batch.history
    turned = torch.cat([history[:, :half].flip(1), history[:, half:]], 1)
    blind = bool((turned != history).any()) and bool((probe.batch.mask & after).any())
    blind = blind and not probe.moved(probe.run(probe.batch.made(history=turned), "a history in another order"), after)
    if blind:
        return (
            "warning",
            "outputs depend on early entries of the history, and not on their order (its first half turned round, "
            "nothing moves): a Transformer needs positions (learned, sinusoidal or rotary); a bag of entries may be "
            "meant so",
        )
    return None


def _trailing(mask: Tensor) -> Tensor:
    # masked positions with nothing that counts after them; masked ones before may be a prompt
    return ~mask.flip(1).cummax(1).values.flip(1)


def pads_inert(probe: Probe) -> Verdict:
    """Changing padding moves no output that counts."""
    batch, pads = probe.batch, _trailing(probe.batch.mask)
    if not bool(pads.any()):
        return ("not applicable", "no row of this batch ends in padding")
    other = batch.made(history=probe.changed(batch.history, pads), targets=probe.changed(batch.targets, pads))
    if far := probe.moved(probe.run(other, "the batch with other entries in its padding")):
        return (
            f"outputs that count move by {far:.2g} when padding (masked, after the row's end) changes: leave "
            "masked positions out of every sum, mean and attention"
        )
    return None


def length_inert(probe: Probe) -> Verdict:
    """Cutting off later positions moves no output."""
    batch = probe.batch
    if batch.time < 2:
        return ("not applicable", "the batch has one position")
    fixed = probe.fixed(batch.history).any(0).nonzero()
    least = 2 + int(fixed.max()) if fixed.numel() else 1
    for time in sorted({max(time, least) for time in (1, batch.time // 2, batch.time - 1)} - {batch.time}):
        parts = ("targets", "history", *PER_POSITION)
        cut = {name: None if getattr(batch, name) is None else getattr(batch, name)[:, :time] for name in parts}
        tried = f"the batch's first {time} of {batch.time} positions with the context unchanged"
        outputs = probe.run(batch.made(**cut), tried)
        counted = batch.mask[:, :time]
        if far := distance(outputs[counted], probe.outputs[:, :time][counted], probe.tolerance):
            return (
                f"the first {time} outputs move by {far:.2g} when the positions after them are cut off: outputs may "
                "not depend on how long the batch is, or they change with padding and when running freely"
            )
    return None


def rows_independent(probe: Probe) -> Verdict:
    """Changing other rows moves no output."""
    batch = probe.batch
    if batch.size < 2:
        return ("not applicable", "the batch has one row")
    for row in range(batch.size):
        repeated = batch.select(torch.full((batch.size,), row, device=batch.history.device))
        outputs = probe.run(repeated, f"row {row} repeated {batch.size} times")[:, batch.mask[row]]
        alone = probe.outputs[row, batch.mask[row]].expand_as(outputs)
        if far := distance(outputs, alone, probe.tolerance):
            return (
                f"outputs of row {row} move by {far:.2g} when the other rows change: rows may not share "
                "statistics (batch norm without running averages, a mean over dimension 0, a layer or a context that "
                "is not batch first, something kept from an earlier call)"
            )
    return None


def learning(probe: Probe) -> Verdict:
    """Outputs carry a gradient."""
    model, batch = probe.model, probe.batch
    if not isinstance(model, nn.Module) or not any(weight.requires_grad for weight in model.parameters()):
        return ("not applicable", "the model is no module with parameters that learn")
    with torch.enable_grad():
        outputs = model(batch)
    if outputs.requires_grad:
        return None
    return (
        "outputs carry no gradient although parameters require one: nothing would be learned; take no_grad, detach, "
        ".data and argmax out of the forward"
    )


def training_mode(probe: Probe, known: frozenset[str]) -> Verdict:
    """Training mode sees no future and no target."""
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
        # few positions: what sees the future in training mode alone sees it from everywhere
        probe = Probe(seeded, batch, outputs, most=5)
        if probe.moved(seeded(batch)):
            return ("not applicable", "outputs in training mode are random beyond PyTorch's generator")
        for check in (reads_targets, causal, unshifted_history):
            verdict = None if check.__name__ in known else check(probe)
            if isinstance(verdict, str):
                norms = sorted({type(m).__name__ for m in model.modules() if isinstance(m, _NORMS) and m.training})
                what = f" ({', '.join(norms)} takes its statistics over all positions and rows)" if norms else ""
                return (
                    f"{verdict}. It does so in training mode alone{what}, so that training is not what free running "
                    "meets: use LayerNorm or RMSNorm, or keep batch normalisation in evaluation mode"
                )
        return _shared_in_training(probe)


def _shared_in_training(probe: Probe) -> Verdict:
    """Other rows move no output of a row in training mode."""
    batch = probe.batch
    if batch.size < 3:
        return None
    rows = torch.ones(batch.size, dtype=torch.int64, device=batch.history.device)
    rows[0] = 0  # every other row is row 1; dropout is the same, as it is drawn by position in the batch
    moved = probe.run(batch.select(rows), "rows of which all but the first are the second")
    first = batch.mask[0]
    if far := distance(moved[0, first], probe.outputs[0, first], probe.tolerance):
        return (
            "warning",
            f"outputs of row 0 move by {far:.2g} when the other rows change, in training mode alone: batch "
            "normalisation (or another layer) shares statistics between rows, padding among them, so that accumulation "
            "and several processes are not one batch: use LayerNorm or RMSNorm, or keep it in evaluation mode",
        )
    return None


_NORMS = nn.modules.batchnorm._BatchNorm


@contextmanager
def _training(model: nn.Module) -> Generator[Any]:
    """The model in the mode it would train in, every call with the same random numbers and buffers."""
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
