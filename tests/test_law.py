"""The law of what is fed, through the public face: exact engines have it, one parallel pass does not."""

import itertools

import pytest
import torch
from scipy import stats
from torch import nn

import freerun as fr
from freerun import draws

TIME, VOCAB, ROWS = 3, 3, 200_000
RATIO = 0.4
START, TABLE = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1]])


class Chain(nn.Module):
    """A first-order Markov chain over three symbols, as a model and as a Stepper."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        first = START.log().expand(batch.size, 1, VOCAB)
        return torch.cat([first, TABLE.log()[batch.history[:, :-1]]], 1) + self.anchor


class SteppedChain(Chain):
    def start(self, batch: fr.Batch) -> torch.Tensor:
        return START.log().expand(batch.size, VOCAB)

    def embed(self, entries: torch.Tensor) -> torch.Tensor:
        return TABLE.log()[entries]

    def step(self, state: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return inputs

    def output(self, state: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        return state if rows is None else state[rows]

    def select(self, state: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return state[rows]


class CachedChain(Chain):
    """The same chain over a cache: all that each row has read, and how much of it stands."""

    LAWS = torch.cat([TABLE, START[None]]).log()

    def start(self, batch: fr.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        read = torch.full((batch.size, TIME + 1), VOCAB)
        return read, torch.zeros(batch.size, dtype=torch.int64)

    def embed(self, entries: torch.Tensor) -> torch.Tensor:
        return entries

    def step(self, state, inputs: torch.Tensor):
        return self.advance(state, inputs, torch.ones_like(state[1]))[0]

    def output(self, state, rows: torch.Tensor | None = None) -> torch.Tensor:
        read, lengths = state if rows is None else (state[0][rows], state[1][rows])
        return self.head(read.gather(1, lengths[:, None])[:, 0])

    def select(self, state, rows: torch.Tensor):
        return state[0][rows], state[1][rows]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.LAWS[hidden]

    def advance(self, state, inputs: torch.Tensor, counts: torch.Tensor):
        read, lengths = state[0].clone(), state[1]
        rows = torch.arange(len(lengths)).repeat_interleave(counts)
        places = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows] + lengths[rows] + 1
        read[rows, places] = inputs
        return (read, lengths + counts), inputs

    def crop(self, state, lengths: torch.Tensor):
        return state[0], lengths


GOLD = (2, 0, 1)


def enumerated() -> torch.Tensor:
    """P(history) of all 27 histories: coins and draws summed out by hand."""
    law = torch.zeros(VOCAB**TIME, dtype=torch.float64)
    for n, history in enumerate(itertools.product(range(VOCAB), repeat=TIME)):
        p = 1.0
        for t, symbol in enumerate(history):
            model = START[symbol] if t == 0 else TABLE[history[t - 1], symbol]
            p *= RATIO * (symbol == GOLD[t]) + (1 - RATIO) * float(model)
        law[n] = p
    return law


def chi_square(model: nn.Module, method) -> float:
    history = method.transform(model, fr.Batch(torch.tensor(GOLD).expand(ROWS, TIME)), step=2, key=9).history
    codes = (history * torch.tensor([9, 3, 1])).sum(1)
    observed, expected = torch.bincount(codes, minlength=VOCAB**TIME).double(), enumerated() * ROWS
    possible = expected > 0
    assert int(observed[~possible].sum()) == 0
    return float(((observed - expected)[possible] ** 2 / expected[possible]).sum())


LIMIT = float(stats.chi2.ppf(1 - 1e-4, VOCAB**TIME - 1))


@pytest.mark.parametrize("coupling", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("model", [Chain(), SteppedChain()], ids=["forward", "stepper"])
def test_exact_engines_have_the_enumerated_law(model, coupling):
    """Chi-square, 26 degrees of freedom, 200,000 rows; false-alarm rate 1e-4 a case."""
    assert chi_square(model, fr.scheduled_sampling(RATIO, draw=draws.Sample(coupling=coupling))) < LIMIT


@pytest.mark.parametrize("coupling", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("engine", ["step", "jacobi", "window", "draft", fr.Window(2), fr.Window(3)], ids=str)
def test_every_engine_over_a_cache_has_the_enumerated_law(engine, coupling):
    """Chi-square as above; false-alarm rate 1e-4 a case."""
    method = fr.scheduled_sampling(RATIO, draw=draws.Sample(coupling=coupling), engine=engine)
    assert chi_square(CachedChain(), method) < LIMIT


def test_a_draft_certified_by_the_training_forward_has_the_enumerated_law():
    """Chi-square as above; false-alarm rate 1e-4. The draft alone, one pass from gold, would fail."""

    class Rough(Chain):
        def forward(self, batch):
            return super().forward(batch.replace(history=batch.targets))

    class Certified:
        def transform(self, model, batch, step, key):
            outcome = fr.scheduled_sampling(RATIO, engine=fr.Draft(Rough())).run(model, batch, step, key)
            assert outcome.report["certified"] == "training forward"
            return outcome.fed

    assert chi_square(Chain(), Certified()) < LIMIT


APPROXIMATE = [fr.scheduled_sampling(RATIO, engine=1), fr.two_pass(RATIO, mix="sample")]


@pytest.mark.parametrize("method", APPROXIMATE, ids=lambda method: method.name)
def test_one_parallel_pass_fails_the_same_test_by_thousands(method):
    assert chi_square(Chain(), method) > 1000


@pytest.mark.parametrize("redraw", [True, False])
def test_parallel_passes_have_the_law_once_there_are_as_many_as_entries(redraw):
    """Chi-square as above; false-alarm rate 1e-4 a case. Fewer passes fail it."""
    assert chi_square(Chain(), fr.parallel(RATIO, passes=TIME, redraw=redraw)) < LIMIT
    assert chi_square(Chain(), fr.parallel(RATIO, passes=1, redraw=redraw)) > 1000


def test_one_gate_and_one_draw_are_one_draw_from_the_mixture():
    """``P = (1 - eps) P_model + eps P_data``, eps the weight of the data: the article's form, at one step.

    Chi-square, 2 degrees of freedom, for sampled feedback; greedy feedback gives the mixture with a point mass.
    False-alarm rate 1e-4 a case.
    """
    batch = fr.Batch(torch.tensor([[2]]).expand(ROWS, 1))
    data, point = (nn.functional.one_hot(symbol, VOCAB).double() for symbol in (torch.tensor(2), START.argmax()))
    for draw, model_law in (("sample", START.double()), ("greedy", point)):
        fed = fr.scheduled_sampling(RATIO, draw=draw).transform(SteppedChain(), batch, 0, 1).history
        mixture = (1 - RATIO) * model_law + RATIO * data
        observed, possible = torch.bincount(fed[:, 0], minlength=VOCAB), mixture > 0
        assert int(observed[~possible].sum()) == 0
        expected = mixture[possible] / mixture[possible].sum() * ROWS
        assert stats.chisquare(observed[possible].numpy(), expected.numpy()).pvalue > 1e-4


def test_both_directions_of_the_article_are_presets():
    down, up = fr.falling(1000), fr.rising(1000)
    values = [[float(m.teacher_forcing_ratio(s)) for s in (0, 500, 1000)] for m in (down, up)]
    assert values[0][0] > 0.97
    assert values[0][1] == pytest.approx(0.5, abs=0.01)
    assert values[0][2] < 0.1
    assert [1 - v for v in values[1]] == pytest.approx(values[0])


class Uniform(nn.Module):
    def forward(self, batch):
        return torch.zeros(batch.size, batch.time, 2)


def test_gates_are_not_a_stepwise_mixture_with_the_data_conditional():
    """Two symbols, data uniform on {00, 11}, model uniform: P(01) is (1 - eps^2) / 4, not (1 - eps) / 4.

    Binomial; false-alarm rate 1e-4.
    """
    batch = fr.Batch((torch.arange(ROWS) % 2)[:, None].expand(ROWS, 2))
    history = fr.scheduled_sampling(0.5).transform(Uniform(), batch, 0, 3).history
    mixed = int(((history[:, 0] == 0) & (history[:, 1] == 1)).sum())
    assert stats.binomtest(mixed, ROWS, (1 - 0.25) / 4).pvalue > 1e-4
    assert stats.binomtest(mixed, ROWS, (1 - 0.5) / 4).pvalue < 1e-12
