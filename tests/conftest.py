"""Strict numerics for every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _strict_numerics():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
