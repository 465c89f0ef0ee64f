"""What is told of a comparison of forecasters."""

from __future__ import annotations

from freerun.training.reported import Measure, OverItems, Reported

__all__ = ["SERIES"]

_OF_STD = "of a standard deviation"

SERIES = Reported(
    examples="training windows",
    items="test windows",
    others="windows",
    measures=(
        Measure(
            "free_running.nrmse", "free-running NRMSE", "NRMSE", "NRMSE on dev", 4, _OF_STD, "",
            items=OverItems("nrmse", median=True),
        ),
        Measure("free_running.nrmse_last_tenth", "free-running NRMSE of the last tenth", "NRMSE, last tenth",
                "NRMSE on dev", 4, _OF_STD, ""),
        Measure("free_running.mse", "free-running mean squared error", "MSE", "squared error on dev", 4, "", "",
                items=OverItems("squared", "length", 1.0)),
        Measure("free_running.mae", "free-running mean absolute error", "MAE", "absolute error on dev", 4, "", "",
                items=OverItems("absolute", "length", 1.0)),
        Measure(
            "free_running.valid_time", "valid time", "valid time", "steps on dev", 1, "steps", " steps",
        ),
        Measure("free_running.diverged", "share of diverged windows", "diverged %", "diverged on dev, %", 1,
                most=100.0),
        Measure(
            "teacher_forced.nrmse", "teacher-forced one-step NRMSE", "one-step NRMSE", "NRMSE on dev", 4, _OF_STD, "",
            items=OverItems("one_step_nrmse", median=True),
        ),
    ),
    compared=("free_running.nrmse", "free_running.mse", "free_running.mae", "teacher_forced.nrmse"),
    columns=(
        "free_running.nrmse", "free_running.mse", "free_running.mae", "free_running.valid_time",
        "free_running.diverged", "teacher_forced.nrmse",
    ),
    curves=("free_running.nrmse", "teacher_forced.nrmse", "free_running.mse", "free_running.diverged"),
    differences=("free_running.nrmse", "teacher_forced.nrmse"),
    notes=(
        "Free-running: the model goes on from its own forecasts over the whole horizon, as in use. Teacher-forced: it "
        "is told the true value before each step. All errors are in standard deviations of the training part. NRMSE: "
        "the root mean squared error of a window over its horizon, median over windows; of the mean of the training "
        "part it is about 1. MSE and MAE: means over windows. Valid time: steps until the error first passes "
        "the threshold of the recipe, median over windows.",
        "A free run that leaves the finite numbers counts as infinite in every median, and leaves no mean: MSE and MAE "
        "are not given then, nor NRMSE where half of the windows diverged.",
    ),
    baselines=(
        ("last value", "last_value_"), ("last period", "last_period_"), ("mean", "mean_"),
        ("linear regression", "linear_"),
    ),
)  # fmt: skip
