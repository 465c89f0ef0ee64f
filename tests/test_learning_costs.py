"""Methods that learn from their own runs to the end lower the cost that they are for, after teacher forcing."""

import copy
from functools import lru_cache

import pytest
import torch

import freerun as fr

END, SYMBOLS, LONGEST = 0, 6, 5


def reversals(size: int, seed: int) -> fr.Batch:
    """Sources of 2 to 5 symbols; the target is the source from its end to its beginning, then the end symbol."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, LONGEST + 1, (size,), generator=g)
    there = torch.arange(LONGEST) < lengths[:, None]
    source = torch.randint(1, SYMBOLS, (size, LONGEST), generator=g).masked_fill(~there, 0)
    back = (lengths[:, None] - 1 - torch.arange(LONGEST + 1)).clamp_min(0)
    mask = torch.arange(LONGEST + 1) <= lengths[:, None]
    targets = source.gather(1, back).masked_fill(torch.arange(LONGEST + 1) >= lengths[:, None], END)
    rows = torch.arange(size) + seed * size
    return fr.Batch(targets, targets, mask, {"source": source, "source_mask": there}, rows=rows)


def trained(model, method, steps: int, seed: int, rate: float):
    """A copy of the model after so many updates on rows that it sees once."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        method(model, reversals(32, seed * 100_000 + step), step, seed).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate * (1 - 0.9 * step / steps)
    return model


def edits(model) -> float:
    """Edit distance of greedy free runs on 400 held-out rows, per row."""
    held = reversals(400, 99_999_999)
    made = fr.generate(model, held, length=LONGEST + 5, end=END)
    own = [ids[:n] for ids, n in zip(made.entries.tolist(), made.lengths.tolist(), strict=True)]
    gold = [ids[: int(n) - 1] for ids, n in zip(held.targets.tolist(), held.mask.sum(1), strict=True)]
    return sum(fr.methods.costs.edit_distance(a, b) for a, b in zip(own, gold, strict=True)) / len(own)


@lru_cache
def forced(seed: int = 0):
    """A model too briefly taught to be right, and its cost."""
    torch.manual_seed(seed)
    model = fr.models.RecurrentSeq2Seq(SYMBOLS, SYMBOLS, size=24, layers=1, cell="gru", attention="luong")
    model = trained(model, fr.teacher_forcing(), 80, 2 * seed + 1, 0.01)
    return model, edits(model)


METHODS = {
    "minimum_risk": fr.minimum_risk(num_samples=6, alpha=0.5, end=END),
    "self_critical": fr.self_critical(num_samples=10, baseline="mean", end=END),
    "optimal_completion": fr.optimal_completion(end=END),
}


@pytest.mark.slow(reason="three trainings of about ten seconds")
@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_forced_model_comes_to_cost_less(name):
    """From 0.39, 0.49 and 0.35 edits a row, seeds 0 to 2, down by at least 0.13, 0.05 and 0.11, in this order."""
    start, before = forced()
    assert before > 0.3
    assert edits(trained(start, METHODS[name], 60, 2, 0.003)) < before - 0.04
