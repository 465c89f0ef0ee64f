"""Roll-ins whose calls are laid out beforehand: long gaps, rows grouped by them, and models that cannot be planned."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import freerun as fr
from freerun.draws import Greedy, Sample
from freerun.errors import UserError
from freerun.keys import fold
from freerun.models import TransformerLM, TransformerSeq2Seq
from freerun.rollin import Replacement, roll_in
from freerun.rollin.planned import _Plan
from oracles import full_prefix

TIME = 170
DRAWS = {"greedy": Greedy(), "inverse_cdf": Sample(), "gumbel": Sample(coupling="gumbel")}


def model_of(kind: str = "lm", **named) -> nn.Module:
    torch.manual_seed(3)
    named = {"size": 16, "layers": 2, "heads": 2, **named}
    made = TransformerSeq2Seq(9, 11, **named) if kind == "seq2seq" else TransformerLM(11, **named)
    made = made.double()
    with torch.no_grad():  # far from uniform: a wrong key or position changes entries
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return made


def batch_of(kind: str = "lm", size: int = 5, time: int = TIME) -> fr.Batch:
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (size, time), generator=g)
    if kind == "lm":
        return fr.Batch(ids, ids)
    source = torch.randint(1, 9, (size, 6), generator=g)
    return fr.Batch(
        ids, ids, context={"source": source, "source_mask": torch.arange(6) < torch.tensor([6, 4, 6, 1, 3])[:, None]}
    )


def mixed_gaps(size: int = 5, time: int = TIME) -> torch.Tensor:
    """(size, time) keep: own entries one after another, far apart, behind a long prompt, at both ends, and none."""
    keep = torch.ones(size, time, dtype=torch.bool)
    keep[0, :20] = False  # then a gap of 145 that this row, which has most, reads at once
    keep[0, 165:] = False
    keep[1, 7::37] = False
    keep[2, 100::5] = False
    keep[3, 0] = keep[3, -1] = False
    return keep


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("kind", "positions"), [("lm", "rope"), ("seq2seq", "learned")])
def test_long_mixed_gaps_equal_the_full_prefix_oracle(kind, positions, name):
    model, batch, keep = model_of(kind, positions=positions), batch_of(kind), mixed_gaps()
    expected = full_prefix(model, batch, keep, name, fold(5, "draw", 0))
    replacement = Replacement.of(batch, keep, DRAWS[name], fold(5, "draw", 0))
    assert (expected != batch.history).sum() > 30
    for engine in ("window", "step", "auto", fr.Window(3)):
        assert torch.equal(roll_in(model, batch, replacement, engine).history, expected), engine


@pytest.mark.parametrize(
    ("norm", "activation", "bias"), [("layer", "gelu", True), ("rms", "relu", True), ("rms", "swiglu", False)]
)
@pytest.mark.parametrize("ratio", [0.97, 0.8, 0.4])
def test_long_random_gaps_equal_parallel_passes_of_the_plain_forward(norm, activation, bias, ratio):
    """Rows read by themselves, in a padded grid and as blocks of a square, whatever the layers are made of."""
    model, batch = model_of(norm=norm, activation=activation, bias=bias), batch_of(size=4, time=200)
    for key in range(2):
        keep = fr.gates.resolve("token")(batch, ratio, fold(key, "gate", 0))
        keep[key, :140] = True
        replacement = Replacement.of(batch, keep, Sample(), key)
        expected = roll_in(model, batch, replacement, "jacobi").history
        for engine in ("window", "step"):
            assert torch.equal(roll_in(model, batch, replacement, engine).history, expected), (engine, key)


def test_attention_is_by_row_in_a_padded_grid_and_causal_where_each_costs_least(monkeypatch):
    from freerun.models.transformer import reader

    seen = []
    call = reader._Plan.call
    monkeypatch.setattr(reader._Plan, "call", lambda self, n: seen.append(call(self, n)) or seen[-1])
    with torch.no_grad():
        model = model_of(size=128, heads=4).eval()
        roll_in(model, batch_of(), Replacement.of(batch_of(), mixed_gaps(), Sample(), 0), "window")
    assert {(each.pieces is not None, each.mask is not None, each.causal) for each in seen} >= {
        (True, False, False), (False, True, False)
    }  # fmt: skip
    longest = [end - start for each in seen for _, start, end, _, _ in each.pieces or ()]
    assert max(longest) == 128  # the gap of 145 is cut
    # the last layer goes on with one input of each row
    assert all((each.last is None) == (each.longest == 1) for each in seen)
    assert all(len(each.last[0]) == each.last[1].rows == each.rows for each in seen if each.last)


def test_a_plan_reads_every_input_once_in_as_few_calls_as_can_be():
    keep = mixed_gaps()
    replacement = Replacement.of(batch_of(), keep, Sample(), 0)
    plan = _Plan(replacement, 5, None)
    rows = [0, 1, 2, 3] if plan.order is None else plan.order.tolist()
    counts = plan.calls.counts
    assert sorted(rows) == [0, 1, 2, 3]  # nothing is read of a row without own entries
    assert len(counts) == int((~keep).sum(1).max())
    last = torch.where(keep, 0, torch.arange(1, TIME + 1)).amax(1)
    assert counts.sum(0).tolist() == last[rows].tolist()
    assert (counts[1:][counts[:-1] == 0] == 0).all()
    # a row with few own entries shares its gaps out over the calls: 156 inputs in 25 calls, in 5 gaps
    assert counts[:, rows.index(1)].max() <= 8
    decided = torch.cat([numbers for numbers, _, _ in plan.own])
    assert sorted(decided.tolist()) == list(range(replacement.number))
    step = _Plan(replacement, 5, 1)
    assert step.calls.counts.max() == 1
    assert step.calls.counts.sum(0).tolist() == sorted(last[:4].tolist(), reverse=True)


class Doubled(TransformerLM):
    """A subclass of its own layers' sum."""

    def _through(self, *arguments):
        return 2 * super()._through(*arguments)

    def _hidden(self, *arguments):
        return 2 * super()._hidden(*arguments)


def test_what_a_person_changed_in_a_model_is_what_is_rolled_in():
    """Hooks, exchanged layers, overridden methods and pruned weights count in every engine."""

    def hooked(model):
        model.blocks[0].feed.register_forward_hook(lambda module, inputs, output: output * 3)

    def exchanged(model):
        old = model.blocks[1].attention.project
        model.blocks[1].attention.project = nn.Sequential(old, nn.Linear(48, 48).double())

    def looked_up(model):  # in no table: what a hook does may depend on more than the symbol
        model.embedding.register_forward_hook(lambda module, inputs, output: output * 3)

    def pruned(model):
        prune.random_unstructured(model.blocks[0].feed.enter, "weight", 0.5)

    def parametrized(model):
        parametrizations.weight_norm(model.blocks[0].feed.enter)
        with torch.no_grad():
            model.blocks[0].feed.enter.parametrizations.weight.original0 *= 3

    def patched(model):
        feed = model.blocks[0].feed
        feed.forward = lambda x: 3 * type(feed).forward(feed, x)

    def doubled(model):
        model.__class__ = Doubled

    batch = batch_of(time=30)
    keep = fr.gates.resolve("token")(batch, 0.5, 3)
    replacement = Replacement.of(batch, keep, Sample(), 7)
    plain = roll_in(model_of(), batch, replacement, "jacobi").history
    for change in (hooked, looked_up, exchanged, pruned, parametrized, patched, doubled):
        model = model_of()
        assert torch.equal(roll_in(model, batch, replacement, "window").history, plain)  # before: planned
        change(model)
        expected = roll_in(model, batch, replacement, "jacobi").history
        assert not torch.equal(expected, plain), change.__name__
        for engine in ("window", "step", "auto"):
            assert torch.equal(roll_in(model, batch, replacement, engine).history, expected), (change.__name__, engine)


@pytest.mark.parametrize(("vocab", "lookups"), [(11, 1), (2000, None)])
def test_symbols_are_looked_up_once_where_they_are_fewer_than_the_inputs(vocab, lookups):
    torch.manual_seed(3)
    model, batch = TransformerLM(vocab, size=16, layers=2, heads=2).double(), batch_of(time=40)
    replacement = Replacement.of(batch, fr.gates.resolve("token")(batch, 0.5, 3), Sample(), 7)
    expected, seen = roll_in(model, batch, replacement, "jacobi").history, []
    model.embed = lambda entries: seen.append(len(entries)) or model.embedding(entries)
    for engine in ("window", "step"):
        seen.clear()
        assert torch.equal(roll_in(model, batch, replacement, engine).history, expected)
        assert len(seen) == lookups if lookups else len(seen) > 10


def test_a_reader_of_vectors_for_every_input_is_refused():
    """The contract that a reader of one's own may have been written for: it would predict from the wrong ones."""
    model, batch = model_of(), batch_of(time=40)
    replacement = Replacement.of(batch, fr.gates.resolve("token")(batch, 0.5, 3), Sample(), 7)
    model.reader = lambda batch, calls: lambda n, entries: torch.zeros(len(entries), 16, dtype=torch.float64)
    with pytest.raises(UserError, match="rows read: it must return one for each"):
        roll_in(model, batch, replacement, "window")


def test_planned_roll_ins_leave_weights_and_gradients_alone():
    model, batch = model_of(), batch_of(time=40)
    before = [weight.clone() for weight in model.parameters()]
    outcome = fr.scheduled_sampling(0.5).run(model, batch, 0, 1)
    outcome.loss.backward()
    assert not outcome.fed.history.is_inference()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    model2 = model_of()
    fr.scheduled_sampling(0.5, engine="jacobi").run(model2, batch, 0, 1).loss.backward()
    for a, b in zip(model.parameters(), model2.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("engine", ["window", "step"])
def test_a_planned_roll_in_under_autocast_reads_as_the_modules_do(engine):
    """Weights are cast once, and the casts are those of the modules: in bfloat16 nearly all entries agree."""
    model, batch = model_of(positions="rope").float(), batch_of(time=40)
    keep = fr.gates.resolve("token")(batch, 0.5, 3)
    replacement = Replacement.of(batch, keep, Greedy(), 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = roll_in(model, batch, replacement, engine).history
        model.blocks[0].register_forward_hook(lambda *_: None)  # not planned
        other = roll_in(model, batch, replacement, engine).history
    rows = (mine != other).any(1).sum()
    assert rows <= 2, rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_a_model_in_a_narrow_type_is_planned_too(dtype, positions):
    """Of 100 greedy entries, few depend on the last of eight bits: most rows agree with parallel passes."""
    model, batch = model_of(positions=positions).to(dtype), batch_of(time=40)
    keep = fr.gates.resolve("token")(batch, 0.5, 3)
    replacement = Replacement.of(batch, keep, Greedy(), 7)
    expected = roll_in(model, batch, replacement, "jacobi").history
    for engine in ("window", "step"):
        assert (roll_in(model, batch, replacement, engine).history != expected).any(1).sum() <= 2, engine
