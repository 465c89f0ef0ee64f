"""Values that are missing, channel by channel: in no loss, never fed as gold; every method against the naive loop."""

import math

import pytest
import torch
from torch import Tensor, nn

import freerun as fr
from builders import assert_same_gradients, gradients, problems_of, raises, refused
from freerun import methods
from freerun.keys import fold
from freerun.methods.base import gold_outputs
from oracles import coins, full_prefix_values, gaussian_value, literal

KEY, STEP = 5, 3
PAST, HORIZON, WIDTH = 3, 7, 2


def holes(share: float = 0.3, seed: int = 0) -> Tensor:
    """(4, HORIZON, WIDTH) bool: single values, whole entries, the first and the last of a row."""
    there = torch.rand(4, HORIZON, WIDTH, generator=torch.Generator().manual_seed(seed)) > share
    there[0, 2] = there[1, 0] = there[2, -1] = False
    there[3] = True
    return there


def batch_of(layout: str, there: Tensor | None = None) -> fr.Batch:
    g = torch.Generator().manual_seed(1)
    values = torch.randn(4, PAST + HORIZON, WIDTH, generator=g, dtype=torch.float64)
    there = holes() if there is None else there
    if layout == "past":
        return fr.Batch(values[:, PAST:], context={"past": values[:, :PAST]}, present=there)
    own = (torch.arange(PAST + HORIZON) >= PAST).expand(4, -1)
    there = torch.cat([torch.ones(4, PAST, WIDTH, dtype=torch.bool), there], 1)
    return fr.Batch(values, values, own, eligible=own, present=there)


def complete(batch: fr.Batch) -> fr.Batch:
    """The batch with zeros for what is missing, which then counts."""
    return batch.replace(present=None, targets=batch.targets.nan_to_num(), history=batch.history.nan_to_num())


class Forward(nn.Module):
    """A model that has a forward alone: every output reads the whole history before it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH, WIDTH)

    def forward(self, batch: fr.Batch) -> Tensor:
        before = nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1]
        past = batch.context["past"].mean(1, keepdim=True)
        return self.net(before) + 0.5 * torch.tanh(before.cumsum(1)) + past


class Steps(Forward):
    """The same, step by step."""

    def start(self, batch: fr.Batch):
        return torch.zeros(batch.size, 2, WIDTH, dtype=torch.float64), batch.context["past"].mean(1)

    def embed(self, entries: Tensor) -> Tensor:
        return entries

    def step(self, state, inputs: Tensor):
        sums, past = state
        return torch.stack([inputs, sums[:, 1] + inputs], 1), past

    def output(self, state, rows: Tensor | None = None) -> Tensor:
        (sums, past) = state if rows is None else (state[0][rows], state[1][rows])
        return self.net(sums[:, 0]) + 0.5 * torch.tanh(sums[:, 1]) + past

    def select(self, state, rows: Tensor):
        return state[0][rows], state[1][rows]

    def detach(self, state):
        return state[0].detach(), state[1]


def models() -> dict[str, tuple[str, nn.Module]]:
    torch.manual_seed(2)
    made = {
        "recurrent": ("past", fr.models.RecurrentForecaster(WIDTH, size=5)),
        "centred": ("past", fr.models.WindowScaled(fr.models.RecurrentForecaster(WIDTH, size=5), WIDTH, centre="mean")),
        "plain": ("sequence", fr.models.PlainForecaster(WIDTH, size=5)),
        "transformer": ("sequence", fr.models.TransformerForecaster(WIDTH, size=8, layers=1, heads=2)),
        "steps": ("past", Steps()),
        "forward": ("past", Forward()),
    }
    return {name: (layout, model.double()) for name, (layout, model) in made.items()}


MODELS = sorted(models())
STEPPERS = [name for name in MODELS if name not in ("forward", "transformer", "centred")]


def compare(model: nn.Module, method, batch: fr.Batch, expected: tuple[Tensor, Tensor]) -> fr.Outcome:
    """Loss, gradient and history of a method equal the loop's to 1e-10."""
    loss, history = expected
    wanted = gradients(model, loss)
    outcome = method.run(model, batch, step=STEP, key=KEY)
    assert float(outcome.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-10)
    assert int(outcome.count) == int((batch.mask[..., None] & batch.present).sum())
    assert_same_gradients(gradients(model, outcome.loss), wanted)
    assert torch.allclose(outcome.fed.history, history, rtol=1e-10, atol=1e-12)
    return outcome


@pytest.mark.parametrize("name", STEPPERS)
@pytest.mark.parametrize("gradient", ["full", "checkpointed", "none", 1, 3])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_scheduled_sampling_equals_the_loop(name, gradient, ratio):
    layout, model = models()[name]
    batch = batch_of(layout)
    keep = coins("token", batch, ratio, KEY, STEP)
    method = fr.scheduled_sampling(ratio, gradient=gradient)
    asked = "full" if gradient == "checkpointed" else gradient
    compare(model, method, batch, literal(model, batch, keep.double(), asked))


@pytest.mark.parametrize("name", STEPPERS)
def test_the_methods_of_values_equal_the_loop(name):
    layout, model = models()[name]
    batch = batch_of(layout)
    gold, none = torch.ones_like(batch.mask).double(), torch.zeros_like(batch.mask).double()
    compare(model, fr.teacher_forcing(), batch, literal(model, batch, gold, "full"))
    compare(model, fr.free_running(), batch, literal(model, batch, none, "full"))
    compare(model, fr.generalised_teacher_forcing(0.3), batch, literal(model, batch, 0.3 * gold, "full"))
    every = ((batch.replaceable.cumsum(1) % 3) == 0).double() if layout == "past" else None
    if every is not None:
        compare(model, fr.sparse_teacher_forcing(tau=3), batch, literal(model, batch, every, "full"))
    own = fr.data_as_demonstrator_online().run(model, batch, step=STEP, key=KEY)
    free = literal(model, batch, none, "none")
    total = float((literal(model, batch, gold, "full")[0] + free[0]).detach()) / 2
    assert float(own.loss.detach()) == pytest.approx(total, rel=1e-10)
    assert torch.allclose(own.fed.history, free[1], rtol=1e-10)
    kept = fr.scheduled_sampling(0.0, gradient="none", gold_weight=0.5).run(model, batch, step=STEP, key=KEY)
    expected = float((free[0] + 0.5 * literal(model, batch, gold, "full")[0]).detach())
    assert float(kept.loss.detach()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", STEPPERS)
@pytest.mark.parametrize(("std", "walk"), [(0.5, None), ("matched", None), (0.5, "values")])
def test_noise_falls_on_what_is_there_and_own_output_stands_in_for_the_rest(name, std, walk):
    layout, model = models()[name]
    batch = batch_of(layout)
    method = fr.gaussian_noise(std, rate=0.6, walk=walk)
    level = std
    if std == "matched":
        with torch.no_grad():
            outputs = gold_outputs(model, batch)[0]
        level = (outputs - batch.targets)[batch.replaceable].square().nanmean(0).sqrt()
    plain = complete(batch)
    unit = (
        fr.gaussian_noise(1.0, rate=0.6, walk=walk).transform(model, plain, step=STEP, key=KEY).history - plain.history
    )
    noisy = batch.made(history=batch.history + unit * level)
    expected = literal(model, noisy, torch.ones_like(batch.mask).double(), "full")
    compare(model, method, batch, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["auto", "step", "jacobi", "window"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_every_engine_builds_the_naive_history(name, engine, ratio):
    layout, model = models()[name]
    supported = {"step": name != "forward", "window": name == "transformer"}
    batch = batch_of(layout)
    method = fr.scheduled_sampling(ratio, engine=engine, gradient="none")
    if not supported.get(engine, True):
        refused("engine", method.run, model, batch, step=STEP, key=KEY)
        return
    keep = coins("token", batch, ratio, KEY, STEP)
    known = complete(batch)
    expected = naive_values(model, known, keep[..., None] & (batch.present | ~batch.replaceable[..., None]))
    outcome = method.run(model, batch, step=STEP, key=KEY)
    assert torch.allclose(outcome.fed.history, expected, rtol=1e-10, atol=1e-12)
    again = model(known.made(history=expected))
    error = (again - batch.targets)[batch.present & batch.mask[..., None]].square().mean()
    assert float(outcome.loss.detach()) == pytest.approx(float(error.detach()), rel=1e-10)


@torch.no_grad()
def naive_values(model: nn.Module, batch: fr.Batch, keep: Tensor) -> Tensor:
    """The mixed history, value by value, with a full forward for every position."""
    history = batch.history.clone()
    for t in range(batch.time):
        outputs = model(batch.made(history=history.clone()))
        for b in range(batch.size):
            for v in range(history.shape[2]):
                if not keep[b, t, v]:
                    history[b, t, v] = outputs[b, t, v]
    return history


@pytest.mark.parametrize("engine", ["auto", "step", "jacobi"])
@pytest.mark.parametrize("name", ["forward", "transformer", "steps"])
def test_a_gradient_through_own_values_without_steps_equals_the_loop(name, engine):
    layout, model = models()[name]
    batch = batch_of(layout)
    keep = coins("token", batch, 0.5, KEY, STEP)
    if name == "forward" and engine == "step":
        return
    outcome = fr.scheduled_sampling(0.5, engine=engine, gradient="full").run(model, batch, step=STEP, key=KEY)
    history, known = batch.history.nan_to_num(), complete(batch)
    entries: list[Tensor] = []
    gold = keep[..., None] & (batch.present | ~batch.replaceable[..., None])
    for t in range(batch.time):
        outputs = model(known.made(history=torch.cat([torch.stack(entries, 1), history[:, t:]], 1) if t else history))
        entries.append(torch.where(gold[:, t], history[:, t], outputs[:, t]))
    mixed = torch.stack(entries, 1)
    loss = (model(known.made(history=mixed)) - batch.targets)[batch.present & batch.mask[..., None]].square().mean()
    wanted = gradients(model, loss)
    assert float(outcome.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-10)
    assert_same_gradients(gradients(model, outcome.loss), wanted)


def test_what_stands_in_is_drawn_as_the_method_draws():
    torch.manual_seed(3)
    model = fr.models.RecurrentForecaster(WIDTH, size=5, head="gaussian").double()
    batch = batch_of("past")
    keep = coins("token", batch, 0.5, KEY, STEP)
    method = fr.scheduled_sampling(0.5, draw="gaussian", objective="gaussian_nll", gradient="none")
    fed = method.transform(model, batch, step=STEP, key=KEY).history
    known, draw = complete(batch), fold(KEY, "draw", STEP)
    history = known.history.clone()
    for t in range(batch.time):
        with torch.no_grad():
            outputs = model(known.made(history=history.clone()))
        for b in range(batch.size):
            own = gaussian_value(outputs[b, t], WIDTH, draw, batch.row_numbers[b], t)
            history[b, t] = torch.where(keep[b, t] & batch.present[b, t], history[b, t], own)
    assert torch.allclose(fed, history, rtol=1e-10)
    # teacher forcing has no draw: the mean of its objective's law stands in
    mean = fr.teacher_forcing("gaussian_nll").transform(model, batch, step=STEP, key=KEY).history
    with torch.no_grad():
        outputs = model(known.made(history=mean))[..., :WIDTH]
    assert torch.allclose(mean, torch.where(batch.present, batch.targets, outputs), rtol=1e-10, equal_nan=False)
    for objective in ("gaussian_nll", "mse"):
        loss = methods.teacher_forcing(objective)
        if objective == "mse":
            raises(fr.UserError, "", loss.run, model, batch, step=STEP, key=KEY)
        else:
            assert math.isfinite(float(loss.run(model, batch, step=STEP, key=KEY).loss.detach()))


def test_with_nothing_missing_present_changes_no_bit():
    for name, (layout, model) in models().items():
        batch = batch_of(layout, torch.ones(4, HORIZON, WIDTH, dtype=torch.bool))
        plain = batch.replace(present=None)
        for method in (fr.teacher_forcing(), fr.scheduled_sampling(0.5), fr.scheduled_sampling(0.5, gradient="none")):
            one, two = (method.run(model, each, step=STEP, key=KEY) for each in (batch, plain))
            assert torch.equal(one.fed.history, two.fed.history), name
            assert float(one.loss.detach()) == pytest.approx(float(two.loss.detach()), rel=1e-12)


def test_what_lies_where_a_value_is_missing_reaches_nothing():
    """NaN, infinity and a huge number there give the same loss, gradient and history, bit for bit."""
    for name, (layout, model) in models().items():
        there, found = holes(), []
        for junk in (math.nan, math.inf, 1e30):
            clean = batch_of(layout, there)
            targets = clean.targets.masked_fill(~clean.present, junk)
            history = clean.history.masked_fill(clean.history.isnan(), junk)
            batch = fr.Batch(
                targets, history, clean.mask, clean.context, eligible=clean.eligible, present=clean.present
            )
            outcome = fr.scheduled_sampling(0.5).run(model, batch, step=STEP, key=KEY)
            found.append((outcome.loss, gradients(model, outcome.loss), outcome.fed.history))
        for loss, gradient, history in found[1:]:
            assert torch.equal(loss, found[0][0]), name
            assert torch.equal(history, found[0][2])
            assert all(torch.equal(gradient[part], found[0][1][part]) for part in gradient)


def test_a_position_without_any_value_counts_nothing_and_is_still_fed():
    batch = batch_of("past")
    assert not batch.mask[0, 2]
    assert batch.replaceable.all()
    assert repr(batch).endswith(f"{int((~batch.present).sum())} values missing, context={{past: (4, 3, 2) float64}})")
    part = batch.select(torch.tensor([3]))
    assert part.missing is None
    cut = fr.multi_step(horizon=3).run(models()["recurrent"][1], batch, step=STEP, key=KEY)
    assert cut.fed.present.shape == (4, 3, WIDTH)
    assert int(cut.count) == int(batch.present[:, :3].sum())


def test_nan_is_refused_or_masked_and_never_a_loss():
    values = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    values[0, 1, 0] = values[1, 4, 1] = math.nan
    (problem,) = problems_of(fr.Batch, values)
    assert problem.startswith("targets hold NaN or infinity at 2 positions that count: leave them out with mask")
    assert problem.endswith("where single values are missing, pass present=targets.isfinite()")
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 1] = mask[1, 4] = False
    # masked, and yet to be replaced: gold would be fed there
    (problem,) = problems_of(fr.Batch, values, mask=mask, eligible=torch.ones_like(mask))
    assert problem.startswith("history hold NaN or infinity at 2 positions that count")
    past = torch.randn(2, PAST, WIDTH, dtype=torch.float64)
    model = models()["recurrent"][1]
    for batch in (
        fr.Batch(values, context={"past": past}, present=values.isfinite()),
        fr.Batch(values, mask=mask, context={"past": past}),
        fr.Batch(values, mask=mask, eligible=torch.ones_like(mask), context={"past": past}, present=values.isfinite()),
    ):
        for method in (fr.teacher_forcing(), fr.scheduled_sampling(0.5), fr.free_running(), fr.gaussian_noise(0.1)):
            loss = method(model, batch, step=STEP, key=KEY)
            loss.backward()
            assert math.isfinite(float(loss.detach()))
            assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    past[1, 0, 0] = math.nan
    raises(fr.errors.DivergedError, r"context\['past'\] holds NaN", fr.teacher_forcing(), model,
           fr.Batch(values.nan_to_num(), context={"past": past}), step=STEP)  # fmt: skip


def test_wrong_masks_by_channel():
    values, ids = torch.randn(2, 5, WIDTH), torch.zeros(2, 5, dtype=torch.long)
    refused("a mask by channel is present=", fr.Batch, values, mask=torch.ones(2, 5, WIDTH, dtype=torch.bool))
    refused(r"present must be \(batch, time, value\)", fr.Batch, values, present=torch.ones(2, 5, dtype=torch.bool))
    refused("present must be bool", fr.Batch, values, present=torch.ones(2, 5, WIDTH))
    refused("present is of values", fr.Batch, ids, present=torch.ones(2, 5, dtype=torch.bool))


def test_the_naive_history_is_that_of_the_other_oracle():
    layout, model = models()["recurrent"]
    batch = batch_of(layout, torch.ones(4, HORIZON, WIDTH, dtype=torch.bool)).replace(present=None)
    keep = coins("token", batch, 0.5, KEY, STEP)
    wide = keep[..., None].expand(-1, -1, WIDTH)
    assert torch.equal(naive_values(model, batch, wide), full_prefix_values(model, batch, keep))


def test_an_objective_that_counts_what_is_missing_is_told_so():
    def mean(outputs, batch):
        far = (outputs - batch.targets)[batch.mask].square()
        return far.sum(), far.numel()

    model, batch = models()["recurrent"][1], batch_of("past")
    with pytest.raises(fr.errors.DivergedError, match=r"targets are NaN .* leave them out by batch\.present"):
        fr.teacher_forcing(mean)(model, batch, step=STEP)


def test_every_loss_of_values_counts_what_is_there_by_its_weight():
    g = torch.Generator().manual_seed(4)
    batch, weights = batch_of("past"), torch.rand(4, HORIZON, generator=g, dtype=torch.float64)
    batch = batch.replace(weights=weights)
    outputs = torch.randn(4, HORIZON, WIDTH, generator=g, dtype=torch.float64)
    far = (outputs - batch.targets).nan_to_num()
    each = {"mse": far.square(), "mae": far.abs(), "huber": nn.functional.huber_loss(far, 0 * far, reduction="none")}
    for name, losses in each.items():
        for of_channel in (None, (0.5, 0.0), (1.0, 2.0)):
            share = batch.present * weights[..., None] * torch.tensor(of_channel or (1.0, 1.0))
            total, count = fr.objectives.OBJECTIVES[name](channel_weights=of_channel)(outputs, batch)
            assert float(total) == pytest.approx(float((losses * share).sum()), rel=1e-10)
            assert float(count) == pytest.approx(float(share.sum()), rel=1e-10)
