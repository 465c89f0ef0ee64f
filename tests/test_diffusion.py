"""Diffusion forcing's noise: the paper's formula as a loop, the laws, the level that the models read, learning."""

import math

import pytest
import torch
from scipy import stats

import freerun as fr
from builders import assert_same_gradients, gradients, lively, refused
from freerun.keys import fold, uniform
from freerun.models import PlainForecaster, RecurrentForecaster, TransformerForecaster, WindowScaled
from oracles import literal

KEY, STEP, PAST, TIME, WIDTH = 5, 3, 4, 7, 2


def left(noise: str, u: float) -> float:
    """The share of variance that is left, as Nichol and Dhariwal, and Ho et al., write it."""
    if noise == "cosine":
        f = [math.cos((each + 0.008) / 1.008 * math.pi / 2) ** 2 for each in (u, 0.0)]
        return f[0] / f[1]
    return math.exp(-sum((0.1 + (20 - 0.1) * (n + 0.5) * u / 4000) * u / 4000 for n in range(4000)))


def drawn(batch: fr.Batch, levels: int, noise: str, rate: float, units=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(history, level), entry by entry and value by value."""
    history, level = batch.history.clone(), torch.zeros(batch.mask.shape, dtype=torch.float64)
    keep = fr.gates.token()(batch, 1 - rate, fold(KEY, "gate", STEP))
    for b in range(batch.size):
        row = batch.row_numbers[b]
        for t in range(batch.time):
            gold = batch.present is None or bool(batch.present[b, t].any())
            if keep[b, t] or not batch.replaceable[b, t] or not gold:
                continue
            k = math.floor(levels * float(uniform(fold(KEY, "level", STEP), row, torch.tensor(t))))
            level[b, t] = k / levels
            for v in range(WIDTH if k else 0):
                at = (row, torch.tensor(t), torch.tensor(v))
                u = [float(uniform(fold(KEY, "noise", STEP), *at, torch.tensor(n))) for n in (0, 1)]
                e = math.sqrt(-2 * math.log(u[0])) * math.cos(2 * math.pi * u[1])
                abar = left(noise, k / levels)
                centre, scale = (0.0, 1.0) if units is None else (units[0][b, t, v], units[1][b, t, v])
                own = (history[b, t, v] - centre) / scale
                history[b, t, v] = centre + scale * (math.sqrt(abar) * own + math.sqrt(1 - abar) * e)
    return history, level


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(2)
    sizes = {"size": 8, "layers": 1, "heads": 2, "max_positions": 32}
    made = {
        "recurrent": RecurrentForecaster(WIDTH, size=5, level=True),
        "lstm, two layers": RecurrentForecaster(WIDTH, size=5, level=True, cell="lstm", layers=2),
        "plain": PlainForecaster(WIDTH, size=5, level=True),
        "transformer": TransformerForecaster(WIDTH, level=True, **sizes),
        "centred": WindowScaled(RecurrentForecaster(WIDTH, size=5, level=True), WIDTH, centre="mean", deviation=True),
        "last": WindowScaled(PlainForecaster(WIDTH, size=5, level=True), WIDTH, centre="last"),
    }
    return {name: lively(model.double()) for name, model in made.items()}


def batch_for(model, missing: bool = False, rows: int = 4) -> fr.Batch:
    g = torch.Generator().manual_seed(1)
    values = 3 + 2 * torch.randn(rows, PAST + TIME, WIDTH, generator=g, dtype=torch.float64)
    there = torch.rand(rows, PAST + TIME, WIDTH, generator=g) > 0.3 if missing else None
    numbers = torch.arange(rows) + 10
    if model.layout == "past":
        cut = None if there is None else there[:, PAST:]
        return fr.Batch(values[:, PAST:], context={"past": values[:, :PAST]}, present=cut, rows=numbers)
    own = (torch.arange(PAST + TIME) >= PAST).expand(rows, -1)
    if there is not None:
        there[:, :PAST] = True
    context = {"known": torch.full((rows,), PAST)} if isinstance(model, WindowScaled) else None
    return fr.Batch(values, values, own, context, eligible=own, present=there, rows=numbers)


@pytest.mark.parametrize("name", sorted(models()))
@pytest.mark.parametrize(("levels", "noise", "rate"), [(9, "cosine", 0.7), (1000, "linear", 1.0), (2, "cosine", 1.0)])
@pytest.mark.parametrize("missing", [False, True])
def test_history_loss_and_gradient_equal_the_loop(name, levels, noise, rate, missing):
    model = models()[name]
    if missing and not (model.layout == "past" and name != "centred") and name != "plain":
        pytest.skip("the loop reads the model's own state step by step, with no window of its own")
    batch = batch_for(model, missing)
    units = model.history_units(batch) if isinstance(model, WindowScaled) else None
    history, level = drawn(batch, levels, noise, rate, units)
    outcome = fr.diffusion_noise(levels=levels, noise=noise, rate=rate).run(model, batch, STEP, KEY)
    fed = batch.made(history=history, context={**(batch.context or {}), "level": level})
    loss, expected = literal(model, fed, torch.ones_like(batch.mask).double(), "full")
    torch.testing.assert_close(outcome.fed.history, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(outcome.fed.context["level"], level)
    assert float(outcome.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-10)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, loss))
    assert 0 < int(outcome.report["replaced"]) == int((level > 0).sum())


def test_the_units_are_those_that_the_network_reads():
    """The window's centre and scale: adding a level to a window, or doubling it, does the same to its noisy history."""
    model = models()["centred"]
    batch = batch_for(model)
    method = fr.diffusion_noise(levels=9)
    noisy = method.transform(model, batch, STEP, KEY).history
    moved = fr.Batch(2 * batch.targets + 50, context={"past": 2 * batch.context["past"] + 50}, rows=batch.rows)
    # 1e-5 is added to the variance
    torch.testing.assert_close(method.transform(model, moved, STEP, KEY).history, 2 * noisy + 50, rtol=1e-4, atol=1e-4)


def test_levels_and_noise_have_their_laws():
    """Chi-square of 28,000 levels and Kolmogorov-Smirnov of the noise; false-alarm rate 1e-4 each."""
    model = models()["recurrent"]
    batch = batch_for(model, rows=4000)
    fed = fr.diffusion_noise(levels=7).transform(model, batch, STEP, KEY)
    level = fed.context["level"]
    counts = torch.bincount((level * 7).round().long().flatten(), minlength=7)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    abar = torch.tensor([left("cosine", k / 7) for k in range(7)], dtype=torch.float64)[(level * 7).round().long()]
    at = level > 0
    far = (fed.history - abar.sqrt()[..., None] * batch.history)[at] / (1 - abar[at]).sqrt()[:, None]
    assert stats.kstest(far.flatten().numpy(), "norm").pvalue > 1e-4
    assert stats.pearsonr(far[:, 0].numpy(), far[:, 1].numpy()).pvalue > 1e-4
    assert stats.spearmanr(far[:, 0].numpy(), level[at].numpy()).pvalue > 1e-4
    assert torch.equal(fed.history[~at], batch.history[~at])


@pytest.mark.parametrize("name", sorted(models()))
def test_off_is_teacher_forcing_and_no_level_is_level_zero(name):
    model = models()[name]
    batch = batch_for(model)
    expected = gradients(model, fr.teacher_forcing()(model, batch, STEP, KEY))
    for off in (fr.diffusion_noise(levels=1), fr.diffusion_noise(rate=0.0)):
        outcome = off.run(model, batch, STEP, KEY)
        assert outcome.fed.history is batch.history
        assert outcome.fed.context is batch.context
        found = gradients(model, outcome.loss)
        assert all(torch.equal(found[each], expected[each]) for each in expected)
    zeros = batch.made(context={**(batch.context or {}), "level": torch.zeros(batch.mask.shape).double()})
    assert torch.equal(model(zeros), model(batch))


@pytest.mark.parametrize("name", sorted(models()))
def test_a_level_moves_what_comes_after_its_entry_alone(name):
    model = models()[name]
    batch = batch_for(model)
    level = torch.rand(batch.mask.shape, dtype=torch.float64)
    outputs = model(batch.made(context={**(batch.context or {}), "level": level}))
    for t in range(batch.time):
        other = level.clone()
        other[:, t] = 1 - other[:, t]
        moved = model(batch.made(context={**(batch.context or {}), "level": other}))
        assert torch.equal(moved[:, : t + 1], outputs[:, : t + 1])
        assert t + 1 == batch.time or bool((moved[:, t + 1] != outputs[:, t + 1]).any())


@pytest.mark.parametrize("name", ["recurrent", "centred", "plain", "transformer"])
def test_own_entries_may_be_read_as_noisy_when_generating(name):
    """The authors' small level for own entries: a level in the context, through every step and beyond its end."""
    model = models()[name]
    batch = batch_for(model)
    start = 0 if model.layout == "past" else PAST
    level = torch.zeros(batch.mask.shape, dtype=torch.float64)
    level[:, start : start + 3] = 0.2
    told = batch.made(context={**(batch.context or {}), "level": level[:, : start + 3]})
    found = fr.generate(model, told, length=TIME).entries
    history = batch.history.clone()
    for t in range(start, start + TIME):
        full = batch.made(history=history, context={**(batch.context or {}), "level": level})
        history[:, t] = model(full).detach()[:, t]
    torch.testing.assert_close(found, history[:, start:], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found, fr.generate(model, batch, length=TIME).entries)


def test_what_cannot_read_a_level_is_refused_before_anything_is_fed():
    model, method = models()["recurrent"], fr.diffusion_noise(levels=4)
    batch = batch_for(model)
    deaf = RecurrentForecaster(WIDTH, size=5).double()
    refused(("RecurrentForecaster reads none", "level=True", "reads_level = True"), method, deaf, batch, STEP, KEY)
    levels = batch.made(context={**batch.context, "level": torch.zeros(4, TIME).double()})
    refused("was made without level", deaf, levels)
    refused("would replace", method, model, levels, STEP, KEY)
    refused("real numbers in", model, batch.made(context={**batch.context, "level": torch.ones(4, TIME).long()}))
    plain = PlainForecaster(WIDTH, size=5, level=True).double()
    refused("a mapping or None", method, plain, batch.made(context=batch.context["past"]), STEP, KEY)
    refused("use token_noise|values", method, model, fr.Batch(torch.ones(2, 3).long()), STEP, KEY)
    both = ("levels must be", "noise must be one of cosine, linear", "rate must lie")
    refused(both, fr.diffusion_noise, levels=0, noise="sine", rate=2.0)
    refused("level must be True or False", PlainForecaster, 1, level=2)


def test_your_own_model_reads_the_level():
    class Own(torch.nn.Module):
        reads_level = True

        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(WIDTH + 1, WIDTH)

        def forward(self, batch):
            level = (batch.context or {}).get("level", torch.zeros(batch.mask.shape))[..., None]
            read = torch.cat([batch.history, level.to(batch.history.dtype)], -1)
            return self.net(torch.nn.functional.pad(read, (0, 0, 1, 0))[:, :-1])

    model, batch = Own().double(), fr.Batch(torch.randn(3, 5, WIDTH, dtype=torch.float64))
    loss = fr.diffusion_noise(levels=5)(model, batch, step=0, key=1)
    assert bool(gradients(model, loss)["net.weight"][:, -1].any())


def test_a_model_learns_how_far_to_trust_a_noisy_entry():
    """y_t = y_{t-1}: the best forecast of a noisy entry is its clean part, and that needs the level."""
    torch.manual_seed(0)
    losses = {}
    for level in (True, False):
        model = PlainForecaster(1, size=16, level=level)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for step in range(150):
            values = torch.randn(64, 1, 1).expand(-1, 6, -1).contiguous()
            fed = fr.diffusion_noise(levels=10).transform(models()["plain"], fr.Batch(values), step, 1)
            fed = fed if level else fed.made(context=None)
            loss = fr.teacher_forcing()(model, fed, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        values = torch.randn(500, 1, 1).expand(-1, 6, -1).contiguous()
        losses[level] = float(((model(fr.Batch(values)) - values)[:, 1:].detach() ** 2).mean())
    assert losses[True] < 0.1
    assert losses[True] < losses[False] / 2
