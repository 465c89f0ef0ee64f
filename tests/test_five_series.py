"""Default settings on five small series made by a rule: none loses to the best naive row by more than 5 %."""

import pytest

from five_series import FIVE, write_series
from freerun.recipes import load_recipe
from freerun.recipes.train import run_recipe
from tiny_recipes import toml, write


@pytest.mark.slow  # five trainings of some seconds
@pytest.mark.parametrize("name", FIVE)
def test_default_settings_do_not_lose_to_copying(name, tmp_path):
    path = write_series(tmp_path / "series.csv", name)
    recipe = toml(
        name="five",
        data={"kind": "series", "path": str(path), "time": "t", "missing": "mask", "period": 12},
        model={"kind": "recurrent_forecaster"},
        method={"name": "teacher_forcing"},
        train={"updates": 60, "evaluate_every": 30},
    )
    free = run_recipe(load_recipe(write(tmp_path, recipe)), tmp_path / "run", progress=False)["test"]["free_running"]
    naive = {row: value for row, value in free.items() if row.endswith("_nrmse")}
    assert set(naive) == {"last_value_nrmse", "last_period_nrmse", "mean_nrmse", "linear_nrmse"}
    assert free["nrmse"] < 1.05 * min(naive.values()), naive
