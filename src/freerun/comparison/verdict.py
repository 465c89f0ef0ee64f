"""The outcome of a comparison, as one sentence that claims no more than was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from freerun.metrics.table import PAIRS, Metric, TaskReport
from freerun.tasks import DATA_KINDS, task_of

if TYPE_CHECKING:
    from rich.table import Table


def task_report(recipe: Mapping[str, Any]) -> TaskReport:
    """Which scores a recipe's runs are compared in; those of pairs where its data have no kind.

    >>> task_report({"data": {"kind": "toy"}}).primary.name, task_report({"data": {"kind": "text"}}).primary.name
    ('free_running.per', 'free_running.trigram_divergence')
    """
    data = recipe.get("data")
    kind = data.get("kind") if isinstance(data, Mapping) else None
    return task_of(data).report if kind in DATA_KINDS else PAIRS


def columns(results: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Metric, heading and decimals of each column."""
    reported = task_report(results["recipe"])
    return [*((each.name, each.heading, each.decimals) for each in reported.columns), ("seconds", "seconds", 0)]


def cell(entry: Mapping[str, Any] | None, decimals: int, *, interval: bool = True) -> str:
    """Return a mean with its interval, as text.

    >>> cell({"mean": 25.123, "low": 24.0, "high": 26.0}, 1), cell(None, 1)
    ('25.1 [24.0, 26.0]', '–')
    """
    if entry is None:
        return "\N{EN DASH}"
    mean = f"{entry['mean']:,.{decimals}f}"
    if not interval or entry["low"] is None:
        return mean
    return f"{mean} [{entry['low']:,.{decimals}f}, {entry['high']:,.{decimals}f}]"


def cells(results: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """arm -> metric -> its line of the summary, arms in order."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in results["summary"]:
        found.setdefault(entry["arm"], {})[entry["metric"]] = entry
    return found


def references(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows without an arm, where there are any: held-out data's own scores, naive forecasts; name and texts."""
    reported = task_report(results["recipe"])
    first = next(iter(cells(results).values()))
    found: list[tuple[str, list[str]]] = []
    for name, prefix in reported.beside:
        texts: list[str] = []
        for metric, _, decimals in columns(results):
            side, _, score = metric.partition(".")
            texts.append(cell(first.get(f"{side}.{prefix}{score}"), decimals, interval=False))
        if set(texts) != {cell(None, 0)}:
            found.append((name, texts))
    return found


def table(results: Mapping[str, Any], width: int | None = None) -> Table:
    """Arms by the scores of their task and seconds, with 95 % intervals, for rich."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    reported = task_report(results["recipe"])
    items = f", {results['test_items']:,} {reported.test_noun}" if results["test_items"] else ""
    side = "free-running " if reported.primary.side == "free_running" else ""
    gaps = (each.title.rpartition(" ")[2] for each in reported.columns if each.side == "gap")
    gap = "".join(f"; free-running gap: free-running minus teacher-forced {name}" for name in gaps)
    frame: dict[str, Any] = {
        "title": f"{side}test scores, mean of {_seeds_text(results)}{items}",
        "caption": f"\\[low, high]: {interval_name(results)}{gap}",
        "title_justify": "left",
        "caption_justify": "left",
    }
    scores, others = columns(results), references(results)
    arms = [
        (arm, [cell(metrics.get(name), decimals, interval=name != "seconds") for name, _, decimals in scores])
        for arm, metrics in cells(results).items()
    ]
    wide = Table(**frame)
    wide.add_column("arm", overflow="fold", min_width=14)
    for _, heading, _ in scores:
        wide.add_column(heading, justify="right")
    for name, texts in (*arms, *others):
        wide.add_row(Text(name), *map(Text, texts))  # as Text: rich would read [24.0, 26.0] as markup
    if width is None or Console(width=10_000).measure(wide).maximum <= width:
        return wide
    tall = Table(**frame)
    tall.add_column("score")
    tall.add_column("arm", overflow="fold")
    tall.add_column(Text("mean [low, high]"), justify="right", overflow="fold")
    for number, (_, heading, _) in enumerate(scores):
        rows = [(arm, texts[number]) for arm, texts in arms]
        rows += [(name, texts[number]) for name, texts in others if texts[number] != cell(None, 0)]
        for row, (name, text) in enumerate(rows):
            tall.add_row(heading if row == 0 else "", Text(name), Text(text), end_section=row == len(rows) - 1)
    return tall


FEW_SEEDS = 5

_MEANING = {
    "better": "so its own errors taught it more than as many random ones",
    "worse": "so as many random errors taught it more than its own",
    "not decided": "so nothing here shows that its own errors teach more than as many random ones",
}

_PHRASES = {
    "better": "{method} is better than {baseline}",
    "worse": "{method} is worse than {baseline}",
    "not decided": "{method} was not shown to differ from {baseline}",
}


def _seeds(results: Mapping[str, Any]) -> int:
    return len({run["seed"] for run in results["runs"]})


def _seeds_text(results: Mapping[str, Any]) -> str:
    return "1 seed" if _seeds(results) == 1 else f"{_seeds(results)} seeds"


def interval_name(results: Mapping[str, Any]) -> str:
    """Name an interval: with one seed it holds for other items alone."""
    if _seeds(results) > 1:
        return "95 % interval"
    return f"95 % interval over {task_report(results['recipe']).item_noun} alone"


def verdict_text(results: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """Return the verdict on a comparison, as pages display it."""
    return line["verdict"] if _seeds(results) > 1 else "1 seed: no verdict"


def primary(results: Mapping[str, Any]) -> str | None:
    """Return the score that the verdict is about: the first one compared that exposure bias can move."""
    reported = task_report(results["recipe"])
    found = (line["metric"] for line in results["comparisons"])
    return next((metric for metric in found if not reported.metric(metric).fixed), None)


def sentence(results: Mapping[str, Any]) -> str:
    """Write what was compared, by how much it differs, if own errors beat matched noise, on how many seeds."""
    if len({run["label"] for run in results["runs"]}) == 1:
        return f"One arm was run ({results['runs'][0]['label']}), so nothing was compared with anything."
    metric, one = primary(results), _seeds(results) == 1
    if metric is None:
        none = "no score that exposure bias can move is there for two arms, so there is no verdict"
        return "; ".join([*_diverged(results), none]) + f" ({_basis(results)})."
    measure = task_report(results["recipe"]).metric(metric)
    lines = [line for line in results["comparisons"] if line["metric"] == metric]
    noises = {line["baseline"] for line in lines if line["control"]}
    parts: list[str] = []
    for line in lines:
        same = [other for other in lines if other["arm"] == line["arm"]]
        if line is not same[0] or line["arm"] in noises:
            continue
        # an arm against the baseline, then against its control, or, where it is the baseline, against that alone
        if one:
            parts.extend(_one_seed(each, measure, results["summary"]) for each in same)
        else:  # the first names the score and both means
            means = f" in {measure.title}: {_means(line, measure, results['summary'])}"
            parts.extend(_with_verdict(each, measure, means if each is line else "") for each in same)
    if one:
        parts[:1] = [
            f"1 seed: no verdict. On these {task_report(results['recipe']).test_noun} {part}" for part in parts[:1]
        ]
        parts.append("another seed may reverse it")
    return "; ".join([*_diverged(results), *parts, *_beaten(results, measure)]) + f" ({_basis(results)})."


def _diverged(results: Mapping[str, Any]) -> list[str]:
    """Arms that have no value of the score that decides, as their free runs left the finite numbers."""
    measure = task_report(results["recipe"]).primary
    lost = [
        run["label"]
        for run in results["runs"]
        if run[measure.side].get(measure.score, 0.0) is None and run[measure.side].get("diverged")
    ]
    return [
        f"{label} has no {measure.title}, and was compared with nothing in it: in at least one run half of its windows "
        "or more diverged"
        for label in dict.fromkeys(lost)
    ]


def _beaten(results: Mapping[str, Any], measure: Metric) -> list[str]:
    """Report that a naive baseline has the best score of all; [] if none has."""
    means = {entry["metric"]: entry["mean"] for entry in results["summary"]}
    found = {
        name: means[metric]
        for name, prefix in task_report(results["recipe"]).baselines
        if (metric := f"{measure.side}.{prefix}{measure.score}") in means
    }
    best = max if measure.higher else min
    arms = [entry["mean"] for entry in results["summary"] if entry["metric"] == measure.name]
    if not found or best(*found.values(), *arms) in arms:
        return []
    name = best(found, key=found.__getitem__)
    return [f"no arm beats the simple forecast {name}: {measure.to_text(found[name])}"]


def _baseline(line: Mapping[str, Any]) -> str:
    return f"its matched noise control {line['baseline']}" if line["control"] else line["baseline"]


def _one_seed(line: Mapping[str, Any], measure: Metric, summary: Sequence[Mapping[str, Any]]) -> str:
    """Return a difference without a verdict: one seed is no evidence for others."""
    size = f"{abs(line['difference']):.{measure.decimals}f} {measure.unit}".rstrip()
    way = f"{'lower' if line['difference'] < 0 else 'higher'} by {size} than" if line["difference"] else "level with"
    return f"{line['arm']} is {way} {_baseline(line)} in {measure.title}: {_means(line, measure, summary)}"


def _means(line: Mapping[str, Any], measure: Metric, summary: Sequence[Mapping[str, Any]]) -> str:
    means = {entry["arm"]: entry["mean"] for entry in summary if entry["metric"] == measure.name}
    return f"{measure.to_text(means[line['arm']])} against {measure.to_text(means[line['baseline']])}"


def _with_verdict(line: Mapping[str, Any], measure: Metric, means: str) -> str:
    phrase = _PHRASES[line["verdict"]].format(method=line["arm"], baseline=_baseline(line))
    text = f"{phrase}{means}, {_difference(line, measure)}"
    return f"{text}, {_MEANING[line['verdict']]}" if line["control"] else text


def _difference(line: Mapping[str, Any], measure: Metric) -> str:
    difference, low, high = (
        None if line[name] is None else signed(line[name], measure.decimals) for name in ("difference", "low", "high")
    )
    number = f"a difference of {difference} {measure.unit}".rstrip()
    if low is None:
        return f"{number} (no interval)"
    interval = f"95 % interval {low} to {high}"
    if line["verdict"] == "not decided" and line["low"] * line["high"] > 0:
        interval += f", not adjusted; adjusted for the number of comparisons p = {line['p_adjusted']:.2f}"
    return f"{number} ({interval})"


def _basis(results: Mapping[str, Any]) -> str:
    seeds, items = _seeds(results), results["test_items"]
    counted = _seeds_text(results)
    counted += f", {items:,} {task_report(results['recipe']).test_noun}" if items else ""
    if 1 < seeds < FEW_SEEDS:
        return f"{counted}; fewer than {FEW_SEEDS} seeds: a hint, not a result"
    return counted


def signed(value: float, decimals: int = 2) -> str:
    """Return a number with its sign and a true minus.

    >>> signed(-0.234), signed(1.5), signed(0.0)
    ('−0.23', '+1.50', '0.00')
    """
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+") + text
