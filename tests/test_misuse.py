"""Misuse of the library, kind by kind: a mistake is answered by name, and what is right goes through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import freerun as fr


def zeros(batch: fr.Batch) -> torch.Tensor:
    return torch.zeros(batch.size, batch.time, 7)


IDS = torch.tensor([[3, 1, 4, 1], [5, 2, 6, 0]])
BATCH = fr.Batch(IDS, IDS, IDS > 0)


@pytest.mark.parametrize("call", ["__call__", "run", "transform"])
@pytest.mark.parametrize("step", [None, 1.5, -1, "3", True, 2**63, torch.tensor(1.0), torch.tensor(True)])
def test_step_must_be_given_and_whole(call: str, step: object) -> None:
    named = {} if step is None else {"step": step}
    with pytest.raises(fr.UserError, match="schedule would stand still" if step is None else "whole number from 0 on"):
        getattr(fr.scheduled_sampling(0.5), call)(zeros, BATCH, **named)


def test_a_step_of_any_integer_type() -> None:
    method = fr.scheduled_sampling(0.5)
    fed = [method.transform(zeros, BATCH, step).history for step in (3, np.int64(3), torch.tensor(3), fr.Step(3))]
    assert all(torch.equal(fed[0], each) for each in fed[1:])
