"""One line of the price table: a model, a batch and a ratio; engines, loops by hand, and two passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

import freerun as fr
import loops
import tables
from cases import Case
from freerun.draws import Sample
from freerun.keys import fold
from freerun.rollin import Replacement, draft_roll_in, eval_mode, supports
from freerun.types import Cached, Stepper
from timing import Step, Taken, clock_of, load, native_bfloat16, prices, take

__all__ = ["BASE", "Options", "by_hand_line", "dropout_line", "exact_engines", "line", "violations"]

BASE = "teacher forcing"
GUMBEL = Sample(coupling="gumbel")
Loss = Callable[[nn.Module, fr.Batch, int], "fr.Outcome | torch.Tensor"]


@dataclass(frozen=True)
class Options:
    """How it is measured.

    Args:
        repetitions: of every variant.
        device: "cpu" or "cuda".
        amp: train in bfloat16 autocast; the draft is then certified in that precision.
        widths: of the windows that are timed.
    """

    repetitions: int = 15
    device: str = "cpu"
    amp: bool = False
    widths: tuple[int, ...] = (1, 2, 4, 8)


def exact_engines(case: Case, options: Options) -> dict[str, tuple[Any, Sample]]:
    """Name -> engine and draw of everything exact that is timed; ``auto`` last."""
    plain = Sample()
    engines: dict[str, tuple[Any, Sample]] = {"step": ("step", plain)} if supports(case.model, Stepper) else {}
    engines |= {"jacobi, Gumbel": ("jacobi", GUMBEL), "jacobi, inverse CDF": ("jacobi", plain)}
    if supports(case.model, Cached):
        engines |= {f"window {width}": (fr.Window(width), plain) for width in options.widths}
    if case.kind != "lstm-attention":
        engines["draft float32"] = (fr.Draft(torch.float32), GUMBEL)
        if native_bfloat16(options.device):
            engines["draft bfloat16"] = (fr.Draft(torch.bfloat16), GUMBEL)
    return {**engines, "auto, Gumbel": ("auto", GUMBEL), "auto": ("auto", plain)}


def _step(case: Case, options: Options, loss: Loss, optimizer: torch.optim.Optimizer | None = None) -> Step:
    """Zero gradients, forward, backward; with an optimizer also its step, on batches whose source is not encoded."""
    batches = case.timed if optimizer is None else case.batches

    def run(n: int) -> fr.Outcome | None:
        case.model.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.amp or case.amp):
            found = loss(case.model, batches[n % len(batches)], n)
        (found if isinstance(found, torch.Tensor) else found.loss).backward()
        if optimizer is not None:
            optimizer.step()
        return None if isinstance(found, torch.Tensor) else found

    return run


def _of(method: Any) -> Loss:
    return lambda model, batch, n: method.run(model, batch, 0, n)


def line(case: Case, ratio: float, options: Options, *, warm: bool = True) -> dict[str, Any]:
    """Prices, passes, work and certificates at one ratio; the keys at the top are those of the first version."""
    engines = exact_engines(case, options)
    model: Any = case.model
    by_hand = loops.HAND.get(case.kind, {"by hand": loops.cached_loop} if supports(case.model, Stepper) else {})
    losses: dict[str, Loss] = {BASE: _of(fr.teacher_forcing())}
    losses |= {name: _of(fr.scheduled_sampling(ratio, engine=e, draw=d)) for name, (e, d) in engines.items()}
    losses["two passes"] = _of(fr.two_pass(ratio, mix="sample"))
    for name, loop in by_hand.items():
        losses[name] = lambda model, batch, n, loop=loop: loop(cast(Any, model), batch, ratio)
    steps = {name: _step(case, options, loss) for name, loss in losses.items()}
    # a rate of 0: the weights stay what they are, and the optimizer works as ever
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    for name in (BASE, "auto"):
        steps[f"whole step, {name}"] = _step(case, options, losses[name], optimizer)
    taken = take(steps, options.repetitions, clock_of(options.device), warm=warm)
    cost = prices(taken, BASE)
    whole = prices({k: v for k, v in taken.items() if k.startswith("whole")}, f"whole step, {BASE}")
    exact = {name: cost[name] for name in engines if not name.startswith("auto") and name in cost}
    best = min(exact, key=exact.__getitem__)
    hand = min((cost[name] for name in by_hand if name in cost), default=None)
    auto = taken["auto"]
    return {
        "model": case.kind,
        **case.facts,
        "weights": case.weights,
        "teacher_forcing_ratio": ratio,
        "engine": _said(auto, "engine"),
        "price": round(cost["auto"], 3),
        "hand_written_price": None if hand is None else round(hand, 3),
        "training_step_price": round(whole["whole step, auto"], 3),
        "extra_model_calls": auto.mean("passes"),
        "teacher_forcing_seconds": round(sorted(taken[BASE].seconds)[options.repetitions // 2], 4),
        "repetitions": options.repetitions,
        "load": load(),
        "engines": {name: _numbers_of(taken[name], cost.get(name)) for name in (*engines, "two passes")},
        "auto_over_best": round(cost["auto"] / exact[best], 3),
        "best": best,
        **_agreement(taken, engines),
        **_approximate(case, ratio, taken, options),
    }


def violations(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Lines at which a loop by hand is cheaper than ``auto``, or by more than 8 % an engine that it did not take.

    ``auto`` never changes a draw's coupling: engines are compared with ``auto`` under the same one.
    """
    found: list[str] = []
    for each in lines:
        where = f"{each['model']} {tables.size(each)}, {each['weights']}, ratio {each['teacher_forcing_ratio']:g}"
        price, hand, engines = each["price"], each["hand_written_price"], each["engines"]
        if hand is not None and hand < price:
            found.append(f"{where}: by hand {hand:.2f}, auto ({each['engine']}) {price:.2f}")
        for auto in ("auto", "auto, Gumbel"):
            mine = engines.get(auto, {})
            if "took" not in mine:  # measured before it was noted
                continue
            others = {name: other for name, other in engines.items() if _coupling(name) == auto and "price" in other}
            best = min(others, key=lambda name: others[name]["price"], default=auto)
            if mine["price"] > 1.08 * engines[best]["price"] and engines[best]["took"] != mine["took"]:
                found.append(
                    f"{where}: {best} {engines[best]['price']:.2f}, {auto} ({mine['took']}) {mine['price']:.2f}"
                )
    return found


def _coupling(name: str) -> str:
    """The choice that an engine's is compared with: ``auto`` of the same coupling."""
    if name in ("auto", "auto, Gumbel", "two passes"):
        return ""
    return "auto, Gumbel" if "Gumbel" in name or name.startswith("draft") else "auto"


def _said(taken: Taken, name: str) -> str:
    """Fields of the first report."""
    return str(taken.outcomes[0][0].get(name, "")) if taken.outcomes else ""


def _numbers_of(taken: Taken, price: float | None) -> dict[str, Any]:
    if price is None:
        return {"failed": taken.failed}
    numbers = {name: taken.mean(name) for name in ("passes", "work")}
    rounded = {name: None if value is None else round(value, 2) for name, value in numbers.items()}
    return {"price": round(price, 3), **rounded, "took": _said(taken, "engine"), "certified": _said(taken, "certified")}


def _agreement(taken: Mapping[str, Taken], engines: Mapping[str, tuple[Any, Sample]]) -> dict[str, int]:
    """Own entries at which an engine differs from the first one of its coupling, over all repetitions.

    Only the first in a row counts: later ones follow another history.
    """
    differing = compared = 0
    for draw in (Sample(), GUMBEL):
        first, *others = [taken[name] for name, (_, own) in engines.items() if own == draw and not taken[name].failed]
        for other in others:
            for (report, history), (_, same) in zip(first.outcomes, other.outcomes, strict=False):
                differing += int((history != same).any(1).sum())
                compared += int(report["replaced"])
    return {"compared_entries": compared, "differing_entries": differing}


def _approximate(case: Case, ratio: float, taken: Mapping[str, Taken], options: Options) -> dict[str, Any]:
    """How wrong approximations are: shares of own entries that two passes get wrong, of rows that a draft does."""
    wrong = {"inverse CDF": (taken["auto"], taken["two passes"].outcomes)}
    model, batches = case.model, case.timed
    one_pass = fr.scheduled_sampling(ratio, engine=1, draw=GUMBEL)
    with torch.autocast(options.device, torch.bfloat16, enabled=options.amp or case.amp):
        histories = [
            one_pass.transform(model, batches[n % len(batches)], 0, n).history for n in range(options.repetitions)
        ]
        redone = {} if case.kind == "lstm-attention" else _redone(case, ratio, taken["jacobi, Gumbel"])
    wrong["Gumbel"] = (taken["jacobi, Gumbel"], [({}, history) for history in histories])
    shares = {
        name: _share(exact, [history for _, history in other])
        for name, (exact, other) in wrong.items()
        if not exact.failed
    }
    return {"two_passes_wrong": shares, "rows_redone": redone}


def _share(exact: Taken, others: list[torch.Tensor]) -> float:
    differing = sum(int((history != other).sum()) for (_, history), other in zip(exact.outcomes, others, strict=False))
    return round(differing / max(1, sum(int(report["replaced"]) for report, _ in exact.outcomes)), 4)


@torch.no_grad()
def _redone(case: Case, ratio: float, exact: Taken) -> dict[str, float]:
    """The share of rows whose draft is not the exact history: those that the certificate rejects."""
    found: dict[str, float] = {}
    batch, key = case.timed[0], 0
    keep = fr.gates.resolve("token")(batch, ratio, fold(key, "gate", 0))
    plan = Replacement.of(batch, keep, GUMBEL, fold(key, "draw", 0))
    if exact.failed or plan.number == 0:
        return found
    for dtype in (torch.float32, torch.bfloat16):
        with eval_mode(case.model):
            drafted = draft_roll_in(case.model, batch, plan, fr.Draft(dtype)).history
        found[str(dtype).removeprefix("torch.")] = round(
            float((drafted != exact.outcomes[0][1]).any(1).float().mean()), 4
        )
    return found


def by_hand_line(case: Case, ratio: float, rows: int, options: Options) -> dict[str, Any]:
    """The full-prefix loop, with and without the graph kept, once, on a few rows: it is slow and needs much memory."""
    few = case.rows(rows)

    def full_prefix(graph: bool) -> Loss:
        return lambda model, batch, n: loops.full_prefix_loop(model, batch, ratio, graph)

    losses = {BASE: _of(fr.teacher_forcing()), "without graph": full_prefix(False), "graph kept": full_prefix(True)}
    steps = {name: _step(few, options, loss) for name, loss in losses.items()}
    steps["auto"] = _step(few, options, _of(fr.scheduled_sampling(ratio)))
    cost = prices(take(steps, 1, clock_of(options.device), warm=False), BASE)
    facts = {**case.facts, "batch": rows}
    return {"model": case.kind, **facts, "weights": case.weights, "teacher_forcing_ratio": ratio, "full_prefix": cost}


def dropout_line(case: Case, ratio: float, rate: float, options: Options) -> dict[str, Any]:
    """Prices with dropout, as multiples of teacher forcing with the same dropout; the roll-in has none.

    The training forward is then another function than the roll-in and cannot certify it. ``draft`` makes a certifying
    pass of its own; the other way is to have dropout in the roll-in too and to replay its masks.
    """
    dropped = case.with_dropout(rate)
    losses: dict[str, Loss] = {BASE: _of(fr.teacher_forcing())}
    for name, (engine, draw) in exact_engines(case, options).items():
        if name in ("auto", "jacobi, Gumbel") or name.startswith("draft"):
            losses[name] = _of(fr.scheduled_sampling(ratio, engine=engine, draw=draw))
    if case.kind != "lstm-attention":
        losses["masks replayed"] = lambda model, batch, n: loops.replayed_masks(model, batch, ratio, n)
    taken = take(
        {k: _step(dropped, options, v) for k, v in losses.items()}, options.repetitions, clock_of(options.device)
    )
    cost = prices(taken, BASE)
    engines = {name: _numbers_of(mine, cost.get(name)) for name, mine in taken.items() if name != BASE}
    facts = {**case.facts, "weights": case.weights, "teacher_forcing_ratio": ratio, "dropout": rate}
    return {"model": case.kind, **facts, "engines": engines}
