"""Losses of real values: absolute, Huber's, weights by channel; losses of PyTorch refused by name."""

import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import freerun as fr
from freerun.objectives import OBJECTIVES, resolve
from freerun.recipes.train import build
from test_config_series import tiny

V = 3


def batch(weights: bool = False) -> fr.Batch:
    g = torch.Generator().manual_seed(0)
    targets = torch.randn(4, 5, V, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 5, generator=g) < 0.7
    targets[~mask] = math.nan  # where nothing counts
    return fr.Batch(targets, mask=mask, weights=torch.rand(4, 5, generator=g).double() if weights else None)


def outputs(numbers: int = 1) -> torch.Tensor:
    return torch.randn(4, 5, numbers * V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def huber(e: float, delta: float) -> float:
    return e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2)


LAWS = {
    "mse": (1, {}, lambda e: e * e),
    "mae": (1, {}, abs),
    "huber": (1, {"delta": 0.4}, lambda e: huber(e, 0.4)),
    "pinball": (3, {}, None),
    "gaussian_nll": (2, {}, None),
    "student_t_nll": (3, {}, None),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", [name for name, cls in OBJECTIVES.items() if name != "cross_entropy"])
@pytest.mark.parametrize("channels", [None, (1.0, 0.25, 0.0)])
def test_a_loss_of_values_is_the_sum_over_positions_and_channels(name, channels, weighted):
    numbers, settings, law = LAWS[name]
    given, predicted = batch(weighted), outputs(numbers)
    if channels is not None:
        given.targets[0, given.mask[0].nonzero()[0], 2] = math.nan  # a channel that counts nothing
    total, count = OBJECTIVES[name](**settings, channel_weights=channels)(predicted, given)
    expected = counted = 0.0
    for row, t in given.mask.nonzero().tolist():
        at = 1.0 if given.weights is None else float(given.weights[row, t])
        for v in range(V):
            share = 1.0 if channels is None else channels[v]
            if not share:
                continue
            target, out = float(given.targets[row, t, v]), predicted[row, t, v::V]
            if law is not None:
                one = law(float(out[0]) - target)
            elif name == "pinball":
                one = sum(
                    max(q * (target - float(o)), (q - 1) * (target - float(o)))
                    for q, o in zip((0.1, 0.5, 0.9), out, strict=True)
                )
            elif name == "gaussian_nll":
                normal = torch.distributions.Normal(out[0], F.softplus(out[1]) + 1e-4)
                one = -float(normal.log_prob(torch.tensor(target, dtype=torch.float64)))
            else:
                t_law = torch.distributions.StudentT(2 + F.softplus(out[2]), out[0], F.softplus(out[1]) + 1e-4)
                one = -float(t_law.log_prob(torch.tensor(target, dtype=torch.float64)))
            expected += at * share * one
            counted += at * share
    assert float(total) == pytest.approx(expected, rel=1e-10)
    assert float(count) == pytest.approx(counted, rel=1e-10)


def test_equal_weights_of_channels_change_no_mean():
    plain, weighed = (OBJECTIVES["mae"](channel_weights=each)(outputs(), batch()) for each in (None, (2.0, 2.0, 2.0)))
    assert float(plain[0] / plain[1]) == pytest.approx(float(weighed[0] / weighed[1]), rel=1e-12)


@pytest.mark.parametrize(
    ("objective", "use"),
    [(nn.L1Loss(), "mae"), (nn.L1Loss, "mae"), (F.l1_loss, "mae"), (nn.MSELoss(), "mse"), (nn.SmoothL1Loss(), "huber"),
     (F.huber_loss, "huber"), (nn.CrossEntropyLoss(), "cross_entropy"), (nn.GaussianNLLLoss(), "gaussian_nll"),
     (nn.PoissonNLLLoss(), None), ("l1", "mae"), ("hubber", "huber")],
)  # fmt: skip
def test_a_loss_of_pytorch_is_refused_at_construction_by_what_to_write(objective, use):
    for make in (fr.teacher_forcing, fr.free_running):
        with pytest.raises(fr.UserError) as refused:
            make(objective=objective)
        assert (repr(use) if use else "PyTorch's own") in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({"channel_weights": (0.0, 0.0)}, "one above 0"), ({"channel_weights": (-1.0, 1.0)}, "at least 0"),
     ({"channel_weights": 1.0}, "channel_weights"), ({"channel_weights": ()}, "one above 0")],
)  # fmt: skip
def test_weights_that_are_none_are_refused(settings, problem):
    with pytest.raises(fr.UserError, match=problem):
        fr.objectives.mae(**settings)


def test_as_many_weights_as_channels():
    with pytest.raises(fr.UserError, match="channel_weights must be 3, one for each value of the targets; got 2"):
        fr.objectives.huber(channel_weights=(1.0, 2.0))(outputs(), batch())


def test_what_an_objective_is_called_and_kept_as():
    assert repr(fr.objectives.mse()) == "MeanSquaredError()"
    assert repr(fr.objectives.pinball()) == "Pinball(levels=(0.1, 0.5, 0.9))"
    own = fr.objectives.huber(delta=0.5, channel_weights=[1.0, 0.0])
    assert repr(own) == "Huber(channel_weights=(1.0, 0.0), delta=0.5)"
    assert pickle.loads(pickle.dumps(own)) == own
    assert resolve("huber", batch()) == fr.objectives.Huber()


@pytest.mark.parametrize(
    ("written", "expected"),
    [('"mae"', "mae"), ('"huber"', "huber"),
     ('{ objective = "huber", delta = 0.5 }', fr.objectives.Huber(delta=0.5)),
     ('{ objective = "mse", channel_weights = [1.0, 1, 0.5] }', fr.objectives.mse(channel_weights=(1.0, 1, 0.5)))],
)  # fmt: skip
def test_a_recipe_writes_its_loss(tmp_path, written, expected):
    assert build(tiny(tmp_path, f"method.objective={written}"))[2].objective == expected


@pytest.mark.parametrize(
    ("written", "problem"),
    [('{ objective = "huber", delta = 0 }', "delta must be above 0"),
     ('{ objective = "hubber" }', "did you mean huber"),
     ('{ objective = "pinball" }', "does not fit a model with head point"),
     ('{ objective = "mae", delta = 1.0 }', "`delta` has no effect with objective = mae"),
     ('"cross_entropy"', "is for symbols")],
)  # fmt: skip
def test_a_loss_that_does_not_fit_is_refused_in_a_recipe(tmp_path, written, problem):
    with pytest.raises(fr.UserError, match=problem):
        tiny(tmp_path, f"method.objective={written}")
