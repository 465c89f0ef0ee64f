"""``freerun keys`` lists every key of a recipe, and ``freerun demo`` is a comparison that its folder goes on with."""

import pytest

from freerun.cli.entry import main
from freerun.recipes import load_recipe
from freerun.recipes.keys import key_rows, sections


@pytest.mark.parametrize("name", sections())
def test_every_key_has_a_meaning(name, capsys):
    cls, leave_out = sections()[name]
    assert main(["keys", name]) == 0
    printed = capsys.readouterr().out
    for key, value, default, meaning in key_rows(cls, leave_out):
        assert meaning, f"{name}.{key}"
        assert f"{key} ({value}; default {default})" in printed


def test_sections_are_listed_and_guessed(capsys):
    assert main(["keys"]) == 0
    assert "data.python" in capsys.readouterr().out
    assert main(["keys", "model"]) == 0
    assert "model.transformer" in capsys.readouterr().out
    assert main(["keys", "trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_the_demo_is_a_recipe_with_a_control():
    recipe = load_recipe("demo")
    assert [arm.label for arm in recipe.compare.arms] == ["teacher forcing", "scheduled sampling", "matched noise"]
    assert recipe.compare.arms[2].reference == "scheduled sampling"


@pytest.mark.slow  # half a minute of training
def test_the_demo_ends_in_a_verdict_and_a_page(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "scheduled sampling is better than teacher forcing" in printed
    assert (tmp_path / "demo" / "report.html").exists()
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
