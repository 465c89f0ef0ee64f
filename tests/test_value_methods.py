"""Methods on values against loops: horizons, loss steps, blends, pushforward, reverse sampling, rollouts, noise."""

import itertools
import math
import pickle

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import freerun as fr
from builders import assert_same_gradients, gradients, raises, refused
from freerun import methods, schedules, transforms
from freerun.keys import fold, uniform
from freerun.training import estimate_memory
from freerun.training.memory import peak_bytes
from oracles import coins, literal

KEY, STEP = 5, 3


def sequence(size: int = 3, past: int = 3, horizon: int = 6, values: int = 2) -> fr.Batch:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(size, past + horizon, values, generator=g, dtype=torch.float64)
    own = (torch.arange(past + horizon) >= past).expand(size, -1)
    return fr.Batch(x, x, own, eligible=own)


def forecaster(**changes) -> fr.models.PlainForecaster:
    torch.manual_seed(1)
    return fr.models.PlainForecaster(2, size=6, **changes).double()


class Markov(nn.Module):
    """The next value is a function of the last one alone."""

    markov = True

    def __init__(self, width: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, width)).double()
        for weight in self.parameters():
            weight.data.mul_(scale)

    def forward(self, batch: fr.Batch) -> Tensor:
        return self.net(nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1])

    def start(self, batch):
        return torch.zeros_like(batch.history[:, 0])

    def embed(self, entries):
        return entries

    def step(self, state, inputs):
        return inputs

    def output(self, state, rows=None):
        return self.net(state if rows is None else state[rows])

    def select(self, state, rows):
        return state[rows]


def check(method: fr.methods.Method, net: nn.Module, b: fr.Batch, expected: Tensor) -> fr.Outcome:
    outcome = method.run(net, b, STEP, KEY)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-11)
    assert_same_gradients(gradients(net, outcome.loss), gradients(net, expected))
    return outcome


def first(b: fr.Batch, time: int) -> fr.Batch:
    """The first positions of a batch."""
    return b.replace(**{part: getattr(b, part)[:, :time] for part in ("targets", "history", "mask", "eligible")})


GATES = ["step", "sequence", "batch", "prefix", fr.gates.every(3), "decoding_steps"]


class TestShapes:
    @pytest.mark.parametrize("gradient", ["full", "none", 2, 4])
    @pytest.mark.parametrize("cell", ["gru", "lstm"])
    @pytest.mark.parametrize(("loss_on", "weigh"), [
        ("all", lambda w, lead: w), ("last", lambda w, lead: w * (lead == 4)),
        ("after_warmup", lambda w, lead: w * (lead > 0)),
        ((1.0, 0.0, 0.5, 2.0), lambda w, lead: torch.tensor([0.0, 1.0, 0.0, 0.5, 2.0]).double()[lead]),
    ])  # fmt: skip
    def test_horizon_and_loss_steps_equal_the_loop(self, gradient, cell, loss_on, weigh):
        net, b = forecaster(cell=cell), sequence()
        b = b.replace(mask=torch.ones_like(b.mask))  # the warm-up counts unless loss_on leaves it out
        cut = first(b, 7)
        share = coins("token", b, 0.5, KEY, STEP)[:, :7].double()
        weights = weigh(torch.ones(3, 7).double(), cut.eligible.cumsum(1))
        expected, _ = literal(net, cut, share, gradient, weights)
        check(fr.scheduled_sampling(0.5, gradient=gradient, horizon=4, loss_on=loss_on), net, b, expected)

    @pytest.mark.parametrize("gradient", ["full", "none", 2])
    @pytest.mark.parametrize("gate", GATES, ids=repr)
    def test_every_gate_goes_with_every_cut_horizon_and_weight(self, gate, gradient):
        net, b, weights = forecaster(), sequence(), (0.3, 0.0, 0.5, 2.0)
        cut = first(b, 7)
        keep = fr.gates.resolve(gate)(cut, 0.4, fold(KEY, "gate", STEP))
        by_lead = torch.tensor([0.0, *weights], dtype=torch.float64)[cut.eligible.cumsum(1)]
        expected, _ = literal(net, cut, keep.double(), gradient, by_lead)
        check(fr.scheduled_sampling(0.4, gate=gate, gradient=gradient, horizon=4, loss_on=weights), net, b, expected)

    def test_a_horizon_follows_its_schedule_and_is_reported(self):
        net, b = forecaster(), sequence()
        method = fr.free_running(horizon=schedules.linear(start=1, end=7, steps=6))
        for step, expected in ((0, 1), (1, 2), (3, 4), (100, 6)):
            assert int(method.run(net, b, step, KEY).fed.mask.sum(1)[0]) == expected
        assert method.run(net, b, 3).report["horizon"] == 4
        message = r"horizon must lie in \[1, inf\]; linear.* gives 0 at step 0"
        refused(message, fr.free_running, horizon=schedules.linear(start=0, end=7, steps=6))

    def test_ragged_rows_end_where_they_end(self):
        b = sequence(past=0)
        b = b.replace(mask=torch.arange(6) < torch.tensor([6, 3, 1])[:, None], eligible=None)
        assert transforms.within_horizon(b, 4).mask.sum(1).tolist() == [4, 3, 1]
        assert transforms.loss_on(b, "last").mask.nonzero().tolist() == [[0, 5], [1, 2], [2, 0]]
        assert transforms.within_horizon(b, 6) is b

    def test_a_row_ends_the_same_whatever_is_beside_it(self):
        own = torch.tensor([[True, True, False, False], [True, True, True, True]])
        b = fr.Batch(torch.zeros(2, 4, 1), eligible=own)
        assert transforms.within_horizon(b, 2).mask.sum(1).tolist() == [2, 2]
        assert transforms.within_horizon(b.select(torch.tensor([0])), 2).mask.sum().item() == 2

    def test_weights_by_lead_time_keep_their_digits(self):
        net, b, by_lead = forecaster(), sequence(), (0.1, 0.7, 0.3, 0.2, 0.9, 0.6)
        weights = torch.tensor(by_lead, dtype=torch.float64)
        expected = ((net(b) - b.targets)[:, 3:].square().sum(-1) * weights).sum() / (weights.sum() * 6)
        check(fr.teacher_forcing(loss_on=by_lead), net, b, expected)
        few = fr.free_running(loss_on=(1.0, 2.0))
        refused("loss_on has 2 weights and the horizon 6 steps", few, net, b, step=0)

    def test_ids_have_horizons_too(self):
        model, batch = fr.models.TransformerLM(5, size=8, heads=2, layers=1), fr.Batch(torch.randint(0, 5, (2, 6)))
        assert fr.teacher_forcing(horizon=2).run(model, batch, step=0).count.item() == 4


class Held:
    """Bytes that the graph keeps, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor):
        held = self

        class Kept:
            def __init__(self) -> None:
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                held.now += self.size
                held.most = max(held.most, held.now)

            def __del__(self) -> None:
                held.now -= self.size

        return Kept()


def most_held(gradient: str | int, horizon: int, net: nn.Module | None = None) -> int:
    net, b = net or forecaster(), sequence(size=8, horizon=horizon)
    held = Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
        fr.free_running(gradient=gradient)(net, b, step=0).backward()
    return held.most


def test_memory_grows_with_k_and_not_with_the_horizon():
    """Bytes saved for backward, counted: no measurement, no noise."""
    assert most_held("full", 120) > 3 * most_held("full", 30)
    for k in (1, 5, 10):
        assert most_held(k, 120) == most_held(k, 30)
    assert most_held(10, 120) > 1.5 * most_held(5, 120)
    assert most_held(5, 120) < most_held("full", 120) / 10


def test_what_a_cut_transformer_keeps_grows_with_its_cache_alone():
    net = fr.models.TransformerForecaster(2, size=8, heads=2, layers=1).double()
    grown = [most_held(gradient, 120, net) / most_held(gradient, 30, net) for gradient in (1, "full")]
    assert 1 < grown[0] < 4  # the cache is 3.7 times as long
    assert grown[1] > 6  # and is kept once for every step


class StateOfGRU(fr.StepModel):
    """A decoder step with dropout, so that what is computed again must draw the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.cell, self.out, self.drop = nn.GRUCell(2, 5), nn.Linear(5, 2), nn.Dropout(0.3)

    def start(self, batch):
        return torch.zeros(batch.size, 2, dtype=torch.float64), torch.zeros(batch.size, 5, dtype=torch.float64)

    def step(self, entries, state):
        state = self.cell(entries, state)
        return entries + self.out(self.drop(state)), state


class Forward(nn.Module):
    """Markov, without its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Markov()

    def forward(self, batch: fr.Batch) -> Tensor:
        return self.inner(batch)


CHECKPOINTED = {
    "gru": forecaster, "lstm": lambda: forecaster(cell="lstm"), "markov": Markov,
    "transformer": lambda: fr.models.TransformerForecaster(2, size=8, heads=2, layers=2).double(),
    "plrnn": lambda: fr.models.ShallowPLRNN(2, size=9).double(), "step": lambda: StateOfGRU().double(),
    "forward": Forward,
}  # fmt: skip


@pytest.mark.parametrize("make", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_a_checkpointed_gradient_is_the_full_one(make):
    net, b = make(), sequence(past=1)
    methods_ = [
        lambda g: fr.free_running(gradient=g), lambda g: fr.scheduled_sampling(0.4, gradient=g, loss_on="last"),
        lambda g: fr.multi_step(horizon=5, gradient=g), lambda g: fr.generalised_teacher_forcing(0.3, gradient=g),
    ]  # fmt: skip
    for method in methods_:
        both = []
        for gradient in ("full", "checkpointed"):
            torch.manual_seed(7)
            loss = method(gradient)(net, b, STEP, KEY)
            both.append((loss.detach(), gradients(net, loss)))
        assert torch.equal(both[0][0], both[1][0])
        assert_same_gradients(both[0][1], both[1][1])


def spent(method, net, b) -> int:
    """Bytes that a real forward and backward hold at most."""
    method.run(net, b, STEP, KEY).total.backward()

    def once() -> None:
        net.zero_grad(set_to_none=True)
        method.run(net, b, STEP, KEY).total.backward()

    net.zero_grad(set_to_none=True)
    return peak_bytes(once, torch.device("cpu"))


@pytest.mark.parametrize("make", [CHECKPOINTED[name] for name in ("gru", "transformer", "plrnn", "step")])
def test_the_estimate_is_what_is_then_measured(make):
    net, b = make(), sequence(size=14, past=1, horizon=40)
    before = [weight.detach().clone() for weight in net.parameters()]
    spends = {}
    for gradient in ("full", "checkpointed", 5, "none"):
        method = fr.free_running(gradient=gradient)
        state = torch.get_rng_state()
        estimate = estimate_memory(method, net, b, STEP, KEY)
        assert torch.equal(state, torch.get_rng_state())
        assert all(weight.grad is None for weight in net.parameters())
        spends[gradient] = spent(method, net, b)
        net.zero_grad(set_to_none=True)
        assert estimate == pytest.approx(spends[gradient], rel=0.1), gradient
    assert spends["checkpointed"] < 0.7 * spends["full"]
    assert all(map(torch.equal, before, net.parameters()))


def test_the_estimate_is_what_pytorch_s_own_profiler_measures():
    """Of a real update: the allocator's events, added up in the order of time."""
    torch.manual_seed(0)
    net, b = fr.models.PlainForecaster(3, size=64), fr.Batch(torch.randn(32, 50, 3))
    method = fr.multi_step(horizon=50)
    estimate = estimate_memory(method, net, b)
    method.run(net, b, 0).total.backward()
    net.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        method.run(net, b, 0).total.backward()
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    bytes_ = [each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())]
    assert estimate == pytest.approx(max(itertools.accumulate(bytes_)), rel=0.1)


def test_a_gradient_that_is_there_stays_there():
    net, b = forecaster(), sequence(size=8)
    fr.teacher_forcing()(net, b, step=0).backward()
    before = {name: weight.grad.clone() for name, weight in net.named_parameters()}
    estimate_memory(fr.free_running(), net, b)
    assert all(torch.equal(weight.grad, before[name]) for name, weight in net.named_parameters())


class TestBlend:
    @pytest.mark.parametrize("gradient", ["full", "none", 3])
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
    def test_equals_the_loop(self, alpha, gradient):
        net, b = forecaster(), sequence()
        expected, history = literal(net, b, torch.full(b.mask.shape, alpha, dtype=torch.float64), gradient)
        outcome = check(methods.generalised_teacher_forcing(alpha, gradient=gradient), net, b, expected)
        assert torch.allclose(outcome.fed.history, history, atol=1e-12)
        assert outcome.report["alpha"] == alpha
        by_gate = fr.scheduled_sampling(alpha, gate="blend", gradient=gradient)
        torch.testing.assert_close(by_gate(net, b, STEP, KEY), outcome.loss, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("gradient", ["full", "none", 3])
    def test_the_ends_are_teacher_forcing_bit_for_bit_and_free_running(self, gradient):
        net, b = forecaster(), sequence()
        gold, own, forced, free = (
            gradients(net, method(net, b, STEP, KEY))
            for method in (
                *(fr.generalised_teacher_forcing(alpha, gradient=gradient) for alpha in (1.0, 0.0)),
                fr.teacher_forcing(), fr.free_running(gradient=gradient),
            )
        )  # fmt: skip
        assert all(torch.equal(gold[n], forced[n]) for n in gold)
        assert_same_gradients(own, free)  # a computation of its own: equal but for rounding

    def test_the_least_forcing_gives_random_jacobians_norm_one(self):
        g = torch.Generator().manual_seed(0)
        jacobian = 2.5 * torch.randn(6, 40, 3, 3, generator=g, dtype=torch.float64)
        alpha = methods.least_forcing(jacobian)
        forced = torch.linalg.matrix_norm((1 - alpha) * jacobian, 2).log().mean(1).exp()
        assert forced.max().item() == pytest.approx(1.000, abs=1e-12)
        assert 0.5 < alpha < 1
        assert methods.least_forcing(jacobian / 100) == 0.0  # contracting: nothing to hold
        for broken in (torch.nan, torch.inf):
            jacobian = torch.eye(2).repeat(2, 3, 1, 1)
            jacobian[0, 1, 0, 0] = broken
            refused("the Jacobian is not finite at 1 of 6 positions", methods.least_forcing, jacobian)

    def test_adaptive_alpha_is_that_of_the_model(self):
        net, b = Markov(scale=5), sequence(past=1)
        each = []
        for row in range(3):
            jacobians = [
                torch.autograd.functional.jacobian(net.net, b.history[row, t]) for t in range(6) if b.eligible[row, t]
            ]
            logs = [math.log(float(torch.linalg.svdvals(j)[0])) for j in jacobians]
            each.append(math.exp(sum(logs) / len(logs)))
        alpha = fr.generalised_teacher_forcing().run(net, b, step=0).report["alpha"]
        assert alpha == pytest.approx(1 - 1 / max(each), abs=1e-10)
        message = "needs a model whose state is its last entry only"
        refused(message, fr.generalised_teacher_forcing(), forecaster(), sequence(), step=0)

    def test_the_running_estimate_is_the_published_rule(self):
        """Fifteen updates by hand: every second one, one batch or its rows in two micro-batches."""
        net, data = Markov(scale=5), [sequence(past=1) for _ in range(15)]
        data = [b.replace(targets=(n % 4) * b.targets, history=(n % 4) * b.history) for n, b in enumerate(data)]
        whole, parts = (fr.generalised_teacher_forcing("running", every=2, decay=0.6) for _ in range(2))
        alpha, pending = 1.0, None
        for step, b in enumerate(data):
            if pending is not None:
                alpha = pending if pending > alpha else 0.6 * alpha + 0.4 * pending
                pending = None
            if step % 2 == 0:
                pending = max(0.0, 1 - 1 / self.largest(net, b))
            outcome = whole.run(net, b, step, KEY)
            assert outcome.report["alpha"] == pytest.approx(alpha, abs=1e-12)
            assert outcome.loss.item() == pytest.approx(fr.generalised_teacher_forcing(alpha)(net, b, step).item())
            for rows in ([0, 2], [1]):
                found = parts.run(net, b.select(torch.tensor(rows)), step, KEY).report["alpha"]
                assert found == pytest.approx(alpha, abs=1e-12)
        assert 0 < alpha < 1
        again = pickle.loads(pickle.dumps(whole))
        again.load_state_dict(whole.state_dict())
        assert again.run(net, data[0], 15).report["alpha"] == whole.run(net, data[0], 15).report["alpha"] != 1
        assert whole.run(net, data[0], 0).report["alpha"] == 1  # another run
        refused("every and decay are of alpha='running'", fr.generalised_teacher_forcing, 0.5, every=2)
        refused("every must be at least 1", fr.generalised_teacher_forcing, "running", every=0)

    @staticmethod
    def largest(net, b) -> float:
        """The largest over rows of the geometric mean of the norms, of entries that something is predicted from."""
        each = []
        for row in range(b.size):
            fed = [t for t in range(b.time - 1) if b.replaceable[row, t]]
            norms = [torch.autograd.functional.jacobian(net.net, b.history[row, t]) for t in fed]
            each.append(math.exp(sum(math.log(float(torch.linalg.svdvals(j)[0])) for j in norms) / len(fed)))
        return max(each)

    def test_padding_does_not_reach_the_adaptive_alpha(self):
        net, b = Markov(scale=5), sequence(past=1)
        mask = b.mask & (torch.arange(7) < torch.tensor([7, 4, 5])[:, None])
        b = b.replace(mask=mask, eligible=mask)
        padded = b.replace(history=b.history.masked_fill(~mask[..., None] & (torch.arange(7) > 0)[:, None], torch.nan))
        one, other = (fr.generalised_teacher_forcing().run(net, x, step=0).report["alpha"] for x in (b, padded))
        assert one == other > 0

    def test_the_shallow_plrnn_knows_its_jacobians(self):
        torch.manual_seed(4)
        net, b = fr.models.ShallowPLRNN(2, size=9).double(), sequence(past=1)
        assert torch.allclose(methods.jacobians(net, b), net.jacobian(b.history), atol=1e-12)
        alpha = methods.least_forcing(net.jacobian(b.history)[:, :-1], b.eligible[:, :-1])
        assert fr.generalised_teacher_forcing().run(net, b, step=0).report["alpha"] == pytest.approx(alpha, abs=1e-12)

    def test_ids_and_other_methods_refuse_it(self):
        model, batch = fr.models.TransformerLM(5, size=8, heads=2, layers=1), fr.Batch(torch.zeros(1, 2).long())
        blend = fr.scheduled_sampling(0.5, gate="blend")
        refused("mixes values, and these targets are ids", blend, model, batch, step=0)
        refused(
            "which only scheduled_sampling does", lambda: fr.parallel(0.5, gate="blend")(forecaster(), sequence(), 0)
        )


class TestUnrolledLosses:
    @pytest.mark.parametrize("gradient", ["full", "none", 2])
    def test_multi_step_is_free_running_over_its_horizon(self, gradient):
        net, b = forecaster(), sequence()
        expected = fr.free_running(gradient=gradient, horizon=4)(net, b, STEP, KEY)
        check(fr.multi_step(horizon=4, gradient=gradient), net, b, expected)
        raises(TypeError, "horizon", fr.multi_step)

    @pytest.mark.parametrize("gradient", ["full", "none", 2])
    @pytest.mark.parametrize("law", [
        schedules.uniform(1, schedules.linear(start=1, end=6, steps=STEP)),
        schedules.choice(values=(1, 2, 5), weights=(schedules.linear(steps=9), 0.5, 1)),
        schedules.join(schedules=(schedules.constant(1), schedules.uniform(2, 6)), boundaries=(STEP,)),
    ], ids=repr)  # fmt: skip
    def test_a_horizon_that_is_drawn_is_one_horizon_for_all_rows(self, law, gradient):
        net, b = forecaster(), sequence()
        for key in range(4):
            u = float(uniform(fold(key, "horizon", STEP), torch.tensor(0)))
            h = round(law.draw(STEP, u))
            cut = first(b, 3 + h)
            expected, _ = literal(net, cut, torch.zeros(3, 3 + h).double(), gradient)
            outcome = fr.multi_step(horizon=law, gradient=gradient).run(net, b, STEP, key)
            assert outcome.report["horizon"] == h
            assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-11)
            assert_same_gradients(gradients(net, outcome.loss), gradients(net, expected))
            one = fr.multi_step(horizon=law, gradient=gradient).run(net, b.select(torch.tensor([1])), STEP, key)
            assert one.report["horizon"] == h
            assert fr.pushforward(horizon=law).run(net, b, STEP, key).report["steps"] == h

    def test_any_parameter_may_be_drawn(self):
        ratio = schedules.choice(values=(0.0, 1.0))
        net, b, method = forecaster(), sequence(), fr.scheduled_sampling(ratio)
        for key in range(6):
            r = ratio(STEP, key=fold(key, "teacher_forcing_ratio", STEP))
            assert torch.equal(method(net, b, STEP, key), fr.scheduled_sampling(r)(net, b, STEP, key))
        wide = schedules.uniform(0, schedules.linear(start=1, end=9, steps=5))
        refused(r"horizon must lie in \[1, inf\]; uniform.* gives 0 at step 0", fr.multi_step, horizon=wide)

    @pytest.mark.parametrize("steps", [1, 2, 5])
    def test_pushforward_is_one_step_from_a_run_without_gradient(self, steps):
        net, b = Markov(), sequence(past=1)
        with torch.no_grad():
            u = b.history[:, 0]
            for _ in range(steps - 1):
                u = net.net(u)
        expected = (net.net(u) - b.targets[:, steps]).square().mean()
        check(fr.pushforward(horizon=steps, drawn=False), net, b, expected)
        stepwise = r"pushforward goes step by step.*or use multi_step"
        refused(stepwise, fr.pushforward(horizon=2), lambda b: b.history, sequence(), step=0)

    def test_pushforward_draws_its_steps_evenly(self):
        """Chi-square over 400 updates; false-alarm rate 1e-4."""
        net, b, method = Markov(), sequence(past=1, size=1), fr.pushforward(horizon=5)
        drawn = [int(method.run(net, b, step, KEY).report["steps"]) for step in range(400)]
        counts = [drawn.count(h) for h in range(1, 6)]
        assert sum(counts) == 400
        assert stats.chisquare(counts).pvalue > 1e-4

    def test_sparse_forcing_feeds_gold_every_tau(self):
        net, b = forecaster(), sequence(past=2, horizon=7)
        fed = fr.sparse_teacher_forcing(tau=3).run(net, b, step=0).fed
        same = (fed.history == b.history).all(-1)
        # positions 2, 5 and 8 are forced, 0 and 1 known
        assert same[0].tolist() == [True, True, True, False, False, True, False, False, True]
        assert repr(fr.sparse_teacher_forcing(tau=3)) == "sparse_teacher_forcing(tau=3)"


class TestReverse:
    def test_both_parts_draw_their_own_gates_but_the_first_is_gold(self):
        """Shares of 6,000 and 9,000 gates; five standard errors, false-alarm rate 1e-6."""
        net, b = forecaster(), sequence(size=1500, past=5)
        fed = fr.reverse_scheduled_sampling(0.7, 0.2).run(net, b, STEP, KEY).fed
        same = (fed.history == b.history).all(-1)
        assert bool(same[:, 0].all())
        assert same[:, 1:5].double().mean().item() == pytest.approx(0.7, abs=5 * (0.21 / 6000) ** 0.5)
        assert same[:, 5:].double().mean().item() == pytest.approx(0.2, abs=5 * (0.16 / 9000) ** 0.5)
        assert torch.equal(fed.replaceable, b.replaceable)

    @pytest.mark.parametrize("gradient", ["full", "none", 2])
    def test_equals_the_loop(self, gradient):
        net, b = forecaster(), sequence()
        later = torch.arange(9).expand(3, -1) > 0
        gate, keep = fold(KEY, "gate", STEP), torch.ones(3, 9, dtype=torch.bool)
        for row, t in itertools.product(range(3), range(1, 9)):
            keep[row, t] = bool(uniform(gate, torch.tensor(row), torch.tensor(t)) < (0.6 if t < 3 else 0.3))
        b = b.replace(mask=later)
        expected, _ = literal(net, b.replace(eligible=later), keep.double(), gradient)
        check(fr.reverse_scheduled_sampling(0.6, 0.3, gradient=gradient), net, b, expected)
        refused("no row has known entries", fr.reverse_scheduled_sampling(0.5, 0.5), net, sequence(past=1), step=0)

    def test_the_published_schedule(self):
        method = methods.reverse(80_000)
        published = ((0, 0.5, 0.5), (25_000, 0.5, 0.5), (30_000, 1 - 0.5 / math.e, 0.4), (60_000, 1, 0))
        for step, context, horizon in published:
            assert method.context_ratio(step) == pytest.approx(context, abs=1e-9)
            assert method.teacher_forcing_ratio(step) == pytest.approx(horizon, abs=1e-9)


def linear_world(quadratic: float, rows: int = 40, time: int = 8) -> fr.Batch:
    """x' = A x + quadratic * x0^2 e1, noiseless."""
    g = torch.Generator().manual_seed(3)
    x = [0.7 * torch.randn(rows, 2, generator=g, dtype=torch.float64)]
    for _ in range(time - 1):
        z = x[-1] @ torch.tensor([[0.9, 0.3], [-0.3, 0.9]], dtype=torch.float64)
        x.append(z + quadratic * torch.stack([x[-1][:, 0] ** 2, 0 * x[-1][:, 0]], 1))
    known = (torch.arange(time) > 0).expand(rows, time)
    return fr.Batch(torch.stack(x, 1), mask=known, eligible=known)


class Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, batch):
        return nn.functional.pad(batch.history[:, :-1] @ self.weight, (0, 0, 1, 0))


def least_squares(batches) -> Linear:
    inputs = torch.cat([b.history[:, :-1].flatten(0, 1) for b in batches])
    targets = torch.cat([b.targets[:, 1:].flatten(0, 1) for b in batches])
    return Linear(torch.linalg.lstsq(inputs, targets).solution)


def errors(model: Linear, data: fr.Batch) -> tuple[float, float]:
    """One-step and free-running root mean squared error."""
    own = methods.demonstrations(model, data)
    one, free = (fr.teacher_forcing()(model, each, step=0).item() ** 0.5 for each in (data, own))
    return one, free


class TestDemonstrator:
    def test_a_model_that_can_be_right_learns_nothing_more(self):
        data = linear_world(0.0)
        best, scores = methods.data_as_demonstrator(least_squares, data, 3, lambda m: errors(m, data)[1])
        assert max(scores) < 1e-12
        assert torch.allclose(best.weight, least_squares([data]).weight, atol=1e-10)

    def test_a_model_that_cannot_trades_one_step_for_many(self):
        data = linear_world(0.35)
        plain = least_squares([data])
        best, scores = methods.data_as_demonstrator(least_squares, data, 5, lambda m: errors(m, data)[1])
        assert errors(best, data)[1] < 0.97 * errors(plain, data)[1]
        assert errors(best, data)[0] > errors(plain, data)[0]
        assert len(scores) == 6

    def test_a_model_whose_score_is_nan_is_not_the_best(self):
        scores, learned = iter([math.nan, 2.0, 1.0, math.nan]), []

        def learn(batches):
            learned.append(least_squares(batches))
            return learned[-1]

        best, _ = methods.data_as_demonstrator(learn, linear_world(0.0), 3, lambda m: next(scores))
        assert best is learned[2]

    def test_online_is_the_mean_of_gold_and_own(self):
        net, b = forecaster(), sequence()
        gold = fr.teacher_forcing()(net, b, step=0)
        own = fr.free_running(gradient="none")(net, b, STEP, KEY)
        check(fr.data_as_demonstrator_online(), net, b, (gold + own) / 2)


class TestNoise:
    def test_its_law_and_its_positions(self):
        """Kolmogorov-Smirnov on 12,000 numbers and their correlation; false-alarm rate 1e-4 each."""
        net, b = forecaster(), sequence(size=2000)
        fed = fr.gaussian_noise(0.3, rate=0.5).transform(net, b, STEP, KEY)
        keep = fr.gates.token()(b, 0.5, fold(KEY, "gate", STEP)) | ~b.replaceable
        far = (fed.history - b.history)[~keep] / 0.3
        assert torch.equal(fed.history[keep], b.history[keep])
        assert stats.kstest(far.flatten().numpy(), "norm").pvalue > 1e-4
        assert stats.pearsonr(far[:, 0].numpy(), far[:, 1].numpy()).pvalue > 1e-4

    @pytest.mark.parametrize("walk", ["values", "velocities"])
    @pytest.mark.parametrize("past", [0, 2])
    def test_a_walk_is_summed_along_the_entries_that_may_be_replaced(self, walk, past):
        net, b = forecaster(), sequence(past=past)
        b = b.replace(eligible=b.eligible & (torch.arange(b.time) < torch.tensor([9, 6, 5])[:, None]))
        keep, own = fr.gates.token()(b, 0.4, fold(KEY, "gate", STEP)), torch.arange(b.time) >= past
        key, expected = fold(KEY, "noise", STEP), b.history.clone()
        for row in range(3):
            steps = [t for t in range(b.time) if b.replaceable[row, t] and not (walk == "velocities" and t == 0)]
            velocity = position = torch.zeros(2, dtype=torch.float64)
            for t in steps:
                u = [[float(uniform(key, *map(torch.tensor, (row, t, v, n)))) for n in (0, 1)] for v in (0, 1)]
                normal = [math.sqrt(-2 * math.log(a)) * math.cos(2 * math.pi * c) for a, c in u]
                e = torch.tensor(normal, dtype=torch.float64)
                velocity = velocity + 0.3 * e / math.sqrt(len(steps))
                position = position + velocity
                if not keep[row, t]:
                    expected[row, t] += velocity if walk == "values" else position
        fed = fr.gaussian_noise(0.3, rate=0.6, walk=walk).transform(net, b, STEP, KEY)
        torch.testing.assert_close(fed.history, expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(fed.history[:, ~own], b.history[:, ~own])

    def test_the_last_step_of_a_walk_has_the_deviation(self):
        """5,000 rows of two channels: five standard errors of a standard deviation, false-alarm rate 1e-6."""
        net, b = forecaster(), sequence(size=5000)
        far = fr.gaussian_noise(0.3, walk="values").transform(net, b, STEP, KEY).history - b.history
        assert far[:, -1].std().item() == pytest.approx(0.3, abs=5 * 0.3 / 20_000**0.5)
        assert far[:, 3].std().item() == pytest.approx(0.3 / 6**0.5, abs=5 * 0.3 / 6**0.5 / 20_000**0.5)
        refused("walk must be 'values' or 'velocities'", fr.gaussian_noise, 0.3, walk="positions")

    def test_matched_is_as_large_as_the_own_error(self):
        net, b = forecaster(), sequence(size=4000)
        with torch.no_grad():
            std = (net(b) - b.targets)[b.replaceable].square().mean(0).sqrt()
        overall = pytest.approx(std.square().mean().sqrt().item())
        assert fr.gaussian_noise("matched", loss_on="last").run(net, b, STEP, KEY).report["std"] == overall
        outcome = fr.gaussian_noise("matched").run(net, b, STEP, KEY)
        far = (outcome.fed.history - b.history)[b.replaceable]
        # 24,000 numbers a channel: five standard errors of a standard deviation, false-alarm rate 1e-6
        assert torch.allclose(far.square().mean(0).sqrt() / std, torch.ones(2).double(), atol=5 / 48000**0.5)
        assert outcome.report["std"] == overall
        deviation = (outcome.report["squared_deviation"] / outcome.report["replaced"]) ** 0.5
        assert deviation == pytest.approx(far.square().mean().sqrt().item())
        matched = fr.gaussian_noise("matched", objective="gaussian_nll")
        refused("predicts a distribution", matched, forecaster(head="gaussian"), sequence(), step=0)


@pytest.mark.parametrize(("name", "more"), [
    ("multi_step", {"horizon": 2}), ("pushforward", {"horizon": 2}), ("generalised_teacher_forcing", {"alpha": 0.5}),
    ("data_as_demonstrator_online", {}), ("scheduled_sampling", {"teacher_forcing_ratio": 0.5}),
    ("reverse_scheduled_sampling", {"context_ratio": 0.5, "teacher_forcing_ratio": 0.5}),
    ("parallel", {"teacher_forcing_ratio": 0.5}),
])  # fmt: skip
def test_a_draw_there_is_not_is_refused_at_once(name, more):
    refused("draw must be one of", fr.METHODS[name], **more, draw="argmax")
