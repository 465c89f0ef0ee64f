import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from builders import refused
from freerun.data import PairData, Pairs, load_toy
from freerun.metrics.outputs import correct, sequence_accuracy, sequence_correct, sequence_errors, token_accuracy
from freerun.metrics.text import nearest, score, score_texts, score_translations
from freerun.models import RecurrentSeq2Seq
from freerun.tasks import TASKS
from freerun.tasks.pairs import EvaluateSettings, PairTask, free_outputs


def test_per_is_distance_to_the_nearest_reference_over_its_length():
    outputs = [("A", "B"), ("A",), ()]
    references = [[("A", "B", "C"), ("X",)], [("B",), ("A",)], [("A", "B", "C", "D")]]
    metrics, items = score(outputs, references)
    found = [(item["errors"], item["length"], item["wrong"]) for item in items]
    assert found == [(1, 3, True), (0, 1, False), (4, 4, True)]
    assert metrics == {"per": pytest.approx(100 * 5 / 8), "wer": pytest.approx(100 * 2 / 3)}
    for outputs, references in (([], []), ([("A",)], []), ([("A",)], [[]]), ([("A",)], [[()]])):
        refused("", score, outputs, references)


def test_symbols_of_several_characters_count_as_one():
    assert nearest(("AA", "K"), [("AE", "K")]) == (1, 2)
    assert nearest(("d͡ʒ",), [("d", "ʒ")]) == (2, 2)
    # insertion, deletion and substitution cost 1 each, and of equally near references the first counts
    assert nearest(("A",), [("B", "A"), ("A", "B", "C"), ("B",)]) == (1, 2)


def test_metrics_by_hand():
    targets = torch.tensor([[1, 2, 0], [2, 0, 0], [1, 1, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]).bool()
    outputs = F.one_hot(torch.tensor([[1, 1, 0], [2, 0, 2], [0, 0, 0]]), 3).float()
    outputs[1, 2] = math.nan
    assert correct(outputs, targets, mask).sum() == 4
    assert token_accuracy(outputs, targets, mask).item() == pytest.approx(4 / 5)
    assert sequence_errors(outputs, targets, mask).tolist() == [1, 0, 0]
    assert sequence_correct(outputs, targets, mask).tolist() == [False, True, True]
    assert sequence_accuracy(outputs, targets, mask).item() == pytest.approx(1 / 2)
    refused(r"got \(3, 3, 3\), \(3, 3\), \(3, 2\)", correct, outputs, targets, mask[:, :2])


class Counting(nn.Module):
    """Predicts 1 2 3 5 6 7 ... from its history: one wrong choice after 3, which free running drags along."""

    def __init__(self, vocab, last):
        super().__init__()
        self.vocab, self.last, self.dropout = vocab, last, nn.Dropout(0.5)

    def forward(self, batch):
        assert not self.training
        previous = F.pad(batch.history, (1, 0))[:, :-1]
        following = previous + 1 + (previous == 3).long()
        following = following.masked_fill(previous == self.last, 0).clamp(max=self.vocab - 1)
        return F.one_hot(following, self.vocab).float() * 1e4


@pytest.fixture
def counting():
    symbols = tuple("abcdefgh")
    pairs = Pairs([("x",), ("x", "x")], [[symbols[:7], ("h",)], [symbols[:3], symbols[:7]]], "here")
    every = Pairs([("x",)], [[symbols]], "here")
    return PairData({"train": every, "dev": pairs, "test": pairs}), Counting(9, 7)


def test_one_wrong_choice_costs_more_running_freely(counting):
    data, model = counting
    model.train()
    model.dropout.eval()
    result = PairTask(data).evaluate(model, "test")
    assert (model.training, model.dropout.training) == (True, False)
    # word 1: best reference a..g, one wrong choice of 8; the output is a b c e f g: one deletion
    assert [item["output"] for item in result.items] == ["a b c e f g"] * 2
    first = {"source": "x", "output": "a b c e f g", "references": ["a b c d e f g", "h"]}
    assert result.items[0] == first | {"errors": 1, "length": 7, "wrong": True}
    # word 2: a b c ends after one wrong choice of 4, which counts over its 3 symbols, as the first of two
    assert result.teacher_forced["per"] == pytest.approx(100 * 2 / 10)
    assert result.teacher_forced["wer"] == 100
    assert result.free_running == {"per": pytest.approx(100 * (1 + 1) / (7 + 7)), "wer": 100, "sequence_accuracy": 0}


@pytest.fixture(scope="module")
def trained():
    """A small model, trained until it is right on some words and wrong on others."""
    torch.manual_seed(0)
    data = load_toy("copy", symbols=5, max_length=6, words={"train": 400, "dev": 100, "test": 60})
    model = RecurrentSeq2Seq(*data.codec.sizes, size=32, dropout=0.1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(60):
        batch = data.batch([(64 * step + i) % 400 for i in range(64)])
        loss = F.cross_entropy(model(batch)[batch.mask], batch.targets[batch.mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return data, model


def test_teacher_forced_wer_is_greedy_free_running_wer(trained):
    data, model = trained
    result = PairTask(data).evaluate(model, "test")
    forced, free = result.teacher_forced, result.free_running
    assert 0 < free["wer"] < 100
    # complete words are counted: the same integers, divided in the same way
    assert (forced["wer"], forced["sequence_accuracy"]) == (free["wer"], free["sequence_accuracy"])
    assert free["sequence_accuracy"] == 100 - free["wer"]
    # after a first error the two go apart: that is what exposure bias can move
    assert forced["per"] != free["per"]
    pairs = data.evaluation("test")
    batch = data.codec.pair_batch(pairs.sources, pairs.targets)
    outputs = model.eval()(batch)
    loss = F.cross_entropy(outputs[batch.mask], batch.targets[batch.mask])  # nats per symbol with the end
    assert forced["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    accuracy = token_accuracy(outputs, batch.targets, batch.mask)
    assert forced["token_accuracy"] == pytest.approx(100 * float(accuracy))


# free-running scores that count outputs which are entirely right, and nothing else of the others
SETTLED = {
    "pairs": {"wer", "sequence_accuracy"}, "text": set(), "parallel": set(), "series": set(),
    "levels": set(), "labels": set(),
    "records": {"sequence_accuracy"}, "batches of ids": {"exact_match"}, "batches of values": set(),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_no_verdict_is_about_a_score_that_exposure_bias_cannot_move(task):
    reported = TASKS[task].report
    declared = {each.name for each in reported.metrics}
    free = {name for name in TASKS[task].report.selectable if not name.startswith("teacher_forced_")}
    assert {f"free_running.{name}" for name in free} <= declared
    assert {name for name in free if reported.metric(f"free_running.{name}").fixed} == SETTLED[task]
    assert reported.primary.side == "free_running"
    assert not reported.primary.fixed
    assert all(reported.metric(f"teacher_forced.{name}").fixed for name in ("loss", "nrmse", "per"))


def test_what_is_declared_settled_counts_right_outputs_alone():
    """Where the same outputs are right, other wrong ones move every other score and not these."""
    gold = ["ein mann geht heim .", "eine frau liest ein buch .", "das kind schläft ."]
    near, far = ["ein mann geht .", *gold[1:]], ["hund", *gold[1:]]
    words = [score([tuple(o) for o in outputs], [[tuple(g)] for g in gold])[0] for outputs in (near, far)]
    records = [score_texts(outputs, gold)[0] for outputs in (near, far)]
    parallel = [score_translations(outputs, gold)[0] for outputs in (near, far)]
    for task, found in (("pairs", words), ("records", records), ("parallel", parallel)):
        still = {name for name in found[0] if found[0][name] == found[1][name]}
        assert still == SETTLED[task] & set(found[0])


def test_scores_do_not_depend_on_batches_and_leave_no_trace(trained):
    data, model = trained
    model.train()
    before = torch.get_rng_state()
    one, many = (PairTask(data, EvaluateSettings(batch_size=size)).evaluate(model, "test") for size in (1, 64))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert one.items == many.items
    assert one.teacher_forced == pytest.approx(many.teacher_forced, rel=1e-5)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_words_limit_dev_only(trained):
    data, model = trained
    task = PairTask(data, items=10)
    assert [len(task.evaluate(model, split).items) for split in ("dev", "test")] == [10, 60]
    assert (task.lengths, task.fingerprint) == (data.lengths, data.fingerprint)
    assert task.describe()["kind"] == "pairs"
    assert task.batch([1, 2], torch.tensor([0, 1])).size == 2


def test_beams_find_what_is_at_least_as_probable_as_greedy(trained):
    data, model = trained
    sources = data.evaluation("test").sources

    def log_probability(outputs):
        batch = data.codec.pair_batch(sources, outputs)
        with torch.no_grad():
            chosen = model.eval()(batch).log_softmax(-1).gather(2, batch.targets[..., None])[..., 0]
        return chosen.masked_fill(~batch.mask, 0).sum(1)

    greedy = free_outputs(model, data.codec, sources)
    beams = free_outputs(model, data.codec, sources, EvaluateSettings(beams=4))
    # a beam may lose the greedy path, but seldom, and never on average
    assert log_probability(beams).mean() >= log_probability(greedy).mean()


def test_free_running_stops_at_the_limit(trained):
    data, _ = trained

    class Endless(nn.Module):
        def forward(self, batch):
            return F.one_hot(torch.ones_like(batch.history), data.codec.sizes[1]).float()

    outputs = free_outputs(Endless(), data.codec, [("a", "b")], EvaluateSettings(length_margin=2))
    assert len(outputs[0]) == data.codec.longest + 3
    assert len(refused("", EvaluateSettings, beams=0, length_penalty=-1, length_margin=-1, batch_size=0)) == 4
