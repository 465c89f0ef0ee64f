"""The Transformer: in parallel, entry by entry and in windows over its cache it is one function."""

from functools import partial

import pytest
import torch

import freerun as fr
from builders import assert_same_gradients, gradients, language_model, prompted, ragged, refused, transformer
from freerun.models import TransformerLM, TransformerSeq2Seq
from freerun.types import Cached, Embedder, Encoder, Split, Stepper

KINDS = {
    "rope": {"positions": "rope"},
    "learned": {"positions": "learned"},
    "gelu, layer norm, bias": {"activation": "gelu", "norm": "layer", "bias": True},
    "untied, relu": {"tied": False, "activation": "relu", "feed_forward": 12},
}


def cases():
    for name, changes in KINDS.items():
        yield pytest.param(lambda c=changes: (transformer(**c), ragged()), id=f"seq2seq, {name}")
        yield pytest.param(lambda c=changes: (language_model(**c), ragged().replace(context=None)), id=f"lm, {name}")
        for side in ("left", "right"):
            build = lambda c=changes, s=side: (language_model(**c), prompted(s))  # noqa: E731
            yield pytest.param(build, id=f"{side} prompt, {name}")


close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", list(cases()))
def test_stepping_equals_the_parallel_pass(case):
    model, batch = case()
    expected, some = model(batch), torch.tensor([2, 0])
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            state = model.start(batch)
            for t in range(batch.time):
                close(model.output(state), expected[:, t])
                close(model.output(state, some), expected[some, t])
                state = model.step(state, model.embed(batch.history[:, t]))


@pytest.mark.parametrize("case", list(cases()))
@pytest.mark.parametrize("seed", [0, 1])
def test_reading_at_positions_of_their_own_equals_the_parallel_pass(case, seed):
    """Random counts, rows dropped and repeated, entries taken back: always the outputs of the forward."""
    model, batch = case()
    expected, g = model(batch), torch.Generator().manual_seed(seed)
    rows = torch.arange(batch.size)
    with torch.no_grad():
        state, lengths = model.start(batch), torch.zeros(batch.size, dtype=torch.int64)
        for _ in range(8):
            counts = torch.randint(0, 3, (len(rows),), generator=g)
            counts = torch.minimum(counts, batch.time - 1 - lengths)
            if int(counts.sum()) == 0:
                continue
            read = [(r, range(int(n), int(n + c))) for r, n, c in zip(rows, lengths, counts, strict=True)]
            entries = torch.cat([batch.history[r, list(positions)] for r, positions in read])
            state, hidden = model.advance(state, model.embed(entries), counts)
            close(model.head(hidden), torch.cat([expected[r, [p + 1 for p in positions]] for r, positions in read]))
            lengths = lengths + counts
            if torch.rand((), generator=g) < 0.4:
                lengths = torch.minimum(lengths, torch.randint(0, batch.time, (len(rows),), generator=g))
                state = model.crop(state, lengths)
            if torch.rand((), generator=g) < 0.4:
                kept = torch.randint(0, len(rows), (3,), generator=g)
                rows, lengths, state = rows[kept], lengths[kept], model.select(state, kept)
            close(model.output(state), expected[rows, lengths])


def test_states_that_branch_do_not_see_each_other():
    model, batch = language_model(), ragged(size=2).replace(context=None)
    with torch.no_grad():
        state = model.step(model.start(batch), model.embed(batch.history[:, 0]))
        one, two = (model.step(state, model.embed(torch.full((2,), symbol))) for symbol in (1, 2))
        further = model.step(one, model.embed(torch.tensor([3, 3])))
    for entries, branch in (([1], one), ([2], two), ([1, 3], further)):
        history = torch.cat([batch.history[:, :1], torch.tensor([[*entries, 0]]).expand(2, -1)], 1)
        close(model.output(branch), model(fr.Batch(history))[:, -1])


def test_the_cache_grows_beyond_the_batch_it_began_with():
    model = language_model()
    ids = torch.randint(0, 5, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = model(fr.Batch(ids))
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            state = model.start(fr.Batch(ids[:, :3]))
            for t in range(29):
                state = model.step(state, model.embed(ids[:, t]))
            close(model.output(state), expected[:, 29])


def test_gradients_flow_through_steps():
    model, batch = transformer(), ragged()
    state, outputs = model.start(batch), []
    for t in range(batch.time):
        outputs.append(model.output(state))
        state = model.step(state, model.embed(batch.history[:, t]))
    stepped = gradients(model, torch.stack(outputs, 1).square().sum())
    assert_same_gradients(stepped, gradients(model, model(batch).square().sum()))


def test_what_stands_between_uneven_counts_reaches_neither_outputs_nor_gradients(monkeypatch):
    """Attention works on a grid; memory that holds NaN where no entry stands must do no harm."""
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, torch.nan))
    model, ids = language_model(), torch.randint(0, 5, (3, 6), generator=torch.Generator().manual_seed(0))
    batch = fr.Batch(ids)
    rows, positions = torch.tensor([(r, t) for r, n in enumerate((4, 1, 2)) for t in range(n)]).unbind(1)

    def read():
        return model.advance(model.start(batch), model.embed(ids[rows, positions]), torch.tensor([4, 1, 2]))[1]

    expected = model.hidden(batch)[rows, positions + 1]
    with torch.no_grad():
        close(read(), expected)
    slopes = gradients(model, expected.square().sum())
    assert_same_gradients(gradients(model, read().square().sum()), slopes)


def test_a_batch_as_long_as_there_are_positions_is_checked_and_rolled_in():
    model, batch = language_model(max_positions=9), prompted("right")
    assert batch.time == 9
    assert not fr.check_model(model, batch).refused
    methods = [fr.scheduled_sampling(0.0, engine=engine) for engine in ("step", "jacobi", "window", "draft")]
    first, *others = (method.transform(model, batch, 3, 5).history for method in methods)
    assert all(torch.equal(history, first) for history in others)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_left_padding_takes_no_position_and_is_seen_by_none(positions):
    model, batch = language_model(positions), prompted("left")
    outputs, present = model(batch), batch.context["present"]
    for row, absent in enumerate((~present).sum(1).tolist()):
        alone = model(fr.Batch(batch.history[row : row + 1, absent:]))
        close(outputs[row : row + 1, absent + 1 :], alone[:, 1:])
    poisoned = batch.history.masked_fill(torch.nn.functional.pad(~present, (0, batch.time - 3)), 4)
    there = torch.nn.functional.pad(present, (1, batch.time - 4), value=True)
    torch.testing.assert_close(model(batch.replace(history=poisoned))[there], outputs[there])


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("pads", [(2, 0), (0, 2)])
def test_source_padding_is_inert_on_either_side(positions, pads):
    model, batch = transformer(positions), ragged(size=1)
    n = int(batch.context["source_mask"].sum())
    bare = {name: part[:, :n] for name, part in batch.context.items()}
    padded = {name: torch.nn.functional.pad(part, pads, value=3 * (name == "source")) for name, part in bare.items()}
    alone = model(batch.replace(context=bare))
    close(model(batch.replace(context=padded)), alone)
    both = batch.replace(context=padded).select(torch.tensor([0, 0]))
    both.context["source_mask"][1] = False  # a source that is not there at all must do no harm to anyone
    outputs = model(both)
    close(outputs[:1], alone)
    assert bool(outputs.isfinite().all())


@pytest.mark.parametrize("case", list(cases()))
def test_it_speaks_every_protocol_and_passes_every_check(case):
    model, batch = case()
    assert all(isinstance(model, protocol) for protocol in (Stepper, Cached, Split, Embedder))
    assert isinstance(model, Encoder) == isinstance(model, TransformerSeq2Seq)
    assert not fr.check_model(model, batch).refused
    looked_up = model.outputs_from(batch, model.lookup(batch.history))
    torch.testing.assert_close(looked_up, model(batch), rtol=0, atol=0)
    again = type(model)(**model.settings())
    again.load_state_dict(model.float().state_dict())


def test_rotation_depends_on_distances_alone():
    """Every position moved on by left padding of another length: nothing but the start vector's distance changes."""
    from freerun.models.transformer.layers import _rotate, turns

    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, generator=g, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.2)):

        def product(m: int, n: int, dtype=dtype) -> float:
            turn = turns(torch.tensor([m, n]), 8, torch.float32 if dtype == torch.bfloat16 else dtype)
            return float((_rotate(q.to(dtype), turn[:1]) * _rotate(k.to(dtype), turn[1:])).double().sum())

        for distance in (0, 1, 5):
            assert product(distance, 0) == pytest.approx(product(distance + 7, 7), abs=tolerance)
        if dtype != torch.bfloat16:
            assert abs(product(5, 0) - product(1, 0)) > 1e-3


def test_dropout_acts_in_training_alone():
    model, batch = transformer(dropout=0.5), ragged()
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    torch.testing.assert_close(model(batch), model(batch), rtol=0, atol=0)
    torch.testing.assert_close(model(batch), transformer()(batch), rtol=1e-12, atol=1e-12)


def test_arguments_that_cannot_be_are_all_refused_at_once():
    wrong = {"size": 0, "positions": "sinus", "activation": "tanh", "norm": "batch", "dropout": 1.0}
    assert len(refused("", TransformerLM, 0, **wrong)) == 6
    refused("longest is now max_positions; write max_positions=8", TransformerLM, 3, longest=8)
    refused(r"size must be a multiple of heads; got size=10 and heads=4", TransformerSeq2Seq, 3, 3, size=10)
    refused("even width of heads", TransformerLM, 3, size=9, heads=3)
    ids, sizes = torch.zeros(1, 9, dtype=torch.int64), {"size": 8, "heads": 2}
    there = torch.tensor([[True, False, True]])
    left = r"padding on the left: False, then True; row 0 has \[1, 0, 1\]"
    model, short = TransformerLM(3, **sizes), TransformerLM(3, max_positions=8, **sizes)
    refused(r"9 positions, and the model was made with max_positions=8", short, fr.Batch(ids))
    refused("present", model, fr.Batch(ids, context={"source": ids}))
    refused(left, model, fr.Batch(ids, context={"present": there}))
    refused("source_mask", TransformerSeq2Seq(3, 3, **sizes), fr.Batch(ids))


class KeepsAll(TransformerLM):
    def crop(self, state, lengths):
        return state


class OffByOne(TransformerLM):
    def advance(self, state, inputs, counts):
        state, hidden = super().advance(state, inputs, counts)
        return state, hidden.roll(1, 0)


class Appends(TransformerLM):
    """Attends to what was taken back: the lengths are right, the positions of what follows are not."""

    def crop(self, state, lengths):
        from dataclasses import replace

        return replace(super().crop(state, lengths), lengths=state.lengths)


@pytest.mark.parametrize("kind", [KeepsAll, OffByOne, Appends])
def test_a_cache_with_a_bug_is_refused_by_name(kind):
    torch.manual_seed(0)
    batch = ragged().replace(context=None)
    refused("cache_equals_forward", fr.check_model, kind(5, size=8, layers=1, heads=1).double(), batch)
