"""Losses of whole sequences: against enumeration and loops by hand, in float64."""

import importlib
import math
from dataclasses import replace
from itertools import product

import pytest
import torch

import freerun as fr
from builders import (
    SOURCE_VOCAB,
    ForwardOnly,
    assert_same_gradients,
    gradients,
    language_model,
    lively,
    prompted,
    ragged,
    refused,
    seq2seq,
    tiny_llama,
    transformer,
)
from freerun.methods import costs
from freerun.methods.candidates import Sequences, counted_log_probs, sequence_log_probs
from freerun.methods.own_costs import risk
from freerun.models import RecurrentSeq2Seq
from test_targets import edit

END, STEP, KEY = 0, 4, 2


def squared(ids, gold):
    """A cost that knows nothing of either of those that have names."""
    return float((sum(ids) - sum(gold)) ** 2 + len(ids))


def log_p(model, batch, row: int, known: list[int], ids: list[int]):
    """log p(ids | known) of a row, by a forward of its own."""
    context = None if batch.context is None else batch.select(torch.tensor([row])).context
    logits = model(fr.Batch(torch.tensor([known + ids]), context=context))[0].log_softmax(-1)
    return sum(logits[len(known) + t, symbol] for t, symbol in enumerate(ids))


def runs_of(model, batch, row: int, known: list[int], *, draw: str, samples: int, longest: int, limit: int):
    """A row's own runs, their end included, each at most ``limit`` long."""
    ids = torch.tensor([[*known, 0]])
    there = torch.arange(len(known) + 1)[None] >= len(known)
    one = batch.select(torch.tensor([row]))
    begun = fr.Batch(ids, ids, there, one.context, rows=one.rows)
    key = fr.keys.fold(KEY, "own runs", STEP)
    made = fr.generate(model, begun, length=longest, end=END, draw=draw, key=key, num_samples=samples)
    entries, lengths = made.entries.view(samples, -1).tolist(), made.lengths.view(-1).tolist()
    return [(ids[:n] + [END] * (n < longest))[:limit] for ids, n in zip(entries, lengths, strict=True)]


def by_hand(model, batch, method, cost):
    """Both losses as their papers have them, row by row."""
    ratio, total = method.teacher_forcing_ratio, torch.zeros((), dtype=torch.float64)
    golds = [batch.targets[b][batch.mask[b]].tolist() for b in range(batch.size)]
    kept = [math.floor(ratio * len(gold)) for gold in golds]
    longest = max(len(gold) - k for gold, k in zip(golds, kept, strict=True)) + method.margin
    for b, gold in enumerate(golds):
        known, rest = gold[: kept[b]], gold[kept[b] :]
        limit = len(rest) + method.margin
        more = {"longest": longest, "limit": limit}
        runs = runs_of(model, batch, b, known, draw=method.draw, samples=method.num_samples, **more)

        def price(ids, known=known, gold=gold):
            return cost(known + (ids[:-1] if ids[-1] == END else ids), gold[:-1])

        if method.name == "minimum_risk":
            distinct = [list(ids) for ids in dict.fromkeys(map(tuple, runs + [rest] * method.include_gold))]
            scores = torch.stack([method.alpha * log_p(model, batch, b, known, ids) for ids in distinct])
            total = total + sum(
                q * price(ids) for q, ids in zip(scores.exp() / scores.exp().sum(), distinct, strict=True)
            )
        else:
            for i, ids in enumerate(runs):
                if method.baseline == "mean":
                    usual = sum(price(other) for j, other in enumerate(runs) if j != i) / (len(runs) - 1)
                else:
                    usual = price(runs_of(model, batch, b, known, draw="greedy", samples=1, **more)[0])
                total = total + (price(ids) - usual) * log_p(model, batch, b, known, ids) / len(runs)
        if known:
            total = total - log_p(model, batch, b, [], known)
        total = total - method.gold_weight * log_p(model, batch, b, [], gold)
    return total


METHODS = {
    "risk": fr.minimum_risk(squared, num_samples=6, alpha=0.5, end=END),
    "risk of own runs": fr.minimum_risk("edit_distance", num_samples=6, alpha=1.5, end=END, include_gold=False),
    "risk after gold": fr.minimum_risk(squared, num_samples=4, end=END, teacher_forcing_ratio=0.4, gold_weight=0.3),
    "greedy": fr.self_critical(squared, end=END),
    "mean": fr.self_critical("edit_distance", num_samples=4, end=END, baseline="mean", gold_weight=0.5),
    "mixer": fr.self_critical(squared, num_samples=3, end=END, gate="prefix", teacher_forcing_ratio=0.5, margin=2),
}


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("build", [seq2seq, transformer])
def test_loss_and_gradient_are_those_of_the_papers_loop(build, name):
    model, batch, method = build(), ragged(size=8, time=6), METHODS[name]
    outcome = method.run(model, batch, STEP, KEY)
    total = by_hand(model, batch, method, squared if method.cost is squared else lambda a, b: edit(tuple(a), tuple(b)))
    assert int(outcome.count) == batch.size
    assert abs((outcome.total - total).item()) < 1e-10 * max(1.0, abs(total.item()))
    assert_same_gradients(gradients(model, outcome.total), gradients(model, total))


def test_prompts_on_either_side_go_on():
    for padding in ("left", "right"):
        model, batch = language_model("rope" if padding == "left" else "learned"), prompted(padding)
        last = batch.time - 1 - batch.mask.flip(1).long().argmax(1)
        targets = batch.targets.masked_fill(batch.mask & (batch.targets == 4), 1)
        targets[torch.arange(batch.size), last] = 4
        batch = batch.replace(targets=targets, history=targets)
        for ratio in (0.0, 0.5):
            method = fr.minimum_risk(squared, num_samples=4, alpha=1.0, end=4, teacher_forcing_ratio=ratio)
            outcome = method.run(model, batch, STEP, KEY)
            fed, total = outcome.fed, torch.zeros((), dtype=torch.float64)
            log = model(fed).log_softmax(-1)
            for number in fed.rows.remainder(2**43).unique():
                b = int((batch.rows == number).nonzero())
                gold = batch.targets[b][batch.mask[b]].tolist()
                k = math.floor(ratio * len(gold))
                scores, prices, seen = [], [], set()
                for n in (fed.rows.remainder(2**43) == number).nonzero().flatten().tolist():
                    at = fed.mask[n].nonzero().flatten()
                    ids = fed.targets[n, at].tolist()
                    assert tuple(ids) not in seen
                    seen.add(tuple(ids))
                    scores.append(log[n, at, fed.targets[n, at]].sum())
                    prices.append(squared(gold[:k] + (ids[:-1] if ids[-1] == 4 else ids), gold[:-1]))
                assert tuple(gold[k:]) in seen
                total = total + (torch.stack(scores).softmax(0) * torch.tensor(prices)).sum()
            if ratio:
                kept = batch.mask & (batch.mask.cumsum(1) <= (batch.mask.sum(1, keepdim=True) * ratio).floor())
                total = total - model(batch).log_softmax(-1).gather(-1, targets[..., None])[..., 0][kept].sum()
            torch.testing.assert_close(outcome.total, total, rtol=1e-12, atol=0)


def two_symbols():
    """A model of the end and one other symbol, and rows whose runs have at most three entries."""
    torch.manual_seed(5)
    model = lively(RecurrentSeq2Seq(SOURCE_VOCAB, 2, size=6, layers=1).double())
    targets = torch.tensor([[1, 0], [0, 0]])
    mask, source = torch.tensor([[True, True], [True, False]]), torch.tensor([[1, 2], [3, 1]])
    return model, fr.Batch(targets, targets, mask, {"source": source, "source_mask": source > 0})


def every_sequence(longest: int, vocab: int = 2) -> list[list[int]]:
    """All that a run of symbols, 0 the end, can be."""
    others = [[list(ids) for ids in product(range(1, vocab), repeat=n)] for n in range(longest + 1)]
    return [[*ids, END] for part in others[:-1] for ids in part] + others[-1]


def expected_cost(model, batch, longest: int, vocab: int = 2):
    """sum over all sequences of p times the cost, over the rows."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(batch.size):
        gold = batch.targets[b][batch.mask[b]].tolist()
        for ids in every_sequence(longest, vocab):
            cost = squared(ids[:-1] if ids[-1] == END else ids, gold[:-1])
            total = total + log_p(model, batch, b, [], ids).exp() * cost
    return total


def test_all_sequences_make_the_exact_risk():
    model, batch = two_symbols()
    every = every_sequence(3)
    entries = torch.tensor([ids + [0] * (3 - len(ids)) for ids in every * 2])
    lengths = torch.tensor([len(ids) for ids in every * 2])
    all_of = Sequences(torch.tensor([0] * 4 + [1] * 4), entries, lengths)
    prices = torch.tensor(
        [squared(ids[: ids.index(0) if 0 in ids else 3], [1] * (b == 0)) for b in (0, 1) for ids in every]
    )
    fed = all_of.fed(batch)
    found = risk(all_of.rows, prices, 1.0, sequence_log_probs(model(fed), fed))
    exact = expected_cost(model, batch, 3)
    assert abs((found - exact).item()) < 1e-12
    assert_same_gradients(gradients(model, found), gradients(model, exact))
    # alpha to 0: every sequence weighs the same, whatever the model
    flat = risk(all_of.rows, prices, 1e-9, sequence_log_probs(model(fed), fed))
    assert flat.item() == pytest.approx(float(prices.view(2, 4).mean(1).sum()), rel=1e-8)


def test_the_exact_risk_is_that_of_the_method_where_samples_are_all_sequences():
    model, batch = two_symbols()
    batch = batch.select(torch.tensor([0]))  # limits: 2 + 1 entries
    method = fr.minimum_risk(squared, num_samples=400, alpha=1.0, end=END, margin=1)
    outcome = method.run(model, batch, STEP, KEY)
    assert outcome.fed.size == 4  # each sequence once
    assert outcome.total.item() == pytest.approx(expected_cost(model, batch, 3).item(), rel=1e-12)


def three_symbols_of_hugging_face():
    """A model that, by its own settings, would generate otherwise than it predicts."""
    inner = tiny_llama(3)
    inner.generation_config.update(do_sample=True, temperature=0.3, num_beams=3, no_repeat_ngram_size=2, min_length=9)
    model = lively(fr.hf.adapt(inner))
    ids = torch.tensor([[1, 1, 0]])
    return model, model.batch(input_ids=ids, labels=ids.masked_fill(torch.tensor([[True, False, False]]), -100))


@pytest.mark.parametrize("build", [two_symbols, three_symbols_of_hugging_face])
@pytest.mark.parametrize("arguments", [{}, {"baseline": "mean", "num_samples": 2}])
def test_the_self_critical_gradient_is_unbiased(build, arguments):
    """200 independent means of 100 rows against enumeration: |t| < 5.5 for 20 directions, false alarms below 1e-5."""
    model, batch = build()
    one = batch.select(torch.tensor([0]))
    exact = torch.cat(
        [g.flatten() for g in gradients(model, expected_cost(model, one, 3, model.target_vocab)).values()]
    )
    many = batch.select(torch.zeros(100, dtype=torch.int64))
    method, found = fr.self_critical(squared, end=END, margin=1, **arguments), []
    for step in range(200):
        loss = method(model, many.replace(rows=torch.arange(100)), step, KEY)
        found.append(torch.cat([g.flatten() for g in gradients(model, loss).values()]))
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(len(exact), 20, generator=g, dtype=torch.float64)
    along = (torch.stack(found) - exact) @ directions
    t = along.mean(0) / (along.std(0) / math.sqrt(200))
    assert float(t.abs().max()) < 5.5
    # the test sees a bias: without its baseline's sign the estimate lies far off
    assert float((exact @ directions).abs().max()) > 20 * float((along.std(0) / math.sqrt(200)).max())


@pytest.mark.parametrize(
    "method", [fr.optimal_completion(draw="greedy"), fr.unlikelihood(level="sequence", prefix=0.0)]
)
def test_own_runs_are_no_search_and_follow_what_generation_forbids(method):
    """Greedy is greedy, whatever number of beams the model names; n-grams that it never makes are in no run."""
    inner = tiny_llama(60)
    inner.generation_config.update(num_beams=3, eos_token_id=END, pad_token_id=END)
    model, ids = lively(fr.hf.adapt(inner)), torch.arange(1, 25)[None]
    ids[0, -1] = END
    batch = model.batch(input_ids=ids, labels=ids.masked_fill(torch.arange(24) < 2, -100))
    plain = method.transform(model, batch, STEP, KEY) if method.name == "optimal_completion" else None
    for ngram in (None, 1):
        inner.generation_config.no_repeat_ngram_size = ngram
        own = fr.generate(model, batch, length=27, end=END, beams=1).entries[0].tolist()
        if plain is not None:
            fed = method.transform(model, batch, STEP, KEY)
            assert own[: int(fed.mask.sum())] == fed.targets[fed.mask].tolist()
        else:
            repeated = method.run(model, batch, STEP, KEY).report["repeated"]
            assert (repeated > 0) == (ngram is None)
    assert fr.generate(model, batch, length=27, end=END).entries[0].tolist() != own


def with_positions(model, number: int):
    """The model, which says how many positions it has."""
    model.max_positions = number
    return model


class Stepping(fr.StepModel):
    """Rows with prompts of one length go on side by side, the others apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell, self.out = torch.nn.Embedding(6, 8), torch.nn.GRUCell(8, 8), torch.nn.Linear(8, 5)

    def start(self, batch):
        return torch.full((batch.size,), 5), torch.zeros(batch.size, 8, dtype=torch.float64)

    def step(self, entries, state):
        state = self.cell(self.embedding(entries), state)
        return self.out(state), state


LIMITED = {
    "steps": lambda: with_positions(lively(Stepping().double()), 12),
    "learned": lambda: language_model("learned", max_positions=12),
    "rope": lambda: language_model(max_positions=12),
    "forward": lambda: with_positions(ForwardOnly(language_model("learned", max_positions=12)), 12),
}


@pytest.mark.parametrize("margin", [0, 5])
@pytest.mark.parametrize("build", [*LIMITED, "gpt2"])
@pytest.mark.parametrize("name", ["minimum_risk", "self_critical", "optimal_completion", "unlikelihood"])
def test_rows_as_long_as_the_model_has_positions_run_beside_others(build, name, margin):
    """A long prompt with a short reply beside a short one with a long reply: each as if it were alone."""
    arguments: dict = {"end": END, "margin": margin}
    if name == "unlikelihood":
        arguments = {"end": END, "level": "sequence", "ngram": 1, "prefix": 0.0, "draw": "sample"}
    method = getattr(fr, name)(**arguments)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 5, (4, 12), generator=g)
    known, reply = torch.tensor([10, 1, 4, 12]), torch.tensor([2, 11, 5, 0])  # the last has no targets
    places = torch.arange(12)
    mask = (places >= known[:, None]) & (places < (known + reply)[:, None])
    ids[mask & (places == (known + reply - 1)[:, None])] = END
    rows = torch.arange(4)
    if build == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        inner = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_positions=13, **sizes, eos_token_id=END)).double()
        model = lively(fr.hf.adapt(inner))
        labels = torch.cat([torch.full((4, 1), -100), ids.masked_fill(~mask, -100)], 1)
        batch = model.batch(input_ids=torch.cat([torch.ones(4, 1, dtype=torch.int64), ids], 1), labels=labels)
        batch = batch.replace(rows=rows)
    else:
        model, batch = LIMITED[build](), fr.Batch(ids, ids, mask, rows=rows)
    found = method.run(model, batch, STEP, KEY)
    each = [method.run(model, batch.select(rows[b : b + 1]), STEP, KEY) for b in range(3)]
    assert found.total.item() == pytest.approx(sum(one.total.item() for one in each), rel=1e-9)
    assert_same_gradients(gradients(model, found.total), gradients(model, sum(one.total for one in each)))
    assert found.fed.time <= model.max_positions


def test_a_number_of_positions_that_is_none_is_no_limit():
    """fairseq's models have it as a method."""
    model, batch = with_positions(seq2seq(), lambda: 3), ragged()
    plain = fr.minimum_risk(end=END).run(seq2seq(), batch, STEP, KEY)
    assert fr.minimum_risk(end=END).run(model, batch, STEP, KEY).total.item() == plain.total.item()


@pytest.mark.parametrize("gate", ["prefix", "sequence", "batch"])
@pytest.mark.parametrize("method", [fr.minimum_risk, fr.self_critical])
def test_all_gold_is_the_sum_of_teacher_forcing_without_another_call(method, gate):
    model, batch, calls = seq2seq(), ragged(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    outcome = method(end=END, teacher_forcing_ratio=1.0, gate=gate).run(model, batch, STEP, KEY)
    assert (len(calls), outcome.report["passes"], outcome.report["replaced"]) == (1, 0, 0)
    forced = fr.teacher_forcing().run(model, batch, STEP, KEY)
    assert torch.equal(outcome.total, forced.total)
    assert outcome.loss.item() == pytest.approx(forced.total.item() / batch.size)  # over rows, as the docstring has it
    a, b = gradients(model, outcome.total), gradients(model, forced.total)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert torch.equal(outcome.fed.history, batch.history)
    mixed = method(end=END, teacher_forcing_ratio=0.5, gate=gate).run(model, batch, STEP, KEY)
    assert mixed.loss.isfinite()


@pytest.mark.parametrize("method", [fr.minimum_risk(num_samples=3, end=END), fr.self_critical(num_samples=2, end=END)])
def test_a_row_without_targets_does_no_harm(method):
    model, batch = seq2seq(), ragged()
    whole = method.run(model, batch.select(torch.tensor([0, 1, 3])), STEP, KEY)
    mask = batch.mask.clone()
    mask[2] = False
    outcome = method.run(model, batch.replace(mask=mask), STEP, KEY)
    assert int(outcome.count) == 3
    assert torch.allclose(outcome.total, whole.total, rtol=1e-12)
    nothing = method.run(model, batch.replace(mask=torch.zeros_like(mask)), STEP, KEY)
    assert (nothing.total.item(), int(nothing.count)) == (0.0, 0)
    assert all(not bool(g.any()) for g in gradients(model, nothing.total).values())


def test_a_row_without_targets_is_read_as_it_is():
    """But for its last entry: a model may count what its prompt holds, as images of a row."""
    model, read = language_model("learned"), []
    batch = prompted("right", time=9)
    last = batch.mask.long() * (1 + torch.arange(9))
    ids = batch.targets.masked_fill(batch.mask & (batch.targets == 4), 1).scatter(1, last.argmax(1)[:, None], 4)
    mask = batch.mask.clone()
    mask[1] = False
    batch = batch.replace(targets=ids, history=ids, mask=mask)
    model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].history.clone()))
    fr.optimal_completion(end=4).run(ForwardOnly(model), batch, STEP, KEY)
    assert bool((read[0][1, :8] == ids[1, :8]).all())
    assert ids[1, :8].any()


def test_costs_are_those_of_their_libraries():
    sacrebleu = pytest.importorskip("sacrebleu")
    g = torch.Generator().manual_seed(1)
    for _ in range(200):
        ids, gold = (
            torch.randint(1, 5, (int(n),), generator=g).tolist() for n in torch.randint(1, 9, (2,), generator=g)
        )
        text = [" ".join(map(str, each)) for each in (ids, gold)]
        score = sacrebleu.sentence_bleu(text[0], [text[1]], tokenize="none", use_effective_order=True).score
        assert costs.bleu(ids, gold) == pytest.approx(1 - score / 100, abs=1e-12)
        assert costs.edit_distance(ids, gold) == edit(tuple(ids), tuple(gold))
    assert (costs.bleu([], [1]), costs.bleu([], []), costs.edit_distance([], [])) == (1.0, 0.0, 0.0)


def test_a_cost_may_be_of_a_whole_batch():
    model, batch = seq2seq(), ragged()

    def together(sequences, golds):
        return torch.tensor([squared(*pair) for pair in zip(sequences, golds, strict=True)])

    together.batched = True
    one, all_ = (fr.minimum_risk(cost, end=END).run(model, batch, STEP, KEY) for cost in (squared, together))
    assert torch.equal(one.total, all_.total)


def test_what_is_no_cost_is_refused():
    model, batch = seq2seq(), ragged()
    refused(("cost must be one of edit_distance, bleu or a function", "did you mean 'bleu'?"), fr.minimum_risk, "blue")
    refused("it cannot be called with 2 arguments", fr.self_critical, lambda ids: 0.0)
    refused(("gate='token' lets gold and own", "num_samples must be"), fr.self_critical, gate="token", num_samples=0)
    refused("num_samples=1 leaves none", fr.self_critical, baseline="mean")
    refused("is the run that it is compared with", fr.self_critical, draw="greedy")
    refused("num_samples=10 runs of draw='greedy' are equal", fr.minimum_risk, draw="greedy")
    refused("whose share Q is 1 whatever the model", fr.minimum_risk, num_samples=1, include_gold=False)
    refused("include_gold must be True or False; got 'yes'", fr.minimum_risk, include_gold="yes")
    refused(r"alpha must lie in", fr.minimum_risk, alpha=0.0)
    refused(("horizon has no effect", "target has no effect"), fr.minimum_risk, horizon=2, target="optimal_completion")

    def run(cost):
        fr.minimum_risk(cost, end=END)(model, batch, STEP, KEY)

    refused("must return a finite number", run, lambda ids, gold: math.nan)
    refused("must return a finite number", run, lambda ids, gold: -math.inf)
    refused("must return a number for two sequences; it returned list", run, lambda ids, gold: [1.0, 2.0])
    refused("must return a number for two sequences; it returned NoneType", run, lambda ids, gold: None)

    def short(sequences, golds):
        return [0.0] * (len(golds) - 1)

    short.batched = True
    refused("returned shape", run, short)
    refused("pass end=", fr.minimum_risk(), model, batch, STEP, KEY)
    refused("is not the end symbol 3", fr.self_critical(end=3), model, batch, STEP, KEY)
    weights = batch.replace(weights=torch.ones(batch.mask.shape))
    fixed = batch.replace(eligible=batch.mask & (torch.arange(batch.time) != 1))
    falling = fr.schedules.linear(start=1.0, end=0.0, steps=10)  # in its first step, too, where all is gold
    for ratio in (0.0, falling):
        method = fr.self_critical(end=END, teacher_forcing_ratio=ratio)
        refused("weights are of gold's positions", method, model, weights, 0, KEY)
        refused("counted entries that eligible excludes", method, model, fixed, 0, KEY)
        refused("is not the end symbol 3", replace(method, end=3), model, batch, 0, KEY)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_chosen_log_probabilities_are_log_softmax(dtype, monkeypatch):
    monkeypatch.setattr("freerun.methods.candidates._PART", 20)  # three positions at a time
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 6, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    mask = torch.rand(3, 5, generator=g) < 0.7
    targets = torch.randint(6, (3, 5), generator=g)
    batch = fr.Batch(targets, targets, mask)
    found = counted_log_probs(logits, batch)
    wide = logits.detach().double().requires_grad_()
    expected = wide.log_softmax(-1).gather(-1, targets[..., None])[..., 0][mask]
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)
    weights = torch.randn(len(found), generator=g, dtype=torch.float64)
    (found * weights.to(found.dtype)).sum().backward()
    (expected * weights).sum().backward()
    near = 1e-2 if dtype == torch.bfloat16 else near
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=near, atol=near)


def test_sequences_are_scored_once_each_row_for_itself():
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    entries = torch.tensor([[1, 2, 0], [1, 2, 3], [1, 2, 9], [1, 2, 0], [2, 0, 0], [2, 5, 5]])
    lengths = torch.tensor([2, 3, 2, 2, 1, 1])  # what comes after does not matter
    found, where = Sequences(rows, entries, lengths).distinct()
    assert found.rows.tolist() == [0, 0, 1, 1]
    assert found.lengths.tolist() == [2, 3, 2, 1]
    assert where.tolist() == [0, 1, 0, 2, 3, 3]
    with_gold = found.with_gold(torch.tensor([[7], [2]]), torch.tensor([1, 1]))
    assert with_gold.rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert with_gold.entries[:, 0].tolist() == [7, 1, 1, 2, 1, 2]
    assert with_gold.distinct()[0].lengths.tolist() == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("name", [*METHODS, "optimal completion"])
def test_its_work_is_all_that_is_made_scored_and_read_as_gold(name, monkeypatch):
    """In forwards of gold, less the one that teacher forcing makes, too: duplicates and the greedy run are among it."""
    made, method = [], METHODS.get(name, fr.optimal_completion(end=END))
    module = importlib.import_module(type(method).__mro__[name != "optimal completion"].__module__)
    counted = module.own_runs
    monkeypatch.setattr(module, "own_runs", lambda *a, **b: made.append(counted(*a, **b)) or made[-1])
    model, batch = seq2seq(), ragged()
    outcome = method.run(model, batch, STEP, KEY)
    gold, learnt = int(batch.mask.sum()), name in ("risk after gold", "mean", "mixer")
    forwards = (sum(int(runs.mask.sum()) for runs in made) + int(outcome.fed.mask.sum())) / gold + learnt
    assert outcome.report["work"] + 1 == pytest.approx(forwards)
    assert len(made) == 1 + (name in ("greedy", "mixer"))


def test_a_sample_that_is_the_greedy_run_teaches_nothing():
    class Certain(ForwardOnly):
        def forward(self, batch):
            return 1e4 * self.model(batch)

    model, batch = Certain(seq2seq()), ragged()
    outcome = fr.self_critical(squared, end=END).run(model, batch, STEP, KEY)
    assert outcome.total == 0
    assert all(bool((g == 0).all()) for g in gradients(model, outcome.total).values())
    unsure = fr.self_critical(squared, end=END).run(seq2seq(), batch, STEP, KEY)
    assert unsure.total != 0
