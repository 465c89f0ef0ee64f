"""The order of batches, the rate of learning and the averaged weights are functions that can be checked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import refused
from freerun.errors import UserError
from freerun.training import BatchPlan, TrainSettings, learning_rate
from freerun.training.optim import Ema, load_optimizer, make_optimizer, optimizer_tensors
from freerun.training.plan import pieces
from freerun.training.weights import pack, unpack


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=300),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    bucket=st.booleans(),
)
def test_every_epoch_is_a_permutation(lengths, size, seed, bucket):
    plan = BatchPlan(lengths, size, seed=seed, bucket=bucket)
    for epoch in range(2):
        batches = [plan.at(epoch * len(plan) + index) for index in range(len(plan))]
        assert sorted(i for batch in batches for i in batch.indices.tolist()) == list(range(len(lengths)))
        assert {batch.epoch for batch in batches} == {epoch}
        before = 0
        for batch in batches:
            assert batch.step.sample == epoch * len(lengths) + before
            before += len(batch.indices)


def test_a_batch_hangs_on_seed_and_step_alone():
    lengths = [i % 17 + 1 for i in range(500)]
    plan, other = BatchPlan(lengths, 16, seed=3), BatchPlan(lengths, 16, seed=3)
    there = [plan.at(step).indices.tolist() for step in range(100)]
    back = [other.at(step).indices.tolist() for step in reversed(range(100))]
    assert there == back[::-1]
    assert there != [BatchPlan(lengths, 16, seed=4).at(step).indices.tolist() for step in range(100)]
    assert there[:32] != there[32:64], "the epochs must differ"


def test_buckets_hold_like_lengths_in_shuffled_order():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (6400,), generator=generator)

    def spread(bucket: bool) -> float:
        plan = BatchPlan(lengths.tolist(), 32, seed=0, bucket=bucket)
        found = [lengths[plan.at(step).indices] for step in range(len(plan))]
        return sum(float(found_.max() - found_.min()) for found_ in found) / len(found)

    assert spread(True) < 2 < 30 < spread(False)
    plan = BatchPlan(lengths.tolist(), 32, seed=0)
    means = torch.tensor([float(lengths[plan.at(step).indices].float().mean()) for step in range(len(plan))])
    # of 200 batches in random order the correlation with the place is below 4 / sqrt(200) with p > 0.9999
    assert abs(float(torch.corrcoef(torch.stack([means, torch.arange(200.0)]))[0, 1])) < 4 / math.sqrt(200)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
def test_micro_batches_number_the_rows_of_the_whole_update(parts):
    planned = BatchPlan(range(1, 41), 10, seed=1).at(2)
    cut = pieces(planned, parts)
    assert len(cut) == min(parts, 10)
    assert [i for piece in cut for i in piece.indices] == planned.indices.tolist()
    assert torch.cat([piece.rows for piece in cut]).tolist() == list(range(10))


@pytest.mark.parametrize(("accumulate", "size"), [(1, 2), (2, 2), (3, 2), (2, 3), (5, 7)])
def test_processes_share_out_the_pieces_of_one(accumulate, size):
    planned = BatchPlan(range(1, 41), 10, seed=1).at(2)
    one = pieces(planned, accumulate * size)
    each = [pieces(planned, accumulate, rank, size) for rank in range(size)]
    assert len({len(own) for own in each}) == 1, "all make the same number of calls"
    found = {piece.number: piece for own in each for piece in own if piece.counts}
    assert [found[n].indices for n in range(len(one))] == [piece.indices for piece in one]
    assert all(torch.equal(found[n].rows, piece.rows) for n, piece in enumerate(one))
    assert len(found) == len(one)


def test_no_example_is_an_error():
    refused("no training example", BatchPlan, [], 4, seed=0)


def test_rates_of_learning():
    def rates(decay: str) -> list[float]:
        chosen = TrainSettings(updates=100, lr=0.5, warmup=10, decay=decay)  # type: ignore[arg-type]
        return [learning_rate(step, chosen) for step in range(100)]

    for decay in ("constant", "linear", "cosine", "inverse_sqrt"):
        assert rates(decay)[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert set(rates("constant")[10:]) == {0.5}
    assert rates("linear")[55] == pytest.approx(0.25)
    assert rates("linear")[99] == pytest.approx(0.5 / 90)
    assert rates("cosine")[55] == pytest.approx(0.25)
    assert rates("cosine")[99] == pytest.approx(0.25 * (1 + math.cos(math.pi * 89 / 90)))
    assert rates("inverse_sqrt")[39] == pytest.approx(0.25)
    assert learning_rate(0, TrainSettings(updates=5, warmup=5)) == pytest.approx(2e-4)


def test_settings_name_every_problem():
    with pytest.raises(UserError) as error:
        TrainSettings(updates=0, lr=-1.0, ema=1.0, decay="cubic", keep=0, clip=math.nan)  # type: ignore[arg-type]
    for word in ("updates", "lr", "ema", "decay", "keep", "clip", "inverse_sqrt"):
        assert word in str(error.value)
    refused(r"updates must be a whole number from 1 to 99999999; got 1.5", TrainSettings, updates=1.5)  # type: ignore[arg-type]
    refused("accumulate cuts batch_size", TrainSettings, accumulate=99)
    refused("bucket must be True or False; got 1", TrainSettings, bucket=1)  # type: ignore[arg-type]


def test_the_average_is_the_published_one():
    model = torch.nn.Linear(3, 2)
    ema = Ema(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.tensors["weight"], expected)
    raw = model.weight.detach().clone()
    with ema.applied(model):
        assert torch.equal(model.weight, ema.tensors["weight"])
    assert torch.equal(model.weight, raw)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_an_optimizer_read_back_goes_on_with_the_same_bits(kind):
    chosen = TrainSettings(optimizer=kind, lr=0.1, weight_decay=0.1)  # type: ignore[arg-type]

    def grown(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            model(torch.randn(4, 3, generator=generator)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model, copy = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, chosen)
    grown(model, optimizer, range(5))
    memory = unpack(pack(optimizer_tensors(model, optimizer)))
    copy.load_state_dict(model.state_dict())
    again = make_optimizer(copy, chosen)
    load_optimizer(copy, again, memory)
    grown(model, optimizer, range(5, 9))
    grown(copy, again, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))


def test_weight_decay_leaves_biases_alone():
    groups = make_optimizer(torch.nn.Linear(3, 2), TrainSettings(weight_decay=0.1)).param_groups
    assert {group["params"][0].dim(): group["weight_decay"] for group in groups} == {2: 0.1, 1: 0.0}
