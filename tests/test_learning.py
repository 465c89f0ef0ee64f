"""Worlds with a known answer: a model must reach it running freely, not just under teacher forcing."""

import pytest
import torch

import freerun as fr
from freerun.keys import fold

SYMBOLS, LONGEST = 6, 5


def batch(task: str, size: int, seed: int) -> fr.Batch:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, LONGEST + 1, (size,), generator=g)
    source = torch.randint(1, SYMBOLS, (size, LONGEST), generator=g)
    inside = torch.arange(LONGEST) < lengths[:, None]
    source = source.masked_fill(~inside, 0)
    mirror = (lengths[:, None] - 1 - torch.arange(LONGEST)).clamp_min(0)
    output = source if task == "copy" else source.gather(1, mirror).masked_fill(~inside, 0)
    targets = torch.cat([output, torch.zeros(size, 1, dtype=torch.long)], 1)
    mask = torch.arange(LONGEST + 1) <= lengths[:, None]
    return fr.Batch(targets, targets, mask, {"source": source, "source_mask": inside})


def learned(task: str, method, updates: int) -> float:
    """Share of 200 unseen strings predicted without a mistake, running freely."""
    torch.manual_seed(0)
    model = fr.models.RecurrentSeq2Seq(SYMBOLS, SYMBOLS, size=48)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(updates):
        optimizer.zero_grad()
        method(model, batch(task, 64, seed=step), step, fold(0, "train")).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / updates)
    test = batch(task, 200, seed=10**6)
    result = fr.generate(model, test, length=LONGEST + 1, end=0)
    return float(((result.entries == test.targets) | ~test.mask).all(1).double().mean())


@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_scheduled_sampling_learns_to_run_freely(task):
    """Chance is below 1e-3 a string; 0.95 is reached with room to spare on the seeds tried."""
    method = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.3, steps=300))
    assert learned(task, method, 300) >= 0.95


@pytest.mark.slow(reason="eight trainings of about ten seconds")
@pytest.mark.parametrize("task", ["copy", "reverse"])
@pytest.mark.parametrize("name", ["teacher_forcing", "falling", "rising", "noise"])
def test_every_method_learns_where_the_target_is_a_function_of_the_source(task, name):
    """There scheduled sampling is consistent at any ratio (docs/mixture.md), and so is noise."""
    method = {
        "teacher_forcing": fr.teacher_forcing(),
        "falling": fr.falling(400),
        "rising": fr.rising(400),
        "noise": fr.token_noise(0.3, vocabulary=SYMBOLS),
    }[name]
    assert learned(task, method, 400) >= 0.95
