"""The Transformer: in parallel, entry by entry and in windows over its cache it is one function."""

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
            yield pytest.param(
                lambda c=changes, s=side: (language_model(**c), prompted(s)), id=f"{side} prompt, {name}"
            )


@pytest.mark.parametrize("case", list(cases()))
def test_stepping_equals_the_parallel_pass(case):
    model, batch = case()
    wanted = model(batch)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            state = model.start(batch)
            for t in range(batch.time):
                torch.testing.assert_close(model.output(state), wanted[:, t], rtol=1e-12, atol=1e-12)
                some = torch.tensor([2, 0])
                torch.testing.assert_close(model.output(state, some), wanted[some, t], rtol=1e-12, atol=1e-12)
                state = model.step(state, model.embed(batch.history[:, t]))


@pytest.mark.parametrize("case", list(cases()))
@pytest.mark.parametrize("seed", [0, 1])
def test_reading_at_places_of_their_own_equals_the_parallel_pass(case, seed):
    """Random counts, rows dropped and repeated, entries taken back: always the outputs of the forward."""
    model, batch = case()
    wanted, g = model(batch), torch.Generator().manual_seed(seed)
    rows = torch.arange(batch.size)
    with torch.no_grad():
        state, lengths = model.start(batch), torch.zeros(batch.size, dtype=torch.int64)
        for _ in range(8):
            counts = torch.randint(0, 3, (len(rows),), generator=g)
            counts = torch.minimum(counts, batch.time - 1 - lengths)
            if int(counts.sum()) == 0:
                continue
            places = [range(int(n), int(n + c)) for n, c in zip(lengths, counts, strict=True)]
            told = torch.cat([batch.history[r, list(place)] for r, place in zip(rows, places, strict=True)])
            state, hidden = model.advance(state, model.embed(told), counts)
            after = torch.cat([wanted[r, [p + 1 for p in place]] for r, place in zip(rows, places, strict=True)])
            torch.testing.assert_close(model.head(hidden), after, rtol=1e-12, atol=1e-12)
            lengths = lengths + counts
            if torch.rand((), generator=g) < 0.4:
                lengths = torch.minimum(lengths, torch.randint(0, batch.time, (len(rows),), generator=g))
                state = model.crop(state, lengths)
            if torch.rand((), generator=g) < 0.4:
                kept = torch.randint(0, len(rows), (3,), generator=g)
                rows, lengths, state = rows[kept], lengths[kept], model.select(state, kept)
            torch.testing.assert_close(model.output(state), wanted[rows, lengths], rtol=1e-12, atol=1e-12)


def test_states_that_branch_do_not_see_each_other():
    model, batch = language_model(), ragged(size=2).replace(context=None)
    with torch.no_grad():
        state = model.step(model.start(batch), model.embed(batch.history[:, 0]))
        one, two = (model.step(state, model.embed(torch.full((2,), symbol))) for symbol in (1, 2))
        further = model.step(one, model.embed(torch.tensor([3, 3])))
    for symbol, branch in ((1, one), (2, two)):
        told = torch.tensor([[symbol, 0]]).expand(2, 2)
        history = torch.cat([batch.history[:, :1], told], 1)
        wanted = model(fr.Batch(history, history, history >= 0))[:, 2]
        torch.testing.assert_close(model.output(branch), wanted, rtol=1e-12, atol=1e-12)
    history = torch.cat([batch.history[:, :1], torch.tensor([[1, 3, 0]]).expand(2, 3)], 1)
    wanted = model(fr.Batch(history, history, history >= 0))[:, 3]
    torch.testing.assert_close(model.output(further), wanted, rtol=1e-12, atol=1e-12)


def test_the_cache_grows_beyond_the_batch_it_began_with():
    model = language_model()
    ids = torch.randint(0, 5, (2, 30), generator=torch.Generator().manual_seed(0))
    long, short = (fr.Batch(part, part, part >= 0) for part in (ids, ids[:, :3]))
    wanted = model(long)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            state = model.start(short)
            for t in range(29):
                state = model.step(state, model.embed(ids[:, t]))
            torch.testing.assert_close(model.output(state), wanted[:, 29], rtol=1e-12, atol=1e-12)


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
    batch = fr.Batch(ids, ids, ids >= 0)
    rows, places = torch.tensor([(r, t) for r, n in enumerate((4, 1, 2)) for t in range(n)]).unbind(1)

    def read():
        return model.advance(model.start(batch), model.embed(ids[rows, places]), torch.tensor([4, 1, 2]))[1]

    wanted = model.hidden(batch)[rows, places + 1]
    with torch.no_grad():
        torch.testing.assert_close(read(), wanted, rtol=1e-12, atol=1e-12)
    expected = gradients(model, wanted.square().sum())
    assert_same_gradients(gradients(model, read().square().sum()), expected)


def test_a_batch_as_long_as_there_are_positions_is_checked_and_rolled_in():
    model, batch = language_model(max_positions=9), prompted("right")
    assert batch.time == 9
    assert not fr.check_model(model, batch).refused
    histories = [
        fr.scheduled_sampling(0.0, engine=engine).transform(model, batch, 3, 5).history
        for engine in ("step", "jacobi", "window", "draft")
    ]
    assert all(torch.equal(history, histories[0]) for history in histories)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_left_padding_takes_no_position_and_is_seen_by_none(positions):
    model, batch = language_model(positions), prompted("left")
    outputs = model(batch)
    for row in range(batch.size):
        absent = int((~batch.context["present"][row]).sum())
        ids = batch.history[row : row + 1, absent:]
        alone = model(fr.Batch(ids, ids, ids >= 0))
        torch.testing.assert_close(outputs[row : row + 1, absent + 1 :], alone[:, 1:], rtol=1e-12, atol=1e-12)
    poisoned = batch.history.masked_fill(torch.nn.functional.pad(~batch.context["present"], (0, batch.time - 3)), 4)
    there = torch.nn.functional.pad(batch.context["present"], (1, batch.time - 4), value=True)
    torch.testing.assert_close(model(batch.replace(history=poisoned))[there], outputs[there])


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_source_padding_is_inert_on_either_side(positions, side):
    model, batch = transformer(positions), ragged(size=1)
    ids, mask = batch.context["source"], batch.context["source_mask"]
    n = int(mask.sum())
    ids, mask = ids[:, :n], mask[:, :n]
    pads = (2, 0) if side == "left" else (0, 2)
    padded = {
        "source": torch.nn.functional.pad(ids, pads, value=3),
        "source_mask": torch.nn.functional.pad(mask, pads, value=False),
    }
    bare = batch.replace(context={"source": ids, "source_mask": mask})
    torch.testing.assert_close(model(batch.replace(context=padded)), model(bare), rtol=1e-12, atol=1e-12)
    twice = {name: torch.cat([part, part]) for name, part in padded.items()}
    twice["source_mask"][1] = False  # a source that is not there at all must do no harm to anyone
    both = fr.Batch(*(torch.cat([part, part]) for part in (batch.targets, batch.history, batch.mask)), context=twice)
    outputs = model(both)
    torch.testing.assert_close(outputs[:1], model(bare), rtol=1e-12, atol=1e-12)
    assert bool(outputs.isfinite().all())


@pytest.mark.parametrize("case", list(cases()))
def test_it_speaks_every_protocol_and_passes_every_check(case):
    model, batch = case()
    assert isinstance(model, Stepper)
    assert isinstance(model, Cached)
    assert isinstance(model, Split)
    assert isinstance(model, Embedder)
    assert isinstance(model, Encoder) == isinstance(model, TransformerSeq2Seq)
    assert not fr.check_model(model, batch).refused
    given = model.outputs_from(batch, model.lookup(batch.history))
    torch.testing.assert_close(given, model(batch), rtol=0, atol=0)
    again = type(model)(**model.settings())
    again.load_state_dict(model.float().state_dict())


def test_rotation_hangs_on_distances_alone():
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


def test_arguments_that_cannot_be_are_all_told_at_once():
    with pytest.raises(fr.UserError) as caught:
        TransformerLM(0, size=0, positions="sinus", activation="tanh", norm="batch", dropout=1.0)
    assert len(caught.value.problems) == 6
    refused("longest is now max_positions; write max_positions=8", TransformerLM, 3, longest=8)
    refused(r"size must be a multiple of heads; got size=10 and heads=4", TransformerSeq2Seq, 3, 3, size=10)
    refused("even width of heads", TransformerLM, 3, size=9, heads=3)
    ids = torch.zeros(1, 9, dtype=torch.int64)
    with pytest.raises(fr.UserError, match=r"9 positions, and the model was made with max_positions=8"):
        TransformerLM(3, size=8, heads=2, max_positions=8)(fr.Batch(ids, ids, ids == 0))
    refused("present", lambda: TransformerLM(3, size=8, heads=2)(fr.Batch(ids, ids, ids == 0, {"source": ids})))
    there = torch.tensor([[True, False, True]])
    with pytest.raises(fr.UserError, match=r"padding on the left: False, then True; row 0 has \[1, 0, 1\]"):
        TransformerLM(3, size=8, heads=2)(fr.Batch(ids, ids, ids == 0, {"present": there}))
    refused("source_mask", lambda: TransformerSeq2Seq(3, 3, size=8, heads=2)(fr.Batch(ids, ids, ids == 0)))


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
