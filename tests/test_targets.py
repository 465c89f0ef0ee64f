"""What each position should predict on the history that is fed: against brute force, and loops by hand."""

import itertools

import pytest
import torch
from torch import Tensor

import freerun as fr
from builders import assert_same_gradients, gradients, language_model, prompted, ragged, refused, seq2seq, transformer
from freerun.objectives import CrossEntropy
from freerun.targets import completion_costs, optimal_completions

END = 0


def edit(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Edit distance by the textbook."""
    row = list(range(len(b) + 1))
    for x in a:
        new = [row[0] + 1]
        for k, y in enumerate(b):
            new.append(min(row[k + 1] + 1, new[k] + 1, row[k] + (x != y)))
        row = new
    return row[-1]


def words(longest: int):
    return itertools.chain.from_iterable(itertools.product((1, 2), repeat=n) for n in range(longest + 1))


def best_by_force(prefix: tuple[int, ...], gold: tuple[int, ...]) -> set[int]:
    """First symbols of the completions, out of all up to a length, that leave the least edit distance."""
    best: dict[int, int] = {}
    for rest in words(len(gold) + 1):
        first = rest[0] if rest else END
        best[first] = min(best.get(first, 99), edit(prefix + rest, gold))
    return {symbol for symbol, cost in best.items() if cost == min(best.values())}


def test_optimal_completions_are_those_of_brute_force():
    pairs = [(gold, prefix) for gold in words(3) for prefix in words(3)]
    assert len(pairs) == 225
    for gold, prefix in pairs:
        ids = torch.tensor([[*gold, END]])
        entries = torch.tensor([prefix], dtype=torch.int64).view(1, -1)
        begins = optimal_completions(entries, ids, torch.tensor([len(gold) + 1]))
        assert {int(ids[0, j]) for j in begins[0, len(prefix)].nonzero()[:, 0]} == best_by_force(prefix, gold)


def test_costs_are_edit_distances_of_all_prefixes():
    g = torch.Generator().manual_seed(0)
    gold, entries = torch.randint(4, (6, 5), generator=g), torch.randint(4, (6, 7), generator=g)
    lengths = torch.tensor([5, 0, 3, 5, 1, 4])
    costs = completion_costs(entries, gold, lengths)
    for r, i, j in itertools.product(range(6), range(8), range(6)):
        real = edit(tuple(entries[r, :i].tolist()), tuple(gold[r, :j].tolist()))
        assert int(costs[r, i, j]) == (real if j <= lengths[r] else 2**30)


def divergence(outputs: Tensor, batch: fr.Batch, history: Tensor, smoothing: float = 0.0) -> Tensor:
    """sum_t w_t KL(uniform over optimal completions || p_t), position by position."""
    total = outputs.new_zeros(())
    for b in range(batch.size):
        gold = tuple(batch.targets[b][batch.mask[b]].tolist())[:-1]
        for t in batch.mask[b].nonzero()[:, 0].tolist():
            prefix = tuple(history[b, :t].tolist())
            if END in prefix:
                continue
            best = best_symbols(prefix, gold)
            q = torch.zeros(outputs.shape[-1], dtype=outputs.dtype)
            for symbol in best:
                q[symbol] = 1 / len(best)
            entropy = torch.tensor(len(best)).double().log()
            q = (1 - smoothing) * q + smoothing / len(q)
            log_p = outputs[b, t].log_softmax(-1)
            weight = 1.0 if batch.weights is None else batch.weights[b, t]
            total = total - weight * (entropy + sum(x * y for x, y in zip(q, log_p, strict=True)))
    return total


def best_symbols(prefix: tuple[int, ...], gold: tuple[int, ...]) -> set[int]:
    """The rule of the paper: what follows gold's prefixes that lie nearest."""
    costs = [edit(prefix, gold[:j]) for j in range(len(gold) + 1)]
    return {(*gold, END)[j] for j, cost in enumerate(costs) if cost == min(costs)}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("build", [seq2seq, transformer])
def test_the_loss_on_a_mixed_history_is_the_sum_by_hand(build, weighted: bool, smoothing: float):
    model, batch = build(), ragged(size=16, time=6)
    if weighted:
        batch = batch.replace(weights=0.5 + torch.arange(96.0).view(16, 6).double() / 10)
    target = fr.targets.optimal_completion(end=END)
    method = fr.scheduled_sampling(0.3, target=target, objective=CrossEntropy(smoothing))
    outcome = method.run(model, batch, step=0, key=2)
    history = outcome.fed.history
    assert bool(((history != batch.history) & batch.mask).any())
    assert bool(((history == END) & (batch.targets != END) & batch.mask).any())  # a row that ended too early
    outputs = model(batch.replace(history=history))
    total = divergence(outputs, batch, history, smoothing)
    assert abs((outcome.total - total).item()) < 1e-10
    ended = (history == END).cummax(1).values[:, :-1]
    counted = batch.mask & ~torch.cat([torch.zeros(16, 1, dtype=torch.bool), ended], 1)
    weights = torch.ones(16, 6) if batch.weights is None else batch.weights
    assert float(outcome.count) == pytest.approx(float(weights[counted].sum()))
    assert_same_gradients(gradients(model, outcome.total), gradients(model, total))
    assert torch.equal(outcome.fed.targets, batch.targets)  # what is reported is gold


def test_gold_history_has_gold_as_its_optimal_completion():
    model, batch = seq2seq(), ragged()
    forced = fr.teacher_forcing(target="optimal_completion")(model, batch, step=0)
    assert abs((forced - fr.teacher_forcing()(model, batch, step=0)).item()) < 1e-12


def test_prompts_are_no_part_of_what_is_completed():
    ids = torch.tensor([[3, 4, 1, 2, 0, 0], [4, 1, 1, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]]).bool()
    history = torch.tensor([[3, 4, 2, 2, 0, 0], [4, 1, 2, 1, 0, 0]])
    shares = fr.targets.optimal_completion(END)(fr.Batch(ids, mask=mask), history)
    assert not shares[~mask].any()
    for b, t in mask.nonzero().tolist():
        prompt, gold = (2, (1, 2)) if b == 0 else (1, (1, 1))
        assert set(shares[b, t].nonzero()[:, 0].tolist()) == best_symbols(tuple(history[b, prompt:t].tolist()), gold)


def expert(batch: fr.Batch, history: Tensor) -> Tensor:
    """Gold where the entry before is gold, else symbol 1; no loss in the first row."""
    wrong = torch.nn.functional.pad((history != batch.targets)[:, :-1], (1, 0))
    return batch.targets.masked_fill(wrong, 1).masked_fill(torch.arange(batch.size)[:, None] == 0, -100)


@pytest.mark.parametrize("name", ["scheduled_sampling", "two_pass", "parallel", "token_noise"])
def test_a_function_names_ids(name: str):
    model, batch = seq2seq(), ragged()
    arguments = {"token_noise": (0.4,)}.get(name, (0.3,))
    outcome = getattr(fr, name)(*arguments, target=expert).run(model, batch, step=0, key=1)
    aimed = expert(batch, outcome.fed.history)
    log_p = model(batch.replace(history=outcome.fed.history)).log_softmax(-1)
    counted = batch.mask & (aimed >= 0)
    total = -log_p[counted].gather(1, aimed[counted][:, None]).sum()
    assert abs((outcome.total - total).item()) < 1e-10
    assert int(outcome.count) == int(counted.sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_mass_on_one_symbol_is_that_symbol(smoothing: float):
    """As shares of any size, in the range of float64 alone too, and as ids."""
    model, batch = seq2seq().float(), ragged()
    objective = CrossEntropy(smoothing)
    gold = fr.teacher_forcing(objective=objective).run(model, batch, step=0)
    usual = gradients(model, gold.total)
    for size in (1e-60, 1.0, 1e300):
        one_hot = torch.nn.functional.one_hot(batch.targets, 5).double() * size
        method = fr.teacher_forcing(objective=objective, target=lambda b, h, q=one_hot: q)
        found = method.run(model, batch, step=0)
        assert found.total.item() == pytest.approx(gold.total.item(), rel=1e-5)
        assert_same_gradients(gradients(model, found.total), usual, 1e-5)
    even = fr.teacher_forcing(target=lambda b, h: torch.full((*h.shape, 5), 1e-60, dtype=torch.float64))
    uniform = fr.teacher_forcing(target=lambda b, h: torch.ones(*h.shape, 5, dtype=torch.bool))
    assert even(model, batch, step=0).item() == pytest.approx(uniform(model, batch, step=0).item(), rel=1e-5)
    assert even(model, batch, step=0).item() > 0.001


def test_what_rows_must_begin_with_is_gold_in_own_runs():
    """Counted first entries that eligible excludes, as ids that generation forces, are the beginnings of all runs."""
    model, batch = seq2seq(), ragged(size=6)
    later = torch.arange(7) > 1
    forced = batch.replace(eligible=batch.mask & later)
    long = (batch.mask.sum(1) > 2).nonzero().squeeze(1)
    assert len(long) > 3
    prompted = batch.replace(mask=batch.mask & later).select(long)
    methods = (
        fr.optimal_completion(end=END), fr.minimum_risk(end=END, num_samples=4), fr.self_critical(end=END),
        fr.unlikelihood(level="sequence", ngram=1, prefix=0.0, draw="sample"),
    )  # fmt: skip
    for method in methods:
        found = method.run(model, forced.select(long), 0, 1)
        assert method.run(model, forced, 0, 1).total.isfinite()  # a row of two makes its end alone
        if method.name == "unlikelihood":
            first = -model(batch.select(long)).log_softmax(-1).gather(2, batch.targets[long, :, None])[:, :2].sum()
            assert found.total.item() == pytest.approx((method.run(model, prompted, 0, 1).total + first).item())
            continue
        fed = found.fed
        rows = long[(fed.row_numbers.remainder(2**43)[:, None] == batch.rows[long]).nonzero()[:, 1]]
        assert torch.equal(fed.history[:, :2], batch.history[rows, :2])
        assert not fed.mask[:, :2].any()
        assert bool((fed.history[:, 2] != batch.history[rows, 2]).any())
    # edits of the row as a whole are those of its rest
    a, b = (fr.minimum_risk(end=END).run(model, each, 0, 1) for each in (forced.select(long), prompted))
    assert a.total.item() == pytest.approx(b.total.item(), rel=1e-10)


def test_consistency_leaves_out_what_the_target_leaves_out():
    model, batch = seq2seq(), ragged()
    outcome = fr.consistency(0.3, alpha=0.7, target=expert).run(model, batch, step=0, key=1)
    kept = fr.scheduled_sampling(0.3, target=expert).run(model, batch, step=0, key=1)
    own, after_gold = (model(batch.replace(history=h)).log_softmax(-1) for h in (outcome.fed.history, batch.history))
    counted = batch.mask & (expert(batch, outcome.fed.history) >= 0)
    apart = (after_gold.exp() * (after_gold - own)).sum(-1)[counted].sum()
    assert outcome.total.item() == pytest.approx((kept.total + 0.7 * apart).item(), abs=1e-10)
    none = fr.consistency(0.3, target=lambda b, h: torch.full_like(h, -1)).run(model, batch, step=0, key=1)
    assert (none.total.item(), none.count.item()) == (0.0, 0.0)
    calls = []

    def drawn(b, h):  # another position at each call
        calls.append(1)
        return b.targets.masked_fill(torch.arange(b.time) == len(calls) + 1, -1)

    def certain(b):  # of what was fed two before: infinitely far from the same after gold
        sure = torch.nn.functional.one_hot(b.history.roll(2, 1), 5).double().log()
        return torch.where((torch.arange(b.time) == 2)[:, None], sure, model(b))

    outcome = fr.consistency(0.0, target=drawn, draw="sample", engine="jacobi").run(certain, batch, step=0, key=1)
    assert bool((outcome.fed.history[:, 0] != batch.history[:, 0]).any())
    assert len(calls) == 1
    assert outcome.total.isfinite()


def test_missing_values_are_those_of_gold_where_the_target_is_gold():
    batch, model = values()
    g = torch.Generator().manual_seed(3)
    present = torch.rand(batch.targets.shape, generator=g) < 0.7
    targets = batch.targets.masked_fill(~present, float("nan"))
    batch = fr.Batch(targets, targets, context=batch.context, present=present)
    gold = fr.scheduled_sampling(0.4).run(model, batch, step=0, key=1)
    same = fr.scheduled_sampling(0.4, target=lambda b, h: b.targets).run(model, batch, step=0, key=1)
    assert 20 < int(gold.count) < 54
    assert (same.total.item(), same.count.item()) == (gold.total.item(), gold.count.item())


def test_counted_positions_are_those_of_the_target(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("freerun.rollin.training._WORTH", 1)
    model, batch = language_model(), ragged(size=5, time=6).replace(context=None)
    for target in (expert, fr.targets.optimal_completion(END)):
        method = fr.scheduled_sampling(0.3, target=target)
        some = method.run(model, batch, step=0, key=2)
        with monkeypatch.context() as patch:
            patch.setattr("freerun.rollin.training._WORTH", 10**9)
            whole = method.run(model, batch, step=0, key=2)
        assert type(some.computed) is not type(whole.computed)
        assert abs((some.total - whole.total).item()) < 1e-10
        assert float(some.count) == float(whole.count)
        assert_same_gradients(gradients(model, some.total), gradients(model, whole.total))


def values() -> tuple[fr.Batch, torch.nn.Module]:
    from freerun.models import RecurrentForecaster

    torch.manual_seed(0)
    model = RecurrentForecaster(2, size=5).double()
    g = torch.Generator().manual_seed(1)
    series, past = (torch.randn(3, n, 2, generator=g, dtype=torch.float64) for n in (9, 4))
    return fr.Batch(series, context={"past": past}), model


def follows(batch: fr.Batch, history: Tensor) -> Tensor:
    """The entry before, halved; nothing at position 5."""
    before = torch.nn.functional.pad(history.detach()[:, :-1], (0, 0, 1, 0))
    return (before / 2).masked_fill((torch.arange(batch.time) == 5)[None, :, None], float("nan"))


@pytest.mark.parametrize(
    "method",
    [
        fr.scheduled_sampling(0.4, target=follows),
        fr.scheduled_sampling(0.4, target=follows, gradient="none"),
        fr.multi_step(horizon=4, target=follows),
        fr.generalised_teacher_forcing(0.3, target=follows),
        fr.gaussian_noise(0.3, target=follows),
        fr.teacher_forcing(target=follows),
    ],
    ids=lambda method: f"{method.name}{getattr(method, 'gradient', '')}",
)
def test_a_function_names_values(method):
    batch, model = values()
    outcome = method.run(model, batch, step=0, key=1)
    fed = outcome.fed
    aimed = follows(fed, fed.history)
    counted = fed.mask & aimed.isfinite().all(-1)
    total = (outcome.outputs[counted] - aimed[counted]).square().sum()
    assert float(outcome.total.detach()) == pytest.approx(float(total.detach()), abs=1e-10)
    assert float(outcome.count) == int(counted.sum()) * 2
    assert_same_gradients(gradients(model, outcome.total), gradients(model, method_total(method, model, batch)))


def method_total(method, model, batch: fr.Batch) -> Tensor:
    outcome = method.run(model, batch, step=0, key=1)
    aimed = follows(outcome.fed, outcome.fed.history)
    counted = outcome.fed.mask & aimed.isfinite().all(-1)
    return (outcome.outputs[counted] - aimed[counted]).square().sum()


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda b, h: h[:, :2], "a target returns .batch, time. ids"),
        (lambda b, h: None, "got NoneType"),
        (lambda b, h: h.int(), "a target of ids returns int64"),
        (lambda b, h: torch.full((*h.shape, 5), -0.5), "finite numbers of 0 or more"),
        (lambda b, h: torch.full((*h.shape, 5), float("nan")), "finite numbers of 0 or more"),
        (lambda b, h: torch.ones(*h.shape, 5, dtype=torch.int64), "real numbers or bool"),
        (lambda b, h: torch.ones(*h.shape, 6), "weighs 6 symbols, and the model has 5"),
        (lambda b, h: torch.full_like(h, 5), "returned the id 5, and the model has 5 symbols"),
    ],
)
def test_what_a_target_must_not_return_is_refused(returns, message: str):
    refused(message, fr.scheduled_sampling(0.5, target=returns), seq2seq(), ragged(), step=0)


def test_what_does_not_go_together_is_refused():
    refused("target must be one of gold", fr.teacher_forcing, target="golden")
    refused("that is a class", fr.teacher_forcing, target=fr.targets.OptimalCompletion)
    refused("gradient=3 scores them part by part", fr.scheduled_sampling, 0.5, target=follows, gradient=3)
    refused("target has no effect with pushforward", fr.pushforward, horizon=3, target=follows)
    refused(("loss_on has no effect", "target has no effect"), fr.unlikelihood, loss_on="last", target=expert)
    for aim in ("optimal_completion", fr.targets.optimal_completion(END)):
        refused("whole rows, which loss_on would cut", fr.scheduled_sampling, 0.5, target=aim, loss_on="last")
        refused("whole rows, which horizon would cut", fr.dagger, 0.5, expert=aim, horizon=3)
    batch, model = values()
    endless = fr.teacher_forcing(target=lambda b, h: torch.full_like(h, float("inf")))
    refused("returned infinity", endless, model, batch, step=0)
    refused("optimal completions are of symbols", fr.teacher_forcing(target="optimal_completion"), model, batch, step=0)
    own = fr.teacher_forcing(target="optimal_completion", objective=lambda o, b: (o.sum(), 1))
    refused("weighs several symbols goes with objective='cross_entropy'", own, seq2seq(), ragged(), step=0)
    gold = ragged()
    wrong = fr.teacher_forcing(target=fr.targets.optimal_completion(end=3))
    refused("is not the end symbol 3", wrong, seq2seq(), gold, step=0)
    repeated = torch.tensor([[1, 2, 1]])
    inside = torch.tensor([[1, 3, 2, 3]])
    refused("end symbol 3 stands before", fr.targets.optimal_completion(3), fr.Batch(inside), inside)
    refused("which stands in it before", fr.targets.optimal_completion(), fr.Batch(repeated), repeated)
    gap = torch.tensor([[True, False, True]])
    refused(
        "positions that do not count between", fr.targets.optimal_completion(), fr.Batch(repeated, mask=gap), repeated
    )


@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("draw", ["sample", "greedy"])
@pytest.mark.parametrize("build", [seq2seq, transformer])
def test_optimal_completion_distillation_is_the_sum_by_hand(build, draw: str, margin: int):
    model, batch = build(), ragged(size=12, time=6)
    method = fr.optimal_completion(end=END, draw=draw, margin=margin)
    outcome = method.run(model, batch, step=4, key=2)
    longest = int(batch.mask.sum(1).max()) + margin
    key = fr.keys.fold(2, "own runs", 4)
    blank = fr.Batch(torch.zeros(12, 1, dtype=torch.int64), context=batch.context, rows=batch.rows)
    runs = fr.generate(model, blank, length=longest, end=END, draw=draw, key=key)
    total, cut = torch.zeros((), dtype=torch.float64), 0
    for b in range(batch.size):
        gold = tuple(batch.targets[b][batch.mask[b]].tolist())
        run = runs.entries[b, : int(runs.lengths[b])].tolist() + [END] * bool(runs.lengths[b] < longest)
        cut += len(run) > len(gold) + margin
        run = torch.tensor([run[: len(gold) + margin]])
        one = batch.select(torch.tensor([b]))
        log_p = model(fr.Batch(run, context=one.context)).log_softmax(-1)[0]
        for t in range(run.shape[1]):
            best = best_symbols(tuple(run[0, :t].tolist()), gold[:-1])
            total = total - log_p[t, sorted(best)].sum() / len(best) - torch.tensor(len(best)).double().log()
    # some run is longer than its row may have, but of the Transformer's greedy ones, which end at once
    assert cut > 0 or margin > 0 or (build, draw) == (transformer, "greedy")
    assert int(outcome.count) == int(batch.mask.sum())
    assert abs((outcome.total - total).item()) < 1e-9
    assert_same_gradients(gradients(model, outcome.total), gradients(model, total))


def test_own_runs_go_on_from_prompts_on_either_side():
    for padding in ("left", "right"):
        model, batch = language_model("rope" if padding == "left" else "learned"), prompted(padding)
        rows = torch.arange(batch.size)
        last = batch.time - 1 - batch.mask.flip(1).long().argmax(1)
        targets = batch.targets.masked_fill(batch.mask & (batch.targets == 4), 1)
        targets[rows, last] = 4
        batch = batch.replace(targets=targets, history=targets)
        fed = fr.optimal_completion(end=4).transform(model, batch, step=0, key=1)
        key = fr.keys.fold(1, "own runs", 0)
        runs = fr.generate(model, batch, length=int(batch.mask.sum(1).max()) + 5, end=4, draw="sample", key=key)
        for b in range(batch.size):
            known = int(batch.mask[b].long().argmax())
            assert torch.equal(fed.history[b, :known], batch.history[b, :known])
            made = fed.history[b][fed.mask[b]]
            assert torch.equal(made[: int(runs.lengths[b])], runs.entries[b, : len(made)][: int(runs.lengths[b])])
            assert len(made) == min(int(runs.lengths[b]) + 1, int(batch.mask[b].sum()) + 5)


def test_own_runs_are_refused_where_they_cannot_be():
    model, batch = seq2seq(), ragged()
    method = fr.optimal_completion(end=END)
    refused("the model has no end symbol of its own: pass end=", fr.optimal_completion(), model, batch, step=0)
    refused("weights are of gold's positions", method, model, batch.replace(weights=torch.ones(4, 7)), step=0)
    hole = batch.replace(eligible=batch.mask & (torch.arange(7) != 1))  # what ends a row there is fed nowhere
    refused("rows have counted entries that eligible excludes after others", method, model, hole, step=0)
    refused("is not the end symbol 3", fr.optimal_completion(end=3), model, batch, step=0)
    refused(
        ("horizon has no effect", "loss_on has no effect", "target has no effect"),
        fr.optimal_completion,
        end=0,
        horizon=3,
        loss_on="last",
        target=expert,
    )
    numbers, forecaster = values()
    refused("targets are values", method, forecaster, numbers, step=0)
