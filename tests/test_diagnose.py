"""``freerun diagnose``: files, exit codes and page, for series and for ids; and what a report says of forecasts."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from freerun.cli import main
from freerun.report.charts import Axes, _cut, _ticks, _within
from freerun.report.comparison_figures import forecasts
from freerun.report.diagnosis import _times, write_diagnosis
from test_report import Page, check_browser, check_page
from tiny_recipes import TINY, ends, toml, write

SERIES = toml(
    name="tiny-series",
    seed=3,
    data={"kind": "system", "system": "lorenz63", "past": 8, "horizon": 12, "windows": [64, 8, 40], "trajectories": 3},
    model={"kind": "recurrent_forecaster", "size": 8, "head": "gaussian"},
    method={"name": "teacher_forcing"},
    train={"updates": 4, "batch_size": 32, "evaluate_every": 4, "save_every": 4},
)


def trained(folder: Path, text: str) -> Path:
    """A run and its diagnosis."""
    assert main(["train", str(write(folder, text)), "--out", str(folder / "run")]) == 0
    assert main(["diagnose", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("series"), SERIES)


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("ids"), TINY)


def load(folder: Path, name: str = "diagnosis.json") -> Any:
    return json.loads((folder / name).read_bytes())


def test_series_agree_with_the_run_s_own_test(series):
    """Two programs that measure the same: the diagnosis and the test at the end of training."""
    found, summary = load(series)["diagnosis"], load(series, "summary.json")["test"]
    free = summary["free_running"]
    assert found["free_running"]["nrmse"]["median"] == pytest.approx(free["nrmse"], rel=1e-5)
    assert found["free_running"]["nrmse_last_tenth"]["median"] == pytest.approx(free["nrmse_last_tenth"], rel=1e-5)
    assert found["teacher_forced"]["nrmse"]["median"] == pytest.approx(summary["teacher_forced"]["nrmse"], rel=1e-5)
    assert found["valid_time"]["median"] == free["valid_time"]
    for name in ("last_value", "mean", "linear"):
        assert found["naive"][name]["nrmse"]["median"] == pytest.approx(free[f"{name}_nrmse"], rel=1e-4)
    assert (found["windows"], found["horizon"]) == (40, 12)
    assert len(load(series, "test-curves.json")["free_running"]) == 12
    assert found["channels"] == ["x", "y", "z"]
    assert found["growth"]["exponent"] == pytest.approx(0.00905, rel=0.01)
    assert [level for level, _ in found["sample_windows"][0]["bands"]] == [0.05, 0.25, 0.75, 0.95]
    for window, fan in zip(load(series, "test-forecasts.json"), found["sample_windows"], strict=True):
        assert window["window"] == fan["window"]
        for part in ("past", "gold", "teacher_forced", "free_running"):
            for a, b in zip(window[part], fan[part], strict=True):
                assert a == pytest.approx(b, rel=1e-4, abs=1e-4)


def test_ids_have_both_ways(ids):
    found = load(ids)["diagnosis"]
    assert (found["kind"], found["rows"], load(ids)["data"]["item_noun"]) == ("ids", 20, "words")
    assert found["gap_by_position"][0] == 0  # nothing has been predicted yet
    for side in ("teacher_forced", "free_running"):
        assert 0 <= found[side]["wrong"] <= 1
        assert len(found[side]["wrong_by_position"]) == found["positions"]
    assert sum(found["first_error"]) <= 20
    summary, tokens = load(ids, "summary.json")["test"], found["tokens"]
    # two programs that measure the same: edit distance of the greedy free run, and choices on gold
    assert 100 * tokens["greedy"]["aligned"]["edit_error"]["value"] == pytest.approx(summary["free_running"]["per"])
    assert 100 * tokens["edit_error"]["value"] == pytest.approx(summary["teacher_forced"]["per"])
    assert tokens["loss"]["value"] == pytest.approx(summary["teacher_forced"]["loss"], rel=1e-5)
    assert len(found["examples"]) == 20


@pytest.mark.parametrize("kind", ["series", "ids"])
def test_pages_are_complete_small_and_load_nothing(kind, request):
    html = (request.getfixturevalue(kind) / "diagnosis.html").read_text(encoding="utf-8")
    assert check_page(html) > 2
    assert "nan" not in re.findall(r'd="([^"]*)"', html[html.index("<body") :]).__str__().lower()
    assert "None" not in " ".join(Page(html).words)


def test_an_earlier_diagnosis_is_not_overwritten(series, tmp_path, capsys):
    before, new = (series / "diagnosis.html").read_bytes(), tmp_path / "new"
    assert "holds a diagnosis (diagnosis.json, diagnosis.html)" in ends(capsys, 3, "diagnose", series).err
    assert (series / "diagnosis.html").read_bytes() == before
    lines = ends(capsys, 0, "diagnose", series, "--out", new, "--windows", "5").out.splitlines()
    assert lines[0].startswith("NRMSE in standard deviations: teacher-forced ")
    assert lines[-1] == str(new / "diagnosis.html")
    first = (new / "diagnosis.json").read_bytes()
    assert load(new)["diagnosis"]["windows"] == 5
    ends(capsys, 0, "diagnose", series, "--out", new, "--windows", "5", "--overwrite")
    assert (new / "diagnosis.json").read_bytes() == first


def test_a_ratio_is_one_that_a_person_would_write():
    assert [_times(2.0, own) for own in (2.0, 2.06, 5.0, 1.0, None)] == [
        ", about as much", ", about as much", ", 2.5 times as much", ", 0.5 times as much", "",
    ]  # fmt: skip


def test_overwriting_a_run_removes_its_diagnosis(tmp_path, capsys):
    run = trained(tmp_path, TINY)
    ends(capsys, 0, "train", tmp_path / "tiny.toml", "--out", run, "--overwrite")
    assert not (run / "diagnosis.json").exists()
    assert not (run / "diagnosis.html").exists()


def test_what_cannot_be_diagnosed_is_refused(tmp_path, series, capsys):
    assert "there is no such folder" in ends(capsys, 4, "diagnose", tmp_path / "nowhere").err
    few = ends(capsys, 2, "diagnose", series, "--out", tmp_path / "w", "--windows", "0").err
    assert "--max-rows (--windows) must be at least 1; got 0" in few
    (tmp_path / "file").write_text("x")
    ends(capsys, 3, "diagnose", series, "--out", tmp_path / "file")


TEXT = toml(
    data={"kind": "text", "path": "text.txt", "length": 16},
    model={"kind": "transformer_lm", "size": 8, "layers": 1, "heads": 1},
    method={"name": "teacher_forcing"},
    train={"updates": 2, "batch_size": 4, "evaluate_every": 2, "save_every": 2},
    evaluate={"block": 16},
)


def test_a_run_on_a_text_is_diagnosed_without_gold_for_its_free_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join("abcdefg "[n * n % 31 % 8] for n in range(8000)))
    run = trained(tmp_path, TEXT)
    out, found = capsys.readouterr().out, load(run)["diagnosis"]
    assert "Free runs of a text have no gold to be compared with." in out
    assert (found["free_running"], found["gap"], found["first_error"]) == (None, None, [])
    loss = load(run, "summary.json")["test"]["teacher_forced"]["loss"]
    tokens = found["tokens"]
    assert tokens["loss"]["value"] == pytest.approx(loss, rel=0.02)  # other windows of the same text
    assert tokens["loss"]["low"] < tokens["loss"]["value"] < tokens["loss"]["high"]
    assert [each["kind"] for each in tokens["corruption"]] == ["random", "own", "confusion"]
    assert tokens["eb_m"]["value"] > 0
    example = found["examples"][0]
    assert len(example["source"]) == 8
    assert "".join(example["source"]) + "".join(example["gold"]) == (tmp_path / "text.txt").read_text()[-400:][:17]
    assert check_page((run / "diagnosis.html").read_text(encoding="utf-8")) > 1


def test_several_runs_stand_side_by_side(ids, series, tmp_path, capsys):
    other = tmp_path / "run"  # of the same name
    shutil.copytree(ids, other)
    lines = ends(capsys, 2, "diagnose", ids, other).err
    assert "2 models make one page" in lines
    out = ends(capsys, 0, "diagnose", ids, other, "--out", tmp_path / "both").out
    found, page = load(tmp_path / "both"), (tmp_path / "both" / "diagnosis.html").read_text(encoding="utf-8")
    one = load(ids)["diagnosis"]
    assert [each["diagnosis"] for each in found["runs"]] == [one, one]
    assert [each["run"]["name"] for each in found["runs"]] == [str(ids), str(other)]
    share = f"{100 * one['tokens']['greedy']['aligned']['edit_error']['value']:.3g} %"
    assert any(line.count(share) == 2 for line in out.splitlines() if "edit errors: greedy" in line)
    assert check_page(page) > 4
    assert "Side by side" in " ".join(Page(page).words)
    ends(capsys, 3, "diagnose", ids, other, "--out", tmp_path / "both")
    assert "no measure in common" in ends(capsys, 2, "diagnose", ids, series, "--out", tmp_path / "mixed").err
    ends(capsys, 0, "diagnose", series, series, "--out", tmp_path / "values", "--windows", "6")
    assert len(load(tmp_path / "values")["runs"]) == 2


def test_an_oracle_is_a_run_on_the_same_symbols(ids, series, tmp_path, capsys):
    ends(capsys, 0, "diagnose", ids, "--oracle", ids, "--out", tmp_path / "itself")
    oracle = load(tmp_path / "itself")["diagnosis"]["tokens"]["oracle"]
    assert [each["value"] for each in oracle["ex_acc_err"]] == [0.0] * len(oracle["gold"])
    refusal = ends(capsys, 2, "diagnose", series, "--oracle", ids, "--out", tmp_path / "no").err
    assert "values have no oracle" in refusal


def broken(found: dict[str, Any]) -> dict[str, Any]:
    """The same diagnosis, had every second free run escaped, and the long one."""
    d, fan = found["diagnosis"], found["diagnosis"]["sample_windows"][0]
    free, horizon = d["free_running"], d["horizon"]
    for name in ("median", "high", "rmse"):
        free[name] = [*free[name][: horizon // 2], *[None] * (horizon - horizon // 2)]
    free |= {"nrmse": {"low": 0.5, "median": None, "high": None}, "left": [20] * horizon}
    gaps = zip(free["median"], d["gap_by_horizon"], strict=True)
    d["gap_by_horizon"] = [None if median is None else gap for median, gap in gaps]
    d["growth"] = {"rate": None, "exponent": None, "fitted": 0, "ratio": None}
    d["diverged"] = [[n, 7] for n in range(0, 40, 2)]
    d["climate"] = d["climate"] and {**d["climate"], "diverged_at": 31}
    fan |= {"free_running": [*fan["free_running"][:6], *[[None] * 3] * (horizon - 6)], "diverged_at": 7}
    return found


def test_a_page_of_runs_that_escape_names_them(series, tmp_path):
    page = write_diagnosis(broken(load(series)), tmp_path / "page.html").read_text(encoding="utf-8")
    words = " ".join(Page(page).words)
    assert "20 of 40 free runs escape to infinity, the first at lead time 7" in words
    assert "The free run escapes at lead time 7." in words
    assert "infinite" in words
    assert "Diverged free runs" in words


def test_lines_are_cut_at_the_edges_of_a_figure():
    axes = Axes("x", "y", y_domain=(0.0, 1.0))
    assert _cut([(0, 0.5), (1, 2.5), (2, 0.5)], axes) == [(0, 0.5), (0.25, 1.0), (1, None), (1.75, 1.0), (2, 0.5)]
    assert _cut([(0, 0.5), (1, float("nan")), (2, 0.5)], axes) == [(0, 0.5), (1, None), (2, 0.5)]
    assert _cut([(0, 5.0), (1, 6.0)], axes) == []
    assert _within([(0, -1.0, 0.5), (1, 0.2, float("inf")), (2, float("nan"), 1.0)], axes) == [(0, 0, 0.5), (1, 0.2, 1)]
    assert _ticks((0.9, 120.0)) == [1, 3, 10, 30, 100]


def compared(out: Path, escape: bool = False) -> dict[str, Any]:
    """Two arms, two seeds, three windows of two channels; made-up numbers."""
    runs, gold = [], [[float(t % 5), 1.0] for t in range(20)]
    for number, label in enumerate(("teacher_forcing", "<b>ss")):
        for seed in (0, 1):
            folder = out / f"run-{number}-{seed}"
            folder.mkdir()
            curve: list[Any] = [0.01 * (1 + number) * 1.1**t for t in range(20)]
            if escape and number == 0:
                curve[9:] = [None] * 11
            naive = {"last_value": [0.1 * (t + 1) ** 0.5 for t in range(20)], "mean": [1.0] * 20}
            curves = {"teacher_forced": [0.01] * 20, "free_running": curve, **naive}
            (folder / "test-curves.json").write_text(json.dumps(curves))
            window = {"channels": ["a", "b<"], "past": gold[:10]}
            window |= dict.fromkeys(("gold", "teacher_forced", "free_running"), gold)
            windows = [{**window, "window": n, "diverged_at": 9 if escape and n == 0 else None} for n in (0, 5, 9)]
            (folder / "test-forecasts.json").write_text(json.dumps(windows))
            runs.append({"label": label, "seed": seed, "folder": folder.name})
    return {"runs": runs, "recipe": {"data": {"kind": "system"}}}


def test_forecasts_of_a_report(tmp_path):
    results = compared(tmp_path)
    html = forecasts(results, tmp_path)
    page = Page(html)
    assert sum(tag == "figure" for tag, _ in page.tags) == 2 + 3
    for part in ("Free-running error", "Teacher-forced error", "last value", "Window 5", "gold, b<", "<b>ss"):
        assert part in page.words or part in " ".join(page.words)
    assert "<b>" not in html.replace("<b>&", "")
    labels = [attrs["aria-label"] for tag, attrs in page.tags if attrs.get("class") == "drawing"]
    # 0.01 * 1.1^19 and twice that
    assert "teacher_forcing 0.06116, <b>ss 0.1223" in str(labels[0])
    (tmp_path / "run-1-1" / "test-curves.json").unlink()
    assert forecasts(results, tmp_path) == ""


def test_forecasts_that_escape_have_no_mean(tmp_path):
    words = " ".join(Page(forecasts(compared(tmp_path, escape=True), tmp_path)).words)
    assert "No mean where a window has escaped to infinity: teacher_forcing." in words
    assert "teacher_forcing escapes at lead time 9" in words


@pytest.mark.slow(reason="opens the page in headless Chromium, which must be installed (Debian's package chromium)")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 400)])
def test_a_real_browser_displays_it(series, tmp_path, scheme, width):
    assert check_browser((series / "diagnosis.html").read_text(encoding="utf-8"), tmp_path, scheme, width) >= 9
