"""Forecasters: stepped and in parallel one function, cut where asked, told what they should be and nothing more."""

import pytest
import torch

import freerun as fr
from builders import assert_same_gradients, gradients, lively, refused
from freerun.keys import fold
from freerun.models import (
    MODELS,
    PlainForecaster,
    RecurrentForecaster,
    Seq2SeqModel,
    ShallowPLRNN,
    TransformerForecaster,
)
from freerun.types import Cached, Encoder, Stepper
from oracles import coins
from oracles_values import full_prefix_values

KEY, STEP = 5, 3
VALUES, PAST, TIME, ROWS = 3, 4, 7, 4


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_for(model, values: int = VALUES) -> fr.Batch:
    """Ragged rows in the model's layout, with whatever else it reads."""
    covariates, observed = (model.settings().get(name, 0) for name in ("covariates", "observed"))
    spoken = torch.tensor([TIME, TIME - 3, TIME - 1, 2])
    if model.layout == "past":
        context = {"past": random(ROWS, 5, values + observed + covariates, seed=1)}
        mask, time = torch.arange(TIME) < spoken[:, None], TIME
    else:
        context, time = {}, PAST + TIME
        places = torch.arange(time)
        mask = (places >= PAST) & (places < PAST + spoken[:, None])
    if covariates:
        context["future"] = random(ROWS, time, covariates, seed=2)
    told = random(ROWS, time, values)
    return fr.Batch(told, told, mask, context or None, rows=torch.arange(ROWS) + 10)


def recurrent():
    for kind in (RecurrentForecaster, PlainForecaster):
        for cell in ("rnn", "gru", "lstm"):
            for layers in (1, 2):
                yield (
                    f"{kind.layout}, {cell}, {layers}",
                    lambda k=kind, c=cell, n=layers: k(3, size=6, cell=c, layers=n),
                )
        several = {"observed": 1} if kind is RecurrentForecaster else {}
        for name, changes in {
            "covariates": {"covariates": 2, **several},
            "residual": {"residual": True, "covariates": 1},
            "fed back": {"fed_back": (2, 0), "layers": 2, "covariates": 1},
            "all fed back in order": {"fed_back": (0, 1, 2), "residual": True},
            "gaussian": {"head": "gaussian", "residual": True},
            "student_t": {"head": "student_t", "cell": "lstm"},
            "quantiles": {"head": "quantiles", "residual": True},
        }.items():
            yield f"{kind.layout}, {name}", lambda k=kind, c=changes: k(3, size=6, **c)


TRANSFORMERS = {
    "transformer": {},
    "transformer, covariates": {"covariates": 2},
    "transformer, residual": {"residual": True, "covariates": 1},
    "transformer, gaussian": {"head": "gaussian", "residual": True},
    "transformer, quantiles": {"head": "quantiles"},
}
OTHERS = {"shallow_plrnn": lambda: ShallowPLRNN(3, size=5)}
CASES = {
    **dict(recurrent()),
    **{
        name: lambda c=changes: TransformerForecaster(3, size=8, layers=2, heads=2, longest=64, **c)
        for name, changes in TRANSFORMERS.items()
    },
    **OTHERS,
}
POINT = [name for name in CASES if not any(head in name for head in ("gaussian", "student_t", "quantiles"))]


def case(name: str):
    model = lively(CASES[name]().double())
    return model, batch_for(model, model.values)


def stepped(model, batch: fr.Batch) -> torch.Tensor:
    state, outputs = model.start(batch), []
    for t in range(batch.time):
        outputs.append(model.output(state))
        if t + 1 < batch.time:
            state = model.step(state, model.embed(batch.history[:, t]))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("name", list(CASES))
def test_stepping_equals_the_parallel_pass(name):
    model, batch = case(name)
    wanted = model(batch)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(stepped(model, batch), wanted, rtol=1e-10, atol=1e-10)
    expected = gradients(model, wanted.square().sum())
    assert_same_gradients(gradients(model, stepped(model, batch).square().sum()), expected)
    model.float()
    single = fr.Batch(*(x.float() for x in (batch.targets, batch.history)), batch.mask, _float(batch.context))
    torch.testing.assert_close(model(single).double(), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(stepped(model, single), model(single), rtol=1e-4, atol=1e-5)


def _float(context):
    return None if context is None else {name: part.float() for name, part in context.items()}


@pytest.mark.parametrize("name", list(CASES))
def test_rows_are_picked_repeated_and_dropped_with_their_context(name):
    model, batch = case(name)
    wanted, rows = model(batch), torch.tensor([2, 0, 0])
    torch.testing.assert_close(model(batch.select(rows)), wanted[rows], rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        state = model.start(batch)
        for t in range(2):
            torch.testing.assert_close(model.output(state, rows), wanted[rows, t], rtol=1e-10, atol=1e-10)
            state = model.step(state, model.embed(batch.history[:, t]))
        state = model.select(state, rows)
        torch.testing.assert_close(model.output(state), wanted[rows, 2], rtol=1e-10, atol=1e-10)
        state = model.step(state, model.embed(batch.history[rows, 2]))
        torch.testing.assert_close(model.output(state), wanted[rows, 3], rtol=1e-10, atol=1e-10)
    if isinstance(model, Encoder):
        encoded = model.encode(batch)
        assert model.encode(encoded) is encoded
        torch.testing.assert_close(model(encoded.select(rows)), wanted[rows], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", list(CASES))
def test_nothing_at_or_after_a_position_and_no_target_moves_its_output(name):
    model, batch = case(name)
    wanted = model(batch)
    assert torch.equal(model(batch.replace(targets=batch.targets + 1)), wanted)
    for t in range(batch.time):
        history = batch.history.clone()
        history[:, t:] += 1
        moved = model(batch.replace(history=history))
        torch.testing.assert_close(moved[:, : t + 1], wanted[:, : t + 1], rtol=1e-10, atol=1e-10)
        if t + 1 < batch.time:
            assert bool((moved[:, t + 1] != wanted[:, t + 1]).any())


@pytest.mark.parametrize("name", POINT)
def test_every_check_passes(name):
    model, batch = case(name)
    assert isinstance(model, Stepper)
    assert isinstance(model, Cached) == isinstance(model, TransformerForecaster)
    assert not fr.check_model(model, batch).refused
    again = type(model)(**model.settings())
    again.load_state_dict(model.float().state_dict())


@pytest.mark.parametrize("name", list(CASES))
def test_detach_keeps_the_numbers_and_cuts_the_past_alone(name):
    """After each cut the backward of the next steps runs by itself; weights get what the truncated loop gives them."""
    model, batch = case(name)
    every = 3

    def truncated(whole: bool) -> torch.Tensor | None:
        model.zero_grad(set_to_none=True)
        state, losses = model.start(batch), []
        for t in range(batch.time):
            losses.append(model.output(state).square().sum())
            if t + 1 == batch.time:
                break
            if (t + 1) % every == 0:
                before = model.output(state)
                state = cut_by_hand(state) if whole else model.detach(state)
                assert torch.equal(model.output(state), before)
                if not whole:  # memory grows with the segment: its graph is gone
                    torch.stack(losses).sum().backward()
                    losses = []
            state = model.step(state, model.embed(batch.history[:, t]))
        total = torch.stack(losses).sum()
        if not whole:
            total.backward()
        return total

    truncated(False)
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    assert_same_gradients(found, gradients(model, truncated(True)))


def cut_by_hand(tree):
    """Every tensor of a state's pytree without its graph; what is laid out from the weights stays in it."""
    from freerun.models.rnn import CellWeights
    from freerun.models.transformer.decoder import DecoderState

    if isinstance(tree, torch.Tensor):
        return tree.detach()
    if isinstance(tree, DecoderState):
        cache = tree.cache._with(lambda part: part.detach())
        return DecoderState(cache, cache.version, tree.lengths, tree.alike, tree.sources, tree.seen)
    if isinstance(tree, tuple) and not any(isinstance(part, CellWeights) for part in tree):
        parts = [cut_by_hand(part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


ENGINES = {
    "past": ("auto", "step", "jacobi"),
    "sequence": ("auto", "step", "jacobi"),
    "transformer": ("auto", "step", "jacobi", "window", fr.Window(3)),
}
ROLLED = [
    "past, gru, 2", "past, lstm, 1", "past, covariates", "past, residual", "past, fed back", "past, gaussian",
    "sequence, gru, 1", "sequence, lstm, 2", "sequence, covariates", "sequence, gaussian", "transformer",
    "transformer, covariates", "transformer, residual", "transformer, gaussian", "shallow_plrnn",
]  # fmt: skip


def small(name: str):
    """A model whose free run stays within bounds, so that 1e-10 means something."""
    model, batch = case(name)
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if "norm" not in n):
            parameter.mul_(0.4)
    return model, batch


@pytest.mark.parametrize("name", ROLLED)
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.0])
def test_every_exact_engine_equals_the_oracle(name, ratio):
    model, batch = small(name)
    untouched = [part.clone() for part in (batch.context or {}).values()]
    keep = coins("token", batch, ratio, KEY, STEP)
    assert bool(keep[~batch.mask].all())
    for draw in ("expected", "gaussian") if "gaussian" in name else ("point",):
        wanted = full_prefix_values(model, batch, keep, draw, fold(KEY, "draw", STEP))
        for engine in ENGINES["transformer" if isinstance(model, Cached) else model.layout]:
            method = fr.scheduled_sampling(ratio, gradient="none", engine=engine, draw=draw)
            history = method.transform(model, batch, STEP, KEY).history
            torch.testing.assert_close(history, wanted, rtol=1e-10, atol=1e-10, msg=f"{engine}, {draw}")
            assert torch.equal(history[~batch.mask], batch.history[~batch.mask])
    for part, before in zip((batch.context or {}).values(), untouched, strict=True):
        assert torch.equal(part, before)


def test_engines_that_values_or_a_model_have_not_are_refused():
    assert {"auto", "step", "jacobi", "window", "draft"} == set(fr.ENGINES)
    model, batch = case("transformer")
    with pytest.raises(fr.UserError, match="values never are"):
        fr.scheduled_sampling(0.5, gradient="none", engine="draft")(model, batch, step=0)
    model, batch = case("sequence, gru, 1")
    with pytest.raises(fr.UserError, match="PlainForecaster lacks some"):
        fr.scheduled_sampling(0.5, gradient="none", engine="window")(model, batch, step=0)


@pytest.mark.parametrize("name", ROLLED)
def test_running_freely_is_the_roll_in_of_ratio_zero(name):
    model, batch = small(name)
    if model.layout == "sequence":
        batch = batch.replace(mask=(torch.arange(PAST + TIME) >= PAST).expand(ROWS, -1))
    else:
        batch = batch.replace(mask=torch.ones(ROWS, TIME, dtype=torch.bool))
    for draw in ("expected", "gaussian") if "gaussian" in name else ("point",):
        said = fr.generate(model, batch, length=TIME, draw=draw, key=KEY).entries
        method = fr.free_running(gradient="none", draw=draw, engine="step")
        rolled = method.transform(model, batch, 0, KEY).history[:, -TIME:]
        torch.testing.assert_close(said, rolled, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["past, gru, 2", "sequence, covariates", "transformer, covariates"])
@pytest.mark.parametrize("gradient", ["none", "full", 2])
def test_methods_train_every_weight(name, gradient):
    model, batch = small(name)
    loss = fr.scheduled_sampling(0.5, gradient=gradient)(model, batch, STEP, KEY)
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients(model, loss).values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: RecurrentForecaster(3, size=6, layers=2, dropout=0.5),
        lambda: PlainForecaster(3, size=6, layers=2, dropout=0.5),
        lambda: TransformerForecaster(3, size=8, heads=2, dropout=0.5),
    ],
)
def test_dropout_acts_in_training_alone(make):
    model = lively(make().double())
    batch = batch_for(model)
    assert not torch.equal(model(batch), model(batch))
    assert not torch.equal(stepped(model, batch), stepped(model, batch))
    model.eval()
    torch.testing.assert_close(stepped(model, batch), model(batch), rtol=1e-10, atol=1e-10)


def test_position_zero_is_told_what_stands_before_it():
    model, batch = case("past, residual")
    base = RecurrentForecaster(**model.settings() | {"residual": False}).double()
    base.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(batch)[:, 0], base(batch)[:, 0] + batch.context["past"][:, -1, :3])
    torch.testing.assert_close(model(batch)[:, 1:], base(batch)[:, 1:] + batch.history[:, :-1])
    model, batch = case("shallow_plrnn")
    constant = model.outer(torch.relu(model.inner.bias))
    torch.testing.assert_close(model(batch)[:, 0], constant.expand(ROWS, -1))


def test_only_what_is_fed_back_is_read():
    model, batch = case("sequence, fed back")
    history = batch.history.clone()
    history[..., 1] += 1
    assert torch.equal(model(batch.replace(history=history)), model(batch))
    history[..., 0] += 1
    assert not torch.equal(model(batch.replace(history=history)), model(batch))


def test_the_jacobian_of_a_shallow_plrnn_is_autograds():
    model, _ = case("shallow_plrnn")
    states = random(5, 3)
    wanted = torch.stack([torch.autograd.functional.jacobian(model.output, z) for z in states])
    torch.testing.assert_close(model.jacobian(states), wanted)


@pytest.mark.parametrize("name", ["past, covariates", "sequence, covariates", "transformer, covariates"])
def test_covariates_that_are_missing_at_generation_are_told(name):
    model, batch = case(name)
    future, time = batch.context["future"], batch.time
    short = batch.replace(context={**batch.context, "future": future[:, : time - 2]})
    told = rf"missing at generation: the batch has {time} positions and context\['future'\] covers {time - 2}"
    for call in (model, model.start):
        refused(told, call, short)
    refused(rf"covers {time}", fr.generate, model, batch, length=TIME + 2)
    state = model.start(batch)
    for t in range(time - 1):
        state = model.step(state, model.embed(batch.history[:, t]))
    with pytest.raises(
        fr.UserError, match=rf"position {time} is to be predicted and context\['future'\] covers {time}"
    ):
        model.step(state, model.embed(batch.history[:, -1]))
    without = {key: part for key, part in batch.context.items() if key != "future"}
    refused("has no 'future'", model, batch.replace(context=without))
    with pytest.raises(fr.UserError, match=r"must be \(batch, time, covariates\)"):
        model(batch.replace(context={**batch.context, "future": future[..., :1]}))
    longer = torch.cat([future, future], 1)
    torch.testing.assert_close(model(batch.replace(context={**batch.context, "future": longer})), model(batch))


def test_what_does_not_fit_a_model_is_told():
    model, batch = case("past, covariates")
    past = batch.context["past"]
    with pytest.raises(fr.UserError, match=r"6\): 3 values, 1 observed, 2 covariates; got \(4, 5, 5\)"):
        model(batch.replace(context={**batch.context, "past": past[..., :5]}))
    with pytest.raises(fr.UserError, match=r"\['past'\] must be .* got \(4, 0, 6\)"):
        model(batch.replace(context={**batch.context, "past": past[:, :0]}))
    for context in (None, {"future": batch.context["future"]}):
        refused(r"RecurrentForecaster needs Batch.context = \{'past'", model, batch.replace(context=context))
    for name in CASES:
        model, batch = case(name)
        wide = torch.cat([batch.history, batch.history], -1)
        refused(r"and the batch's history has", model, batch.replace(history=wide, targets=wide))
    ids = torch.zeros(2, 3, dtype=torch.int64)
    refused("this batch holds ids", lambda: PlainForecaster(1)(fr.Batch(ids, ids, ids == 0)))
    refused("made without covariates", lambda: PlainForecaster(3)(batch_for(PlainForecaster(3, 2))))


def test_a_head_that_is_fed_back_as_a_point_is_refused_before_anything_is_fed():
    model, batch = case("past, gaussian")
    refused(r"gives 6 numbers a position and 3 are fed back: use draw='expected'", fr.generate, model, batch, length=2)
    refused("is for ids", fr.generate, model, batch, length=2, draw="sample")


WIDTHS = [
    fr.scheduled_sampling(0.0, gradient="none", engine=engine, draw="gaussian")
    for engine in ("step", "jacobi", "window")
]


@pytest.mark.parametrize("method", [*WIDTHS, fr.parallel(0.0, draw="gaussian"), fr.free_running(draw="gaussian")])
def test_a_point_that_is_fed_back_as_a_head_is_refused_and_never_spread_over_the_values(method):
    """Two numbers for two values are also a mean and a scale of one."""
    model = TransformerForecaster(2, size=8, heads=2, layers=1)
    values = torch.zeros(2, 5, 2)
    batch = fr.Batch(values, values, torch.ones(2, 5, dtype=torch.bool))
    refused(r"gives 2 numbers a position and 2 are fed back: use draw='point'", method, model, batch, step=0)


def test_arguments_that_cannot_be_are_all_told_at_once():
    with pytest.raises(fr.UserError) as caught:
        RecurrentForecaster(0, -1, size=0, cell="gnu", head="laplace", dropout=1.0, fed_back=(0, 0))
    assert len(caught.value.problems) == 7
    refused(r"residual .* fed_back=\(0, 2\)", RecurrentForecaster, 3, residual=True, fed_back=(0, 2))
    for changes in ({"fed_back": 1}, {"fed_back": "01"}, {"dropout": "a"}):
        refused(next(iter(changes)), RecurrentForecaster, 3, **changes)
    for kind in (PlainForecaster, TransformerForecaster, ShallowPLRNN):
        refused(r"observed channels are known in the past only.*observed=1", kind, 4, observed=1)
    refused("covariates=2", ShallowPLRNN, 4, 2)
    refused("size must be a multiple of heads", TransformerForecaster, 3, size=10)
    assert len(refused("", TransformerForecaster, 0, size=0, head="laplace")) == 3


def test_the_articles_model_is_cut_and_refuses_another_width():
    model, values = Seq2SeqModel(2, 5, 3).double(), random(ROWS, TIME, 3)
    batch = fr.Batch(values, values, torch.ones(ROWS, TIME, dtype=torch.bool), context=random(ROWS, 5, 2, seed=1))
    state = model.start(batch)
    cut = model.detach(state)
    assert torch.equal(model.output(cut), model.output(state))
    assert state.requires_grad
    assert not cut.requires_grad
    narrow = batch.replace(history=values[..., :2], targets=values[..., :2])
    for call in (model, model.start):
        refused(r"Seq2SeqModel says 3 values a position, and the batch's history has 2", call, narrow)


def test_models_are_found_by_name():
    kinds = {name: MODELS[name].layout for name in MODELS if hasattr(MODELS[name], "layout")}
    assert kinds == {
        "article": "past",
        "recurrent_forecaster": "past",
        "plain_forecaster": "sequence",
        "transformer_forecaster": "sequence",
        "shallow_plrnn": "sequence",
    }
