"""Strict numerics for every test."""

import gc
import os

import pytest
import torch


def pytest_collection_modifyitems(items):
    # an address differs from process to process, and workers that collect other names run nothing
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    assert not unstable, f"names of tests must be the same in every process: {unstable[:3]}"


def pytest_collection_finish():
    # a trainer collects garbage when it begins and ends: half a second each among all that the suite imports and lists
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_environment():
    """What a trainer sets (Lightning names ranks) must not tell the next test's trainer that it is distributed."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        if "RANK" in name or "WORLD_SIZE" in name or name.startswith("MASTER_"):
            del os.environ[name]


@pytest.fixture(autouse=True)
def _strict_numerics():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
