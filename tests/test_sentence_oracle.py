"""Sentence oracles: the hypotheses of a naive noisy beam of gold's length, the best of them, loss and gradient."""

import math
from types import SimpleNamespace

import pytest
import torch

import freerun as fr
import step_models
from builders import (
    ForwardOnly,
    assert_same_gradients,
    gradients,
    language_model,
    prompted,
    ragged,
    refused,
    seq2seq,
    transformer,
)
from freerun.keys import fold, uniform
from freerun.methods import costs
from freerun.types import GenerationDefaults
from oracles_methods import coin_table, cross_entropy

KEY, STEP, BEAMS, TEMPERATURE = 5, 3, 3, 0.5


def gumbel(row: int, position: int, slot: int, symbol: int) -> float:
    counters = (torch.tensor(each) for each in (row, position, slot, symbol))
    return -math.log(-math.log(max(float(uniform(fold(KEY, "draw", STEP), *counters)), 2.0**-54)))


@torch.no_grad()
def oracle_sentence(model, batch: fr.Batch, b: int, end: int | None, noise: bool, cost: str) -> list[int]:
    """One row's beam by lists: a hypothesis is (score, its symbols); every prefix is read by a forward of its own."""
    places = [t for t in range(batch.time) if batch.replaceable[b, t]]
    gold = [int(batch.history[b, t]) for t in places]
    alone, alive = batch.select(torch.tensor([b])), [(0.0, [])]
    for n, position in enumerate(places):
        found = []
        for slot, (score, symbols) in enumerate(alive):
            history = torch.zeros_like(alone.history)
            history[:, : places[0]] = alone.history[:, : places[0]]
            for t, symbol in zip(places, symbols, strict=False):
                history[0, t] = symbol
            logits = model(alone.replace(history=history))[0, position].tolist()
            if noise:
                logits = [z + gumbel(int(batch.row_numbers[b]), position, slot, v) for v, z in enumerate(logits)]
            total = math.log(sum(math.exp(z / TEMPERATURE) for z in logits))
            forced = end is not None and n == len(places) - 1 and gold[-1] == end
            for v, z in enumerate(logits):
                if (v == end) == forced or end is None:
                    found.append((score + z / TEMPERATURE - total, [*symbols, v]))
        alive = sorted(found, key=lambda each: -each[0])[:BEAMS]
    inner = len(gold) - int(gold[-1] == end)
    prices = [costs.COSTS[cost](symbols[:inner], gold[:inner]) for _, symbols in alive]
    return alive[prices.index(min(prices))][1]


MODELS = {
    "lstm": (seq2seq, ragged, 0),
    "gru": (lambda: seq2seq("gru"), ragged, 0),
    "transformer": (transformer, ragged, 0),
    "transformer, no end": (transformer, ragged, None),
    "forward only": (lambda: ForwardOnly(seq2seq()), ragged, 0),
    "language model, left prompts": (language_model, lambda: prompted("left"), None),
    "language model, right padding": (lambda: language_model("learned"), lambda: prompted("right"), None),
    "a decoder step": (lambda: step_models.lively(step_models.Bahdanau), ragged, 0),
}


@pytest.mark.parametrize(
    ("name", "noise", "cost"),
    [*((name, True, "bleu") for name in MODELS), ("lstm", False, "bleu"), ("transformer", True, "edit_distance")],
)
def test_history_loss_and_gradient_are_those_of_a_naive_beam(name, noise, cost):
    made, data, end = MODELS[name]
    model, batch = made().eval(), data()
    method = fr.sentence_oracle(0.4, noise=noise, cost=cost, end=end)
    outcome = method.run(model, batch, STEP, KEY)
    coins, history = coin_table(batch, 0.4, fold(KEY, "gate", STEP)), batch.history.clone()
    for b in range(batch.size):
        places = [t for t in range(batch.time) if batch.replaceable[b, t]]
        for t, symbol in zip(places, oracle_sentence(model, batch, b, end, noise, cost), strict=True):
            history[b, t] = batch.history[b, t] if coins[b, t] else symbol
    assert torch.equal(outcome.fed.history, history)
    assert not torch.equal(history, batch.history)
    expected = cross_entropy(model(batch.replace(history=history)), batch)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, expected))


def test_the_end_is_forced_to_golds_length():
    batch = ragged(size=12)
    fed = fr.sentence_oracle(0.0, end=0).transform(seq2seq(), batch, STEP, KEY)
    last = batch.mask.sum(1) - 1
    assert bool((fed.history.gather(1, last[:, None]) == 0).all())
    inner = torch.arange(batch.time) < last[:, None]
    assert bool((fed.history[inner] != 0).all())


def test_rows_do_not_depend_on_each_other():
    model, batch, method = transformer(), ragged(size=6), fr.sentence_oracle(0.0, end=0)
    whole = method.transform(model, batch, STEP, KEY).history
    for rows in ([4, 1], [0], [5, 3, 2]):
        part = method.transform(model, batch.select(torch.tensor(rows)), STEP, KEY).history
        assert torch.equal(part, whole[rows])


class Endless(torch.nn.Module):
    """A model that never ends rows of some numbers."""

    def __init__(self, rows: set[int]) -> None:
        super().__init__()
        self.model, self.rows = transformer(), rows

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        never = torch.tensor([int(row) in self.rows for row in batch.row_numbers])
        return self.model(batch).masked_fill(never[:, None, None] & (torch.arange(5) == 0), -torch.inf)


def test_a_row_without_a_hypothesis_keeps_gold_and_the_others_theirs():
    batch = ragged(size=6, time=10)
    shortest = int(batch.row_numbers[batch.mask.sum(1).argmin()])
    model, method = Endless({shortest, 10}), fr.sentence_oracle(0.0, end=0)
    fed = method.transform(model, batch, STEP, KEY).history
    for b in range(batch.size):
        n = int(batch.mask[b].sum())
        gone = int(batch.row_numbers[b]) in model.rows
        expected = batch.history[b, :n].tolist() if gone else oracle_sentence(model, batch, b, 0, True, "bleu")
        assert fed[b, :n].tolist() == expected
    assert not torch.equal(fed, batch.history)
    every = Endless(set(batch.row_numbers.tolist()))
    assert torch.equal(method.transform(every, batch, STEP, KEY).history, batch.history)


class Forbidding(fr.models.TransformerSeq2Seq):
    """A model whose generation settings allow nothing."""

    def generation_defaults(self, batch: fr.Batch) -> GenerationDefaults:
        return GenerationDefaults(ends=(0,))

    def generation_rules(self, batch: fr.Batch, **_) -> SimpleNamespace:
        return SimpleNamespace(apply=lambda outputs, *_, **__: torch.full_like(outputs, -torch.inf))

    def scored(self, batch: fr.Batch) -> fr.Batch:
        return batch


def test_rules_that_allow_nothing_leave_gold():
    model, batch = Forbidding(6, 5, size=8, heads=2, max_positions=64), ragged()
    assert torch.equal(fr.sentence_oracle(0.0).transform(model, batch, STEP, KEY).history, batch.history)


def test_more_beams_come_closer_to_gold():
    """The cost of the oracle over 64 rows is lower with 8 beams than with 1, and below that of samples."""
    model, batch, found = seq2seq(), ragged(size=64), []
    for beams in (1, 8):
        method = fr.sentence_oracle(0.0, beams=beams, end=0, cost="edit_distance", temperature=1.0)
        fed = method.transform(model, batch, STEP, KEY)
        found.append(sum(costs.costs_of("edit_distance", fed.history.tolist(), batch.history.tolist())))
    samples = fr.free_running().transform(model, batch, STEP, KEY)
    assert found[1] < 0.8 * found[0]
    assert found[1] < sum(costs.costs_of("edit_distance", samples.history.tolist(), batch.history.tolist()))


def test_it_is_refused_where_it_cannot_be():
    refused("cost must be one of edit_distance, bleu", fr.sentence_oracle, 0.5, cost="blue")
    refused("beams must be", fr.sentence_oracle, 0.5, beams=0)
    refused("temperature must be", fr.sentence_oracle, 0.5, temperature=0.0)
    for ratio, model in ((1.0, seq2seq()), (0.0, ForwardOnly(seq2seq()))):
        refused("end must be one of the model's 5 ids; got 99", fr.sentence_oracle(ratio, end=99), model, ragged(), 0)
    values = fr.Batch(torch.randn(1, 3, 1))
    refused("these targets are values", fr.sentence_oracle(0.5), lambda batch: batch.history, values, 0)
    batch = ragged()
    apart = batch.replace(eligible=batch.mask & (torch.arange(batch.time) != 1))
    refused("known entries between others", fr.sentence_oracle(0.0, end=0), seq2seq(), apart, 0)


def test_rows_of_which_nothing_is_replaced_are_no_hindrance():
    ids = torch.tensor([[3, 4, 1, 2], [2, 0, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    batch = fr.Batch(ids, mask=mask, eligible=torch.nn.functional.pad(mask[:, 1:], (0, 1)))
    method, model = fr.sentence_oracle(0.0, end=2), fr.models.TransformerLM(5, size=8, heads=2, layers=1)
    method.refuse_rows(model, batch)
    assert method(model, batch, step=0, key=0).isfinite()
