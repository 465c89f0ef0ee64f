"""Forecasters: stepped and in parallel one function, cut at will, that read what they should and nothing more."""

from functools import partial

import pytest
import torch

import freerun as fr
from builders import assert_same_gradients, gradients, lively, refused
from freerun.distributions import HEADS as HEADS_BY_NAME
from freerun.draws import DRAWS
from freerun.keys import fold
from freerun.models import (
    MODELS,
    PlainForecaster,
    RecurrentForecaster,
    Seq2SeqModel,
    ShallowPLRNN,
    TransformerForecaster,
    WindowScaled,
    kind_of,
    make_model,
)
from freerun.types import Cached, Encoder, Stepper
from oracles import coins, full_prefix_values

KEY, STEP = 5, 3
VALUES, PAST, TIME, ROWS = 3, 4, 7, 4
CELLS = ("rnn", "gru", "lstm")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_for(model, values: int = VALUES) -> fr.Batch:
    """Ragged rows in the model's layout, with whatever else it reads."""
    covariates, observed = (model.settings().get(name, 0) for name in ("covariates", "observed"))
    past, time = (0, TIME) if model.layout == "past" else (PAST, PAST + TIME)
    ends, positions = past + torch.tensor([[TIME], [TIME - 3], [TIME - 1], [2]]), torch.arange(time)
    context = {"future": random(ROWS, time, covariates, seed=2)} if covariates else {}
    if getattr(model, "reads_level", False):
        context["level"] = random(ROWS, time, seed=3).sigmoid()
    if model.layout == "past":
        context["past"] = random(ROWS, 5, values + observed + covariates, seed=1)
    elif isinstance(model, WindowScaled):
        context["known"] = torch.full((ROWS,), PAST)
    entries, mask = random(ROWS, time, values), (positions >= past) & (positions < ends)
    return fr.Batch(entries, mask=mask, context=context or None, rows=torch.arange(ROWS) + 10)


HEADS = ("gaussian", "student_t", "quantiles")
CHANGES = {
    "covariates": {"covariates": 2}, "residual": {"residual": True, "covariates": 1},
    "fed back": {"fed_back": (2, 0), "layers": 2, "covariates": 1},
    "all fed back in order": {"fed_back": (0, 1, 2), "residual": True},
    "gaussian": {"head": "gaussian", "residual": True}, "student_t": {"head": "student_t", "cell": "lstm"},
    "quantiles": {"head": "quantiles", "residual": True}, "level": {"level": True, "covariates": 1},
}  # fmt: skip
CASES = {"shallow_plrnn": lambda: ShallowPLRNN(3, size=5)}
for kind in (RecurrentForecaster, PlainForecaster):
    several = {"observed": 1} if kind is RecurrentForecaster else {}
    own = CHANGES | {"covariates": {"covariates": 2, **several}}
    own |= {f"{cell}, {layers}": {"cell": cell, "layers": layers} for cell in CELLS for layers in (1, 2)}
    CASES |= {f"{kind.layout}, {name}": partial(kind, 3, **{"size": 6} | changes) for name, changes in own.items()}
for name in ("", "covariates", "residual", "gaussian", "quantiles", "level"):
    label, sizes = f"transformer, {name}".removesuffix(", "), {"size": 8, "layers": 2, "heads": 2, "max_positions": 64}
    changes = {"head": "quantiles"} if name == "quantiles" else CHANGES.get(name, {})
    CASES[label] = partial(TransformerForecaster, 3, **sizes | changes)


def scaled(inner, **changes):
    """A forecaster in units of the window; a regression with weights that are none's."""
    model = WindowScaled(inner, 3, getattr(inner, "observed", 0), head=inner.settings()["head"], **changes)
    return model.fit_linear(random(1, 5 * 3 + 1, 4 * 3, seed=9) / 8, 5, 4) if changes.get("linear") else model


SCALINGS = {
    "mean": {"centre": "mean"}, "last": {"centre": "last", "deviation": True},
    "deviation": {"centre": "none", "deviation": True}, "linear": {"centre": "mean", "deviation": True, "linear": True},
}  # fmt: skip
for name, changes in SCALINGS.items():
    for head in ("point", "gaussian", "student_t", "quantiles"):
        own = {"size": 6, "head": head, "residual": name == "last", "level": head == "point"}
        CASES[f"past, {name}, {head}"] = lambda own=own, changes=changes: scaled(
            RecurrentForecaster(3, 2, 1, **own), **changes
        )
        if name != "linear":
            CASES[f"sequence, {name}, {head}"] = lambda own=own, changes=changes: scaled(
                PlainForecaster(3, **own), **changes
            )
    if name != "linear":
        CASES[f"transformer, {name}"] = lambda changes=changes: scaled(
            TransformerForecaster(3, size=8, layers=2, heads=2, max_positions=64), **changes
        )
POINT = [name for name in CASES if not any(head in name for head in HEADS)]
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


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
    expected = model(batch)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            close(stepped(model, batch), expected)
    slopes = gradients(model, expected.square().sum())
    assert_same_gradients(gradients(model, stepped(model, batch).square().sum()), slopes)
    model.float()
    context = batch.context and {
        name: part.float() if part.is_floating_point() else part for name, part in batch.context.items()
    }
    single = fr.Batch(batch.targets.float(), mask=batch.mask, context=context)
    torch.testing.assert_close(model(single).double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(stepped(model, single), model(single), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(CASES))
def test_rows_are_picked_repeated_and_dropped_with_their_context(name):
    model, batch = case(name)
    expected, rows = model(batch), torch.tensor([2, 0, 0])
    close(model(batch.select(rows)), expected[rows])
    with torch.no_grad():
        state = model.start(batch)
        for t in range(2):
            close(model.output(state, rows), expected[rows, t])
            state = model.step(state, model.embed(batch.history[:, t]))
        state = model.select(state, rows)
        close(model.output(state), expected[rows, 2])
        close(model.output(model.step(state, model.embed(batch.history[rows, 2]))), expected[rows, 3])
    if isinstance(model, Encoder):
        encoded = model.encode(batch)
        assert model.encode(encoded) is encoded
        close(model(encoded.select(rows)), expected[rows])


@pytest.mark.parametrize("name", list(CASES))
def test_nothing_at_or_after_a_position_and_no_target_moves_its_output(name):
    model, batch = case(name)
    expected = model(batch)
    assert torch.equal(model(batch.replace(targets=batch.targets + 1)), expected)
    for t in range(batch.time):
        moved = model(batch.replace(history=batch.history + (torch.arange(batch.time) >= t)[:, None]))
        close(moved[:, : t + 1], expected[:, : t + 1])
        assert t + 1 == batch.time or bool((moved[:, t + 1] != expected[:, t + 1]).any())


@pytest.mark.parametrize("name", POINT)
def test_every_check_passes(name):
    model, batch = case(name)
    assert isinstance(model, Stepper)
    assert isinstance(model, Cached) == isinstance(model, TransformerForecaster)
    assert not fr.check_model(model, batch).refused
    again = make_model(kind_of(model), **model.settings())
    assert type(again) is type(model)
    again.load_state_dict(model.float().state_dict())


@pytest.mark.parametrize("name", list(CASES))
def test_detach_keeps_the_numbers_and_cuts_the_past_alone(name):
    """After each cut the backward of the next steps runs by itself; weights get what the truncated loop gives them."""
    model, batch = case(name)

    def truncated(whole: bool) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        state, losses = model.start(batch), []
        for t in range(batch.time):
            losses.append(model.output(state).square().sum())
            if (t + 1) % 3 == 0 and t + 1 < batch.time:
                before = model.output(state)
                state = cut_by_hand(state) if whole else model.detach(state)
                assert torch.equal(model.output(state), before)
                if not whole:  # memory grows with the segment: its graph is gone
                    torch.stack(losses).sum().backward()
                    losses = []
            if t + 1 < batch.time:
                state = model.step(state, model.embed(batch.history[:, t]))
        return torch.stack(losses).sum()

    truncated(False).backward()
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
        return DecoderState(cache, cache.version, tree.lengths, tree.common_length, tree.sources, tree.context)
    if isinstance(tree, tuple) and not any(isinstance(part, CellWeights) for part in tree):
        parts = [cut_by_hand(part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


ENGINES = ("auto", "step", "jacobi", "window", fr.Window(3))  # the last two go over a cache
ROLLED = [
    "past, gru, 2", "past, lstm, 1", "past, covariates", "past, residual", "past, fed back", "past, gaussian",
    "sequence, gru, 1", "sequence, lstm, 2", "sequence, covariates", "sequence, gaussian", "transformer",
    "transformer, covariates", "transformer, residual", "transformer, gaussian", "shallow_plrnn",
    "past, mean, point", "past, linear, point", "past, last, gaussian", "sequence, last, point",
    "sequence, mean, gaussian", "transformer, mean", "past, level", "sequence, level", "transformer, level",
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
    untouched = {part: value.clone() for part, value in (batch.context or {}).items()}
    keep = coins("token", batch, ratio, KEY, STEP)
    assert bool(keep[~batch.mask].all())
    for draw in ("expected", "gaussian") if "gaussian" in name else ("point",):
        expected = full_prefix_values(model, batch, keep, draw, fold(KEY, "draw", STEP))
        for engine in ENGINES if isinstance(model, Cached) else ENGINES[:3]:
            method = fr.scheduled_sampling(ratio, gradient="none", engine=engine, draw=draw)
            history = method.transform(model, batch, STEP, KEY).history
            close(history, expected, msg=f"{engine}, {draw}")
            assert torch.equal(history[~batch.mask], batch.history[~batch.mask])
    assert all(torch.equal(batch.context[part], value) for part, value in untouched.items())


def test_engines_that_values_or_a_model_have_not_are_refused():
    assert {"auto", "step", "jacobi", "window", "draft"} == set(fr.ENGINES)
    for engine, name, message in (
        ("draft", "transformer", "values never are"), ("window", "sequence, gru, 1", "PlainForecaster lacks some"),
    ):  # fmt: skip
        method = fr.scheduled_sampling(0.5, gradient="none", engine=engine)
        refused(message, method, *case(name), step=0)


@pytest.mark.parametrize("name", ROLLED)
def test_running_freely_is_the_roll_in_of_ratio_zero(name):
    model, batch = small(name)
    batch = batch.replace(mask=(torch.arange(batch.time) >= batch.time - TIME).expand(ROWS, -1))
    for draw in ("expected", "gaussian") if "gaussian" in name else ("point",):
        method = fr.free_running(gradient="none", draw=draw, engine="step")
        rolled = method.transform(model, batch, 0, KEY).history[:, -TIME:]
        close(fr.generate(model, batch, length=TIME, draw=draw, key=KEY).entries, rolled)


@pytest.mark.parametrize(
    "name",
    ["past, gru, 2", "sequence, covariates", "transformer, covariates", "past, last, point", "past, linear, point"],
)
@pytest.mark.parametrize("gradient", ["none", "full", 2])
def test_methods_train_every_weight(name, gradient):
    model, batch = small(name)
    loss = fr.scheduled_sampling(0.5, gradient=gradient)(model, batch, STEP, KEY)
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients(model, loss).values())


@pytest.mark.parametrize("kind", [RecurrentForecaster, PlainForecaster, TransformerForecaster])
def test_dropout_acts_in_training_alone(kind):
    sizes = {"heads": 2, "size": 8} if kind is TransformerForecaster else {"layers": 2, "size": 6}
    model = lively(kind(3, dropout=0.5, **sizes).double())
    batch = batch_for(model)
    for outputs in (model, partial(stepped, model)):
        assert not torch.equal(outputs(batch), outputs(batch))
    model.eval()
    close(stepped(model, batch), model(batch))


def test_position_zero_reads_what_stands_before_it():
    model, batch = case("past, residual")
    base = RecurrentForecaster(**model.settings() | {"residual": False}).double()
    base.load_state_dict(model.state_dict())
    before = torch.cat([batch.context["past"][:, -1:, :3], batch.history[:, :-1]], 1)
    torch.testing.assert_close(model(batch), base(batch) + before)
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
    model, states = case("shallow_plrnn")[0], random(5, 3)
    expected = torch.stack([torch.autograd.functional.jacobian(model.output, z) for z in states])
    torch.testing.assert_close(model.jacobian(states), expected)


@pytest.mark.parametrize("name", ["past, covariates", "sequence, covariates", "transformer, covariates"])
def test_covariates_that_are_missing_at_generation_are_refused(name):
    model, batch = case(name)
    future, time = batch.context["future"], batch.time

    def known(future):
        return batch.replace(context={**batch.context, "future": future})

    short = rf"missing at generation: the batch has {time} positions and context\['future'\] covers {time - 2}"
    for call in (model, model.start):
        refused(short, call, known(future[:, : time - 2]))
    refused(rf"covers {time}", fr.generate, model, batch, length=TIME + 2)
    state = model.start(batch)
    for t in range(time - 1):
        state = model.step(state, model.embed(batch.history[:, t]))
    last = rf"position {time} is to be predicted and context\['future'\] covers {time}"
    refused(last, model.step, state, model.embed(batch.history[:, -1]))
    without = {key: part for key, part in batch.context.items() if key != "future"}
    refused("has no 'future'", model, batch.replace(context=without))
    refused(r"must be \(batch, time, covariates\)", model, known(future[..., :1]))
    torch.testing.assert_close(model(known(torch.cat([future, future], 1))), model(batch))


def test_what_does_not_fit_a_model_is_refused():
    model, batch = case("past, covariates")
    past, future = batch.context["past"], batch.context["future"]
    needs = r"RecurrentForecaster needs Batch.context = \{'past'"
    for context, message in (
        ({"past": past[..., :5], "future": future}, r"6\): 3 values, 1 observed, 2 covariates; got \(4, 5, 5\)"),
        ({"past": past[:, :0], "future": future}, r"\['past'\] must be .* got \(4, 0, 6\)"),
        (None, needs), ({"future": future}, needs),
    ):  # fmt: skip
        refused(message, model, batch.replace(context=context))
    for name in CASES:
        model, batch = case(name)
        wide = torch.cat([batch.history, batch.history], -1)
        refused(r"and the batch's history has", model, batch.replace(history=wide, targets=wide))
    refused("this batch holds ids", PlainForecaster(1), fr.Batch(torch.zeros(2, 3, dtype=torch.int64)))
    refused("made without covariates", PlainForecaster(3), batch_for(PlainForecaster(3, 2)))


def test_a_head_that_is_fed_back_as_a_point_is_refused_before_anything_is_fed():
    model, batch = case("past, gaussian")
    refused(r"gives 6 numbers a position and 3 are fed back: use draw='expected'", fr.generate, model, batch, length=2)
    refused("is for ids", fr.generate, model, batch, length=2, draw="sample")


WIDTHS = [fr.scheduled_sampling(0.0, gradient="none", engine=engine, draw="gaussian") for engine in ENGINES[1:4]]


@pytest.mark.parametrize("method", [*WIDTHS, fr.parallel(0.0, draw="gaussian"), fr.free_running(draw="gaussian")])
def test_a_point_that_is_fed_back_as_a_head_is_refused_and_never_spread_over_the_values(method):
    """Two numbers for two values are also a mean and a scale of one."""
    model, batch = TransformerForecaster(2, size=8, heads=2, layers=1), fr.Batch(torch.zeros(2, 5, 2))
    refused(r"gives 2 numbers a position and 2 are fed back: use draw='point'", method, model, batch, step=0)


def test_arguments_that_cannot_be_are_all_refused_at_once():
    wrong = {"size": 0, "cell": "gnu", "head": "laplace", "dropout": 1.0, "fed_back": (0, 0)}
    assert len(refused("", RecurrentForecaster, 0, -1, **wrong)) == 7
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
    batch = fr.Batch(values, context=random(ROWS, 5, 2, seed=1))
    state = model.start(batch)
    cut = model.detach(state)
    assert torch.equal(model.output(cut), model.output(state))
    assert (state.requires_grad, cut.requires_grad) == (True, False)
    narrow = batch.replace(history=values[..., :2], targets=values[..., :2])
    for call in (model, model.start):
        refused(r"Seq2SeqModel predicts 3 values a position, and the batch's history has 2", call, narrow)


def test_models_are_found_by_name():
    layouts = {name: kind.layout for name, kind in MODELS.items() if hasattr(kind, "layout")}
    sequence = dict.fromkeys(("plain_forecaster", "transformer_forecaster", "shallow_plrnn"), "sequence")
    assert layouts == {"article": "past", "recurrent_forecaster": "past", **sequence}


@pytest.mark.parametrize("name", [name for name in CASES if any(f", {scaling}" in name for scaling in SCALINGS)])
def test_a_scaled_model_is_the_inner_one_in_the_windows_units(name):
    """The reference by hand, row by row and position by position; heads by their mean and their quantiles of a law."""
    model, batch = case(name)
    head, past = model.inner.settings()["head"], model.layout == "past"
    found = model(batch)
    for row in range(ROWS):
        known = batch.context["past"][row, :, :3] if past else batch.history[row, :PAST]
        observed = batch.context["past"][row, :, 3:4] if past else None
        at = [known] * batch.time if past else [known[: min(t, PAST)] for t in range(batch.time)]
        centres = torch.stack([centre_of(part, model.centre) for part in at])
        scales = torch.stack([deviation_of(part) if model.deviation else torch.ones(3) for part in at])
        shift, fed = centres, centres[1:]
        if model.linear:
            flat = torch.cat([known[-5:].flatten(), torch.ones(1)])
            first = (flat @ model.regression[0]).view(4, 3)
            again = torch.cat([torch.cat([known, first])[-5:].flatten(), torch.ones(1)])
            shift = torch.cat([first, (again @ model.regression[0]).view(4, 3)])[: batch.time]
            fed = shift[:-1]
        history = batch.history[row].clone()
        history[:-1] = (history[:-1] - fed) / scales[1:]
        context = dict(batch.context or {})
        if past:
            own = [(known - centres[0]) / scales[0], standard(observed, model), batch.context["past"][row, :, 4:]]
            context["past"] = torch.cat(own, 1)[None]
        context = {key: part if key == "past" else part[row : row + 1] for key, part in context.items()}
        inner = model.inner(fr.Batch(history[None], mask=batch.mask[row : row + 1], context=context or None))[0]
        if head == "point":
            close(found[row], inner * scales + shift)
            continue
        law = HEADS_BY_NAME[head]()
        close(law.mean(found[row]), law.mean(inner) * scales + shift)
        uniforms = torch.full((batch.time, 3, law.noise_numbers), 0.3, dtype=torch.float64)
        # the floor of a scale, 1e-4, is not scaled
        torch.testing.assert_close(
            law.sample(found[row], uniforms), law.sample(inner, uniforms) * scales + shift, rtol=1e-3, atol=1e-3
        )


def centre_of(known: torch.Tensor, centre: str) -> torch.Tensor:
    if centre == "none" or not len(known):
        return torch.zeros(3, dtype=torch.float64)
    return known.mean(0) if centre == "mean" else known[-1]


def deviation_of(known: torch.Tensor) -> torch.Tensor:
    if len(known) == 0 or (len(known) == 1 and known.shape[0] == 1 and not len(known[1:])):
        return torch.ones(3, dtype=torch.float64)
    return (known.var(0, correction=0) + 1e-5).sqrt()


def standard(observed: torch.Tensor, model) -> torch.Tensor:
    centre = {"mean": observed.mean(0), "last": observed[-1], "none": 0 * observed[-1]}[model.centre]
    scale = (observed.var(0, correction=0) + 1e-5).sqrt() if model.deviation else 1.0
    return (observed - centre) / scale


@pytest.mark.parametrize(
    "name", ["past, mean, point", "past, last, point", "sequence, mean, point", "transformer, last"]
)
def test_a_level_that_is_added_to_a_window_is_added_to_its_forecast(name):
    model, batch = case(name)
    context = batch.context and {
        key: torch.cat([part[..., :4] + 1e3, part[..., 4:]], -1) if key == "past" else part
        for key, part in batch.context.items()
    }
    moved = fr.Batch(batch.targets + 1e3, mask=batch.mask, context=context)
    length = TIME
    runs = [fr.generate(model, each, length=length).entries for each in (batch, moved)]
    torch.testing.assert_close(runs[1], runs[0] + 1e3, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_a_model_over_a_regression_starts_where_the_regression_stands(head):
    model = make_model("recurrent_forecaster", 2, size=4, head=head, centre="mean", linear=True).double()
    weights, past = random(1, 3 * 2 + 1, 4 * 2), random(5, 9, 2, seed=3)
    batch = fr.Batch(random(5, 6, 2, seed=4), context={"past": past})
    refused("is not fitted: call fit_linear", model, batch)
    model.fit_linear(weights, 3, 4)
    features = torch.cat([past[:, -3:].flatten(1), torch.ones(5, 1, dtype=torch.float64)], 1)
    mean = model(batch) if head == "point" else HEADS_BY_NAME[head]().mean(model(batch))
    close(mean[:, :4].flatten(1), features @ weights[0])
    draw = "point" if head == "point" else DRAWS["expected"](head=head)
    close(fr.generate(model, batch, length=4, draw=draw).entries.flatten(1), features @ weights[0])
    refused("reads 3 steps of the past; got 2", model, batch.replace(context={"past": past[:, :2]}))


def test_scalings_that_cannot_be_are_refused():
    refused("centre must be one of none, mean, last; got 'median'", make_model, "plain_forecaster", 2, centre="median")
    refused("linear needs a model of layout 'past'", make_model, "plain_forecaster", 2, linear=True)
    refused(
        "residual adds the last value, and linear", make_model, "recurrent_forecaster", 2, linear=True, residual=True
    )
    inner = RecurrentForecaster(2, size=4)
    for changes, words in (
        ({"head": "gauss"}, "head must be one of point"), ({"linear": (3,)}, "linear must be True"),
        ({"observed": -1}, "observed must be a whole number"), ({"values": 0}, "values must be a whole number"),
    ):  # fmt: skip
        refused(words, partial(WindowScaled, inner, **{"values": 2, **changes}))
    batch = fr.Batch(torch.zeros(1, 2, 2), context={"past": torch.ones(1, 4, 2)})
    refused("is not fitted", WindowScaled(inner, 2, linear=(4, 3, 1)), batch)
    refused("made without linear", WindowScaled(inner, 2).fit_linear, torch.zeros(1, 9, 6), 4, 3)
    several = r"must be \(1, 9, 6\) or \(2, 5, 3\)"
    refused(several, WindowScaled(inner, 2, linear=True).fit_linear, torch.zeros(1, 4, 3), 4, 3)
    below = fr.Batch(torch.zeros(1, 2, 2), context={"known": torch.tensor([-1])})
    refused(r"of how many entries .* got \[-1\]", make_model("plain_forecaster", 2, centre="mean"), below)
    model = make_model("recurrent_forecaster", 2, 0, 1, centre="mean")
    refused("of how many entries", make_model("plain_forecaster", 2, centre="mean"), fr.Batch(random(1, 2, 2)))
    refused("at least 3 channels; got past", model, fr.Batch(random(1, 2, 2), context={"past": random(1, 4, 2)}))
