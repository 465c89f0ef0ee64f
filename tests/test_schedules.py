import math
import pickle
from collections import Counter
from decimal import Decimal, getcontext
from itertools import pairwise

import pytest
from scipy import stats

from builders import refused
from freerun import schedules as s
from freerun.types import Step

EXAMPLES = [
    s.constant(0.5),
    s.linear(start=1.0, end=0.5, steps=100),
    s.linear(start=0.0, end=1.0, steps=100),
    s.exponential(k=0.99),
    s.inverse_sigmoid(k=10, floor=0.1),
    s.cosine(steps=100, start=0.9, end=0.2),
    s.piecewise(steps=(0, 100), values=(1.0, 0.5)),
    s.piecewise(steps=(5, 10, 20), values=(1.0, 3.0, 2.0), interpolate="constant"),
    s.join(schedules=(s.constant(1.0), s.linear(steps=50)), boundaries=(10,)),
    s.table(values=(0.3, 0.9, 0.1)),
]

LAWS = {  # what is drawn at step 5, with its probability
    s.uniform(2, 5): {2: 0.25, 3: 0.25, 4: 0.25, 5: 0.25},
    s.uniform(s.constant(1.7), s.linear(start=1.0, end=3.0, steps=5)): {1: 1 / 3, 2: 1 / 3, 3: 1 / 3},
    s.choice(values=(8, 1, 3)): {8: 1 / 3, 1: 1 / 3, 3: 1 / 3},
    s.choice(values=(1, 4, 9), weights=(s.linear(steps=10), 0, 1.5)): {1: 0.25, 9: 0.75},
    s.choice(values=(1, 2), floor=1.5): {1.5: 0.5, 2: 0.5},
    s.join(schedules=(s.constant(1.0), s.uniform(7, 8)), boundaries=(3,)): {7: 0.5, 8: 0.5},
}


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_what_is_drawn_follows_the_law(law):
    """Chi-square of 2,000 keys; false-alarm rate 1e-5 each."""
    drawn, expected = Counter(law(5, key=key) for key in range(2000)), LAWS[law]
    assert set(drawn) == set(expected)
    assert stats.chisquare([drawn[v] for v in expected], [2000 * p for p in expected.values()]).pvalue > 1e-5
    mean = sum(value * p for value, p in expected.items())
    assert law.floor or law(5) == pytest.approx(mean, rel=1e-12)
    assert law(5, key=11) == pickle.loads(pickle.dumps(law))(5, key=11)
    low, _, high, _ = s.extremes(law, 9)
    assert low <= min(drawn) <= max(drawn) <= high
    assert law.draws
    assert s.moves(law, 9)
    assert not s.linear(steps=3).draws


@pytest.mark.parametrize(("build", "message"), [
    (lambda: s.uniform(3, 2), "high must be at least low = 3; got 2"),
    (lambda: s.uniform(1, s.uniform(1, 2)), "high draws itself"),
    (lambda: s.uniform(1, s.linear(steps=2, unit="epoch")), "high counts epochs, and uniform steps"),
    (lambda: s.uniform(1, "many"), "high must be a number or a schedule; got 'many'"),
    (lambda: s.choice(values=()), "values must be one or more numbers"),
    (lambda: s.choice(values=(1, 2), weights=(1,)), "equally many; got 2 and 1"),
    (lambda: s.choice(values=(1, 2), weights=(0, 0)), "weights must be 0 or more, and not all 0"),
    (lambda: s.choice(values=(1, 2), weights=(-1, 2)), "weights must be 0 or more, and not all 0"),
    (lambda: s.choice(values=(1, 2), weights=0.5), "weights must be a number or a schedule for each value"),
    (lambda: s.extremes(s.uniform(2, s.linear(start=3, end=0, steps=9)), 9), "nothing to draw at step"),
    (lambda: s.extremes(s.choice(values=(1,), weights=(s.linear(steps=4),)), 9), "at step 4: 0 or more, and not all 0"),
])  # fmt: skip
def test_a_law_that_cannot_be_is_refused(build, message):
    refused(message, build)


def test_every_schedule_is_listed_under_its_name():
    names = "choice constant cosine exponential inverse_sigmoid join linear piecewise plateau table uniform"
    assert " ".join(sorted(s.SCHEDULES)) == names
    for name, kind in s.SCHEDULES.items():
        assert kind.name == name
        assert getattr(s, name) is kind
        assert kind.formula
        assert kind.summary
    assert {type(example) for example in [*EXAMPLES, *LAWS, s.plateau(change=0.1)]} == set(s.SCHEDULES.values())


@pytest.mark.parametrize("k", [1, 10, 100, 1000, 3000])
def test_inverse_sigmoid_begins_at_k_over_k_plus_one_and_halves_at_k_ln_k(k):
    schedule = s.inverse_sigmoid(k=k)
    assert schedule(0) == pytest.approx(k / (k + 1), rel=1e-14)
    assert schedule.at(k * math.log(k)) == pytest.approx(0.5, rel=1e-12)
    assert schedule(math.ceil(k * math.log(99 * k))) <= 0.01
    assert schedule(math.floor(k * math.log(99 * k))) >= 0.0099


@pytest.mark.parametrize(("k", "half"), [(10, 23.0), (100, 460.5), (1000, 6907.8), (3000, 24019)])
def test_published_half_way_points(k, half):
    assert s.inverse_sigmoid(k=k).at(half) == pytest.approx(0.5, abs=3e-3)
    assert s.exponential(k=0.999).at(math.log(2) / -math.log(0.999)) == pytest.approx(0.5, rel=1e-12)
    assert s.exponential(k=0.5)(10**9) == 0.0


@pytest.mark.parametrize("step", [0, 1, 50, 709, 10_000])
def test_inverse_sigmoid_against_the_printed_formula_in_high_precision(step):
    getcontext().prec = 50
    k = Decimal(10)
    exact = k / (k + (Decimal(step) / k).exp())
    assert s.inverse_sigmoid(k=10)(step) == pytest.approx(float(exact), rel=1e-12, abs=1e-300)


def test_bengio_linear_with_offset_slope_and_minimum():
    k, c, eps_min = 0.9, 0.003, 0.2
    ours = s.linear(start=k, end=0.0, steps=k / c, floor=eps_min)
    for step in range(0, 500, 7):
        assert ours(step) == pytest.approx(max(eps_min, k - c * step), abs=1e-12)


def test_flipped_is_one_minus_falling():
    for kind, own in ((s.linear, {"steps": 40}), (s.inverse_sigmoid, {"k": 7}), (s.exponential, {"k": 0.9})):
        falling, rising = kind(**own), kind(**own, start=0.0, end=1.0)
        for step in range(100):
            assert rising(step) == pytest.approx(1 - falling(step), abs=1e-15)


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential", "inverse_sigmoid"])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.05), (0.05, 1.0), (0.7, 0.1), (0.3, 0.3)])
def test_shapes_are_monotone_and_stay_between_start_and_end(kind, start, end):
    own = {"exponential": {"k": 0.97}, "inverse_sigmoid": {"k": 20}}.get(kind, {"steps": 300})
    schedule = s.SCHEDULES[kind](start=start, end=end, **own)
    values = [schedule(step) for step in range(1000)]
    signed = values if start >= end else [-value for value in values]
    assert all(a >= b for a, b in pairwise(signed))
    assert min(start, end) <= min(values)
    assert max(values) <= max(start, end)
    assert kind == "inverse_sigmoid" or values[0] == start
    assert kind == "exponential" or values[-1] == pytest.approx(end, abs=1e-12)


def test_floor_lifts_and_cosine_is_half_way_in_the_middle():
    assert [s.exponential(k=0.5, floor=0.2)(i) for i in (0, 1, 2, 3, 9)] == [1.0, 0.5, 0.25, 0.2, 0.2]
    assert s.constant(0.1, floor=0.3)(0) == 0.3
    assert s.cosine(steps=100)(50) == pytest.approx(0.5)


def test_join_asks_each_from_its_own_beginning():
    joined = s.join(schedules=[s.constant(1.0), s.linear(steps=10), s.constant(0.25)], boundaries=[100, 105])
    assert [joined(i) for i in (0, 99, 100, 102, 104, 105, 10**9)] == [1, 1, 1, 0.8, 0.6, 0.25, 0.25]


def test_piecewise_and_table():
    stairs = s.piecewise(steps=(5, 10, 20), values=(1, 3, 2), interpolate="constant")
    assert [stairs(i) for i in (0, 5, 9, 10, 19, 20, 99)] == [1, 1, 1, 3, 3, 2, 2]
    lines = s.piecewise(steps=(10, 20), values=(1.0, 2.0))
    assert [lines(i) for i in (0, 10, 15, 20, 30)] == [1.0, 1.0, 1.5, 2.0, 2.0]
    assert [s.table(values=[0.3, 0.9])(i) for i in (0, 1, 2)] == [0.3, 0.9, 0.9]


def test_units_come_from_the_step():
    step = Step(3, sample=50, epoch=0.5)
    assert s.linear(steps=100, unit="sample")(step) == 0.5
    assert s.linear(steps=1, unit="epoch")(step) == 0.5
    assert s.linear(steps=12)(step) == 0.75
    refused(r"counts epochs.*Step\(3, epoch=\.\.\.\)", lambda: s.linear(steps=1, unit="epoch")(3))
    refused("begins at step 0; got -1", lambda: s.linear(steps=1)(-1))


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_pickles_compares_and_prints_what_builds_it(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    if not isinstance(schedule, s.Table):
        assert eval(repr(schedule), vars(s)) == schedule


def test_repr_is_a_signature():
    assert repr(s.linear(start=1, end=0.5, steps=100.0)) == "linear(start=1.0, end=0.5, steps=100)"
    assert repr(s.exponential(0.99, unit="epoch")) == "exponential(start=1.0, end=0.0, k=0.99, unit='epoch')"
    assert repr(s.constant(1)) == "constant(value=1.0)"
    assert repr(s.table(values=(0.5,))) != repr(s.table(values=(0.25,)))
    assert repr(s.table(values=(0.5,) * 2000)).startswith("table(n=2000, sha=")
    assert repr(EXAMPLES[6]) == "piecewise(steps=(0, 100), values=(1.0, 0.5))"
    assert s.linear(steps=10) != s.cosine(steps=10)


PIECES, EPOCHS = {"steps": (3, 3), "values": (1, math.inf, 2), "interpolate": "cubic"}, s.linear(steps=1, unit="epoch")
BAD = [
    (lambda: s.linear(steps="x", start=math.nan, unit="day"),
     ["steps must be a number above 0", "start must be a finite number; got nan", "sample, epoch; got 'day'"]),
    (lambda: s.constant(True), ["value must be a finite number; got True"]),
    (lambda: s.piecewise(**PIECES), ["steps must rise", "[1] = inf", "equally many; got 2 and 3", "got 'cubic'"]),
    (lambda: s.table(values=()), ["values must be one or more"]),
    (lambda: s.join(schedules=(s.constant(1), EPOCHS), boundaries=()),
     ["schedules[1] counts epochs", "2 schedules need 1 boundaries; got 0"]),
    (lambda: s.join(schedules=(s.constant(1),), boundaries=(0,)), ["two or more", "above 0"]),
]  # fmt: skip


@pytest.mark.parametrize(("build", "parts"), BAD)
def test_bad_arguments_are_named_all_at_once(build, parts):
    refused(parts, build)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 57, 300])
def test_extremes_equal_a_sweep(schedule, steps):
    values = [schedule(step) for step in range(steps)]
    low, low_at, high, high_at = s.extremes(schedule, steps)
    assert (low, high) == (min(values), max(values))
    assert (values[low_at], values[high_at]) == (low, high)
    assert s.moves(schedule, steps) == (len(set(values)) > 1)
    assert (s.value_at(schedule, 5), s.value_at(0.5, 7)) == (schedule(5), 0.5)
    assert math.isfinite(schedule(10**9))


def test_extremes_of_a_long_run_find_a_spike_between_grid_points():
    values = [0.5] * 100_000
    values[77_777] = 1.5
    assert s.extremes(s.table(values=values), 100_000) == (0.5, 0, 1.5, 77_777)
    assert s.extremes(s.table(values=values), 77_777) == (0.5, 0, 0.5, 0)
    spike = s.piecewise(steps=(0, 70_001, 70_002, 70_003), values=(0.0, 0.0, 2.0, 0.0))
    assert s.extremes(spike, 10**6)[2:] == (2.0, 70_002)


def test_extremes_of_other_units_and_plain_things():
    epochs = s.linear(steps=10, unit="epoch")
    assert s.extremes(epochs, Step(1000, epoch=5.0)) == (0.5, 5, 1.0, 0)
    assert s.extremes(epochs, 1000)[0] == 0.0
    low, at, high, _ = s.extremes(s.exponential(k=0.5, unit="sample"), 1000)
    assert (low, at, high) == (0.0, math.inf, 1.0)
    assert s.extremes(0.25, 10) == (0.25, 0, 0.25, 0)
    assert s.extremes(lambda step: -step, 11) == (-10, 10, 0, 0)
    refused("at least one step", s.extremes, 0.5, 0)
