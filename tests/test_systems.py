"""Systems from equations: integrators of their order, published exponents measured, trajectories kept apart."""

import numpy as np
import pytest
import torch

from builders import refused
from freerun.data import SYSTEMS, SystemOptions, load_system
from freerun.data.systems import Lorenz63, Lorenz96, MackeyGlass, Thomas
from freerun.errors import UserError


def largest_exponent(system, trajectories, steps, distance=1e-8):
    """Largest Lyapunov exponent per unit of time, ``mean log(d_{t+1} / d_t) / dt`` (Benettin et al. 1980).

    Beside every trajectory runs a second one, put back to ``distance`` after each step; the first tenth of the steps,
    in which the direction between them settles, does not count.
    """
    state = system.settled(trajectories, 0)
    # any direction will do: all but a set of measure zero turn towards the fastest growing one
    offset = np.cos(np.arange(state.size, dtype=np.float64)).reshape(state.shape)
    offset *= distance / np.linalg.norm(offset, axis=-1, keepdims=True)
    growth = []
    for _ in range(steps):
        beside, state = system.step(state + offset), system.step(state)
        apart = np.linalg.norm(beside - state, axis=-1, keepdims=True)
        growth.append(np.log(apart / distance).mean())
        offset = (beside - state) * distance / apart
    return np.mean(growth[steps // 10 :]) / system.dt


def errors_by_dt(system_at, dts, length):
    """Error after ``length`` at each dt, against a run at a sixteenth of the smallest dt."""
    start = system_at(dts[0]).settled(1, 0)

    def after(dt):
        system, state = system_at(dt), start
        for _ in range(round(length / dt)):
            state = system.step(state)
        return state

    exact = after(dts[-1] / 16)
    return [np.abs(after(dt) - exact).max() for dt in dts]


@pytest.mark.parametrize(
    ("system_at", "dt", "length"),
    [
        (lambda dt: Lorenz63(dt=dt), 0.01, 0.2),
        (lambda dt: Thomas(dt=dt), 0.1, 2.0),
        (lambda dt: Lorenz96(dt=dt), 0.02, 0.2),
    ],
    ids=["lorenz63", "thomas", "lorenz96"],
)
def test_halving_the_step_makes_the_error_16_times_smaller(system_at, dt, length):
    start = type(system_at(dt))()  # on the attractor of the published step
    coarse, fine = errors_by_dt(lambda d: Fixed(system_at(d), start), [dt, dt / 2], length)
    assert 10 < coarse / fine < 26, (coarse, fine)


class Fixed:
    """A system whose beginning does not depend on its step."""

    def __init__(self, system, usual):
        self.system, self.usual, self.step = system, usual, system.step

    def settled(self, trajectories, seed):
        return self.usual.settled(trajectories, seed)


def test_euler_is_of_first_order():
    def after(dt):
        system = MackeyGlass(dt=dt)
        state = np.full((1, round(17 / dt) + 1), 0.5)
        for _ in range(round(40 / dt)):
            state = system.step(state)
        return state[0, -1]

    exact = after(1 / 256)
    ratio = abs(after(1 / 4) - exact) / abs(after(1 / 8) - exact)
    assert 1.7 < ratio < 2.3


def test_mackey_glass_is_the_equation_written_out():
    system = MackeyGlass()
    values = system.simulate(2, 60)[:, :, 0]
    for t in range(17, 59):
        late, now = values[:, t - 17], values[:, t]
        assert np.array_equal(values[:, t + 1], now + 1.0 * (0.2 * late / (1 + late**10) - 0.1 * now))


PUBLISHED = {"mackey_glass": 0.006, "thomas": 0.055, "lorenz63": 0.905, "lorenz96": 1.67}


def test_published_exponents_stand_with_the_published_parameters_only():
    assert {name: SYSTEMS[name]().exponent for name in PUBLISHED} == PUBLISHED
    assert (Lorenz63(rho=20.0).exponent, Lorenz63(dt=0.005).exponent) == (None, 0.905)


# Deterministic: no false alarms. Tolerances are those of finite runs, and of what the literature agrees on.
@pytest.mark.parametrize(
    ("system", "trajectories", "steps", "within"),
    [(Thomas(), 32, 4000, 0.10), (Lorenz63(), 32, 2500, 0.06), (Lorenz96(), 16, 1000, 0.06)],
    ids=lambda value: type(value).__name__ if hasattr(value, "dt") else None,
)
def test_measured_exponents_are_the_published_ones(system, trajectories, steps, within):
    assert largest_exponent(system, trajectories, steps) == pytest.approx(system.exponent, rel=within)


@pytest.mark.slow(reason="a long run: a small exponent and fine steps")
def test_the_measured_exponent_of_mackey_glass_is_the_published_one():
    system = MackeyGlass(dt=0.1)
    assert largest_exponent(system, 16, 40000) == pytest.approx(system.exponent, rel=0.10)


def test_mackey_glass_by_eulers_steps_of_1_grows_faster_than_the_equation():
    """What the docstring says: 0.0084 measured, 0.006 published."""
    assert largest_exponent(MackeyGlass(), 64, 8000) == pytest.approx(0.0084, rel=0.06)


def test_the_exponent_of_a_linear_system_is_its_largest_eigenvalue():
    class Linear:
        dt = 0.1

        def settled(self, trajectories, seed):
            return np.ones((trajectories, 2))

        def step(self, state):
            return state * np.exp(self.dt * np.array([0.3, -1.0]))

    assert largest_exponent(Linear(), 2, 300, distance=1e-3) == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_simulations_are_a_function_of_their_numbers(name):
    system = SYSTEMS[name]()
    values = system.simulate(3, 40, seed=5)
    assert values.shape == (3, 40, system.dimension) == (3, 40, len(system.channels))
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert values is system.simulate(3, 40, seed=5), "cached"
    assert not np.array_equal(values, system.simulate(3, 40, seed=6))
    assert np.abs(values[0] - values[1]).max() > 1e-3
    # fewer trajectories and steps are the beginning of more; sums over an FFT may round otherwise
    np.testing.assert_allclose(system.simulate(2, 20, seed=5), values[:2, :20], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0, 0] = 1.0


def test_parameters_are_checked_and_a_system_that_leaves_for_infinity_is_refused():
    refused("left for infinity", Lorenz63(dt=0.2).simulate, 4, 10)
    for make, wrong in ((Lorenz63, {"dt": 0.0}), (Lorenz96, {"size": 3}), (MackeyGlass, {"tau": 17.3})):
        refused("", make, **wrong)
    refused("", Lorenz63().simulate, 0, 5)


SMALL = SystemOptions(past=4, horizon=6, windows=(10, 3, 5), trajectories=6)


def test_windows_are_cut_from_whole_trajectories_of_one_split():
    data = load_system("thomas", SMALL)
    assert [data.windows(split) for split in ("train", "dev", "test")] == [10, 3, 5]
    owners = {}
    for split, parts in data.segments.items():
        for part in parts:
            owners.update(dict.fromkeys(range(part.begin, part.end), split))
    rows = {}
    for split, starts in data.starts.items():
        for start in starts.tolist():
            window = set(range(start, start + 10))
            assert {owners[row] for row in window} == {split}
            assert not window & rows.setdefault(split, set()), "no step in two windows"
            rows[split] |= window


def test_the_benchmark_of_mackey_glass():
    data = load_system("mackey_glass")
    assert [data.windows(split) for split in ("train", "dev", "test")] == [1024, 256, 512]
    batch = data.batch(list(range(1024)))
    assert batch.targets.shape == (1024, 100, 1)
    assert batch.context["past"].shape == (1024, 50, 1)
    assert data.exponent == pytest.approx(0.006)
    assert data.free("test").mean().abs() < 0.5
    assert any("e-fold in 167 steps" in line for line in data.header())
    raw = torch.cat([data.raw[part.begin : part.end] for part in data.segments["train"]])
    torch.testing.assert_close(data.scales[0], raw.mean(0))
    torch.testing.assert_close(data.scales[1], raw.std(0, correction=0))


def test_windows_hold_the_simulation():
    data = load_system("lorenz63", SMALL)
    start = int(data.starts["dev"][1])
    window = ((data.raw[start : start + 10] - data.scales[0]) / data.scales[1]).float()
    batch = data.window_batch("dev", [1])
    assert torch.equal(batch.context["past"][0], window[:4])
    assert torch.equal(batch.targets[0], window[4:])
    assert torch.equal(batch.history, batch.targets)
    torch.testing.assert_close(
        data.codec.denormalise(batch.targets[0].double()).float(), data.raw[start + 4 : start + 10].float()
    )


def test_noise_is_a_function_of_the_seed_and_of_the_requested_size():
    clean = load_system("lorenz63", SMALL)
    noisy = SystemOptions(past=4, horizon=6, windows=(400, 3, 5), trajectories=6, noise=0.1)
    data, again = load_system("lorenz63", noisy), load_system("lorenz63", noisy)
    assert torch.equal(data.raw, again.raw)
    assert data.fingerprint == again.fingerprint != clean.fingerprint
    from dataclasses import replace

    bare = load_system("lorenz63", replace(noisy, noise=0.0))
    # over 6,000 numbers the deviation is within 5 % but for one time in 10^7
    assert ((data.raw - bare.raw) / bare.scales[1]).std(0).tolist() == pytest.approx([0.1] * 3, rel=0.05)


def test_mistakes_are_reported_at_once():
    assert len(refused("", SystemOptions, past=0, horizon=0, windows=(1, 1), noise=-1.0, normalisation="max")) == 5
    refused("mackey_glass, thomas", load_system, "mackey")
    with pytest.raises(UserError, match="has no parameter 'rhoo'; it has: sigma, rho, beta, dt"):
        load_system("lorenz63", SystemOptions(parameters={"rhoo": 1.0}))
    refused("layout", load_system, "lorenz63", SMALL, layout="flat")
