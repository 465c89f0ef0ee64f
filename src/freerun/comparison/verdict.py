"""The outcome of a comparison, as one sentence that claims no more than was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from freerun.errors import UserError
from freerun.metrics.table import PAIRS, ItemReduction, Metric, TaskReport, higher_is_better
from freerun.tasks import DATA_KINDS, task_of

if TYPE_CHECKING:
    from rich.table import Table


def task_report(recipe: Mapping[str, Any]) -> TaskReport:
    """Which scores a recipe's runs are compared in; those of pairs where its data have no kind.

    >>> task_report({"data": {"kind": "toy"}}).primary.name, task_report({"data": {"kind": "text"}}).primary.name
    ('free_running.per', 'free_running.trigram_divergence')
    """
    data = recipe.get("data")
    if isinstance(data, Mapping) and data.get("kind") == "scores":
        return _scores(higher=bool(data.get("higher")), log=bool(data.get("log")))
    kind = data.get("kind") if isinstance(data, Mapping) else None
    return task_of(data).report if kind in DATA_KINDS else PAIRS


def _scores(*, higher: bool, log: bool) -> TaskReport:
    """The one score of files that other tools wrote."""
    items = ItemReduction("score", scale=1.0)
    score = Metric(
        "free_running.score", "score", "score", "", "drawn", 4, "", "", higher, scale="log" if log else "linear",
        items=items,
    )  # fmt: skip
    return TaskReport("", "test items", "items", (score,), ())


def columns(results: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Metric, heading and decimals of each column."""
    reported = task_report(results["recipe"])
    times = [("seconds", "seconds", 0)] if any("seconds" in run for run in results["runs"]) else []
    found = {entry["metric"] for entry in results["summary"]}
    scores = (each for each in reported.columns if not each.optional or each.name in found)
    return [*((each.name, each.heading, each.decimals) for each in scores), *times]


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
    side = "free-running " if reported.primary.title.startswith("free-running") else ""
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
    tall.add_column("score", overflow="fold")
    tall.add_column("arm", overflow="fold")
    tall.add_column(Text("mean [low, high]"), justify="right", overflow="fold")
    narrow = Table(**frame)
    narrow.add_column(Text("score: arm, mean [low, high]"), overflow="fold")
    for number, (_, heading, _) in enumerate(scores):
        rows = [(arm, texts[number]) for arm, texts in arms]
        rows += [(name, texts[number]) for name, texts in others if texts[number] != cell(None, 0)]
        narrow.add_row(Text(heading, style="bold"))
        for row, (name, text) in enumerate(rows):
            last = row == len(rows) - 1
            tall.add_row(heading if row == 0 else "", Text(name), Text(text), end_section=last)
            fits = len(name) + len(text) <= width - 8  # of which the frame takes four
            narrow.add_row(Text(f"  {name}  {text}" if fits else f"  {name}\n    {text}"), end_section=last)
    return tall if Console(width=10_000).measure(tall).maximum <= width else narrow


FEW_SEEDS = 5

_PHRASES = {
    "better": "{method} is better than {baseline}",
    "worse": "{method} is worse than {baseline}",
    "as good": "{method} is as good as {baseline}",
    "undecided": "{method} was not shown to differ from {baseline}",
}
_MATCHED = {
    "better": "so its own errors taught it more than as many random ones",
    "worse": "so as many random errors taught it more than its own",
    "as good": "so as many random errors taught it as much",
    "undecided": "so nothing here shows that its own errors teach more than as many random ones",
}
_WHY = {"better": "own errors", "worse": "any errors", "as good": "any errors", "undecided": "undecided"}
_REASONS = {
    "own errors": "better than {baseline} and than its control {control}",
    "any errors": "better than {baseline}, but its control {control} does as well",
    "undecided": "better than {baseline}; its control {control} does not decide why",
    "no control": "better than {baseline}; no control was run, so nothing decides why",
    "worse": "worse than {baseline}",
    "as good": "as good as {baseline} within {margin}",
    "undecided against": "no difference from {baseline} was found",
}


def margin_of(recipe: Mapping[str, Any]) -> float | None:
    """Return the largest difference that a recipe's comparison takes for none; a factor above 1 of a score on logs.

    >>> margin_of({"data": {"kind": "toy"}, "compare": {"margin": 0.5}}), margin_of({})
    (0.5, None)
    """
    margin = recipe.get("compare", {}).get("margin")
    measure = task_report(recipe).primary
    if margin is not None and measure.scale == "log" and margin <= 1:
        raise UserError(
            f"compare.margin of {measure.title} must be a factor above 1, such as 1.1 for ten percent: it is compared "
            f"by its ratio; got {margin}"
        )
    return margin


def _seeds(results: Mapping[str, Any]) -> int:
    return len({run["seed"] for run in results["runs"]})


def _seeds_text(results: Mapping[str, Any]) -> str:
    return "1 seed" if _seeds(results) == 1 else f"{_seeds(results)} seeds"


def interval_name(results: Mapping[str, Any]) -> str:
    """Name an interval: with one seed it holds for other items alone, and for no other seed."""
    if _seeds(results) > 1:
        return "95 % interval"
    return f"interval over {task_report(results['recipe']).item_noun} alone"


def verdict_text(results: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """Return the verdict on a comparison, as pages display it; all but the fixed sequence are exploratory."""
    if _seeds(results) == 1:
        return "1 seed: no verdict"
    return line["verdict"] if line["step"] else f"{line['verdict']}, exploratory"


def primary(results: Mapping[str, Any]) -> str | None:
    """Return the score that the verdict is about: the first one compared that exposure bias can move."""
    reported = task_report(results["recipe"])
    found = (line["metric"] for line in results["comparisons"])
    return next((metric for metric in found if not reported.metric(metric).fixed), None)


def verdict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Decide a comparison by its fixed sequence: a word, an answer, why, the steps, and all of it as sentences.

    ``word``: better and worse (than the baseline), "as good" (within the margin), undecided, uncontrolled (better, and
    no control decides why) or "no verdict" (one seed, or nothing to compare). ``answer``: yes, no or "not decided".
    """
    metric, margin = primary(results), margin_of(results["recipe"])
    steps = [line for line in results["comparisons"] if line["metric"] == metric and line["step"]]
    measure = task_report(results["recipe"]).metric(metric) if metric else None
    first = steps[0] if steps else None
    word, why = "no verdict", None
    if first is not None and _seeds(results) > 1:
        word = first["verdict"]
        if word == "better" and not first["control"]:
            control = next((line for line in steps if line["control"]), None)
            why = _WHY[control["verdict"]] if control else "no control"
            word = "better" if why in ("own errors", "any errors") else "uncontrolled"
    answers = {"better": "yes", "uncontrolled": "yes", "worse": "no", "as good": "no"}
    naive = _beaten(results, measure) if measure else []
    unlearnt = not naive and _unlearnt(results)
    found: dict[str, Any] = {
        "word": word,
        "answer": answers.get(word, "not decided"),
        "why": why,
        "reason": "",
        "metric": metric,
        "margin": margin,
        "arm": first and first["arm"],
        "baseline": first and first["baseline"],
        "steps": [
            {name: line[name] for name in (*_STEP, "scale", "control", "detectable", "seeds_needed", "verdict")}
            for line in steps
        ],
        "naive": naive,
        "unlearnt": unlearnt,
        "seeds": _seeds(results),
        "hint": 1 < _seeds(results) < FEW_SEEDS,
    }
    found["reason"] = _reason(results, found, steps)
    found["sentence"] = sentence(results)
    return found


_STEP = ("arm", "baseline", "difference", "low", "high", "p_value")


def _reason(results: Mapping[str, Any], found: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> str:
    """Why the answer is what it is, in a clause."""
    if found["word"] == "no verdict":
        return "1 seed: another may reverse it" if steps else "nothing was compared"
    control = next((line["baseline"] for line in steps if line["control"]), "")
    key = found["why"] or (f"{found['word']} against" if found["word"] == "undecided" else found["word"])
    text = _REASONS.get(key, "better than {baseline}")
    measure = task_report(results["recipe"]).metric(found["metric"])
    margin = "" if found["margin"] is None else _size(found["margin"], steps[0]["scale"], measure, margin=True)
    return text.format(baseline=found["baseline"], control=control, margin=margin)


def sentence(results: Mapping[str, Any]) -> str:
    """Write what was compared, by how much it differs, if own errors beat their control, on how many seeds."""
    if len({run["label"] for run in results["runs"]}) == 1:
        return f"One arm was run ({results['runs'][0]['label']}), so nothing was compared with anything."
    metric = primary(results)
    if metric is None:
        none = "no score that exposure bias can move is there for two arms, so there is no verdict"
        return "; ".join([*_diverged(results), none]) + f" ({_basis(results)})."
    measure = task_report(results["recipe"]).metric(metric)
    lines = [line for line in results["comparisons"] if line["metric"] == metric]
    steps = [line for line in lines if line["step"]]
    naive = "".join(f"{text}. " for text in _beaten_text(results, measure) or _unlearnt_text(results))
    if not steps:
        none = "the first method has no value of it to compare, so there is no verdict"
        return naive + "; ".join([*_diverged(results), none]) + f" ({_basis(results)})."
    if _seeds(results) == 1:  # steps after the first are not taken, and still have a difference to show
        steps = [*steps, *(line for line in lines if line["control"] and line["arm"] == steps[0]["arm"])]
        steps = list({line["baseline"]: line for line in steps}.values())
        parts = [_one_seed(line, measure, results["summary"]) for line in steps]
        parts[0] = f"1 seed: no verdict. On these {task_report(results['recipe']).test_noun} {parts[0]}"
        parts.append("another seed may reverse it")
    else:  # the first names the score and both means
        means = f" in {measure.title}: {_means(steps[0], measure, results['summary'])}"
        parts = [
            _with_verdict(line, measure, means if line is steps[0] else "", margin_of(results["recipe"]))
            for line in steps
        ]
        left = [line for line in lines if line["control"] and line["arm"] == steps[0]["arm"] and not line["step"]]
        if left:
            parts.append(f"{' and '.join(map(_baseline, left))} {'were' if left[1:] else 'was'} therefore not tested")
        elif steps[-1]["verdict"] == "better" and not steps[-1]["control"]:
            parts.append("no control was run, so nothing here decides why")
        parts += _exploratory(lines)
    return naive + "; ".join([*_diverged(results), *parts]) + f" ({_basis(results)})."


def _exploratory(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was decided beside the fixed sequence, which no verdict rests on."""
    found = [
        f"{line['arm']} {line['verdict']} than {line['baseline']}"
        for line in lines
        if not line["step"] and line["verdict"] in ("better", "worse")
    ]
    return [f"exploratory: {', '.join(found)}"] if found else []


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


def _beaten(results: Mapping[str, Any], measure: Metric) -> list[dict[str, Any]]:
    """Naive baselines that beat every arm, the best first."""
    means = {entry["metric"]: entry["mean"] for entry in results["summary"]}
    arms = [entry["mean"] for entry in results["summary"] if entry["metric"] == measure.name]
    sign = -1 if measure.higher else 1
    found = [
        {"name": name, "value": means[metric]}
        for name, prefix in task_report(results["recipe"]).baselines
        if (metric := f"{measure.side}.{prefix}{measure.score}") in means
        and all(sign * means[metric] < sign * mean for mean in arms)
    ]
    return sorted(found, key=lambda each: sign * each["value"])


def _beaten_text(results: Mapping[str, Any], measure: Metric) -> list[str]:
    found = _beaten(results, measure)
    if not found:
        return []
    means = [entry["mean"] for entry in results["summary"] if entry["metric"] == measure.name]
    best = (max if measure.higher else min)(means)
    first = found[0]
    return [
        f"No arm beats {first['name']}, which needs no training: {measure.to_text(first['value'])} against "
        f"{measure.to_text(best)} of the best arm in {measure.title}"
    ]


_LEARNT = 0.05


def _unlearnt(results: Mapping[str, Any]) -> bool:
    """True if no run's best score on dev is better by 5 % than that of the weights that it began with."""
    for run in results["runs"]:
        first, best = run.get("untrained"), run.get("best", {})
        if first is None or best.get("value") is None:
            return False
        gain = best["value"] - first if higher_is_better(str(best.get("select"))) else first - best["value"]
        if gain > _LEARNT * abs(first):
            return False
    return bool(results["runs"])


def _unlearnt_text(results: Mapping[str, Any]) -> list[str]:
    if not _unlearnt(results):
        return []
    better = max if higher_is_better(str(results["runs"][0]["best"]["select"])) else min
    run = better(results["runs"], key=lambda each: each["best"]["value"])
    return [
        f"Training has hardly moved any arm: the best dev score of every run, {run['best']['select']}, lies within 5 % "
        f"of that of the weights that it began with ({run['label']}, seed {run['seed']}: {run['best']['value']:.4g} "
        f"after {run['untrained']:.4g})"
    ]


_CONTROLS = {
    "matched": "its matched noise control",
    "confusion": "its confusion noise control",
    "equal_cost": "its control of equal cost",
    "equal_seconds": "its control of equal seconds",
    "no_history": "its control without history",
}


def _baseline(line: Mapping[str, Any]) -> str:
    kind = line["role"].partition(":")[2]
    return f"{_CONTROLS.get(kind, 'its control')} {line['baseline']}" if line["control"] else line["baseline"]


def _one_seed(line: Mapping[str, Any], measure: Metric, summary: Sequence[Mapping[str, Any]]) -> str:
    """Return a difference without a verdict: one seed is no evidence for others."""
    way = "level with"
    if line["scale"] == "log":
        if times(math.exp(min(line["difference"], 700.0))) != times(1.0):
            way = f"{_size(line['difference'], 'log', measure)} than"
    elif line["difference"]:
        way = (
            f"{'lower' if line['difference'] < 0 else 'higher'} by {_size(line['difference'], 'linear', measure)} than"
        )
    return f"{line['arm']} is {way} {_baseline(line)} in {measure.title}: {_means(line, measure, summary)}"


def _means(line: Mapping[str, Any], measure: Metric, summary: Sequence[Mapping[str, Any]]) -> str:
    means = {entry["arm"]: entry["mean"] for entry in summary if entry["metric"] == measure.name}
    return f"{measure.to_text(means[line['arm']])} against {measure.to_text(means[line['baseline']])}"


def _with_verdict(line: Mapping[str, Any], measure: Metric, means: str, margin: float | None) -> str:
    phrase = _PHRASES[line["verdict"]].format(method=line["arm"], baseline=_baseline(line))
    if line["verdict"] == "as good" and margin is not None:
        phrase += f" within {_size(margin, line['scale'], measure, margin=True)}"
    text = f"{phrase}{means}, {_difference(line, measure)}"
    if line["verdict"] == "undecided":
        text += _seen(line, measure, margin)
    matched = line["control"] and line["role"] == "control:matched"
    return f"{text}, {_MATCHED[line['verdict']]}" if matched else text


def _seen(line: Mapping[str, Any], measure: Metric, margin: float | None) -> str:
    """Return what an undecided comparison could have seen, and the seeds that would see the margin."""
    if line["detectable"] is None:
        return ""
    text = f"; this design could have seen {size_text(line['detectable'], line['scale'], measure)}"
    if not line["difference"] and margin is None:
        return text
    what = "a difference like this one" if margin is None else _size(margin, line["scale"], measure, margin=True)
    if line["seeds_needed"] is None:
        return f"{text}, and {what} needs more than 100 seeds, or more test items"
    return text if line["seeds_needed"] <= line["seeds"] else f"{text}, and {what} needs {line['seeds_needed']} seeds"


def _size(value: float, scale: str, measure: Metric, *, margin: bool = False, log: bool = False) -> str:
    """Return the size of a difference: of logarithms as a factor, which a margin is already."""
    if scale != "log":
        return f"{abs(value):.{measure.decimals}f} {measure.unit}".rstrip()
    factor = value if margin and not log else math.exp(min(abs(value), 700.0))
    if margin:
        return f"a factor of {times(factor)}"
    return f"{times(factor)} times {'smaller' if value < 0 else 'larger'}"


def size_text(value: float, scale: str, measure: Metric) -> str:
    """Return the size of a difference, which of a score on logarithms is a logarithm, as text."""
    return _size(value, scale, measure, margin=True, log=True)


def times(factor: float) -> str:
    """Return a factor as text.

    >>> times(1.084), times(4.12), times(123.4), times(0.243), times(0.9993), times(1.0)
    ('1.08', '4.1', '123', '0.24', '0.9993', '1.00')
    """
    if 5e-5 < abs(factor - 1) < 0.005:
        return f"{factor:.4f}"
    return f"{factor:.2f}" if factor < 2 else f"{factor:.1f}" if factor < 100 else f"{factor:.0f}"


def _difference(line: Mapping[str, Any], measure: Metric) -> str:
    ends = [line["low"], line["high"]]
    if line["scale"] == "log":
        number = _size(line["difference"], "log", measure)
        if None not in ends and ends[0] * ends[1] > 0:  # on one side: from the smaller factor
            inner, outer = sorted(math.exp(abs(end)) for end in ends)
            return f"{number} (95 % interval {times(inner)} to {times(outer)})"
    else:
        number = f"a difference of {signed(line['difference'], measure.decimals)} {measure.unit}".rstrip()
    return f"{number} ({'no interval' if None in ends else f'95 % interval {interval_text(line, measure)}'})"


def pair_text(line: Mapping[str, Any]) -> str:
    """Return what a comparison is of: ``a / b`` of ratios, else ``a`` less ``b``."""
    sign = "/" if line["scale"] == "log" else "\N{MINUS SIGN}"
    return f"{line['arm']} {sign} {line['baseline']}"


def difference_text(line: Mapping[str, Any], measure: Metric, end: str = "difference") -> str:
    """Return the difference of a comparison, or an end of its interval, for tables: a ratio has a times sign."""
    if line["scale"] == "log":
        return f"\N{MULTIPLICATION SIGN}{times(math.exp(min(line[end], 700.0)))}"
    return signed(line[end], measure.decimals)


def interval_text(line: Mapping[str, Any], measure: Metric) -> str:
    """Return the interval of a comparison for tables."""
    return f"{difference_text(line, measure, 'low')} to {difference_text(line, measure, 'high')}"


def _basis(results: Mapping[str, Any]) -> str:
    seeds, items = _seeds(results), results["test_items"]
    counted = _seeds_text(results)
    if "init" in results:
        counted += " that all begin with the same trained weights, and no interval is over other beginnings"
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
