"""Heads: losses are the laws', draws follow them, gradients are right. False-alarm rates are stated."""

import math

import pytest
import torch
from scipy import stats

import freerun as fr
from builders import refused
from freerun import distributions, draws, objectives
from freerun.keys import uniform

N = 20_000
LAWS = {
    "gaussian": distributions.Gaussian(),
    "student_t": distributions.StudentT(),
    "quantiles": distributions.Quantiles((0.1, 0.25, 0.5, 0.9)),
}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def frozen(name: str, outputs: torch.Tensor):
    """The law of one value in scipy's words."""
    if name == "gaussian":
        return stats.norm(float(outputs[0]), softplus(float(outputs[1])) + 1e-4)
    m, raw, freedom = outputs.tolist()
    return stats.t(2 + softplus(freedom), m, softplus(raw) + 1e-4)


@pytest.mark.parametrize("name", ["gaussian", "student_t"])
def test_losses_are_the_negative_log_densities(name):
    law, g = LAWS[name], torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 5, law.parameters * 3, generator=g, dtype=torch.float64)
    targets = 2 * torch.randn(4, 5, 3, generator=g, dtype=torch.float64)
    losses = law.loss(outputs, targets)
    assert losses.shape == targets.shape
    for v in range(3):
        expected = -frozen(name, outputs[1, 2, v::3]).logpdf(float(targets[1, 2, v]))
        assert float(losses[1, 2, v]) == pytest.approx(expected, rel=1e-10)
    assert torch.equal(law.mean(outputs), outputs[..., :3])


@pytest.mark.parametrize("name", ["gaussian", "student_t"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_follow_the_law(name, dtype):
    """Kolmogorov-Smirnov against scipy's law; false-alarm rate 1e-4 a case."""
    outputs = torch.tensor([0.7, -0.4, -1.0][: LAWS[name].parameters], dtype=dtype)
    draw = draws.resolve(name)
    noise = draw.noise(3, torch.arange(N), torch.zeros(N, dtype=torch.int64), outputs.numel())
    found = draw.choose(outputs.expand(N, -1), noise)[:, 0]
    assert found.dtype == dtype
    assert stats.kstest(found.double().numpy(), frozen(name, outputs).cdf).pvalue > 1e-4


def test_channels_of_a_draw_are_independent():
    """Correlation of two channels' draws; under independence beyond 4.5 sigma, 7e-6."""
    draw = draws.Gaussian()
    noise = draw.noise(3, torch.arange(N), torch.zeros(N, dtype=torch.int64), 4)
    found = draw.choose(torch.zeros(N, 4, dtype=torch.float64), noise)
    assert abs(float(torch.corrcoef(found.t())[0, 1])) * math.sqrt(N) < 4.5


def test_quantile_draws_interpolate_between_levels_and_stay_within():
    law = LAWS["quantiles"]
    outputs = torch.tensor([[-2.0, -1.0, 0.0, 8.0]], dtype=torch.float64)
    for u, expected in ((0.0, -2.0), (0.05, -2.0), (0.1, -2.0), (0.175, -1.5), (0.25, -1.0), (0.7, 4.0), (0.95, 8.0)):
        found = law.sample(outputs, torch.tensor([[[u]]], dtype=torch.float64))
        assert float(found) == pytest.approx(expected, abs=1e-12)
    two = torch.tensor([[-1.0, -10.0, 0.0, 0.0, 3.0, 30.0]])  # two values, levels first
    assert torch.equal(distributions.Quantiles().mean(two), torch.tensor([[0.0, 0.0]]))
    drawn = distributions.Quantiles().sample(two, torch.tensor([[[0.7], [0.7]]]))
    assert drawn[0].tolist() == pytest.approx([1.5, 15.0])
    one = distributions.Quantiles((0.5,))
    assert one.sample(torch.tensor([[4.0]]), torch.tensor([[[0.9]]])).item() == 4.0


def test_pinball_is_summed_over_levels_and_lowest_at_the_quantiles():
    law, g = distributions.Quantiles(), torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 6, generator=g, dtype=torch.float64)
    targets = torch.randn(6, 2, generator=g, dtype=torch.float64)
    expected = torch.zeros(6, 2, dtype=torch.float64)
    for i, q in enumerate(law.levels):
        missed = targets - outputs[:, 2 * i : 2 * i + 2]
        expected += torch.where(missed > 0, q * missed, (q - 1) * missed)
    torch.testing.assert_close(law.loss(outputs, targets), expected, rtol=1e-12, atol=1e-12)
    sample = torch.randn(9999, 1, generator=g, dtype=torch.float64)
    at = torch.tensor([sample.quantile(q) for q in law.levels])
    best = law.loss(at.expand(9999, -1), sample).sum()
    for moved in (at + torch.tensor([0.1, 0, 0]), at - torch.tensor([0, 0.1, 0]), at + torch.tensor([0, 0, 0.1])):
        assert best < law.loss(moved.expand(9999, -1), sample).sum()


@pytest.mark.parametrize("name", list(LAWS))
def test_samples_and_losses_have_the_gradients_they_should(name):
    law, g = LAWS[name], torch.Generator().manual_seed(1)
    outputs = torch.randn(3, law.parameters * 2, generator=g, dtype=torch.float64, requires_grad=True)
    uniforms = 0.05 + 0.9 * torch.rand(3, 2, law.noise_numbers, generator=g, dtype=torch.float64)
    targets = torch.randn(3, 2, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: law.sample(x, uniforms), outputs)
    assert torch.autograd.gradcheck(lambda x: law.loss(x, targets), outputs)


@pytest.mark.parametrize("name", list(LAWS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_at_the_edges_and_wild_outputs_stay_finite(name, dtype):
    law = LAWS[name]
    outputs = torch.tensor([-30.0, 30.0])[:, None].repeat(1, law.parameters).to(dtype).requires_grad_()
    for u in (0.0, 0.5, 1 - 2.0**-53):
        noise = torch.full((2, 1, law.noise_numbers), u, dtype=torch.float64)
        found = law.sample(outputs, noise)
        loss = law.loss(outputs, found.detach())
        assert bool(found.isfinite().all() & loss.isfinite().all())
        (gradient,) = torch.autograd.grad(found.sum() + loss.sum(), outputs)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("name", "head"), [("gaussian_nll", "gaussian"), ("student_t_nll", "student_t"), ("pinball", "quantiles")]
)
def test_objectives_sum_over_what_counts_and_weigh(name, head):
    law, g = distributions.HEADS[head](), torch.Generator().manual_seed(2)
    targets = torch.randn(3, 4, 2, generator=g)
    outputs = torch.randn(3, 4, 2 * law.parameters, generator=g)
    mask = torch.rand(3, 4, generator=g) < 0.6
    batch = fr.Batch(targets, targets, mask)
    total, count = objectives.resolve(name, batch)(outputs, batch)
    each = law.loss(outputs, targets)
    torch.testing.assert_close(total, each[mask].sum())
    assert int(count) == 2 * int(mask.sum())
    weights = torch.rand(3, 4, generator=g)
    total, count = objectives.resolve(name, batch)(outputs, batch.replace(weights=weights))
    torch.testing.assert_close(total, (each * weights[..., None])[mask].sum())
    torch.testing.assert_close(count, 2 * weights[mask].sum())
    poisoned = batch.replace(targets=targets.masked_fill(~mask[..., None], torch.nan))
    assert bool(objectives.resolve(name, batch)(outputs, poisoned)[0].isfinite())


def test_noise_is_a_function_of_key_row_position_channel_and_number():
    draw = draws.StudentT()
    rows, positions = torch.tensor([4, 7]), torch.tensor([2, 0])
    noise = draw.noise(9, rows, positions, 6)
    assert noise.shape == (2, 2, 2)
    assert draw.noise_size(6) == 4
    for i in range(2):
        for v in range(2):
            for n in range(2):
                assert noise[i, v, n] == uniform(9, rows[i], positions[i], torch.tensor(v), torch.tensor(n))
    assert draws.QuantileSample().noise(9, rows, positions, 6).shape == (2, 2, 1)
    assert draws.QuantileSample().noise_size(3) >= 2


def test_the_mean_is_fed_where_it_is_requested():
    outputs = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    for head, width, mean in (("gaussian", 4, [1.0, 2.0]), ("student_t", 6, [1.0, 2.0]), ("quantiles", 6, [3.0, 4.0])):
        assert draws.Expected(head).choose(outputs[:, :width], None).tolist() == [mean]
    for name in ("expected", "gaussian", "quantile_sample"):
        assert repr(draws.resolve(name)) == f"{name}()"
    assert repr(draws.Expected("student_t")) == "expected(head='student_t')"


def test_widths_that_do_not_fit_are_refused():
    fed = "numbers a position and 2 are fed back: "
    for draw, width, message in (
        (
            draws.Point(),
            4,
            rf"4 {fed}use draw='expected'.*in the model's attribute head = 'gaussian', .*head='point'",
        ),
        (draws.Gaussian(), 2, rf"2 {fed}use draw='point'$"),
        (draws.Expected(), 6, rf"6 {fed}use draw=expected\(head='stud"),
        (draws.Point(), 5, rf"5 {fed}point\(\) needs 1 a value"),
    ):
        refused(message, draws.check_width, draw, torch.zeros(1, width), 2)
    draws.check_width(draws.Expected("quantiles"), torch.zeros(1, 6), 2)
    batch, ids = fr.Batch(torch.zeros(1, 2, 2)), fr.Batch(torch.zeros(1, 2, dtype=torch.int64))
    wide = r"mse reads 1 number a value; the model gives 4.*objective='gaussian_nll'"
    refused(wide, objectives.mse(), torch.zeros(1, 2, 4), batch)
    narrow = r"gaussian_nll reads 2 .* gives 2 a position.*use objective='mse'"
    refused(narrow, objectives.gaussian_nll(), torch.zeros(1, 2, 2), batch)
    refused("these are ids", objectives.pinball(), torch.zeros(1, 2, 3), ids)
    refused("head must be one of", draws.Expected, "point")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_counts_every_position(dtype):
    """bfloat16 would count 70,144 of 70,007, float16 infinity."""
    values, ids = torch.ones(1, 70_007, 1, dtype=dtype), torch.zeros(1, 70_007, dtype=torch.int64)
    total, count = objectives.mse()(torch.zeros_like(values), fr.Batch(values))
    assert total.item() == count.item() == 70_007
    total, count = objectives.cross_entropy()(torch.zeros(1, 70_007, 2, dtype=dtype), fr.Batch(ids))
    assert count.item() == 70_007
    assert total.item() == pytest.approx(70_007 * math.log(2), rel=1e-2)


class _Spread(fr.StepModel):
    """Two numbers for each of two values: a mean and a spread."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = torch.nn.GRUCell(2, 4), torch.nn.Linear(4, 4)

    def start(self, batch):
        return torch.zeros(batch.size, 2), torch.zeros(batch.size, 4)

    def step(self, entries, state):
        state = self.cell(entries, state)
        return self.out(state), state


def test_a_step_model_names_its_distribution_in_the_attribute_head():
    torch.manual_seed(0)
    model, batch = _Spread(), fr.Batch(torch.randn(3, 5, 2))
    for call in (lambda: fr.evaluate(model, [batch]), lambda: fr.generate(model, batch, length=5)):
        refused("model's attribute head = 'gaussian'", call)
    model.head = "gaussian"
    scores = fr.evaluate(model, [batch])
    assert 0 < scores.free_running["nrmse"] < 10


@pytest.mark.parametrize("head", ["gaussian", "student_t"])
def test_quantiles_of_a_head_are_the_laws(head):
    levels, g = (0.001, 0.1, 0.5, 0.8, 0.999), torch.Generator().manual_seed(0)
    m, raw = torch.randn(4, 3, generator=g).double(), torch.randn(4, 3, generator=g).double()
    freedom = torch.tensor([-60.0, -1.0, 2.0, 30.0, 500.0, 20_000.0]).double().repeat(2).view(4, 3)
    parts = [m, raw, freedom][: LAWS[head].parameters]
    found = LAWS[head].quantile(torch.cat(parts, -1), levels)
    assert found.shape == (4, 5, 3)
    for row in range(4):
        for v in range(3):
            scale, df = softplus(float(raw[row, v])) + 1e-4, 2 + float(torch.nn.functional.softplus(freedom[row, v]))
            law = stats.norm if head == "gaussian" else stats.t(df)
            expected = [float(m[row, v]) + scale * float(law.ppf(level)) for level in levels]
            assert found[row, :, v].tolist() == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_quantiles_between_own_levels_are_on_the_line():
    outputs = torch.tensor([[-1.0, 10.0, 0.0, 20.0, 3.0, 30.0]])  # three levels of two values
    found = distributions.Quantiles().quantile(outputs, (0.05, 0.1, 0.3, 0.7, 0.95))
    assert torch.allclose(found[0, :, 0], torch.tensor([-1.0, -1.0, -0.5, 1.5, 3.0]))
    assert torch.allclose(found[0, :, 1], torch.tensor([10.0, 10.0, 15.0, 25.0, 30.0]))
    refused("must lie in", distributions.Quantiles().quantile, outputs, (0.5, 1.0))


def test_quantiles_that_cross_are_put_in_order_where_the_law_is_read():
    law, crossed = distributions.Quantiles(), torch.tensor([[3.0, -1.0, 0.0], [1.0, 5.0, 2.0]])
    ordered = crossed.sort(1).values
    assert torch.equal(law.mean(crossed), ordered[:, 1:2])
    assert torch.equal(law.quantile(crossed, (0.1, 0.5, 0.9))[..., 0], ordered)
    for u in (0.05, 0.3, 0.6, 0.95):
        uniforms = torch.full((2, 1, 1), u)
        assert torch.equal(law.sample(crossed, uniforms), law.sample(ordered, uniforms))
    # the loss reads each level where it stands, so that they learn not to cross
    assert not torch.equal(law.split(crossed)[..., 0], ordered)
