"""What the runs of the map came to: scores and gains, ExAccErr, information; and how well one predicts the other."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import freerun as fr
from freerun.comparison import results
from freerun.comparison.verdict import task_report
from freerun.diagnostics.intervals import Interval, bootstrap, mean_interval
from freerun.diagnostics.tokens import excess_error
from freerun.metrics import divergence
from freerun.recipes import load_recipe
from freerun.recipes.load import load_run
from freerun.rollin.model import eval_mode
from map_runs import RECIPES, Point

WALKS = 512
"""Walks on which ExAccErr and information are measured: no run has seen them, none is a test walk."""
CONTROLS = ("teacher_forcing", "matched", "confusion", "no_history")
"""What scheduled sampling is compared with, in the order of the figure."""
COLUMNS = (
    "world", "entropy", "capacity", "ratio", "arm", "seed", "wrong", "gain", "gain_low", "gain_high",
    "ex_acc_err", "ex_acc_err_low", "ex_acc_err_high", "excess_wrong", "excess_wrong_low", "excess_wrong_high",
    "own_nats", "gold_nats", "gain_nats", "price_nats", "information", "information_estimate", "cost",
)  # fmt: skip
Row = dict[str, Any]


def oracle_errors(model: Any, world: Any, batch: fr.Batch, key: int) -> tuple[Tensor, Tensor]:
    """KL(world || model) at each position, (rows, time) each: on samples of the model, and on gold."""
    entries = fr.generate(model, batch, length=batch.time, draw="sample", key=key).entries
    own = batch.made(targets=entries, history=entries)
    with eval_mode(model), torch.no_grad():
        found = [divergence(world(each), model(each)) for each in (own, batch)]
    return found[0], found[1]


def measured(point: Point, out: Path) -> list[Row]:
    """A row for each ratio, arm and seed, and one for all seeds, of a finished point."""
    content = results.read(out / point.name)
    recipe = load_recipe(RECIPES / point.recipe, point.overrides)
    score = task_report(content["recipe"]).primary.score
    runs = {(run["label"], run["seed"]): run for run in content["runs"]}
    errors = {key: _errors(out / point.name / run["folder"], recipe.data, run["seed"]) for key, run in runs.items()}
    seeds = sorted({seed for _, seed in runs})
    information = _information(recipe.data)
    rows: list[Row] = []
    for ratio, arms in _families(recipe).items():
        lost = [_losses(runs, arms, seed) for seed in seeds]
        fixed: Row = {
            "world": point.world, "entropy": _entropy(recipe.data), "capacity": recipe.model.size,
            "ratio": ratio, "information": information, "information_estimate": sum(lost) / len(lost),
        }  # fmt: skip
        fixed["cost"] = (1 - ratio) * (fixed["information_estimate"] if information is None else information)
        for arm, label in arms.items():
            each = []
            for seed in seeds:
                pair = [runs[name, seed] for name in (label, arms["scheduled_sampling"])]
                wrong, forced = (pair[0][side][score] for side in ("free_running", "teacher_forced"))
                row: Row = {**fixed, "arm": arm, "seed": seed, "wrong": wrong}
                row |= errors[label, seed] | {"excess_wrong": 100 * (wrong / forced - 1)}
                if arm != "scheduled_sampling":
                    row["gain"] = wrong - pair[1]["free_running"][score]
                if arm != "scheduled_sampling" and "own_nats" in row:
                    own = errors[arms["scheduled_sampling"], seed]
                    row["gain_nats"] = row["own_nats"] - own["own_nats"]
                    row["price_nats"] = own["gold_nats"] - row["gold_nats"]
                each.append(row)
            rows += [*each, {**fixed, "arm": arm, "seed": "all", **_over_seeds(each)}]
    return rows


def _over_seeds(rows: Sequence[Row]) -> Row:
    """Means over seeds, with Student's intervals where a reader needs them; excesses are ratios: on logarithms."""
    found: Row = {}
    for name in ("wrong", "gain", "ex_acc_err", "excess_wrong", "own_nats", "gold_nats", "gain_nats", "price_nats"):
        if not all(name in row for row in rows):
            continue
        values = torch.tensor([row[name] for row in rows]).double()
        excess = name in ("ex_acc_err", "excess_wrong")
        mean = mean_interval((1 + values / 100).log() if excess else values)
        ends = {"": mean.value, "_low": mean.low, "_high": mean.high}
        for end, value in ends.items():
            if name + end in COLUMNS:
                found[name + end] = 100 * math.expm1(value) if excess and value is not None else value
    return found


def _families(recipe: Any) -> dict[float, dict[str, str]]:
    """Ratio at the end of the schedule -> role of an arm -> its label."""
    arms = recipe.compare.arms
    common = {arm.method.name: arm.label for arm in arms if arm.method.name in ("teacher_forcing", "no_history")}
    found: dict[float, dict[str, str]] = {}
    for arm in arms:
        if arm.method.name == "scheduled_sampling":
            ratio = arm.method.parameters["teacher_forcing_ratio"]["end"]
            own = {each.control: each.label for each in arms if each.reference == arm.label}
            found[ratio] = {"scheduled_sampling": arm.label, **common}
            found[ratio] |= {word: own[word] for word in ("matched", "confusion") if word in own}
    return found


def _losses(runs: Mapping[tuple[str, int], Any], arms: Mapping[str, str], seed: int) -> float:
    """What a model with gold history loses less than one without, in nats: an estimate of the information."""
    without, gold = (runs[arms[name], seed]["teacher_forced"]["loss"] for name in ("no_history", "teacher_forcing"))
    return without - gold


def _entropy(data: Any) -> float | None:
    """Mean of H(y_t | y_<t) in nats; None where the law is not known."""
    world = getattr(data, "world", None)
    return None if world is None else float(world.automaton.entropies(data.length).mean())


@cache
def _walks(data: Any) -> fr.Batch:
    return data.sample(WALKS, data.length, seed=fr.keys.fold(data.seed, "map"))


def _information(data: Any) -> float | None:
    """Mean of I(y_t; y_<t | x_<=t) in nats; None where the law is not known."""
    world = getattr(data, "world", None)
    return None if world is None else float(world.information(_walks(data).context["source"]).mean())


def _errors(folder: Path, data: Any, seed: int) -> Row:
    """ExAccErr of a run with its interval over walks, and divergences in nats; {} where the law is not known."""
    if not hasattr(data, "world"):
        return {}
    own, gold = oracle_errors(load_run(folder).model, data.world, _walks(data), seed)
    excess = excess_error(own, gold)[-1]
    found = {"ex_acc_err": excess.value, "ex_acc_err_low": excess.low, "ex_acc_err_high": excess.high}
    return found | {"own_nats": float(own.mean()), "gold_nats": float(gold.mean())}


def write(rows: Iterable[Row], path: Path) -> None:
    """The data file: a row for each ratio, arm and seed of a point, and one for all seeds."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({name: _short(row.get(name)) for name in COLUMNS})


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value


def read(path: Path) -> list[Row]:
    """The rows of a data file."""
    words = ("world", "arm", "seed")
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: text if name in words else float(text) if text else None for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def pairs(
    rows: Sequence[Row], predictor: str, arm: str, response: str = "gain", *, law: bool = True
) -> list[tuple[str, float, float]]:
    """(world, predictor, gain over an arm) of every point; predictors are those of teacher forcing.

    Args:
        law: True for points whose law is known, whose predictors are exact; False for all that have both numbers.
    """
    means = [row for row in rows if row["seed"] == "all"]
    forced = {_point(row): row for row in means if row["arm"] == "teacher_forcing"}
    found: list[tuple[str, float, float]] = []
    for row in means:
        base = forced[_point(row)]
        x, y = base[predictor], row[response]
        if row["arm"] == arm and x is not None and y is not None and not (law and base["ex_acc_err"] is None):
            found.append((row["world"], x, y))
    return found


def _point(row: Row) -> tuple[Any, ...]:
    return row["world"], row["capacity"], row["ratio"]


def rank_correlation(found: Sequence[tuple[str, float, float]], resamples: int = 2000) -> Interval:
    """Spearman's correlation, with an interval from resampled worlds: points of a world are not independent.

    >>> rank_correlation([("a", 1.0, 2.0), ("b", 2.0, 3.0), ("c", 3.0, 9.0)]).value
    1.0
    """
    worlds = list(dict.fromkeys(world for world, _, _ in found))
    number = torch.tensor([worlds.index(world) for world, _, _ in found], dtype=torch.int64)
    x, y = (torch.tensor([each[n] for each in found]).double() for n in (1, 2))

    def statistic(weights: Tensor) -> Tensor:
        times = weights[:, number].long()
        return torch.tensor([spearman(x.repeat_interleave(n), y.repeat_interleave(n)) for n in times]).double()

    return bootstrap(statistic, len(worlds), resamples=resamples)


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation; ties have their mean rank. NaN where one side is constant."""
    ranks = [_ranks(each) for each in (x, y)]
    a, b = (each - each.mean() for each in ranks)
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else math.nan


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2.0)[inverse].double()


PREDICTORS = {
    "ex_acc_err": "ExAccErr of teacher forcing", "cost": "(1 - ratio) I", "information": "I",
    "excess_wrong": "free-running over teacher-forced error",
}  # fmt: skip


RESPONSES = (
    ("gain", "{}, points of free-running error", CONTROLS),
    ("gain_nats", "{}, nats on own samples", CONTROLS),
    ("price_nats", "*price* against {}, nats on gold", CONTROLS[:1]),
)


def tables(rows: Sequence[Row]) -> str:
    """Rank correlations over all worlds and over automata alone; how often it is better; every point: as Markdown."""
    lines: list[str] = []
    automata = [row for row in rows if row["world"].startswith("automaton")]
    for name, chosen in (("all worlds with a known law", rows), ("automata alone", automata)):
        lines += [f"| {name}: gain over | " + " | ".join(PREDICTORS.values()) + " |", "| --- " * 5 + "|"]
        for response, title, arms in RESPONSES:
            for arm in arms:
                cells = [_cell(rank_correlation(pairs(chosen, each, arm, response)), 2) for each in PREDICTORS]
                lines.append(f"| {title.format(arm.replace('_', ' '))} | " + " | ".join(cells) + " |")
        lines.append("")
    means = [row for row in rows if row["seed"] == "all"]
    lines += [*(f"over {arm.replace('_', ' ')}: {_counts(means, arm)}" for arm in CONTROLS), ""]
    head = [
        "world",
        "units",
        "ExAccErr, %",
        "I, nats",
        "ratio",
        "wrong, %",
        *(f"over {arm.replace('_', ' ')}" for arm in CONTROLS),
    ]
    lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for own in (row for row in means if row["arm"] == "scheduled_sampling"):
        gains = {row["arm"]: row for row in means if _point(row) == _point(own)}
        exact = own["information"] is not None
        information = own["information" if exact else "information_estimate"]
        cells = [
            own["world"], f"{own['capacity']:g}", _cell(_interval(gains["teacher_forcing"], "ex_acc_err"), 0),
            f"{'' if exact else 'about '}{information:.2f}", f"{own['ratio']:g}", f"{own['wrong']:.1f}",
            *(_cell(_interval(gains[arm], "gain"), 1) for arm in CONTROLS),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _counts(means: Sequence[Row], arm: str) -> str:
    known = [row for row in means if row["arm"] == arm and row["gain_low"] is not None]
    better, worse = (
        sum(test(row) for row in known) for test in (lambda r: r["gain_low"] > 0, lambda r: r["gain_high"] < 0)
    )
    return f"better in {better} of {len(known)} points, worse in {worse}, not decided in {len(known) - better - worse}"


def _interval(row: Row, name: str) -> Interval:
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 0)


def _cell(found: Interval, decimals: int) -> str:
    if found.value is None:
        return ""
    ends = "" if found.low is None else f" [{found.low:.{decimals}f}, {found.high:.{decimals}f}]"
    return f"{found.value:.{decimals}f}{ends}".replace("-", "\N{MINUS SIGN}")
